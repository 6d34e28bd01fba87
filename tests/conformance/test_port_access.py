"""The conformance suite of `SynicPortAccess`: every implementation in `accesses.py` keeps the contract in the same way.

What a backend can do is read from its row, never from its name. Tests marked `also_when_refused` run a second time with
a quarter of all posts refused. Where events travel through eventfds they arrive a little later, so tests wait for them.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, ExitStack
from functools import partial

import anyio
import anyio.lowlevel
import pytest

from broker import (
    BACKENDS,
    Backend,
    CalledFromOwnHandler,
    ConnectionIdInUse,
    GuestMessagePort,
    HvStatus,
    Message,
    MessageType,
    MonitorIdInUse,
    MonitorInfo,
    MonitorPageGpas,
    Msr,
    Partition,
    PartitionConfig,
    PortClosed,
    PortHandle,
    SynicMessage,
    SynicUnsupported,
    Vtl,
    receive_events,
    receive_messages,
    serve_messages,
)
from channels.faults import RefusingAccess

from .accesses import IMPLEMENTATIONS, Environment, Implementation, over, refusing

VTL0 = Vtl.VTL0
PORT, OTHER_PORT, THIRD_PORT = 0x0100_0001, 0x0100_0002, 0x0100_0003
SINT = 2
MONITOR_PAGE = 0x8000
NOWHERE = 99
"""A processor that does not exist."""

also_when_refused = over([*IMPLEMENTATIONS, *map(refusing, IMPLEMENTATIONS)])
kinds = pytest.mark.parametrize("kind", ["message", "event"])


def has_host_event_ports(backend: Backend) -> bool:
    return backend.host_event_ports != "none"


def has_monitors(backend: Backend) -> bool:
    return backend.monitor != "none"


def dispatches_events(backend: Backend) -> bool:
    """Without an eventfd of the consumer's, the guest's signal runs the handler and gets its outcome as the status."""
    return backend.host_event_ports != "always"


@pytest.fixture(params=IMPLEMENTATIONS, ids=lambda implementation: implementation.name)
def implementation(request: pytest.FixtureRequest) -> Implementation:
    chosen: Implementation = request.param
    return chosen


@pytest.fixture
async def environment(implementation: Implementation) -> AsyncIterator[Environment]:
    async with implementation.open() as environment:
        yield environment


class Port:
    """A port of either kind: notes what it is called with, then does what it was given, if anything."""

    def __init__(
        self, handler: Callable[[], Awaitable[object]] | None = None, answer: object = HvStatus.SUCCESS
    ) -> None:
        self.calls: list[object] = []
        self._handler = handler
        self._answer = answer
        self._called = anyio.Event()

    async def handle_message(self, message: bytes, trusted: bool) -> HvStatus:
        await self._handle((message, trusted))
        return self._answer  # type: ignore[return-value]

    async def handle_event(self, flag: int) -> None:
        await self._handle(flag)

    async def wait_called(self, call: object) -> None:
        while call not in self.calls:
            await self._called.wait()

    async def wait_any_call(self) -> None:
        while not self.calls:
            await self._called.wait()

    async def _handle(self, call: object) -> None:
        self.calls.append(call)
        self._called.set()
        self._called = anyio.Event()
        if self._handler is not None:
            await self._handler()


class Crash(Exception):
    """What the tests' own code raises."""


async def crash() -> None:
    raise Crash


async def others_run() -> None:
    """Let every task that can go on do so."""
    for _ in range(100):
        await anyio.lowlevel.checkpoint()


async def add(
    environment: Environment, kind: str, port: Port, connection_id: int = PORT, vtl: Vtl = VTL0
) -> PortHandle:
    access = environment.access
    return await (access.add_message_port if kind == "message" else access.add_event_port)(connection_id, vtl, port)


async def call(environment: Environment, kind: str, connection_id: int = PORT, vp: int = 0) -> HvStatus:
    return await (environment.post if kind == "message" else environment.signal)(connection_id, vp=vp)


# what the implementation says of itself


async def test_it_says_what_its_backend_can_do(environment: Environment) -> None:
    assert environment.access.prefer_os_events == environment.backend.prefer_os_events
    assert (environment.access.monitor_support is not None) == has_monitors(environment.backend)


async def test_a_backend_without_a_synic_says_so_when_it_is_asked_for() -> None:
    without = [backend for backend in BACKENDS.values() if backend.synic == "none"]
    assert [backend.name for backend in without] == ["kvm-arm64"]
    for backend in without:
        async with Partition(PartitionConfig(backend=backend.name)) as partition:
            with pytest.raises(SynicUnsupported, match=rf"{backend.name}.*choose another backend"):
                partition.synic()


def test_the_wrapper_refuses_about_a_quarter() -> None:
    access = RefusingAccess(None, 1)  # type: ignore[arg-type]
    assert 200 < sum(access.refuses() for _ in range(1000)) < 300


# message ports


@pytest.mark.item(91, 92)
@pytest.mark.parametrize("status", [HvStatus.SUCCESS, HvStatus.INSUFFICIENT_BUFFERS, HvStatus.ACCESS_DENIED])
async def test_the_handlers_answer_is_the_status_of_the_call(environment: Environment, status: HvStatus) -> None:
    port = Port(answer=status)
    await environment.access.add_message_port(PORT, VTL0, port)
    assert await environment.post(PORT, b"hello") is status
    assert port.calls == [(b"hello", False)]


@pytest.mark.item(93, 94, 95)
@also_when_refused
async def test_the_handler_gets_the_payload_of_up_to_240_bytes(environment: Environment) -> None:
    port = Port()
    await environment.access.add_message_port(PORT, VTL0, port)
    payloads = [b"", b"\x00", bytes(range(240))]
    assert [await environment.post(PORT, payload) for payload in payloads] == [HvStatus.SUCCESS] * 3
    assert await environment.post(PORT, bytes(241)) is HvStatus.INVALID_PARAMETER
    assert port.calls == [(payload, False) for payload in payloads]


@pytest.mark.item(83, 84)
@kinds
async def test_an_id_without_a_port_is_an_invalid_connection(environment: Environment, kind: str) -> None:
    assert await call(environment, kind) is HvStatus.INVALID_CONNECTION_ID


@pytest.mark.item(86, 87)
@kinds
async def test_a_call_of_the_other_kind_is_an_invalid_connection(environment: Environment, kind: str) -> None:
    port = Port()
    await add(environment, kind, port)
    other_kind = "event" if kind == "message" else "message"
    assert await call(environment, other_kind) is HvStatus.INVALID_CONNECTION_ID
    assert not port.calls


@pytest.mark.item(98, 99)
@pytest.mark.parametrize("second_kind", ["message", "event"])
@kinds
@also_when_refused
async def test_an_id_takes_one_port_of_either_kind_and_goes_on_serving_it(
    environment: Environment, kind: str, second_kind: str
) -> None:
    first, second = Port(), Port()
    await add(environment, kind, first)
    with pytest.raises(ConnectionIdInUse, match="0x01000001") as caught:
        await add(environment, second_kind, second)
    assert caught.value.connection_id == PORT
    assert await call(environment, kind) is HvStatus.SUCCESS
    await first.wait_any_call()
    if second_kind != kind:
        assert await call(environment, second_kind) is HvStatus.INVALID_CONNECTION_ID
    assert not second.calls


@kinds
@pytest.mark.parametrize("connection_id", [-1, 1 << 32])
async def test_an_id_has_32_bits(environment: Environment, kind: str, connection_id: int) -> None:
    with pytest.raises(ValueError, match="32 bits"):
        await add(environment, kind, Port(), connection_id)
    await add(environment, kind, Port(), 0xFFFF_FFFF)
    assert await call(environment, kind, 0xFFFF_FFFF) is HvStatus.SUCCESS


@pytest.mark.item(100)
@kinds
@also_when_refused
async def test_close_unregisters_at_once_and_closing_again_does_nothing(environment: Environment, kind: str) -> None:
    old, new = Port(), Port()
    handle = await add(environment, kind, old)
    handle.close()
    assert await call(environment, kind) is HvStatus.INVALID_CONNECTION_ID
    await add(environment, kind, new)
    handle.close()
    await handle.aclose()
    assert await call(environment, kind) is HvStatus.SUCCESS
    await new.wait_any_call()
    assert not old.calls


@kinds
async def test_leaving_the_block_of_a_handle_closes_the_port(environment: Environment, kind: str) -> None:
    with await add(environment, kind, Port()):
        pass
    assert await call(environment, kind) is HvStatus.INVALID_CONNECTION_ID
    async with await add(environment, kind, Port()):
        assert await call(environment, kind) is HvStatus.SUCCESS
    assert await call(environment, kind) is HvStatus.INVALID_CONNECTION_ID


@pytest.mark.item(104)
@kinds
@also_when_refused
async def test_aclose_unregisters_at_once_and_waits_for_the_handler_in_flight(
    environment: Environment, kind: str
) -> None:
    closing, may_end, order = anyio.Event(), anyio.Event(), []

    async def handle() -> None:
        await may_end.wait()
        await others_run()
        order.append("handler ended")

    async def close() -> None:
        closing.set()
        await handle_of_port.aclose()
        order.append("closed")

    port = Port(handle)
    handle_of_port = await add(environment, kind, port)
    async with anyio.create_task_group() as group:
        group.start_soon(partial(call, environment, kind, vp=1))
        await port.wait_any_call()
        group.start_soon(close)
        await closing.wait()
        assert await call(environment, kind) is HvStatus.INVALID_CONNECTION_ID
        may_end.set()
    assert order == ["handler ended", "closed"]


@kinds
async def test_a_cancelled_aclose_leaves_the_port_unregistered(environment: Environment, kind: str) -> None:
    may_end = anyio.Event()
    port = Port(may_end.wait)
    handle = await add(environment, kind, port)
    async with anyio.create_task_group() as group:
        group.start_soon(partial(call, environment, kind, vp=1))
        await port.wait_any_call()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await handle.aclose()
        assert scope.cancelled_caught
        assert await call(environment, kind) is HvStatus.INVALID_CONNECTION_ID
        may_end.set()


@kinds
@also_when_refused
async def test_aclose_from_the_own_handler_raises_and_closes(environment: Environment, kind: str) -> None:
    errors: list[Exception] = []
    handled = anyio.Event()

    async def close_myself() -> None:
        await anyio.lowlevel.checkpoint()
        try:
            await handle.aclose()
        except CalledFromOwnHandler as error:
            errors.append(error)
        handled.set()

    handle = await add(environment, kind, Port(close_myself))
    assert await call(environment, kind) is HvStatus.SUCCESS
    await handled.wait()
    assert len(errors) == 1
    assert await call(environment, kind) is HvStatus.INVALID_CONNECTION_ID


@pytest.mark.item(102, 103)
@kinds
@also_when_refused
async def test_a_handler_may_close_its_port_and_register_a_successor(environment: Environment, kind: str) -> None:
    handled = anyio.Event()
    successor = Port()

    async def make_way() -> None:
        handle.close()
        await add(environment, kind, successor)
        handled.set()

    handle = await add(environment, kind, Port(make_way))
    assert await call(environment, kind) is HvStatus.SUCCESS
    await handled.wait()
    assert not successor.calls
    assert await call(environment, kind) is HvStatus.SUCCESS
    await successor.wait_any_call()


@kinds
async def test_a_handler_may_aclose_another_port(environment: Environment, kind: str) -> None:
    handled = anyio.Event()

    async def close_other() -> None:
        await other.aclose()
        handled.set()

    other = await add(environment, kind, Port(), OTHER_PORT)
    await add(environment, kind, Port(close_other))
    assert await call(environment, kind) is HvStatus.SUCCESS
    await handled.wait()
    assert await call(environment, kind, OTHER_PORT) is HvStatus.INVALID_CONNECTION_ID


async def test_another_processor_may_enter_a_handler_that_is_suspended(environment: Environment) -> None:
    both_in = anyio.Event()

    async def wait_for_both() -> None:
        if len(port.calls) == 2:
            both_in.set()
        await both_in.wait()

    port = Port(wait_for_both)
    await environment.access.add_message_port(PORT, VTL0, port)
    async with anyio.create_task_group() as group:
        for vp in (0, 1):
            group.start_soon(partial(environment.post, PORT, bytes([vp]), vp=vp))
    assert sorted(port.calls) == [(b"\x00", False), (b"\x01", False)]


@kinds
@also_when_refused
async def test_a_handlers_exception_is_contained_and_all_ports_go_on(environment: Environment, kind: str) -> None:
    failing, healthy = Port(crash), Port()
    await add(environment, kind, failing)
    await add(environment, kind, healthy, OTHER_PORT)
    is_dispatched = kind == "message" or dispatches_events(environment.backend)
    for times in (1, 2):
        failed = HvStatus.OPERATION_FAILED if is_dispatched else HvStatus.SUCCESS
        assert await call(environment, kind) is failed
        while len(failing.calls) < times:
            await anyio.lowlevel.checkpoint()
        assert await call(environment, kind, OTHER_PORT) is HvStatus.SUCCESS
        await healthy.wait_any_call()


@pytest.mark.parametrize("answer", [None, 0, True, 0x13, "SUCCESS"])
async def test_an_answer_that_is_no_status_is_a_failure(environment: Environment, answer: object) -> None:
    await environment.access.add_message_port(PORT, VTL0, Port(answer=answer))
    assert await environment.post(PORT) is HvStatus.OPERATION_FAILED


@pytest.mark.item(88, 89, 90)
@pytest.mark.parametrize("minimum", list(Vtl))
@kinds
@also_when_refused
async def test_a_caller_below_the_minimum_vtl_is_denied(environment: Environment, kind: str, minimum: Vtl) -> None:
    port = Port()
    await add(environment, kind, port, vtl=minimum)
    right, wrong = (environment.post, environment.signal)[:: 1 if kind == "message" else -1]
    for vtl in environment.backend.vtls:
        port.calls.clear()
        assert await wrong(PORT, vtl=vtl) is HvStatus.INVALID_CONNECTION_ID
        if vtl >= minimum:
            assert await right(PORT, vtl=vtl) is HvStatus.SUCCESS
            await port.wait_any_call()
        else:
            assert await right(PORT, vtl=vtl) is HvStatus.OPERATION_DENIED
            assert not port.calls


@pytest.mark.item(105)
@also_when_refused
async def test_trusted_reaches_the_handler_only_where_the_backend_has_trusted_paths(environment: Environment) -> None:
    port = Port()
    await environment.access.add_message_port(PORT, VTL0, port)
    for trusted in (True, False):
        assert await environment.post(PORT, b"", trusted=trusted) is HvStatus.SUCCESS
    assert port.calls == [(b"", environment.backend.trusted_posts), (b"", False)]


# event ports


@pytest.mark.item(106)
@pytest.mark.parametrize("flag", [0, 7, 2047, 0xFFFF])
async def test_the_handler_gets_the_flag_number_unchecked(environment: Environment, flag: int) -> None:
    port = Port()
    await environment.access.add_event_port(PORT, VTL0, port)
    assert await environment.signal(PORT, flag) is HvStatus.SUCCESS
    await port.wait_called(flag)
    assert port.calls == [flag]


async def test_n_signals_run_the_handler_1_to_n_times(environment: Environment) -> None:
    port = Port()
    await environment.access.add_event_port(PORT, VTL0, port)
    for flag in [0] * 10 + [1]:
        assert await environment.signal(PORT, flag) is HvStatus.SUCCESS
    await port.wait_called(1)
    assert 1 <= port.calls.count(0) <= 10
    if dispatches_events(environment.backend):
        assert port.calls == [0] * 10 + [1]


async def test_n_signals_give_1_to_n_wake_ups_and_the_last_is_never_lost(environment: Environment) -> None:
    count, produced, consumed, wake_ups = 200, 0, 0, 0

    async def guest() -> None:
        nonlocal produced
        while produced < count:
            produced += 1
            await environment.signal(PORT)

    async with receive_events(environment.access, PORT) as flags, anyio.create_task_group() as group:
        group.start_soon(guest)
        while consumed < count:
            assert await flags.receive() == {0}
            consumed = produced
            wake_ups += 1
    assert 1 <= wake_ups <= count


async def test_receive_events_yields_the_set_of_flags_since_the_last_look(environment: Environment) -> None:
    wanted = {0, 5, 2047}
    async with receive_events(environment.access, PORT) as flags:
        for flag in (5, 0, 2047, 5):
            await environment.signal(PORT, flag)
        seen: set[int] = set()
        async for step in flags:
            assert step
            assert step <= wanted
            seen |= step
            if seen == wanted:
                break
    assert await environment.signal(PORT) is HvStatus.INVALID_CONNECTION_ID
    with pytest.raises(PortClosed):
        await flags.receive()


@pytest.mark.item(107)
async def test_flag_0_signals_the_consumers_eventfd_where_the_backend_has_host_event_ports(
    environment: Environment, eventfd: Callable[[], int]
) -> None:
    port, fd = Port(), eventfd()
    await environment.access.add_event_port(PORT, VTL0, port, os_event=fd)
    assert await environment.signal(PORT) is HvStatus.SUCCESS
    if has_host_event_ports(environment.backend):
        await anyio.wait_readable(fd)
        assert os.eventfd_read(fd) == 1
    else:
        await port.wait_called(0)
    assert await environment.signal(PORT, 3) is HvStatus.SUCCESS  # an eventfd cannot carry it
    await port.wait_called(3)
    assert port.calls == ([3] if has_host_event_ports(environment.backend) else [0, 3])
    assert not is_signalled(fd)


@over(IMPLEMENTATIONS, has_host_event_ports)
async def test_the_eventfd_stays_the_consumers_who_may_close_its_own(
    environment: Environment, eventfd: Callable[[], int]
) -> None:
    fd = eventfd()
    other_end = os.dup(fd)
    with ExitStack() as stack:
        stack.callback(os.close, other_end)
        handle = await environment.access.add_event_port(PORT, VTL0, Port(), os_event=other_end)
        handle.close()
        assert await environment.signal(PORT) is HvStatus.INVALID_CONNECTION_ID
        os.fstat(other_end)  # still open
        await environment.access.add_event_port(PORT, VTL0, Port(), os_event=other_end)
    assert await environment.signal(PORT) is HvStatus.SUCCESS
    await anyio.wait_readable(fd)
    assert os.eventfd_read(fd) == 1


@pytest.mark.item(108)
@over(IMPLEMENTATIONS, has_host_event_ports)
async def test_a_descriptor_that_is_no_eventfd_is_refused_and_registers_nothing(environment: Environment) -> None:
    reader, writer = os.pipe()
    os.close(writer)
    try:
        for fd in (reader, writer, -1):
            with pytest.raises(ValueError, match="eventfd"):
                await environment.access.add_event_port(PORT, VTL0, Port(), MonitorInfo(0), os_event=fd)
    finally:
        os.close(reader)
    assert await environment.signal(PORT) is HvStatus.INVALID_CONNECTION_ID
    port = Port()
    await environment.access.add_event_port(PORT, VTL0, port, MonitorInfo(0))
    assert await environment.signal(PORT) is HvStatus.SUCCESS
    await port.wait_called(0)


@pytest.mark.item(109)
@over(IMPLEMENTATIONS, has_host_event_ports)
async def test_a_duplicate_lets_go_of_its_eventfd_and_the_first_stays_live(
    environment: Environment, eventfd: Callable[[], int]
) -> None:
    first, second = eventfd(), eventfd()
    await environment.access.add_event_port(PORT, VTL0, Port(), os_event=first)
    with pytest.raises(ConnectionIdInUse):
        await environment.access.add_event_port(PORT, VTL0, Port(), os_event=second)
    assert await environment.signal(PORT) is HvStatus.SUCCESS
    await anyio.wait_readable(first)
    assert not is_signalled(second)


async def test_close_drops_the_signals_that_are_undelivered(environment: Environment) -> None:
    old, new = Port(), Port()
    handle = await environment.access.add_event_port(PORT, VTL0, old)
    await environment.signal(PORT, 1)
    handle.close()
    calls_at_close = list(old.calls)
    await environment.access.add_event_port(PORT, VTL0, new)
    await environment.signal(PORT, 2)
    await new.wait_called(2)
    assert new.calls == [2]
    assert old.calls == calls_at_close


@pytest.fixture
def eventfd() -> AsyncIterator[Callable[[], int]]:
    with ExitStack() as stack:

        def make() -> int:
            fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            stack.callback(os.close, fd)
            return fd

        yield make


def is_signalled(fd: int) -> bool:
    try:
        return os.eventfd_read(fd) > 0
    except BlockingIOError:
        return False


# ready-made message ports


@also_when_refused
async def test_a_mailbox_holds_16_and_refuses_the_17th_until_a_batch_was_taken(environment: Environment) -> None:
    async with receive_messages(environment.access, PORT) as inbox:
        assert [await environment.post(PORT, bytes([n])) for n in range(16)] == [HvStatus.SUCCESS] * 16
        assert await environment.post(PORT, b"late") is HvStatus.INSUFFICIENT_BUFFERS
        assert await inbox.receive_batch() == [Message(bytes([n]), trusted=False) for n in range(16)]
        assert await environment.post(PORT, b"again") is HvStatus.SUCCESS
        assert await inbox.receive_batch() == [Message(b"again", trusted=False)]


async def test_the_depth_of_a_mailbox_is_at_least_1_and_the_callers_to_choose(environment: Environment) -> None:
    with pytest.raises(ValueError, match="at least one"):
        async with receive_messages(environment.access, PORT, depth=0):
            pass
    async with receive_messages(environment.access, PORT, depth=1, minimum_vtl=VTL0):
        assert await environment.post(PORT) is HvStatus.SUCCESS
        assert await environment.post(PORT) is HvStatus.INSUFFICIENT_BUFFERS


async def test_the_ready_made_ports_pass_the_minimum_vtl_on(environment: Environment) -> None:
    async def handle(message: Message) -> None:
        raise Crash

    async with (
        receive_messages(environment.access, PORT, minimum_vtl=Vtl.VTL1),
        serve_messages(environment.access, OTHER_PORT, handle, minimum_vtl=Vtl.VTL1),
        receive_events(environment.access, THIRD_PORT, minimum_vtl=Vtl.VTL1),
    ):
        assert await environment.post(PORT) is HvStatus.OPERATION_DENIED
        assert await environment.post(OTHER_PORT) is HvStatus.OPERATION_DENIED
        assert await environment.signal(THIRD_PORT) is HvStatus.OPERATION_DENIED


@also_when_refused
async def test_a_mailbox_is_iterated_in_the_order_of_the_posts(environment: Environment) -> None:
    sent = [bytes([n]) for n in range(100)]

    async def guest() -> None:
        for payload in sent:
            while await environment.post(PORT, payload) is HvStatus.INSUFFICIENT_BUFFERS:
                await anyio.lowlevel.checkpoint()

    received = []
    async with receive_messages(environment.access, PORT) as inbox, anyio.create_task_group() as group:
        group.start_soon(guest)
        async for message in inbox:
            received.append(message.payload)
            if len(received) == len(sent):
                break
    assert received == sent


async def test_leaving_the_block_drops_what_waits_and_unregisters(environment: Environment) -> None:
    async with receive_messages(environment.access, PORT) as inbox:
        await environment.post(PORT)
    assert await environment.post(PORT) is HvStatus.INVALID_CONNECTION_ID
    assert [message async for message in inbox] == []
    with pytest.raises(PortClosed):
        await inbox.receive_batch()


@also_when_refused
async def test_serve_messages_hands_over_one_message_at_a_time_in_order(environment: Environment) -> None:
    sent = [bytes([n]) for n in range(16)]
    received: list[bytes] = []
    all_there = anyio.Event()

    async def handle(message: Message) -> None:
        await anyio.lowlevel.checkpoint()
        received.append(message.payload)
        if len(received) == len(sent):
            all_there.set()

    async with serve_messages(environment.access, PORT, handle):
        for payload in sent:
            assert await environment.post(PORT, payload) is HvStatus.SUCCESS
        await all_there.wait()
    assert received == sent
    assert await environment.post(PORT) is HvStatus.INVALID_CONNECTION_ID


@also_when_refused
async def test_an_exception_of_the_served_handler_ends_the_block_unwrapped(environment: Environment) -> None:
    async def handle(message: Message) -> None:
        raise Crash

    async def serve() -> None:
        async with serve_messages(environment.access, PORT, handle):
            assert await environment.post(PORT) is HvStatus.SUCCESS
            await anyio.sleep_forever()

    with pytest.raises(Crash):
        await serve()
    assert await environment.post(PORT) is HvStatus.INVALID_CONNECTION_ID


async def test_an_exception_of_the_body_comes_out_unwrapped_and_the_port_is_gone(environment: Environment) -> None:
    async def handle(message: Message) -> None:
        return

    ready_made = (
        receive_messages(environment.access, PORT),
        serve_messages(environment.access, PORT, handle),
        receive_events(environment.access, PORT),
    )
    for block in ready_made:
        with pytest.raises(Crash):
            async with block:
                raise Crash
        assert await environment.post(PORT) is HvStatus.INVALID_CONNECTION_ID


async def test_a_ready_made_port_at_a_used_id_is_refused(environment: Environment) -> None:
    async with receive_messages(environment.access, PORT):
        for block in (receive_messages, receive_events):
            with pytest.raises(ConnectionIdInUse):
                async with block(environment.access, PORT):
                    pass
        assert await environment.post(PORT) is HvStatus.SUCCESS


@pytest.mark.item(101)
async def test_the_end_of_the_partition_ends_iterations_and_closes_ports(implementation: Implementation) -> None:
    ended: list[str] = []

    async def consume(block: AbstractAsyncContextManager[AsyncIterator[object]], *, task_status: object) -> None:
        async with block as steps:
            task_status.started()  # type: ignore[attr-defined]
            async for _ in steps:
                raise Crash
            ended.append(type(steps).__name__)

    async with anyio.create_task_group() as group, implementation.open() as environment:
        await group.start(consume, receive_messages(environment.access, PORT))
        await group.start(consume, receive_events(environment.access, OTHER_PORT))
        handle = await environment.access.add_message_port(THIRD_PORT, VTL0, Port())
    assert sorted(ended) == ["EventFlags", "MessageInbox"]
    handle.close()
    await handle.aclose()


# guest message ports


def messages(environment: Environment, vp: int = 0) -> AbstractAsyncContextManager[AsyncIterator[SynicMessage]]:
    return environment.vp(vp).guest_synic(VTL0).messages(SINT)


async def payloads(inbox: AsyncIterator[SynicMessage], count: int) -> list[bytes]:
    return [(await anext(inbox)).payload for _ in range(count)]


async def guest_port(environment: Environment, vp: int = 0) -> GuestMessagePort:
    return await environment.access.new_guest_message_port(VTL0, vp, SINT)


FULL = [bytes([n]) for n in range(17)]
"""What fits towards a guest that takes nothing: one message in the slot, 16 in the queue."""


def fill(environment: Environment, port: GuestMessagePort) -> None:
    assert all(environment.try_post(port, payload) for payload in FULL)


@pytest.mark.item(46)
@also_when_refused
async def test_messages_arrive_whole_and_in_order(environment: Environment) -> None:
    sent = [(MessageType.CHANNEL, b""), (7, bytes(range(240))), (0xFFFF_FFFF, b"last")]
    port = await guest_port(environment)
    async with messages(environment) as inbox:
        for message_type, payload in sent:
            assert environment.try_post(port, payload, message_type)
        for message_type, payload in sent:
            message = await anext(inbox)
            assert (message.message_type, message.payload) == (message_type, payload)


async def test_a_message_is_as_it_was_when_it_was_posted(environment: Environment) -> None:
    port = await guest_port(environment)
    payload = bytearray(b"before")
    async with messages(environment) as inbox:
        assert port.try_post_message(1, payload)
        assert port.try_post_message(1, payload)
        payload[:] = b"after!"
        assert await payloads(inbox, 2) == [b"before", b"before"]


@pytest.mark.item(64)
@also_when_refused
async def test_a_slot_and_a_queue_of_16_fill_up_and_a_taken_message_makes_room(environment: Environment) -> None:
    port = await guest_port(environment)
    async with messages(environment) as inbox:
        fill(environment, port)
        assert not environment.try_post(port, b"too many")
        assert await payloads(inbox, 1) == FULL[:1]
        assert environment.try_post(port, b"room again")
        assert not environment.try_post(port, b"too many")
        assert await payloads(inbox, 17) == [*FULL[1:], b"room again"]


@also_when_refused
async def test_post_message_waits_for_room_and_its_turn(environment: Environment) -> None:
    port, other = await guest_port(environment), await guest_port(environment)
    posted = []

    async def post(payload: bytes) -> None:
        await port.post_message(1, payload)
        posted.append(payload)

    async with messages(environment) as inbox, anyio.create_task_group() as group:
        fill(environment, port)
        for payload in (b"one", b"two"):
            group.start_soon(post, payload)
            await others_run()
        assert not posted
        assert not environment.try_post(other, b"may not overtake")
        assert await payloads(inbox, 19) == [*FULL, b"one", b"two"]
    assert sorted(posted) == [b"one", b"two"]


async def test_many_messages_arrive_in_order_through_post_message(environment: Environment) -> None:
    port = await guest_port(environment)
    sent = [bytes([n]) for n in range(100)]

    async def host() -> None:
        for payload in sent:
            await port.post_message(1, payload)

    async with messages(environment) as inbox, anyio.create_task_group() as group:
        group.start_soon(host)
        assert await payloads(inbox, 100) == sent


async def test_a_cancelled_post_message_posts_nothing(environment: Environment) -> None:
    port = await guest_port(environment)
    async with messages(environment) as inbox:
        fill(environment, port)
        async with anyio.create_task_group() as group:
            group.start_soon(port.post_message, 1, b"cancelled")
            await others_run()
            group.cancel_scope.cancel()
        assert await payloads(inbox, 1) == FULL[:1]
        assert port.try_post_message(1, b"posted")
        assert await payloads(inbox, 17) == [*FULL[1:], b"posted"]


@also_when_refused
async def test_close_lets_queued_messages_arrive_and_fails_those_who_wait(environment: Environment) -> None:
    port, other = await guest_port(environment), await guest_port(environment)
    failed = []

    async def post(payload: bytes) -> None:
        with pytest.raises(PortClosed):
            await port.post_message(1, payload)
        failed.append(payload)

    async with messages(environment) as inbox:
        fill(environment, port)
        async with anyio.create_task_group() as group:
            for payload in (b"one", b"two"):
                group.start_soon(post, payload)
            await others_run()
            port.close()
            port.close()
        assert sorted(failed) == [b"one", b"two"]
        with pytest.raises(PortClosed):
            environment.try_post(port, b"closed")
        with pytest.raises(PortClosed):
            await port.post_message(1, b"closed")
        assert await payloads(inbox, 1) == FULL[:1]
        assert environment.try_post(other, b"from another port")
        assert await payloads(inbox, 17) == [*FULL[1:], b"from another port"]


async def test_the_end_of_the_partition_fails_those_who_wait_to_post(implementation: Implementation) -> None:
    failed = anyio.Event()

    async def post(port: GuestMessagePort) -> None:
        with pytest.raises(PortClosed):
            await port.post_message(1, b"waiting")
        failed.set()

    async with anyio.create_task_group() as group:
        async with implementation.open() as environment, messages(environment):
            port = await guest_port(environment)
            fill(environment, port)
            group.start_soon(post, port)
            await others_run()
            assert not failed.is_set()
        await failed.wait()


@pytest.mark.item(63)
@also_when_refused
async def test_set_target_vp_moves_later_posts_only(environment: Environment) -> None:
    port = await guest_port(environment)
    async with messages(environment, 0) as first, messages(environment, 1) as second:
        fill(environment, port)
        async with anyio.create_task_group() as group:
            group.start_soon(port.post_message, 1, b"waits at 0")
            await others_run()
            await port.set_target_vp(1)
            assert environment.try_post(port, b"to 1")
            assert await payloads(second, 1) == [b"to 1"]
            assert await payloads(first, 18) == [*FULL, b"waits at 0"]


@pytest.mark.item(62)
@also_when_refused
async def test_messages_for_an_unknown_processor_are_dropped_as_if_posted(environment: Environment) -> None:
    port = await guest_port(environment, NOWHERE)
    assert all(environment.try_post(port, b"") for _ in range(40))
    await port.post_message(1, b"")
    await port.set_target_vp(0)
    async with messages(environment) as inbox:
        assert environment.try_post(port, b"found")
        assert await payloads(inbox, 1) == [b"found"]


@pytest.mark.parametrize(
    ("message_type", "payload"),
    [(1, bytes(241)), (0, b""), (-1, b""), (1 << 32, b"")],
    ids=["241", "0", "-1", "33 bits"],
)
async def test_a_message_that_fits_no_slot_is_a_value_error(
    environment: Environment, message_type: int, payload: bytes
) -> None:
    port = await guest_port(environment)
    with pytest.raises(ValueError, match=r"240 bytes|message type"):
        port.try_post_message(message_type, payload)
    with pytest.raises(ValueError, match=r"240 bytes|message type"):
        await port.post_message(message_type, payload)


@pytest.mark.parametrize("sint", [-1, 16])
async def test_a_guest_port_needs_a_sint_that_exists(environment: Environment, sint: int) -> None:
    with pytest.raises(ValueError, match=f"SINT {sint} does not exist"):
        await environment.access.new_guest_message_port(VTL0, 0, sint)
    with pytest.raises(ValueError, match=f"SINT {sint} does not exist"):
        await environment.access.new_guest_event_port(0, VTL0, 0, sint, 0)


# guest event ports


def events(environment: Environment, vp: int = 0) -> AbstractAsyncContextManager[AsyncIterator[set[int]]]:
    return environment.vp(vp).guest_synic(VTL0).events(SINT)


async def flags_page(environment: Environment, vp: int = 0) -> bytes:
    gpa = await environment.vp(vp).read_msr(Msr.SIEFP) & ~0xFFF
    return environment.vp(vp).guest_synic(VTL0).memory.read(gpa, 4096)


@pytest.mark.parametrize("flag", [-1, 2048])
async def test_an_event_flag_is_0_to_2047(environment: Environment, flag: int) -> None:
    with pytest.raises(ValueError, match=f"event flag {flag} does not exist"):
        await environment.access.new_guest_event_port(0, VTL0, 0, SINT, flag)


@pytest.mark.item(67, 70)
@pytest.mark.parametrize(("flag", "byte", "value"), [(0, 512, 0x01), (13, 513, 0x20), (2047, 767, 0x80)])
async def test_deliver_sets_one_flag_in_the_page_and_interrupts(
    environment: Environment, flag: int, byte: int, value: int
) -> None:
    port = await environment.access.new_guest_event_port(0, VTL0, 0, SINT, flag)
    expected = bytearray(4096)
    expected[byte] = value
    async with events(environment):
        port.interrupt().deliver()
        if environment.backend.guest_events == "function":
            assert await flags_page(environment) == expected
        await environment.vp(0).wait_for_interrupt()
        assert await flags_page(environment) == expected


async def test_n_deliveries_give_1_to_n_wake_ups_and_the_last_is_never_lost(environment: Environment) -> None:
    count, produced, consumed = 200, 0, 0
    port = await environment.access.new_guest_event_port(0, VTL0, 0, SINT, 5)

    async def host() -> None:
        nonlocal produced
        interrupt = port.interrupt()
        while produced < count:
            produced += 1
            interrupt.deliver()
            await anyio.lowlevel.checkpoint()

    async with events(environment) as flags, anyio.create_task_group() as group:
        group.start_soon(host)
        while consumed < count:
            assert await anext(flags) == {5}
            consumed = produced


async def test_the_interrupt_has_an_eventfd_where_the_backend_uses_them(environment: Environment) -> None:
    port = await environment.access.new_guest_event_port(0, VTL0, 0, SINT, 5)
    fd = port.interrupt().event()
    assert (fd is not None) == (environment.backend.guest_events == "eventfd")
    assert port.interrupt().event() == fd
    async with events(environment) as flags, port.interrupt().event_or_proxy() as event:
        os.eventfd_write(event, 1)
        assert await anext(flags) == {5}


@pytest.mark.item(80)
async def test_an_interrupt_made_earlier_follows_set_target_vp(environment: Environment) -> None:
    port = await environment.access.new_guest_event_port(0, VTL0, 0, SINT, 5)
    interrupt = port.interrupt()
    async with events(environment, 0) as first, events(environment, 1) as second:
        interrupt.deliver()
        assert await anext(first) == {5}
        await port.set_target_vp(1)
        interrupt.clone().deliver()
        assert await anext(second) == {5}
        assert await flags_page(environment, 0) == bytes(4096)


@pytest.mark.item(73)
async def test_an_unknown_processor_is_not_signalled(environment: Environment) -> None:
    lost = await environment.access.new_guest_event_port(0, VTL0, NOWHERE, SINT, 5)
    good = await environment.access.new_guest_event_port(0, VTL0, 0, SINT, 6)
    async with events(environment) as flags:
        for _ in range(2):
            lost.interrupt().deliver()
            good.interrupt().deliver()
            assert await anext(flags) == {6}
        await lost.set_target_vp(0)
        lost.interrupt().deliver()
        assert await anext(flags) == {5}


async def test_a_closed_guest_event_port_does_nothing(environment: Environment) -> None:
    closed = await environment.access.new_guest_event_port(0, VTL0, 0, SINT, 5)
    good = await environment.access.new_guest_event_port(0, VTL0, 0, SINT, 6)
    interrupt = closed.interrupt()
    async with events(environment) as flags:
        await others_run()
        closed.close()
        closed.close()
        for _ in range(2):
            interrupt.deliver()
            good.interrupt().deliver()
            assert await anext(flags) == {6}


async def test_a_guest_event_port_can_be_closed_and_made_anew(environment: Environment) -> None:
    async with events(environment) as flags:
        for flag in range(1, 6):
            port = await environment.access.new_guest_event_port(0, VTL0, 0, SINT, flag)
            await others_run()
            port.interrupt().deliver()
            assert await anext(flags) == {flag}
            await others_run()
            port.close()


@pytest.mark.item(81)
async def test_delivering_after_the_end_of_the_partition_does_nothing(implementation: Implementation) -> None:
    async with implementation.open() as environment:
        port = await environment.access.new_guest_event_port(0, VTL0, 0, SINT, 5)
        interrupt = port.interrupt()
    interrupt.deliver()
    port.interrupt().deliver()
    port.close()


# monitors


def pending(monitor_id: int) -> tuple[int, bytes]:
    """Where in the page a guest stores what to trigger a monitor: group g is the u32 at byte 8 + 8 * g."""
    group, bit = divmod(monitor_id, 32)
    return MONITOR_PAGE + 8 + 8 * group, (1 << bit).to_bytes(4, "little")


async def watch(environment: Environment, pages: MonitorPageGpas | None) -> None:
    monitor = environment.access.monitor_support
    assert monitor is not None
    await monitor.set_monitor_page(VTL0, pages)


WATCHED = MonitorPageGpas(parent_to_child=0, child_to_parent=MONITOR_PAGE)


@pytest.mark.item(141)
@over(IMPLEMENTATIONS, has_monitors)
async def test_a_store_into_the_monitor_page_signals_flag_0_of_its_event_port(environment: Environment) -> None:
    port, other = Port(), Port()
    await environment.access.add_event_port(PORT, VTL0, port, MonitorInfo(37))
    await environment.access.add_event_port(OTHER_PORT, VTL0, other, MonitorInfo(36))
    await watch(environment, WATCHED)
    await environment.vp(0).write_memory(*pending(37))
    await port.wait_any_call()
    assert port.calls == [0]
    assert not other.calls


@over(IMPLEMENTATIONS, has_monitors)
async def test_a_page_that_is_no_longer_watched_keeps_what_is_stored(environment: Environment) -> None:
    port = Port()
    await environment.access.add_event_port(PORT, VTL0, port, MonitorInfo(0))
    await watch(environment, WATCHED)
    await watch(environment, None)
    gpa, data = pending(0)
    await environment.vp(0).write_memory(gpa, data)
    assert environment.vp(0).guest_synic(VTL0).memory.read(gpa, len(data)) == data
    await environment.signal(PORT, 9)
    await port.wait_called(9)
    assert port.calls == [9]


@over(IMPLEMENTATIONS, has_monitors)
async def test_a_monitor_page_is_aligned(environment: Environment) -> None:
    with pytest.raises(ValueError, match="aligned"):
        await watch(environment, MonitorPageGpas(0, MONITOR_PAGE + 8))


@over(IMPLEMENTATIONS, has_monitors)
async def test_a_backend_gives_a_page_of_its_own_only_where_it_can(environment: Environment) -> None:
    monitor = environment.access.monitor_support
    assert monitor is not None
    pages = await monitor.allocate_monitor_page(VTL0)
    assert (pages is not None) == (environment.backend.monitor == "allocate")
    if pages is None:
        return
    assert pages.parent_to_child == 0
    assert pages.child_to_parent % 4096 == 0
    port = Port()
    await environment.access.add_event_port(PORT, VTL0, port, MonitorInfo(0))
    await environment.vp(0).write_memory(pages.child_to_parent + 8, b"\x01\x00\x00\x00")
    await port.wait_called(0)


@pytest.mark.item(111, 112)
@over(IMPLEMENTATIONS, has_monitors)
async def test_a_used_monitor_rolls_the_whole_registration_back(
    environment: Environment, eventfd: Callable[[], int]
) -> None:
    first, second, fd = Port(), Port(), eventfd()
    handle = await environment.access.add_event_port(PORT, VTL0, first, MonitorInfo(3))
    for os_event in (None, fd):
        with pytest.raises(MonitorIdInUse, match="monitor 3 "):
            await environment.access.add_event_port(OTHER_PORT, VTL0, second, MonitorInfo(3), os_event=os_event)
        assert await environment.signal(OTHER_PORT) is HvStatus.INVALID_CONNECTION_ID
    assert not is_signalled(fd)
    await watch(environment, WATCHED)
    await environment.vp(0).write_memory(*pending(3))
    await first.wait_called(0)
    handle.close()
    await environment.access.add_event_port(OTHER_PORT, VTL0, second, MonitorInfo(3))
    await environment.vp(0).write_memory(*pending(3))
    await second.wait_called(0)
    assert (first.calls, second.calls) == ([0], [0])


@pytest.mark.item(110)
@over(IMPLEMENTATIONS, lambda backend: not has_monitors(backend))
async def test_monitor_info_is_ignored_where_there_are_no_monitors(environment: Environment) -> None:
    for connection_id in (PORT, OTHER_PORT):
        port = Port()
        await environment.access.add_event_port(connection_id, VTL0, port, MonitorInfo(3))
        assert await environment.signal(connection_id) is HvStatus.SUCCESS
        await port.wait_called(0)


def test_a_monitor_is_0_to_127() -> None:
    assert [MonitorInfo(monitor_id).monitor_id for monitor_id in (0, 127)] == [0, 127]
    for monitor_id in (-1, 128):
        with pytest.raises(ValueError, match=f"monitor {monitor_id} does not exist"):
            MonitorInfo(monitor_id)


# reset and end


async def test_wait_reset_returns_on_reset_and_ports_live_on(environment: Environment) -> None:
    returned = []

    async def wait() -> None:
        await environment.access.wait_reset()
        returned.append("reset")

    port = Port()
    await environment.access.add_message_port(PORT, VTL0, port)
    async with anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(wait)
        await others_run()
        assert not returned
        await environment.reset()
    assert returned == ["reset", "reset"]
    assert await environment.post(PORT) is HvStatus.SUCCESS


async def test_wait_reset_returns_when_the_partition_ends(implementation: Implementation) -> None:
    async with anyio.create_task_group() as group, implementation.open() as environment:
        group.start_soon(environment.access.wait_reset)
        await others_run()
    await environment.access.wait_reset()


async def test_a_reset_drops_what_waits_for_the_guest_and_lets_posters_go_on(environment: Environment) -> None:
    port = await guest_port(environment)
    async with messages(environment):
        fill(environment, port)
        async with anyio.create_task_group() as group:
            group.start_soon(port.post_message, 1, b"waits")
            await others_run()
            await environment.reset()
    async with messages(environment) as inbox:
        assert port.try_post_message(1, b"after")
        assert await payloads(inbox, 1) == [b"after"]
