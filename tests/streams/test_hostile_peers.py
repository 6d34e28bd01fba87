"""A peer that breaks the rules of pipes loses its channel, and the one who talks to it gets anyio's word with the reason."""

from __future__ import annotations

import struct

import anyio
import pytest

from broker.errors import ProtocolError
from channels.channel import Channel
from channels.pipe import BytePipe, MessagePipe
from channels.protocol import GpaRange, TransferRange
from channels.protocol.offer import PipeType
from channels.protocol.packet import pack_completion, pack_gpa_direct, pack_transfer_pages

from .pairs import open_ends


def header(kind: int, length: int, data: bytes = b"") -> bytes:
    return struct.pack("<II", kind, length) + data


GOOD = header(1, 3, b"abc")

BAD_EVERYWHERE = {
    "type 0": header(0, 3, b"abc"),
    "set-up of GPA-direct": header(3, 3, b"abc"),
    "teardown of GPA-direct": header(4, 3, b"abc"),
    "type 5": header(5, 3, b"abc"),
    "type of all ones": header(0xFFFF_FFFF, 3, b"abc"),
    "more data than there is": header(1, 9, b"abcdefgh"),
    "a length of all ones": header(1, 0xFFFF_FFFF, b"abcdefgh"),
    "no header": b"",
    "a partial packet that was read": header(2, 3 << 16 | 3, b"abcdefgh"),
    "a partial packet that was read over its end": header(2, 9 << 16 | 3, b"abcdefgh"),
    "a partial packet of nothing": header(2, 0, b"abcdefgh"),
    "a partial packet that is too long": header(2, 1 << 16 | 9, b"abcdefgh"),
}
BAD_MESSAGES = BAD_EVERYWHERE | {
    "a partial packet": header(2, 1 << 16 | 3, b"abcdefgh"),
    "17 KiB": header(1, 17 << 10, bytes(17 << 10)),
}

sides = pytest.mark.parametrize("side", ["host", "guest"])


async def expect_end(pipe: BytePipe | MessagePipe, match: str = "") -> None:
    """The pipe is at an end, with this reason."""
    for _ in range(2):
        with pytest.raises(anyio.BrokenResourceError) as broken:
            await pipe.receive()
        assert isinstance(broken.value.__cause__, ProtocolError)
        assert match in str(broken.value.__cause__)
    with pytest.raises(anyio.BrokenResourceError):
        await pipe.send(b"abc")
    assert pipe.channel.doorbell.ended is not None
    await pipe.aclose()


@sides
@pytest.mark.parametrize("what", BAD_EVERYWHERE)
async def test_a_bad_packet_ends_a_byte_pipe_after_what_came_before(side: str, what: str) -> None:
    async with open_ends(6) as ends:
        pipe, peer = (BytePipe(ends.host), ends.guest) if side == "host" else (BytePipe(ends.guest), ends.host)
        await peer.send(GOOD)
        await peer.send(BAD_EVERYWHERE[what])
        await peer.send(GOOD)
        assert await pipe.receive() == b"abc"
        await expect_end(pipe)


@sides
@pytest.mark.parametrize("what", BAD_MESSAGES)
async def test_a_bad_packet_ends_a_message_pipe_after_what_came_before(side: str, what: str) -> None:
    async with open_ends(12, PipeType.MESSAGE) as ends:
        pipe, peer = (MessagePipe(ends.host), ends.guest) if side == "host" else (MessagePipe(ends.guest), ends.host)
        await peer.send(GOOD)
        await peer.send(BAD_MESSAGES[what])
        await peer.send(GOOD)
        assert await pipe.receive() == b"abc"
        await expect_end(pipe)


OTHER_PACKETS = {
    "completion": pack_completion(7, GOOD),
    "GPA-direct": pack_gpa_direct([GpaRange(8, 0, (1,))], GOOD, 7),
    "transfer pages": pack_transfer_pages(1, [TransferRange(8, 0)], GOOD, 7),
}


@sides
@pytest.mark.parametrize("kind", [BytePipe, MessagePipe])
@pytest.mark.parametrize("what", OTHER_PACKETS)
async def test_a_packet_that_is_not_plain_data_ends_the_pipe(
    side: str, kind: type[BytePipe | MessagePipe], what: str
) -> None:
    async with open_ends() as ends:
        pipe, peer = (kind(ends.host), ends.guest) if side == "host" else (kind(ends.guest), ends.host)
        await peer.send_packet(OTHER_PACKETS[what])
        await expect_end(pipe, "plain data")


@sides
async def test_data_after_the_end_was_said_ends_the_pipe(side: str) -> None:
    async with open_ends() as ends:
        pipe, peer = (BytePipe(ends.host), ends.guest) if side == "host" else (BytePipe(ends.guest), ends.host)
        await peer.send(header(1, 0))
        with pytest.raises(anyio.EndOfStream):
            await pipe.receive()
        await peer.send(GOOD)
        with pytest.raises(anyio.EndOfStream):
            await pipe.receive()
        await pipe.send(b"this direction is open")


@sides
async def test_data_after_the_end_is_no_data_when_it_comes_along_with_the_end(side: str) -> None:
    async with open_ends() as ends:
        pipe, peer = (BytePipe(ends.host), ends.guest) if side == "host" else (BytePipe(ends.guest), ends.host)
        await peer.send_batch([GOOD, header(1, 0), GOOD])
        assert await pipe.receive() == b"abc"
        with pytest.raises(anyio.EndOfStream):
            await pipe.receive()
        with pytest.raises(anyio.BrokenResourceError):
            await pipe.send(b"abc")


@sides
@pytest.mark.parametrize("kind", [BytePipe, MessagePipe])
async def test_a_first_packet_without_a_header_ends_the_pipe(side: str, kind: type[BytePipe | MessagePipe]) -> None:
    async with open_ends() as ends:
        pipe, peer = (kind(ends.host), ends.guest) if side == "host" else (kind(ends.guest), ends.host)
        await peer.send_batch([b"", GOOD])
        await expect_end(pipe, "8 bytes")


@sides
@pytest.mark.parametrize("kind", [BytePipe, MessagePipe])
async def test_a_spoilt_ring_ends_the_pipe(side: str, kind: type[BytePipe | MessagePipe]) -> None:
    async with open_ends() as ends:
        pipe, peer = (kind(ends.host), ends.guest) if side == "host" else (kind(ends.guest), ends.host)
        ring = ends.guest.gpns[0 if side == "host" else ends.guest.upstream_pages] << 12
        ends.guest.memory.write(ring, struct.pack("<I", 12))
        await peer.signal()
        await expect_end(pipe, "ring pointer")


@sides
async def test_the_rest_of_a_packet_that_was_read_in_part_is_data(side: str) -> None:
    """OpenVMM leaves such packets at the head of its incoming ring; one that is taken over from it may hold them."""
    async with open_ends() as ends:
        pipe, peer = (BytePipe(ends.host), ends.guest) if side == "host" else (BytePipe(ends.guest), ends.host)
        await peer.send(header(2, 2 << 16 | 5, b"xxabcxxx"))
        await peer.send(GOOD)
        data = b""
        while len(data) < 6:
            data += await pipe.receive()
        assert data == b"abcabc"


async def test_a_waiting_sender_hears_of_it_too() -> None:
    async with open_ends() as ends:
        pipe, peer = BytePipe(ends.host), ends.guest
        caught = []

        async def send() -> None:
            with pytest.raises(anyio.BrokenResourceError) as broken:
                await pipe.send(bytes(9000))
            caught.append(broken.value)

        async with anyio.create_task_group() as group:
            group.start_soon(send)
            await anyio.wait_all_tasks_blocked()
            await peer.send(header(9, 0))
            with pytest.raises(anyio.BrokenResourceError):
                await pipe.receive()
        assert caught


async def test_a_device_loses_the_channel_of_a_guest_that_breaks_the_rules_and_serves_the_next() -> None:
    from channels.bus import OfferParams
    from channels.client import VmbusClient
    from channels.devices import Device, DeviceChannel, serve_devices
    from channels.server import VmbusServer

    from .pairs import INSTANCE, INTERFACE, partition

    class Echo(Device):
        offer = OfferParams.pipe(INTERFACE, INSTANCE, PipeType.BYTE)

        async def run(self, channel: DeviceChannel) -> None:
            async with BytePipe(channel) as pipe:
                async for data in pipe:
                    await pipe.send(data)

    async with (
        partition() as part,
        VmbusServer(part.synic(), part.memory) as server,
        serve_devices(server, Echo()),
        VmbusClient(part.vp(0).guest_synic()) as client,
    ):
        offer = await client.wait_offer(instance_id=INSTANCE)
        bad: Channel = await client.open(offer)
        await bad.send(header(9, 0))
        await part.settled()
        await client.close(bad)  # type: ignore[arg-type]
        good = await client.open(offer)
        async with BytePipe(good, close=lambda: client.close(good)) as pipe:
            await pipe.send(b"hello")
            assert await pipe.receive() == b"hello"
