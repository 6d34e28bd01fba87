"""Devices, and the framework that runs them behind a VMBus server.

`integration`, `storage`, `network` and `input` have rooms of their own; `channels.drivers` has the guest's side of each.
"""

from ..bus import OfferParams
from .device import Device, DeviceChannel, RefuseOpen
from .echo import EchoDevice
from .framework import serve_devices
from .serial import SerialConsole, SerialPort

__all__ = [
    "Device",
    "DeviceChannel",
    "EchoDevice",
    "OfferParams",
    "RefuseOpen",
    "SerialConsole",
    "SerialPort",
    "serve_devices",
]
