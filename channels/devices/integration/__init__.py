"""Integration devices, host side: heartbeat, shutdown, time, key-value pairs, volume snapshots, file copy."""

from .component import Conversation, GuestRefused, IntegrationDevice
from .file_copy import FileCopyDevice
from .heartbeat import HeartbeatDevice
from .kvp import KvpDevice
from .shutdown import ShutdownDevice
from .timesync import VIRTUAL_EPOCH, TimeSyncDevice, system_time
from .vss import VssDevice

__all__ = [
    "VIRTUAL_EPOCH",
    "Conversation",
    "FileCopyDevice",
    "GuestRefused",
    "HeartbeatDevice",
    "IntegrationDevice",
    "KvpDevice",
    "ShutdownDevice",
    "TimeSyncDevice",
    "VssDevice",
    "system_time",
]
