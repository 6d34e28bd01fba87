"""One GPADL as the server keeps it: assembled from several messages, checked once, then a device's until torn down.

A range buffer is `count` ranges back to back: a u64 (byte count, byte offset << 32) and the u64 numbers of the pages.
Words after the last range are cut off, bytes beyond the announced length are ignored (OpenVMM, `gparange.rs`).
"""

from __future__ import annotations

from enum import Enum

from broker.errors import ProtocolError

from ...protocol.gparange import parse_gpa_ranges

WORD = 8
GPADL_COST = 16
"""Words that a GPADL counts for besides those that it names."""


class GpadlState(Enum):
    """Where a GPADL is."""

    IN_PROGRESS = "in-progress"
    """More of it is to come."""
    OFFERED = "offered"
    """The device is being told."""
    OFFERED_TEARING_DOWN = "offered-tearing-down"
    """The guest let go of the channel while the device was being told."""
    ACCEPTED = "accepted"
    """The device may use it."""
    TEARING_DOWN = "tearing-down"
    """The device is to let go of it."""


class Gpadl:
    """See the module. `length` is what the header announces, in bytes."""

    __slots__ = ("buffer", "gpadl_id", "is_released", "length", "range_count", "state")

    def __init__(self, gpadl_id: int, range_count: int, length: int) -> None:
        self.gpadl_id = gpadl_id
        self.range_count = range_count
        self.length = length // WORD * WORD
        self.buffer = b""
        self.state = GpadlState.IN_PROGRESS
        self.is_released = False
        """The guest that it was of has let go of the channel: only the device has yet to let go, and nobody is told."""

    @property
    def cost(self) -> int:
        """Words that it counts for."""
        return self.length // WORD + GPADL_COST

    def append(self, data: bytes) -> bool:
        """Take more of the range buffer; True once it is whole. What does not fit is ignored."""
        room = self.length - len(self.buffer)
        self.buffer += data[: min(len(data) // WORD * WORD, room)]
        return len(self.buffer) == self.length

    def validate(self) -> None:
        """Check the ranges of a whole buffer and cut off what follows the last. `ProtocolError` for ranges that are none."""
        ranges, used = parse_gpa_ranges(self.buffer, self.range_count)
        if not ranges:
            raise ProtocolError("GPADL", 0, "at least one range", "none")
        self.buffer = self.buffer[:used]
