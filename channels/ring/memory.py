"""The memory of one ring: its control page as 32-bit words, and its data as a circle.

The peer may change any byte at any time. Words are therefore loaded once and each access is a single aligned one;
`load` copies, and what it copied stays as it is. The pages of a ring that lies in guest memory may be in any order.
Addresses are bytes into the data. Nothing here knows packets.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Self

from broker.hvdef import PAGE_SIZE
from broker.hvdef.registers import PAGE_SHIFT
from broker.memory import GuestMemory

from .control import CONTROL_PAGE_SIZE, CONTROL_WORDS

_MAX_SIZE = 1 << 32


class RingMemory:
    """One ring over one writable buffer (control page, then data) or two (control page; data).

    `ValueError` when the control page is not 4096 bytes, the data no positive multiple of that, or a buffer read-only.
    The buffers stay in use as long as this object is.
    """

    __slots__ = ("_data", "_flat", "_runs", "_starts", "size", "words")

    def __init__(self, view: memoryview | bytearray, data: memoryview | bytearray | None = None) -> None:
        control = memoryview(view).cast("B")
        if data is None:
            control, data = control[:CONTROL_PAGE_SIZE], control[CONTROL_PAGE_SIZE:]
        self._attach(control, [memoryview(data).cast("B")])

    @classmethod
    def of_pages(cls, memory: GuestMemory, gpns: Sequence[int]) -> Self:
        """A ring over these pages of guest memory: the control page, then the data in this order.

        `MemoryAccessError` when one is no page of RAM, `ValueError` when there are fewer than two.
        """
        ring = cls.__new__(cls)
        control = memory.page(gpns[0]) if gpns else memoryview(b"")
        ring._attach(control, [memory.view(gpa, size) for gpa, size in _runs(memory, gpns[1:])])
        return ring

    def _attach(self, control: memoryview, runs: list[memoryview]) -> None:
        size = sum(map(len, runs))
        if len(control) != CONTROL_PAGE_SIZE or not 0 < size < _MAX_SIZE or size % PAGE_SIZE:
            raise ValueError(
                f"a ring is a control page of {CONTROL_PAGE_SIZE} bytes and some pages of data,"
                f" not {len(control)} and {size} bytes"
            )
        if control.readonly or any(run.readonly for run in runs):
            raise ValueError("the memory of a ring is written by both of its ends, this is read-only")
        self.size = size
        """Bytes of data."""
        self.words = control[: 4 * CONTROL_WORDS].cast("I")
        """The control page; the numbers of its words are in `channels.ring.control`."""
        self._runs = runs
        self._starts = [sum(map(len, runs[:index])) for index in range(len(runs))]
        self._data = runs[0]
        self._flat = size if len(runs) == 1 else 0

    def load(self, offset: int, size: int) -> bytes:
        """A copy of `size` bytes, at most all, from `offset` on; after the last byte comes the first."""
        end = offset + size
        if end <= self._flat:
            return self._data[offset:end].tobytes()
        return b"".join(self._spans(offset, size))

    def store(self, offset: int, data: bytes) -> None:
        """Write `data`, at most as much as there is room for in the circle, from `offset` on."""
        end = offset + len(data)
        if end <= self._flat:
            self._data[offset:end] = data
            return
        done = 0
        for span in self._spans(offset, len(data)):
            span[:] = data[done : done + len(span)]
            done += len(span)

    def _spans(self, offset: int, size: int) -> Iterator[memoryview]:
        """The parts of memory that make up this stretch of the circle."""
        while size:
            index = bisect_right(self._starts, offset) - 1
            start = offset - self._starts[index]
            span = self._runs[index][start : start + size]
            yield span
            size -= len(span)
            offset = (offset + len(span)) % self.size


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
