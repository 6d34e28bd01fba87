"""Overlay pages: contents survive mapping and unmapping, stale guest bytes never show (reference, 4.8)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from broker import GuestMemory, MemoryAccessError
from broker.core import OverlayPage

PAGE = 4096
PAGES = 8
A, B = 3, 5
OUTSIDE = PAGES


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(PAGES * PAGE) as memory:
        yield memory


@pytest.fixture
def overlay(memory: GuestMemory) -> OverlayPage:
    return OverlayPage(memory.page)


def _filled(byte: int) -> bytes:
    return bytes([byte]) * PAGE


def test_a_new_overlay_is_zero_and_hidden(overlay: OverlayPage) -> None:
    assert overlay.gpn is None
    assert overlay.data == bytes(PAGE)


def test_what_was_written_while_hidden_appears_when_mapped(memory: GuestMemory, overlay: OverlayPage) -> None:
    overlay.data[:4] = b"mine"
    overlay.map(A)
    assert overlay.gpn == A
    assert memory.read(A * PAGE, 6) == b"mine\0\0"


def test_stale_guest_bytes_never_show(memory: GuestMemory, overlay: OverlayPage) -> None:
    memory.write(A * PAGE, _filled(0xAA))
    overlay.map(A)
    assert memory.read(A * PAGE, PAGE) == overlay.data == bytes(PAGE)


def test_while_mapped_guest_and_synic_see_the_same_bytes(memory: GuestMemory, overlay: OverlayPage) -> None:
    overlay.map(A)
    memory.write(A * PAGE + 10, b"guest")
    overlay.data[20:25] = b"synic"
    assert overlay.data[10:15] == b"guest"
    assert memory.read(A * PAGE + 20, 5) == b"synic"


def test_unmapping_keeps_the_contents_and_does_not_restore_the_guest_s(
    memory: GuestMemory, overlay: OverlayPage
) -> None:
    memory.write(A * PAGE, _filled(0xAA))
    overlay.map(A)
    overlay.data[:] = _filled(0x11)
    overlay.unmap()
    assert overlay.gpn is None
    assert overlay.data == memory.read(A * PAGE, PAGE) == _filled(0x11)
    memory.write(A * PAGE, _filled(0xBB))
    assert overlay.data == _filled(0x11)


def test_moving_takes_the_contents_along(memory: GuestMemory, overlay: OverlayPage) -> None:
    overlay.map(A)
    overlay.data[:] = _filled(0x11)
    overlay.map(B)
    memory.write(A * PAGE, _filled(0xCC))
    assert overlay.gpn == B
    assert memory.read(B * PAGE, PAGE) == overlay.data == _filled(0x11)


def test_mapping_where_it_is_already_changes_nothing(memory: GuestMemory, overlay: OverlayPage) -> None:
    overlay.map(A)
    memory.write(A * PAGE, _filled(0x22))
    overlay.map(A)
    assert overlay.data == _filled(0x22)


def test_a_page_outside_memory_is_refused_and_nothing_changes(memory: GuestMemory, overlay: OverlayPage) -> None:
    overlay.map(A)
    overlay.data[:] = _filled(0x11)
    with pytest.raises(MemoryAccessError):
        overlay.map(OUTSIDE)
    assert overlay.gpn == A
    overlay.data[0] = 0x99
    assert memory.read(A * PAGE, 2) == b"\x99\x11"


def test_a_hidden_overlay_stays_hidden_when_it_cannot_be_mapped(overlay: OverlayPage) -> None:
    overlay.data[0] = 1
    with pytest.raises(MemoryAccessError):
        overlay.map(OUTSIDE)
    assert overlay.gpn is None
    assert overlay.data[0] == 1


def test_unmapping_what_is_hidden_changes_nothing(overlay: OverlayPage) -> None:
    overlay.data[0] = 1
    overlay.unmap()
    assert overlay.gpn is None
    assert overlay.data[0] == 1


def test_reset_hides_and_zeroes_and_leaves_the_guest_s_page(memory: GuestMemory, overlay: OverlayPage) -> None:
    overlay.map(A)
    overlay.data[:] = _filled(0x11)
    overlay.reset()
    assert overlay.gpn is None
    assert overlay.data == bytes(PAGE)
    assert memory.read(A * PAGE, PAGE) == _filled(0x11)


@pytest.mark.parametrize("gpn", [None, B])
def test_restoring_takes_over_place_and_contents(memory: GuestMemory, overlay: OverlayPage, gpn: int | None) -> None:
    overlay.map(A)
    overlay.data[:] = _filled(0x11)
    overlay.restore(gpn, _filled(0x22))
    assert overlay.gpn == gpn
    assert overlay.data == _filled(0x22)
    assert memory.read(A * PAGE, PAGE) == _filled(0x11)
    assert memory.read(B * PAGE, PAGE) == (_filled(0x22) if gpn == B else bytes(PAGE))
