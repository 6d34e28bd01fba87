"""What network adapters are plugged into: a loop, a virtual switch, pcap files."""

from .backend import NetworkBackend, Station, deliver_all
from .loopback import Loopback
from .pcap import PcapFile, Recorded, Replay, read_pcap
from .switch import PortStatistics, SwitchPort, VirtualSwitch

__all__ = [
    "Loopback",
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
