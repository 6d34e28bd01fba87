"""Where one end of a channel waits for the other end's signals.

Signals coalesce: N of them give between 1 and N wake-ups, and the last one is never lost. A signal means "look at both
rings" and nothing else.
"""

from __future__ import annotations

from broker.access import Wakeup
from broker.errors import ChannelClosed


class Doorbell:
    """See the module. `count` is how often it was rung."""

    __slots__ = ("_ended", "_wakeup", "count")

    def __init__(self, wakeup: Wakeup) -> None:
        self.count = 0
        self._wakeup = wakeup
        self._ended: str | None = None

    @property
    def ended(self) -> str | None:
        """Why the channel has ended, None while it has not."""
        return self._ended

    def ring(self) -> None:
        """The other end signals."""
        self.count += 1
        self._wakeup.notify()

    def close(self, reason: str) -> None:
        """The channel has ended: whoever waits, now or later, gets `ChannelClosed`. The first reason stays."""
        if self._ended is None:
            self._ended = reason
            self._wakeup.notify()

    async def wait(self, seen: int) -> int:
        """Wait until `count` is not `seen`, and return it. `ChannelClosed` once the channel has ended."""
        while True:
            if self._ended is not None:
                raise ChannelClosed(self._ended)
            if self.count != seen:
                return self.count
            await self._wakeup.wait()
