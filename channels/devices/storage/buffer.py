"""`DataBuffer`: the guest memory of one SCSI request, checked before anything is read or written.

It will: take the ranges of a GPA-direct packet as far as the request's transfer length goes, and refuse, as an invalid
request, ranges that break a rule, lie outside guest memory or are shorter than that length, and a length over `MAX_TRANSFER`
or without ranges. It will not: move a byte more than the transfer length.
"""

from __future__ import annotations

from broker.errors import MemoryAccessError, ProtocolError
from broker.memory import GuestMemory

from ...buffer import GuestBuffer
from ...protocol.packet import Packet, PacketType
from ...protocol.storage.srb import DataDirection, ScsiRequest
from ...protocol.storage.vstor import MAX_TRANSFER
from .refused import Refused


class DataBuffer:
    """See the module. `Refused` where the request is not as it has to be."""

    __slots__ = ("_direction", "_memory", "cost", "size")

    def __init__(self, memory: GuestMemory, packet: Packet, request: ScsiRequest) -> None:
        self.size = request.transfer_length
        """Bytes that the request may move."""
        self.cost = 0
        """Bytes that the disk worked on without moving them, as far as the command has said so."""
        self._direction = request.direction
        try:
            ranges = packet.gpa_ranges() if packet.packet_type is PacketType.GPA_DIRECT else ()
            self._memory = GuestBuffer(memory, ranges, min(self.size, MAX_TRANSFER))
        except (ProtocolError, MemoryAccessError):
            raise Refused from None
        if self._memory.size < self.size:
            raise Refused

    def take(self, size: int) -> bytes:
        """The first `size` bytes, for the disk. `Refused` where there are fewer, or data go the other way."""
        if size > self.size or (size and self._direction != DataDirection.TO_DISK):
            raise Refused
        return self._memory.read(0, size)

    def give(self, data: bytes) -> int:
        """Store what the disk tells: how many bytes that were. `Refused` as in `take`, and then nothing is stored."""
        size = len(data)
        if size > self.size or (size and self._direction != DataDirection.FROM_DISK):
            raise Refused
        self._memory.write(0, data)
        return size
