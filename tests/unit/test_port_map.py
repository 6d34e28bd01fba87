"""The port map's own words and counts: statistics, explanations, errors."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import anyio
import pytest
from structlog.testing import capture_logs

from broker import ConnectionIdInUse, HvStatus, PortStatistics, SynicPortMap, Vtl
from broker.clock import Clock
from broker.synic import RegisteredPort
from broker.turns import LiveTurns

MESSAGES, EVENTS, NOBODY = 0x11, 0x22, 0x33


class Port:
    """A message port that answers this, and an event port."""

    def __init__(self, answer: object = HvStatus.SUCCESS, work: Callable[[], Awaitable[object]] | None = None) -> None:
        self.answer = answer
        self.work = work
        self.flags: list[int] = []

    async def handle_message(self, message: bytes, trusted: bool) -> HvStatus:
        if self.work is not None:
            await self.work()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer  # type: ignore[return-value]

    async def handle_event(self, flag: int) -> None:
        if isinstance(self.answer, Exception):
            raise self.answer
        self.flags.append(flag)


def new_map() -> SynicPortMap:
    return SynicPortMap(LiveTurns(Clock(time.monotonic_ns)))


def registered(
    port_map: SynicPortMap, port: Port, minimum_vtl: Vtl = Vtl.VTL0
) -> tuple[RegisteredPort, RegisteredPort]:
    entries = (
        port_map.new_message_port(MESSAGES, minimum_vtl, port),
        port_map.new_event_port(EVENTS, minimum_vtl, port),
    )
    for entry in entries:
        port_map.insert(entry)
    return entries


async def test_statistics_tell_accepted_from_refused_by_status_and_from_failed() -> None:
    port_map, port = new_map(), Port()
    entry, event = registered(port_map, port, Vtl.VTL1)
    answers: list[object] = [
        *[HvStatus.SUCCESS] * 5,
        *[HvStatus.INSUFFICIENT_BUFFERS] * 4,
        *[HvStatus.INVALID_PARAMETER] * 3,
        *[HvStatus.OPERATION_DENIED] * 2,
        ValueError("handler"),
        0,
        None,
    ]
    for port.answer in answers:
        await port_map.handle_post_message(1, MESSAGES, False, b"")
    for _ in range(6):
        await port_map.handle_post_message(0, MESSAGES, False, b"")
    port.answer = HvStatus.SUCCESS
    for flag in range(3):
        await port_map.handle_signal_event(2, EVENTS, flag)
    await port_map.handle_signal_event(0, EVENTS, 9)
    for connection_id in (NOBODY, NOBODY, EVENTS):
        await port_map.handle_post_message(2, connection_id, False, b"")
    await port_map.handle_signal_event(2, MESSAGES, 0)
    await port_map.handle_signal_event(2, NOBODY, 0)
    statistics = port_map.statistics()
    assert statistics.unknown == 3
    assert statistics.wrong_kind == 2
    assert statistics.ports == {MESSAGES: entry.statistics(), EVENTS: event.statistics()}
    assert entry.statistics() == PortStatistics(
        kind="message",
        accepted=5,
        refused={
            HvStatus.INSUFFICIENT_BUFFERS: 4,
            HvStatus.INVALID_PARAMETER: 3,
            HvStatus.OPERATION_DENIED: 2 + 6,
        },
        failed=3,
        abandoned=0,
        in_flight=0,
    )
    assert event.statistics() == PortStatistics(
        kind="event", accepted=3, refused={HvStatus.OPERATION_DENIED: 1}, failed=0, abandoned=0, in_flight=0
    )


async def test_a_port_that_nobody_called_has_no_statistics_but_zeros() -> None:
    entry, _ = registered(new_map(), Port())
    assert entry.statistics() == PortStatistics(
        kind="message", accepted=0, refused={}, failed=0, abandoned=0, in_flight=0
    )


async def test_calls_in_flight_are_counted_while_they_run_and_abandoned_when_cancelled() -> None:
    port_map = new_map()
    entry, _ = registered(port_map, Port(work=anyio.sleep_forever))
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(port_map.handle_post_message, 0, MESSAGES, False, b"")
        await anyio.wait_all_tasks_blocked()
        assert (entry.in_flight, entry.statistics().in_flight) == (3, 3)
        group.cancel_scope.cancel()
    statistics = entry.statistics()
    assert (statistics.in_flight, statistics.accepted, statistics.abandoned) == (0, 0, 3)


async def test_an_event_handler_run_from_outside_is_counted_and_contained_as_one_that_is_dispatched() -> None:
    port = Port()
    _, entry = registered(new_map(), port)
    assert await entry.run_event_handler(7) is HvStatus.SUCCESS
    assert port.flags == [7]
    assert (entry.statistics().accepted, entry.in_flight) == (1, 0)
    port.answer = ValueError("broken")
    with capture_logs() as logs:
        assert await entry.run_event_handler(8) is HvStatus.OPERATION_FAILED
    assert (entry.statistics().accepted, entry.statistics().failed, entry.in_flight) == (1, 1, 0)
    (log,) = logs
    assert (log["event"], log["connection_id"], log["exc_info"]) == ("port_handler_failed", "0x00000022", port.answer)
    assert log["log_level"] == "error"


async def test_an_answer_that_is_no_status_is_logged_with_the_answer() -> None:
    port_map = new_map()
    registered(port_map, Port("yes"))
    with capture_logs() as logs:
        assert await port_map.handle_post_message(0, MESSAGES, False, b"") is HvStatus.OPERATION_FAILED
    assert logs == [
        {
            "event": "port_handler_answered_no_status",
            "connection_id": "0x00000011",
            "answer": "'yes'",
            "log_level": "error",
        }
    ]


@pytest.mark.parametrize("connection_id", [0, 1, 0xFFFF_FFFF])
def test_every_32_bit_connection_id_may_have_a_port(connection_id: int) -> None:
    port_map = new_map()
    port_map.insert(port_map.new_message_port(connection_id, Vtl.VTL0, Port()))
    found = port_map.find(connection_id)
    assert found is not None
    assert found.connection_id == connection_id
    with pytest.raises(ConnectionIdInUse, match=f"{connection_id:#010x}"):
        port_map.insert(port_map.new_event_port(connection_id, Vtl.VTL0, Port()))


@pytest.mark.parametrize("connection_id", [-1, 1 << 32])
def test_a_connection_id_of_more_than_32_bits_is_refused_in_a_sentence(connection_id: int) -> None:
    port_map = new_map()
    for new_port in (port_map.new_message_port, port_map.new_event_port):
        with pytest.raises(ValueError, match=rf"^a connection ID is 32 bits, {connection_id:#x} does not fit$"):
            new_port(connection_id, Vtl.VTL0, Port())


def test_a_port_is_found_and_removed_by_its_id_and_no_other() -> None:
    port_map = new_map()
    entry, event = registered(port_map, Port())
    assert (port_map.find(MESSAGES), port_map.find(EVENTS), port_map.find(NOBODY)) == (entry, event, None)
    assert entry.is_open
    assert port_map.remove(entry)
    assert not port_map.remove(entry)
    assert not entry.is_open
    assert event.is_open
    other = port_map.new_message_port(MESSAGES, Vtl.VTL0, Port())
    port_map.insert(other)
    assert not port_map.remove(entry)
    assert port_map.find(MESSAGES) is other
    port_map.close()
    assert (port_map.find(MESSAGES), port_map.find(EVENTS)) == (None, None)


@pytest.mark.parametrize(
    ("connection_id", "status", "words"),
    [
        (NOBODY, HvStatus.INVALID_CONNECTION_ID, "no port has this connection ID"),
        (NOBODY, HvStatus.INVALID_PARAMETER, "the payload is too long, or the message type is not for guests"),
        (NOBODY, HvStatus.NO_RESOURCES, ""),
        (EVENTS, HvStatus.INVALID_CONNECTION_ID, "the connection leads to an event port"),
        (EVENTS, HvStatus.INVALID_PORT_ID, "the connection leads to an event port"),
        (MESSAGES, HvStatus.INVALID_CONNECTION_ID, "the connection leads to a message port"),
        (MESSAGES, HvStatus.OPERATION_DENIED, "the port takes calls from VTL 2 up"),
        (MESSAGES, HvStatus.INSUFFICIENT_BUFFERS, "the port has no free buffer"),
        (MESSAGES, HvStatus.OPERATION_FAILED, "the port's handler failed"),
        (MESSAGES, HvStatus.INVALID_PARAMETER, "the payload is too long, or the message type is not for guests"),
        (MESSAGES, HvStatus.NO_RESOURCES, "the handler answered so"),
    ],
)
def test_a_refusal_is_explained_in_words(connection_id: int, status: HvStatus, words: str) -> None:
    port_map = new_map()
    registered(port_map, Port(), Vtl.VTL2)
    assert port_map.explain(connection_id, status) == words


async def test_the_steps_of_a_close_run_once_the_latest_first() -> None:
    steps: list[int] = []
    entry, _ = registered(new_map(), Port())
    for number in range(3):
        entry.on_close(lambda number=number: steps.append(number))  # type: ignore[misc]
    entry.close()
    await entry.aclose()
    assert steps == [2, 1, 0]


async def test_wait_finished_returns_with_the_next_call_that_ends() -> None:
    port_map, gate = new_map(), anyio.Event()
    entry, _ = registered(port_map, Port(work=gate.wait))
    ended = False

    async def wait() -> None:
        nonlocal ended
        await entry.wait_finished()
        ended = True

    async with anyio.create_task_group() as group:
        group.start_soon(port_map.handle_post_message, 0, MESSAGES, False, b"")
        group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        assert not ended
        gate.set()
    assert ended
