"""Who may wait for whom: no guest, handler or consumer keeps the loop, a stop, a reset or an end from happening."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from structlog.testing import capture_logs

from broker import (
    HostError,
    HvStatus,
    Interrupt,
    Message,
    Msr,
    Partition,
    PartitionClosed,
    PartitionConfig,
    PortClosed,
    Trace,
    VirtualProcessor,
    Vtl,
    receive_messages,
)
from broker.hvdef import SintRegister, TimerConfig
from broker.trace import AnyEvent, encode_event

TURNS = pytest.mark.parametrize(
    "turns", [{}, {"seed": 3}, {"virtual_time": True}], ids=["live", "seeded", "virtual time"]
)


class Port:
    """A message port whose handler does this."""

    def __init__(self, work: Callable[[], Awaitable[object]]) -> None:
        self.work = work
        self.finished = 0

    async def handle_message(self, message: bytes, trusted: bool) -> HvStatus:
        await self.work()
        self.finished += 1
        return HvStatus.SUCCESS


async def post_once(vp: VirtualProcessor) -> HvStatus:
    return await vp.post_message(1, 1, b"")


async def test_a_timer_of_almost_no_period_starves_nobody() -> None:
    config = TimerConfig.make(enable=True, periodic=True, direct_mode=True, apic_vector=0x40)
    async with Partition() as partition:
        vp = partition.vp(0)
        await vp.write_msr(Msr.stimer_config(0), config)
        await vp.write_msr(Msr.stimer_count(0), 1)
        for _ in range(50):
            await partition.sleep(0)
        await vp.write_msr(Msr.stimer_config(0), 0)


@TURNS
async def test_the_block_ends_although_a_handler_waits_for_room(turns: dict[str, Any]) -> None:
    async with Partition(PartitionConfig(message_queue_depth=1, **turns)) as partition:
        to_guest = await partition.synic().new_guest_message_port(Vtl.VTL0, 0, 2)

        async def fill() -> None:
            for _ in range(5):
                await to_guest.post_message(1, b"")

        await partition.synic().add_message_port(1, Vtl.VTL0, Port(fill))
        await partition.vp(0).write_msr(Msr.sint(2), SintRegister.make(vector=0x30))
        run = partition.start(0, post_once)
        await anyio.wait_all_tasks_blocked()
    assert run.is_over


@TURNS
@pytest.mark.parametrize("how", ["end", "reset"])
async def test_a_handler_that_waits_for_the_reset_holds_up_neither_reset_nor_end(
    turns: dict[str, Any], how: str
) -> None:
    async with Partition(PartitionConfig(**turns)) as partition:
        port = Port(partition.synic().wait_reset)
        await partition.synic().add_message_port(1, Vtl.VTL0, port)
        run = partition.start(0, post_once)
        await anyio.wait_all_tasks_blocked()
        if how == "reset":
            await partition.reset()
            assert port.finished == 1
    assert run.is_over
    assert port.finished == 1


async def test_a_handler_that_stops_the_run_it_runs_in_finishes_first() -> None:
    async with Partition() as partition:

        async def stop() -> None:
            run.stop()
            await anyio.lowlevel.checkpoint()

        port = Port(stop)
        await partition.synic().add_message_port(1, Vtl.VTL0, port)

        async def guest(vp: VirtualProcessor) -> None:
            await post_once(vp)
            await anyio.sleep_forever()

        run = partition.start(0, guest)
        assert (await run.wait()).how == "stopped"
    assert port.finished == 1


async def test_a_reset_from_within_its_own_guest_or_handler_is_refused_in_a_sentence() -> None:
    async with Partition() as partition:
        await partition.synic().add_message_port(1, Vtl.VTL0, Port(partition.reset))
        with capture_logs() as logs:
            assert (await partition.start(0, post_once).wait()).result is HvStatus.OPERATION_FAILED
        assert isinstance(logs[0]["exc_info"], HostError)
        with pytest.raises(HostError, match="from another task"):
            await partition.start(0, lambda vp: partition.reset()).wait()


@pytest.mark.parametrize("backend", ["emulated", "offloaded"])
async def test_nothing_can_be_registered_or_driven_after_the_end(backend: str) -> None:
    async with Partition(PartitionConfig(backend=backend)) as partition:
        access, vp = partition.synic(), partition.vp(0)
        port = Port(anyio.lowlevel.checkpoint)
    descriptors = len(os.listdir("/proc/self/fd"))
    for call in (
        lambda: access.add_message_port(1, Vtl.VTL0, port),
        lambda: access.add_event_port(1, Vtl.VTL0, port),  # type: ignore[arg-type]
        lambda: access.new_guest_message_port(Vtl.VTL0, 0, 2),
        lambda: access.new_guest_event_port(1, Vtl.VTL0, 0, 2, 3),
        lambda: vp.read_msr(Msr.SIMP),
        lambda: vp.post_message(1, 1, b""),
        lambda: vp.write_memory(0, b"x"),
    ):
        with pytest.raises(PartitionClosed):
            await call()
    await access.wait_reset()
    assert len(os.listdir("/proc/self/fd")) == descriptors


async def test_a_partition_is_used_once() -> None:
    partition = Partition()
    async with partition:
        pass
    with pytest.raises(HostError, match="used once"):
        async with partition:
            pass


async def test_two_receivers_of_one_mailbox_both_get_their_message() -> None:
    got: list[Message] = []
    async with (
        Partition() as partition,
        receive_messages(partition.synic(), 1) as inbox,
        anyio.create_task_group() as group,
    ):

        async def take() -> None:
            got.append(await inbox.receive())

        group.start_soon(take)
        group.start_soon(take)
        await anyio.wait_all_tasks_blocked()
        for text in (b"1", b"2"):
            await partition.vp(0).post_message(1, 1, text)
    assert sorted(message.payload for message in got) == [b"1", b"2"]


async def test_a_sleeper_follows_the_clock_of_a_restored_state_both_ways() -> None:
    woken: list[int] = []
    async with Partition(PartitionConfig(virtual_time=True)) as partition, anyio.create_task_group() as group:
        early = partition.save()
        await partition.sleep(1_000)
        late = partition.save()
        partition.restore(early)

        async def sleep() -> None:
            await partition.sleep(500)
            woken.append(partition.clock.now())

        group.start_soon(sleep)
        await anyio.wait_all_tasks_blocked()
        partition.restore(late)
        await partition.sleep(0)
        await partition.settled()
    assert 500 <= woken[0] <= 1_001


async def test_a_restored_state_drops_waiting_posts_and_counts_them() -> None:
    async with Partition(PartitionConfig(message_queue_depth=1)) as partition, anyio.create_task_group() as group:
        await partition.vp(0).write_msr(Msr.sint(2), SintRegister.make(vector=0x30))
        document = partition.save()
        port = await partition.synic().new_guest_message_port(Vtl.VTL0, 0, 2)
        assert port.try_post_message(1, b"slot")
        assert port.try_post_message(1, b"queue")
        group.start_soon(port.post_message, 1, b"waits")
        await anyio.wait_all_tasks_blocked()
        partition.restore(document)
        machine = partition.vp(0).machine()
        assert machine is not None
        assert machine.dropped == 1


async def test_a_trace_never_gives_an_id_twice() -> None:
    events: list[AnyEvent] = []
    async with Partition(PartitionConfig(trace=Trace(events.append))) as partition:
        document = partition.save()
        await partition.vp(0).post_message(1, 1, b"")
        partition.restore(document)
        await partition.vp(0).post_message(1, 1, b"")
    assert [event.id for event in events] == [1, 2, 3, 4]
    assert len({event.flow for event in events}) == 2


async def test_a_polling_guest_holds_up_no_timer_under_a_seed_without_virtual_time() -> None:
    async with Partition(PartitionConfig(seed=1)) as partition:
        done = False

        async def guest(vp: VirtualProcessor) -> None:
            while not done:
                await vp.read_msr(Msr.TIME_REF_COUNT)

        run = partition.start(0, guest)
        await partition.sleep(1_000)
        done = True
        await run.wait()


def _story(backend: str, seed: int) -> bytes:
    events: list[AnyEvent] = []

    async def main() -> None:
        config = PartitionConfig(seed=seed, virtual_time=True, trace=Trace(events.append))
        async with Partition(config) as partition:
            port = await partition.synic().new_guest_message_port(Vtl.VTL0, 0, 2)

            async def task(number: int) -> None:
                await partition.take_turn(number)
                for step in range(3):
                    await partition.sleep(100)
                    port.try_post_message(1, bytes([number, step]))

            async with anyio.create_task_group() as group:
                for number in range(4):
                    group.start_soon(task, number)
                await partition.settled()
                await partition.sleep(1_000)

    anyio.run(main, backend=backend)
    return b"\n".join(map(encode_event, events))


def test_tasks_that_take_their_turn_first_run_in_the_order_of_the_seed_on_both_loops() -> None:
    stories = {_story(backend, 7) for backend in ("asyncio", "trio") for _ in range(4)}
    assert len(stories) == 1
    assert len({_story("trio", seed) for seed in range(6)}) > 1


async def test_settled_waits_for_what_an_eventfd_says_already() -> None:
    flags: list[int] = []

    class Events:
        async def handle_event(self, flag: int) -> None:
            flags.append(flag)

    async with Partition(PartitionConfig(backend="offloaded")) as partition:
        await partition.synic().add_event_port(1, Vtl.VTL0, Events())
        await partition.settled()
        await partition.vp(0).signal_event(1, 5)
        await partition.settled()
        assert flags == [5]


@pytest.mark.parametrize("backend", ["emulated", "offloaded"])
async def test_a_closed_guest_event_port_stays_closed(backend: str) -> None:
    async with Partition(PartitionConfig(backend=backend)) as partition:
        port = await partition.synic().new_guest_event_port(1, Vtl.VTL0, 0, 2, 3)
        interrupt = port.interrupt()
        port.close()
        assert interrupt.event() is None
        port.close()
        interrupt.deliver()


async def test_a_proxy_event_loses_no_last_signal_and_wraps_no_exception() -> None:
    delivered: list[int] = []
    interrupt = Interrupt.from_function(lambda: delivered.append(1))
    async with interrupt.event_or_proxy() as fd:
        os.eventfd_write(fd, 1)
    assert delivered == [1]
    with pytest.raises(KeyError):
        async with interrupt.event_or_proxy():
            raise KeyError("mine")


async def test_a_host_that_never_has_to_wait_still_lets_others_go_on() -> None:
    """A masked SINT drops every post at once, so there is always room."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while turns < 3:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with Partition() as partition, anyio.create_task_group() as group:
        port = await partition.synic().new_guest_message_port(Vtl.VTL0, 0, 2)
        group.start_soon(count)
        for _ in range(200):
            await port.post_message(1, b"")
        assert turns == 3


async def test_a_skip_or_failure_of_the_test_framework_leaves_guest_code_as_it_is() -> None:
    class Outcome(BaseException):
        pass

    async def guest(vp: VirtualProcessor) -> None:
        raise Outcome("skipped")

    async with Partition() as partition:
        run = partition.start(0, guest)
        with pytest.raises(Outcome):
            await run.wait()


async def test_a_host_synic_that_raises_costs_its_message_and_nothing_else() -> None:
    class Broken:
        def post_message(self, vtl: Vtl, vp: int, sint: int, message_type: int, payload: bytes) -> None:
            raise RuntimeError("broken")

        def signal_event(self, vtl: Vtl, vp: int, sint: int, flag: int) -> None:
            raise RuntimeError("broken")

    async with Partition(PartitionConfig(backend="openhcl", host_synic=Broken())) as partition:
        vp = partition.vp(0)
        await vp.write_msr(Msr.sint(2), SintRegister.make(vector=0x30, proxy=True))
        port = await partition.synic().new_guest_message_port(Vtl.VTL0, 0, 2)
        event = await partition.synic().new_guest_event_port(1, Vtl.VTL0, 0, 2, 3)
        with capture_logs() as logs:
            assert port.try_post_message(1, b"lost")
            event.interrupt().deliver()
        machine = vp.machine()
        assert machine is not None
        assert machine.dropped == 1
        assert [log["event"] for log in logs] == ["host_synic_failed"] * 2


@pytest.mark.parametrize("vtl", [3, 17])
async def test_a_vtl_that_does_not_exist_is_a_value_error_at_once(vtl: int) -> None:
    async with Partition() as partition:
        access = partition.synic()
        for call in (
            lambda: access.new_guest_message_port(vtl, 0, 2),  # type: ignore[arg-type]
            lambda: access.new_guest_event_port(1, vtl, 0, 2, 3),  # type: ignore[arg-type]
            lambda: access.add_message_port(1, vtl, Port(anyio.lowlevel.checkpoint)),  # type: ignore[arg-type]
        ):
            with pytest.raises(ValueError, match=str(vtl)):
                await call()


async def test_a_closed_port_says_so_to_a_waiting_poster() -> None:
    async with Partition(PartitionConfig(message_queue_depth=1)) as partition, anyio.create_task_group() as group:
        await partition.vp(0).write_msr(Msr.sint(2), SintRegister.make(vector=0x30))
        port = await partition.synic().new_guest_message_port(Vtl.VTL0, 0, 2)
        assert port.try_post_message(1, b"")
        assert port.try_post_message(1, b"")

        async def wait() -> None:
            with pytest.raises(PortClosed):
                await port.post_message(1, b"")

        group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        port.close()
