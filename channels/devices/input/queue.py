"""What host tasks have typed and clicked, on its way to the guest.

It will: let host tasks wait for a guest that listens, and for room; hand over all that waits in one go; drop what a guest
that goes has not taken. It will not: know what an event is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import anyio

from broker.access import Turns, Wakeup
from broker.errors import HostError

from ..device import DeviceChannel

QUEUE_DEPTH = 64
"""Events that wait for a guest that does not read, beyond those that its ring takes."""

Send = Callable[[Sequence[bytes]], Awaitable[None]]


class InputQueue:
    """See the module. `what`: the device, for errors and for the order of turns."""

    def __init__(self, what: str, depth: int) -> None:
        if depth < 1:
            raise ValueError(f"a {what} queues at least one event, not {depth}")
        self.is_ready = False
        """A guest listens."""
        self._what = what
        self._depth = depth
        self._events: list[bytes] = []
        self._turns: Turns | None = None
        self._changed: Wakeup
        self._added: Wakeup

    def attach(self, turns: Turns) -> None:
        """Wait here from now on."""
        self._turns = turns
        self._changed = turns.wakeup((f"{self._what}-ready", 0))
        self._added = turns.wakeup((f"{self._what}-events", 0))

    def detach(self) -> None:
        """Nobody serves the device any more."""
        self._turns = None
        self._changed.notify()

    async def wait_ready(self) -> None:
        """Wait until a guest listens. `HostError` for a device that nobody serves."""
        await self._wait_until(lambda: self.is_ready)

    async def wait_room(self, count: int) -> None:
        """Wait until a guest listens and the queue takes so many events; an empty queue takes any number."""
        await self._wait_until(lambda: self.is_ready and self._has_room(count))

    def add(self, *events: bytes) -> None:
        """Queue events, in the same step in which `wait_room` returned."""
        self._events += events
        self._added.notify()

    async def put(self, *events: bytes) -> None:
        """Queue events one after the other, with nothing in between, once there is room."""
        await self.wait_room(len(events))
        self.add(*events)

    @asynccontextmanager
    async def flowing(self, channel: DeviceChannel, send: Send) -> AsyncIterator[None]:
        """While the block lasts, a guest listens, and what is queued is sent."""
        begin = channel.turns.expect((f"{self._what}-sender", channel.channel_id))
        async with anyio.create_task_group() as group:
            group.start_soon(self._send, begin, channel.turns, send)
            self.is_ready = True
            self._changed.notify()
            try:
                yield
            finally:
                self.is_ready = False
                self._events = []
                group.cancel_scope.cancel()

    async def _send(self, begin: Callable[[], Awaitable[None]], turns: Turns, send: Send) -> None:
        try:
            await begin()
            while True:
                while not self._events:
                    await self._added.wait()
                events, self._events = self._events, []
                self._changed.notify()
                await send(events)
        finally:
            turns.leave()

    async def _wait_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if self._turns is None:
                raise HostError(f"nobody serves this {self._what}; use it within the block of serve_devices")
            await self._changed.wait()

    def _has_room(self, count: int) -> bool:
        return not self._events or len(self._events) + count <= self._depth
