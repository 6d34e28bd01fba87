"""`GuestPages`: which pages of guest RAM a driver may use, for rings and buffers.

It will: give the lowest free pages, adjacent ones where there are enough, and zero them. It will not: take pages that
others use (it knows nothing of them but the range it was given), or keep anything for a page that is free. Its memory
grows with the gaps between free pages, and so does the time of an `allocate` that the first gaps are too small for;
giving and taking back are otherwise logarithmic.

The range leaves alone, unless it is given, the first 16 pages (hypercall inputs, the hypercall page: what guest code puts
at the bottom), and at the top those that `GuestSynic` takes for its SynIC pages: 6 for each processor, so 384 pages are
enough for 64 processors; of a RAM below 12 MiB it leaves an eighth.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

from broker.errors import ConfigurationError, HostError
from broker.hvdef import PAGE_SIZE
from broker.memory import GuestMemory

BOTTOM_PAGES = 16
"""Pages at the bottom of RAM that are not given, unless told."""
TOP_PAGES = 384
"""Pages at the top that are not given, unless told; an eighth of a small RAM."""


class GuestPages:
    """See the module. Pages `first_gpn` to `first_gpn + count - 1` are free at first.

    `ConfigurationError` for a range that is not all inside guest RAM, or empty.
    """

    def __init__(self, memory: GuestMemory, first_gpn: int = BOTTOM_PAGES, count: int | None = None) -> None:
        total = memory.size // PAGE_SIZE
        if count is None:
            count = total - min(TOP_PAGES, total // 8) - first_gpn
        if count < 1 or first_gpn < 0 or first_gpn + count > total:
            raise ConfigurationError(
                f"guest RAM of {total} pages has no range of {count} pages from page {first_gpn:#x} on;"
                " give the partition a larger memory_size or another range"
            )
        self._memory = memory
        self._range = range(first_gpn, first_gpn + count)
        self._starts = [first_gpn]
        """Where stretches of free pages begin, in order; `_ends` says where each ends."""
        self._ends = [first_gpn + count]
        self._free = count

    @property
    def free_count(self) -> int:
        """Pages that are free."""
        return self._free

    def is_free(self, gpn: int) -> bool:
        """True for a page that may be taken."""
        index = bisect_left(self._ends, gpn + 1)
        return index < len(self._starts) and self._starts[index] <= gpn

    def allocate(self, count: int) -> tuple[int, ...]:
        """Take `count` pages, zeroed: the lowest adjacent ones, or the lowest ones where so many are nowhere adjacent.

        `ValueError` for less than one page, `HostError` when so many are not free.
        """
        if count < 1:
            raise ValueError(f"pages are allocated one or more at a time, not {count}")
        if count > self._free:
            raise HostError(f"{count} pages of guest RAM are needed and {self._free} are free; free some, or give more")
        stretches = zip(self._starts, self._ends, strict=True)
        index = next((index for index, (start, end) in enumerate(stretches) if end - start >= count), None)
        if index is None:
            gpns = self._take_lowest(count)
        else:
            start = self._starts[index]
            gpns = tuple(range(start, start + count))
            self._starts[index] += count
            if self._starts[index] == self._ends[index]:
                del self._starts[index], self._ends[index]
        self._free -= count
        for gpn in gpns:
            self._memory.page(gpn)[:] = bytes(PAGE_SIZE)
        return gpns

    def take(self, gpns: Iterable[int]) -> None:
        """Take these pages as they are: somebody used them before this object was made (a restored driver).

        `HostError` for a page that is not free; then none is taken.
        """
        pages = sorted(gpns)
        for index, gpn in enumerate(pages):
            if not self.is_free(gpn) or (index and pages[index - 1] == gpn):
                raise HostError(f"page {gpn:#x} of guest RAM is not free here")
        for start, end in _stretches(pages):
            self._carve(start, end)
        self._free -= len(pages)

    def free(self, gpns: Iterable[int]) -> None:
        """Give pages back. `HostError` for a page that is free, given twice, or out of the range; then none is given."""
        pages = sorted(gpns)
        for index, gpn in enumerate(pages):
            if gpn not in self._range or self.is_free(gpn) or (index and pages[index - 1] == gpn):
                raise HostError(f"page {gpn:#x} of guest RAM was not allocated here, or was freed already")
        for start, end in _stretches(pages):
            self._give(start, end)
        self._free += len(pages)

    def _take_lowest(self, count: int) -> tuple[int, ...]:
        found: list[int] = []
        used = 0
        for start, end in zip(self._starts, self._ends, strict=True):
            found += range(start, min(end, start + count - len(found)))
            if found[-1] + 1 < end:
                self._starts[used] = found[-1] + 1
                break
            used += 1
            if len(found) == count:
                break
        del self._starts[:used], self._ends[:used]
        return tuple(found)

    def _carve(self, start: int, end: int) -> None:
        """Remove a part of one stretch."""
        index = bisect_left(self._ends, end)
        before, after = self._starts[index], self._ends[index]
        left = [(low, high) for low, high in ((before, start), (end, after)) if low < high]
        self._starts[index : index + 1] = [low for low, _ in left]
        self._ends[index : index + 1] = [high for _, high in left]

    def _give(self, start: int, end: int) -> None:
        """Add a stretch, joined with those beside it."""
        index = bisect_left(self._starts, start)
        joins_left = index > 0 and self._ends[index - 1] == start
        joins_right = index < len(self._starts) and self._starts[index] == end
        if joins_left and joins_right:
            self._ends[index - 1] = self._ends[index]
            del self._starts[index], self._ends[index]
        elif joins_left:
            self._ends[index - 1] = end
        elif joins_right:
            self._starts[index] = start
        else:
            self._starts.insert(index, start)
            self._ends.insert(index, end)


def _stretches(pages: list[int]) -> list[tuple[int, int]]:
    """(start, end) of adjacent pages; `pages` are in order."""
    found: list[tuple[int, int]] = []
    for gpn in pages:
        if found and found[-1][1] == gpn:
            found[-1] = (found[-1][0], gpn + 1)
        else:
            found.append((gpn, gpn + 1))
    return found
