"""Serial ports: a byte pipe to a guest by hand and to the guest's own stream, a console that waits for words, lying guests."""

from __future__ import annotations

import struct

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from broker import Partition, PartitionConfig, VirtualProcessor
from broker.errors import HostError
from channels.client import VmbusClient
from channels.devices import serve_devices
from channels.devices.serial import COM1_INSTANCE, SerialConsole, SerialPort
from channels.drivers.serial import open_serial
from channels.pipe import LINGER
from channels.server import VmbusServer

from .device_stage import answers, by_hand, hosting, reopened, serving

BOTH_SEEDS = pytest.mark.parametrize("seed", [None, 3])


def pipe(data: bytes) -> bytes:
    return struct.pack("<II", 1, len(data)) + data


# by hand


async def test_the_offer_is_a_byte_pipe_of_the_serial_interface() -> None:
    offer = SerialPort().offer
    assert str(offer.interface_id) == "8b60ccf6-709f-4c11-90b5-229c959a9e6a"
    assert str(offer.instance_id) == "700df40e-b947-4776-b839-d1b0a35af034"
    assert offer.flags == 0x11
    assert offer.user_defined[:4] == bytes(4)


async def test_a_console_keeps_what_the_guest_writes_and_sends_raw_bytes() -> None:
    console = SerialConsole()
    async with by_hand(console) as (guest, rings):
        rings.send(pipe(b"Debian GNU/Linux\r\nlog"))
        rings.send(pipe(b"in: "))
        assert await answers(guest, rings) == []
        assert await console.wait_output(b"login: ") == b"Debian GNU/Linux\r\nlogin: "
        await console.send(b"root\n")
        assert await answers(guest, rings) == [(6, 0, pipe(b"root\n").ljust(16, b"\0"))]
        assert console.output == b"Debian GNU/Linux\r\nlogin: "


HOSTILE = {
    "no pipe header": [b""],
    "a type that there is not": [struct.pack("<II", 9, 4) + b"data"],
    "more than there is": [struct.pack("<II", 1, 5) + bytes(0)],
    "a part read beyond its end": [struct.pack("<II", 2, 4 | 4 << 16) + b"data"],
}


@pytest.mark.parametrize("what", HOSTILE)
async def test_a_guest_that_breaks_a_rule_loses_this_channel_alone(what: str) -> None:
    console = SerialConsole()
    async with by_hand(console) as (guest, rings):
        rings.send(pipe(b"good"))
        for payload in HOSTILE[what]:
            rings.send(payload)
        with capture_logs() as logs:
            await guest.signal(1)
            await guest.partition.settled()
        assert [(log["event"], log["channel_id"]) for log in logs] == [("channel_ended", 1)]
        assert not console.is_connected
        again = await reopened(guest)
        again.send(pipe(b" again"))
        await answers(guest, again)
        assert console.output == b"good again"


@settings(max_examples=25)
@given(st.lists(st.one_of(st.binary(max_size=24), st.binary(max_size=24).map(pipe)), min_size=1, max_size=8))
async def test_whatever_a_guest_writes_is_kept_or_costs_it_its_channel(payloads: list[bytes]) -> None:
    console = SerialConsole()
    async with by_hand(console) as (guest, rings):
        for payload in payloads:
            rings.send(payload)
        await answers(guest, rings)
        again = await reopened(guest)
        before = console.output
        again.send(pipe(b"again"))
        await answers(guest, again)
        assert console.output == before + b"again"


async def test_a_guest_that_lies_breaks_the_stream_that_host_code_holds() -> None:
    port = SerialPort()
    async with by_hand(port) as (guest, rings):
        stream = await port.connected()
        rings.send(HOSTILE["a type that there is not"][0])
        await guest.signal(1)
        with pytest.raises(anyio.BrokenResourceError):
            await stream.receive()
        assert not port.is_connected
        await reopened(guest)
        assert await port.connected() is not stream


# with the guest's own stream


@BOTH_SEEDS
async def test_bytes_go_both_ways_and_either_end_hears_of_the_other_s_end(seed: int | None) -> None:
    port = SerialPort()
    data = bytes(range(256)) * 400

    async def guest(vp: VirtualProcessor) -> None:
        async with VmbusClient(vp.guest_synic()) as client, open_serial(client) as serial:
            async for piece in serial:
                await serial.send(piece)

    async with serving(port, seed=seed) as partition:
        run = partition.start(0, guest)
        stream = await port.connected()
        came = bytearray()

        async def send() -> None:
            begin = stream.channel.turns.expect(("test", 0))
            await begin()
            await stream.send(data)
            await stream.send_eof()
            stream.channel.turns.leave()

        async with anyio.create_task_group() as group:
            group.start_soon(send)
            async for piece in stream:
                came += piece
        assert came == data
        await stream.aclose()
        await run.wait()
        assert not port.is_connected


@BOTH_SEEDS
async def test_each_open_is_a_new_stream_and_a_console_goes_on(seed: int | None) -> None:
    console = SerialConsole()

    async def guest(vp: VirtualProcessor) -> None:
        async with VmbusClient(vp.guest_synic()) as client:
            for number in range(3):
                async with open_serial(client, COM1_INSTANCE, ring_pages=(2, 2)) as serial:
                    await serial.send(b"boot %d> " % number)
                    assert await serial.receive() == b"go %d" % number
                    await serial.send(b"bye.")

    async with serving(console, seed=seed) as partition:
        run = partition.start(0, guest)
        streams = []
        for number in range(3):
            assert await console.wait_output(b"> ") == b"bye."[: 4 * bool(number)] + b"boot %d> " % number
            streams.append(await console.connected())
            await console.send(b"go %d" % number)
        await run.wait()
        assert await console.wait_output(b"bye.") == b"bye."
        assert len(set(map(id, streams))) == 3
        assert console.output == b"boot 0> bye.boot 1> bye.boot 2> bye."


async def test_a_guest_that_closes_breaks_the_stream_and_a_rescind_breaks_the_guest_s() -> None:
    port = SerialPort()
    opened = []

    async def guest(vp: VirtualProcessor) -> None:
        async with VmbusClient(vp.guest_synic()) as client:
            async with open_serial(client):
                pass
            async with open_serial(client) as serial:
                opened.append(serial)
                with pytest.raises(anyio.BrokenResourceError):
                    await serial.receive()

    async with hosting() as (partition, server):
        async with serve_devices(server, port):
            run = partition.start(0, guest)
            stream = await port.connected()
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()
            turns = stream.channel.turns
            await turns.sleep_until(turns.clock.now() + LINGER + 1, ("test", 0))  # the guest waits so long, then closes
            with pytest.raises(anyio.BrokenResourceError):
                await stream.send(b"late")
            assert await port.connected() is not stream
            await partition.settled()
            assert opened
        await run.wait()


async def test_a_console_keeps_the_last_bytes_and_waits_in_what_is_new() -> None:
    console = SerialConsole(capture=8)

    async def guest(vp: VirtualProcessor) -> None:
        async with VmbusClient(vp.guest_synic()) as client, open_serial(client) as serial:
            await serial.send(b"0123456789abcdef")
            await serial.receive()
            await serial.send(b"xyz$")
            await serial.receive()
            for byte in b"ab$ab$":
                await serial.send(bytes([byte]))

    async with serving(console) as partition:
        run = partition.start(0, guest)
        assert await console.wait_output(b"f") == b"89abcdef"
        assert console.output == b"89abcdef"
        await console.send(b"on")
        assert await console.wait_output(b"$") == b"xyz$"
        await console.send(b"on")
        assert await console.wait_output(b"ab$") == b"ab$"
        assert await console.wait_output(b"b$") == b"ab$"
        await run.wait()
        assert console.output == b"z$ab$ab$"


async def test_words_that_cannot_be_found_and_a_port_that_nobody_serves_are_refused() -> None:
    console = SerialConsole(capture=4)
    for words in (b"", b"12345"):
        with pytest.raises(ValueError, match="can wait for 1 to 4 bytes"):
            await console.wait_output(words)
    for call in (console.connected(), console.wait_output(b"1"), console.send(b"")):
        with pytest.raises(HostError, match="nobody serves this serial port"):
            await call
    with pytest.raises(ValueError, match="at least one byte"):
        SerialConsole(capture=0)


@pytest.mark.parametrize("virtual_time", [True, False])
async def test_a_guest_whose_server_is_gone_does_not_keep_its_partition_from_ending(virtual_time: bool) -> None:
    port = SerialPort()

    async def guest(vp: VirtualProcessor) -> None:
        async with VmbusClient(vp.guest_synic()) as client, open_serial(client) as serial:
            await serial.receive()

    async with Partition(PartitionConfig(virtual_time=virtual_time)) as partition:
        async with VmbusServer(partition.synic(), partition.memory) as server, serve_devices(server, port):
            partition.start(0, guest)
            await port.connected()
            await partition.settled()
        await partition.settled()
    assert not port.is_connected
