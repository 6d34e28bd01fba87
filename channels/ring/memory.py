"""The memory of one ring: its control page as 32-bit words, and its data as a circle.

The peer may change any byte at any time. Words are therefore loaded once and each access is a single aligned one;
`load` copies, and what it copied stays as it is. The pages of a ring that lies in guest memory may be in any order.
Addresses are bytes into the data. Nothing here knows packets.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Self

from broker.errors import MemoryAccessError, ProtocolError
from broker.hvdef import PAGE_SIZE
from broker.hvdef.registers import PAGE_SHIFT
from broker.memory import GuestMemory

from ..protocol.gparange import GpaRange
from .control import CONTROL_PAGE_SIZE, CONTROL_WORDS

_MAX_SIZE = 1 << 32


class RingMemory:
    """One ring over one writable buffer (control page, then data) or two (control page; data).

    `ValueError` when the control page is not 4096 bytes, the data no positive multiple of that, or a buffer read-only.
    The buffers stay in use as long as this object is.
    """

    __slots__ = ("_base", "_data", "_flat", "_runs", "_starts", "size", "words")

    def __init__(self, view: memoryview | bytearray, data: memoryview | bytearray | None = None) -> None:
        control = memoryview(view).cast("B")
        if data is None:
            control, data = control[:CONTROL_PAGE_SIZE], control[CONTROL_PAGE_SIZE:]
        data = memoryview(data).cast("B")
        self._attach(control, data, [(0, len(data))])

    @classmethod
    def of_pages(cls, memory: GuestMemory, gpns: Sequence[int]) -> Self:
        """A ring over these pages of guest memory: the control page, then the data in this order.

        `MemoryAccessError` when one is no page of RAM, `ValueError` when there are fewer than two.
        """
        ring = cls.__new__(cls)
        control = memory.page(gpns[0]) if gpns else memoryview(b"")
        ring._attach(control, memory.ram, list(_runs(memory, gpns[1:])))
        return ring

    def _attach(self, control: memoryview, data: memoryview, runs: list[tuple[int, int]]) -> None:
        """`runs`: where in `data` each stretch of the ring begins, and its bytes."""
        size = sum(length for _, length in runs)
        if len(control) != CONTROL_PAGE_SIZE or not 0 < size < _MAX_SIZE or size % PAGE_SIZE:
            raise ValueError(
                f"a ring is a control page of {CONTROL_PAGE_SIZE} bytes and some pages of data,"
                f" not {len(control)} and {size} bytes"
            )
        if control.readonly or data.readonly:
            raise ValueError("the memory of a ring is written by both of its ends, this is read-only")
        self.size = size
        """Bytes of data."""
        self.words = control[: 4 * CONTROL_WORDS].cast("I")
        """The control page; the numbers of its words are in `channels.ring.control`."""
        self._data = data
        self._base = runs[0][0]
        self._flat = size if len(runs) == 1 else 0
        """Where the data is one stretch: all of it, from `_base` on. Else `_runs` lie at `_starts` of the circle."""
        self._runs = () if self._flat else tuple(runs)
        self._starts = tuple(accumulate((length for _, length in self._runs[:-1]), initial=0)) if self._runs else ()

    def load(self, offset: int, size: int) -> bytes:
        """A copy of `size` bytes, at most all, from `offset` on; after the last byte comes the first."""
        if offset + size <= self._flat:
            start = self._base + offset
            return self._data[start : start + size].tobytes()
        return b"".join(self._spans(offset, size))

    def store(self, offset: int, data: bytes) -> None:
        """Write `data`, at most as much as there is room for in the circle, from `offset` on."""
        size = len(data)
        if offset + size <= self._flat:
            start = self._base + offset
            self._data[start : start + size] = data
            return
        done = 0
        for span in self._spans(offset, size):
            span[:] = data[done : done + len(span)]
            done += len(span)

    def _spans(self, offset: int, size: int) -> Iterator[memoryview]:
        """The parts of memory that make up this stretch of the circle."""
        while size:
            start, left = self._place(offset)
            span = self._data[start : start + min(size, left)]
            yield span
            size -= len(span)
            offset = (offset + len(span)) % self.size

    def _place(self, offset: int) -> tuple[int, int]:
        """Where in memory this byte of the circle lies, and how many follow it there, itself included."""
        if self._flat:
            return self._base + offset, self._flat - offset
        index = bisect_right(self._starts, offset) - 1
        start, length = self._runs[index]
        inside = offset - self._starts[index]
        return start + inside, length - inside


def split_rings(memory: GuestMemory, ranges: Sequence[GpaRange], page_offset: int) -> tuple[RingMemory, RingMemory]:
    """The two rings of a GPADL: guest to host, host to guest.

    It is one range of whole pages; the first `page_offset` of them are the guest-to-host ring. Each ring is a control page and
    at least one page of data. `ProtocolError` for any other, or for pages that are no RAM.
    """
    if len(ranges) != 1 or ranges[0].byte_offset or ranges[0].byte_count % PAGE_SIZE:
        raise ProtocolError("ring GPADL", 0, "one range of whole pages", f"{len(ranges)} ranges, or parts of pages")
    gpns = ranges[0].gpns
    if not 2 <= page_offset <= len(gpns) - 2:
        raise ProtocolError("ring GPADL", 0, f"a split that leaves each ring 2 of {len(gpns)} pages", f"{page_offset}")
    try:
        return RingMemory.of_pages(memory, gpns[:page_offset]), RingMemory.of_pages(memory, gpns[page_offset:])
    except MemoryAccessError as error:
        raise ProtocolError("ring GPADL", 0, "pages of guest memory", str(error)) from error


def _runs(memory: GuestMemory, gpns: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(GPA, bytes) of the stretches that adjacent pages form."""
    first, count = 0, 0
    for gpn in gpns:
        memory.page(gpn)  # raises unless it is RAM
        if count and gpn == first + count:
            count += 1
            continue
        if count:
            yield first << PAGE_SHIFT, count << PAGE_SHIFT
        first, count = gpn, 1
    if count:
        yield first << PAGE_SHIFT, count << PAGE_SHIFT
