"""Conformance items 67 to 82: event flags that the host sets in the SIEF page."""

from __future__ import annotations

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

from broker import OPENVMM, TLFS, GuestMemory, Partition, Profile, Vtl
from broker.core import Signaled
from broker.processor import VirtualProcessor

from .support import (
    EMPTY_SLOT,
    FAST,
    INVALID_SYNIC_STATE,
    PAGE,
    SCONTROL,
    SIEFP,
    SIGNAL_EVENT,
    SIMP,
    SINT0,
    SUCCESS,
    BareSynic,
    Guest,
    RaisingPort,
    enabled_guest,
    event_interrupt,
    flags_page,
    partition,
    sint_value,
    vector_of,
)

BOTH = pytest.mark.parametrize("profile", [OPENVMM, TLFS], ids=lambda profile: profile.name)
WITH_VTL2 = (Vtl.VTL0, Vtl.VTL2)
CONNECTION = 0x42
IN_SINT_2 = [vector_of(2)]
NEWLY = b"\1" + bytes(7)
NOT_NEWLY = bytes(8)


async def signalling_guest(opened: Partition, sint: int, flag: int) -> Guest:
    """A guest with a connection through which it sets this flag of its own."""
    guest = await enabled_guest(opened, sints=[sint])
    port = RaisingPort(await event_interrupt(opened, sint, flag))
    await opened.synic().add_event_port(CONNECTION, Vtl.VTL0, port)
    return guest


async def signal_self(guest: Guest) -> int:
    """HvCallSignalEvent, fast: the result value."""
    return await guest.vp.hypercall(FAST | SIGNAL_EVENT, CONNECTION)


# the flag and its interrupt


@pytest.mark.item(67)
@pytest.mark.parametrize(
    ("sint", "flag", "byte", "bit"),
    [
        (1, 0, 0x100, 0x01),
        (2, 1, 0x200, 0x02),
        (2, 7, 0x200, 0x80),
        (2, 8, 0x201, 0x01),
        (5, 1029, 0x580, 0x20),
        (15, 2047, 0xFFF, 0x80),
    ],
)
@BOTH
async def test_a_clear_flag_is_set_at_its_bit_and_interrupts_once(
    profile: Profile, sint: int, flag: int, byte: int, bit: int
) -> None:
    async with partition(profile=profile) as opened:
        guest = await signalling_guest(opened, sint, flag)
        assert await signal_self(guest) == SUCCESS
        assert guest.sief_page() == bytes(byte) + bytes([bit]) + bytes(PAGE - byte - 1)
        assert guest.take_interrupts() == [vector_of(sint)]


@pytest.mark.item(68)
@BOTH
async def test_a_set_flag_stays_set_without_another_interrupt(profile: Profile) -> None:
    async with partition(profile=profile) as opened:
        guest = await signalling_guest(opened, 2, 33)
        assert await signal_self(guest) == SUCCESS
        assert guest.take_interrupts() == IN_SINT_2
        assert await signal_self(guest) == SUCCESS
        assert guest.sief_page() == flags_page([(2, 33)])
        assert guest.take_interrupts() == []


@pytest.mark.item(69)
@BOTH
async def test_a_flag_that_the_guest_cleared_interrupts_again(profile: Profile) -> None:
    async with partition(profile=profile) as opened:
        guest = await signalling_guest(opened, 2, 33)
        for _ in range(3):
            assert await signal_self(guest) == SUCCESS
            assert guest.take_interrupts() == IN_SINT_2
            guest.clear_flag(2, 33)
            assert guest.sief_page() == bytes(PAGE)


@pytest.mark.item(70)
@BOTH
async def test_setting_and_clearing_a_flag_changes_no_other_bit_of_the_page(profile: Profile) -> None:
    neighbours = [(2, 31), (2, 34), (2, 35), (1, 33), (3, 33), (2, 0), (2, 2047), (0, 5)]
    async with partition(profile=profile) as opened:
        guest = await signalling_guest(opened, 2, 33)
        opened.memory.write(guest.sief_gpa, flags_page(neighbours))
        assert await signal_self(guest) == SUCCESS
        assert guest.sief_page() == flags_page([*neighbours, (2, 33)])
        assert guest.sim_page() == bytes(PAGE)
        guest.clear_flag(2, 33)
        assert guest.sief_page() == flags_page(neighbours)


# bounds


@pytest.mark.item(71)
@pytest.mark.parametrize("sint", [2, 15])
@BOTH
async def test_flag_2047_is_the_last_one(profile: Profile, sint: int) -> None:
    async with partition(profile=profile, vtls=WITH_VTL2) as opened:
        guest = await enabled_guest(opened, sints=[sint])
        behind_the_page = opened.memory.read(guest.sief_gpa + PAGE, PAGE)
        caller = Guest(opened, vtl=Vtl.VTL2)
        assert await caller.signal_direct(sint, 2047) == (SUCCESS, NEWLY)
        for flag in (2048, 2049, 0xFFFF):
            with pytest.raises(ValueError, match="flags 0 to 2047"):
                await event_interrupt(opened, sint, flag)
            _, newly_signalled = await caller.signal_direct(sint, flag)
            assert newly_signalled == NOT_NEWLY
        assert guest.sief_page() == flags_page([(sint, 2047)])
        assert opened.memory.read(guest.sief_gpa + PAGE, PAGE) == behind_the_page
        assert guest.take_interrupts() == [vector_of(sint)]


@pytest.mark.item(71, 72)
@pytest.mark.parametrize(("sint", "flag"), [(2, 2048), (15, 2048), (2, -1), (16, 0), (255, 0), (-1, 0)])
@BOTH
def test_a_flag_or_sint_that_does_not_exist_is_refused(profile: Profile, sint: int, flag: int) -> None:
    with BareSynic(profile) as bare:
        bare.enable(range(16))
        assert bare.machine.signal_event(sint, flag) is Signaled.REFUSED
        assert bytes(bare.machine.sief_page) == bytes(PAGE)
        assert bare.apic.deliverable() is None


@pytest.mark.item(72)
async def test_no_port_is_made_for_a_sint_that_does_not_exist() -> None:
    async with partition() as opened:
        for sint in (16, 255, -1):
            with pytest.raises(ValueError, match="SINT 0 to 15"):
                await event_interrupt(opened, sint)


@pytest.mark.item(73)
@pytest.mark.parametrize("vp", [2, 0xFFFF_FFFE, 0xFFFF_FFFF])
async def test_an_event_for_an_unknown_processor_has_no_effect(vp: int) -> None:
    async with partition(vp_count=2) as opened:
        guests = [await enabled_guest(opened, index) for index in range(2)]
        (await event_interrupt(opened, vp=vp)).deliver()
        assert [guest.sief_page() for guest in guests] == [bytes(PAGE)] * 2
        assert [guest.take_interrupts() for guest in guests] == [[], []]


# masked, disabled


@pytest.mark.item(74)
async def test_an_event_for_a_masked_sint_is_not_newly_signalled_in_the_openvmm_profile() -> None:
    async with partition(profile=OPENVMM, vtls=WITH_VTL2) as opened:
        guest = await enabled_guest(opened, masked=True)
        (await event_interrupt(opened, 2, 33)).deliver()
        assert await Guest(opened, vtl=Vtl.VTL2).signal_direct(2, 33) == (SUCCESS, NOT_NEWLY)
        await assert_nothing_came_even_after_unmasking(guest)


@pytest.mark.item(75)
async def test_an_event_for_a_masked_sint_is_an_invalid_synic_state_in_the_strict_profile() -> None:
    async with partition(profile=TLFS, vtls=WITH_VTL2) as opened:
        guest = await enabled_guest(opened, masked=True)
        result, _ = await Guest(opened, vtl=Vtl.VTL2).signal_direct(2, 33)
        assert result == INVALID_SYNIC_STATE
        await assert_nothing_came_even_after_unmasking(guest)


async def assert_nothing_came_even_after_unmasking(guest: Guest) -> None:
    await guest.write(SINT0 + 2, sint_value(vector_of(2), auto_eoi=True))
    assert guest.sief_page() == bytes(PAGE)
    assert guest.take_interrupts() == []


@pytest.mark.item(76)
@pytest.mark.parametrize(
    ("profile", "status"), [(OPENVMM, SUCCESS), (TLFS, INVALID_SYNIC_STATE)], ids=["openvmm", "tlfs"]
)
async def test_with_the_synic_off_no_flag_is_set(profile: Profile, status: int) -> None:
    async with partition(profile=profile, vtls=WITH_VTL2) as opened:
        guest = await enabled_guest(opened)
        await guest.write(SCONTROL, 0)
        (await event_interrupt(opened, 2, 33)).deliver()
        assert await Guest(opened, vtl=Vtl.VTL2).signal_direct(2, 33) == (status, NOT_NEWLY)
        await guest.write(SCONTROL, 1)
        assert guest.sief_page() == bytes(PAGE)
        assert guest.take_interrupts() == []


@pytest.mark.item(77)
async def test_with_siefp_off_a_flag_shows_after_the_enable_in_the_openvmm_profile() -> None:
    async with partition(profile=OPENVMM) as opened:
        guest = await enabled_guest(opened)
        await guest.write(SIEFP, 0)
        interrupt = await event_interrupt(opened, 2, 33)
        interrupt.deliver()
        assert guest.take_interrupts() == IN_SINT_2
        interrupt.deliver()
        assert guest.take_interrupts() == []
        assert guest.sief_page() == bytes(PAGE)
        await guest.write(SIEFP, guest.sief_gpa | 1)
        assert guest.sief_page() == flags_page([(2, 33)])
        assert guest.take_interrupts() == []


@pytest.mark.item(77)
async def test_with_siefp_off_an_event_is_an_invalid_synic_state_in_the_strict_profile() -> None:
    async with partition(profile=TLFS, vtls=WITH_VTL2) as opened:
        guest = await enabled_guest(opened)
        await guest.write(SIEFP, 0)
        assert await Guest(opened, vtl=Vtl.VTL2).signal_direct(2, 33) == (INVALID_SYNIC_STATE, NOT_NEWLY)
        await guest.write(SIEFP, guest.sief_gpa | 1)
        assert guest.sief_page() == bytes(PAGE)
        assert guest.take_interrupts() == []


# proxied SINTs


class RecordingHost:
    """A host's SynIC that notes what it is given."""

    def __init__(self) -> None:
        self.events: list[tuple[Vtl, int, int, int]] = []

    def post_message(self, vtl: Vtl, vp: int, sint: int, message_type: int, payload: bytes) -> None:
        pytest.fail("nothing was posted")

    def signal_event(self, vtl: Vtl, vp: int, sint: int, flag: int) -> None:
        self.events.append((vtl, vp, sint, flag))


@pytest.mark.item(78)
def test_signalling_a_proxied_sint_reports_it_and_leaves_the_page_alone() -> None:
    with BareSynic(OPENVMM) as bare:
        bare.enable([2], proxy=True)
        assert bare.machine.proxied_sints() == 1 << 2
        assert bare.machine.signal_event(2, 33) is Signaled.PROXIED
        assert bytes(bare.machine.sief_page) == bytes(PAGE)
        assert bare.apic.deliverable() is None


@pytest.mark.item(78)
@pytest.mark.parametrize("backend", ["emulated", "openhcl"])
async def test_an_event_for_a_proxied_sint_is_routed_to_the_host(backend: str) -> None:
    host = RecordingHost()
    async with partition(backend=backend, host_synic=host, vtls=(Vtl.VTL0, Vtl.VTL1)) as opened:
        guest = await enabled_guest(opened, proxy=True, vtl=Vtl.VTL1)
        (await event_interrupt(opened, 2, 33, vtl=Vtl.VTL1)).deliver()
        assert host.events == [(Vtl.VTL1, 0, 2, 33)]
        assert guest.sief_page() == bytes(PAGE)
        assert guest.take_interrupts() == []


@pytest.mark.item(78)
async def test_the_direct_call_to_a_proxied_sint_is_an_invalid_synic_state() -> None:
    async with partition(vtls=WITH_VTL2) as opened:
        guest = await enabled_guest(opened, proxy=True)
        assert await Guest(opened, vtl=Vtl.VTL2).signal_direct(2, 33) == (INVALID_SYNIC_STATE, NOT_NEWLY)
        assert guest.sief_page() == bytes(PAGE)


# who else signals, and when


@pytest.mark.item(79)
async def test_of_two_threads_that_signal_the_same_clear_flag_one_sees_it_newly_signalled() -> None:
    outcomes: list[tuple[int, Signaled]] = []

    with BareSynic(OPENVMM) as bare:
        bare.enable([2])

        def signal_all() -> None:
            for flag in range(32):
                outcomes.append((flag, anyio.from_thread.run_sync(bare.machine.signal_event, 2, flag)))

        async with anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(anyio.to_thread.run_sync, signal_all)
        expected = [(flag, outcome) for flag in range(32) for outcome in (Signaled.ALREADY, Signaled.NEWLY)]
        assert sorted(outcomes, key=lambda pair: (pair[0], pair[1].value)) == expected
        assert bytes(bare.machine.sief_page) == flags_page((2, flag) for flag in range(32))


@pytest.mark.item(79)
async def test_of_two_processors_that_signal_the_same_clear_flag_one_sees_it_newly_signalled() -> None:
    async def signal(guest: Guest, outputs: list[tuple[int, bytes]]) -> None:
        outputs.append(await guest.signal_direct(2, 33, vp=0))

    async with partition(vp_count=2, vtls=WITH_VTL2, quantum=1) as opened:
        await enabled_guest(opened)
        outputs: list[tuple[int, bytes]] = []
        async with anyio.create_task_group() as group:
            for vp in range(2):
                group.start_soon(signal, Guest(opened, vp, Vtl.VTL2), outputs)
        assert sorted(outputs) == [(SUCCESS, NOT_NEWLY), (SUCCESS, NEWLY)]


@pytest.mark.item(80)
@BOTH
async def test_an_interrupt_from_before_a_retarget_hits_the_new_processor(profile: Profile) -> None:
    async with partition(profile=profile, vp_count=2) as opened:
        guests = [await enabled_guest(opened, vp) for vp in range(2)]
        port = await opened.synic().new_guest_event_port(1, Vtl.VTL0, 0, 2, 33)
        interrupt = port.interrupt()
        await port.set_target_vp(1)
        interrupt.deliver()
        assert [guest.sief_page() for guest in guests] == [bytes(PAGE), flags_page([(2, 33)])]
        assert [guest.take_interrupts() for guest in guests] == [[], IN_SINT_2]


@pytest.mark.item(80)
async def test_an_interrupt_of_a_closed_port_hits_nobody() -> None:
    async with partition() as opened:
        guest = await enabled_guest(opened)
        port = await opened.synic().new_guest_event_port(1, Vtl.VTL0, 0, 2, 33)
        interrupt = port.interrupt()
        port.close()
        interrupt.deliver()
        assert guest.sief_page() == bytes(PAGE)
        assert guest.take_interrupts() == []


@pytest.mark.item(81)
@pytest.mark.parametrize("backend", ["emulated", "offloaded"])
async def test_an_interrupt_does_nothing_once_the_partition_has_ended(backend: str) -> None:
    with GuestMemory(1 << 20) as memory:
        async with partition(memory=memory, backend=backend) as opened:
            guest = await enabled_guest(opened)
            interrupt = await event_interrupt(opened, 2, 33)
        interrupt.deliver()
        await anyio.wait_all_tasks_blocked()
        assert memory.read(guest.sief_gpa, PAGE) == bytes(PAGE)


@pytest.mark.item(67, 68, 69)
async def test_an_offloaded_synic_sets_the_flag_and_interrupts_as_the_emulated_one_does() -> None:
    async with partition(backend="offloaded") as opened:
        guest = await enabled_guest(opened)
        interrupt = await event_interrupt(opened, 2, 33)
        for _ in range(2):
            interrupt.deliver()
            assert await guest.vp.wait_for_interrupt() == vector_of(2)
            assert guest.sief_page() == flags_page([(2, 33)])
            guest.clear_flag(2, 33)
        assert guest.take_interrupts() == []


@pytest.mark.item(82)
async def test_a_guest_clears_flag_0_of_its_vmbus_sint_and_does_nothing_else() -> None:
    """VMBus gives relid 0 no channel: the guest's walk clears the flag, dispatches the others, and goes on."""
    dispatched: list[int] = []

    async def guest_code(vp: VirtualProcessor) -> None:
        async with vp.guest_synic().events(2) as walks:
            async for flags in walks:
                dispatched.extend(sorted(flags - {0}))
                if 9 in flags:
                    return

    async with partition() as opened:
        run = opened.start(0, guest_code)
        await opened.settled()
        vmbus = await event_interrupt(opened, 2, 0)
        vmbus.deliver()
        await opened.settled()
        guest = Guest(opened)
        page = await guest.read(SIEFP) & ~0xFFF
        assert opened.memory.read(page, PAGE) == bytes(PAGE)
        assert not run.is_over
        assert dispatched == []
        for flag in (0, 7, 9):
            (await event_interrupt(opened, 2, flag)).deliver()
        assert (await run.wait()).how == "finished"
        assert dispatched == [7, 9]
        assert opened.memory.read(page, PAGE) == bytes(PAGE)
        assert opened.memory.read((await guest.read(SIMP) & ~0xFFF) + 512, 256) == EMPTY_SLOT
