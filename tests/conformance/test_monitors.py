"""Conformance, monitored notifications (items 130 to 141): a store into the monitor page becomes signals.

The page (`reference/synic.md` 3.1): group enable at byte 0, then from byte 8 four groups of u32 pending and u32 armed.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from broker import MonitorInfo, MonitorPageGpas, Partition, Vtl
from broker.core import MonitorPage

from .support import PAGE, partition

PAGE_GPA = 0x5000
GROUPS = 8
GROUPS_END = 40
MONITORS = {5: 42, 7: 47, 9: 49, 127: 500}
"""Monitor -> connection ID. Monitor 6 belongs to nobody."""


def groups(*pending: int, armed: int = 0) -> bytes:
    """The 32 bytes of the four trigger groups."""
    padded = [*pending, 0, 0, 0, 0][:4]
    return b"".join(struct.pack("<II", bits, armed) for bits in padded)


class Signals:
    """A guest's stores into a watched page, and the signals that come of them as (connection ID, flag), in order."""

    def __init__(self, opened: Partition) -> None:
        self.opened = opened
        self.seen: list[tuple[int, int]] = []

    async def after(self, gpa: int, data: bytes) -> list[tuple[int, int]]:
        """What this store of guest code signals."""
        self.seen.clear()
        await self.opened.vp(0).write_memory(gpa, data)
        return list(self.seen)

    def stored(self, gpa: int, size: int) -> bytes:
        """What guest memory holds there."""
        return self.opened.memory.read(gpa, size)


class MonitoredPort:
    """An event port that notes its signals in a list that all ports share."""

    def __init__(self, connection_id: int, seen: list[tuple[int, int]]) -> None:
        self.connection_id = connection_id
        self.seen = seen

    async def handle_event(self, flag: int) -> None:
        self.seen.append((self.connection_id, flag))


@asynccontextmanager
async def watched_page() -> AsyncIterator[Signals]:
    async with partition() as opened:
        access = opened.synic()
        signals = Signals(opened)
        for monitor_id, connection_id in MONITORS.items():
            port = MonitoredPort(connection_id, signals.seen)
            await access.add_event_port(connection_id, Vtl.VTL0, port, MonitorInfo(monitor_id))
        assert access.monitor_support is not None
        await access.monitor_support.set_monitor_page(Vtl.VTL0, MonitorPageGpas(0, PAGE_GPA))
        yield signals


# where the page is


@pytest.mark.item(130)
def test_setting_the_page_returns_where_it_was() -> None:
    page = MonitorPage()
    assert page.set_gpa(0x5000) is None
    assert page.set_gpa(None) == 0x5000
    assert page.set_gpa(None) is None


@pytest.mark.item(130)
async def test_a_page_that_is_switched_off_is_ordinary_memory() -> None:
    async with watched_page() as signals:
        monitor = signals.opened.synic().monitor_support
        assert monitor is not None
        await monitor.set_monitor_page(Vtl.VTL0, None)
        assert await signals.after(PAGE_GPA + GROUPS, groups(1 << 5)) == []
        assert signals.stored(PAGE_GPA + GROUPS, 32) == groups(1 << 5)


@pytest.mark.item(131)
@pytest.mark.parametrize("gpa", [PAGE_GPA + 1, PAGE_GPA + 8, PAGE_GPA + PAGE - 1])
async def test_an_unaligned_page_is_an_exception_and_the_page_stays_where_it_was(gpa: int) -> None:
    """The list says assertion; by decision 4 of the design what the host does wrong is an exception, here `ValueError`."""
    async with watched_page() as signals:
        monitor = signals.opened.synic().monitor_support
        assert monitor is not None
        with pytest.raises(ValueError, match="aligned"):
            await monitor.set_monitor_page(Vtl.VTL0, MonitorPageGpas(0, gpa))
        assert await signals.after(PAGE_GPA + GROUPS, groups(1 << 5)) == [(42, 0)]


@pytest.mark.item(132)
@pytest.mark.parametrize("gpa", [PAGE_GPA + PAGE, PAGE_GPA + PAGE + GROUPS, PAGE_GPA - 1, PAGE_GPA - PAGE + GROUPS])
async def test_a_store_that_starts_outside_the_page_is_an_ordinary_store(gpa: int) -> None:
    async with watched_page() as signals:
        data = b"\xff" * 32
        assert await signals.after(gpa, data) == []
        assert signals.stored(gpa, 32) == data
    page = MonitorPage()
    page.set_gpa(PAGE_GPA)
    assert page.check_write(gpa, data) is None


# what a store signals


@pytest.mark.item(133)
async def test_a_pending_bit_signals_the_connection_of_its_monitor_once() -> None:
    async with watched_page() as signals:
        assert await signals.after(PAGE_GPA + GROUPS, groups(1 << 5)) == [(42, 0)]


@pytest.mark.item(134)
async def test_pending_bits_signal_in_ascending_order_and_a_monitor_of_nobody_is_skipped() -> None:
    async with watched_page() as signals:
        data = groups(0b111 << 5, 0, 0, 1 << 31)
        assert await signals.after(PAGE_GPA + GROUPS, data) == [(42, 0), (47, 0), (500, 0)]


@pytest.mark.item(135)
async def test_a_store_of_one_pending_word_is_enough() -> None:
    async with watched_page() as signals:
        assert await signals.after(PAGE_GPA + GROUPS, struct.pack("<I", 1 << 9)) == [(49, 0)]


@pytest.mark.item(135)
async def test_a_store_of_the_byte_that_holds_the_bit_is_enough() -> None:
    """Monitor 127 is bit 31 of group 3: bit 7 of byte 8 + 3 * 8 + 3."""
    async with watched_page() as signals:
        assert await signals.after(PAGE_GPA + 35, b"\x80") == [(500, 0)]


@pytest.mark.item(136)
@pytest.mark.parametrize("group_enable", [0, 0xF, 0xFFFF_FFFF])
async def test_the_group_enable_bits_signal_nothing_and_hold_nothing_back(group_enable: int) -> None:
    async with watched_page() as signals:
        data = struct.pack("<II", group_enable, 0xFFFF_FFFF)
        assert await signals.after(PAGE_GPA, data) == []
        assert await signals.after(PAGE_GPA, data + groups(1 << 5)) == [(42, 0)]


@pytest.mark.item(137)
async def test_armed_bits_signal_nothing() -> None:
    async with watched_page() as signals:
        assert await signals.after(PAGE_GPA + GROUPS, groups(armed=0xFFFF_FFFF)) == []
        assert await signals.after(PAGE_GPA + GROUPS, groups(1 << 7, armed=0xFFFF_FFFF)) == [(47, 0)]


@pytest.mark.item(138)
async def test_a_store_that_ends_beyond_the_groups_is_taken_and_signals_nothing() -> None:
    """One that ends exactly at byte 40 still signals."""
    async with watched_page() as signals:
        assert await signals.after(PAGE_GPA + GROUPS, groups(1 << 5) + b"\0") == []
        assert await signals.after(PAGE_GPA + GROUPS_END, b"\xff" * 8) == []
        assert await signals.after(PAGE_GPA + PAGE - 1, b"\xff") == []
        assert signals.stored(PAGE_GPA, PAGE) == bytes(PAGE)
        assert await signals.after(PAGE_GPA + GROUPS, groups(1 << 5)) == [(42, 0)]


# the rest


@pytest.mark.item(139)
@pytest.mark.parametrize(("offset", "size"), [(0, 4), (GROUPS, 32), (0, PAGE), (PAGE - 8, 8)])
async def test_the_page_reads_as_zeros_whatever_was_stored(offset: int, size: int) -> None:
    async with watched_page() as signals:
        await signals.after(PAGE_GPA, struct.pack("<II", 0xF, 0) + groups(1 << 5, 2, 3, 4))
        assert signals.stored(PAGE_GPA + offset, size) == bytes(size)
    page = MonitorPage()
    page.set_gpa(PAGE_GPA)
    assert page.check_read(PAGE_GPA + offset, size) == bytes(size)


@pytest.mark.item(140)
async def test_a_monitor_whose_connection_has_no_port_is_discarded_and_the_guest_goes_on() -> None:
    """The bit of a known monitor in the same store is signalled all the same."""
    async with watched_page() as signals:
        monitor = signals.opened.monitor
        assert monitor is not None
        monitor.page.register(6, 0x1234)
        assert await signals.after(PAGE_GPA + GROUPS, groups(0b111 << 5)) == [(42, 0), (47, 0)]
        assert signals.opened.port_map.statistics().unknown == 1


@pytest.mark.item(141)
@pytest.mark.parametrize("monitor_id", MONITORS)
async def test_a_monitored_signal_carries_flag_0(monitor_id: int) -> None:
    """Whatever the parameter table of the page says (byte 1088 on: u32 connection ID, u16 flag for each monitor)."""
    async with watched_page() as signals:
        await signals.after(PAGE_GPA + 1088 + 8 * monitor_id, struct.pack("<IHH", 42, 7, 0))
        pending = [1 << monitor_id % 32 if monitor_id // 32 == group else 0 for group in range(4)]
        assert await signals.after(PAGE_GPA + GROUPS, groups(*pending)) == [(MONITORS[monitor_id], 0)]
