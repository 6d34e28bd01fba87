"""Conformance items 27 to 37: from a message or an event to the interrupt that the guest takes."""

from __future__ import annotations

import pytest

from broker import OPENVMM, TLFS, HvStatus, Partition, Profile, Vtl
from broker.processor import VirtualProcessor

from .support import (
    EOI,
    SINT0,
    SINTS,
    SUCCESS,
    TPR,
    Guest,
    RaisingPort,
    enabled_guest,
    event_interrupt,
    flags_page,
    message_port,
    message_slot,
    partition,
    sint_value,
    vector_of,
)

BOTH = pytest.mark.parametrize("profile", [OPENVMM, TLFS], ids=lambda profile: profile.name)


async def raise_sint(opened: Partition, sint: int, flag: int = 0) -> None:
    """Raise a SINT of processor 0 by an event flag, which has to be clear."""
    (await event_interrupt(opened, sint, flag)).deliver()


@pytest.mark.item(27)
@BOTH
async def test_sixteen_sints_raised_once_are_exactly_sixteen_interrupts_at_their_target(profile: Profile) -> None:
    async with partition(profile=profile, vp_count=2) as opened:
        guests = [await enabled_guest(opened, vp, SINTS, auto_eoi=False) for vp in range(2)]
        for sint in SINTS:
            (await event_interrupt(opened, sint, vp=1)).deliver()
        assert sorted(await guests[1].serve_interrupts()) == [vector_of(sint) for sint in SINTS]
        assert await guests[0].serve_interrupts() == []
        assert guests[1].sief_page() == flags_page((sint, 0) for sint in SINTS)


@pytest.mark.item(28)
@BOTH
async def test_only_sints_without_auto_eoi_need_an_eoi_for_later_interrupts_to_arrive(profile: Profile) -> None:
    async with partition(profile=profile) as opened:
        guest = await enabled_guest(opened, sints=SINTS)
        for sint in range(1, 16, 2):
            await guest.write(SINT0 + sint, sint_value(vector_of(sint)))
        for flag in range(2):
            for sint in SINTS:
                await raise_sint(opened, sint, flag)
                assert guest.acknowledge() == vector_of(sint)
                if sint % 2:
                    await guest.write(EOI, 0)
        assert guest.acknowledge() is None


@pytest.mark.item(29)
@BOTH
async def test_without_an_eoi_vectors_of_the_same_priority_and_below_wait_and_higher_ones_nest(
    profile: Profile,
) -> None:
    async with partition(profile=profile) as opened:
        guest = await enabled_guest(opened, sints=range(1, 6))
        for sint, vector in enumerate((0x57, 0x57, 0x5F, 0x30, 0x60), start=1):
            await guest.write(SINT0 + sint, sint_value(vector))
        await raise_sint(opened, 1)
        assert guest.acknowledge() == 0x57
        for sint in (2, 3, 4):  # the same vector, the same class above it, a lower class
            await raise_sint(opened, sint)
            assert guest.acknowledge() is None
        await raise_sint(opened, 5)
        assert guest.acknowledge() == 0x60
        await guest.write(EOI, 0)
        assert guest.acknowledge() is None
        await guest.write(EOI, 0)
        assert await guest.serve_interrupts() == [0x5F, 0x57, 0x30]


@pytest.mark.item(30)
@BOTH
async def test_processors_that_raise_each_others_sints_concurrently_all_count_sixteen(profile: Profile) -> None:
    count = 4

    async def guest_code(vp: VirtualProcessor) -> list[int]:
        statuses = [await vp.signal_event(0x100 * vp.index + sint) for sint in SINTS]
        assert statuses == [HvStatus.SUCCESS] * 16
        taken = []
        while len(taken) < 16:
            taken.append(await vp.wait_for_interrupt())
            await vp.write_msr(EOI, 0)
        return sorted(taken)

    async with partition(profile=profile, vp_count=count, quantum=1) as opened:
        guests = [await enabled_guest(opened, vp, SINTS, auto_eoi=False) for vp in range(count)]
        for vp in range(count):
            for sint in SINTS:
                port = RaisingPort(await event_interrupt(opened, sint, vp=count - 1 - vp))
                await opened.synic().add_event_port(0x100 * vp + sint, Vtl.VTL0, port)
        runs = [opened.start(vp, guest_code) for vp in range(count)]
        for run in runs:
            assert (await run.wait()).result == [vector_of(sint) for sint in SINTS]
        assert [guest.acknowledge() for guest in guests] == [None] * count


@pytest.mark.item(31)
@BOTH
async def test_a_destroyed_sint_raises_no_interrupt(profile: Profile) -> None:
    async with partition(profile=profile) as opened:
        guest = await enabled_guest(opened, sints=[2, 3])
        await guest.write(SINT0 + 2, sint_value(0xFF, masked=True))
        await raise_sint(opened, 2)
        assert (await message_port(opened, sint=2)).try_post_message(1, b"nobody listens")
        await raise_sint(opened, 3)
        assert guest.take_interrupts() == [vector_of(3)]


@pytest.mark.item(32)
@BOTH
async def test_a_vector_that_is_pending_merges_with_the_next_request(profile: Profile) -> None:
    async with partition(profile=profile) as opened:
        guest = await enabled_guest(opened)
        for flag in range(3):
            await raise_sint(opened, 2, flag)
        assert guest.take_interrupts() == [vector_of(2)]
        assert guest.sief_page() == flags_page((2, flag) for flag in range(3))
        await raise_sint(opened, 2, 3)
        assert guest.take_interrupts() == [vector_of(2)]


@pytest.mark.item(33)
@BOTH
async def test_two_sints_that_share_a_vector_interrupt_and_both_slots_and_flags_are_there(profile: Profile) -> None:
    async with partition(profile=profile) as opened:
        guest = await enabled_guest(opened, sints=[4, 9])
        for sint in (4, 9):
            await guest.write(SINT0 + sint, sint_value(0x55, auto_eoi=True))
        for sint in (4, 9):
            assert (await message_port(opened, sint=sint)).try_post_message(sint, bytes([sint]))
            await raise_sint(opened, sint, 100 + sint)
        assert guest.take_interrupts() == [0x55]
        assert guest.slot(4) == message_slot(4, b"\x04")
        assert guest.slot(9) == message_slot(9, b"\x09")
        assert guest.sief_page() == flags_page([(4, 104), (9, 109)])


@pytest.mark.item(34)
@BOTH
async def test_a_polled_sint_gets_its_message_without_an_interrupt(profile: Profile) -> None:
    async with partition(profile=profile) as opened:
        guest = await enabled_guest(opened, polling=True)
        assert (await message_port(opened)).try_post_message(7, b"polled")
        assert guest.slot() == message_slot(7, b"polled")
        assert guest.take_interrupts() == []


@pytest.mark.item(35)
@BOTH
async def test_a_polled_sint_gets_its_flag_newly_signalled_without_an_interrupt(profile: Profile) -> None:
    async with partition(profile=profile, vtls=(Vtl.VTL0, Vtl.VTL2)) as opened:
        guest = await enabled_guest(opened, polling=True)
        assert await Guest(opened, vtl=Vtl.VTL2).signal_direct(2, 5) == (SUCCESS, b"\1" + bytes(7))
        assert guest.sief_page() == flags_page([(2, 5)])
        assert guest.take_interrupts() == []


@pytest.mark.item(36)
async def test_auto_eoi_is_what_the_register_said_when_the_interrupt_was_requested() -> None:
    async with partition(profile=OPENVMM) as opened:
        guest = await enabled_guest(opened, auto_eoi=True)
        await raise_sint(opened, 2, 0)
        await guest.write(SINT0 + 2, sint_value(vector_of(2), auto_eoi=False))
        assert guest.acknowledge() == vector_of(2)
        await raise_sint(opened, 2, 1)
        await guest.write(SINT0 + 2, sint_value(vector_of(2), auto_eoi=True))
        assert guest.acknowledge() == vector_of(2), "the first request was auto-EOI: nothing was in service"
        await raise_sint(opened, 2, 2)
        assert guest.acknowledge() is None, "the second request was not: it is in service until its EOI"
        await guest.write(EOI, 0)
        assert guest.acknowledge() == vector_of(2)


@pytest.mark.item(37)
@pytest.mark.parametrize("priority", [0x40, 0x4F, 0x50, 0xFF], ids=hex)
async def test_an_interrupt_below_the_task_priority_is_latched_and_waits(priority: int) -> None:
    async with partition() as opened:
        guest = await enabled_guest(opened)
        await guest.write(TPR, priority)
        await raise_sint(opened, 2)
        assert guest.acknowledge() is None
        assert guest.vp.apic().is_pending(vector_of(2))
        await guest.write(TPR, 0x3F)
        assert guest.take_interrupts() == [vector_of(2)]


@pytest.mark.item(37)
async def test_an_interrupt_below_the_one_in_service_is_latched_and_waits() -> None:
    async with partition() as opened:
        guest = await enabled_guest(opened, sints=[2, 3])
        await guest.write(SINT0 + 3, sint_value(0x80))
        await raise_sint(opened, 3)
        assert guest.acknowledge() == 0x80
        await raise_sint(opened, 2)
        assert guest.acknowledge() is None
        assert guest.vp.apic().is_pending(vector_of(2))
        await guest.write(EOI, 0)
        assert guest.take_interrupts() == [vector_of(2)]


@pytest.mark.item(37)
async def test_a_halted_processor_wakes_when_the_task_priority_lets_the_interrupt_through() -> None:
    async def halt(vp: VirtualProcessor) -> int:
        return await vp.wait_for_interrupt()

    async with partition() as opened:
        guest = await enabled_guest(opened)
        await guest.write(TPR, 0xF0)
        run = opened.start(0, halt)
        await raise_sint(opened, 2)
        await opened.settled()
        assert not run.is_over
        await guest.write(TPR, 0)
        assert (await run.wait()).result == vector_of(2)
