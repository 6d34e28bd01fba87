"""Conformance, synthetic timers (items 142 to 153 and 155 to 160), in virtual time.

Times are ticks of 100 ns. Values stand here as the reference prints them (`reference/synic.md` 1.3 to 1.5).
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from broker import OPENVMM, TLFS, Partition, Profile
from broker.processor import VirtualProcessor

from .support import (
    EMPTY_SLOT,
    EOI,
    EOM,
    PAGE,
    SINT0,
    STIMER0_CONFIG,
    STIMER0_COUNT,
    TIME_REF_COUNT,
    BareSynic,
    Guest,
    enabled_guest,
    message_port,
    message_slot,
    partition,
    sint_value,
    vector_of,
)

ENABLED = 1 << 0
PERIODIC = 1 << 1
AUTO_ENABLE = 1 << 3
DIRECT = 1 << 12
TIMER_EXPIRED = 0x8000_0010
MILLISECOND = 10_000
DIRECT_VECTOR = 0x71


def on_sint(sint: int) -> int:
    """The SINT field of STIMERn_CONFIG."""
    return sint << 16


def direct(vector: int = DIRECT_VECTOR) -> int:
    """Direct mode with this vector."""
    return DIRECT | vector << 4


def config_of(timer: int) -> int:
    """The MSR STIMERn_CONFIG."""
    return STIMER0_CONFIG + 2 * timer


def count_of(timer: int) -> int:
    """The MSR STIMERn_COUNT."""
    return STIMER0_COUNT + 2 * timer


def timer_slot(timer: int, expiration: int, delivery: int, *, pending: bool = False) -> bytes:
    """The slot that an expired timer fills."""
    return message_slot(TIMER_EXPIRED, struct.pack("<IIQQ", timer, 0, expiration, delivery), pending=pending)


def read_timer_slot(slot: bytes) -> tuple[int, int, int, int, int, int]:
    """Type, payload size, index, reserved, expiration and delivery time."""
    message_type, size = struct.unpack_from("<IB", slot)
    return (message_type, size, *struct.unpack_from("<IIQQ", slot, 16))


@asynccontextmanager
async def timed_guest(*sints: int, profile: Profile = OPENVMM) -> AsyncIterator[Guest]:
    """A guest whose SINTs (2 where none is named) are open; time moves only when somebody waits."""
    async with partition(virtual_time=True, profile=profile) as opened:
        yield await enabled_guest(opened, sints=sints or (2,))


async def arm(guest: Guest, config: int, count: int, timer: int = 0) -> None:
    """Count first, then the configuration."""
    await guest.write(count_of(timer), count)
    await guest.write(config_of(timer), config)


async def until(guest: Guest, tick: int) -> None:
    """Let time pass until this tick. Whether a timer that is due at this very tick went first is the turns' to decide."""
    opened = guest.partition
    await opened.sleep(tick - opened.clock.now())


class Expiries:
    """Guest code that takes timer messages for ever, as the kvm-unit-tests do, and counts them by timer."""

    def __init__(self, guest: Guest, sints: tuple[int, ...], *, needs_eoi: tuple[int, ...] = ()) -> None:
        self.count: Counter[int] = Counter()
        self.slots: list[bytes] = []
        self._guest = guest
        self._sint_of = {vector_of(sint): sint for sint in sints}
        self._needs_eoi = needs_eoi

    async def __call__(self, vp: VirtualProcessor) -> None:
        while True:
            sint = self._sint_of[await vp.wait_for_interrupt()]
            slot = await self._guest.take_message(sint)
            self.slots.append(slot)
            self.count[read_timer_slot(slot)[2]] += 1
            if sint in self._needs_eoi:
                await vp.write_msr(EOI, 0)


# periodic and one-shot


@pytest.mark.item(142, 148)
async def test_two_periodic_timers_of_1_ms_expire_a_thousand_times_each() -> None:
    """Item 148 on the way: each message has 24 bytes of payload, an index below 4 and the type TimerExpired."""
    async with timed_guest(1, 2) as guest:
        expiries = Expiries(guest, (1, 2))
        guest.partition.start(0, expiries)
        await arm(guest, ENABLED | PERIODIC | on_sint(1), MILLISECOND, timer=0)
        await arm(guest, ENABLED | PERIODIC | on_sint(2), MILLISECOND, timer=1)
        await until(guest, 1_001 * MILLISECOND)
        assert expiries.count.keys() == {0, 1}
        for timer in (0, 1):
            assert 1_000 <= expiries.count[timer] <= 1_001
        for slot in expiries.slots:
            message_type, size, index, reserved, expiration, delivery = read_timer_slot(slot)
            assert (message_type, size, reserved) == (TIMER_EXPIRED, 24, 0)
            assert index < 4
            assert expiration <= delivery


@pytest.mark.item(143)
async def test_a_one_shot_timer_expires_once_at_its_time_and_is_disabled_then() -> None:
    async with timed_guest() as guest:
        due = await guest.read(TIME_REF_COUNT) + MILLISECOND
        await arm(guest, ENABLED | on_sint(2), due)
        await until(guest, due - 1)
        assert guest.slot() == EMPTY_SLOT
        assert await guest.read(config_of(0)) == ENABLED | on_sint(2)
        await until(guest, due + 1)
        assert guest.take_interrupts() == [vector_of(2)]
        assert await guest.take_message() == timer_slot(0, due, due)
        assert await guest.read(config_of(0)) == on_sint(2)
        await until(guest, 10 * due)
        assert guest.take_interrupts() == []
        assert guest.slot()[:4] == bytes(4)


@pytest.mark.item(144)
async def test_writing_the_count_starts_an_auto_enabled_one_shot_timer() -> None:
    async with timed_guest() as guest:
        await guest.write(config_of(0), AUTO_ENABLE | on_sint(2))
        await until(guest, MILLISECOND)
        assert await guest.read(config_of(0)) == AUTO_ENABLE | on_sint(2)
        await guest.write(count_of(0), 3 * MILLISECOND)
        assert await guest.read(config_of(0)) == ENABLED | AUTO_ENABLE | on_sint(2)
        await until(guest, 5 * MILLISECOND)
        assert guest.take_interrupts() == [vector_of(2)]
        assert await guest.take_message() == timer_slot(0, 3 * MILLISECOND, 3 * MILLISECOND)
        assert await guest.read(config_of(0)) == AUTO_ENABLE | on_sint(2)


@pytest.mark.item(145)
async def test_writing_the_count_starts_an_auto_enabled_periodic_timer() -> None:
    async with timed_guest() as guest:
        expiries = Expiries(guest, (2,))
        guest.partition.start(0, expiries)
        await guest.write(config_of(0), PERIODIC | AUTO_ENABLE | on_sint(2))
        await guest.write(count_of(0), MILLISECOND)
        await until(guest, 1_001 * MILLISECOND)
        assert 1_000 <= expiries.count[0] <= 1_001


@pytest.mark.item(150)
async def test_periodic_timers_keep_firing_on_a_sint_with_auto_eoi_and_on_one_without() -> None:
    """SINT 1 expects an EOI each time, SINT 2 none."""
    async with timed_guest(1, 2) as guest:
        await guest.write(SINT0 + 1, sint_value(vector_of(1)))
        expiries = Expiries(guest, (1, 2), needs_eoi=(1,))
        guest.partition.start(0, expiries)
        await arm(guest, ENABLED | PERIODIC | on_sint(1), MILLISECOND, timer=0)
        await arm(guest, ENABLED | PERIODIC | on_sint(2), MILLISECOND, timer=1)
        await until(guest, 101 * MILLISECOND)
        for timer in (0, 1):
            assert 100 <= expiries.count[timer] <= 101


# busy slots


@pytest.mark.item(146, 147)
async def test_a_one_shot_timer_waits_for_a_busy_slot_and_asks_for_an_eom() -> None:
    async with timed_guest() as guest:
        guest.partition.memory.write(guest.sim_gpa + 2 * 256, struct.pack("<I", TIMER_EXPIRED))
        await arm(guest, ENABLED | on_sint(2), MILLISECOND)
        await until(guest, 2 * MILLISECOND)
        assert guest.slot() == message_slot(TIMER_EXPIRED, pending=True)
        assert guest.take_interrupts() == []
        assert await guest.read(config_of(0)) == ENABLED | on_sint(2)
        guest.clear_type()
        await guest.write(EOM, 0)
        assert guest.slot() == timer_slot(0, MILLISECOND, 2 * MILLISECOND)
        assert guest.take_interrupts() == [vector_of(2)]
        guest.clear_type()
        await guest.write(EOM, 0)
        await until(guest, 4 * MILLISECOND)
        assert guest.slot()[:4] == bytes(4)
        assert guest.take_interrupts() == []


@pytest.mark.item(148)
@pytest.mark.parametrize("timer", range(4))
async def test_a_timer_message_names_its_timer_and_its_times(timer: int) -> None:
    async with timed_guest(3) as guest:
        await arm(guest, ENABLED | on_sint(3), 700, timer)
        await until(guest, 900)
        assert guest.slot(3) == timer_slot(timer, 700, 700)
        assert guest.take_interrupts() == [vector_of(3)]


@pytest.mark.item(149)
async def test_a_timer_in_direct_mode_asserts_its_vector_and_leaves_no_message() -> None:
    async with timed_guest() as guest:
        await arm(guest, ENABLED | direct() | on_sint(2), MILLISECOND)
        await until(guest, MILLISECOND - 1)
        assert guest.acknowledge() is None
        await until(guest, MILLISECOND + 1)
        assert guest.acknowledge() == DIRECT_VECTOR
        assert guest.acknowledge() is None
        assert guest.sim_page() == bytes(PAGE)
        assert await guest.read(config_of(0)) == direct() | on_sint(2)


# when a timer is due


@pytest.mark.item(151)
async def test_a_one_shot_timer_in_the_past_expires_at_once() -> None:
    async with timed_guest() as guest:
        await until(guest, 5 * MILLISECOND)
        await arm(guest, ENABLED | on_sint(2), MILLISECOND)
        assert guest.slot() == timer_slot(0, MILLISECOND, 5 * MILLISECOND)
        assert guest.take_interrupts() == [vector_of(2)]
        assert await guest.read(config_of(0)) == on_sint(2)


@pytest.mark.item(152)
@pytest.mark.parametrize("config", [ENABLED, ENABLED | PERIODIC, AUTO_ENABLE, AUTO_ENABLE | PERIODIC])
@pytest.mark.parametrize("earlier", [0, MILLISECOND])
async def test_a_count_of_zero_stops_a_timer(config: int, earlier: int) -> None:
    """`earlier`: the count that it had before, with which it may run already."""
    async with timed_guest() as guest:
        await arm(guest, config | on_sint(2), earlier)
        await guest.write(count_of(0), earlier)
        await guest.write(count_of(0), 0)
        await until(guest, 10 * MILLISECOND)
        assert guest.slot() == EMPTY_SLOT
        assert guest.take_interrupts() == []


@pytest.mark.item(152)
async def test_a_count_of_zero_disables_a_timer_in_the_tlfs_profile() -> None:
    async with timed_guest(profile=TLFS) as guest:
        await guest.write(config_of(0), AUTO_ENABLE | on_sint(2))
        await guest.write(count_of(0), MILLISECOND)
        assert await guest.read(config_of(0)) == ENABLED | AUTO_ENABLE | on_sint(2)
        await guest.write(count_of(0), 0)
        assert await guest.read(config_of(0)) == AUTO_ENABLE | on_sint(2)


@pytest.mark.item(153)
@pytest.mark.parametrize("mode", [on_sint(2), direct()])
async def test_a_configuration_of_zero_stops_a_periodic_timer(mode: int) -> None:
    async with timed_guest() as guest:
        await arm(guest, ENABLED | PERIODIC | mode, MILLISECOND)
        await until(guest, MILLISECOND + 1)
        assert len(await guest.serve_interrupts()) == 1
        guest.clear_type()
        await guest.write(config_of(0), 0)
        await until(guest, 10 * MILLISECOND)
        assert guest.slot()[:4] == bytes(4)
        assert guest.acknowledge() is None


@pytest.mark.item(155)
async def test_a_timer_without_a_sint_is_disabled_at_once_in_the_tlfs_profile() -> None:
    """In message mode only: a timer in direct mode needs none. OpenVMM does not enforce it (reference 4.10)."""
    async with timed_guest(profile=TLFS) as guest:
        await arm(guest, ENABLED | PERIODIC | on_sint(0), MILLISECOND)
        assert await guest.read(config_of(0)) == PERIODIC
        await guest.write(config_of(1), AUTO_ENABLE)
        await guest.write(count_of(1), MILLISECOND)
        assert await guest.read(config_of(1)) == AUTO_ENABLE
        await arm(guest, ENABLED | PERIODIC | direct(), MILLISECOND, timer=2)
        assert await guest.read(config_of(2)) == ENABLED | PERIODIC | direct()
    async with timed_guest() as guest:
        await arm(guest, ENABLED | PERIODIC | on_sint(0), MILLISECOND)
        assert await guest.read(config_of(0)) == ENABLED | PERIODIC


# saved and restored


@asynccontextmanager
async def restored_at_1000(config: int, count: int) -> AsyncIterator[Partition]:
    """A partition that took over another one's state, in which timer 0 was programmed at 1000 by its count."""
    async with timed_guest() as guest:
        await until(guest, 1_000)
        await guest.write(config_of(0), config)
        await guest.write(count_of(0), count)
        document = guest.partition.save()
    async with partition(virtual_time=True) as opened:
        opened.restore(document)
        yield opened


@pytest.mark.item(156, 157)
@pytest.mark.parametrize(("mode", "count", "due"), [(PERIODIC, 100, 1_100), (0, 2_000, 2_000)])
async def test_a_restored_timer_is_due_when_it_was_to_be(mode: int, count: int, due: int) -> None:
    async with restored_at_1000(AUTO_ENABLE | direct() | mode, count) as opened:
        guest = Guest(opened)
        assert await guest.read(TIME_REF_COUNT) == 1_000
        await until(guest, due - 1)
        assert guest.acknowledge() is None
        assert await guest.vp.wait_for_interrupt() == DIRECT_VECTOR
        assert await guest.read(TIME_REF_COUNT) == due


@pytest.mark.item(158)
def test_a_restored_one_shot_timer_that_is_overdue_expires_when_it_is_next_looked_at() -> None:
    with BareSynic() as before, BareSynic() as after:
        before.machine.timers.write_config(0, ENABLED | direct(), 500)
        before.machine.timers.write_count(0, 1_000, 500)
        after.machine.restore(before.machine.save(500), 500)
        timers = after.machine.timers
        assert timers.due(0) == 1_000
        after.machine.rescan(1_001)
        assert after.apic.acknowledge() == DIRECT_VECTOR
        assert timers.config(0) == direct()
        assert timers.due(0) is None


# delivery


@pytest.mark.item(159)
@pytest.mark.parametrize("lateness", [1, 2, MILLISECOND])
async def test_a_timer_is_delivered_at_or_after_its_expiration(lateness: int) -> None:
    """A busy slot makes it late: both times stand in the message. That one in time has them equal, other tests show."""
    async with timed_guest() as guest:
        assert (await message_port(guest.partition)).try_post_message(1, b"busy")
        await arm(guest, ENABLED | on_sint(2), MILLISECOND)
        await until(guest, MILLISECOND + lateness)
        await guest.take_message()
        assert guest.slot() == timer_slot(0, MILLISECOND, MILLISECOND + lateness)


@pytest.mark.item(160)
async def test_a_due_timer_lets_the_messages_queued_for_its_sint_go_first() -> None:
    async with timed_guest() as guest:
        port = await message_port(guest.partition)
        await arm(guest, ENABLED | on_sint(2), MILLISECOND)
        for payload in (b"in the slot", b"first in the queue", b"second in the queue"):
            assert port.try_post_message(1, payload)
        await until(guest, 2 * MILLISECOND)
        taken = [await guest.take_message() for _ in range(4)]
        assert taken == [
            message_slot(1, b"in the slot", pending=True),
            message_slot(1, b"first in the queue", pending=True),
            message_slot(1, b"second in the queue", pending=True),
            timer_slot(0, MILLISECOND, 2 * MILLISECOND),
        ]


@pytest.mark.item(160)
def test_a_scan_that_was_asked_for_a_sint_leaves_its_timer_to_a_later_one() -> None:
    with BareSynic() as synic:
        machine = synic.machine
        machine.write_register(0x000A_0002, sint_value(vector_of(2)), 0)
        machine.timers.write_config(0, ENABLED | on_sint(2), 0)
        machine.timers.write_count(0, 10, 0)
        machine.request_readiness(1 << 2)
        assert machine.scan(10) == 1 << 2
        assert bytes(machine.sim_page) == bytes(PAGE)
        assert machine.scan(12) == 0
        assert bytes(machine.sim_page[512:768]) == timer_slot(0, 10, 12)
