"""Conformance, guest -> host ports (items 83 to 92 and 98 to 113): who gets a post or signal, who is refused, and how.

Items 93 to 97, which are about the parameter block, stand in `test_hypercalls.py`.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import anyio
import pytest

from broker import (
    BACKENDS,
    OPENVMM,
    TLFS,
    ConnectionIdInUse,
    HvStatus,
    Message,
    MonitorIdInUse,
    MonitorInfo,
    Partition,
    PortHandle,
    Profile,
    SynicPortAccess,
    Vtl,
    receive_messages,
)

from .support import partition as open_partition

CONNECTION = 1
OTHER_CONNECTION = 2
PROBED_CONNECTION = 0x1234
MESSAGE_TYPE = 1
ALL_VTLS = (Vtl.VTL0, Vtl.VTL1, Vtl.VTL2)
BACKENDS_WITH_SYNIC = [backend for backend in BACKENDS.values() if backend.synic != "none"]
BACKENDS_WITH_HOST_PORTS = ["offloaded", "whp"]
BACKENDS_WITHOUT_MONITOR = [backend.name for backend in BACKENDS_WITH_SYNIC if backend.monitor == "none"]
UNTRUSTED_BACKENDS = [backend.name for backend in BACKENDS_WITH_SYNIC if not backend.trusted_posts]

Step = Callable[[], Awaitable[None]]


async def nothing() -> None:
    """The step of a handler that has nothing to do."""


class MessageRecorder:
    """A message port that notes what it gets, then runs `step` and answers `answer`."""

    def __init__(self, answer: HvStatus = HvStatus.SUCCESS, step: Step = nothing) -> None:
        self.seen: list[tuple[bytes, bool]] = []
        self.answer = answer
        self.step = step

    async def handle_message(self, message: bytes, trusted: bool) -> HvStatus:
        self.seen.append((message, trusted))
        await self.step()
        return self.answer


class EventRecorder:
    """An event port that notes the flags it gets, then runs `step`."""

    def __init__(self, step: Step = nothing) -> None:
        self.flags: list[int] = []
        self.step = step

    async def handle_event(self, flag: int) -> None:
        self.flags.append(flag)
        await self.step()


@contextmanager
def new_eventfd() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def take_signals(fd: int) -> int:
    """How often an eventfd was signalled since the last look."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


def count_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def add_port(access: SynicPortAccess, kind: str, minimum_vtl: Vtl = Vtl.VTL0) -> PortHandle:
    if kind == "message":
        return await access.add_message_port(CONNECTION, minimum_vtl, MessageRecorder())
    return await access.add_event_port(CONNECTION, minimum_vtl, EventRecorder())


async def call(partition: Partition, kind: str, vtl: Vtl = Vtl.VTL0) -> HvStatus:
    """A guest's post ("message") or signal ("event") through the connection."""
    vp = partition.vp(0)
    if kind == "message":
        return await vp.post_message(CONNECTION, MESSAGE_TYPE, b"hello", vtl=vtl)
    return await vp.signal_event(CONNECTION, vtl=vtl)


OPPOSITE = {"message": "event", "event": "message"}
BOTH_KINDS = pytest.mark.parametrize("kind", ["message", "event"])


# who is found


@pytest.mark.item(83)
@pytest.mark.parametrize("profile", [OPENVMM, TLFS])
async def test_a_post_without_a_port_is_an_invalid_connection_id(profile: Profile) -> None:
    async with open_partition(profile=profile) as partition:
        assert await partition.vp(0).post_message(CONNECTION, MESSAGE_TYPE, b"") == 0x12


@pytest.mark.item(84)
@pytest.mark.parametrize("profile", [OPENVMM, TLFS])
async def test_a_signal_without_a_port_is_an_invalid_connection_id(profile: Profile) -> None:
    async with open_partition(profile=profile) as partition:
        assert await partition.vp(0).signal_event(CONNECTION) == 0x12


@pytest.mark.item(85)
@pytest.mark.parametrize("backend", [backend.name for backend in BACKENDS_WITH_SYNIC])
async def test_a_guest_can_probe_for_signal_event_before_anything_is_set_up(backend: str) -> None:
    """The probe is a fast call; that its code is known shows in the status, which names the connection (0x12)."""
    async with open_partition(backend=backend) as partition:
        assert await partition.vp(0).hypercall(0x1_005D, PROBED_CONNECTION) == 0x12


@pytest.mark.item(86, 87)
@BOTH_KINDS
@pytest.mark.parametrize(("profile", "status"), [(OPENVMM, 0x12), (TLFS, 0x11)])
async def test_a_call_of_the_wrong_kind_is_refused_and_reaches_nobody(kind: str, profile: Profile, status: int) -> None:
    async with open_partition(profile=profile) as partition:
        await add_port(partition.synic(), OPPOSITE[kind])
        assert await call(partition, kind) == status
        port = partition.port_map.statistics().ports[CONNECTION]
        assert (port.accepted, port.refused, port.failed) == (0, {}, 0)


@pytest.mark.item(88)
@BOTH_KINDS
async def test_a_caller_below_the_minimum_vtl_is_denied_and_the_handler_not_called(kind: str) -> None:
    async with open_partition(vtls=ALL_VTLS) as partition:
        messages, events = MessageRecorder(), EventRecorder()
        if kind == "message":
            await partition.synic().add_message_port(CONNECTION, Vtl.VTL1, messages)
        else:
            await partition.synic().add_event_port(CONNECTION, Vtl.VTL1, events)
        assert await call(partition, kind, Vtl.VTL0) == 0x08
        assert (messages.seen, events.flags) == ([], [])


@pytest.mark.item(89)
@pytest.mark.parametrize("vtl", [Vtl.VTL1, Vtl.VTL2])
async def test_a_caller_at_or_above_the_minimum_vtl_reaches_the_handler(vtl: Vtl) -> None:
    async with open_partition(vtls=ALL_VTLS) as partition:
        messages, events = MessageRecorder(), EventRecorder()
        await partition.synic().add_message_port(CONNECTION, Vtl.VTL1, messages)
        await partition.synic().add_event_port(OTHER_CONNECTION, Vtl.VTL1, events)
        vp = partition.vp(0)
        assert await vp.post_message(CONNECTION, MESSAGE_TYPE, b"hello", vtl=vtl) == 0
        assert await vp.signal_event(OTHER_CONNECTION, 3, vtl=vtl) == 0
        assert messages.seen == [(b"hello", False)]
        assert events.flags == [3]


@pytest.mark.item(90)
@BOTH_KINDS
@pytest.mark.parametrize(("profile", "status"), [(OPENVMM, 0x12), (TLFS, 0x11)])
async def test_a_wrong_kind_is_told_before_a_low_vtl(kind: str, profile: Profile, status: int) -> None:
    async with open_partition(vtls=ALL_VTLS, profile=profile) as partition:
        await add_port(partition.synic(), OPPOSITE[kind], Vtl.VTL1)
        assert await call(partition, kind, Vtl.VTL0) == status


# what the handler answers


@pytest.mark.item(91)
async def test_a_message_that_the_handler_has_no_buffer_for_is_not_delivered_later_by_itself() -> None:
    """The list says "handler Pending"; by decisions 1 and 5 of the design the handler answers INSUFFICIENT_BUFFERS itself,
    as a mailbox does that is full, and nothing of the message is kept."""
    async with open_partition() as partition, receive_messages(partition.synic(), CONNECTION, depth=1) as inbox:
        vp = partition.vp(0)
        assert await vp.post_message(CONNECTION, MESSAGE_TYPE, b"first") == 0
        assert await vp.post_message(CONNECTION, MESSAGE_TYPE, b"second") == 0x13
        assert await inbox.receive_batch() == [Message(b"first", False)]
        await partition.settled()
        assert len(inbox) == 0
        assert await vp.post_message(CONNECTION, MESSAGE_TYPE, b"second") == 0
        assert await inbox.receive_batch() == [Message(b"second", False)]


@pytest.mark.item(91)
async def test_a_handler_that_has_no_buffer_is_called_once_per_post() -> None:
    """As above, for a handler of the consumer's own: nobody calls it again on the guest's behalf."""
    async with open_partition() as partition:
        port = MessageRecorder(HvStatus.INSUFFICIENT_BUFFERS)
        await partition.synic().add_message_port(CONNECTION, Vtl.VTL0, port)
        assert await partition.vp(0).post_message(CONNECTION, MESSAGE_TYPE, b"once") == 0x13
        await partition.settled()
        assert port.seen == [(b"once", False)]


@pytest.mark.item(92)
async def test_a_message_that_the_handler_takes_is_a_success() -> None:
    async with open_partition() as partition:
        messages, events = MessageRecorder(), EventRecorder()
        await partition.synic().add_message_port(CONNECTION, Vtl.VTL0, messages)
        await partition.synic().add_event_port(OTHER_CONNECTION, Vtl.VTL0, events)
        assert await partition.vp(0).post_message(CONNECTION, MESSAGE_TYPE, b"hello") == 0
        assert await partition.vp(0).signal_event(OTHER_CONNECTION) == 0
        assert messages.seen == [(b"hello", False)]
        assert events.flags == [0]


# registration


@pytest.mark.item(98)
async def test_a_second_port_at_an_id_is_refused_and_the_first_still_served() -> None:
    async with open_partition() as partition:
        access, first, second = partition.synic(), MessageRecorder(), MessageRecorder()
        await access.add_message_port(CONNECTION, Vtl.VTL0, first)
        with pytest.raises(ConnectionIdInUse) as caught:
            await access.add_message_port(CONNECTION, Vtl.VTL0, second)
        assert caught.value.connection_id == CONNECTION
        assert await call(partition, "message") == 0
        assert first.seen == [(b"hello", False)]
        assert second.seen == []


@pytest.mark.item(99)
@BOTH_KINDS
async def test_message_and_event_ports_share_one_space_of_ids(kind: str) -> None:
    async with open_partition() as partition:
        await add_port(partition.synic(), kind)
        with pytest.raises(ConnectionIdInUse) as caught:
            await add_port(partition.synic(), OPPOSITE[kind])
        assert caught.value.connection_id == CONNECTION
        assert await call(partition, kind) == 0


@pytest.mark.item(100)
@BOTH_KINDS
async def test_a_closed_port_is_unknown_and_its_id_free(kind: str) -> None:
    async with open_partition() as partition:
        access = partition.synic()
        handle = await add_port(access, kind)
        assert await call(partition, kind) == 0
        handle.close()
        assert await call(partition, kind) == 0x12
        await add_port(access, kind)
        handle.close()
        assert await call(partition, kind) == 0, "closing the old handle again does not touch the new port"


@pytest.mark.item(101)
@BOTH_KINDS
async def test_a_handle_may_be_closed_after_the_partition_ended(kind: str) -> None:
    async with open_partition() as partition:
        handle = await add_port(partition.synic(), kind)
    handle.close()
    await handle.aclose()
    assert CONNECTION not in partition.port_map.statistics().ports


# handlers that touch the map


@pytest.mark.item(102)
@BOTH_KINDS
async def test_a_handler_may_close_its_own_port_during_the_call(kind: str) -> None:
    async with open_partition() as partition:
        handles: list[PortHandle] = []

        async def close_own() -> None:
            handles.pop().close()

        access = partition.synic()
        if kind == "message":
            handles.append(await access.add_message_port(CONNECTION, Vtl.VTL0, MessageRecorder(step=close_own)))
        else:
            handles.append(await access.add_event_port(CONNECTION, Vtl.VTL0, EventRecorder(step=close_own)))
        assert await call(partition, kind) == 0
        assert handles == []
        assert await call(partition, kind) == 0x12


@pytest.mark.item(103)
@BOTH_KINDS
async def test_a_handler_may_register_another_port_during_the_call(kind: str) -> None:
    async with open_partition() as partition:
        access, added = partition.synic(), EventRecorder()

        async def register() -> None:
            await access.add_event_port(OTHER_CONNECTION, Vtl.VTL0, added)

        if kind == "message":
            await access.add_message_port(CONNECTION, Vtl.VTL0, MessageRecorder(step=register))
        else:
            await access.add_event_port(CONNECTION, Vtl.VTL0, EventRecorder(step=register))
        assert await call(partition, kind) == 0
        assert await partition.vp(0).signal_event(OTHER_CONNECTION, 5) == 0
        assert added.flags == [5]


@pytest.mark.item(104)
@BOTH_KINDS
async def test_a_call_begun_before_the_close_runs_to_its_end(kind: str) -> None:
    async with open_partition(vp_count=2) as partition:
        entered, release = anyio.Event(), anyio.Event()
        statuses: list[HvStatus] = []

        async def block() -> None:
            entered.set()
            await release.wait()

        async def guest() -> None:
            statuses.append(await call(partition, kind))

        access = partition.synic()
        if kind == "message":
            handle = await access.add_message_port(CONNECTION, Vtl.VTL0, MessageRecorder(step=block))
        else:
            handle = await access.add_event_port(CONNECTION, Vtl.VTL0, EventRecorder(step=block))
        async with anyio.create_task_group() as group:
            group.start_soon(guest)
            await entered.wait()
            handle.close()
            assert await partition.vp(1).signal_event(CONNECTION) == 0x12
            assert statuses == []
            release.set()
        assert statuses == [HvStatus.SUCCESS]


@pytest.mark.item(105)
@pytest.mark.parametrize("trusted", [True, False])
async def test_the_handler_sees_whether_the_path_was_trusted(trusted: bool) -> None:
    async with open_partition() as partition:
        port = MessageRecorder()
        await partition.synic().add_message_port(CONNECTION, Vtl.VTL0, port)
        assert await partition.port_map.handle_post_message(Vtl.VTL0, CONNECTION, trusted, b"x") == 0
        assert await partition.vp(0).post_message(CONNECTION, MESSAGE_TYPE, b"y", trusted=trusted) == 0
        assert port.seen == [(b"x", trusted), (b"y", trusted)]


@pytest.mark.item(105)
@pytest.mark.parametrize("backend", UNTRUSTED_BACKENDS)
async def test_a_backend_without_isolation_trusts_no_post(backend: str) -> None:
    async with open_partition(backend=backend) as partition:
        port = MessageRecorder()
        await partition.synic().add_message_port(CONNECTION, Vtl.VTL0, port)
        assert await partition.vp(0).post_message(CONNECTION, MESSAGE_TYPE, b"x", trusted=True) == 0
        assert port.seen == [(b"x", False)]


# flags and OS events


@pytest.mark.item(106)
async def test_the_handler_receives_the_flag_number_unchecked() -> None:
    async with open_partition() as partition:
        port = EventRecorder()
        await partition.synic().add_event_port(CONNECTION, Vtl.VTL0, port)
        for flag in (7, 0, 2047, 2048, 0xFFFF):
            assert await partition.vp(0).signal_event(CONNECTION, flag) == 0
        assert port.flags == [7, 0, 2047, 2048, 0xFFFF]


@pytest.mark.item(106)
@pytest.mark.parametrize("backend", BACKENDS_WITH_HOST_PORTS)
async def test_a_consumers_eventfd_carries_flag_0_only(backend: str) -> None:
    """A flag that the eventfd cannot carry is dispatched to the handler, as an exit to user mode would."""
    with new_eventfd() as fd:
        async with open_partition(backend=backend) as partition:
            port = EventRecorder()
            await partition.synic().add_event_port(CONNECTION, Vtl.VTL0, port, os_event=fd)
            assert await partition.vp(0).signal_event(CONNECTION, 7) == 0
            assert (take_signals(fd), port.flags) == (0, [7])
            assert await partition.vp(0).signal_event(CONNECTION, 0) == 0
            await partition.settled()
            assert (take_signals(fd), port.flags) == (1, [7])


@pytest.mark.item(106)
async def test_a_doorbell_of_the_backends_own_carries_every_flag() -> None:
    async with open_partition(backend="offloaded") as partition:
        rung = anyio.Event()

        async def ring() -> None:
            rung.set()

        port = EventRecorder(ring)
        await partition.synic().add_event_port(CONNECTION, Vtl.VTL0, port)
        assert await partition.vp(0).signal_event(CONNECTION, 7) == 0
        await rung.wait()
        assert port.flags == [7]


@pytest.mark.item(107)
@pytest.mark.parametrize("backend", BACKENDS_WITH_HOST_PORTS)
async def test_a_signal_wakes_the_os_event_and_does_not_call_the_handler(backend: str) -> None:
    with new_eventfd() as fd:
        async with open_partition(backend=backend) as partition:
            access, port = partition.synic(), EventRecorder()
            assert access.prefer_os_events
            handle = await access.add_event_port(CONNECTION, Vtl.VTL0, port, os_event=fd)
            assert await partition.vp(0).signal_event(CONNECTION) == 0
            await anyio.wait_readable(fd)
            assert take_signals(fd) == 1
            await partition.settled()
            assert port.flags == []
            assert partition.port_map.statistics().ports[CONNECTION].accepted == 0
            handle.close()
            assert await partition.vp(0).signal_event(CONNECTION) == 0x12
            assert take_signals(fd) == 0


@pytest.mark.item(108)
@pytest.mark.parametrize("backend", BACKENDS_WITH_HOST_PORTS)
@pytest.mark.parametrize("descriptor", ["a pipe", "a closed one"])
async def test_a_port_whose_os_event_cannot_be_used_is_not_registered(backend: str, descriptor: str) -> None:
    read_end, write_end = os.pipe()
    os.close(write_end)
    async with open_partition(backend=backend) as partition:
        if descriptor == "a closed one":
            os.close(read_end)
        with pytest.raises(ValueError, match="eventfd"):
            await partition.synic().add_event_port(CONNECTION, Vtl.VTL0, EventRecorder(), os_event=read_end)
        assert await partition.vp(0).signal_event(CONNECTION) == 0x12
        assert partition.port_map.statistics().ports == {}
        await add_port(partition.synic(), "message")
    if descriptor == "a pipe":
        os.close(read_end)


@pytest.mark.item(109)
@pytest.mark.parametrize("backend", BACKENDS_WITH_HOST_PORTS)
@BOTH_KINDS
async def test_a_refused_port_gives_its_os_event_back(backend: str, kind: str) -> None:
    """`kind` is what holds the ID already. Only the first keeps a descriptor, and only it is signalled."""
    with new_eventfd() as first, new_eventfd() as second:
        async with open_partition(backend=backend) as partition:
            access = partition.synic()
            if kind == "message":
                await access.add_message_port(CONNECTION, Vtl.VTL0, MessageRecorder())
            else:
                await access.add_event_port(CONNECTION, Vtl.VTL0, EventRecorder(), os_event=first)
            before = count_descriptors()
            with pytest.raises(ConnectionIdInUse):
                await access.add_event_port(CONNECTION, Vtl.VTL0, EventRecorder(), os_event=second)
            assert count_descriptors() == before
            assert await partition.vp(0).signal_event(CONNECTION) == (0x12 if kind == "message" else 0)
            assert (take_signals(first), take_signals(second)) == (0 if kind == "message" else 1, 0)


# monitors of ports


@pytest.mark.item(110)
@pytest.mark.parametrize("backend", BACKENDS_WITHOUT_MONITOR)
async def test_monitor_info_is_ignored_where_there_is_no_monitor_support(backend: str) -> None:
    async with open_partition(backend=backend) as partition:
        access = partition.synic()
        assert access.monitor_support is None
        for connection_id in (CONNECTION, OTHER_CONNECTION):
            await access.add_event_port(connection_id, Vtl.VTL0, EventRecorder(), MonitorInfo(3))
            assert await partition.vp(0).signal_event(connection_id) == 0


@pytest.mark.item(111)
async def test_a_monitor_id_that_is_in_use_is_an_exception_and_nothing_is_registered() -> None:
    """The list says panic; by section 3 and decision 4 of the design it is `MonitorIdInUse`, and by decision 7 the
    registration is undone."""
    async with open_partition() as partition:
        access = partition.synic()
        await access.add_event_port(CONNECTION, Vtl.VTL0, EventRecorder(), MonitorInfo(3))
        with pytest.raises(MonitorIdInUse) as caught:
            await access.add_event_port(OTHER_CONNECTION, Vtl.VTL0, EventRecorder(), MonitorInfo(3))
        assert caught.value.monitor_id == 3
        assert await partition.vp(0).signal_event(OTHER_CONNECTION) == 0x12
        assert await partition.vp(0).signal_event(CONNECTION) == 0


@pytest.mark.item(111)
@pytest.mark.parametrize("backend", BACKENDS_WITH_HOST_PORTS)
async def test_a_refused_monitor_id_undoes_the_os_event_too(backend: str) -> None:
    """As above: eventfd, map entry and monitor are registered together or not at all."""
    with new_eventfd() as fd:
        async with open_partition(backend=backend) as partition:
            access = partition.synic()
            await access.add_event_port(CONNECTION, Vtl.VTL0, EventRecorder(), MonitorInfo(3), os_event=fd)
            before = count_descriptors()
            with pytest.raises(MonitorIdInUse):
                await access.add_event_port(OTHER_CONNECTION, Vtl.VTL0, EventRecorder(), MonitorInfo(3), os_event=fd)
            assert count_descriptors() == before
            assert await partition.vp(0).signal_event(OTHER_CONNECTION) == 0x12
            assert take_signals(fd) == 0


@pytest.mark.item(112)
async def test_closing_a_port_frees_its_monitor_id() -> None:
    async with open_partition() as partition:
        access = partition.synic()
        (await access.add_event_port(CONNECTION, Vtl.VTL0, EventRecorder(), MonitorInfo(3))).close()
        await access.add_event_port(OTHER_CONNECTION, Vtl.VTL0, EventRecorder(), MonitorInfo(3))
        assert await partition.vp(0).signal_event(OTHER_CONNECTION) == 0


# calls to unknown connections


class Reflection:
    """VTL 2's part: notes each call it is shown, and opens a port for it the second time."""

    def __init__(self, access: SynicPortAccess) -> None:
        self.calls: list[tuple[int, int]] = []
        self.port = EventRecorder()
        self._access = access

    async def __call__(self, vp_index: int, connection_id: int) -> bool:
        self.calls.append((vp_index, connection_id))
        if len(self.calls) == 2:
            await self._access.add_event_port(connection_id, Vtl.VTL0, self.port)
        return True


@pytest.mark.item(113)
@pytest.mark.parametrize("backend", ["emulated", "whp"])
@pytest.mark.parametrize("form", ["hypercall", "method"])
async def test_a_call_to_an_unknown_connection_is_shown_to_vtl_2_and_executed_again(backend: str, form: str) -> None:
    """The instruction pointer that stays where it is: the same call runs again until it leads somewhere. The guest sees
    one result, that of the last run."""
    async with open_partition(backend=backend, vtls=(Vtl.VTL0, Vtl.VTL2), vp_count=2) as partition:
        vp, access = partition.vp(1), partition.synic()
        await access.add_event_port(OTHER_CONNECTION, Vtl.VTL0, EventRecorder())
        assert await vp.signal_event(OTHER_CONNECTION) == 0, "an earlier call, so that the next is no special case"
        reflection = Reflection(access)
        partition.intercept_unknown_connections(reflection)
        if form == "hypercall":
            assert await vp.hypercall(0x1_005D, CONNECTION | 7 << 32) == 0
        else:
            assert await vp.signal_event(CONNECTION, 7) == 0
        await partition.settled()
        assert reflection.calls == [(1, CONNECTION)] * 2
        assert reflection.port.flags == [7]


@pytest.mark.item(113)
async def test_a_post_to_an_unknown_connection_is_shown_to_vtl_2_too() -> None:
    async with open_partition(vtls=(Vtl.VTL0, Vtl.VTL2)) as partition:
        port = MessageRecorder()

        async def open_port(vp_index: int, connection_id: int) -> bool:
            await partition.synic().add_message_port(connection_id, Vtl.VTL0, port)
            return True

        partition.intercept_unknown_connections(open_port)
        assert await call(partition, "message") == 0
        assert port.seen == [(b"hello", False)]


@pytest.mark.item(113)
async def test_a_call_by_vtl_2_or_one_that_vtl_2_declines_is_answered_as_usual() -> None:
    async with open_partition(vtls=(Vtl.VTL0, Vtl.VTL2)) as partition:
        calls: list[int] = []

        async def decline(vp_index: int, connection_id: int) -> bool:
            calls.append(connection_id)
            return False

        partition.intercept_unknown_connections(decline)
        assert await partition.vp(0).hypercall(0x1_005D, CONNECTION, vtl=Vtl.VTL2) == 0x12
        assert calls == []
        assert await partition.vp(0).hypercall(0x1_005D, CONNECTION) == 0x12
        assert calls == [CONNECTION]
