"""`VmbusServer` and a guest written by hand: broken devices, spoilt rings, sub-channels, and as many channels as there are."""

from __future__ import annotations

import struct
from collections.abc import Awaitable

import anyio
import anyio.lowlevel
import pytest
from structlog.testing import capture_logs

from broker import Partition
from broker.errors import HostError, OfferRefused, ProtocolError
from channels.devices import DeviceChannel, RefuseOpen, SerialConsole, serve_devices
from channels.devices.input import KeyboardDevice, MouseDevice
from channels.devices.integration import VssDevice
from channels.pipe import MessagePipe
from channels.server import VmbusServer

from ..machines import wire
from .hand_guest import PAGE, LateDevice, Noting, echoes, served

item = pytest.mark.vmbus_item


# devices that fail


@pytest.mark.parametrize("where", ["open", "run", "close", "modify"])
async def test_a_device_that_raises_is_rescinded_and_its_author_sees_the_exception(where: str) -> None:
    class Broken(Noting):
        async def open(self, channel: DeviceChannel) -> None:
            if where == "open":
                raise ZeroDivisionError("broken")

        async def run(self, channel: DeviceChannel) -> None:
            async for _ in channel:
                if where == "run":
                    raise ZeroDivisionError("broken")

        async def close(self, channel: DeviceChannel) -> None:
            if where == "close":
                raise ZeroDivisionError("broken")

        async def modify(self, channel: DeviceChannel, target_vp: int) -> None:
            if where == "modify":
                raise ZeroDivisionError("broken")

    async with served() as (server, guest):

        async def use() -> None:
            async with serve_devices(server, Broken()):
                await guest.connect()
                await guest.offers()
                if where == "open":
                    await guest.gpadl()
                    await guest.say(wire.open_channel(1, gpadl_id=1, page_offset=2))
                else:
                    rings = await guest.open()
                if where == "run":
                    rings.send(b"a packet")
                    await guest.signal()
                elif where == "close":
                    await guest.say(wire.close_channel(1))
                elif where == "modify":
                    await guest.say(wire.modify_channel(1, 0))
                await anyio.sleep_forever()

        with capture_logs() as logs, pytest.raises(ZeroDivisionError, match="broken"):
            await use()
        assert [log["event"] for log in logs if log["log_level"] == "error"] == ["device_failed"]
        heard = []
        while not await guest.silent():
            heard.append(await guest.hear())
        assert heard[-1] == wire.rescind(1)
        assert set(heard[:-1]) <= {wire.channel_modified(1, wire.FAILED)}
        await guest.say(wire.gpadl_teardown(1, 1), wire.release(1))
        await guest.expect(wire.gpadl_torndown(1))
        async with serve_devices(server, *echoes(1)):
            await guest.hear()
            await guest.echo(await guest.open(), b"another")


async def test_a_device_that_refuses_an_open_says_its_status_and_lives_on() -> None:
    class Refusing(Noting):
        async def open(self, channel: DeviceChannel) -> None:
            await super().open(channel)
            if len(self.noted) == 1:
                raise RefuseOpen("not now", 0xC000_0001)

    device = Refusing()
    async with served() as (server, guest), serve_devices(server, device):
        await guest.connect()
        await guest.offers()
        await guest.gpadl()
        await guest.say(wire.open_channel(1, gpadl_id=1, page_offset=2))
        await guest.expect(wire.open_result(1, 0, 0xC000_0001))
        await guest.say(wire.open_channel(1, gpadl_id=1, page_offset=2))
        await guest.expect(wire.open_result(1, 0, 0))


BAD_RINGS = {
    "no such GPADL": (9, 2, None),
    "no pages upstream": (1, 0, None),
    "no pages downstream": (1, 4, None),
    "beyond the GPADL": (1, 5, None),
    "one page alone": (1, 1, wire.gpa_range(0x104)),
    "an offset in the first page": (1, 1, wire.gpa_range(0x104, 0x105, 0x106, size=8192, offset=8)),
    "not whole pages": (1, 1, wire.gpa_range(0x104, 0x105, 0x106, size=8200)),
    "two ranges": (1, 2, wire.gpa_range(0x104, 0x105) + wire.gpa_range(0x106, 0x107)),
    "pages outside memory": (1, 2, wire.gpa_range(0x104, 0x105, 0x106, 1 << 40)),
    "rings without data": (1, 1, wire.gpa_range(0x104, 0x105)),
}


@pytest.mark.parametrize("what", BAD_RINGS)
async def test_rings_that_cannot_be_fail_the_open(what: str) -> None:
    """The rules of 3.4."""
    gpadl_id, page_offset, ranges = BAD_RINGS[what]
    device = Noting()
    async with served() as (server, guest), serve_devices(server, device):
        await guest.connect()
        await guest.offers()
        ranges = wire.gpa_range(0x104, 0x105, 0x106, 0x107) if ranges is None else ranges
        count = 2 if what == "two ranges" else 1
        await guest.say(wire.gpadl_header(1, 1, ranges, count))
        await guest.expect(wire.gpadl_created(1, 1))
        await guest.say(wire.open_channel(1, 3, gpadl_id, 0, page_offset))
        await guest.expect(wire.open_result(1, 3, 0x8000_FFFF))
        assert device.noted == []
        await guest.say(wire.gpadl_teardown(1, 1))
        await guest.expect(wire.gpadl_torndown(1))
        await guest.open()


# guests that spoil a ring


@pytest.mark.parametrize("what", ["write index", "unaligned write index", "read index", "packet type", "length"])
async def test_a_corrupt_ring_ends_its_channel_and_leaves_the_others(what: str) -> None:
    async with served() as (server, guest), serve_devices(server, *echoes(2)):
        await guest.connect()
        await guest.offers()
        spoilt, good = await guest.open(1), await guest.open(2)
        control = spoilt.gpns[0] * PAGE
        if what == "write index":
            spoilt.set_write_index(4096)
        elif what == "unaligned write index":
            spoilt.set_write_index(12)
        elif what == "read index":
            spoilt.send(b"a packet")
            guest.memory.write(spoilt.gpns[2] * PAGE + 4, struct.pack("<I", 0xFFFF_FFF8))
        else:
            spoilt.send(b"a packet")
            field = {"packet type": b"\x63\0", "length": b"\xff\xff"}[what]
            guest.memory.write(control + PAGE + (0 if what == "packet type" else 4), field)
        with capture_logs() as logs:
            await guest.signal(1)
            await guest.partition.settled()
        assert [log["event"] for log in logs] == ["channel_ended"]
        assert logs[0]["channel_id"] == 1
        await guest.echo(good, b"hello", 2)
        await guest.say(wire.close_channel(1), wire.gpadl_teardown(1, 1))
        await guest.expect(wire.gpadl_torndown(1))
        await guest.echo(await guest.open(1), b"again", 1)


# sub-channels


@item(72)
async def test_subchannels_come_and_go_with_their_primary() -> None:
    class Many(Noting):
        max_subchannels = 3

        async def open(self, channel: DeviceChannel) -> None:
            if channel.subchannel_index == 0:
                await channel.offer_subchannels(3)

    async with served() as (server, guest), serve_devices(server, Many()):
        await guest.connect()
        await guest.offers()
        for _ in range(2):
            await guest.gpadl()
            await guest.say(wire.open_channel(1, gpadl_id=1, page_offset=2))
            heard = [await guest.hear() for _ in range(4)]
            indices = [struct.unpack_from("<H", offer, 180)[0] for offer in heard if offer[0] == 1]
            assert indices == [1, 2, 3]
            assert heard[-1] == wire.open_result(1)
            await guest.open(2)
            await guest.say(wire.close_channel(1))
            assert {await guest.hear() for _ in range(3)} == {wire.rescind(number) for number in (2, 3, 4)}
            await guest.say(wire.gpadl_teardown(2, 2))
            await guest.expect(wire.gpadl_torndown(2))
            await guest.say(*(wire.release(number) for number in (2, 3, 4)), wire.gpadl_teardown(1, 1))
            await guest.expect(wire.gpadl_torndown(1))


@item(72)
async def test_a_device_that_goes_rescinds_its_subchannels_before_the_primary() -> None:
    class Many(Noting):
        max_subchannels = 3

        async def run(self, channel: DeviceChannel) -> None:
            if channel.subchannel_index == 0:
                await channel.offer_subchannels(3)
                with pytest.raises(HostError):
                    await channel.offer_subchannels(4)
            await super().run(channel)

    async with served() as (server, guest):
        async with serve_devices(server, Many()):
            await guest.connect()
            await guest.offers()
            await guest.open()
            for _ in range(3):
                await guest.hear()
        heard = [await guest.hear() for _ in range(4)]
        assert set(heard[:3]) == {wire.rescind(number) for number in (2, 3, 4)}
        assert heard[3] == wire.rescind(1)


# as many as there are


async def test_2047_channels_are_offered_opened_and_unloaded() -> None:
    async with served(memory_size=64 << 20) as (server, guest):
        devices = [await LateDevice(number).begin(server) for number in range(1, 2048)]
        with pytest.raises(OfferRefused):
            await LateDevice(5000).begin(server)
        await guest.connect()
        offers = await guest.offers()
        assert [struct.unpack_from("<I", offer, 184)[0] for offer in offers] == list(range(1, 2048))
        for channel_id, device in enumerate(devices, 1):
            await guest.say(wire.open_channel(channel_id))
            await guest.partition.settled()
            device.offer.open_ended()
            await guest.expect(wire.open_result(channel_id))
        assert server.statistics().open_channels == 2047
        for channel_id in (1, 1000, 2047):
            await guest.signal(channel_id)
            await guest.partition.settled()
            assert devices[channel_id - 1].doorbell.count == 1
            devices[channel_id - 1].interrupt.deliver()
            assert await guest.flags() == {channel_id}
        await guest.say(wire.UNLOAD)
        await guest.partition.settled()
        for device in devices:
            assert device.take()[-1] == ("close",)
            device.offer.close_ended()
        await guest.expect(wire.UNLOAD_COMPLETE)


async def test_who_waits_for_a_guest_hears_that_nobody_serves_the_device_any_more() -> None:
    devices = SerialConsole(), KeyboardDevice(), MouseDevice(), VssDevice()
    console, keyboard, mouse, vss = devices
    heard = []

    async def wait(call: Awaitable[object]) -> None:
        with pytest.raises(HostError, match="nobody serves this") as raised:
            await call
        heard.append(str(raised.value))

    async with (
        Partition() as partition,
        VmbusServer(partition.synic(), partition.memory) as server,
        anyio.create_task_group() as group,
        serve_devices(server, *devices),  # which ends first
    ):
        calls: tuple[Awaitable[object], ...] = (
            console.connected(), console.wait_output(b"x"), keyboard.wait_ready(), keyboard.wait_leds(),
            mouse.wait_ready(), vss.wait_ready(), vss.freeze(),
        )  # fmt: skip
        for call in calls:
            group.start_soon(wait, call)
        await anyio.wait_all_tasks_blocked()
        assert not heard
    assert len(heard) == len(calls)


async def test_a_pipe_that_the_guest_breaks_within_a_task_group_of_the_device_ends_its_channel_alone() -> None:
    class Grouped(Noting):
        async def run(self, channel: DeviceChannel) -> None:
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.sleep_forever)
                await MessagePipe(channel).receive()

    async with served() as (server, guest), serve_devices(server, Grouped()):
        await guest.connect()
        await guest.offers()
        rings = await guest.open()
        rings.send(b"\x09\0\0\0\0\0\0\0")  # no pipe packet has type 9
        with capture_logs() as logs:
            await guest.signal()
            await guest.partition.turns.settled()
    ends = [log["reason"] for log in logs if log["event"] == "channel_ended"]
    assert ends == [str(ProtocolError("pipe header", 0, "a pipe packet type from 1 to 4", "0x9"))]
