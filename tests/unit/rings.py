"""Rings for tests: the same ring over one buffer, over two, and over scattered pages in descending order."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from broker import GuestMemory
from channels.ring import RingMemory
from channels.ring.control import CONTROL_PAGE_SIZE, FEATURE_BITS, IN, INTERRUPT_MASK, OUT, PENDING_SEND_SIZE

PAGE = 4096
GUARD = bytes([0x5A]) * PAGE
WORDS = {
    "write_index": IN,
    "read_index": OUT,
    "interrupt_mask": INTERRUPT_MASK,
    "pending_send_size": PENDING_SEND_SIZE,
    "feature_bits": FEATURE_BITS,
}


class SharedRing(NamedTuple):
    """A ring, and its memory as seen without the ring's own code."""

    memory: RingMemory
    control: Callable[[], bytes]
    data: Callable[[], bytes]
    outside: Callable[[], bytes]
    """What lies around the ring: `GUARD` all over."""

    def set_words(self, **values: int) -> None:
        for name, value in values.items():
            self.memory.words[WORDS[name]] = value

    def word(self, name: str) -> int:
        return int.from_bytes(self.control()[4 * WORDS[name] :][:4], "little")


def one_view(size: int) -> SharedRing:
    guarded = bytearray(GUARD + bytes(PAGE + size) + GUARD)
    end = 2 * PAGE + size
    return SharedRing(
        RingMemory(memoryview(guarded)[PAGE:end]),
        lambda: bytes(guarded[PAGE : 2 * PAGE]),
        lambda: bytes(guarded[2 * PAGE : end]),
        lambda: bytes(guarded[:PAGE] + guarded[end:]),
    )


def two_views(size: int) -> SharedRing:
    control, data = bytearray(PAGE), bytearray(GUARD + bytes(size) + GUARD)
    return SharedRing(
        RingMemory(control, memoryview(data)[PAGE : PAGE + size]),
        lambda: bytes(control),
        lambda: bytes(data[PAGE : PAGE + size]),
        lambda: bytes(data[:PAGE] + data[PAGE + size :]),
    )


def scattered_pages(size: int) -> SharedRing:
    """Descending pages with a guard after each but for two neighbours, where there are so many."""
    pages = size // PAGE
    gpns = [2 * index + 2 for index in reversed(range(pages + 1))]
    if pages > 2:
        gpns[-1] = gpns[-2] + 1
    memory = GuestMemory((2 * pages + 4) * PAGE)
    others = [gpn for gpn in range(memory.size // PAGE) if gpn not in gpns]
    for gpn in others:
        memory.write(gpn * PAGE, GUARD)
    return SharedRing(
        RingMemory.of_pages(memory, gpns),
        lambda: memory.read(gpns[0] * PAGE, CONTROL_PAGE_SIZE),
        lambda: b"".join(memory.read(gpn * PAGE, PAGE) for gpn in gpns[1:]),
        lambda: b"".join(memory.read(gpn * PAGE, PAGE) for gpn in others),
    )


MEMORIES = [one_view, two_views, scattered_pages]
