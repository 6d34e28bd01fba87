"""The control page of a ring: 4096 bytes in front of its data (Linux `hv_ring_buffer`), 32-bit words, little-endian.

| offset | word | written by |
|---|---|---|
| 0 | in: where the producer writes next, bytes into the data | producer |
| 4 | out: where the consumer reads next, bytes into the data | consumer |
| 8 | interrupt mask: 0 when the consumer wants a signal once the ring is no longer empty | consumer |
| 12 | pending send size: bytes of room that the producer waits for, 0 when it does not wait | producer |
| 64 | feature bits, bit 0: the producer uses the pending send size | producer |

Indices are multiples of 8 below the size of the data. Eight bytes always stay free, so that full differs from empty.
"""

from __future__ import annotations

from broker.errors import RingCorrupt

CONTROL_PAGE_SIZE = 4096

# Numbers of words, for a memoryview of format "I".
IN = 0
OUT = 1
INTERRUPT_MASK = 2
PENDING_SEND_SIZE = 3
FEATURE_BITS = 16
CONTROL_WORDS = 32
"""Words that OpenVMM maps: 128 bytes."""

PENDING_SEND_SIZE_SUPPORTED = 0x1
UNUSABLE = 8
"""Bytes of the data that are never filled."""


def is_index(value: int, size: int) -> bool:
    """True for what `in` and `out` may be in a ring with this many bytes of data."""
    return value < size and not value & 7


def check_index(word: int, value: int, size: int) -> int:
    """`value`, as loaded from this word of the control page. `RingCorrupt` when it is no index."""
    if value < size and not value & 7:
        return value
    name = "in" if word == IN else "out"
    raise RingCorrupt(f"ring pointer {name}", 4 * word, f"a multiple of 8 below {size:#x}", f"{value:#x}")
