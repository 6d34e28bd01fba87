"""Memory that a driver lends to its adapter for one packet each, and gets back with the packet's completion.

Small packets lie in sections of the send buffer. Larger ones, and all where there is no send buffer, lie in pages of
their own, named by GPA-direct ranges. Both are numbered slots of which a fixed number exists: who finds none waits.
"""

from __future__ import annotations

from broker.hvdef import PAGE_SIZE

from ...buffer import GuestBuffer
from ...protocol.gparange import GpaRange, page_count
from ...protocol.network import nvsp
from ...protocol.network.nvsp import NO_SECTION, ChannelType, NvspVersion
from ...protocol.packet import pack_gpa_direct, pack_in_band


class Slots:
    """So many slots of `size` bytes each, in one buffer."""

    def __init__(self, buffer: GuestBuffer | None, size: int, version: NvspVersion) -> None:
        self.size = size
        self.free = list(range(buffer.size // size)) if buffer is not None and size else []
        """Numbers of slots that may be taken."""
        self.count = len(self.free)
        self._buffer = buffer
        self._version = version

    def pack(self, slot: int, message: bytes, transaction_id: int) -> bytes:
        """Put RNDIS messages into a slot: the packet that names it, without footer."""
        assert self._buffer is not None
        self._buffer.write(slot * self.size, message)
        return self._packet(slot, len(message), transaction_id)

    def _packet(self, slot: int, size: int, transaction_id: int) -> bytes:
        raise NotImplementedError


class Sections(Slots):
    """Sections of the send buffer; none where there is no send buffer."""

    def _packet(self, slot: int, size: int, transaction_id: int) -> bytes:
        payload = nvsp.RNDIS_PACKET.pack(nvsp.NvspType.RNDIS_PACKET, ChannelType.DATA, slot, size)
        return pack_in_band(payload.ljust(self._version.message_size, b"\0"), transaction_id, True)


class PageSlots(Slots):
    """Pages of the guest, each slot in some of them that begin at a page."""

    def __init__(self, buffer: GuestBuffer, gpns: tuple[int, ...], size: int, version: NvspVersion) -> None:
        super().__init__(buffer, size, version)
        self._gpns = gpns
        self._payload = nvsp.RndisPacket(ChannelType.DATA, NO_SECTION, 0).padded(version)

    def _packet(self, slot: int, size: int, transaction_id: int) -> bytes:
        first = slot * self.size // PAGE_SIZE
        part = GpaRange(size, 0, self._gpns[first : first + page_count(size, 0)])
        return pack_gpa_direct([part], self._payload, transaction_id)
