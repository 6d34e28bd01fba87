"""Conformance items 1 to 26: the SynIC's registers and overlay pages, as a guest sees them."""

from __future__ import annotations

import pytest

from broker import OPENVMM, TLFS, GuestFault, HvStatus, Partition, Profile, Vtl

from .support import (
    EMPTY_SLOT,
    EOM,
    GUEST_OS_ID,
    PAGE,
    SCONTROL,
    SIEFP,
    SIMP,
    SINT0,
    SINTS,
    STIMER0_CONFIG,
    STIMER0_COUNT,
    SVERSION,
    TIME_REF_COUNT,
    VP_INDEX,
    VSM_VINA,
    Guest,
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
GARBAGE = bytes(range(1, 256)) * 16 + bytes(range(1, 17))
OUTSIDE_MEMORY = 1 << 40


async def assert_faults_on_write(guest: Guest, msr: int, value: int) -> None:
    with pytest.raises(GuestFault) as caught:
        await guest.write(msr, value)
    assert caught.value.fault == "#GP"


async def read_all(guest: Guest) -> dict[int, int]:
    return {msr: await guest.read(msr) for msr in (SCONTROL, SVERSION, SIEFP, SIMP, *(SINT0 + n for n in SINTS))}


# values at reset


@pytest.mark.item(1)
@BOTH
async def test_every_sint_of_a_fresh_processor_is_masked_with_vector_0(profile: Profile) -> None:
    async with partition(profile=profile) as opened:
        assert [await Guest(opened).read(SINT0 + sint) for sint in SINTS] == [0x1_0000] * 16


@pytest.mark.item(2)
@BOTH
async def test_both_page_registers_of_a_fresh_processor_are_zero(profile: Profile) -> None:
    async with partition(profile=profile) as opened:
        guest = Guest(opened)
        assert (await guest.read(SIMP), await guest.read(SIEFP)) == (0, 0)


@pytest.mark.item(3)
async def test_scontrol_is_enabled_at_reset_in_the_openvmm_profile() -> None:
    async with partition(profile=OPENVMM) as opened:
        assert await Guest(opened).read(SCONTROL) == 1


@pytest.mark.item(4)
async def test_scontrol_is_disabled_at_reset_in_the_strict_profile() -> None:
    async with partition(profile=TLFS) as opened:
        assert await Guest(opened).read(SCONTROL) == 0


# SVERSION and EOM


@pytest.mark.item(5)
@BOTH
async def test_sversion_reads_1_whatever_the_state(profile: Profile) -> None:
    async with partition(profile=profile) as opened:
        guest = Guest(opened)
        assert await guest.read(SVERSION) == 1
        await guest.enable()
        assert await guest.read(SVERSION) == 1
        await guest.write(SCONTROL, 0)
        assert await guest.read(SVERSION) == 1
        await opened.reset()
        assert await guest.read(SVERSION) == 1


@pytest.mark.item(6)
@pytest.mark.parametrize("value", [0, 1, 2, (1 << 64) - 1])
@BOTH
async def test_sversion_cannot_be_written(profile: Profile, value: int) -> None:
    async with partition(profile=profile) as opened:
        guest = await enabled_guest(opened)
        before = await read_all(guest)
        await assert_faults_on_write(guest, SVERSION, value)
        assert await guest.vp.set_register(0x000A_0011, value) is HvStatus.INVALID_PARAMETER
        assert await read_all(guest) == before


@pytest.mark.item(7, 8)
@BOTH
async def test_eom_takes_any_value_and_reads_0(profile: Profile) -> None:
    async with partition(profile=profile) as opened:
        guest = Guest(opened)
        assert await guest.read(EOM) == 0
        await guest.enable()
        for value in (0, 1, 0xDEAD_BEEF, (1 << 64) - 1):
            await guest.write(EOM, value)
            assert await guest.read(EOM) == 0


# SINTs


@pytest.mark.item(9)
@pytest.mark.parametrize("value", [0xFFFF_FFFF_FFE0_FF30, 0x8000_0000_0008_8030, 0xFFFF_FFFF_FFFF_FFFF, 0x17_0040])
@BOTH
async def test_reserved_bits_of_a_sint_read_back_as_written(profile: Profile, value: int) -> None:
    async with partition(profile=profile) as opened:
        guest = Guest(opened)
        for sint in (0, 2, 15):
            await guest.write(SINT0 + sint, value)
            assert await guest.read(SINT0 + sint) == value


@pytest.mark.item(10)
async def test_an_unmasked_vector_below_16_faults_in_the_strict_profile() -> None:
    async with partition(profile=TLFS) as opened:
        guest = await enabled_guest(opened, sints=[3])
        before = await guest.read(SINT0 + 3)
        for vector in range(16):
            await assert_faults_on_write(guest, SINT0 + 3, sint_value(vector))
            assert await guest.read(SINT0 + 3) == before
        await guest.write(SINT0 + 3, sint_value(16))
        assert await guest.read(SINT0 + 3) == 0x10


@pytest.mark.item(11)
@BOTH
async def test_a_masked_vector_0_is_accepted(profile: Profile) -> None:
    async with partition(profile=profile) as opened:
        guest = await enabled_guest(opened, sints=[3])
        await guest.write(SINT0 + 3, 0x1_0000)
        assert await guest.read(SINT0 + 3) == 0x1_0000


@pytest.mark.item(12)
async def test_an_unmasked_vector_below_16_is_accepted_and_its_interrupts_are_lost_in_the_openvmm_profile() -> None:
    async with partition(profile=OPENVMM) as opened:
        guest = await enabled_guest(opened)
        await guest.write(SINT0 + 2, sint_value(15))
        assert await guest.read(SINT0 + 2) == 15
        (await event_interrupt(opened, sint=2, flag=9)).deliver()
        assert (await message_port(opened)).try_post_message(1, b"lost")
        assert guest.sief_page() == flags_page([(2, 9)])
        assert guest.slot() == message_slot(1, b"lost")
        assert not guest.vp.apic().is_pending(15)
        assert guest.take_interrupts() == []


@pytest.mark.item(13)
@pytest.mark.parametrize("msr", [*range(0x4000_0085, 0x4000_0090), *range(0x4000_00A0, 0x4000_00B0)], ids=hex)
async def test_the_gaps_between_the_registers_fault(msr: int) -> None:
    async with partition() as opened:
        guest = Guest(opened)
        with pytest.raises(GuestFault) as caught:
            await guest.read(msr)
        assert caught.value.fault == "#GP"
        await assert_faults_on_write(guest, msr, 0)


# overlay pages

PAGES = pytest.mark.parametrize("msr", [SIMP, SIEFP], ids=["SIMP", "SIEFP"])


async def guest_with_content(opened: Partition) -> tuple[Guest, dict[int, bytes]]:
    """A guest with a message in slot 2 and flag 77 of SINT 2 set, and the two pages' expected bytes by register."""
    guest = await enabled_guest(opened)
    assert (await message_port(opened)).try_post_message(0x11, b"content")
    (await event_interrupt(opened, sint=2, flag=77)).deliver()
    sim = bytes(512) + message_slot(0x11, b"content") + bytes(PAGE - 768)
    return guest, {SIMP: sim, SIEFP: flags_page([(2, 77)])}


@pytest.mark.item(14)
@PAGES
@BOTH
async def test_a_page_register_reads_back_as_written(profile: Profile, msr: int) -> None:
    async with partition(profile=profile) as opened:
        guest = Guest(opened)
        for value in (0x2_5001, 0x2_5FFF, 0x2_5FFE, 0):
            await guest.write(msr, value)
            assert await guest.read(msr) == value


@pytest.mark.item(15)
@PAGES
async def test_a_page_that_moves_takes_its_contents_along(msr: int) -> None:
    async with partition() as opened:
        guest, contents = await guest_with_content(opened)
        opened.memory.write(0x8_0000, GARBAGE)
        await guest.write(msr, 0x8_0001)
        assert opened.memory.read(0x8_0000, PAGE) == contents[msr]


@pytest.mark.item(15)
async def test_after_a_move_messages_arrive_in_the_new_page_only() -> None:
    async with partition() as opened:
        guest = await enabled_guest(opened)
        await guest.write(SIMP, 0x8_0001)
        assert (await message_port(opened)).try_post_message(1, b"moved")
        assert opened.memory.read(0x8_0000 + 512, 256) == message_slot(1, b"moved")
        assert guest.slot() == EMPTY_SLOT


@pytest.mark.item(16)
@PAGES
async def test_contents_hidden_by_a_disable_come_back_with_the_next_enable_and_no_stale_byte_shows(msr: int) -> None:
    async with partition() as opened:
        guest, contents = await guest_with_content(opened)
        await guest.write(msr, 0)
        opened.memory.write(0x8_0000, GARBAGE)
        await guest.write(msr, 0x8_0001)
        assert opened.memory.read(0x8_0000, PAGE) == contents[msr]


@pytest.mark.item(17)
@PAGES
@BOTH
async def test_a_first_enable_over_garbage_shows_zeros(profile: Profile, msr: int) -> None:
    async with partition(profile=profile) as opened:
        opened.memory.write(0x8_0000, GARBAGE)
        await Guest(opened).write(msr, 0x8_0001)
        assert opened.memory.read(0x8_0000, PAGE) == bytes(PAGE)


@pytest.mark.item(18)
@PAGES
async def test_writing_the_same_page_number_again_leaves_the_contents(msr: int) -> None:
    async with partition() as opened:
        guest = Guest(opened)
        await guest.write(msr, 0x8_0001)
        opened.memory.write(0x8_0000, GARBAGE)
        for value in (0x8_0001, 0x8_0FFF):
            await guest.write(msr, value)
            assert opened.memory.read(0x8_0000, PAGE) == GARBAGE


@pytest.mark.item(19)
@PAGES
@BOTH
async def test_a_page_outside_memory_faults_and_changes_nothing(profile: Profile, msr: int) -> None:
    async with partition(profile=profile) as opened:
        guest, contents = await guest_with_content(opened)
        before = await read_all(guest)
        for gpa in (1 << 20, OUTSIDE_MEMORY, ((1 << 52) - 1) << 12):
            await assert_faults_on_write(guest, msr, gpa | 1)
        assert await read_all(guest) == before
        assert (guest.sim_page(), guest.sief_page()) == (contents[SIMP], contents[SIEFP])


@pytest.mark.item(19)
async def test_a_page_outside_memory_that_is_not_enabled_is_only_a_number() -> None:
    async with partition() as opened:
        guest = Guest(opened)
        await guest.write(SIMP, OUTSIDE_MEMORY)
        assert await guest.read(SIMP) == OUTSIDE_MEMORY


# reset


@pytest.mark.item(20)
@pytest.mark.parametrize(("profile", "scontrol"), [(OPENVMM, 1), (TLFS, 0)], ids=["openvmm", "tlfs"])
async def test_reset_sets_every_register_back(profile: Profile, scontrol: int) -> None:
    async with partition(profile=profile, virtual_time=True) as opened:
        guest = await enabled_guest(opened, sints=SINTS)
        timers = range(STIMER0_CONFIG, STIMER0_CONFIG + 8)
        for msr in timers:
            await guest.write(msr, 0x2_000B if msr % 2 == STIMER0_CONFIG % 2 else 10_000)
        assert await guest.vp.set_register(VSM_VINA, 0x7FF) is HvStatus.SUCCESS
        await opened.reset()
        assert await read_all(guest) == {
            SCONTROL: scontrol,
            SVERSION: 1,
            SIEFP: 0,
            SIMP: 0,
            **{SINT0 + sint: 0x1_0000 for sint in SINTS},
        }
        assert [await guest.read(msr) for msr in timers] == [0] * 8
        assert await guest.vp.get_register(VSM_VINA) == 0


@pytest.mark.item(20)
@BOTH
async def test_reset_zeroes_the_pages_and_leaves_the_guests_memory_as_it_is(profile: Profile) -> None:
    async with partition(profile=profile) as opened:
        guest, contents = await guest_with_content(opened)
        await opened.reset()
        assert (guest.sim_page(), guest.sief_page()) == (contents[SIMP], contents[SIEFP])
        await guest.enable()
        assert (guest.sim_page(), guest.sief_page()) == (bytes(PAGE), bytes(PAGE))


@pytest.mark.item(20)
async def test_reset_empties_the_queues_and_forgets_pending_interrupts() -> None:
    async with partition() as opened:
        guest = await enabled_guest(opened)
        port = await message_port(opened)
        assert [port.try_post_message(1, bytes([n])) for n in range(3)] == [True] * 3
        await opened.reset()
        await guest.enable()
        assert guest.take_interrupts() == []
        await guest.write(EOM, 0)
        assert guest.slot() == EMPTY_SLOT
        assert port.try_post_message(1, b"after")
        assert guest.slot() == message_slot(1, b"after")


@pytest.mark.item(20)
async def test_a_timer_cleared_by_reset_does_not_fire() -> None:
    async with partition(virtual_time=True) as opened:
        guest = await enabled_guest(opened)
        await guest.write(STIMER0_COUNT, await guest.read(TIME_REF_COUNT) + 10_000)
        await guest.write(STIMER0_CONFIG, 0x2_0001)
        await opened.reset()
        await guest.enable()
        await opened.sleep(20_000)
        assert guest.take_interrupts() == []
        assert guest.slot() == EMPTY_SLOT


# VTLs, register names, processors


@pytest.mark.item(21)
@BOTH
async def test_each_vtl_has_registers_of_its_own(profile: Profile) -> None:
    async with partition(profile=profile, vtls=(Vtl.VTL0, Vtl.VTL1)) as opened:
        low, high = Guest(opened), Guest(opened, vtl=Vtl.VTL1)
        await low.enable([2])
        assert await high.read(SINT0 + 2) == 0x1_0000
        assert (await high.read(SIMP), await high.read(SIEFP)) == (0, 0)
        await high.write(SINT0 + 2, 0x55)
        assert await low.read(SINT0 + 2) == sint_value(vector_of(2), auto_eoi=True)
        assert await low.read(SIMP) == low.sim_gpa | 1


NAMES_AND_MSRS = [
    (0x0009_0002, GUEST_OS_ID, 0x8100_0006_0C00_0000),
    *((0x000A_0000 + sint, SINT0 + sint, 0xABCD_0000_0000_0050 + sint) for sint in SINTS),
    (0x000A_0010, SCONTROL, 0xF0F1),
    (0x000A_0012, SIEFP, 0x3_3003),
    (0x000A_0013, SIMP, 0x3_4005),
    *((0x000B_0000 + 2 * n, STIMER0_CONFIG + 2 * n, 0x5_0008) for n in range(4)),
    *((0x000B_0001 + 2 * n, STIMER0_COUNT + 2 * n, 0x1234_5678) for n in range(4)),
]


@pytest.mark.item(22)
@pytest.mark.parametrize(("name", "msr", "value"), NAMES_AND_MSRS, ids=[hex(name) for name, _, _ in NAMES_AND_MSRS])
@BOTH
async def test_a_register_written_by_name_is_the_msr_and_the_reverse(
    profile: Profile, name: int, msr: int, value: int
) -> None:
    async with partition(profile=profile, virtual_time=True) as opened:
        guest = Guest(opened)
        assert await guest.vp.set_register(name, value) is HvStatus.SUCCESS
        assert await guest.read(msr) == value
        await guest.write(msr, value ^ 0x1_0000)
        assert await guest.vp.get_register(name) == value ^ 0x1_0000


@pytest.mark.item(22)
async def test_the_read_only_registers_have_the_same_value_by_name_and_by_msr() -> None:
    names = ((0x000A_0011, SVERSION), (0x000A_0014, EOM), (0x0009_0003, VP_INDEX), (0x0009_0004, TIME_REF_COUNT))
    async with partition(vp_count=2, virtual_time=True) as opened:
        guest = Guest(opened, 1)
        await opened.sleep(12_345)
        for name, msr in names:
            assert await guest.vp.get_register(name) == await guest.read(msr)
            assert await guest.vp.set_register(name, 7) is (
                HvStatus.SUCCESS if msr == EOM else HvStatus.INVALID_PARAMETER
            )
        assert (await guest.read(VP_INDEX), await guest.read(TIME_REF_COUNT)) == (1, 12_345)


@pytest.mark.item(23)
@pytest.mark.parametrize("name", [0, 0x0002_0000, 0x000A_0015, 0x000A_00FF, 0x000B_0008, 0xFFFF_FFFF], ids=hex)
async def test_a_register_name_that_is_not_the_synics_is_unknown(name: int) -> None:
    async with partition() as opened:
        guest = Guest(opened)
        before = await read_all(guest)
        assert await guest.vp.get_register(name) is HvStatus.UNKNOWN_REGISTER_NAME
        assert await guest.vp.set_register(name, 1) is HvStatus.UNKNOWN_REGISTER_NAME
        assert await read_all(guest) == before


@pytest.mark.item(24)
async def test_vina_takes_its_fields_and_refuses_reserved_bits() -> None:
    async with partition() as opened:
        vp = opened.vp(0)
        assert await vp.set_register(VSM_VINA, 0x7A5) is HvStatus.SUCCESS
        for reserved in range(11, 64):
            assert await vp.set_register(VSM_VINA, 0x100 | 1 << reserved) is HvStatus.INVALID_PARAMETER
        assert await vp.get_register(VSM_VINA) == 0x7A5


@pytest.mark.item(25)
@BOTH
async def test_messages_for_a_processor_appear_in_its_own_page_only(profile: Profile) -> None:
    async with partition(profile=profile, vp_count=4) as opened:
        guests = [await enabled_guest(opened, vp) for vp in range(4)]
        for vp in range(4):
            assert (await message_port(opened, vp)).try_post_message(1 + vp, bytes([0xA0 + vp]) * 8)
        for vp, guest in enumerate(guests):
            slot = message_slot(1 + vp, bytes([0xA0 + vp]) * 8)
            assert guest.sim_page() == bytes(512) + slot + bytes(PAGE - 768)
            assert guest.take_interrupts() == [vector_of(2)]


@pytest.mark.item(26)
@BOTH
async def test_tearing_down_in_the_guests_order_does_not_fault(profile: Profile) -> None:
    async with partition(profile=profile) as opened:
        guest, _ = await guest_with_content(opened)
        for msr in (SCONTROL, SIEFP, SIMP):
            await guest.write(msr, 0)
        assert [await guest.read(msr) for msr in (SCONTROL, SIEFP, SIMP)] == [0, 0, 0]
