"""What ends with the partition, and what a guest cannot do to it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from broker import (
    GuestFault,
    HvStatus,
    Msr,
    Partition,
    PartitionClosed,
    PartitionConfig,
    SynicUnsupported,
    VirtualProcessor,
    Vtl,
)
from broker.hvdef import PageRegister

TURNS: list[dict[str, Any]] = [{}, {"seed": 3}, {"virtual_time": True}]


@pytest.mark.parametrize("turns", TURNS, ids=["live", "seeded", "virtual time"])
async def test_waits_from_outside_end_with_the_partition(turns: dict[str, Any]) -> None:
    ended: list[str] = []

    async def wait(what: str, call: Callable[[], Awaitable[object]]) -> None:
        with pytest.raises(PartitionClosed):
            await call()
        ended.append(what)

    async with anyio.create_task_group() as group, Partition(PartitionConfig(**turns)) as partition:
        vp = partition.vp(0)

        async def next_message() -> None:
            async with vp.guest_synic(Vtl.VTL0).messages(2) as messages:
                await anext(messages)

        group.start_soon(wait, "interrupt", vp.wait_for_interrupt)
        group.start_soon(wait, "message", next_message)
        if not turns.get("virtual_time"):
            group.start_soon(wait, "sleep", lambda: partition.sleep(10**15))
        await anyio.wait_all_tasks_blocked()
    assert sorted(ended) == sorted(
        {"interrupt", "message", "sleep"} - ({"sleep"} if "virtual_time" in turns else set())
    )


async def test_a_call_from_a_vtl_that_the_partition_has_not_is_refused_on_every_path() -> None:
    async with Partition(PartitionConfig()) as partition:
        vp = partition.vp(0)
        for call in (
            lambda: vp.post_message(1, 1, b"", vtl=Vtl.VTL2),
            lambda: vp.signal_event(1, vtl=Vtl.VTL1),
            lambda: vp.hypercall(0x1_005D, 1, vtl=Vtl.VTL1),
            lambda: vp.read_msr(Msr.SIMP, vtl=Vtl.VTL1),
        ):
            with pytest.raises(SynicUnsupported, match="no VTL"):
                await call()
        assert await vp.post_message(1, 1, b"") is HvStatus.INVALID_CONNECTION_ID


async def test_a_guest_fault_within_the_guests_own_task_group_is_still_a_guest_fault() -> None:
    async def guest(vp: VirtualProcessor) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(vp.read_msr, 0x4000_0085)

    async with Partition() as partition:
        end = await partition.start(0, guest).wait()
    assert end.how == "faulted"
    assert isinstance(end.fault, GuestFault)
    assert end.fault.fault == "#GP"


async def test_a_synic_page_on_a_page_that_the_hypervisor_owns_faults_and_the_state_stays_restorable() -> None:
    async with Partition() as partition:
        monitor = partition.synic().monitor_support
        assert monitor is not None
        pages = await monitor.allocate_monitor_page(Vtl.VTL0)
        assert pages is not None
        register = PageRegister.make(enable=True, gpn=pages.child_to_parent >> 12)
        with pytest.raises(GuestFault):
            await partition.vp(0).write_msr(Msr.SIMP, register)
        assert await partition.vp(0).read_msr(Msr.SIMP) == 0
        partition.restore(partition.save())
