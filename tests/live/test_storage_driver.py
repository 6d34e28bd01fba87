"""`ScsiInitiator` and `ScsiDisk`: versions, sub-channels, many requests at once, buffers, and hosts that lie."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from uuid import UUID

import anyio
import pytest

from broker import Partition, PartitionConfig
from broker.access import Wakeup
from broker.errors import ChannelClosed, ConnectionFailed, HostError, ProtocolError
from channels.bus import OfferParams
from channels.client import VmbusClient
from channels.devices import Device, DeviceChannel, serve_devices
from channels.devices.storage import MemoryDisk, ScsiController
from channels.drivers.storage import ScsiDisk, ScsiError, ScsiInitiator
from channels.drivers.storage.line import Line
from channels.protocol.ids import SCSI
from channels.protocol.packet import Packet, PacketType, pack_packet
from channels.protocol.storage import BlockCdb, Opcode, Sense, StorageVersion
from channels.server import VmbusServer

CONTENTS = b"".join(index.to_bytes(4, "little") * 128 for index in range(4096))
"""4096 blocks of 512 bytes."""


@asynccontextmanager
async def guest_of(
    *devices: Device, seed: int | None = None, memory_size: int = 16 << 20
) -> AsyncIterator[VmbusClient]:
    async with (
        Partition(PartitionConfig(virtual_time=True, seed=seed, memory_size=memory_size)) as partition,
        VmbusServer(partition.synic(), partition.memory) as server,
        serve_devices(server, *devices),
        VmbusClient(partition.vp(0).guest_synic()) as client,
    ):
        yield client


def controller(max_subchannels: int = 3) -> ScsiController:
    disks = {0: MemoryDisk(CONTENTS), 1: MemoryDisk(CONTENTS, read_only=True), 9: MemoryDisk(1 << 20, block_size=4096)}
    return ScsiController(disks=disks, max_subchannels=max_subchannels)


@pytest.mark.parametrize("version", StorageVersion, ids=lambda version: version.label)
async def test_every_version_reads_and_writes(version: StorageVersion) -> None:
    async with (
        guest_of(controller()) as client,
        ScsiInitiator.open(client, versions=[version], subchannels=2) as initiator,
    ):
        assert initiator.version is version
        assert initiator.channel_count == (3 if version.has_subchannels else 1)
        assert await initiator.luns() == (0, 1, 9)
        disk = await initiator.disk(0)
        assert (disk.block_size, disk.block_count, disk.read_only) == (512, 4096, False)
        assert await disk.read(17, 3) == CONTENTS[17 * 512 : 20 * 512]
        await disk.write(17, bytes(1024))
        await disk.write(19, bytes(512), through=True)
        assert await disk.read(16, 5) == CONTENTS[16 * 512 : 17 * 512] + bytes(1536) + CONTENTS[20 * 512 : 21 * 512]
        await disk.flush()
        await disk.check_ready()
        await disk.unmap(100, 10)
        assert await disk.read(99, 12) == CONTENTS[99 * 512 : 100 * 512] + bytes(5120) + CONTENTS[110 * 512 : 111 * 512]
        large = await initiator.disk(9)
        assert (large.block_size, large.block_count) == (4096, 256)
        await large.write(255, b"z" * 4096)
        assert await large.read(255, 1) == b"z" * 4096


async def test_the_newest_version_that_the_host_knows_is_agreed_on() -> None:
    unknown = [StorageVersion.WIN10, StorageVersion.WIN8_1, StorageVersion.WIN8]
    async with guest_of(Old()) as client:
        async with ScsiInitiator.open(client, versions=[*unknown, StorageVersion.WIN7]) as initiator:
            assert initiator.version is StorageVersion.WIN7
        with pytest.raises(ConnectionFailed, match=r"none of the versions 6\.2, 6\.0, 5\.1"):
            async with ScsiInitiator.open(client):
                pass


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_many_requests_are_under_way_at_once_over_all_channels(seed: int | None) -> None:
    device = controller()
    async with guest_of(device, seed=seed) as client:
        free = client.pages.free_count
        async with ScsiInitiator.open(client, subchannels=3) as initiator:
            disk = await initiator.disk(0)

            async def use(number: int, begin: Callable[[], Awaitable[None]]) -> None:
                await begin()
                for step in range(20):
                    lba = number * 64 + step
                    await disk.write(lba, bytes([number, step]) * 256)
                    assert await disk.read(lba, 1) == bytes([number, step]) * 256
                client.guest_synic.turns.leave()

            async with anyio.create_task_group() as group:
                for number in range(40):
                    group.start_soon(use, number, client.guest_synic.turns.expect(("test", number)))
        assert device.refused == 0
        assert client.pages.free_count == free, "all pages came back"


class Liar(Device):
    """Answers the negotiation well, and then as `lie` says: a payload for each packet."""

    offer = OfferParams.device(SCSI, UUID(int=5))

    def __init__(self, *lies: Callable[[Packet], Sequence[bytes]]) -> None:
        self.lies = list(lies)

    def known(self, version: int) -> bool:
        return True

    def status(self, asked: int) -> int:
        return 0

    def properties(self) -> bytes:
        return struct.pack("<IHHIIQ", 0, 0, 0, 0, 0x40000, 0)

    async def run(self, channel: DeviceChannel) -> None:
        async for packet in channel:
            operation = packet.payload[0]
            if operation == 3 and self.lies:
                for payload in self.lies.pop(0)(packet):
                    await channel.complete(packet, payload)
                continue
            status, body = self.status(operation), b""
            if operation == 9 and not self.known(struct.unpack_from("<H", packet.payload, 12)[0]):
                status = 0xC000_0059
            if operation == 10:
                body = self.properties()
            await channel.complete(packet, (struct.pack("<III", 1, 0, status) + body).ljust(64, b"\0"))


class Sparse(MemoryDisk):
    """So large that only READ CAPACITY (16) can say so; of its blocks only a few are kept."""

    def __init__(self) -> None:
        super().__init__(512)
        self.block_count = (1 << 32) + 8
        self.kept: dict[int, bytes] = {}

    async def read(self, lba: int, count: int) -> bytes:
        return b"".join(self.kept.get(lba + index, bytes(512)) for index in range(count))

    async def write(self, lba: int, data: bytes) -> None:
        for index in range(len(data) // 512):
            self.kept[lba + index] = data[index * 512 : (index + 1) * 512]


async def test_a_disk_of_more_than_2_tib_is_read_and_written_to_its_end() -> None:
    disk = Sparse()
    async with guest_of(ScsiController(disks={0: disk})) as client, ScsiInitiator.open(client) as initiator:
        found = await initiator.disk(0)
        assert found.block_count == (1 << 32) + 8
        await found.write((1 << 32) - 2, b"a" * 2048)
        await found.write((1 << 32) + 7, b"b" * 512)
        assert sorted(disk.kept) == [(1 << 32) + index for index in (-2, -1, 0, 1, 7)]
        assert await found.read((1 << 32) - 3, 11) == bytes(512) + b"a" * 2048 + bytes(5 * 512) + b"b" * 512
        with pytest.raises(ScsiError, match="5/21/00"):
            await found.read((1 << 32) + 7, 2)


@pytest.mark.parametrize("operation", [7, 9, 10, 8, 13])
async def test_a_step_that_the_host_refuses_is_one_sentence(operation: int) -> None:
    class Refusing(Liar):
        def properties(self) -> bytes:
            return struct.pack("<IHHIIQ", 0, 4, 0, 1, 0x40000, 0)

        def status(self, asked: int) -> int:
            return 0xC000_0001 if asked == operation else 0

    async with guest_of(Refusing()) as client:
        with pytest.raises(HostError, match="status 0xc0000001"):
            async with ScsiInitiator.open(client, subchannels=2):
                pass


@pytest.mark.parametrize("most", [0, 4095])
async def test_a_host_that_moves_less_than_a_page_is_an_error(most: int) -> None:
    class Tiny(Liar):
        def properties(self) -> bytes:
            return struct.pack("<IHHIIQ", 0, 0, 0, 0, most, 0)

    async with guest_of(Tiny()) as client:
        with pytest.raises(ProtocolError, match="at least 4096 bytes a request"):
            async with ScsiInitiator.open(client):
                pass


async def test_long_reads_and_writes_are_split() -> None:
    device = controller()
    async with guest_of(device) as client, ScsiInitiator.open(client) as initiator:
        disk = await initiator.disk(0)
        before = device.served
        assert await disk.read(1, 4095) == CONTENTS[512:]
        assert device.served - before == 8
        data = CONTENTS[::-1]
        await disk.write(0, data)
        assert device.served - before == 16
        assert await disk.read(0, 4096) == data


async def test_a_guest_with_little_memory_waits_for_its_buffers() -> None:
    async with guest_of(controller(), memory_size=1 << 20) as client, ScsiInitiator.open(client) as initiator:
        disk = await initiator.disk(0)

        async def read(lba: int, count: int, begin: Callable[[], Awaitable[None]]) -> None:
            await begin()
            assert await disk.read(lba, count) == CONTENTS[lba * 512 : (lba + count) * 512]
            client.guest_synic.turns.leave()

        async with anyio.create_task_group() as group:
            for number in range(30):
                begin = client.guest_synic.turns.expect(("test", number))
                group.start_soon(read, number, (8, 512, 3000)[number % 3], begin)


async def test_refusals_are_errors_with_sense_data() -> None:
    async with guest_of(controller()) as client, ScsiInitiator.open(client) as initiator:
        disk, locked = await initiator.disk(0), await initiator.disk(1)
        assert locked.read_only
        with pytest.raises(ScsiError, match=r"LUN 1 refused WRITE_10: 7/27/00 \(write protected\)") as caught:
            await locked.write(0, bytes(512))
        assert caught.value.sense == Sense(7, 0x27)
        for work in (disk.read(4096, 1), disk.write(4095, bytes(1024)), disk.read(1 << 40, 1), disk.unmap(4096, 1)):
            with pytest.raises(ScsiError, match="5/21/00"):
                await work
        with pytest.raises(HostError, match="no disk at LUN 5"):
            await initiator.disk(5)
        reply = await initiator.execute(5, BlockCdb(Opcode.READ_10, 0, 1).pack(), data_in=512)
        assert (reply.srb_status, reply.sense, reply.data) == (0x20, None, b"")
        reply = await initiator.execute(0, b"\xee")
        with pytest.raises(ScsiError, match="LUN 0 refused 0xee: 5/20/00"):
            reply.check()
        assert disk.block_count == 4096


async def test_what_cannot_be_asked_is_a_value_error() -> None:
    async with guest_of(controller()) as client, ScsiInitiator.open(client) as initiator:
        disk = await initiator.disk(0)
        for work, words in (
            (disk.write(0, bytes(513)), "do not fill blocks"),
            (disk.write(0, b""), "one or more at a time"),
            (disk.read(-1, 1), "not 1 at -1"),
            (disk.read(0, 0), "not 0 at 0"),
            (disk.unmap(0, 1 << 32), "does not fit"),
            (initiator.execute(0, b""), "1 to 16 bytes, not 0"),
            (initiator.execute(0, bytes(17)), "1 to 16 bytes, not 17"),
            (initiator.execute(0, bytes(6), b"out", 3), "one way"),
            (initiator.execute(0, bytes(6), data_in=0x40001), "at most 262144 bytes"),
        ):
            with pytest.raises(ValueError, match=words):
                await work


async def test_the_smallest_rings_are_enough() -> None:
    async with guest_of(controller()) as client, ScsiInitiator.open(client, ring_pages=(2, 2)) as initiator:
        disk = await initiator.disk(0)
        assert await disk.read(0, 4096) == CONTENTS


async def test_an_error_of_the_block_comes_out_unwrapped_and_the_channel_can_be_opened_again() -> None:
    async with guest_of(controller()) as client:
        free = client.pages.free_count
        for _ in range(3):
            initiators: list[ScsiInitiator] = []
            with pytest.raises(ZeroDivisionError):
                await raise_within(client, initiators)
        assert client.pages.free_count == free
        with pytest.raises(ChannelClosed, match="block has ended"):
            await initiators[0].luns()


async def raise_within(client: VmbusClient, initiators: list[ScsiInitiator]) -> None:
    async with ScsiInitiator.open(client, subchannels=2) as initiator:
        initiators.append(initiator)
        await (await initiator.disk(0)).read(0, 512)
        raise ZeroDivisionError


async def test_whoever_gives_something_back_wakes_one_of_those_who_wait() -> None:
    """All of them each time would be quadratic."""
    woken = 0

    class Counted:
        def __init__(self, wakeup: Wakeup) -> None:
            self.notify = wakeup.notify
            self._wakeup = wakeup

        async def wait(self) -> None:
            nonlocal woken
            await self._wakeup.wait()
            woken += 1

    async with Partition(PartitionConfig(virtual_time=True)) as partition:
        turns = partition.turns
        new = turns.wakeup
        turns.wakeup = lambda key: Counted(new(key))  # type: ignore[method-assign]
        line = Line(turns, 1)
        there: list[int] = []
        served: list[tuple[int, int]] = []

        async def wait(number: int) -> None:
            served.append((number, await line.wait_for(lambda: there.pop() if there else None)))

        async with anyio.create_task_group() as group:
            for number in range(100):
                group.start_soon(wait, number)
                await turns.settled()
            for number in range(100):
                there.append(number)
                line.changed()
                await turns.settled()
        assert served == [(number, number) for number in range(100)]
        assert woken <= 200


class Slow(MemoryDisk):
    """Reads wait until they are told to go on."""

    def __init__(self) -> None:
        super().__init__(CONTENTS)
        self.wakeup: Wakeup | None = None
        self.waiting = 0

    async def read(self, lba: int, count: int) -> bytes:
        if self.wakeup is not None and lba == 7:
            self.waiting += 1
            await self.wakeup.wait()
        return await super().read(lba, count)


async def test_a_wait_that_is_cancelled_gives_its_buffer_back_once_the_host_has_answered() -> None:
    slow = Slow()
    async with guest_of(ScsiController(disks={0: slow})) as client:
        turns = client.guest_synic.turns
        free = client.pages.free_count
        async with ScsiInitiator.open(client) as initiator:
            disk = await initiator.disk(0)
            slow.wakeup = turns.wakeup(("test", 0))
            with anyio.CancelScope() as scope:
                turns.schedule(turns.clock.now() + 1000, ("test", 1), scope.cancel)
                await disk.read(7, 2048)
            assert scope.cancelled_caught
            assert slow.waiting == 1
            slow.wakeup.notify()
            assert await disk.read(8, 1) == CONTENTS[8 * 512 : 9 * 512]
        assert client.pages.free_count == free


# hosts that lie


class Old(Liar):
    """Knows versions up to 4.2 only."""

    def known(self, version: int) -> bool:
        return version <= 0x0402


def answer(moved: int = 0, srb_status: int = 1, payload: bytes = b"", operation: int = 1) -> bytes:
    srb = struct.pack("<HBBxBBBBBBBI", 52, srb_status, 0, 0, 0, 0, 0, 0, 0, 0, moved) + payload.ljust(20, b"\0")
    return (struct.pack("<III", operation, 0, 0) + srb).ljust(64, b"\0")


LIES: dict[str, tuple[Callable[[Packet], Sequence[bytes]], str]] = {
    "nothing in it": (lambda _: [b""], "12 bytes"),
    "no SRB": (lambda _: [bytes.fromhex("01000000 00000000 00000000")], "36 bytes"),
    "another operation": (lambda _: [answer(operation=3)], "operation 1"),
    "twice": (lambda _: [answer(8), answer(8)], "8 bytes|transaction ID"),
    "more moved than asked for": (lambda _: [answer(1 << 30)], "at most"),
    "an empty list": (lambda _: [answer(0)], "8 bytes"),
}


@pytest.mark.parametrize("lie", LIES)
async def test_an_answer_that_breaks_the_protocol_is_an_error_of_its_request(lie: str) -> None:
    wrong, words = LIES[lie]
    async with guest_of(Liar(wrong)) as client, ScsiInitiator.open(client) as initiator:
        with pytest.raises(ProtocolError, match=words):
            await twice(initiator)


async def twice(initiator: ScsiInitiator) -> None:
    for _ in range(2):
        await initiator.luns()


def put(memory_data: bytes, moved: int | None = None) -> Callable[[DeviceChannel], Callable[[Packet], Sequence[bytes]]]:
    def bind(channel: DeviceChannel) -> Callable[[Packet], Sequence[bytes]]:
        def lie(packet: Packet) -> Sequence[bytes]:
            channel.write_ranges(packet.gpa_ranges(), memory_data)
            return [answer(len(memory_data) if moved is None else moved)]

        return lie

    return bind


@pytest.mark.parametrize(
    ("capacity", "words"),
    [
        ("00000fff 00000000", "blocks of a multiple of 512"),
        ("00000fff 00000201", "blocks of a multiple of 512"),
        ("00000fff 00080000", "of a request"),
        ("0000", "8 bytes"),
    ],
)
async def test_a_capacity_that_cannot_be_is_an_error(capacity: str, words: str) -> None:
    inquiry = bytes.fromhex("00 00 06 12 1f 00 00 02").ljust(36, b" ")

    class Odd(Liar):
        async def run(self, channel: DeviceChannel) -> None:
            self.lies = [put(inquiry)(channel), put(bytes.fromhex(capacity))(channel)]
            await super().run(channel)

    async with guest_of(Odd()) as client, ScsiInitiator.open(client) as initiator:
        with pytest.raises(ProtocolError, match=words):
            await initiator.disk(0)


async def test_a_read_that_is_short_and_a_write_that_is_not_whole_are_errors() -> None:
    class Half(Liar):
        async def run(self, channel: DeviceChannel) -> None:
            inquiry = bytes.fromhex("00 00 06 12 1f 00 00 02").ljust(36, b" ")
            mode = bytes((3, 0, 0, 0))
            capacity = bytes.fromhex("00000fff 00000200")
            self.lies = [put(data)(channel) for data in (inquiry, capacity, mode, bytes(512))]
            self.lies.append(lambda _: [answer(512)])
            await super().run(channel)

    async with guest_of(Half()) as client, ScsiInitiator.open(client) as initiator:
        disk: ScsiDisk = await initiator.disk(0)
        with pytest.raises(ProtocolError, match="all 1024 bytes of a read"):
            await disk.read(0, 2)
        with pytest.raises(ProtocolError, match="all 1024 bytes of a write"):
            await disk.write(0, bytes(1024))


@pytest.mark.parametrize("how", ["rescinded", "a bad answer"])
async def test_a_host_that_goes_ends_all_requests(how: str) -> None:
    slow = Slow()
    offers: list[DeviceChannel] = []

    class Watched(ScsiController):
        async def run(self, channel: DeviceChannel) -> None:
            offers.append(channel)
            await super().run(channel)

    device = Watched(UUID(int=6), {0: slow})
    error: type[Exception] = ChannelClosed if how == "rescinded" else ProtocolError
    async with guest_of(device) as client, ScsiInitiator.open(client) as initiator:
        turns = client.guest_synic.turns
        disk = await initiator.disk(0)
        slow.wakeup = turns.wakeup(("test", 0))
        ended: list[str] = []

        async def read(begin: Callable[[], Awaitable[None]]) -> None:
            await begin()
            with pytest.raises(error) as caught:
                await disk.read(7, 1)
            ended.append(str(caught.value))
            turns.leave()

        async with anyio.create_task_group() as group:
            for number in range(300):
                group.start_soon(read, turns.expect(("test", number)))
            await turns.settled()
            assert slow.waiting == 1
            if how == "rescinded":
                offers[0]._offered.revoke()
            else:
                await offers[0].send_packet(pack_packet(PacketType.COMPLETION, answer(), 1 << 40))
        assert len(ended) == 300
        with pytest.raises(error):
            await disk.read(0, 1)


async def test_notices_of_the_host_are_counted_and_hold_nothing_up() -> None:
    class Noticing(Liar):
        async def run(self, channel: DeviceChannel) -> None:
            def notice(_: Packet) -> Sequence[bytes]:
                return [answer(8)]

            self.lies = [notice]
            await channel.send_batch([struct.pack("<III", 11, 0, 0).ljust(64, b"\0")] * 3000)
            await super().run(channel)

    async with guest_of(Noticing()) as client, ScsiInitiator.open(client) as initiator:
        assert initiator.bus_changes >= 1
        assert await initiator.luns() == ()
        assert initiator.bus_changes == 3000
