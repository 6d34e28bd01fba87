"""Ethernet frames in RNDIS data messages (MS-RNDIS, REMOTE_NDIS_PACKET_MSG).

All little-endian; both offsets count from byte 8. Several messages may lie one after another, each `length` bytes long,
padding included.

| offset | size | field |
|---|---|---|
| 0 | 4 | type 1 |
| 4 | 4 | length of the message |
| 8 | 4 | offset of the frame |
| 12 | 4 | length of the frame |
| 16 | 12 | out-of-band data: offset, length, elements; not looked at |
| 28 | 4 | offset of the per-packet information |
| 32 | 4 | length of the per-packet information |
| 36 | 8 | 0 |
| 44 | | per-packet information, then the frame |

Each piece of per-packet information is a u32 size that includes its header, a u32 kind (bit 31: internal), a u32 offset of
the data from the size field, 12 or more, and the data. What the data means is between the driver and whoever it talks to.
"""

from __future__ import annotations

import struct
import zlib
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

import msgspec

from broker.errors import ProtocolError

from .rndis import RndisType

ETHERNET_HEADER = 14
"""Bytes of destination, source and type: the shortest frame."""
SMALLEST_MTU = 68
USUAL_MTU = 1500
LARGEST_MTU = 65_521
"""Bytes of the largest frame without its header: what there is, and what there may be."""
ADDRESS_SIZE = 6
BROADCAST = b"\xff" * ADDRESS_SIZE
DATA_HEADER = struct.Struct("<11I")
INFO_HEADER = struct.Struct("<III")
ALIGNMENT = 8
_ORIGIN = 8
_SIZES = 2048
"""Frame sizes whose headers are kept."""


class InfoKind(IntEnum):
    """What a piece of per-packet information is about."""

    CHECKSUM = 0
    """u32: which checksums are to be computed, or were checked."""
    LARGE_SEND = 2
    """u32: segment size and kind of a large send."""
    VLAN = 6
    """u32: 802.1Q priority and VLAN."""
    HASH = 8
    """u32: hash of the flow."""


class PacketInfo(NamedTuple):
    """One piece of per-packet information; unknown kinds are kept."""

    kind: int
    data: bytes


class Frame(msgspec.Struct, frozen=True, gc=False):
    """One Ethernet frame, from destination address to the end of its data, and what its sender says about it."""

    data: bytes
    info: tuple[PacketInfo, ...] = ()


def pack_frame(frame: Frame) -> bytes:
    """One data message, padded to a multiple of 8 bytes."""
    data = frame.data
    if frame.info:
        return _pack_with_info(frame)
    header, total = _plain_header(len(data))
    return (header + data).ljust(total, b"\0")


def packed_size(frame: Frame) -> int:
    """Bytes that `pack_frame` makes."""
    size = DATA_HEADER.size + len(frame.data)
    if frame.info:
        size += sum(INFO_HEADER.size + len(data) + 3 & ~3 for _, data in frame.info)
    return size + ALIGNMENT - 1 & -ALIGNMENT


def parse_frames(data: bytes) -> list[Frame]:
    """The frames of one or several data messages that fill `data`.

    `ProtocolError` for no message, another type, a length that does not fit, a frame of less than 14 bytes, and offsets or
    lengths that lead out of the message.
    """
    frames: list[Frame] = []
    position, end = 0, len(data)
    unpack, header_size, packet = DATA_HEADER.unpack_from, DATA_HEADER.size, RndisType.PACKET.value
    while True:
        if end - position < header_size:
            raise ProtocolError("RNDIS packet", position, f"{header_size} bytes of header", f"{end - position}")
        kind, length, offset, size, _, _, _, info_offset, info_size, _, _ = unpack(data, position)
        if kind != packet:
            raise ProtocolError("RNDIS packet", position, "type 1", f"{kind:#x}")
        if not header_size <= length <= end - position:
            raise ProtocolError("RNDIS packet", position + 4, f"{header_size} to {end - position} bytes", f"{length}")
        offset += _ORIGIN
        if size < ETHERNET_HEADER:
            raise ProtocolError("RNDIS packet", position + 12, f"a frame of {ETHERNET_HEADER} bytes or more", f"{size}")
        if offset < header_size or offset + size > length:
            raise ProtocolError("RNDIS packet", position + 8, "a frame inside the message", f"{size} bytes at {offset}")
        start = position + offset
        if info_size:
            info_offset += _ORIGIN
            if info_offset < header_size or info_offset + info_size > length:
                raise ProtocolError(
                    "RNDIS packet", position + 28, "information inside the message", f"{info_size} at {info_offset}"
                )
            at = position + info_offset
            frames.append(Frame(data[start : start + size], _parse_info(data[at : at + info_size], at)))
        else:
            frames.append(Frame(data[start : start + size]))
        position += length
        if position == end:
            return frames


def flow_hash(frame: bytes) -> int:
    """A number of 32 bits that all frames of a flow share: CRC-32 (not Toeplitz) of what tells the flow.

    IPv4 without options: protocol, addresses, ports; IPv6: next header, addresses, ports; else addresses and type. What a
    fragment has in the place of ports may part it from its flow's others.
    """
    kind = frame[12:14]
    if kind == b"\x08\x00" and frame[14:15] == b"\x45":
        return zlib.crc32(frame[23:24] + frame[26:38])
    if kind == b"\x86\xdd":
        return zlib.crc32(frame[20:21] + frame[22:58])
    return zlib.crc32(frame[:ETHERNET_HEADER])


@lru_cache(maxsize=_SIZES)
def _plain_header(size: int) -> tuple[bytes, int]:
    """The header of a message without information, and the bytes of the message."""
    total = DATA_HEADER.size + size + ALIGNMENT - 1 & -ALIGNMENT
    return DATA_HEADER.pack(RndisType.PACKET, total, DATA_HEADER.size - _ORIGIN, size, 0, 0, 0, 0, 0, 0, 0), total


def _pack_with_info(frame: Frame) -> bytes:
    info = b"".join(
        INFO_HEADER.pack(INFO_HEADER.size + len(data) + 3 & ~3, kind, INFO_HEADER.size)
        + data.ljust(len(data) + 3 & ~3, b"\0")
        for kind, data in frame.info
    )
    offset = DATA_HEADER.size - _ORIGIN
    total = DATA_HEADER.size + len(info) + len(frame.data) + ALIGNMENT - 1 & -ALIGNMENT
    header = DATA_HEADER.pack(
        RndisType.PACKET, total, offset + len(info), len(frame.data), 0, 0, 0, offset, len(info), 0, 0
    )
    return (header + info + frame.data).ljust(total, b"\0")


def _parse_info(data: bytes, at: int) -> tuple[PacketInfo, ...]:
    """`at`: where `data` lies, for errors."""
    found: list[PacketInfo] = []
    position = 0
    while position < len(data):
        left = len(data) - position
        if left < INFO_HEADER.size:
            raise ProtocolError("per-packet information", at + position, "12 bytes of header", f"{left}")
        size, kind, offset = INFO_HEADER.unpack_from(data, position)
        if not INFO_HEADER.size <= size <= left:
            raise ProtocolError("per-packet information", at + position, f"12 to {left} bytes", f"{size}")
        if not INFO_HEADER.size <= offset <= size:
            raise ProtocolError("per-packet information", at + position + 8, f"an offset of 12 to {size}", f"{offset}")
        found.append(PacketInfo(kind, data[position + offset : position + size]))
        position += size
    return tuple(found)
