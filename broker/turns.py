"""Whose turn it is: the one place that decides order where the rules leave it open (design decision 18), and timers.

`LiveTurns` leaves it to the event loop, `SeededTurns` (in `seeded_turns`) draws it from a seed. A task takes part by
waiting through this interface (`Wakeup`, `pause`, `sleep_until`), as every wait of this package does.
"""

from __future__ import annotations

import heapq
import math
import os
import select
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Protocol

import anyio
import anyio.lowlevel

from .clock import TICKS_PER_SECOND, Clock
from .errors import PartitionClosed
from .event_loop import checkpoint_of_this_loop, wakeup_of_this_loop

SWEEP_TIMERS = 64

Key = tuple[str, int]
"""What a waiter is: a kind and a number (processor index, connection ID). It orders waiters that arrive together."""


class Wakeup(Protocol):
    """Where tasks wait for a condition of their own, which they check again whenever they are woken."""

    def notify(self) -> None:
        """Wake all who wait now."""
        ...

    async def wait(self) -> None:
        """Wait for the next `notify`."""
        ...


class Timer:
    """One scheduled call; see `Turns.schedule`."""

    __slots__ = ("callback", "key", "order", "tick")

    def __init__(self, tick: int, key: Key, order: int, callback: Callable[[], None]) -> None:
        self.tick = tick
        self.key = key
        self.order = order
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """The call will not happen; idempotent."""
        self.callback = None

    def __lt__(self, other: Timer) -> bool:
        return (self.tick, self.order) < (other.tick, other.order)


class Turns(ABC):
    """The timers and waits that both kinds of turn-taking share."""

    pause: Callable[[], Awaitable[None]]
    """Let others have their turn; a quantum ends here."""

    one_at_a_time = False
    """True where tasks run one at a time, in an order of this object's choice."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._timers: list[Timer] = []
        self._sweep_at = SWEEP_TIMERS
        self._order = 0
        self._changed: anyio.Event | None = None
        self._sleepers: set[Wakeup] = set()
        self._is_closed = False

    @abstractmethod
    def wakeup(self, key: Key) -> Wakeup:
        """A new place to wait."""

    @abstractmethod
    async def wait_readable(self, fd: int, key: Key) -> bool:
        """Wait until a descriptor is readable; False when `close_descriptor` was called for it, or it is closed."""

    @abstractmethod
    def close_descriptor(self, fd: int) -> None:
        """Close a descriptor that a task may wait for."""

    @abstractmethod
    def leave(self) -> None:
        """The current task ends: whatever turn it has is over."""

    def save(self) -> bytes | None:
        """The generator's state, None where nothing is drawn."""
        return None

    def restore(self, state: bytes) -> None:
        """Go on drawing after what `save` returned. `DamagedDocument` for anything else."""
        return  # nothing is drawn here, so there is nothing to go on with

    @abstractmethod
    async def settled(self) -> None:
        """Wait until nobody else can go on without time passing or an input from outside."""

    @abstractmethod
    async def run(self) -> None:
        """The partition's own task: fires timers, deals out turns. Ends when cancelled."""

    @abstractmethod
    def expect(self, key: Key) -> Callable[[], Awaitable[None]]:
        """Announce a task that is about to start; the task awaits the result of calling the returned function first."""

    def schedule(self, tick: int, key: Key, callback: Callable[[], None]) -> Timer:
        """Call `callback` once the reference counter reaches `tick`, never earlier."""
        self._order += 1
        timer = Timer(tick, key, self._order, callback)
        if len(self._timers) >= self._sweep_at:  # a guest that sets a timer anew again and again leaves cancelled ones
            self._timers = [timer for timer in self._timers if timer.callback is not None]
            heapq.heapify(self._timers)
            self._sweep_at = 2 * len(self._timers) + SWEEP_TIMERS
        heapq.heappush(self._timers, timer)
        if self._timers[0] is timer:  # else the task that fires timers has an earlier one to wake up for
            self._wake()
        return timer

    async def sleep_until(self, tick: int, key: Key) -> None:
        """Wait until the reference counter reaches `tick`. `PartitionClosed` when the partition ends before."""
        if tick <= self.clock.now():
            await self.pause()
            return
        wakeup = self.wakeup(key)
        timer = self.schedule(tick, key, wakeup.notify)
        self._sleepers.add(wakeup)
        try:
            while self.clock.now() < tick:
                if self._is_closed:
                    raise PartitionClosed("the partition ended before this wait did")
                if timer.callback is None:  # it fired, and a restored state has set the clock back since
                    timer = self.schedule(tick, key, wakeup.notify)
                await wakeup.wait()
        finally:
            self._sleepers.discard(wakeup)
            timer.cancel()

    def set_clock(self, now: int) -> None:
        """Go on from another time, as a restored partition does."""
        self.clock.set(now)
        self._wake()

    def close(self) -> None:
        """The partition ends: whoever sleeps gets `PartitionClosed`."""
        self._is_closed = True
        for wakeup in self._sleepers:
            wakeup.notify()

    def _next_tick(self) -> int | None:
        while self._timers and self._timers[0].callback is None:
            heapq.heappop(self._timers)
        return self._timers[0].tick if self._timers else None

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    async def _wait_changed(self, until: int | None) -> None:
        """Wait until `_wake` is called or the clock reaches `until`."""
        self._changed = changed = anyio.Event()
        delay = math.inf if until is None else (until - self.clock.now()) / TICKS_PER_SECOND
        with anyio.move_on_after(max(delay, 0)):
            await changed.wait()


class LiveTurns(Turns):
    """Whoever the event loop runs next is next."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.pause = checkpoint_of_this_loop()
        self._new_wakeup = wakeup_of_this_loop()
        self._inputs: set[int] = set()
        """Descriptors that tasks wait for."""

    def wakeup(self, key: Key) -> Wakeup:
        return self._new_wakeup()

    async def wait_readable(self, fd: int, key: Key) -> bool:
        if fd < 0:
            return False
        self._inputs.add(fd)
        try:
            await anyio.wait_readable(fd)
        except (anyio.ClosedResourceError, OSError):
            return False
        finally:
            self._inputs.discard(fd)
        return True

    def close_descriptor(self, fd: int) -> None:
        anyio.notify_closing(fd)
        os.close(fd)

    def leave(self) -> None:
        return

    def expect(self, key: Key) -> Callable[[], Awaitable[None]]:
        return anyio.lowlevel.checkpoint

    async def settled(self) -> None:
        while True:
            await anyio.wait_all_tasks_blocked()
            poll = select.poll()
            for fd in self._inputs:
                poll.register(fd, select.POLLIN)
            if not poll.poll(0):
                return
            await anyio.lowlevel.checkpoint()  # a task is blocked, and what it waits for is there already

    async def run(self) -> None:
        while True:
            now = self.clock.now()
            fired = 0
            while (tick := self._next_tick()) is not None and tick <= now:
                timer = heapq.heappop(self._timers)
                callback, timer.callback = timer.callback, None
                if callback is not None:
                    callback()
                    fired += 1
            if fired:  # a timer of almost no period is due again by now; others have their turn before
                await anyio.lowlevel.checkpoint()
            else:
                await self._wait_changed(tick)
