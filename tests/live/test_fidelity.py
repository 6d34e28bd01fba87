"""Rules of the reference that no conformance item has a number for."""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable

import anyio
import pytest

from broker import (
    GuestFault,
    HvStatus,
    MonitorPageGpas,
    Msr,
    Partition,
    PartitionConfig,
    Trace,
    VirtualProcessor,
    Vtl,
)
from broker.hvdef import (
    PARTITION_SELF,
    VP_SELF,
    HvRegister,
    PageRegister,
    PostMessageDirectInput,
    SignalEventDirectInput,
    SintRegister,
    VsmVina,
)
from broker.trace import AnyEvent, encode_event

SINT, VECTOR, SIM_GPN, SIEF_GPN = 2, 0x52, 0x10, 0x11
SLOT = SIM_GPN * 4096 + 256 * SINT


async def switch_on(vp: VirtualProcessor, vtl: Vtl = Vtl.VTL0, **sint: bool) -> None:
    await vp.write_msr(Msr.SIMP, PageRegister.make(enable=True, gpn=SIM_GPN + 2 * vtl), vtl=vtl)
    await vp.write_msr(Msr.SIEFP, PageRegister.make(enable=True, gpn=SIEF_GPN + 2 * vtl), vtl=vtl)
    await vp.write_msr(Msr.sint(SINT), SintRegister.make(vector=VECTOR, **sint), vtl=vtl)
    await vp.write_msr(Msr.SCONTROL, 1, vtl=vtl)


@pytest.mark.parametrize("auto_reset", [False, True])
async def test_vina_tells_a_higher_vtl_once_when_a_lower_one_gets_an_interrupt(auto_reset: bool) -> None:
    async with Partition(PartitionConfig(vtls=(Vtl.VTL0, Vtl.VTL1))) as partition:
        vp = partition.vp(0)
        await switch_on(vp)
        vina = VsmVina.make(vector=0x90, enabled=True, auto_eoi=True, auto_reset=auto_reset)
        assert await vp.set_register(HvRegister.VSM_VINA, vina, vtl=Vtl.VTL1) is HvStatus.SUCCESS
        event = await partition.synic().new_guest_event_port(1, Vtl.VTL0, 0, SINT, 7)
        event.interrupt().deliver()
        assert vp.try_take_interrupt(vtl=Vtl.VTL1) == 0x90
        await vp.write_msr(Msr.TPR, 0)
        partition.restore(partition.save())
        assert vp.try_take_interrupt(vtl=Vtl.VTL1) is None
        assert vp.try_take_interrupt() == VECTOR
        await vp.write_msr(Msr.EOI, 0)
        await vp.write_memory(SIEF_GPN * 4096 + 256 * SINT, bytes(256))
        event.interrupt().deliver()
        assert vp.try_take_interrupt(vtl=Vtl.VTL1) == (None if auto_reset else 0x90)
        assert VsmVina(await vp.get_register(HvRegister.VSM_VINA, vtl=Vtl.VTL1)).enabled is not auto_reset


@pytest.mark.parametrize("fault", ["write", "read", "store"])
async def test_an_exit_that_faults_delivers_what_waits_as_any_other(fault: str) -> None:
    async with Partition() as partition:
        vp = partition.vp(0)
        await switch_on(vp)
        port = await partition.synic().new_guest_message_port(Vtl.VTL0, 0, SINT)
        for message_type in (1, 2):
            port.try_post_message(message_type, b"")
        partition.memory.write(SLOT, bytes(4))
        exits: dict[str, Callable[[], Awaitable[object]]] = {
            "write": lambda: vp.write_msr(Msr.SVERSION, 0),
            "read": lambda: vp.read_msr(0x4000_0085),
            "store": lambda: vp.write_memory(1 << 40, b"x"),
        }
        with pytest.raises(GuestFault):
            await exits[fault]()
        assert partition.memory.read(SLOT, 4) == struct.pack("<I", 2)


async def test_the_monitor_page_reads_as_zeros_and_a_store_across_its_end_keeps_its_second_half() -> None:
    async with Partition() as partition:
        monitor = partition.synic().monitor_support
        assert monitor is not None
        partition.memory.write(0x5000, b"\xaa" * 4096)
        await monitor.set_monitor_page(Vtl.VTL0, MonitorPageGpas(0, 0x5000))
        await partition.vp(0).write_memory(0x5FF8, b"\x11" * 16)
        assert partition.memory.read(0x5000, 4096) == bytes(4096)
        assert partition.memory.read(0x6000, 16) == b"\x11" * 8 + bytes(8)


async def test_a_direct_post_puts_its_256_bytes_in_the_slot_as_they_are() -> None:
    async with Partition(PartitionConfig(vtls=(Vtl.VTL0, Vtl.VTL2))) as partition:
        vp = partition.vp(0)
        await switch_on(vp)
        slot = struct.pack("<IBBHQ", 5, 8, 0x80, 0x1234, 7) + bytes(range(240))

        async def post(message: bytes) -> int:
            call = PostMessageDirectInput(PARTITION_SELF, VP_SELF, 0, SINT, message)
            await vp.write_memory(0x1000, call.pack())
            return await vp.hypercall(0x00C1, 0x1000, vtl=Vtl.VTL2) & 0xFFFF

        assert await post(bytes(256)) == HvStatus.INVALID_PARAMETER
        assert vp.try_take_interrupt() is None
        assert await post(slot) == HvStatus.SUCCESS
        assert partition.memory.read(SLOT, 256) == slot
        assert vp.try_take_interrupt() == VECTOR


@pytest.mark.parametrize(("backend", "status"), [("whp", HvStatus.INVALID_SYNIC_STATE), ("emulated", HvStatus.SUCCESS)])
async def test_a_direct_signal_to_a_masked_sint_is_reported_where_the_hypervisor_does(
    backend: str, status: HvStatus
) -> None:
    async with Partition(PartitionConfig(backend=backend, vtls=(Vtl.VTL0, Vtl.VTL2))) as partition:
        vp = partition.vp(0)
        await switch_on(vp, masked=True)
        await vp.write_memory(0x1000, SignalEventDirectInput(PARTITION_SELF, VP_SELF, 0, SINT, 3).pack())
        assert await vp.hypercall(0x00C0, 0x1000, 0x2000, vtl=Vtl.VTL2) & 0xFFFF == status
        assert partition.memory.read(0x2000, 8) == bytes(8)


@pytest.mark.parametrize("backend", ["whp", "mshv"])
@pytest.mark.parametrize("off", [Msr.SIMP, Msr.SCONTROL])
async def test_a_message_for_a_synic_that_is_off_is_dropped_and_counted_by_hypervisor_backends(
    backend: str, off: int
) -> None:
    async with Partition(PartitionConfig(backend=backend)) as partition:
        vp = partition.vp(0)
        await switch_on(vp)
        await vp.write_msr(off, 0)
        port = await partition.synic().new_guest_message_port(Vtl.VTL0, 0, SINT)
        assert all(port.try_post_message(1, bytes([number])) for number in range(40))
        machine = vp.machine()
        assert machine is not None
        assert (machine.dropped, machine.queues.pending) == (40, 0)
        await switch_on(vp)
        assert partition.memory.read(SLOT, 4) == bytes(4)


async def test_kvm_interrupts_for_a_polling_sint() -> None:
    async with Partition(PartitionConfig(backend="kvm")) as partition:
        await switch_on(partition.vp(0), polling=True)
        port = await partition.synic().new_guest_message_port(Vtl.VTL0, 0, SINT)
        port.try_post_message(1, b"")
        assert partition.vp(0).try_take_interrupt() == VECTOR


async def test_the_hypercall_register_has_a_name_and_a_lock() -> None:
    async with Partition() as partition:
        vp = partition.vp(0)
        assert await vp.set_register(HvRegister.GUEST_OS_ID, 0x8100) is HvStatus.SUCCESS
        assert await vp.set_register(HvRegister.HYPERCALL, 0x5003) is HvStatus.SUCCESS
        assert await vp.get_register(HvRegister.HYPERCALL) == await vp.read_msr(Msr.HYPERCALL) == 0x5003
        assert await vp.set_register(HvRegister.HYPERCALL, 0) is HvStatus.INVALID_PARAMETER


async def test_the_reference_counter_and_the_timers_go_on_past_64_bits() -> None:
    async with Partition(PartitionConfig(virtual_time=True)) as partition:
        vp = partition.vp(0)
        partition.clock.set((1 << 64) - 50)
        await vp.write_msr(Msr.stimer_config(0), 1 | VECTOR << 4 | 1 << 12)
        await vp.write_msr(Msr.stimer_count(0), 30)
        assert await vp.wait_for_interrupt() == VECTOR
        now = await vp.read_msr(Msr.TIME_REF_COUNT)
        assert 30 <= now < 1_000
        partition.save()


def _doorbells(loop: str) -> bytes:
    events: list[AnyEvent] = []

    async def main() -> None:
        config = PartitionConfig(backend="offloaded", virtual_time=True, seed=3, trace=Trace(events.append))
        async with Partition(config) as partition:
            await switch_on(partition.vp(0))
            ports = [await partition.synic().new_guest_event_port(1, Vtl.VTL0, 0, SINT, flag) for flag in range(4)]
            await partition.settled()
            for port in ports:
                port.interrupt().deliver()
            await partition.settled()
            assert partition.memory.read(SIEF_GPN * 4096 + 256 * SINT, 1) == b"\x0f"

    anyio.run(main, backend=loop)
    return b"\n".join(map(encode_event, events))


def test_eventfds_that_are_signalled_together_are_read_in_the_order_of_the_seed_on_both_loops() -> None:
    assert len({_doorbells(loop) for loop in ("asyncio", "trio") for _ in range(6)}) == 1
