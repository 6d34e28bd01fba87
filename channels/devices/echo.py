"""The smallest device: it sends back what it gets."""

from __future__ import annotations

from uuid import UUID

from ..core.server.offer_params import OfferParams
from ..protocol.packet import COMPLETION_REQUESTED, PacketType
from .device import Device, DeviceChannel

ECHO_INTERFACE = UUID("6ec80000-0000-4000-8000-000000000000")
"""The class of echo devices. It is this project's own; no guest knows it by itself."""


class EchoDevice(Device):
    """Answers a packet that wants a completion with one of the same payload, any other data packet with a copy."""

    __slots__ = ("echoed", "max_subchannels", "offer")

    def __init__(self, instance_id: UUID, *, max_subchannels: int = 0, interface_id: UUID = ECHO_INTERFACE) -> None:
        self.offer = OfferParams.device(interface_id, instance_id)
        self.max_subchannels = max_subchannels
        self.echoed = 0
        """Packets sent back."""

    async def run(self, channel: DeviceChannel) -> None:
        """Batch by batch: a run of plain packets goes back with one store and at most one signal."""
        while True:
            plain: list[bytes] = []
            packets = await channel.receive_batch()
            for packet in packets:
                if packet.flags & COMPLETION_REQUESTED:
                    await channel.send_batch(plain)
                    plain = []
                    await channel.complete(packet, packet.payload)
                elif packet.packet_type is not PacketType.COMPLETION:
                    plain.append(packet.payload)
            await channel.send_batch(plain)
            self.echoed += len(packets)
