"""How components ask a guest: an answer or `GuestRefused`, work that takes several requests kept apart from other such
work, and last words that a cancelled task still says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio

from broker.access import Turns

from ...protocol.integration.common import IcStatus
from .component import Conversation, GuestRefused


async def ask(conversation: Conversation, what: str, body: bytes) -> bytes:
    """The body of the answer. `GuestRefused` when the guest says no to `what`, else as in `Conversation.request`."""
    status, answer = await conversation.request(body)
    if status != IcStatus.SUCCESS:
        raise GuestRefused(what, status)
    return answer


class OneAtATime:
    """Several requests that belong together; whoever else has some waits."""

    def __init__(self, turns: Turns, key: tuple[str, int]) -> None:
        self._is_taken = False
        self._freed = turns.wakeup(key)

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[None]:
        """Wait until nobody has it, and have it while the block lasts."""
        while self._is_taken:
            await self._freed.wait()
        self._is_taken = True
        try:
            yield
        finally:
            self._is_taken = False
            self._freed.notify()


async def insist(turns: Turns, ticks: int, key: tuple[str, int], say: Callable[[], Awaitable[object]]) -> bool:
    """Do this though the task may be cancelled, within so many ticks of 100 ns. False when that was not enough."""
    with anyio.CancelScope(shield=True):
        with anyio.CancelScope() as scope:
            timer = turns.schedule(turns.clock.now() + ticks, key, scope.cancel)
            try:
                await say()
            finally:
                timer.cancel()
        if scope.cancelled_caught:
            await turns.expect(key)()  # whoever was called back from a wait goes on in its turn
    return not scope.cancelled_caught
