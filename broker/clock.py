"""The reference counter: time in ticks of 100 ns since the partition was created (TLFS, "Reference Counter").

Pure: where the ticks come from is handed in. `VirtualClock` advances only when told to.
"""

from __future__ import annotations

from collections.abc import Callable

TICKS_PER_SECOND = 10_000_000
TICKS_PER_MILLISECOND = 10_000
NANOSECONDS_PER_TICK = 100
MAX_TICK = (1 << 64) - 1
"""The counter that a guest reads has 64 bits and wraps; this program's own does not."""


class Clock:
    """A reference counter over a nanosecond source that never goes back."""

    def __init__(self, nanoseconds: Callable[[], int]) -> None:
        self._nanoseconds = nanoseconds
        self._zero = nanoseconds()

    def now(self) -> int:
        """Ticks since the partition was created."""
        return (self._nanoseconds() - self._zero) // NANOSECONDS_PER_TICK

    def set(self, now: int) -> None:
        """Go on from `now` ticks, as a restored partition does."""
        self._zero = self._nanoseconds() - now * NANOSECONDS_PER_TICK


class VirtualClock(Clock):
    """A reference counter that stands still until it is advanced."""

    def __init__(self) -> None:
        super().__init__(lambda: 0)
        self._now = 0

    def now(self) -> int:
        return self._now

    def set(self, now: int) -> None:
        self._now = now
