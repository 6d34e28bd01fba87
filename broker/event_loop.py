"""The one module that names the event loops, and why: what every exit and every wait of a partition passes by.

anyio looks up the running loop at each checkpoint, which is a sixth of what the checkpoint costs. Its events are made for
more than a wake-up is: one costs a third more time than the loop's own way to wait, and 700 bytes while a task waits on
asyncio. A partition belongs to one loop, so it looks once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import cache, partial
from typing import Protocol

import anyio
import anyio.lowlevel


class LoopWakeup(Protocol):
    """See `turns.Wakeup`."""

    def notify(self) -> None:
        """Wake all who wait now."""
        ...

    async def wait(self) -> None:
        """Wait for the next `notify`."""
        ...


def checkpoint_of_this_loop() -> Callable[[], Awaitable[None]]:
    """What `anyio.lowlevel.checkpoint` does on the loop that runs now; that function itself where none does."""
    match _name_of_this_loop():
        case "asyncio":
            return partial(asyncio.sleep, 0)
        case "trio":
            import trio.lowlevel

            return trio.lowlevel.checkpoint
    return anyio.lowlevel.checkpoint


def wakeup_of_this_loop() -> Callable[[], LoopWakeup]:
    """What makes wake-ups of the loop that runs now; of any loop where none does."""
    match _name_of_this_loop():
        case "asyncio":
            return _AsyncioWakeup
        case "trio":
            return _trio_wakeup()
    return _AnyWakeup


def _name_of_this_loop() -> str:
    try:
        cancelled = anyio.get_cancelled_exc_class()
    except RuntimeError:
        return ""
    return "asyncio" if issubclass(cancelled, asyncio.CancelledError) else "trio"


class _AnyWakeup:
    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event: anyio.Event | None = None

    def notify(self) -> None:
        if self._event is not None:
            self._event.set()
            self._event = None

    async def wait(self) -> None:
        if self._event is None:
            self._event = anyio.Event()
        await self._event.wait()


class _AsyncioWakeup:
    """A future for each task that waits; one that was cancelled is done when its turn comes."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []

    def notify(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def wait(self) -> None:
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        try:
            await future
        except asyncio.CancelledError:
            if future in self._waiting:
                self._waiting.remove(future)
            raise


@cache
def _trio_wakeup() -> Callable[[], LoopWakeup]:
    from trio import lowlevel

    class TrioWakeup:
        """The tasks that wait, for `reschedule`."""

        __slots__ = ("_waiting",)

        def __init__(self) -> None:
            self._waiting: list[lowlevel.Task] = []

        def notify(self) -> None:
            waiting, self._waiting = self._waiting, []
            for task in waiting:
                lowlevel.reschedule(task)

        async def wait(self) -> None:
            task = lowlevel.current_task()
            self._waiting.append(task)

            def give_up(_: object) -> lowlevel.Abort:
                self._waiting.remove(task)
                return lowlevel.Abort.SUCCEEDED

            await lowlevel.wait_task_rescheduled(give_up)

    return TrioWakeup
