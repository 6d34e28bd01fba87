"""Data of the other commands: capacities, lists of LUNs, mode pages, lists of blocks to unmap. Numbers are big-endian.

READ CAPACITY (10), 8 bytes: u32 last block, 0xFFFFFFFF where it does not fit, u32 bytes of a block. (16), 32 bytes: u64 last
block, u32 bytes of a block, byte 14 flags: 0x80 UNMAP is there, 0x40 unmapped blocks read as zeros.

REPORT LUNS: u32 bytes of the list, 4 zeros, then 8 bytes each, of which the second is the LUN here.

MODE SENSE: header (6: data length, medium type, device-specific flags, length of descriptors, 1 byte each; 10: u16 data
length, medium type, flags, 2 zeros, u16 length of descriptors), then pages: code, length of the rest, the rest.

UNMAP: u16 bytes that follow this field, u16 bytes of descriptors, 4 zeros, then 16 bytes each: u64 first block, u32 count,
4 zeros.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum

import msgspec

from broker.errors import ProtocolError

from .cdb import Opcode

_CAPACITY_10 = struct.Struct(">II")
_CAPACITY_16 = struct.Struct(">QIxxB17x")
_LUNS = struct.Struct(">I4x")
_LUN_SIZE = 8
_MODE_6 = struct.Struct(">BBBB")
_MODE_10 = struct.Struct(">HBBxxH")
_UNMAP = struct.Struct(">HH4x")
_UNMAP_RANGE = struct.Struct(">QI4x")
_LAST_32 = 0xFFFF_FFFF
_HAS_UNMAP = 0xC0

CAPACITY_10_SIZE = _CAPACITY_10.size
CAPACITY_16_SIZE = _CAPACITY_16.size
LEAST_LUNS_SIZE = 16
"""Bytes that a REPORT LUNS must allow for."""
ALL_PAGES = 0x3F
ALL_SUBPAGES = 0xFF
WRITE_PROTECT, HAS_FUA = 0x80, 0x10
"""Device-specific flags of a mode header."""


class Capacity(msgspec.Struct, frozen=True):
    """How large a disk is."""

    block_count: int
    block_size: int

    def pack_10(self) -> bytes:
        """The data of READ CAPACITY (10)."""
        return _CAPACITY_10.pack(min(self.block_count - 1, _LAST_32), self.block_size)

    def pack_16(self) -> bytes:
        """The data of READ CAPACITY (16), of a disk that can unmap."""
        return _CAPACITY_16.pack(self.block_count - 1, self.block_size, _HAS_UNMAP)


def parse_capacity(data: bytes) -> Capacity | None:
    """Data of READ CAPACITY, (16) where they are 32 bytes, else (10); None where the size does not fit (10).

    `ProtocolError` for less than 8 bytes.
    """
    if len(data) >= _CAPACITY_16.size:
        last, size, _ = _CAPACITY_16.unpack_from(data)
        return Capacity(last + 1, size)
    if len(data) < _CAPACITY_10.size:
        raise ProtocolError("capacity", len(data), f"{_CAPACITY_10.size} bytes", f"an end after {len(data)}")
    last, size = _CAPACITY_10.unpack_from(data)
    return None if last == _LAST_32 else Capacity(last + 1, size)


def pack_luns(luns: Sequence[int]) -> bytes:
    """A list of LUNs, each 0 to 255."""
    return _LUNS.pack(_LUN_SIZE * len(luns)) + b"".join(bytes((0, lun)).ljust(_LUN_SIZE, b"\0") for lun in luns)


def parse_luns(data: bytes) -> tuple[int, ...]:
    """The LUNs of a list that have one level and are 0 to 255, as far as they are there. `ProtocolError` without a header."""
    if len(data) < _LUNS.size:
        raise ProtocolError("list of LUNs", len(data), f"{_LUNS.size} bytes", f"an end after {len(data)}")
    (size,) = _LUNS.unpack_from(data)
    end = min(_LUNS.size + size, len(data) // _LUN_SIZE * _LUN_SIZE)
    entries = (data[start : start + _LUN_SIZE] for start in range(_LUNS.size, end, _LUN_SIZE))
    return tuple(entry[1] for entry in entries if not entry[0] and not any(entry[2:]))


class ModePage(IntEnum):
    """Mode pages that a disk has."""

    CACHING = 0x08
    CONTROL = 0x0A


_PAGES = {ModePage.CACHING: bytes((0x04,)).ljust(18, b"\0"), ModePage.CONTROL: bytes(10)}
"""Their current values: the write cache is on (bit 2); no special control."""


def mode_pages(page: int, *, changeable: bool = False) -> bytes | None:
    """This mode page, or all; which of their bits could be changed, where that is asked. None where there is no such page."""
    wanted = sorted(_PAGES) if page == ALL_PAGES else [page]
    if any(code not in _PAGES for code in wanted):
        return None
    values = [(code, _PAGES[ModePage(code)]) for code in wanted]
    return b"".join(bytes((code, len(rest))) + (bytes(len(rest)) if changeable else rest) for code, rest in values)


def pack_mode(opcode: int, pages: bytes, flags: int) -> bytes:
    """The data of MODE SENSE: header without descriptors, pages."""
    if opcode == Opcode.MODE_SENSE_6:
        return _MODE_6.pack(_MODE_6.size - 1 + len(pages), 0, flags, 0) + pages
    return _MODE_10.pack(_MODE_10.size - 2 + len(pages), 0, flags, 0) + pages


class ModeData(msgspec.Struct, frozen=True):
    """What MODE SENSE told."""

    flags: int
    pages: dict[int, bytes]
    """Page code -> its bytes after code and length."""

    @property
    def is_write_protected(self) -> bool:
        """The disk does not take writes."""
        return bool(self.flags & WRITE_PROTECT)


def parse_mode(data: bytes, opcode: int = Opcode.MODE_SENSE_10) -> ModeData:
    """Data of MODE SENSE, as far as they are there; pages with subpages are left out. `ProtocolError` without a header."""
    header = _MODE_6 if opcode == Opcode.MODE_SENSE_6 else _MODE_10
    if len(data) < header.size:
        raise ProtocolError("mode data", len(data), f"{header.size} bytes", f"an end after {len(data)}")
    _, _, flags, descriptors = header.unpack_from(data)
    pages: dict[int, bytes] = {}
    at = header.size + descriptors
    while at + 2 <= len(data):
        code, length = data[at] & 0x3F, data[at + 1]
        if data[at] & 0x40:
            length, code = int.from_bytes(data[at + 2 : at + 4], "big") + 2, -1
        if code >= 0:
            pages[code] = data[at + 2 : at + 2 + length]
        at += 2 + length
    return ModeData(flags, pages)


def pack_unmap(ranges: Sequence[tuple[int, int]]) -> bytes:
    """A parameter list of UNMAP: (first block, count) each. `ValueError` for numbers that do not fit."""
    size = _UNMAP_RANGE.size * len(ranges)
    try:
        return _UNMAP.pack(_UNMAP.size - 2 + size, size) + b"".join(_UNMAP_RANGE.pack(*part) for part in ranges)
    except struct.error as error:
        raise ValueError(f"list of blocks to unmap: a value does not fit its field ({error})") from None


def parse_unmap(data: bytes) -> tuple[tuple[int, int], ...]:
    """(first block, count) of each range. `ProtocolError` where a length says more than there is."""
    if len(data) < _UNMAP.size:
        raise ProtocolError("list of blocks to unmap", len(data), f"{_UNMAP.size} bytes", f"an end after {len(data)}")
    total, size = _UNMAP.unpack_from(data)
    if total + 2 > len(data) or size + _UNMAP.size > total + 2:
        raise ProtocolError("list of blocks to unmap", 0, f"lengths within {len(data)} bytes", f"{total} and {size}")
    starts = range(_UNMAP.size, _UNMAP.size + size - _UNMAP_RANGE.size + 1, _UNMAP_RANGE.size)
    return tuple(_UNMAP_RANGE.unpack_from(data, start) for start in starts)
