"""Keyboard and mouse, the host's side."""

from .keyboard import KeyboardDevice
from .mouse import MouseDevice

__all__ = ["KeyboardDevice", "MouseDevice"]
