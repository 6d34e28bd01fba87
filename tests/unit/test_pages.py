"""`GuestPages`: lowest and adjacent first, zeroed, nothing given twice."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import ConfigurationError, Partition, PartitionConfig
from broker.errors import HostError
from broker.hvdef import Msr, Vtl
from broker.memory import GuestMemory
from channels.pages import GuestPages

PAGE = 4096


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(64 * PAGE) as memory:
        yield memory


def test_the_lowest_adjacent_pages_come_first_and_are_zeroed(memory: GuestMemory) -> None:
    memory.write(0, b"\xff" * 64 * PAGE)
    pages = GuestPages(memory, 10, 20)
    assert pages.allocate(3) == (10, 11, 12)
    assert pages.allocate(1) == (13,)
    assert memory.read(10 * PAGE, 4 * PAGE) == bytes(4 * PAGE)
    assert memory.read(14 * PAGE, PAGE) == b"\xff" * PAGE
    assert memory.read(9 * PAGE, PAGE) == b"\xff" * PAGE


def test_a_gap_that_is_large_enough_is_used_first(memory: GuestMemory) -> None:
    pages = GuestPages(memory, 0, 64)
    first, second, third, _ = (pages.allocate(count) for count in (2, 4, 3, 1))
    pages.free(first)
    pages.free(third)
    assert pages.allocate(3) == third
    assert pages.allocate(3) == (10, 11, 12)
    assert pages.allocate(1) == (0,)
    pages.free(second)
    assert pages.allocate(5) == (1, 2, 3, 4, 5)


def test_pages_that_are_nowhere_adjacent_are_taken_from_the_lowest_gaps(memory: GuestMemory) -> None:
    pages = GuestPages(memory, 0, 12)
    pages.allocate(12)
    pages.free((1, 2, 5, 8, 9, 10))
    assert pages.allocate(4) == (1, 2, 5, 8)
    assert pages.allocate(2) == (9, 10)


def test_what_is_not_there_is_refused_in_a_sentence(memory: GuestMemory) -> None:
    pages = GuestPages(memory, 0, 4)
    pages.allocate(2)
    with pytest.raises(HostError, match="3 pages of guest RAM are needed and 2 are free"):
        pages.allocate(3)
    with pytest.raises(ValueError, match="one or more at a time"):
        pages.allocate(0)
    for wrong in ((0, 2), (0, 0), (4,), (-1,)):
        with pytest.raises(HostError, match="was not allocated here, or was freed already"):
            pages.free(wrong)
    for wrong in ((2, 1), (2, 2), (4,)):
        with pytest.raises(HostError, match="is not free here"):
            pages.take(wrong)
    assert pages.free_count == 2
    assert pages.allocate(2) == (2, 3)


@pytest.mark.parametrize(("first", "count"), [(0, 0), (0, 65), (-1, 4), (64, 1), (60, None)])
def test_a_range_outside_ram_is_refused(memory: GuestMemory, first: int, count: int | None) -> None:
    with pytest.raises(ConfigurationError, match="guest RAM of 64 pages has no range"):
        GuestPages(memory, first, count)


async def test_the_default_range_leaves_synic_pages_alone() -> None:
    async with Partition(PartitionConfig(vp_count=64, vtls=tuple(Vtl), virtual_time=True)) as partition:
        pages = GuestPages(partition.memory)
        taken = pages.allocate(pages.free_count)
        assert taken[0] == 16
        async with partition.vp(63).guest_synic(Vtl.VTL2).messages(2):
            gpns = [await partition.vp(63).read_msr(msr, vtl=Vtl.VTL2) >> 12 for msr in (Msr.SIMP, Msr.SIEFP)]
        assert max(taken) < min(gpns)


@given(st.data())
def test_pages_come_as_from_a_plain_list_of_them(data: st.DataObject) -> None:
    free, held = set(range(3, 40)), []
    with GuestMemory(64 * PAGE) as memory:
        pages = GuestPages(memory, 3, 37)
        for _ in range(data.draw(st.integers(0, 30))):
            if held and data.draw(st.booleans()):
                given_back = held.pop(data.draw(st.integers(0, len(held) - 1)))
                pages.free(data.draw(st.permutations(given_back)))
                free |= set(given_back)
            elif free:
                count = data.draw(st.integers(1, min(8, len(free))))
                starts = [gpn for gpn in sorted(free) if set(range(gpn, gpn + count)) <= free]
                wanted = tuple(range(starts[0], starts[0] + count)) if starts else tuple(sorted(free)[:count])
                if data.draw(st.booleans()):
                    assert pages.allocate(count) == wanted
                else:
                    wanted = tuple(
                        data.draw(st.lists(st.sampled_from(sorted(free)), min_size=1, max_size=8, unique=True))
                    )
                    pages.take(wanted)
                free -= set(wanted)
                held.append(wanted)
            assert pages.free_count == len(free)
            assert {gpn for gpn in range(64) if pages.is_free(gpn)} == free
