"""Goals P1 to P4 on this machine: what dispatch costs, as ratios to a bare await of the same handler.

    python -m tests.bench.dispatch [--json] [--loop asyncio|trio|both] [--rounds N]

P1  Calls through the map and through a processor. The handler returns a module constant; statuses are looked up outside
    the loops. 150 interleaved rounds of 2,000 calls in shuffled order, three times, best of the medians. Before and
    after, every path is watched once: accepted calls enter the handler, refused ones do not, and nothing on the way
    suspends but for the quantum.
P2  One idle hook and one counter. The loop's own time is taken off these and off the bare await they are compared with.
P3  The mailbox. Its own cost is what pushing and draining add to the await of an async method that does nothing, the
    same that "map + 1.5" allows it. End to end, two tasks move messages through room for 1,024.
P4  See `tests.bench.scale`.

The exit status is 1 when a goal is missed. Under a debug mode there are no figures.
"""

from __future__ import annotations

import asyncio  # noqa: TID251 - asyncio.Queue is what the mailbox is measured against
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from time import perf_counter_ns
from types import CodeType, FrameType
from typing import Any

import anyio
import anyio.lowlevel
import msgspec
import structlog

from broker import HvStatus, MessageInbox, Partition, PartitionConfig, Vtl, receive_messages

from .measure import (
    REPETITIONS,
    Goal,
    Result,
    Round,
    Timed,
    expect,
    interleave,
    program,
    timed,
)
from .scale import measure_scale

_ANSWER = HvStatus.SUCCESS
_PAYLOAD = bytes(240)

CALLS = 2_000
ROUNDS = 150
HUGE_QUANTUM = 1 << 29
QUANTUM = 32
PROOF_CALLS = 10 * QUANTUM
BATCH = 64
"""Messages that the mailbox takes before it is drained: the depth of OpenVMM's VMBus server."""
ROOM = 4_096
"""Messages that the mailbox and the anyio stream hold between two tasks."""
QUEUE_ROOM = 1_024
"""What goal P3 gives to asyncio.Queue."""
MESSAGES = 60_000
"""Moved between two tasks in one round."""
TRIPS = 25
"""One in so many of the rounds is enough for these."""
_ROUNDS = f"x: medians of {{}} interleaved rounds of {CALLS} calls, best of {REPETITIONS}; range: 80 % of the rounds"

MESSAGE_PORT, EVENT_PORT, GUARDED_PORT, FULL_PORT, INBOX_PORT, NOBODY = range(1, 7)


class _Port:
    async def handle_message(self, message: bytes, trusted: bool) -> HvStatus:
        return _ANSWER

    async def handle_event(self, flag: int) -> None:
        return None


class _Slots:
    __slots__ = ("count", "trace")

    def __init__(self) -> None:
        self.count = 0
        self.trace = None


class Way(msgspec.Struct, frozen=True):
    """Into a handler: the expression that takes it, and what has to come of it."""

    expression: str
    status: HvStatus | None = HvStatus.SUCCESS
    enters: CodeType | None = _Port.handle_message.__code__
    pauses: int = 0
    """Suspensions in PROOF_CALLS calls."""


_POST = "await port_map.handle_post_message(vtl, {}, False, payload)"
_EVENT = _Port.handle_event.__code__
_INBOX = MessageInbox.handle_message.__code__
_HANDLERS = (_Port.handle_message.__code__, _EVENT, _INBOX)
_PUSH = "for _ in batch: {}\nawait inbox.receive_batch()"

WAYS = {
    "bare": Way("await handler(payload, False)"),
    "bare event": Way("await port.handle_event(0)", None, _EVENT),
    "map": Way(_POST.format(MESSAGE_PORT)),
    "map event": Way(f"await port_map.handle_signal_event(vtl, {EVENT_PORT}, 0)", enters=_EVENT),
    "vp": Way(f"await vp.post_message({MESSAGE_PORT}, 1, payload)"),
    "vp event": Way(f"await vp.signal_event({EVENT_PORT})", enters=_EVENT),
    "vp 32": Way(f"await vp_32.post_message({MESSAGE_PORT}, 1, payload)", pauses=PROOF_CALLS // QUANTUM),
    "vp 32 event": Way(f"await vp_32.signal_event({EVENT_PORT})", enters=_EVENT, pauses=PROOF_CALLS // QUANTUM),
    "unknown": Way(_POST.format(NOBODY), HvStatus.INVALID_CONNECTION_ID, None),
    "denied": Way(_POST.format(GUARDED_PORT), HvStatus.OPERATION_DENIED, None),
    "full": Way(_POST.format(FULL_PORT), HvStatus.INSUFFICIENT_BUFFERS, _INBOX),
}


@asynccontextmanager
async def _everything() -> AsyncIterator[dict[str, object]]:
    """The names that the expressions use: two partitions with the same ports, of a huge quantum and of 32."""
    port = _Port()
    async with (
        Partition(PartitionConfig(quantum=HUGE_QUANTUM)) as partition,
        Partition(PartitionConfig(quantum=QUANTUM)) as partition_32,
    ):
        for access in (partition.synic(), partition_32.synic()):
            await access.add_message_port(MESSAGE_PORT, Vtl.VTL0, port)
            await access.add_event_port(EVENT_PORT, Vtl.VTL0, port)
        await partition.synic().add_message_port(GUARDED_PORT, Vtl.VTL1, port)
        async with (
            receive_messages(partition.synic(), FULL_PORT, 1) as full,
            receive_messages(partition.synic(), INBOX_PORT, BATCH) as inbox,
        ):
            await full.handle_message(_PAYLOAD, False)
            yield {
                "batch": range(BATCH),
                "handler": port.handle_message,
                "inbox": inbox,
                "payload": _PAYLOAD,
                "port": port,
                "port_map": partition.port_map,
                "slots": _Slots(),
                "vp": partition.vp(0),
                "vp_32": partition_32.vp(0),
                "vtl": Vtl.VTL0,
            }


async def measure_calls(loop: str, rounds: int) -> list[Result]:
    """Goals P1 and P2, and what the mailbox costs by itself."""
    async with _everything() as names:
        contenders = {name: timed(way.expression, names) for name, way in WAYS.items()}
        contenders |= {
            "loop": timed("pass", names),
            "hook": timed("if slots.trace is not None: raise", names),
            "counter": timed("slots.count += 1", names),
            "inbox": timed(_PUSH.format("await inbox.handle_message(payload, False)"), names, BATCH),
            "map inbox": timed(_PUSH.format(_POST.format(INBOX_PORT)), names, BATCH),
        }
        await _prove(names)
        repetitions = await interleave(contenders, rounds, CALLS)
        await _prove(names)

    def result(goal: Goal, value: Callable[[Round], float]) -> Result:
        return Result.best_of(loop, goal, [[value(times) for times in repetition] for repetition in repetitions])

    def ratio(number: str, what: str, name: str, at_most: float | None, base: str = "bare") -> Result:
        return result(Goal(number, what, at_most), lambda times: times[name] / times[base])

    def net_ratio(what: str, name: str, at_most: float) -> Result:
        return result(
            Goal("P2", what, at_most),
            lambda times: (times[name] - times["loop"]) / (times["bare"] - times["loop"]),
        )

    quantum = 6.5 if loop == "trio" else 6
    accepted = ratio("P1", "map.handle_post_message", "map", 3.4)
    into_inbox = ratio("P3", "the same, with the drain: an accepted message", "map inbox", None)
    return [
        accepted,
        ratio("P1", "map.handle_signal_event", "map event", 3.8, "bare event"),
        ratio("P1", "vp.post_message, huge quantum", "vp", 4.8),
        ratio("P1", "vp.signal_event, huge quantum", "vp event", 4.8, "bare event"),
        ratio("P1", "vp.post_message, quantum 32", "vp 32", quantum),
        ratio("P1", "vp.signal_event, quantum 32", "vp 32 event", quantum, "bare event"),
        ratio("P1", "refused: unknown connection (limit: accepted)", "unknown", accepted.measured),
        ratio("P1", "refused: VTL too low (limit: accepted)", "denied", accepted.measured),
        ratio("P1", "refused: mailbox full (limit: accepted by one)", "full", into_inbox.measured),
        net_ratio("idle trace hook", "hook", 0.2),
        net_ratio("slot counter", "counter", 0.4),
        result(
            Goal("P3", "mailbox: push and batch drain, on top of an await", at_most=1),
            lambda times: (times["inbox"] - times["bare"]) / times["bare"],
        ),
        result(
            Goal("P3", "mailbox through the map, on top of the map", at_most=1.5),
            lambda times: (times["map inbox"] - times["map"]) / times["bare"],
        ),
        into_inbox,
    ]


async def _prove(names: dict[str, object]) -> None:
    """Watch every way: where it leads, what it answers, and that nothing on it suspends, starts a task or logs."""
    for name, way in WAYS.items():
        namespace: dict[str, Any] = {}
        exec(f"async def call({', '.join(names)}): return {way.expression}", namespace)
        calls = _Watched(_call_often(partial(namespace["call"], **names)))
        tasks = len(anyio.get_running_tasks())
        with structlog.testing.capture_logs() as logs, _counting_entries() as entries:
            statuses = await calls
        entered = {code: entries[code] for code in _HANDLERS if entries[code]}
        expect(statuses == {way.status}, f"{name} is answered {way.status!r}, not {statuses}")
        expect(
            entered == ({way.enters: PROOF_CALLS} if way.enters else {}), f"{name} enters {way.enters}, not {entered}"
        )
        most = way.pauses  # one less where a quantum had just begun
        expect(most - 1 <= calls.pauses <= most, f"{name} suspends {most} times, not {calls.pauses}")
        expect(len(anyio.get_running_tasks()) == tasks, f"{name} starts no task")
        expect(not logs, f"{name} does not log")


async def _call_often(call: Callable[[], Awaitable[HvStatus | None]]) -> set[HvStatus | None]:
    return {await call() for _ in range(PROOF_CALLS)}


class _Watched:
    """Awaits a coroutine and counts how often it suspends."""

    def __init__(self, coroutine: Coroutine[Any, Any, set[HvStatus | None]]) -> None:
        self.pauses = 0
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, set[HvStatus | None]]:
        outcome = None
        while True:
            try:
                waits_for = self._coroutine.send(outcome)
            except StopIteration as end:
                statuses: set[HvStatus | None] = end.value
                return statuses
            self.pauses += 1
            outcome = yield waits_for


@contextmanager
def _counting_entries() -> Iterator[Counter[CodeType]]:
    """Count how often each function is entered."""
    entries: Counter[CodeType] = Counter()

    def note(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call":
            entries[frame.f_code] += 1

    sys.setprofile(note)
    try:
        yield entries
    finally:
        sys.setprofile(None)


_Side = Callable[[int], Coroutine[Any, Any, None]]


async def measure_trips(loop: str, rounds: int) -> list[Result]:
    """Goal P3 end to end: from one task to another, the producer posting until there is no room."""
    async with Partition() as partition, receive_messages(partition.synic(), INBOX_PORT, ROOM) as inbox:
        trips = {"mailbox": _mailbox_trip(inbox), "stream": _stream_trip}
        if loop == "asyncio":
            trips["queue"] = _queue_trip
        repetitions = await interleave(trips, rounds, MESSAGES)
    goals = {
        "queue": Goal("P3", f"mailbox end to end, times faster than asyncio.Queue({QUEUE_ROOM})", at_least=3),
        "stream": Goal("P3", f"mailbox end to end, times faster than an anyio stream({ROOM})", at_least=30),
    }
    return [
        Result.best_of(
            loop, goal, [[times[name] / times["mailbox"] for times in repetition] for repetition in repetitions]
        )
        for name, goal in goals.items()
        if name in trips
    ]


def _mailbox_trip(inbox: MessageInbox) -> Timed:
    async def produce(count: int) -> None:
        post = inbox.handle_message
        for _ in range(count):
            while await post(_PAYLOAD, False) is not _ANSWER:
                await anyio.lowlevel.checkpoint()

    async def consume(count: int) -> None:
        while count:
            batch = await inbox.receive_batch()
            for _message in batch:
                pass
            count -= len(batch)

    return partial(_trip, produce, consume)


async def _queue_trip(count: int) -> float:
    queue: asyncio.Queue[bytes] = asyncio.Queue(QUEUE_ROOM)

    async def produce(count: int) -> None:
        put = queue.put
        for _ in range(count):
            await put(_PAYLOAD)

    async def consume(count: int) -> None:
        get = queue.get
        for _ in range(count):
            await get()

    return await _trip(produce, consume, count)


async def _stream_trip(count: int) -> float:
    send, receive = anyio.create_memory_object_stream[bytes](ROOM)

    async def produce(count: int) -> None:
        post = send.send
        for _ in range(count):
            await post(_PAYLOAD)

    async def consume(count: int) -> None:
        take = receive.receive
        for _ in range(count):
            await take()

    with send, receive:
        return await _trip(produce, consume, count)


async def _trip(produce: _Side, consume: _Side, count: int) -> float:
    """Nanoseconds a message, the start of the producer's task included."""
    start = perf_counter_ns()
    async with anyio.create_task_group() as group:
        group.start_soon(produce, count)
        await consume(count)
    return (perf_counter_ns() - start) / count


async def measure(loop: str, rounds: int) -> list[Result]:
    """Every goal, on the running loop."""
    return [
        *await measure_calls(loop, rounds),
        *await measure_trips(loop, max(rounds // TRIPS, 1)),
        *await measure_scale(loop),
    ]


main = program(
    measure,
    "Measure goals P1 to P4 and say which are met.",
    _ROUNDS,
    rounds=ROUNDS,
    calls=CALLS,
    packages=("anyio", "trio"),
)

if __name__ == "__main__":
    main()
