"""Ranges of guest memory, as GPADL messages, GPA-direct packets and transfer pages name them.

A GPA range (Linux `gpa_range`, OpenVMM `vmbus_ring::gparange`), little-endian, ranges back to back:

| offset | size | field |
|---|---|---|
| 0 | 4 | byte_count, not 0 |
| 4 | 4 | byte_offset into the first page, 0 to 4095 |
| 8 | 8 each | page numbers (GPN), as many as byte_offset + byte_count bytes touch |

A range of a transfer-page packet (`vmtransfer_page_range`) is 8 bytes, byte_count and byte_offset, and lies within a
buffer that both sides know already.

Numbers of a peer are checked here for what they say about each other; whether a page exists is the memory's to say.
"""

from __future__ import annotations

import struct
from typing import Annotated

import msgspec

from broker.errors import ProtocolError
from broker.hvdef import PAGE_SIZE
from broker.hvdef.registers import PAGE_SHIFT

from .wire import At, Wire

GPA_RANGE_HEADER = struct.Struct("<II")
GPN_SIZE = 8
_OFFSET_MASK = PAGE_SIZE - 1
_MAX_U32 = 0xFFFF_FFFF


class GpaRange(msgspec.Struct, frozen=True):
    """`byte_count` bytes that begin `byte_offset` bytes into the first of these pages, which need not be adjacent."""

    byte_count: int
    byte_offset: int
    gpns: tuple[int, ...]

    def pack(self) -> bytes:
        """Header and page numbers. `ValueError` for a range that no receiver accepts."""
        if (
            not 0 < self.byte_count <= _MAX_U32 - _OFFSET_MASK - self.byte_offset
            or not 0 <= self.byte_offset < PAGE_SIZE
        ):
            raise ValueError(f"a GPA range of {self.byte_count} bytes at offset {self.byte_offset} cannot be told")
        pages = page_count(self.byte_count, self.byte_offset)
        if len(self.gpns) != pages:
            raise ValueError(
                f"{self.byte_count} bytes at offset {self.byte_offset} lie in {pages} pages, not {len(self.gpns)}"
            )
        try:
            return struct.pack(f"<II{pages}Q", self.byte_count, self.byte_offset, *self.gpns)
        except struct.error:
            raise ValueError("a page number is an unsigned 64-bit number") from None

    def pieces(self) -> tuple[tuple[int, int], ...]:
        """(GPA, bytes) of each physically contiguous piece, in order; the sizes add up to `byte_count`."""
        pieces: list[tuple[int, int]] = []
        offset, left = self.byte_offset, self.byte_count
        start = size = 0
        for gpn in self.gpns:
            gpa = (gpn << PAGE_SHIFT) + offset
            part = min(PAGE_SIZE - offset, left)
            if size and gpa == start + size:
                size += part
            else:
                if size:
                    pieces.append((start, size))
                start, size = gpa, part
            offset = 0
            left -= part
        if size:
            pieces.append((start, size))
        return tuple(pieces)


class TransferRange(Wire, frozen=True):
    """A part of a buffer that both sides know: `byte_count` bytes, `byte_offset` bytes after its beginning."""

    byte_count: Annotated[int, At(0, "I", "bytes")]
    byte_offset: Annotated[int, At(4, "I", "bytes from the start of the buffer")]


def page_count(byte_count: int, byte_offset: int) -> int:
    """Pages that so many bytes touch."""
    return (byte_offset + byte_count + _OFFSET_MASK) >> PAGE_SHIFT


def parse_gpa_ranges(data: bytes, count: int, what: str = "GPA ranges") -> tuple[tuple[GpaRange, ...], int]:
    """The first `count` ranges and how many bytes they take; what follows them is not looked at.

    `ProtocolError`, in this order for each range: its header is missing (an empty range), it has no bytes, its offset is
    beyond the first page, its size overflows 32 bits, its page numbers are missing.
    """
    ranges = []
    position, end = 0, len(data)
    for _ in range(count):
        if position + GPA_RANGE_HEADER.size > end:
            raise ProtocolError(what, position, "the header of a range", f"an empty range: the data ends at {end}")
        byte_count, byte_offset = GPA_RANGE_HEADER.unpack_from(data, position)
        if byte_count == 0:
            raise ProtocolError(what, position, "a byte count over 0", "0")
        if byte_offset >= PAGE_SIZE:
            raise ProtocolError(
                what, position + 4, f"an offset up to {_OFFSET_MASK:#x}", f"{byte_offset:#x}, too large"
            )
        if byte_count + _OFFSET_MASK + byte_offset > _MAX_U32:
            raise ProtocolError(what, position, "an end within 32 bits", f"{byte_count:#x} bytes at {byte_offset:#x}")
        pages = page_count(byte_count, byte_offset)
        position += GPA_RANGE_HEADER.size
        if position + GPN_SIZE * pages > end:
            present = (end - position) // GPN_SIZE
            raise ProtocolError(what, position, f"{pages} page numbers", f"{present}")
        ranges.append(GpaRange(byte_count, byte_offset, struct.unpack_from(f"<{pages}Q", data, position)))
        position += GPN_SIZE * pages
    return tuple(ranges), position


def resolve_transfer_range(transfer_range: TransferRange, buffer: GpaRange) -> GpaRange:
    """The pages of `buffer` that this range covers. `ProtocolError` when it is not all inside the buffer."""
    byte_count, byte_offset = transfer_range.byte_count, transfer_range.byte_offset
    if byte_offset + byte_count > buffer.byte_count:
        raise ProtocolError(
            "transfer range", 0, f"an end within {buffer.byte_count:#x} bytes", f"{byte_count:#x} at {byte_offset:#x}"
        )
    start = buffer.byte_offset + byte_offset
    first, offset = start >> PAGE_SHIFT, start & _OFFSET_MASK
    pages = page_count(byte_count, offset) if byte_count else 0
    return GpaRange(byte_count, offset, buffer.gpns[first : first + pages])
