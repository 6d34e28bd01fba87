"""A listener of hvsock connections, the same on both sides: streams that are open wait here until they are accepted."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any

import anyio
import anyio.abc
from anyio.lowlevel import checkpoint_if_cancelled

from broker.access import Turns

from .stream import Address, HvsockStream

BACKLOG = 128
"""Connections that may wait for `accept`, those included that are still on their way."""


class HvsockListener(anyio.abc.Listener[HvsockStream]):
    """See the module. Made by `HvsockHost.listen` and `HvsockGuest.listen`; has the typed attributes of its address."""

    def __init__(self, address: Address, turns: Turns, number: int, backlog: int, forget: Callable[[], None]) -> None:
        """`forget` is called when it closes. `ValueError` for a backlog below 1."""
        if backlog < 1:
            raise ValueError(f"a listener's backlog is at least 1, not {backlog}")
        self._address = address
        self._turns = turns
        self._backlog = backlog
        self._forget = forget
        self._arrived = turns.wakeup(("hvsock-accept", number))
        self._accepts = anyio.ResourceGuard("accepting from")
        self._waiting: deque[HvsockStream] = deque()
        self._expected = 0
        self._is_closed = self._is_broken = False

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """Those of `HvsockAttribute` that a listener has."""
        return self._address.attributes()

    async def accept(self) -> HvsockStream:
        """The next connection.

        `ClosedResourceError` once the listener is closed, `BrokenResourceError` when nothing can come any more,
        `BusyResourceError` while another task accepts.
        """
        with self._accepts:
            await checkpoint_if_cancelled()
            while not self._waiting:
                if self._is_closed:
                    raise anyio.ClosedResourceError
                if self._is_broken:
                    raise anyio.BrokenResourceError
                await self._arrived.wait()
            return self._waiting.popleft()

    async def serve(
        self, handler: Callable[[HvsockStream], Awaitable[Any]], task_group: anyio.abc.TaskGroup | None = None
    ) -> None:
        """Accept connections, and run `handler` with each in a task of its own. Errors as in `accept`.

        The handler closes its connection; one whose task is cancelled before it has begun is closed here.
        """
        async with AsyncExitStack() as stack:
            group = task_group
            if group is None:
                group = await stack.enter_async_context(anyio.create_task_group())
            while True:
                stream = await self.accept()
                begin = self._turns.expect(("hvsock-handler", stream.channel.channel_id))
                group.start_soon(self._handle, begin, handler, stream)

    async def aclose(self) -> None:
        """Take no more connections, and close those that wait; idempotent."""
        if not self._is_closed:
            self._is_closed = True
            self._forget()
            self._arrived.notify()
        while self._waiting:
            self._waiting.popleft().close()
        await checkpoint_if_cancelled()

    # for the side that it belongs to

    def expect(self) -> bool:
        """A connection is on its way; False when there is no room. Ends with `arrive` or `lose`."""
        if self._is_closed or len(self._waiting) + self._expected >= self._backlog:
            return False
        self._expected += 1
        return True

    def lose(self) -> None:
        """It does not come."""
        self._expected -= 1

    def arrive(self, stream: HvsockStream) -> bool:
        """Here it is; False when the listener has closed meanwhile."""
        self._expected -= 1
        if self._is_closed:
            return False
        self._waiting.append(stream)
        self._arrived.notify()
        return True

    def break_off(self) -> None:
        """Nothing can come any more."""
        self._is_broken = True
        self._arrived.notify()

    async def _handle(
        self,
        begin: Callable[[], Awaitable[None]],
        handler: Callable[[HvsockStream], Awaitable[Any]],
        stream: HvsockStream,
    ) -> None:
        has_begun = False
        try:
            await begin()
            has_begun = True
            await handler(stream)
        finally:
            if not has_begun:
                stream.close()
            self._turns.leave()
