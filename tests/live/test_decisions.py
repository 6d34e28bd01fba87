"""Design decisions 2, 3, 6 and 8 on the path that the benchmark measures: no trace, default profile, quantum 32."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.abc
import anyio.lowlevel
import pytest
from structlog.testing import capture_logs

from broker import (
    CalledFromOwnHandler,
    ConnectionIdInUse,
    GuestFault,
    HvStatus,
    Msr,
    Partition,
    PartitionConfig,
    PortHandle,
    SynicPortAccess,
    VirtualProcessor,
    Vtl,
    receive_messages,
    serve_messages,
)

QUANTUM = 32
CONNECTION = 1
OTHER = 2
MESSAGE = b"hello"


class Port:
    """A message port and an event port in one, whose handler does what `work` says and answers SUCCESS."""

    def __init__(self, work: Callable[[], Awaitable[object]] | None = None) -> None:
        self.work = work
        self.calls = 0
        self.finished = 0

    async def handle_message(self, message: bytes, trusted: bool) -> HvStatus:
        await self.handle_event(0)
        return HvStatus.SUCCESS

    async def handle_event(self, flag: int) -> None:
        self.calls += 1
        if self.work is not None:
            await self.work()
        self.finished += 1

    @property
    def running(self) -> int:
        return self.calls - self.finished


class Gate(Port):
    """A port whose handler waits until `release` is set."""

    def __init__(self) -> None:
        super().__init__(self._wait)
        self.entered = anyio.Event()
        self.release = anyio.Event()

    async def _wait(self) -> None:
        self.entered.set()
        await self.release.wait()


class Kind:
    """How a port is registered and called: message or event, by a processor's exit or by the map directly."""

    def __init__(self, name: str, is_event: bool, by_map: bool) -> None:
        self.name = name
        self.is_event = is_event
        self.by_map = by_map

    async def add(self, access: SynicPortAccess, port: Port, connection_id: int = CONNECTION) -> PortHandle:
        add = access.add_event_port if self.is_event else access.add_message_port
        return await add(connection_id, Vtl.VTL0, port)

    async def call(self, partition: Partition, vp: int = 0, connection_id: int = CONNECTION) -> HvStatus:
        if self.by_map:
            port_map = partition.port_map
            if self.is_event:
                return await port_map.handle_signal_event(Vtl.VTL0, connection_id, 0)
            return await port_map.handle_post_message(Vtl.VTL0, connection_id, False, MESSAGE)
        processor = partition.vp(vp)
        if self.is_event:
            return await processor.signal_event(connection_id)
        return await processor.post_message(connection_id, 1, MESSAGE)


KINDS = [
    Kind(f"{kind} by {way}", kind == "event", way == "map")
    for kind, way in itertools.product(("message", "event"), ("processor", "map"))
]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    chosen: Kind = request.param
    return chosen


@pytest.fixture(params=[kind for kind in KINDS if not kind.by_map], ids=lambda kind: kind.name)
def exit_kind(request: pytest.FixtureRequest) -> Kind:
    """Those by a processor's exit."""
    chosen: Kind = request.param
    return chosen


@asynccontextmanager
async def warm_partition(vp_count: int = 1, quantum: int = QUANTUM) -> AsyncIterator[Partition]:
    """A partition whose processors have made their first exit, after which the common exit goes the short way."""
    async with Partition(PartitionConfig(vp_count=vp_count, quantum=quantum)) as partition:
        for index in range(vp_count):
            await partition.vp(index).read_msr(Msr.VP_INDEX)
        yield partition


async def fail() -> None:
    raise KeyError("the device is broken")


# decision 2: contained, logged, counted


async def test_a_raising_handler_is_contained_logged_counted_and_answered_operation_failed(kind: Kind) -> None:
    async with warm_partition() as partition:
        access = partition.synic()
        await kind.add(access, Port(fail))
        healthy = Port()
        await kind.add(access, healthy, OTHER)
        with capture_logs() as logs:
            statuses = [await kind.call(partition) for _ in range(2 * QUANTUM)]
        assert statuses == [HvStatus.OPERATION_FAILED] * (2 * QUANTUM)
        assert [await kind.call(partition, connection_id=OTHER) for _ in range(3)] == [HvStatus.SUCCESS] * 3
        statistics = partition.port_map.statistics().ports
    assert len(logs) == 2 * QUANTUM
    assert {(log["connection_id"], log["log_level"]) for log in logs} == {("0x00000001", "error")}
    for log in logs:
        error = log["exc_info"]
        assert isinstance(error, KeyError)
        innermost = error.__traceback__
        while innermost is not None and innermost.tb_next is not None:
            innermost = innermost.tb_next
        assert innermost is not None
        assert innermost.tb_frame.f_code is fail.__code__
    assert (statistics[CONNECTION].failed, statistics[CONNECTION].accepted) == (2 * QUANTUM, 0)
    assert (statistics[OTHER].failed, statistics[OTHER].accepted) == (0, 3)
    assert healthy.finished == 3


async def test_an_answer_that_is_no_status_is_a_failure() -> None:
    class Confused:
        async def handle_message(self, message: bytes, trusted: bool) -> HvStatus:
            return "fine"  # type: ignore[return-value]

    async with warm_partition() as partition:
        await partition.synic().add_message_port(CONNECTION, Vtl.VTL0, Confused())
        with capture_logs() as logs:
            assert await partition.vp(0).post_message(CONNECTION, 1, MESSAGE) is HvStatus.OPERATION_FAILED
        assert partition.port_map.statistics().ports[CONNECTION].failed == 1
    assert [(log["connection_id"], log["answer"]) for log in logs] == [("0x00000001", "'fine'")]


async def test_a_handler_that_raises_after_it_waited_is_contained_too(kind: Kind) -> None:
    async def wait_and_fail() -> None:
        await anyio.lowlevel.checkpoint()
        await fail()

    async with warm_partition() as partition:
        await kind.add(partition.synic(), Port(wait_and_fail))
        with capture_logs() as logs:
            assert await kind.call(partition) is HvStatus.OPERATION_FAILED
        assert partition.port_map.statistics().ports[CONNECTION].in_flight == 0
    assert len(logs) == 1


# decision 3: aclose quiesces


async def test_aclose_under_load_waits_for_every_handler_and_none_is_entered_after(kind: Kind) -> None:
    processors = 4
    refused: list[HvStatus] = []

    async def load(partition: Partition, vp: int) -> None:
        while (status := await kind.call(partition, vp)) is HvStatus.SUCCESS:
            await anyio.lowlevel.checkpoint()
        refused.append(status)

    async with warm_partition(processors) as partition, anyio.create_task_group() as group:
        release = anyio.Event()
        port = Port()
        handle = await kind.add(partition.synic(), port)
        for vp in range(processors):
            group.start_soon(load, partition, vp)
        while port.finished < 10 * processors:
            await anyio.lowlevel.checkpoint()
        port.work = release.wait
        while port.running < processors:
            await anyio.lowlevel.checkpoint()
        closed = anyio.Event()

        async def close() -> None:
            await handle.aclose()
            assert port.running == 0
            closed.set()

        group.start_soon(close)
        await anyio.wait_all_tasks_blocked()
        assert not closed.is_set()
        calls = port.calls
        assert await kind.call(partition) is HvStatus.INVALID_CONNECTION_ID
        release.set()
        await closed.wait()
        assert (port.calls, port.running) == (calls, 0)
    assert refused == [HvStatus.INVALID_CONNECTION_ID] * processors
    assert port.calls == calls


async def test_cancelled_while_waiting_in_aclose_the_port_stays_unregistered(kind: Kind) -> None:
    async with warm_partition() as partition, anyio.create_task_group() as group:
        access, gate = partition.synic(), Gate()
        handle = await kind.add(access, gate)
        group.start_soon(kind.call, partition)
        await gate.entered.wait()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await handle.aclose()
        assert scope.cancelled_caught
        assert await kind.call(partition) is HvStatus.INVALID_CONNECTION_ID
        async with await kind.add(access, Port()):
            assert await kind.call(partition) is HvStatus.SUCCESS
            gate.release.set()
            await handle.aclose()
            assert gate.finished == 1
            assert await kind.call(partition) is HvStatus.SUCCESS  # the later owner is untouched


async def test_a_port_may_close_itself_in_its_handler(kind: Kind) -> None:
    async with warm_partition() as partition:

        async def close() -> None:
            handle.close()
            await anyio.lowlevel.checkpoint()

        port = Port(close)
        handle = await kind.add(partition.synic(), port)
        assert await kind.call(partition) is HvStatus.SUCCESS
        assert await kind.call(partition) is HvStatus.INVALID_CONNECTION_ID
        assert port.finished == 1


@pytest.mark.parametrize("waits_first", [False, True])
async def test_aclose_in_the_own_handler_raises_instead_of_waiting_for_itself(kind: Kind, waits_first: bool) -> None:
    seen: list[CalledFromOwnHandler] = []

    async def deeper() -> None:
        if waits_first:
            await anyio.lowlevel.checkpoint()
        await handle.aclose()

    async def close() -> None:
        try:
            await deeper()
        except CalledFromOwnHandler as error:
            seen.append(error)

    async with warm_partition() as partition:
        handle = await kind.add(partition.synic(), Port(close))
        assert await kind.call(partition) is HvStatus.SUCCESS
        assert await kind.call(partition) is HvStatus.INVALID_CONNECTION_ID
    assert len(seen) == 1
    assert "0x00000001" in str(seen[0])


async def test_aclose_in_another_ports_handler_waits(kind: Kind) -> None:
    async with warm_partition(2) as partition, anyio.create_task_group() as group:
        gate = Gate()
        handle = await kind.add(partition.synic(), gate)
        closer = Port(handle.aclose)
        await kind.add(partition.synic(), closer, OTHER)
        group.start_soon(kind.call, partition, 0)
        await gate.entered.wait()
        group.start_soon(kind.call, partition, 1, OTHER)
        await anyio.wait_all_tasks_blocked()
        assert closer.running == 1
        gate.release.set()
    assert (gate.finished, closer.finished) == (1, 1)


async def test_a_handler_may_register_a_port_while_it_runs(kind: Kind) -> None:
    async with warm_partition() as partition:
        access = partition.synic()

        async def register() -> None:
            await kind.add(access, Port(), OTHER)

        await kind.add(access, Port(register))
        assert await kind.call(partition) is HvStatus.SUCCESS
        assert await kind.call(partition, connection_id=OTHER) is HvStatus.SUCCESS


# decision 6: who registers a port supervises its handler


async def test_a_crash_of_a_worker_reaches_its_author_and_nobody_else() -> None:
    async def crash(message: object) -> None:
        raise LookupError("worker")

    async with warm_partition() as partition, receive_messages(partition.synic(), OTHER) as inbox:
        with pytest.raises(LookupError, match="worker"):  # noqa: PT012
            async with serve_messages(partition.synic(), CONNECTION, crash):
                assert await partition.vp(0).post_message(CONNECTION, 1, MESSAGE) is HvStatus.SUCCESS
                await anyio.sleep_forever()
        assert await partition.vp(0).post_message(CONNECTION, 1, MESSAGE) is HvStatus.INVALID_CONNECTION_ID
        assert await partition.vp(0).post_message(OTHER, 1, MESSAGE) is HvStatus.SUCCESS
        assert (await inbox.receive()).payload == MESSAGE


# decision 8: stopping


async def _post_again(vp: VirtualProcessor) -> object:
    return await vp.post_message(OTHER, 1, MESSAGE)


async def _signal_again(vp: VirtualProcessor) -> object:
    return await vp.signal_event(OTHER)


async def _hypercall(vp: VirtualProcessor) -> object:
    return await vp.hypercall(0x1_005D, OTHER)


async def _read(vp: VirtualProcessor) -> object:
    return await vp.read_msr(Msr.SVERSION)


async def _halt(vp: VirtualProcessor) -> object:
    return await vp.wait_for_interrupt()


async def _wait_for_something_foreign(vp: VirtualProcessor) -> object:
    return await anyio.sleep_forever()


async def _poll_something_foreign(vp: VirtualProcessor) -> object:
    while True:
        await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    "go_on",
    [_post_again, _signal_again, _hypercall, _read, _halt, _wait_for_something_foreign, _poll_something_foreign],
)
async def test_a_stop_in_mid_handler_lets_it_finish_and_takes_effect_at_the_next_exit_or_wait(
    go_on: Callable[[VirtualProcessor], Awaitable[object]], exit_kind: Kind
) -> None:
    went_on: list[object] = []

    async with warm_partition() as partition:
        gate, later = Gate(), Port()
        await exit_kind.add(partition.synic(), gate)
        await exit_kind.add(partition.synic(), later, OTHER)

        async def guest(vp: VirtualProcessor) -> None:
            went_on.append(await exit_kind.call(partition))
            went_on.append(await go_on(vp))

        run = partition.start(0, guest)
        await gate.entered.wait()
        run.stop()
        run.stop()
        await anyio.wait_all_tasks_blocked()
        assert (gate.running, run.is_over) == (1, False)
        gate.release.set()
        end = await run.wait()
    assert end.how == "stopped"
    assert went_on == [HvStatus.SUCCESS]
    assert (gate.finished, later.calls) == (1, 0)


async def test_a_stop_while_the_guest_waits_takes_effect_at_once() -> None:
    async with warm_partition() as partition:
        run = partition.start(0, _halt)
        await anyio.wait_all_tasks_blocked()
        run.stop()
        assert (await run.wait()).how == "stopped"


async def test_a_processor_can_run_again_after_a_stop() -> None:
    async with warm_partition() as partition:
        first = partition.start(0, _halt)
        await anyio.wait_all_tasks_blocked()
        first.stop()
        await first.wait()
        second = await partition.start(0, _read).wait()
    assert (second.how, second.result) == ("finished", 1)


@pytest.mark.parametrize("exits_before", range(3))
@pytest.mark.parametrize("quantum", [1, 2, QUANTUM])
async def test_a_stop_respects_both_of_two_overlapping_calls(exit_kind: Kind, quantum: int, exits_before: int) -> None:
    """Wherever in its quantum the processor is when the two calls begin."""
    statuses: list[HvStatus] = []
    async with warm_partition(quantum=quantum) as partition:
        gates = {CONNECTION: Gate(), OTHER: Gate()}
        for connection_id, gate in gates.items():
            await exit_kind.add(partition.synic(), gate, connection_id)

        async def call(connection_id: int) -> None:
            statuses.append(await exit_kind.call(partition, connection_id=connection_id))

        async def guest(vp: VirtualProcessor) -> None:
            for _ in range(exits_before):
                await exit_kind.call(partition, connection_id=99)
            async with anyio.create_task_group() as group:
                for connection_id in gates:
                    group.start_soon(call, connection_id)
            await anyio.sleep_forever()

        run = partition.start(0, guest)
        for gate in gates.values():
            await gate.entered.wait()
        run.stop()
        for gate in reversed(gates.values()):
            await anyio.wait_all_tasks_blocked()
            assert not run.is_over
            gate.release.set()
        assert (await run.wait()).how == "stopped"
    assert statuses == [HvStatus.SUCCESS] * 2
    assert [gate.finished for gate in gates.values()] == [1, 1]


async def test_leaving_the_partition_lets_the_handler_in_flight_finish() -> None:
    gate = Gate()

    async def open_the_gate() -> None:
        await anyio.wait_all_tasks_blocked()
        gate.release.set()

    async with anyio.create_task_group() as group:
        async with warm_partition() as partition:
            await partition.synic().add_message_port(CONNECTION, Vtl.VTL0, gate)
            run = partition.start(0, lambda vp: vp.post_message(CONNECTION, 1, MESSAGE))
            await gate.entered.wait()
            group.start_soon(open_the_gate)
        assert (gate.finished, run.is_over) == (1, True)


# decision 8: the quantum


@pytest.mark.parametrize("quantum", [1, QUANTUM])
@pytest.mark.parametrize("exit_", [_post_again, _signal_again, _hypercall, _read])
async def test_a_guest_in_an_endless_loop_of_exits_starves_nobody(
    exit_: Callable[[VirtualProcessor], Awaitable[object]], quantum: int
) -> None:
    exits = 0

    async def guest(vp: VirtualProcessor) -> None:
        nonlocal exits
        while True:
            await exit_(vp)
            exits += 1

    async with warm_partition(quantum=quantum) as partition:
        run = partition.start(0, guest)
        seen = []
        for _ in range(20):
            await anyio.lowlevel.checkpoint()
            seen.append(exits)
        assert exits >= quantum
        # a loop may run the guest twice between two turns of this task, never more
        assert max(later - earlier for earlier, later in itertools.pairwise(seen)) <= 2 * quantum
        run.stop()
        assert (await run.wait()).how == "stopped"


async def test_a_used_up_quantum_does_not_hide_what_arrived_in_the_pause() -> None:
    """Conformance item 44: a slot that the guest emptied without EOM is filled again at its next exit at the latest."""
    slots: list[tuple[int, int]] = []

    async with warm_partition() as partition:
        port = await partition.synic().new_guest_message_port(Vtl.VTL0, 0, 2)
        paused = anyio.Event()

        async def post_two() -> None:
            await paused.wait()
            assert port.try_post_message(1, b"first")
            assert port.try_post_message(2, b"second")

        async def guest(vp: VirtualProcessor) -> None:
            await vp.write_msr(Msr.SIMP, 0x5001)
            await vp.write_msr(Msr.sint(2), 0x30)
            paused.set()
            slot = partition.memory.view(0x5200, 256)
            while not slot[0]:
                await vp.post_message(OTHER, 1, MESSAGE)
            before = slot[0]
            slot[0] = 0
            await vp.post_message(OTHER, 1, MESSAGE)
            slots.append((before, slot[0]))

        async with anyio.create_task_group() as group:
            group.start_soon(post_two)
            await partition.start(0, guest).wait()
    assert slots == [(1, 2)]


# decision 8: how a run ends


async def test_a_guest_fault_ends_only_its_own_processor_and_says_why() -> None:
    async def faulty(vp: VirtualProcessor) -> None:
        await vp.write_msr(Msr.SVERSION, 2)

    async with warm_partition(2) as partition:
        other = partition.start(1, _halt)
        end = await partition.start(0, faulty).wait()
        assert end.how == "faulted"
        assert end.fault is not None
        assert (end.fault.fault, end.fault.reason) == ("#GP", "MSR 0x40000081 does not take 0x2")
        assert not other.is_over
        assert (await partition.start(0, _read).wait()).how == "finished"


async def test_a_caught_guest_fault_is_the_guests_own_business() -> None:
    async def careful(vp: VirtualProcessor) -> str:
        with pytest.raises(GuestFault):
            await vp.read_msr(0x4000_0085)
        return "went on"

    async with warm_partition() as partition:
        assert (await partition.start(0, careful).wait()).result == "went on"


async def _broken_guest(vp: VirtualProcessor) -> None:
    raise ZeroDivisionError("guest code")


async def test_a_python_error_of_guest_code_is_raised_by_wait_and_not_again_at_the_end() -> None:
    async with warm_partition() as partition:
        run = partition.start(0, _broken_guest)
        with pytest.raises(ZeroDivisionError, match="guest code"):
            await run.wait()


async def test_a_python_error_that_nobody_waited_for_is_raised_where_the_partition_ends() -> None:
    with pytest.raises(ZeroDivisionError, match="guest code"):  # noqa: PT012
        async with warm_partition(2) as partition:
            partition.start(0, _broken_guest)
            assert (await partition.start(1, _read).wait()).how == "finished"


# what leaves a partition


@pytest.mark.parametrize("error", [LookupError("mine"), ConnectionIdInUse(3), SystemExit(3)])
async def test_an_exception_that_leaves_the_block_comes_out_unwrapped(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:  # noqa: PT012
        async with Partition() as partition:
            partition.start(0, _halt)
            raise error
    assert caught.value is error


async def test_memory_that_cannot_be_had_is_reported_unwrapped() -> None:
    with pytest.raises((OSError, OverflowError)):
        async with Partition(PartitionConfig(memory_size=1 << 62)):
            pass


@pytest.mark.parametrize("backend", ["emulated", "offloaded"])
async def test_a_cancellation_from_outside_ends_a_partition_cleanly(backend: str) -> None:
    gate = Gate()

    async def life(config: PartitionConfig, ready: anyio.Event) -> None:
        async with Partition(config) as partition:
            await partition.synic().add_message_port(CONNECTION, Vtl.VTL0, gate)
            await partition.synic().add_event_port(OTHER, Vtl.VTL0, Port())
            runs.append(partition.start(0, _halt))
            runs.append(partition.start(1, lambda vp: vp.post_message(CONNECTION, 1, MESSAGE)))
            await gate.entered.wait()
            partitions.append(partition)
            ready.set()
            await anyio.sleep_forever()

    runs: list[object] = []
    partitions: list[Partition] = []
    async with anyio.create_task_group() as group:
        ready = anyio.Event()
        group.start_soon(life, PartitionConfig(vp_count=2, backend=backend), ready)
        await ready.wait()
        group.cancel_scope.cancel()
    (partition,) = partitions
    assert [run.is_over for run in runs] == [True, True]  # type: ignore[attr-defined]
    assert partition.port_map.statistics().ports == {}
    assert partition.memory.fd == -1
