"""`BufferPool`: guest pages for the data of requests, used again and again.

It will: keep buffers of 1, 2, 4 ... 64 pages, take pages from the client's as they are needed, at most so many, and let
requests wait, in order, while all are in use. It will not: touch a buffer that the host may still write to.
"""

from __future__ import annotations

from broker.access import Turns
from broker.errors import BrokerError, HostError
from broker.hvdef import PAGE_SIZE
from broker.memory import GuestMemory

from ...buffer import GuestBuffer
from ...pages import GuestPages
from ...protocol.gparange import GpaRange, page_count
from ...protocol.storage import MAX_TRANSFER
from .line import Line

MOST_PAGES = 1024
"""Pages of all buffers: 4 MiB; less where the guest has fewer than twice as many."""


class Buffer(GuestBuffer):
    """Whole pages of guest memory, which need not be adjacent."""

    __slots__ = ("gpns",)

    def __init__(self, memory: GuestMemory, gpns: tuple[int, ...]) -> None:
        super().__init__(memory, [GpaRange(len(gpns) * PAGE_SIZE, 0, gpns)])
        self.gpns = gpns

    def range(self, size: int) -> GpaRange:
        """The first `size` bytes, for a packet."""
        return GpaRange(size, 0, self.gpns[: page_count(size, 0)])


class BufferPool:
    """See the module. `HostError` from `take` where the guest has not even the pages of one buffer."""

    def __init__(self, pages: GuestPages, memory: GuestMemory, turns: Turns, number: int) -> None:
        self._pages = pages
        self._memory = memory
        self._most = max(min(MOST_PAGES, pages.free_count // 2), MAX_TRANSFER // PAGE_SIZE)
        self._idle: dict[int, list[Buffer]] = {}
        """By pages, a power of two."""
        self._taken = 0
        """Pages of all buffers."""
        self._in_use = 0
        """Buffers that are not idle."""
        self._has_ended = False
        self._line = Line(turns, number)

    def has_room(self, size: int) -> bool:
        """`take` would not have to wait now."""
        pages = _pages_for(size)
        idle = sum(count * len(found) for count, found in self._idle.items())
        there = min(self._most - self._taken, self._pages.free_count) + idle
        return self._line.is_empty and (bool(self._idle.get(pages)) or pages <= there)

    async def take(self, size: int) -> Buffer:
        """A buffer with room for `size` bytes, at most `MAX_TRANSFER`. Its contents are what they were."""
        pages = _pages_for(size)
        return await self._line.wait_for(lambda: self._try(pages))

    def give(self, buffer: Buffer) -> None:
        """The host is done with it."""
        self._in_use -= 1
        idle = self._idle.setdefault(len(buffer.gpns), [])
        idle.append(buffer)
        if self._has_ended:
            self._free(idle)
        self._line.changed()

    def end(self, error: BrokerError) -> None:
        """Whoever waits for a buffer, or will, gets this error; idle ones go back to the client's pages."""
        self._has_ended = True
        self._line.end(error)
        for idle in self._idle.values():
            while idle:
                self._free(idle)

    def _try(self, pages: int) -> Buffer | None:
        idle = self._idle.get(pages)
        if idle:
            self._in_use += 1
            return idle.pop()
        while self._taken + pages > self._most or self._pages.free_count < pages:
            others = next((found for found in self._idle.values() if found), None)
            if others is not None:
                self._free(others)
            elif self._in_use:
                return None
            else:
                raise HostError(
                    f"{pages} pages of guest RAM are needed for data, and {self._pages.free_count} are free"
                )
        buffer = Buffer(self._memory, self._pages.allocate(pages))
        self._taken += pages
        self._in_use += 1
        return buffer

    def _free(self, idle: list[Buffer]) -> None:
        buffer = idle.pop()
        self._taken -= len(buffer.gpns)
        self._pages.free(buffer.gpns)


def _pages_for(size: int) -> int:
    return 1 << (page_count(size, 0) - 1).bit_length()
