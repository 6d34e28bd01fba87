"""The two buffers that a guest shares with its network adapter: what the adapter reads from, what it writes to.

Both lie in a GPADL of the primary channel. A GPADL that the guest tears down takes its buffer with it: it is looked for
each time before the buffer is used.
"""

from __future__ import annotations

from collections.abc import Iterable

from broker.errors import MemoryAccessError, ProtocolError

from ...buffer import GuestBuffer
from ...protocol.network.nvsp import SECTION_SIZE
from ..device import DeviceChannel

RECEIVE_OVERHEAD = 256
"""Bytes of a suballocation beside the frame: the header of an RNDIS message and per-packet information."""
RESERVED = 16
"""Suballocations that are kept for control messages, or a quarter where there are few."""


def suballocation_size(frame_size: int) -> int:
    """Bytes of a suballocation for frames of up to `frame_size` bytes."""
    return frame_size + RECEIVE_OVERHEAD + 63 & ~63


class SharedBuffer:
    """A buffer in a GPADL. `ProtocolError` for a GPADL that the channel does not have, or pages outside memory."""

    __slots__ = ("_channel", "_gpadl_id", "_ranges", "buffer_id", "memory")

    def __init__(self, channel: DeviceChannel, gpadl_id: int, buffer_id: int) -> None:
        ranges = channel.gpadls.get(gpadl_id)
        if ranges is None:
            raise ProtocolError("network buffer", 4, "a GPADL of this channel", f"{gpadl_id:#x}")
        try:
            self.memory = GuestBuffer(channel.memory, ranges)
        except MemoryAccessError as error:
            raise ProtocolError("network buffer", 4, "pages of guest memory", str(error)) from error
        self._channel = channel
        self._gpadl_id = gpadl_id
        self._ranges = ranges
        self.buffer_id = buffer_id

    @property
    def is_there(self) -> bool:
        """The guest has not torn it down."""
        return self._channel.gpadls.get(self._gpadl_id) is self._ranges


class SendBuffer(SharedBuffer):
    """Sections of 6144 bytes, in which the guest puts RNDIS messages. `ProtocolError` also where not one fits."""

    __slots__ = ("count",)

    def __init__(self, channel: DeviceChannel, gpadl_id: int, buffer_id: int) -> None:
        super().__init__(channel, gpadl_id, buffer_id)
        self.count = self.memory.size // SECTION_SIZE
        """Sections."""
        if not self.count:
            raise ProtocolError("send buffer", 4, f"{SECTION_SIZE} bytes or more", f"{self.memory.size}")

    def read(self, section: int, size: int) -> bytes:
        """What lies in a section. `ProtocolError` for a section that there is not, or more bytes than it has."""
        if section >= self.count or size > SECTION_SIZE:
            raise ProtocolError(
                "send section",
                8,
                f"section 0 to {self.count - 1}, up to {SECTION_SIZE} bytes",
                f"{size} bytes of section {section}",
            )
        return self.memory.read(section * SECTION_SIZE, size)


class ReceiveBuffer(SharedBuffer):
    """Suballocations for frames of up to `frame_size` bytes, and which of them are free.

    `ProtocolError` also where not one fits.
    """

    __slots__ = ("_free", "_reserved", "count", "section_size")

    def __init__(self, channel: DeviceChannel, gpadl_id: int, buffer_id: int, frame_size: int) -> None:
        super().__init__(channel, gpadl_id, buffer_id)
        self.section_size = suballocation_size(frame_size)
        """Bytes of a suballocation."""
        self.count = self.memory.size // self.section_size
        """Suballocations."""
        if not self.count:
            raise ProtocolError("receive buffer", 4, f"{self.section_size} bytes or more", f"{self.memory.size}")
        self._reserved = min(RESERVED, self.count // 4)
        self._free = list(range(self.count))

    def room(self, *, for_control: bool = False) -> int:
        """Suballocations that may be taken now."""
        return len(self._free) - (0 if for_control else self._reserved)

    def take(self) -> int:
        """One that is free; there is `room`."""
        return self._free.pop()

    def give_back(self, numbers: Iterable[int]) -> None:
        """The guest has done with these."""
        self._free.extend(numbers)
