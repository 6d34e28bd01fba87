"""What RNDIS queries and sets are about: object identifiers (MS-RNDIS, NDIS), the packet filter, RSS and offload structures.

All values are little-endian u32 but for addresses (6 bytes), lists, and the structures below, which begin with an object
header: u8 type, u8 revision, u16 size.

| structure | type | bytes | after the header |
|---|---|---|---|
| receive scale capabilities, revision 2 | 0x88 | 18 | u32 flags, u32 messages, u32 queues, u16 table entries |
| receive scale parameters, revision 2 | 0x89 | 40 | u16 flags, u16 CPU, u32 hash, table: u16 bytes, at 16 u32 offset, ... |
| offload capabilities, revision 1 | 0xA7 | 112 | all zero: none |
| offload parameters | 0x80 | 20 or more | 11 x u8: 0 no change, 1 disabled, more: enabled; then more of them |
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag

from broker.errors import ProtocolError

from .nvsp import MAX_TABLE_SIZE

RSS_CAPABILITIES = struct.Struct("<BBHIIIH")
RSS_PARAMETERS = struct.Struct("<BBHHHIH2xIH2xIIII")
"""With the gaps that a compiler leaves: Linux does not pack this one."""
OFFLOAD_HEADER = struct.Struct("<BBH")
OFFLOAD_SIZE = 112
"""Bytes of offload capabilities of revision 1 (NDIS 6.0)."""
_OFFLOAD_PARAMETERS = 15
"""Bytes of offload parameters that are looked at: the header, and 11 choices."""
_DISABLED = 1
_KEEPS_TABLE = 0x4
"""A flag of receive scale parameters: the table stays."""
_HASH_TYPES = 0x0000_0300
"""TCP over IPv4 and IPv6."""


class Oid(IntEnum):
    """Object identifiers that an adapter here answers."""

    SUPPORTED_LIST = 0x0001_0101
    HARDWARE_STATUS = 0x0001_0102
    MEDIA_SUPPORTED = 0x0001_0103
    MEDIA_IN_USE = 0x0001_0104
    MAXIMUM_LOOKAHEAD = 0x0001_0105
    MAXIMUM_FRAME_SIZE = 0x0001_0106
    """The MTU: bytes of a frame after its header."""
    LINK_SPEED = 0x0001_0107
    """In units of 100 bit/s."""
    TRANSMIT_BLOCK_SIZE = 0x0001_010A
    RECEIVE_BLOCK_SIZE = 0x0001_010B
    VENDOR_ID = 0x0001_010C
    VENDOR_DESCRIPTION = 0x0001_010D
    PACKET_FILTER = 0x0001_010E
    CURRENT_LOOKAHEAD = 0x0001_010F
    MAXIMUM_TOTAL_SIZE = 0x0001_0111
    MAXIMUM_SEND_PACKETS = 0x0001_0115
    MEDIA_CONNECT_STATUS = 0x0001_0114
    """0 connected, 1 disconnected."""
    RECEIVE_SCALE_CAPABILITIES = 0x0001_0203
    RECEIVE_SCALE_PARAMETERS = 0x0001_0204
    TRANSMIT_OK = 0x0002_0101
    RECEIVE_OK = 0x0002_0102
    TRANSMIT_ERROR = 0x0002_0103
    RECEIVE_ERROR = 0x0002_0104
    RECEIVE_NO_BUFFER = 0x0002_0105
    PERMANENT_ADDRESS = 0x0101_0101
    CURRENT_ADDRESS = 0x0101_0102
    MULTICAST_LIST = 0x0101_0103
    MAXIMUM_LIST_SIZE = 0x0101_0104
    OFFLOAD_PARAMETERS = 0xFC01_020C
    OFFLOAD_CAPABILITIES = 0xFC01_020D


class PacketFilter(IntFlag):
    """Which frames the guest wants. Unknown bits are kept."""

    NONE = 0
    DIRECTED = 0x01
    """To the adapter's address."""
    MULTICAST = 0x02
    """To an address of the multicast list."""
    ALL_MULTICAST = 0x04
    BROADCAST = 0x08
    PROMISCUOUS = 0x20
    """All."""


USUAL_FILTER = PacketFilter.DIRECTED | PacketFilter.ALL_MULTICAST | PacketFilter.BROADCAST
"""What Linux sets for an interface that is up."""


def pack_rss_capabilities(queues: int) -> bytes:
    """Receive scale capabilities of an adapter with so many channels."""
    size = RSS_CAPABILITIES.size
    return RSS_CAPABILITIES.pack(0x88, 2, size, _HASH_TYPES, queues, queues, MAX_TABLE_SIZE)


def parse_rss_capabilities(data: bytes) -> int:
    """How many channels an adapter has. `ProtocolError` for another structure, or one that is cut short."""
    if len(data) < RSS_CAPABILITIES.size or data[0] != 0x88:
        raise ProtocolError("receive scale capabilities", 0, "18 bytes of type 0x88", f"{data[:4].hex(' ')}")
    queues: int = RSS_CAPABILITIES.unpack_from(data)[5]
    return queues


def pack_rss_parameters(table: tuple[int, ...]) -> bytes:
    """Receive scale parameters with this table, no key, and the hash left to the host."""
    size = RSS_PARAMETERS.size
    parameters = RSS_PARAMETERS.pack(0x89, 2, size, 0, 0, 0, 4 * len(table), size, 0, size + 4 * len(table), 0, 0, 0)
    return parameters + struct.pack(f"<{len(table)}I", *table)


def parse_rss_table(data: bytes) -> tuple[int, ...]:
    """The table of receive scale parameters, channels by hash; empty where the guest leaves it as it is.

    `ProtocolError` for another structure, a table of more than 128 entries, or one that is not all there.
    """
    if len(data) < RSS_PARAMETERS.size or data[0] != 0x89:
        raise ProtocolError("receive scale parameters", 0, "40 bytes of type 0x89", f"{data[:4].hex(' ')}")
    _, _, _, flags, _, _, size, offset, *_ = RSS_PARAMETERS.unpack_from(data)
    if flags & _KEEPS_TABLE or not size:
        return ()
    if size % 4 or size > 4 * MAX_TABLE_SIZE:
        raise ProtocolError("receive scale parameters", 12, f"up to {MAX_TABLE_SIZE} entries", f"{size} bytes")
    if offset + size > len(data):
        raise ProtocolError("receive scale parameters", 16, f"{size} bytes inside the structure", f"offset {offset}")
    return struct.unpack_from(f"<{size // 4}I", data, offset)


def pack_no_offload() -> bytes:
    """Offload capabilities of an adapter that has none."""
    return OFFLOAD_HEADER.pack(0xA7, 1, OFFLOAD_SIZE).ljust(OFFLOAD_SIZE, b"\0")


def parse_wants_offload(data: bytes) -> bool:
    """Whether offload parameters switch something on. `ProtocolError` when they are cut short or of another type."""
    if len(data) < _OFFLOAD_PARAMETERS or data[0] != 0x80:
        raise ProtocolError("offload parameters", 0, "15 bytes or more of type 0x80", f"{data[:4].hex(' ')}")
    return max(data[OFFLOAD_HEADER.size : _OFFLOAD_PARAMETERS]) > _DISABLED
