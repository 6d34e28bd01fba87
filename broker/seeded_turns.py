"""Turns drawn from a seed: one task at a time, in the same order on asyncio and on trio.

A task that waits for something other than `Turns` keeps its turn for `AWAY_ROUNDS` rounds of the event loop and is then
taken to be away; the others go on without it, and it goes on when what it waited for comes. When a task ends, or is
cancelled while it waits, as many rounds go by before the next turn: blocks that end with it unwind at each loop's own pace.

With a `VirtualClock`, time advances to the next timer when nobody is ready. A used-up quantum costs one tick, so that a
guest in a loop cannot stop time.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
from collections.abc import Awaitable, Callable

import anyio
import anyio.lowlevel
import msgspec

from .clock import Clock, VirtualClock
from .errors import DamagedDocument
from .turns import Key, Turns, Wakeup

SETTLE_ROUNDS = 4
"""Rounds of the event loop in which tasks outside may react before the next turn is dealt."""
AWAY_ROUNDS = 50


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

    one_at_a_time = True

    def __init__(self, clock: Clock, seed: int) -> None:
        super().__init__(clock)
        self.random = random.Random(seed)
        self.pause = self._pause
        self._virtual = isinstance(clock, VirtualClock)
        self._ready: list[_Waiter] = []
        self._settling: list[_Waiter] = []
        self._inputs: dict[int, _Waiter] = {}
        """Who waits for which descriptor. They are looked at between turns, so that an input has its place in the order."""
        self._epoll = select.epoll()
        self._is_over = False
        self._is_unwinding = False
        """Somebody was cancelled while waiting, or has ended."""
        self._holder: int | None = anyio.get_current_task().id

    def wakeup(self, key: Key) -> Wakeup:
        return _SeededWakeup(self, key)

    async def _pause(self) -> None:
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
        self._is_unwinding = True
        self._give_up_turn()

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
            self._give_up_turn()
        try:
            await waiter.event.wait()
        except BaseException:
            self._is_unwinding = True
            for waiting in (self._ready, self._settling):
                if waiter in waiting:
                    waiting.remove(waiter)
            raise

    async def run(self) -> None:
        try:
            while True:
                await self._settle()
                self._take_inputs()
                if not self._virtual:
                    self._fire_due()
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

    def _give_up_turn(self) -> None:
        if self._holder == anyio.get_current_task().id:
            self._holder = None

    def _grant(self, waiting: list[_Waiter], waiter: _Waiter) -> None:
        waiting.remove(waiter)
        self._holder = waiter.task
        waiter.event.set()

    async def _settle(self) -> None:
        """Wait until the task whose turn it is waits for its next one, or is away."""
        quiet = rounds = 0
        while quiet < (AWAY_ROUNDS if self._is_unwinding else SETTLE_ROUNDS):
            await anyio.lowlevel.checkpoint()
            if self._holder is None:
                quiet += 1
            else:
                rounds += 1
                if rounds >= AWAY_ROUNDS:
                    self._holder = None
        self._is_unwinding = False

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
