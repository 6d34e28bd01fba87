"""Integration components as a guest has them: each answers the host as Linux does."""

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
    "IntegrationDriver",
    "KvpDriver",
    "Request",
    "ShutdownDriver",
    "TimeSample",
    "TimeSyncDriver",
    "VssDriver",
    "well_known_pairs",
]
