"""Drivers: what the guest's side of each device does. `integration`, `storage`, `network` and `input` have rooms of their own.

`run_drivers` runs those that answer by themselves; a disk, a network adapter and a serial port are opened and used.
"""

from .framework import Driver, run_drivers
from .serial import open_serial

__all__ = ["Driver", "open_serial", "run_drivers"]
