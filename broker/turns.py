"""Whose turn it is: the one place that decides order where the rules leave it open (design decision 18), and timers.

`LiveTurns` leaves it to the event loop. `SeededTurns` lets one task run at a time and draws the next one from a seeded
generator, so that the same seed gives the same order on asyncio and on trio. A task takes part by waiting through this
module (`Wakeup`, `pause`, `sleep_until`), as every wait of this package does. A task that waits for something else keeps
its turn for `AWAY_ROUNDS` rounds of the event loop and is then taken to be away; the others go on without it.

With a `VirtualClock`, time advances to the next timer when nobody else is ready. A used-up quantum costs one tick, so
that a guest in a loop cannot stop time.
"""

from __future__ import annotations

import contextlib
import heapq
import math
import os
import random
import select
from collections.abc import Awaitable, Callable
from typing import Protocol

import anyio
import anyio.lowlevel
import msgspec

from .clock import TICKS_PER_SECOND, Clock, VirtualClock
from .errors import DamagedDocument

SETTLE_ROUNDS = 4
AWAY_ROUNDS = 50
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


class Turns:
    """The timers and waits that both kinds of turn-taking share."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._timers: list[Timer] = []
        self._sweep_at = SWEEP_TIMERS
        self._order = 0
        self._changed: anyio.Event | None = None

    def wakeup(self, key: Key) -> Wakeup:
        """A new place to wait."""
        raise NotImplementedError

    async def pause(self) -> None:
        """Let others have their turn; a quantum ends here."""
        raise NotImplementedError

    async def wait_readable(self, fd: int, key: Key) -> bool:
        """Wait until a descriptor is readable; False when `close_descriptor` was called for it, or it is closed."""
        raise NotImplementedError

    def close_descriptor(self, fd: int) -> None:
        """Close a descriptor that a task may wait for."""
        raise NotImplementedError

    def leave(self) -> None:
        """The current task ends: whatever turn it has is over."""
        raise NotImplementedError

    def save(self) -> bytes | None:
        """The generator's state, None where nothing is drawn."""
        return None

    def restore(self, state: bytes) -> None:
        """Go on drawing after what `save` returned. `DamagedDocument` for anything else."""

    async def settled(self) -> None:
        """Wait until nobody else can go on without time passing or an input from outside."""
        raise NotImplementedError

    async def run(self) -> None:
        """The partition's own task: fires timers, deals out turns. Ends when cancelled."""
        raise NotImplementedError

    def expect(self, key: Key) -> Callable[[], Awaitable[None]]:
        """Announce a task that is about to start; the task awaits the result of calling the returned function first."""
        raise NotImplementedError

    def schedule(self, tick: int, key: Key, callback: Callable[[], None]) -> Timer:
        """Call `callback` once the reference counter reaches `tick`, never earlier."""
        self._order += 1
        timer = Timer(tick, key, self._order, callback)
        if len(self._timers) >= self._sweep_at:  # a guest that sets a timer anew again and again leaves cancelled ones
            self._timers = [timer for timer in self._timers if timer.callback is not None]
            heapq.heapify(self._timers)
            self._sweep_at = 2 * len(self._timers) + SWEEP_TIMERS
        heapq.heappush(self._timers, timer)
        self._wake()
        return timer

    async def sleep_until(self, tick: int, key: Key) -> None:
        """Wait until the reference counter reaches `tick`."""
        wakeup = self.wakeup(key)
        timer = self.schedule(tick, key, wakeup.notify)
        try:
            while self.clock.now() < tick:
                await wakeup.wait()
        finally:
            timer.cancel()

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


class _LiveWakeup:
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


class LiveTurns(Turns):
    """Whoever the event loop runs next is next."""

    def wakeup(self, key: Key) -> Wakeup:
        return _LiveWakeup()

    async def pause(self) -> None:
        await anyio.lowlevel.checkpoint()

    async def wait_readable(self, fd: int, key: Key) -> bool:
        if fd < 0:
            return False
        try:
            await anyio.wait_readable(fd)
        except (anyio.ClosedResourceError, OSError):
            return False
        return True

    def close_descriptor(self, fd: int) -> None:
        anyio.notify_closing(fd)
        os.close(fd)

    def leave(self) -> None:
        return

    def expect(self, key: Key) -> Callable[[], Awaitable[None]]:
        return anyio.lowlevel.checkpoint

    async def settled(self) -> None:
        await anyio.wait_all_tasks_blocked()

    async def run(self) -> None:
        while True:
            while (tick := self._next_tick()) is not None and tick <= self.clock.now():
                timer = heapq.heappop(self._timers)
                if timer.callback is not None:
                    timer.callback()
            await self._wait_changed(tick)


class _Waiter:
    """A task that waits for its turn, or for the `notify` that makes it ready."""

    __slots__ = ("event", "is_closed", "key", "order", "task")

    def __init__(self, key: Key, order: int) -> None:
        self.is_closed = False
        self.key = key
        self.order = order
        self.event = anyio.Event()
        self.task: int | None = None


class _SeededWakeup:
    __slots__ = ("_key", "_turns", "_waiters")

    def __init__(self, turns: SeededTurns, key: Key) -> None:
        self._turns = turns
        self._key = key
        self._waiters: list[_Waiter] = []

    def notify(self) -> None:
        waiters, self._waiters = self._waiters, []
        self._turns.make_ready(waiters)

    async def wait(self) -> None:
        waiter = self._turns.waiter(self._key)
        self._waiters.append(waiter)
        try:
            await self._turns.park(waiter)
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)


class SeededTurns(Turns):
    """One task at a time, drawn from a generator with this seed."""

    def __init__(self, clock: Clock, seed: int) -> None:
        super().__init__(clock)
        self.random = random.Random(seed)
        self._virtual = isinstance(clock, VirtualClock)
        self._ready: list[_Waiter] = []
        self._settling: list[_Waiter] = []
        self._inputs: dict[int, _Waiter] = {}
        """Who waits for which descriptor. They are looked at between turns, so that an input has its place in the order."""
        self._epoll = select.epoll()
        self._is_over = False
        self._holder: int | None = anyio.get_current_task().id

    def wakeup(self, key: Key) -> Wakeup:
        return _SeededWakeup(self, key)

    async def pause(self) -> None:
        if self._virtual:
            self.clock.set(self.clock.now() + 1)
            self._fire_due()
        waiter = self.waiter(("pause", 0))
        self.make_ready([waiter])
        await self.park(waiter)

    async def wait_readable(self, fd: int, key: Key) -> bool:
        if fd < 0:
            return False
        waiter = self.waiter(key)
        try:
            self._epoll.register(fd, select.EPOLLIN)
        except FileExistsError:
            raise  # two tasks wait for it
        except (OSError, ValueError):  # it is closed, or the partition has ended
            return False
        self._inputs[fd] = waiter
        try:
            await self.park(waiter)
        finally:
            if self._inputs.get(fd) is waiter:
                self._forget_input(fd)
        return not waiter.is_closed

    def close_descriptor(self, fd: int) -> None:
        waiter = self._inputs.get(fd)
        if waiter is not None:
            self._forget_input(fd)
            waiter.is_closed = True
            self.make_ready([waiter])
        os.close(fd)

    def leave(self) -> None:
        if self._holder == anyio.get_current_task().id:
            self._holder = None

    def expect(self, key: Key) -> Callable[[], Awaitable[None]]:
        waiter = self.waiter(key)
        self.make_ready([waiter])
        return lambda: self.park(waiter)

    def save(self) -> bytes:
        return msgspec.msgpack.encode(self.random.getstate())

    def restore(self, state: bytes) -> None:
        generator = random.Random(0)
        try:
            generator.setstate(msgspec.msgpack.decode(state, type=tuple[int, tuple[int, ...], float | None]))
        except (msgspec.DecodeError, msgspec.ValidationError, ValueError, TypeError, OverflowError) as error:
            raise DamagedDocument(f"the saved random generator cannot be read: {error}") from error
        self.random = generator

    async def settled(self) -> None:
        waiter = self.waiter(("settled", 0))
        if self._is_over:
            return
        self._settling.append(waiter)
        self._wake()
        await self.park(waiter)

    def waiter(self, key: Key) -> _Waiter:
        """A new waiter, not ready yet."""
        self._order += 1
        return _Waiter(key, self._order)

    def make_ready(self, waiters: list[_Waiter]) -> None:
        """These can go on as soon as they are chosen; at once when the partition has ended and nobody chooses any more."""
        if self._is_over:
            for waiter in waiters:
                waiter.event.set()
        elif waiters:
            self._ready += waiters
            self._wake()

    async def park(self, waiter: _Waiter) -> None:
        """Give up the turn and wait until this waiter is chosen."""
        waiter.task = anyio.get_current_task().id
        if waiter.event.is_set():
            self._holder = waiter.task  # chosen before its task arrived
        else:
            self.leave()
        try:
            await waiter.event.wait()
        except BaseException:
            for waiting in (self._ready, self._settling):
                if waiter in waiting:
                    waiting.remove(waiter)
            raise

    async def run(self) -> None:
        try:
            while True:
                await self._settle()
                self._take_inputs()
                if self._ready:
                    candidates = sorted(self._ready, key=lambda waiter: (waiter.key, waiter.order))
                    self._grant(self._ready, candidates[self.random.randrange(len(candidates))])
                elif self._settling:
                    self._grant(self._settling, self._settling[0])
                else:
                    await self._advance()
        finally:
            self._is_over = True
            self.make_ready(self._ready + self._settling)
            self._epoll.close()

    async def _advance(self) -> None:
        """Nobody is ready: let time go on to the next timer, or wait for an input."""
        tick = self._next_tick()
        if self._virtual and tick is not None:
            self.clock.set(max(tick, self.clock.now()))
        if not self._fire_due():
            async with anyio.create_task_group() as group:
                group.start_soon(self._watch_inputs)
                await self._wait_changed(tick)
                group.cancel_scope.cancel()

    async def _watch_inputs(self) -> None:
        await anyio.wait_readable(self._epoll.fileno())
        self._wake()

    def _take_inputs(self) -> None:
        if self._inputs:
            readable = [self._inputs[fd] for fd, _ in self._epoll.poll(0) if fd in self._inputs]
            for fd in [fd for fd, waiter in self._inputs.items() if waiter in readable]:
                self._forget_input(fd)
            self.make_ready(sorted(readable, key=lambda waiter: (waiter.key, waiter.order)))

    def _forget_input(self, fd: int) -> None:
        del self._inputs[fd]
        with contextlib.suppress(OSError, ValueError):  # a closed descriptor has left the set, or the set is closed
            self._epoll.unregister(fd)

    def _grant(self, waiting: list[_Waiter], waiter: _Waiter) -> None:
        waiting.remove(waiter)
        self._holder = waiter.task
        waiter.event.set()

    async def _settle(self) -> None:
        """Wait until the task whose turn it is waits for its next one, or is away."""
        quiet = rounds = 0
        while quiet < SETTLE_ROUNDS:
            await anyio.lowlevel.checkpoint()
            if self._holder is None:
                quiet += 1
            else:
                rounds += 1
                if rounds >= AWAY_ROUNDS:
                    self._holder = None

    def _fire_due(self) -> bool:
        """Fire one of the timers that are due, drawn from the generator where several have the same tick."""
        tick = self._next_tick()
        if tick is None or tick > self.clock.now():
            return False
        due = [timer for timer in self._timers if timer.tick == tick and timer.callback is not None]
        due.sort(key=lambda timer: (timer.key, timer.order))
        timer = due[self.random.randrange(len(due))]
        callback = timer.callback
        timer.cancel()
        if callback is not None:
            callback()
        return True
