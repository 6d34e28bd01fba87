"""Integration devices, host side: heartbeat, shutdown, time, key-value pairs, volume snapshots, file copy."""

from ...protocol.integration.common import IcMessageType, IcStatus, IcVersion
from ...protocol.integration.heartbeat import HeartbeatState
from ...protocol.integration.kvp import KvpPool
from ...protocol.integration.kvp_ip import IpFamily, IpInfo
from ...protocol.integration.shutdown import ShutdownKind
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
    "HeartbeatState",
    "IcMessageType",
    "IcStatus",
    "IcVersion",
    "IntegrationDevice",
    "IpFamily",
    "IpInfo",
    "KvpDevice",
    "KvpPool",
    "ShutdownDevice",
    "ShutdownKind",
    "TimeSyncDevice",
    "VssDevice",
    "system_time",
]
