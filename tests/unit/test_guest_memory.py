"""Guest memory: what is written can be read, nothing lies outside, overlay and hypervisor pages show in it."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import GuestMemory, MemoryAccessError

PAGE = 4096
SIZE = 4 * PAGE

OUTSIDE = [(-1, 1), (-1, 0), (SIZE, 1), (SIZE - 1, 2), (SIZE + 1, 0), (0, SIZE + 1), (1 << 63, 8), (0, -1)]


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(SIZE) as memory:
        yield memory


@pytest.mark.parametrize("size", [0, -PAGE, 1, PAGE - 1, PAGE + 1])
def test_a_size_that_is_no_positive_multiple_of_a_page_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=str(size)):
        GuestMemory(size)


def test_memory_starts_as_zeros(memory: GuestMemory) -> None:
    assert memory.read(0, SIZE) == bytes(SIZE)


@given(st.lists(st.tuples(st.integers(-8, SIZE + 8), st.binary(max_size=64)), max_size=20))
def test_memory_holds_what_was_written_last(writes: list[tuple[int, bytes]]) -> None:
    model = bytearray(SIZE)
    with GuestMemory(SIZE) as memory:
        for gpa, data in writes:
            if gpa >= 0 and gpa + len(data) <= SIZE:
                memory.write(gpa, data)
                model[gpa : gpa + len(data)] = data
            else:
                with pytest.raises(MemoryAccessError):
                    memory.write(gpa, data)
        assert memory.read(0, SIZE) == model


@pytest.mark.parametrize(("gpa", "size"), OUTSIDE)
def test_a_read_that_leaves_memory_is_refused(memory: GuestMemory, gpa: int, size: int) -> None:
    with pytest.raises(MemoryAccessError) as caught:
        memory.read(gpa, size)
    assert (caught.value.gpa, caught.value.size) == (gpa, size)
    assert hex(gpa) in str(caught.value)


@pytest.mark.parametrize(("gpa", "size"), OUTSIDE)
def test_a_view_that_leaves_memory_is_refused(memory: GuestMemory, gpa: int, size: int) -> None:
    with pytest.raises(MemoryAccessError):
        memory.view(gpa, size)


def test_a_write_that_does_not_fit_stores_nothing(memory: GuestMemory) -> None:
    with pytest.raises(MemoryAccessError):
        memory.write(SIZE - 2, b"\xff\xff\xff")
    assert memory.read(SIZE - 2, 2) == b"\0\0"


def test_the_last_byte_is_memory(memory: GuestMemory) -> None:
    memory.write(SIZE - 1, b"\x42")
    assert memory.read(SIZE - 1, 1) == b"\x42"
    assert memory.read(SIZE, 0) == b""


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_can_be_written(memory: GuestMemory, kind: type) -> None:
    memory.write(8, kind(b"abc"))
    assert memory.read(8, 3) == b"abc"


def test_a_read_is_a_copy_and_a_view_is_not(memory: GuestMemory) -> None:
    copy, view = memory.read(PAGE, 4), memory.view(PAGE, 4)
    memory.write(PAGE, b"abcd")
    assert copy == bytes(4)
    assert view == b"abcd"
    view[0] = ord("x")
    assert memory.read(PAGE, 4) == b"xbcd"


def test_a_page_is_found_by_its_number(memory: GuestMemory) -> None:
    memory.page(2)[5] = 7
    assert memory.read(2 * PAGE + 5, 1) == b"\x07"
    assert len(memory.page(3)) == PAGE
    for gpn in (-1, 4):
        with pytest.raises(MemoryAccessError):
            memory.page(gpn)


def test_hypervisor_pages_lie_above_ram_and_start_as_zeros(memory: GuestMemory) -> None:
    first, second = memory.add_page(), memory.add_page()
    assert (first, second) == (SIZE // PAGE, SIZE // PAGE + 1)
    memory.write(first * PAGE + 8, b"mine")
    assert memory.read(first * PAGE, 16) == bytes(8) + b"mine" + bytes(4)
    assert memory.view(second * PAGE, PAGE) == bytes(PAGE)
    assert memory.size == SIZE


def test_a_hypervisor_page_is_no_page_for_an_overlay(memory: GuestMemory) -> None:
    with pytest.raises(MemoryAccessError):
        memory.page(memory.add_page())


def test_no_access_crosses_from_ram_into_a_hypervisor_page_or_between_two(memory: GuestMemory) -> None:
    first = memory.add_page() * PAGE
    second = memory.add_page() * PAGE
    for gpa in (first - 1, second - 1):
        with pytest.raises(MemoryAccessError):
            memory.read(gpa, 2)
        with pytest.raises(MemoryAccessError):
            memory.write(gpa, b"ab")
    with pytest.raises(MemoryAccessError):
        memory.read(second + PAGE, 1)


def test_another_mapping_of_the_descriptor_sees_the_same_bytes(memory: GuestMemory) -> None:
    with mmap.mmap(memory.fd, SIZE) as other:
        memory.write(PAGE, b"hello")
        assert other[PAGE : PAGE + 5] == b"hello"
        other[0] = 9
    assert memory.read(0, 1) == b"\x09"


def test_closing_twice_is_harmless(memory: GuestMemory) -> None:
    memory.close()
    memory.close()
    assert memory.fd < 0


def test_a_view_outlives_the_memory_it_was_taken_from(memory: GuestMemory) -> None:
    view = memory.view(0, 4)
    memory.close()
    view[:] = b"late"
    assert view == b"late"
