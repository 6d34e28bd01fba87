"""One open channel of a driver's network adapter: its reader, and packets that are on their way.

The reader takes what comes in batches, copies frames out of the receive buffer at once, and gives slots back whose packets the
host has completed. Frames wait here with their packet, which is completed when they are taken: so the receive buffer bounds
what waits, and a guest that takes nothing stops its host and nobody else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from broker.errors import ProtocolError

from ...buffer import GuestBuffer
from ...client.opens import GuestChannel
from ...protocol.network.frames import Frame, parse_frames
from ...protocol.network.nvsp import (
    RECEIVE_BUFFER_ID,
    RNDIS_PACKET,
    RNDIS_PACKET_COMPLETE,
    ChannelType,
    NvspMessage,
    NvspStatus,
    NvspType,
    parse_from_host,
    parse_receive,
)
from ...protocol.network.rndis import RndisMessage, parse_control_from_host
from ...protocol.packet import Packet, PacketType
from .negotiate import Agreement
from .slots import Slots

RECEIVED = RNDIS_PACKET_COMPLETE.pack(NvspType.RNDIS_PACKET_COMPLETE, NvspStatus.SUCCESS)
"""The completion of every packet from the host, as long as Linux makes it."""

PACKET_ROOM = 256
"""Bytes of the ring that a packet takes at most: with 17 pages, for an MTU of 64 KiB."""


class Arrival(Protocol):
    """Who takes what a lane reads."""

    def frames_came(self, lane: GuestLane, packet: Packet, frames: list[Frame]) -> None:
        """Frames, and the packet to complete when they are taken."""
        ...

    def control_came(self, message: RndisMessage) -> None:
        """An RNDIS control message."""
        ...

    def notice_came(self, message: NvspMessage) -> None:
        """An NVSP message that is no RNDIS packet."""
        ...

    def sends_ended(self, count: int, failed: int) -> None:
        """The host has done with so many packets; so many of them it did not take."""
        ...


class GuestLane:
    """See the module."""

    def __init__(self, channel: GuestChannel, index: int, agreement: Agreement, arrival: Arrival) -> None:
        self.channel = channel
        self.index = index
        self.sent: dict[int, tuple[Slots, int]] = {}
        """Packets that the host has not completed, by transaction ID: their slots."""
        self.most_sent = max(1, channel.outgoing.largest_packet // PACKET_ROOM)
        """Packets that may be on their way: so few that none waits for room in the ring, and a cancelled send loses no slot."""
        self._buffer: GuestBuffer = agreement.receive
        self._suballocations = agreement.suballocations
        self._largest = agreement.suballocation_size
        self._held = 0
        """Ranges of packets that were not completed yet."""
        self._arrival = arrival
        self._next_id = 1

    def pack(self, slots: Slots, slot: int, message: bytes) -> bytes:
        """A packet with RNDIS messages in this slot."""
        number, self._next_id = self._next_id, self._next_id + 1
        self.sent[number] = (slots, slot)
        return slots.pack(slot, message, number)

    def give_back(self) -> None:
        """The channel is gone: nothing that was sent will be completed."""
        for slots, slot in self.sent.values():
            slots.free.append(slot)
        self.sent.clear()

    async def complete(self, packets: Sequence[Packet]) -> None:
        """The frames of these packets were taken."""
        for packet in packets:
            self._held -= _range_count(packet)
        await self.channel.complete_batch([(packet, RECEIVED) for packet in packets])

    async def read(self) -> None:
        """Read until the channel ends: raises why."""
        while True:
            ended = failed = 0
            done: list[Packet] = []
            for packet in await self.channel.receive_batch():
                kind = packet.packet_type
                if kind is PacketType.COMPLETION:
                    ended += 1
                    failed += self._take_back(packet)
                elif kind is PacketType.TRANSFER_PAGES:
                    if self._take(packet):
                        done.append(packet)
                elif kind is PacketType.IN_BAND:
                    self._arrival.notice_came(parse_from_host(packet.payload))
                else:
                    raise ProtocolError("packet", 0, "a packet that hosts send", kind.name)
            if ended:
                self._arrival.sends_ended(ended, failed)
            if done:
                await self.complete(done)

    def _take_back(self, packet: Packet) -> bool:
        """A packet of this lane was completed. True: it was not taken."""
        payload = packet.payload
        if len(payload) < RNDIS_PACKET_COMPLETE.size:
            raise ProtocolError("completion", len(payload), "8 bytes", f"an end after {len(payload)}")
        number, status = RNDIS_PACKET_COMPLETE.unpack_from(payload)
        if number != NvspType.RNDIS_PACKET_COMPLETE:
            raise ProtocolError("completion", 0, "RNDIS_PACKET_COMPLETE", f"{number}")
        sent = self.sent.pop(packet.transaction_id, None)
        if sent is None:
            raise ProtocolError("completion", 8, "the ID of a packet that was sent", f"{packet.transaction_id:#x}")
        slots, slot = sent
        slots.free.append(slot)
        return bool(status != NvspStatus.SUCCESS)

    def _take(self, packet: Packet) -> bool:
        """Frames or a control message. True: the packet may be completed at once."""
        payload = packet.payload
        if len(payload) < RNDIS_PACKET.size:
            raise ProtocolError("NVSP message", len(payload), "16 bytes", f"an end after {len(payload)}")
        number, channel_type, _, _ = RNDIS_PACKET.unpack_from(payload)
        set_id, ranges = parse_receive(packet.header)
        if number != NvspType.RNDIS_PACKET or set_id != RECEIVE_BUFFER_ID:
            raise ProtocolError("transfer pages", 16, "an RNDIS packet in the receive buffer", f"{number}, {set_id:#x}")
        self._held += len(ranges) >> 1
        if self._held > self._suballocations:
            raise ProtocolError("transfer pages", 20, f"{self._suballocations} ranges at once", f"{self._held}")
        read, size = self._buffer.read, self._buffer.size
        frames: list[Frame] = []
        for index in range(0, len(ranges), 2):
            length, offset = ranges[index], ranges[index + 1]
            if length > self._largest or offset + length > size:
                raise ProtocolError(
                    "transfer range", 24, f"{self._largest} bytes, an end within {size}", f"{length} at {offset}"
                )
            data = read(offset, length)
            if channel_type == ChannelType.CONTROL:
                self._arrival.control_came(parse_control_from_host(data))
            else:
                frames += parse_frames(data)
        if not frames:
            return True
        self._arrival.frames_came(self, packet, frames)
        return False


def _range_count(packet: Packet) -> int:
    return int.from_bytes(packet.header[4:8], "little")
