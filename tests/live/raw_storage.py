"""`RawStorage`: a guest that speaks storvsp by hand, in the bytes of vmbus.md 8.9, over channels of a `VmbusClient`.

Nothing here uses `channels.protocol.storage`.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple
from uuid import UUID

from broker import Partition, PartitionConfig
from broker.memory import GuestMemory
from channels.client import GuestChannel, VmbusClient
from channels.devices import EchoDevice, serve_devices
from channels.devices.storage import ScsiController
from channels.protocol import GpaRange
from channels.protocol.packet import PacketType
from channels.server import VmbusServer

PAGE = 4096
SCSI_CLASS = UUID("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f")
ECHO = UUID("6ec80002-0000-4000-8000-000000000777")

SUCCESS, INVALID_PARAMETER, REVISION_MISMATCH, WRONG_STATE, IO_ERROR, NO_DEVICE, OVERFLOW = (
    0,
    0xC000_000D,
    0xC000_0059,
    0xC000_0184,
    0xC000_0185,
    0xC000_00C0,
    0x8000_0005,
)
EXECUTE, BEGIN, END, VERSION, PROPERTIES, SUBCHANNELS = 3, 7, 8, 9, 10, 13
IN, OUT, NONE = 1, 0, 2
BUFFER_PAGES = 66


class Answer(NamedTuple):
    """What a SCSI request was answered with."""

    nt_status: int
    srb_status: int
    scsi_status: int
    moved: int
    sense: str
    """As in "5/24/00", empty without autosense."""
    data: bytes


class RawStorage:
    """See the module."""

    def __init__(self, client: VmbusClient, channel: GuestChannel, echo: GuestChannel) -> None:
        self.client = client
        self.channel = channel
        self.echo = echo
        self.memory: GuestMemory = client.guest_synic.memory
        self.gpns = client.pages.allocate(BUFFER_PAGES)

    async def say(
        self, operation: int, body: bytes = b"", size: int = 64, channel: GuestChannel | None = None
    ) -> tuple[int, bytes]:
        """One packet of so many bytes: status and body of its answer, which is as long and of operation 1."""
        packet = (struct.pack("<III", operation, 1, 0) + body).ljust(size, b"\0")[:size]
        answer = await (channel or self.channel).request(packet)
        assert answer.packet_type is PacketType.COMPLETION
        assert len(answer.payload) == min((size + 7) // 8 * 8, 64)
        operation, flags, status = struct.unpack_from("<III", answer.payload)
        assert (operation, flags) == (1, 0)
        return status, answer.payload[12:]

    async def negotiate(self, version: int = 0x0602, size: int = 64) -> None:
        for operation, body in ((BEGIN, b""), (VERSION, struct.pack("<H", version)), (PROPERTIES, b""), (END, b"")):
            status, _ = await self.say(operation, body, size)
            assert status == SUCCESS

    async def srb(
        self,
        cdb: str | bytes,
        *,
        lun: int = 0,
        data_out: bytes = b"",
        data_in: int = 0,
        direction: int | None = None,
        length: int | None = None,
        ranges: Sequence[GpaRange] | None = None,
        cdb_length: int | None = None,
        path: int = 0,
        target: int = 0,
        size: int = 64,
        channel: GuestChannel | None = None,
    ) -> Answer:
        """A SCSI request over the buffer, whose bytes are 0xEE before it where data come in."""
        cdb = bytes.fromhex(cdb) if isinstance(cdb, str) else cdb
        total = len(data_out) or data_in
        way = direction if direction is not None else OUT if data_out else IN if data_in else NONE
        if ranges is None:
            ranges = self.buffer(total) if total else ()
        self.memory.write(self.gpns[0] * PAGE, data_out or b"\xee" * BUFFER_PAGES * PAGE)
        fields = (path, target, lun, len(cdb) if cdb_length is None else cdb_length, 20, way, 0)
        srb = struct.pack("<HBBxBBBBBBBI", size - 12, 0, 0, *fields, total if length is None else length)
        srb += cdb.ljust(20, b"\0")[:20] + bytes(16)
        packet = (struct.pack("<III", EXECUTE, 1, 0) + srb)[:size]
        answer = await (channel or self.channel).request(packet, ranges)
        assert answer.packet_type is PacketType.COMPLETION
        assert len(answer.payload) == size
        operation, _, nt_status = struct.unpack_from("<III", answer.payload)
        assert operation == 1
        assert struct.unpack_from("<H", answer.payload, 12) == (size - 12,)
        srb_status, scsi_status = answer.payload[14], answer.payload[15]
        (moved,) = struct.unpack_from("<I", answer.payload, 24)
        sense = answer.payload[28:48]
        text = f"{sense[2] & 15:x}/{sense[12]:02x}/{sense[13]:02x}" if srb_status & 0x80 else ""
        data = self.memory.read(self.gpns[0] * PAGE, moved) if way == IN else b""
        return Answer(nt_status, srb_status & 0x3F, scsi_status, moved, text, data)

    def buffer(self, size: int, offset: int = 0) -> list[GpaRange]:
        """One range of the buffer's first bytes."""
        pages = (offset + size + PAGE - 1) // PAGE
        return [GpaRange(size, offset, self.gpns[:pages])]

    async def check_alive(self) -> None:
        """The other device's channel echoes."""
        assert (await self.echo.request(b"are you there?")).payload == b"are you there?\0\0"


@asynccontextmanager
async def raw_storage(
    controller: ScsiController, version: int | None = 0x0602, size: int = 64, seed: int | None = None
) -> AsyncIterator[RawStorage]:
    """A partition with this controller and an echo device, and a guest that has opened both, and negotiated if it may."""
    async with (
        Partition(PartitionConfig(virtual_time=True, seed=seed)) as partition,
        VmbusServer(partition.synic(), partition.memory) as server,
        serve_devices(server, controller, EchoDevice(ECHO)),
        VmbusClient(partition.vp(0).guest_synic()) as client,
    ):
        channel = await client.open(await client.wait_offer(SCSI_CLASS), ring_pages=(5, 5))
        echo = await client.open(await client.wait_offer(instance_id=ECHO))
        guest = RawStorage(client, channel, echo)
        if version is not None:
            await guest.negotiate(version, size)
        yield guest
        await guest.check_alive()
