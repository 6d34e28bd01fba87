"""Devices, and the framework that runs them behind a VMBus server."""

from .echo import EchoDevice
from .framework import Device, DeviceChannel, RefuseOpen, serve_devices

__all__ = ["Device", "DeviceChannel", "EchoDevice", "RefuseOpen", "serve_devices"]
