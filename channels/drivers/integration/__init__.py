"""Integration components as a guest has them: each answers the host as Linux does."""

from ...protocol.integration.common import IcMessageType, IcStatus, IcVersion
from ...protocol.integration.heartbeat import HeartbeatState
from ...protocol.integration.kvp import KvpPool
from ...protocol.integration.kvp_ip import IpFamily, IpInfo
from ...protocol.integration.shutdown import ShutdownKind
from .component import IntegrationDriver, Request
from .file_copy import FileCopyDriver
from .heartbeat import HeartbeatDriver
from .kvp import KvpDriver, well_known_pairs
from .shutdown import ShutdownDriver
from .timesync import TimeSample, TimeSyncDriver
from .vss import VssDriver

__all__ = [
    "FileCopyDriver",
    "HeartbeatDriver",
    "HeartbeatState",
    "IcMessageType",
    "IcStatus",
    "IcVersion",
    "IntegrationDriver",
    "IpFamily",
    "IpInfo",
    "KvpDriver",
    "KvpPool",
    "Request",
    "ShutdownDriver",
    "ShutdownKind",
    "TimeSample",
    "TimeSyncDriver",
    "VssDriver",
    "well_known_pairs",
]
