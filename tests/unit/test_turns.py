"""Turn-taking and timers: live leaves the order to the event loop, seeded draws it, the same on both loops."""

from __future__ import annotations

import gc
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from itertools import permutations

import anyio
import anyio.abc
import anyio.lowlevel
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.clock import Clock, VirtualClock
from broker.errors import DamagedDocument
from broker.seeded_turns import SeededTurns
from broker.turns import LiveTurns, Timer, Turns, Wakeup

LOOPS = ("asyncio", "trio")
FAR = 1 << 50
KEY = ("test", 0)

Log = list[object]
Scenario = Callable[[Turns, anyio.abc.TaskGroup, Log], Awaitable[None]]


@asynccontextmanager
async def _running(turns: Turns) -> AsyncIterator[anyio.abc.TaskGroup]:
    """The turns' own task beside the test, and a group for workers."""
    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(turns.run)
            yield group
            group.cancel_scope.cancel()


@pytest.fixture(params=["live", "seeded"])
def make_turns(request: pytest.FixtureRequest) -> Callable[[], Turns]:
    """Either kind, over a clock that moves only when the test moves it."""
    if request.param == "live":
        return lambda: LiveTurns(VirtualClock())
    return lambda: SeededTurns(VirtualClock(), seed=1)


def _seeded(seed: int = 0) -> SeededTurns:
    return SeededTurns(VirtualClock(), seed)


def _played(scenario: Scenario, seed: int, loop: str = "asyncio") -> Log:
    """What a scenario notes when it runs with this seed on this event loop."""

    async def play() -> Log:
        log: Log = []
        turns = _seeded(seed)
        async with _running(turns) as group:
            await scenario(turns, group, log)
            await turns.settled()
        return log

    return anyio.run(play, backend=loop)


async def _worker(begin: Callable[[], Awaitable[None]], turns: Turns, name: object, log: Log, steps: int = 4) -> None:
    await begin()
    for _ in range(steps):
        log.append(name)
        await turns.pause()
    turns.leave()


async def _workers(turns: Turns, group: anyio.abc.TaskGroup, log: Log) -> None:
    for index in range(4):
        group.start_soon(_worker, turns.expect(("worker", index)), turns, index, log)


async def _timers_of_one_tick(turns: Turns, group: anyio.abc.TaskGroup, log: Log) -> None:
    for name in "abc":
        turns.schedule(100, (name, 0), lambda name=name: log.append(name))  # type: ignore[misc]
    await turns.sleep_until(101, KEY)


async def _woken_together(turns: Turns, group: anyio.abc.TaskGroup, log: Log) -> None:
    wakeup = turns.wakeup(("shared", 0))

    async def wait(begin: Callable[[], Awaitable[None]], name: object) -> None:
        await begin()
        await wakeup.wait()
        log.append(name)
        turns.leave()

    for name in range(4):
        group.start_soon(wait, turns.expect(("waiter", name)), name)
    await turns.settled()
    assert log == []
    wakeup.notify()


# the order comes from the seed


@pytest.mark.parametrize("scenario", [_workers, _timers_of_one_tick, _woken_together])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_same_seed_gives_the_same_order_on_both_loops(scenario: Scenario, seed: int) -> None:
    logs = [_played(scenario, seed, loop) for loop in LOOPS for _ in range(2)]
    assert logs[0]
    assert logs == logs[:1] * 4


@pytest.mark.parametrize("scenario", [_workers, _timers_of_one_tick, _woken_together])
def test_another_seed_gives_another_order_of_the_same_steps(scenario: Scenario) -> None:
    logs = [_played(scenario, seed) for seed in range(8)]
    assert len({tuple(log) for log in logs}) > 1
    assert len({tuple(sorted(map(str, log))) for log in logs}) == 1


def test_any_order_of_two_timers_of_one_tick_can_be_drawn() -> None:
    orders = {tuple(_played(_timers_of_one_tick, seed)) for seed in range(40)}
    assert orders == set(permutations("abc"))


def test_the_order_does_not_depend_on_who_was_announced_first() -> None:
    async def backwards(turns: Turns, group: anyio.abc.TaskGroup, log: Log) -> None:
        for index in reversed(range(4)):
            group.start_soon(_worker, turns.expect(("worker", index)), turns, index, log)

    assert _played(backwards, seed=3) == _played(_workers, seed=3)


async def test_a_saved_generator_goes_on_with_the_same_draws() -> None:
    turns, other = _seeded(7), _seeded(8)
    other.restore(turns.save())
    assert [turns.random.random() for _ in range(5)] == [other.random.random() for _ in range(5)]


@given(
    st.binary()
    | st.binary(min_size=1).map(lambda noise: b"\x93\x03" + noise)
    | st.lists(st.integers(-(1 << 63), (1 << 64) - 1), max_size=3).map(
        lambda numbers: msgspec.msgpack.encode((3, [*([1] * (625 - len(numbers))), *numbers], None))
    )
)
def test_a_damaged_generator_state_is_refused_and_nothing_else(state: bytes) -> None:
    async def restore() -> None:
        turns = _seeded()
        try:
            turns.restore(state)
        except DamagedDocument:
            assert turns.save() == _seeded().save()

    anyio.run(restore)


async def test_live_turns_draw_nothing() -> None:
    turns = LiveTurns(VirtualClock())
    assert turns.save() is None
    turns.restore(b"anything")


# one task at a time


async def test_a_task_keeps_its_turn_over_a_checkpoint_of_its_own() -> None:
    turns, log = _seeded(), []

    async def work(begin: Callable[[], Awaitable[None]], name: int) -> None:
        await begin()
        for _ in range(3):
            log.append(name)
            await anyio.lowlevel.checkpoint()
            log.append(name)
            await turns.pause()
        turns.leave()

    async with _running(turns) as group:
        for name in range(3):
            group.start_soon(work, turns.expect(("worker", name)), name)
        await turns.settled()
    assert len(log) == 18
    assert log[::2] == log[1::2]


@pytest.mark.parametrize("seed", range(4))
async def test_a_task_that_waits_outside_keeps_nobody_up(seed: int) -> None:
    turns, log, outside = _seeded(seed), [], anyio.Event()

    async def wait_outside(begin: Callable[[], Awaitable[None]]) -> None:
        await begin()
        await outside.wait()
        await turns.pause()
        log.append("outside")
        turns.leave()

    async def go_on(begin: Callable[[], Awaitable[None]]) -> None:
        await begin()
        await turns.pause()
        log.append("inside")
        outside.set()
        turns.leave()

    async with _running(turns) as group:
        group.start_soon(wait_outside, turns.expect(("worker", 0)))
        group.start_soon(go_on, turns.expect(("worker", 1)))
        while len(log) < 2:
            await turns.settled()
    assert log == ["inside", "outside"]


async def test_a_task_that_ends_without_a_word_keeps_nobody_up() -> None:
    turns, log = _seeded(), []

    async def end(begin: Callable[[], Awaitable[None]]) -> None:
        await begin()
        log.append("ended")

    async with _running(turns) as group:
        for index in range(3):
            group.start_soon(end, turns.expect(("worker", index)))
        await turns.settled()
    assert log == ["ended"] * 3


async def test_an_announced_task_that_never_starts_keeps_nobody_up() -> None:
    turns, log = _seeded(), []
    turns.expect(("never", 0))
    async with _running(turns) as group:
        await _workers(turns, group, log)
        await turns.settled()
    assert sorted(log) == sorted(list(range(4)) * 4)


# time


async def test_virtual_time_jumps_to_the_next_timer() -> None:
    turns, log = _seeded(), []

    async def sleep(tick: int) -> None:
        await turns.sleep_until(tick, KEY)
        log.append((tick, turns.clock.now()))
        turns.leave()

    ticks = [36_000_000_000, 10, 5_000_000, FAR]
    async with _running(turns) as group:
        for tick in ticks:
            group.start_soon(sleep, tick)
        await turns.sleep_until(FAR + 1, KEY)
    assert log == [(tick, tick) for tick in sorted(ticks)]


async def test_virtual_time_stands_still_while_anybody_can_go_on() -> None:
    turns, seen = _seeded(), []
    ping, pong = turns.wakeup(("ping", 0)), turns.wakeup(("pong", 0))

    async def play(begin: Callable[[], Awaitable[None]], mine: Wakeup, yours: Wakeup) -> None:
        await begin()
        for _ in range(5):
            seen.append(turns.clock.now())
            yours.notify()
            await mine.wait()
        yours.notify()
        turns.leave()

    async with _running(turns) as group:
        group.start_soon(play, turns.expect(("ping", 0)), ping, pong)
        group.start_soon(play, turns.expect(("pong", 0)), pong, ping)
        await turns.sleep_until(50, KEY)
    assert seen == [0] * 10
    assert turns.clock.now() == 50


async def test_a_used_up_quantum_costs_one_tick() -> None:
    turns = _seeded()
    async with _running(turns):
        for expected in range(1, 6):
            await turns.pause()
            assert turns.clock.now() == expected


async def test_a_task_that_never_waits_for_time_cannot_stop_a_timer() -> None:
    turns, fired = _seeded(), []
    turns.schedule(3, KEY, lambda: fired.append(turns.clock.now()))
    async with _running(turns):
        while not fired:
            await turns.pause()
    assert fired == [3]


async def test_a_real_clock_is_not_moved_by_a_pause() -> None:
    for turns in (SeededTurns(Clock(lambda: 0), 0), LiveTurns(Clock(lambda: 0))):
        async with _running(turns):
            await turns.pause()
        assert turns.clock.now() == 0


async def test_settled_returns_before_time_passes() -> None:
    turns, log = _seeded(), []

    async def sleep() -> None:
        await turns.sleep_until(100, KEY)
        log.append("woke")
        turns.leave()

    async with _running(turns) as group:
        await _woken_together(turns, group, log)
        group.start_soon(sleep)
        await turns.settled()
        assert sorted(map(str, log)) == ["0", "1", "2", "3"]
        assert turns.clock.now() == 0
        await turns.sleep_until(200, KEY)
    assert log[4:] == ["woke"]


async def test_settled_waits_for_work_that_work_makes() -> None:
    turns, log = _seeded(), []

    async def spawn(begin: Callable[[], Awaitable[None]], group: anyio.abc.TaskGroup, depth: int) -> None:
        await begin()
        log.append(depth)
        if depth:
            group.start_soon(spawn, turns.expect(("depth", depth)), group, depth - 1)
        turns.leave()

    async with _running(turns) as group:
        group.start_soon(spawn, turns.expect(("depth", 5)), group, 4)
        await turns.settled()
        assert log == [4, 3, 2, 1, 0]


@pytest.mark.parametrize("clock", ["virtual", "real"])
async def test_a_sleeper_never_wakes_early(clock: str) -> None:
    ticks: Iterator[int] = iter(range(0, 1 << 40, 30))  # 30 ns pass with every look at the clock
    turns = _seeded() if clock == "virtual" else LiveTurns(Clock(lambda: next(ticks)))
    async with _running(turns):
        for tick in (1, 2, 7):
            await turns.sleep_until(tick, KEY)
            assert turns.clock.now() >= tick


# what both kinds share


async def test_a_timer_fires_once_and_in_order_of_its_tick(make_turns: Callable[[], Turns]) -> None:
    turns, log = make_turns(), []
    done = turns.wakeup(KEY)
    for tick in (30, 10, 20):
        turns.schedule(tick, KEY, lambda tick=tick: log.append(tick))  # type: ignore[misc]
    turns.schedule(40, KEY, done.notify)
    turns.clock.set(40)
    async with _running(turns):
        await done.wait()
        await turns.settled()
    assert log == [10, 20, 30]


async def test_a_cancelled_timer_does_not_fire(make_turns: Callable[[], Turns]) -> None:
    turns, log = make_turns(), []
    done = turns.wakeup(KEY)
    timer = turns.schedule(10, KEY, lambda: log.append("cancelled"))
    turns.schedule(20, KEY, done.notify)
    timer.cancel()
    timer.cancel()
    turns.clock.set(20)
    async with _running(turns):
        await done.wait()
    assert log == []


async def test_a_timer_may_schedule_the_next_one(make_turns: Callable[[], Turns]) -> None:
    turns, log = make_turns(), []
    done = turns.wakeup(KEY)

    def step() -> None:
        log.append(len(log))
        if len(log) < 5:
            turns.schedule(5, KEY, step)
        else:
            done.notify()

    turns.schedule(5, KEY, step)
    turns.clock.set(5)
    async with _running(turns):
        await done.wait()
    assert log == [0, 1, 2, 3, 4]


async def test_an_earlier_timer_overtakes_the_one_that_is_waited_for(make_turns: Callable[[], Turns]) -> None:
    turns, log = make_turns(), []
    async with _running(turns):
        turns.schedule(FAR, KEY, lambda: log.append("far"))
        await turns.settled()
        turns.clock.set(max(turns.clock.now(), 10))
        await turns.sleep_until(10, KEY)
        assert log == []


async def test_cancelled_timers_do_not_pile_up(make_turns: Callable[[], Turns]) -> None:
    turns, log = make_turns(), []
    kept = [turns.schedule(tick, KEY, lambda tick=tick: log.append(tick)) for tick in (3, 1, 2)]  # type: ignore[misc]
    for tick in range(5_000):
        turns.schedule(FAR + tick, KEY, log.clear).cancel()
    assert len(kept) <= sum(isinstance(thing, Timer) for thing in gc.get_objects()) < 500
    done = turns.wakeup(KEY)
    turns.schedule(4, KEY, done.notify)
    turns.clock.set(4)
    async with _running(turns):
        await done.wait()
    assert log == [1, 2, 3]


async def test_a_notify_wakes_all_who_wait_and_nobody_who_comes_later(make_turns: Callable[[], Turns]) -> None:
    turns, log = make_turns(), []
    wakeup = turns.wakeup(KEY)

    async def wait(begin: Callable[[], Awaitable[None]]) -> None:
        await begin()
        await wakeup.wait()
        log.append("woke")
        await wakeup.wait()
        log.append("woke again")

    async with _running(turns) as group:
        wakeup.notify()  # nobody waits yet: it is not kept
        for index in range(3):
            group.start_soon(wait, turns.expect(("waiter", index)))
        await turns.settled()
        assert log == []
        wakeup.notify()
        await turns.settled()
        assert log == ["woke"] * 3


@pytest.mark.parametrize("notified_first", [False, True])
async def test_a_cancelled_waiter_is_forgotten(make_turns: Callable[[], Turns], notified_first: bool) -> None:
    turns, log = make_turns(), []
    wakeup = turns.wakeup(KEY)
    scopes = [anyio.CancelScope() for _ in range(3)]

    async def wait(begin: Callable[[], Awaitable[None]], index: int) -> None:
        with scopes[index]:
            await begin()
            await wakeup.wait()
            await turns.pause()
            log.append(index)
        turns.leave()

    async with _running(turns) as group:
        for index in range(3):
            group.start_soon(wait, turns.expect(("waiter", index)), index)
        await turns.settled()
        if notified_first:
            wakeup.notify()
        scopes[1].cancel()
        if not notified_first:
            await turns.settled()
            wakeup.notify()
        await turns.settled()
    assert sorted(log) == [0, 2]


async def test_nothing_is_drawn_for_a_waiter_that_was_cancelled() -> None:
    turns = _seeded()
    wakeup = turns.wakeup(KEY)
    async with _running(turns):
        with anyio.move_on_after(0):
            await wakeup.wait()
        before = turns.save()
        wakeup.notify()
        await turns.settled()
        assert turns.save() == before


async def test_a_cancelled_settled_is_forgotten() -> None:
    turns = _seeded()
    async with _running(turns):
        with anyio.move_on_after(0) as scope:
            await turns.settled()
        assert scope.cancelled_caught
        await turns.settled()


async def test_a_cancelled_sleeper_takes_its_timer_along() -> None:
    turns = _seeded()
    async with _running(turns):
        with anyio.move_on_after(0):
            await turns.sleep_until(1_000, KEY)
        await turns.sleep_until(10, KEY)
        await turns.settled()
        assert turns.clock.now() == 10


# descriptors


@pytest.fixture
def descriptor() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    with suppress(OSError):
        os.close(fd)


async def test_a_readable_descriptor_wakes_its_waiter(make_turns: Callable[[], Turns], descriptor: int) -> None:
    turns, log = make_turns(), []

    async def wait(begin: Callable[[], Awaitable[None]]) -> None:
        await begin()
        log.append(await turns.wait_readable(descriptor, KEY))
        turns.leave()

    async with _running(turns) as group:
        group.start_soon(wait, turns.expect(KEY))
        await turns.settled()
        assert log == []
        os.eventfd_write(descriptor, 1)
        while not log:
            await turns.pause()
    assert log == [True]


async def test_closing_a_descriptor_lets_its_waiter_go(make_turns: Callable[[], Turns], descriptor: int) -> None:
    turns, log = make_turns(), []

    async def wait(begin: Callable[[], Awaitable[None]]) -> None:
        await begin()
        log.append(await turns.wait_readable(descriptor, KEY))
        turns.leave()

    async with _running(turns) as group:
        group.start_soon(wait, turns.expect(KEY))
        await turns.settled()
        turns.close_descriptor(descriptor)
        await turns.settled()
    assert log == [False]


async def test_a_closed_descriptor_is_not_waited_for(make_turns: Callable[[], Turns], descriptor: int) -> None:
    turns = make_turns()
    os.close(descriptor)
    async with _running(turns):
        assert not await turns.wait_readable(descriptor, KEY)
        assert not await turns.wait_readable(-1, KEY)
        await turns.settled()


async def test_virtual_time_waits_for_no_input_that_has_not_come(descriptor: int) -> None:
    turns = _seeded()
    async with _running(turns) as group:
        group.start_soon(turns.wait_readable, descriptor, KEY)
        await turns.sleep_until(FAR, KEY)
    assert turns.clock.now() == FAR


async def test_nobody_is_kept_waiting_once_the_turns_are_over(descriptor: int) -> None:
    turns = _seeded()
    async with _running(turns):
        pass
    with anyio.fail_after(30):
        await turns.pause()
        await turns.settled()
        await turns.expect(KEY)()
        assert not await turns.wait_readable(descriptor, KEY)


# wake-ups of one loop


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("is_made_inside", [True, False])
def test_a_live_wakeup_wakes_all_who_wait_then_and_forgets_who_was_cancelled(loop: str, is_made_inside: bool) -> None:
    """Turns that are made where no loop runs work on any."""
    before = LiveTurns(VirtualClock())

    async def play() -> None:
        woken: list[int] = []
        wakeup = (LiveTurns(VirtualClock()) if is_made_inside else before).wakeup(KEY)

        async def wait(number: int) -> None:
            await wakeup.wait()
            woken.append(number)

        wakeup.notify()  # for nobody: it does not stay
        async with anyio.create_task_group() as group:
            async with anyio.create_task_group() as cancelled:
                for number in range(3):
                    (cancelled if number == 1 else group).start_soon(wait, number)
                await anyio.wait_all_tasks_blocked()
                assert not woken
                cancelled.cancel_scope.cancel()
            wakeup.notify()
            await anyio.wait_all_tasks_blocked()
            assert sorted(woken) == [0, 2]
            group.start_soon(wait, 3)
            await anyio.wait_all_tasks_blocked()
            assert sorted(woken) == [0, 2]
            wakeup.notify()
            group.start_soon(wait, 4)
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        assert sorted(woken) == [0, 2, 3]

    anyio.run(play, backend=loop)


def test_cancelled_waits_do_not_pile_up() -> None:
    for loop in LOOPS:

        async def play() -> None:
            wakeup = LiveTurns(VirtualClock()).wakeup(KEY)
            for _ in range(20):
                with anyio.CancelScope() as scope:
                    scope.cancel()
                    await wakeup.wait()
            assert not wakeup._waiting  # type: ignore[attr-defined]

        anyio.run(play, backend=loop)
