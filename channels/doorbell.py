"""Where one end of a channel waits for the other end's signals.

Signals coalesce: N of them give between 1 and N wake-ups, and the last one is never lost. A signal means "look at both
rings" and nothing else.
"""

from __future__ import annotations

from broker.access import Wakeup
from broker.errors import ChannelClosed


class Doorbell:
    """See the module. `count` is how often it was rung."""

    __slots__ = ("_wakeup", "count", "ended")

    def __init__(self, wakeup: Wakeup) -> None:
        self.count = 0
        self.ended: str | None = None
        """Why the channel has ended, None while it has not."""
        self._wakeup = wakeup

    def ring(self) -> None:
        """The other end signals."""
        self.count += 1
        self._wakeup.notify()

    def close(self, reason: str) -> None:
        """The channel has ended: whoever waits, now or later, gets `ChannelClosed`. The first reason stays."""
        if self.ended is None:
            self.ended = reason
            self._wakeup.notify()

    async def wait(self, seen: int) -> int:
        """Wait until `count` is not `seen`, and return it. `ChannelClosed` once the channel has ended."""
        while True:
            if self.ended is not None:
                raise ChannelClosed(self.ended)
            if self.count != seen:
                return self.count
            await self._wakeup.wait()
