"""The guest's side of the synthetic network adapter."""

from ...protocol.network.frames import Frame, InfoKind, PacketInfo
from ...protocol.network.nvsp import NvspVersion
from ...protocol.network.oids import USUAL_FILTER, Oid, PacketFilter
from .client import NEWEST_FIRST, NetworkClient

__all__ = [
    "NEWEST_FIRST",
    "USUAL_FILTER",
    "Frame",
    "InfoKind",
    "NetworkClient",
    "NvspVersion",
    "Oid",
    "PacketFilter",
    "PacketInfo",
]
