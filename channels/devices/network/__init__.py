"""The synthetic network adapter, host side, and what it may be plugged into."""

from ...protocol.network.frames import Frame
from .adapter import LINK_SPEED, QUEUE_SIZE, NetworkAdapter
from .backends import (
    Loopback,
    NetworkBackend,
    PcapFile,
    PortStatistics,
    Recorded,
    Replay,
    Station,
    SwitchPort,
    VirtualSwitch,
    deliver_all,
    read_pcap,
)
from .statistics import AdapterStatistics

__all__ = [
    "LINK_SPEED",
    "QUEUE_SIZE",
    "AdapterStatistics",
    "Frame",
    "Loopback",
    "NetworkAdapter",
    "NetworkBackend",
    "PcapFile",
    "PortStatistics",
    "Recorded",
    "Replay",
    "Station",
    "SwitchPort",
    "VirtualSwitch",
    "deliver_all",
    "read_pcap",
]
