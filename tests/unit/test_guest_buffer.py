"""`GuestBuffer`: whatever pages it lies in, it behaves as one run of bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import MemoryAccessError
from broker.memory import GuestMemory
from channels.buffer import GuestBuffer
from channels.protocol.gparange import GpaRange

PAGE = 4096


@given(
    st.lists(st.integers(0, 15), min_size=1, max_size=6, unique=True),
    st.lists(st.tuples(st.integers(0, 6 * PAGE), st.binary(max_size=2 * PAGE)), max_size=8),
)
def test_it_reads_what_was_written_whatever_its_pages_are(gpns: list[int], writes: list[tuple[int, bytes]]) -> None:
    size = len(gpns) * PAGE
    model = bytearray(size)
    with GuestMemory(16 * PAGE) as memory:
        buffer = GuestBuffer(memory, [GpaRange(size, 0, tuple(gpns))])
        assert buffer.size == size
        for offset, data in writes:
            at, part = offset % size, data[: size - offset % size]
            buffer.write(at, part)
            model[at : at + len(part)] = part
            assert buffer.read(at, len(part)) == part
        assert buffer.read(0, size) == bytes(model)
        pages = b"".join(memory.read(gpn * PAGE, PAGE) for gpn in gpns)
        assert pages == bytes(model)


def test_several_ranges_with_offsets_are_one_buffer() -> None:
    with GuestMemory(16 * PAGE) as memory:
        buffer = GuestBuffer(memory, [GpaRange(10, PAGE - 4, (3, 7)), GpaRange(6, 6, (7,))])
        buffer.write(2, b"0123456789abcd")
        assert memory.read(4 * PAGE - 2, 2) == b"01"
        assert memory.read(7 * PAGE, 12) == b"23456789abcd"
        assert buffer.read(3, 4) == b"1234"


def test_pages_outside_of_memory_are_refused() -> None:
    with GuestMemory(16 * PAGE) as memory, pytest.raises(MemoryAccessError):
        GuestBuffer(memory, [GpaRange(2 * PAGE, 0, (15, 16))])


def test_only_the_first_bytes_of_ranges_are_looked_at_where_that_is_asked_for() -> None:
    ranges = [GpaRange(16, PAGE - 8, (2, 0)), GpaRange(8, 0, (99,))]
    with GuestMemory(4 * PAGE) as memory:
        GuestBuffer(memory, ranges, 12).write(0, b"twelve bytes")
        assert memory.read(3 * PAGE - 8, 8) + memory.read(0, 8) == b"twelve bytes".ljust(16, b"\0")
        assert GuestBuffer(memory, ranges, 16).size == 16
        assert GuestBuffer(memory, ranges, 0).size == 0
        with pytest.raises(MemoryAccessError):
            GuestBuffer(memory, ranges, 17)
