"""`GuestBuffer`: bytes of guest memory that lie in pages which need not be adjacent, addressed as if they were.

It will: read and write at any offset, at the cost of one slice where the pages are adjacent. It will not: copy what it
need not, or know who else writes there: what was read is a copy and stays as it is.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate

from broker.errors import MemoryAccessError, ProtocolError
from broker.memory import GuestMemory

from .protocol.gparange import GpaRange

MOST_RANGE_BYTES = 16 << 20
"""What `read_ranges` copies at most, unless told."""


class GuestBuffer:
    """See the module. `most`: of the ranges, only so many bytes are looked at. `MemoryAccessError` for bytes outside memory.

    Offsets and sizes are the caller's to check: they are inside the buffer.
    """

    __slots__ = ("_flat", "_starts", "_views", "size")

    def __init__(self, memory: GuestMemory, ranges: Iterable[GpaRange], most: int | None = None) -> None:
        pieces = _joined(piece for part in ranges for piece in part.pieces())
        if most is not None:
            pieces = list(_first(pieces, most))
        self._views = [memory.view(gpa, size) for gpa, size in pieces]
        self._starts = list(accumulate((size for _, size in pieces[:-1]), initial=0))
        self._flat = self._views[0] if len(self._views) == 1 else None
        self.size = sum(size for _, size in pieces)
        """Bytes."""

    def read(self, offset: int, size: int) -> bytes:
        """A copy of `size` bytes."""
        if self._flat is not None:
            return self._flat[offset : offset + size].tobytes()
        return b"".join(self._spans(offset, size))

    def write(self, offset: int, data: bytes) -> None:
        """Store `data`."""
        if self._flat is not None:
            self._flat[offset : offset + len(data)] = data
            return
        done = 0
        for span in self._spans(offset, len(data)):
            span[:] = data[done : done + len(span)]
            done += len(span)

    def _spans(self, offset: int, size: int) -> Iterator[memoryview]:
        index = bisect_right(self._starts, offset) - 1
        inside = offset - self._starts[index]
        while size:
            span = self._views[index][inside : inside + size]
            yield span
            size -= len(span)
            index, inside = index + 1, 0


def read_ranges(memory: GuestMemory, ranges: Iterable[GpaRange], most: int = MOST_RANGE_BYTES) -> bytes:
    """What lies in these ranges, at most so many bytes in all.

    `ProtocolError` for more, and for pages outside guest memory: a guest has named them, the same one a thousand times if it
    likes.
    """
    ranges = tuple(ranges)
    size = sum(part.byte_count for part in ranges)
    if size > most:
        raise ProtocolError("GPA ranges", 0, f"at most {most} bytes", f"{size}")
    return _named_by_a_peer(memory, ranges).read(0, size)


def write_ranges(memory: GuestMemory, ranges: Iterable[GpaRange], data: bytes) -> None:
    """Store `data` into these ranges, which it need not fill.

    `ProtocolError` as in `read_ranges`, and when it does not fit; then nothing is stored.
    """
    buffer = _named_by_a_peer(memory, ranges)
    if len(data) > buffer.size:
        raise ProtocolError("GPA ranges", 0, f"room for {len(data)} bytes", f"{buffer.size}")
    buffer.write(0, data)


def _named_by_a_peer(memory: GuestMemory, ranges: Iterable[GpaRange]) -> GuestBuffer:
    try:
        return GuestBuffer(memory, ranges)
    except MemoryAccessError as error:
        raise ProtocolError("GPA range", 0, "pages of guest memory", str(error)) from error


def _first(pieces: Iterable[tuple[int, int]], most: int) -> Iterator[tuple[int, int]]:
    """Those that hold the first `most` bytes."""
    for gpa, size in pieces:
        if most <= 0:
            return
        yield gpa, min(size, most)
        most -= size


def _joined(pieces: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """(GPA, bytes) with adjacent ones made one."""
    found: list[tuple[int, int]] = []
    for gpa, size in pieces:
        if found and found[-1][0] + found[-1][1] == gpa:
            found[-1] = (found[-1][0], found[-1][1] + size)
        else:
            found.append((gpa, size))
    return found
