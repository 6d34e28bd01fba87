"""Wire values of the integration components: bytes in, values out, bytes back. What devices and drivers speak of is here.

The modules have the rest: `common`, `heartbeat`, `shutdown`, `timesync`, `kvp`, `kvp_ip`, `vss`, `file_copy`.
"""

from .common import IcFlags, IcHeader, IcMessageType, IcStatus, IcVersion, ic_status
from .heartbeat import HeartbeatState
from .kvp import KvpPool, KvpValueType
from .kvp_ip import IpFamily, IpInfo
from .shutdown import ShutdownFlags, ShutdownKind, ShutdownMessage
from .timesync import TimeSyncFlags

__all__ = [
    "HeartbeatState",
    "IcFlags",
    "IcHeader",
    "IcMessageType",
    "IcStatus",
    "IcVersion",
    "IpFamily",
    "IpInfo",
    "KvpPool",
    "KvpValueType",
    "ShutdownFlags",
    "ShutdownKind",
    "ShutdownMessage",
    "TimeSyncFlags",
    "ic_status",
]
