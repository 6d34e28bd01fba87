"""Where one end of a channel waits for the other end's signals.

Signals coalesce: N of them give between 1 and N wake-ups, and the last one is never lost. A signal means "look at both
rings" and nothing else.
"""

from __future__ import annotations

from collections.abc import Awaitable

from broker.access import Wakeup
from broker.errors import ChannelClosed


class Doorbell:
    """See the module. An `EventPort`: the host registers it where the guest signals."""

    __slots__ = ("_wakeup", "count", "ended")

    def __init__(self, wakeup: Wakeup) -> None:
        self.count = 0
        """How often it was rung."""
        self.ended: str | None = None
        """Why the channel has ended, None while it has not."""
        self._wakeup = wakeup

    def ring(self) -> None:
        """The other end signals."""
        self.count += 1
        self._wakeup.notify()

    async def handle_event(self, flag: int) -> None:
        """Ring, whatever the flag."""
        self.ring()

    def close(self, reason: str) -> None:
        """The channel has ended: whoever waits, now or later, gets `ChannelClosed`. The first reason stays."""
        if self.ended is None:
            self.ended = reason
            self._wakeup.notify()

    def check(self) -> None:
        """`ChannelClosed` once the channel has ended."""
        if self.ended is not None:
            raise ChannelClosed(self.ended)

    async def wait(self, seen: int) -> int:
        """Wait until `count` is not `seen`, and return it. `ChannelClosed` once the channel has ended."""
        while self.count == seen and self.ended is None:
            await self._wakeup.wait()
        self.check()
        return self.count

    def next_ring(self) -> Awaitable[None]:
        """Wait for the next ring, or the end: for who awaits it in the step that found nothing to do, and looks again."""
        return self._wakeup.wait()
