"""`ScsiController`: a storage controller with several disks, as a VMBus device.

    async with serve_devices(server, ScsiController(instance_id, {0: MemoryDisk(64 << 20), 1: system_disk})):
        ...

It will: agree on a version and answer what comes in the wrong order (`negotiation.py`); offer sub-channels, which serve
requests alone; take the requests of a channel one after another, a batch at a time, with one signal for the answers of a
batch. Data lie in guest memory that GPA-direct packets name, and nowhere else. It will not: queue requests, keep anything of
a guest that has closed its channel, or save which version was agreed on (a guest of a restored server negotiates again).

A guest loses its channel for packets that no answer would reach or help: without the completion flag, completions that
nobody asked for, packets too short for their operation. All other nonsense gets a status.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from uuid import UUID

from broker.errors import ConfigurationError, OfferRefused, PeerError, ProtocolError

from ...core.server.offer_params import OfferParams
from ...protocol.ids import SCSI
from ...protocol.packet import COMPLETION_REQUESTED, Packet, PacketType
from ...protocol.storage.vstor import PACKET_SIZE, NtStatus, Operation, StorageVersion, VstorPacket
from ..device import Device, DeviceChannel
from .disk import Disk
from .negotiation import Negotiation
from .target import Target

QUANTUM = 1 << 20
"""Bytes that are worked on for one channel before what is done is answered and others have their turn."""
REQUEST_COST = 1 << 12
"""What a packet counts for besides its bytes: a batch of many that move nothing takes its time, too."""
MAX_SUBCHANNELS = 0xFFFF


class ScsiController(Device):
    """See the module. `disks`: by LUN, 0 to 255; `instance_id`: the class's own ID where a machine has one controller.

    `ConfigurationError` for LUNs, disks or numbers of sub-channels that cannot be.
    """

    __slots__ = ("_negotiation", "_target", "max_subchannels", "offer", "served")

    def __init__(
        self, instance_id: UUID = SCSI, disks: Mapping[int, Disk] | None = None, *, max_subchannels: int = 0
    ) -> None:
        if not 0 <= max_subchannels <= MAX_SUBCHANNELS:
            raise ConfigurationError(f"a controller has 0 to {MAX_SUBCHANNELS} sub-channels, not {max_subchannels}")
        self.offer = OfferParams.device(SCSI, instance_id)
        self.max_subchannels = max_subchannels
        self.served = 0
        """SCSI requests that were answered."""
        self._target = Target(instance_id, disks or {})
        self._negotiation = Negotiation(max_subchannels)

    @property
    def version(self) -> StorageVersion | None:
        """What was agreed on with the guest that opened the primary channel last; None before."""
        return self._negotiation.version

    @property
    def refused(self) -> int:
        """SCSI requests that were answered with anything but success."""
        return self._target.refused

    async def open(self, channel: DeviceChannel) -> None:
        """A guest that opens the primary channel negotiates anew."""
        if not channel.subchannel_index:
            self._negotiation = Negotiation(self.max_subchannels)

    async def run(self, channel: DeviceChannel) -> None:
        """Serve one channel, batch by batch."""
        while True:
            await self._serve(channel, await channel.receive_batch())

    async def _serve(self, channel: DeviceChannel, packets: Sequence[Packet]) -> None:
        answers: list[tuple[Packet, bytes]] = []
        done = 0
        try:
            for packet in packets:
                answer, cost = await self._answer(channel, packet)
                answers.append((packet, answer))
                done += cost + REQUEST_COST
                if done >= QUANTUM:
                    await channel.complete_batch(answers)
                    answers, done = [], 0
                    await channel.turns.pause()
        except PeerError:
            await channel.complete_batch(answers)  # they were carried out
            raise
        await channel.complete_batch(answers)

    async def _answer(self, channel: DeviceChannel, packet: Packet) -> tuple[bytes, int]:
        if packet.packet_type is PacketType.COMPLETION or not packet.flags & COMPLETION_REQUESTED:
            raise ProtocolError("storage packet", 6, "a packet that asks for a completion", "one that does not")
        header = VstorPacket.unpack(packet.payload)
        if header.operation == Operation.EXECUTE_SRB and self._negotiation.is_ready:
            self.served += 1
            return await self._target.answer(channel.memory, packet)
        status, body = await self._manage(channel, header)
        size = min(len(packet.payload), PACKET_SIZE)
        return VstorPacket(Operation.COMPLETE_IO, status=status, body=body).pack_to(size), 0

    async def _manage(self, channel: DeviceChannel, header: VstorPacket) -> tuple[NtStatus, bytes]:
        negotiation = self._negotiation
        if channel.subchannel_index:
            return negotiation.answer_subchannel(header.operation), b""
        before = negotiation.subchannels
        status, body = negotiation.answer(header.operation, header.body)
        if negotiation.subchannels != before and negotiation.subchannels:
            try:
                await channel.offer_subchannels(negotiation.subchannels)
            except OfferRefused:  # the server has no channel IDs left
                return NtStatus.UNSUCCESSFUL, b""
        return status, body
