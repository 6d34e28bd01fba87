"""Network adapters and guests for tests: a served partition with a VMBus client, and `RawNic`, a driver that says what the
test wants it to."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple
from uuid import UUID

from structlog.testing import capture_logs

from broker import Partition, PartitionConfig
from channels.client import GuestChannel, VmbusClient
from channels.devices import Device, serve_devices
from channels.devices.network import NetworkBackend
from channels.protocol.gparange import GpaRange
from channels.protocol.network import nvsp, rndis
from channels.protocol.network.frames import Frame, parse_frames
from channels.protocol.network.nvsp import NvspMessage, NvspVersion, parse_from_host
from channels.protocol.network.oids import Oid, PacketFilter
from channels.protocol.packet import Packet, PacketType, pack_in_band
from channels.server import VmbusServer

PAGE = 4096
INSTANCES = tuple(UUID(int=0x5D000001 + number) for number in range(4))


class Stage(NamedTuple):
    """What `plugged` makes."""

    partition: Partition
    server: VmbusServer
    client: VmbusClient


@asynccontextmanager
async def plugged(*devices: Device, **settings: Any) -> AsyncIterator[Stage]:
    """A partition with these devices, and the VMBus client of its guest."""
    async with (
        Partition(PartitionConfig(**({"virtual_time": True} | settings))) as partition,
        VmbusServer(partition.synic(), partition.memory) as server,
        serve_devices(server, *devices),
        VmbusClient(partition.vp(0).guest_synic()) as client,
    ):
        yield Stage(partition, server, client)


class Sink(NetworkBackend):
    """Keeps what the guest sends; the test hands out frames by `station`."""

    def __init__(self) -> None:
        self.station: Any = None
        self.frames: list[Frame] = []
        self.runs = 0

    def plug(self, station: Any) -> None:
        self.station = station

    async def send(self, frames: Sequence[Frame]) -> None:
        self.frames += frames

    async def run(self) -> None:
        self.runs += 1


class RawNic:
    """A driver by hand, on the primary channel."""

    def __init__(self, client: VmbusClient, channel: GuestChannel) -> None:
        self.client = client
        self.channel = channel
        self.version: NvspVersion | None = None
        self.receive_gpns: tuple[int, ...] = ()
        self.section_size = 0
        self.page = client.pages.allocate(1)[0]

    @classmethod
    async def open(cls, client: VmbusClient, instance_id: UUID = INSTANCES[0]) -> RawNic:
        offer = await client.wait_offer(instance_id=instance_id)
        return cls(client, await client.open(offer, ring_pages=(5, 5)))

    async def ask(self, message: NvspMessage | bytes) -> NvspMessage | None:
        """Send with a completion wanted: the answer, None for an empty one."""
        data = message if isinstance(message, bytes) else message.padded(self.version)
        completion = await self.channel.request(data)
        return parse_from_host(completion.payload) if completion.payload else None

    async def tell(self, message: NvspMessage | bytes) -> None:
        """Send without."""
        await self.channel.send(message if isinstance(message, bytes) else message.padded(self.version))

    async def init(self, version: NvspVersion = NvspVersion.V6_1) -> None:
        answer = await self.ask(nvsp.Init(version, version))
        assert isinstance(answer, nvsp.InitComplete)
        assert answer.status == 1
        self.version = version

    async def configure(self, mtu: int = 1500) -> None:
        await self.tell(nvsp.NdisConfig(mtu + 14))

    async def buffers(self, receive_pages: int = 8, send_pages: int = 3) -> nvsp.ReceiveBufferComplete:
        """Give both buffers: what the host made of the first."""
        gpadl = await self.client.create_gpadl(self.channel, receive_pages)
        self.receive_gpadl, self.receive_gpns = gpadl, gpadl.gpns
        answer = await self.ask(nvsp.ReceiveBuffer(gpadl.gpadl_id))
        assert isinstance(answer, nvsp.ReceiveBufferComplete)
        assert answer.status == 1
        self.section_size = answer.size
        self.send_gpadl = await self.client.create_gpadl(self.channel, send_pages)
        sections = await self.ask(nvsp.SendBuffer(self.send_gpadl.gpadl_id))
        assert sections == nvsp.SendBufferComplete(1, 6144)
        return answer

    async def ready(
        self, version: NvspVersion = NvspVersion.V6_1, *, mtu: int = 1500, receive_pages: int = 8
    ) -> RawNic:
        """All of NVSP, and RNDIS initialized."""
        await self.init(version)
        if version > NvspVersion.V1:
            await self.configure(mtu)
        await self.tell(nvsp.NdisVersion(6, 30))
        await self.buffers(receive_pages)
        await self.control(rndis.Initialize(1))
        return self

    async def listen(self, chosen: PacketFilter = PacketFilter.PROMISCUOUS) -> RawNic:
        """Set a packet filter."""
        answer = await self.control(rndis.Set.of(2, Oid.PACKET_FILTER, struct.pack("<I", chosen)))
        assert answer == rndis.SetComplete(2, 0)
        return self

    async def control(self, message: rndis.RndisMessage) -> rndis.RndisMessage:
        """Send an RNDIS control message: its answer."""
        assert await self.send_control(message.pack()) == nvsp.RndisPacketComplete(1)
        packet = await self.next_of_type_7()
        ((size, offset),) = self.ranges(packet)
        answer = rndis.parse_control_from_host(self.read(offset, size))
        await self.complete(packet)
        return answer

    async def send_control(self, data: bytes) -> NvspMessage | None:
        """Send an RNDIS control message from a page: its completion."""
        self.channel.memory.write(self.page * PAGE, data)
        payload = nvsp.RndisPacket(1).padded(self.version)
        completion = await self.channel.request(payload, [GpaRange(len(data), 0, (self.page,))])
        return parse_from_host(completion.payload)

    async def send_data(self, data: bytes, section: int = 0) -> NvspMessage | None:
        """Send RNDIS data messages from a section: their completion."""
        self.write_section(section, data)
        return await self.ask(nvsp.RndisPacket(0, section, len(data)))

    def write_section(self, section: int, data: bytes) -> None:
        gpns = self.send_gpadl.gpns
        assert gpns == tuple(range(gpns[0], gpns[0] + len(gpns)))
        self.channel.memory.write(gpns[0] * PAGE + section * 6144, data)

    async def next_of_type_7(self) -> Packet:
        while (packet := await self.channel.receive()).packet_type is not PacketType.TRANSFER_PAGES:
            pass
        return packet

    @staticmethod
    def ranges(packet: Packet) -> list[tuple[int, int]]:
        assert packet.transfer_page_set_id == 0xCAFE
        return [(part.byte_count, part.byte_offset) for part in packet.transfer_ranges()]

    def read(self, offset: int, size: int) -> bytes:
        gpns = self.receive_gpns
        assert gpns == tuple(range(gpns[0], gpns[0] + len(gpns)))
        return self.channel.memory.read(gpns[0] * PAGE + offset, size)

    async def frames(self) -> tuple[list[Frame], Packet]:
        """The frames of the host's next packet, and the packet, not completed."""
        packet = await self.next_of_type_7()
        found = [frame for size, offset in self.ranges(packet) for frame in parse_frames(self.read(offset, size))]
        return found, packet

    async def complete(self, packet: Packet, payload: bytes | None = None) -> None:
        await self.channel.complete(packet, nvsp.RndisPacketComplete(1).pack() if payload is None else payload)

    async def complete_id(self, number: int, payload: bytes = nvsp.RndisPacketComplete(1).pack()) -> None:
        """A completion with this ID, asked for or not."""
        packet = Packet(PacketType.TRANSFER_PAGES, 1, number, b"")
        await self.channel.complete(packet, payload)


async def loses_its_channel(stage: Stage, action: Awaitable[object], reason: str, channel_id: int = 1) -> None:
    """After this, the adapter has ended that channel, for this reason, and no other."""
    with capture_logs() as logs:
        await action
        await stage.partition.settled()
    assert [(log["event"], log["channel_id"]) for log in logs] == [("channel_ended", channel_id)]
    assert reason in logs[0]["reason"]


async def send_data_batch(nic: RawNic, count: int, data: bytes) -> None:
    """Many data packets of one section at once, with transaction IDs from 1 on."""
    nic.write_section(0, data)
    payload = nvsp.RndisPacket(0, 0, len(data)).padded(nic.version)
    await nic.channel.send_packets([pack_in_band(payload, number, True) for number in range(1, count + 1)])
