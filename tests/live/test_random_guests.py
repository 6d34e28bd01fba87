"""Random guests and hosts: whatever they do, only a guest faults, no port leaks and no message goes missing unseen.

Two processors run random exits while two host tasks register ports, close them, post and signal, in an order drawn
from a seed. The trace then has to account for every message, in order, per (VP, VTL, SINT).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from broker import (
    BACKENDS,
    PROFILES,
    ConnectionIdInUse,
    GuestFault,
    HvStatus,
    MonitorIdInUse,
    MonitorInfo,
    Msr,
    Partition,
    PartitionConfig,
    PortClosed,
    PortHandle,
    Trace,
    VirtualProcessor,
    Vtl,
)
from broker.hvdef import PARTITION_SELF, VP_SELF, PostMessageInput, SignalEventDirectInput, SignalEventInput
from broker.trace import NO_CONTEXT, AnyEvent, Deliver, Drop, Queue

VP_COUNT = 2
PAGES = 16
HOST_TYPE = 0x42
"""Only the host's queued posts carry this message type."""
BLOCK = 0x8000
"""Where a well-formed hypercall puts its parameters."""

Key = tuple[int, int, int]

words = st.integers(0, (1 << 64) - 1)
connections = st.integers(1, 4)
sints = st.sampled_from([0, 1, 2, 2, 2, 15])
known_msrs = st.sampled_from([int(msr) for msr in Msr] + [int(Msr.sint(2)), int(Msr.sint(1))] * 3)
msrs = st.one_of(known_msrs, known_msrs, st.integers(0x4000_0000, 0x4000_00C0), st.integers(-1, 1 << 33))
values = st.one_of(
    words,
    st.sampled_from([0, 1, 0x30, 0x2_0030, 0x4_0030, 0x1_0000, 0x10_0030, 0x5001, 0x6001, 0x10_0001, 0x1_0003]),
    st.integers(-5, 400),
)
pages_at = st.one_of(words, st.integers(0, (PAGES << 12) + 300), st.sampled_from([0x5200, 0x5100, 0x6200]))
guest_steps = st.one_of(
    st.tuples(st.just("hypercall"), words, words, words),
    st.tuples(
        st.just("hypercall"),
        st.sampled_from([0x5C, 0x5D, 0x1_005D, 0xC0, 0xC1, 0x1_005C, 0x1_0000_005C]),
        st.one_of(words, st.sampled_from([BLOCK, BLOCK + 4, BLOCK + 0xFF8, PAGES << 12, 3, 2 | 7 << 32])),
        st.one_of(words, st.just(BLOCK + 0x400)),
    ),
    st.tuples(st.just("post"), connections, words, st.integers(0, 300)),
    st.tuples(st.just("signal"), connections, st.integers(0, 0xFFFF)),
    st.tuples(st.just("signal_direct"), st.integers(0, 3), st.integers(0, 17), st.integers(0, 3000)),
    st.tuples(st.just("read"), msrs),
    st.tuples(st.just("write"), msrs, values),
    st.tuples(st.just("write"), msrs, values),
    st.tuples(st.just("store"), pages_at, st.binary(min_size=1, max_size=300)),
    st.tuples(st.just("finish"), sints),
    st.tuples(st.just("finish"), sints),
    st.tuples(st.just("take")),
)
host_steps = st.one_of(
    st.tuples(st.just("register"), connections, st.booleans(), st.integers(0, 2), st.sampled_from("asbrcn")),
    st.tuples(st.just("close"), connections, st.booleans()),
    st.tuples(st.just("try_post"), st.integers(0, VP_COUNT), st.integers(0, 2), sints),
    st.tuples(st.just("try_post"), st.just(0), st.just(0), sints),
    st.tuples(st.just("post"), st.integers(0, VP_COUNT), st.just(0), sints),
    st.tuples(st.just("signal"), st.integers(0, VP_COUNT), st.integers(0, 2), sints, st.sampled_from([0, 9, 2047])),
    st.sampled_from([("sleep", ticks) for ticks in range(1, 40)] + [("reset",)]),
)
HYPOTHESIS = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


class World:
    """One partition, its random parties and what they saw."""

    def __init__(self, partition: Partition, history: list[tuple[str, Key, int]]) -> None:
        self.partition = partition
        self.access = partition.synic()
        self.vtls = partition.vtls
        self.history = history
        """("queued" | "left", key, flow) of the host's messages."""
        self.posted: dict[Key, int] = defaultdict(int)
        self.faults = 0
        self.handles: dict[int, PortHandle] = {}

    def check(self) -> None:
        for vp in range(VP_COUNT):
            for vtl in self.vtls:
                machine = self.partition.vp(vp).machine(vtl)
                assert machine is not None
                machine.check()

    # guests

    def guest(self, script: list[tuple[Any, ...]]) -> Callable[[VirtualProcessor], Awaitable[None]]:
        async def run(vp: VirtualProcessor) -> None:
            for number, (name, *arguments) in enumerate(script):
                vtl = self.vtls[number % len(self.vtls)]
                try:
                    await getattr(self, f"guest_{name}")(vp, vtl, *arguments)
                except GuestFault:
                    self.faults += 1
                self.check()

        return run

    async def guest_hypercall(self, vp: VirtualProcessor, vtl: Vtl, control: int, first: int, second: int) -> None:
        result = await vp.hypercall(control, first, second, vtl=vtl)
        assert HvStatus(result) is not HvStatus.TIMEOUT  # no other bit is set, and a guest never sees this one

    async def guest_post(self, vp: VirtualProcessor, vtl: Vtl, connection: int, kind: int, size: int) -> None:
        block = PostMessageInput(connection, kind & 0xFFFF_FFFF, b"guest", size).pack()
        self.partition.memory.write(BLOCK, block)
        await self.guest_hypercall(vp, vtl, 0x5C, BLOCK, 0)

    async def guest_signal(self, vp: VirtualProcessor, vtl: Vtl, connection: int, flag: int) -> None:
        await self.guest_hypercall(vp, vtl, 0x1_005D, SignalEventInput(connection, flag).fast, 0)

    async def guest_signal_direct(self, vp: VirtualProcessor, vtl: Vtl, to: int, sint: int, flag: int) -> None:
        block = SignalEventDirectInput(PARTITION_SELF, VP_SELF, to, sint, flag).pack()
        self.partition.memory.write(BLOCK, block)
        await self.guest_hypercall(vp, self.vtls[-1], 0xC0, BLOCK, BLOCK + 0x400)

    async def guest_read(self, vp: VirtualProcessor, vtl: Vtl, msr: int) -> None:
        assert 0 <= await vp.read_msr(msr, vtl=vtl) < 1 << 64

    async def guest_write(self, vp: VirtualProcessor, vtl: Vtl, msr: int, value: int) -> None:
        await vp.write_msr(msr, value, vtl=vtl)

    async def guest_store(self, vp: VirtualProcessor, vtl: Vtl, gpa: int, data: bytes) -> None:
        await vp.write_memory(gpa, data)

    async def guest_finish(self, vp: VirtualProcessor, vtl: Vtl, sint: int) -> None:
        simp = await vp.read_msr(Msr.SIMP, vtl=vtl)
        if simp & 1:
            await vp.write_memory((simp & ~0xFFF) + 256 * sint, bytes(4))
        await vp.write_msr(Msr.EOM, 0, vtl=vtl)

    async def guest_take(self, vp: VirtualProcessor, vtl: Vtl) -> None:
        if vp.try_take_interrupt(vtl=vtl) is not None:
            await vp.write_msr(Msr.EOI, 0, vtl=vtl)

    # hosts

    async def host(self, script: list[tuple[Any, ...]]) -> None:
        for name, *arguments in script:
            with self.partition.config.trace.working_on(NO_CONTEXT):  # type: ignore[union-attr]
                await getattr(self, f"host_{name}")(*arguments)
            self.check()
            await self.partition.sleep(1)

    async def host_register(self, connection: int, is_event: bool, minimum_vtl: int, behaviour: str) -> None:
        port = RandomPort(self, connection, behaviour)
        try:
            if is_event:
                info = MonitorInfo(connection % 2)
                handle = await self.access.add_event_port(connection, Vtl(minimum_vtl), port, info)
            else:
                handle = await self.access.add_message_port(connection, Vtl(minimum_vtl), port)
        except (ConnectionIdInUse, MonitorIdInUse):
            return
        self.handles[connection] = handle

    async def host_close(self, connection: int, waits: bool) -> None:
        handle = self.handles.pop(connection, None)
        if handle is not None and waits:
            await handle.aclose()
        elif handle is not None:
            handle.close()

    async def host_try_post(self, vp: int, vtl: int, sint: int) -> None:
        port = await self.access.new_guest_message_port(Vtl(vtl), vp, sint)
        if port.try_post_message(HOST_TYPE, b"host"):
            self.posted[vp, vtl, sint] += 1

    async def host_post(self, vp: int, vtl: int, sint: int) -> None:
        port = await self.access.new_guest_message_port(Vtl(vtl), vp, sint)
        try:
            await port.post_message(HOST_TYPE, b"host")
        except PortClosed:
            return
        self.posted[vp, vtl, sint] += 1

    async def host_signal(self, vp: int, vtl: int, sint: int, flag: int) -> None:
        port = await self.access.new_guest_event_port(1, Vtl(vtl), vp, sint, flag)
        port.interrupt().deliver()
        port.close()

    async def host_sleep(self, ticks: int) -> None:
        await self.partition.sleep(ticks)

    async def host_reset(self) -> None:
        await self.partition.reset()


class RandomPort:
    """Behaves as its letter says: answers, sleeps, has no buffer, raises, closes itself, answers nonsense."""

    def __init__(self, world: World, connection: int, behaviour: str) -> None:
        self.world = world
        self.connection = connection
        self.behaviour = behaviour

    async def handle_event(self, flag: int) -> None:
        await self.handle_message(b"", False)

    async def handle_message(self, message: bytes, trusted: bool) -> HvStatus:
        if self.behaviour == "s":
            await self.world.partition.sleep(3)
        if self.behaviour == "b":
            return HvStatus.INSUFFICIENT_BUFFERS
        if self.behaviour == "r":
            raise RuntimeError("random")
        if self.behaviour == "c" and self.connection in self.world.handles:
            self.world.handles.pop(self.connection).close()
        return HvStatus.SUCCESS if self.behaviour != "n" else "nonsense"  # type: ignore[return-value]


class HostSide:
    """Takes what is proxied, as one more place where a message may arrive."""

    def __init__(self, history: list[tuple[str, Key, int]]) -> None:
        self.history = history

    def post_message(self, vtl: Vtl, vp: int, sint: int, message_type: int, payload: bytes) -> None:
        self.history.append(("proxied", (vp, int(vtl), sint), 0))

    def signal_event(self, vtl: Vtl, vp: int, sint: int, flag: int) -> None:
        return


def account(world: World, events: list[AnyEvent]) -> None:
    """posted == delivered + proxied + dropped + still queued, each in the order in which it was queued."""
    queued: dict[Key, list[int]] = defaultdict(list)
    left: dict[Key, list[int]] = defaultdict(list)
    for what, key, flow in world.history:
        # a proxied message has no event: it was the oldest of its queue
        (queued if what == "queued" else left)[key].append(flow or queued[key][len(left[key])])
    waiting: dict[Key, list[int]] = {}
    dropped = world.partition.synic_backend.undeliverable
    for vp in range(VP_COUNT):
        for vtl in world.vtls:
            machine = world.partition.vp(vp).machine(vtl)
            assert machine is not None
            dropped += machine.dropped
            for sint, queue in enumerate(machine.queues.save()):
                waiting[vp, int(vtl), sint] = [message.flow for message in queue]
    for key in {*queued, *left, *waiting}:
        assert left[key] + waiting.get(key, []) == queued[key], key
    drops = [event for event in events if isinstance(event, Drop)]
    assert len(drops) == dropped
    flows = {flow for _, _, flow in world.history if flow}
    never_queued = [drop for drop in drops if drop.flow not in flows]
    everywhere = sum(map(len, queued.values())) + len(never_queued)
    assert sum(world.posted.values()) == everywhere


def historian(history: list[tuple[str, Key, int]]) -> Callable[[AnyEvent], None]:
    """Notes the way of the host's messages; a message that was dropped before it was queued never shows up here."""
    queued: set[int] = set()

    def note(event: AnyEvent) -> None:
        if isinstance(event, Queue):
            queued.add(event.flow)
            history.append(("queued", (event.vp, event.vtl, event.sint), event.flow))
        elif isinstance(event, (Deliver, Drop)) and event.message_type == HOST_TYPE and event.flow in queued:
            history.append(("left", (event.vp, event.vtl, event.sint), event.flow))

    return note


@HYPOTHESIS
@given(
    seed=st.integers(0, 1000),
    quantum=st.integers(1, 3),
    guests=st.lists(st.lists(guest_steps, min_size=25, max_size=40), min_size=VP_COUNT, max_size=VP_COUNT),
    hosts=st.lists(st.lists(host_steps, min_size=20, max_size=40), min_size=2, max_size=2),
)
@pytest.mark.parametrize("backend", ["emulated", "offloaded", "openhcl", "whp", "kvm"])
@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
async def test_nothing_breaks_leaks_or_goes_missing(
    profile: Any,
    backend: str,
    seed: int,
    quantum: int,
    guests: list[list[tuple[Any, ...]]],
    hosts: list[list[tuple[Any, ...]]],
) -> None:
    history: list[tuple[str, Key, int]] = []
    events: list[AnyEvent] = []
    trace = Trace(events.append, historian(history))
    config = PartitionConfig(
        vp_count=VP_COUNT,
        memory_size=PAGES << 12,
        backend=backend,
        profile=profile,
        vtls=BACKENDS[backend].vtls,
        quantum=quantum,
        message_queue_depth=3,
        seed=seed,
        virtual_time=True,
        trace=trace,
        host_synic=HostSide(history),
    )
    with capture_logs() as logs:
        async with Partition(config) as partition:
            world = World(partition, history)
            for vp in range(VP_COUNT):  # a good start, so that messages arrive
                await partition.vp(vp).write_msr(Msr.SIMP, 0x5001 + 0x1000 * vp)
                await partition.vp(vp).write_msr(Msr.SCONTROL, 1)
                for sint in (1, 2, 15):
                    await partition.vp(vp).write_msr(Msr.sint(sint), 0x30 + 0x10 * sint & 0xFF)
            await world.host_register(1, False, 0, "s")
            await world.host_register(2, True, 0, "s")
            async with anyio.create_task_group() as group:
                runs = [partition.start(vp, world.guest(script)) for vp, script in enumerate(guests)]
                for script in hosts:
                    group.start_soon(world.host, script)
                for run in runs:
                    assert (await run.wait()).how in ("finished", "stopped")  # stopped by a reset
                await partition.sleep(2000)
                group.cancel_scope.cancel()  # who still waits for room
            world.check()
            account(world, events)
            for handle in world.handles.values():
                await handle.aclose()
            assert partition.port_map.statistics().ports == {}
            if partition.monitor is not None:
                for monitor_id in range(2):
                    partition.monitor.page.register(monitor_id, 1)  # free again
    assert {log["event"] for log in logs} <= {"port_handler_failed", "port_handler_answered_no_status"}
