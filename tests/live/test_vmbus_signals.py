"""`VmbusServer` and a guest written by hand: how the two signal each other (`reference/vmbus.md` 1.2, 1.8, 4.8, 5; items 102 to
104)."""

from __future__ import annotations

import struct
from uuid import UUID

import pytest

from broker import Interrupt, MonitorIdInUse, MonitorInfo, Partition, PartitionConfig, VirtualProcessor, Vtl
from channels.bus import OfferParams
from channels.client import VmbusClient
from channels.core.server.state import ServerConfig
from channels.devices import Device, DeviceChannel, EchoDevice, serve_devices
from channels.server import VmbusServer
from channels.server.ports import ChannelBitmap

from ..machines import wire
from .hand_guest import INTERFACE, INTERRUPT_PAGE, PAGE, HandGuest, LateDevice, served

item = pytest.mark.vmbus_item
PAGES = (0x20_0000, 0x20_1000)
PENDING = PAGES[1] + 8
"""The pending bits of group 0; those of the others follow after 8 bytes each."""


def monitored(number: int, monitor_id: int | None = None) -> LateDevice:
    """A device that wants a monitor ID, or has this one."""
    return LateDevice(number, monitor_id=monitor_id, monitor_latency=None if monitor_id is not None else 1000)


async def opened(guest: HandGuest, *devices: LateDevice, vp: int = 0) -> None:
    """All of them offered, and open."""
    for channel_id, device in enumerate(devices, 1):
        await guest.say(wire.open_channel(channel_id, vp=vp))
        await guest.partition.settled()
        device.offer.open_ended()
        await guest.expect(wire.open_result(channel_id))


# monitor pages


@item(103)
@pytest.mark.parametrize("backend", ["emulated", "offloaded"])
async def test_a_bit_in_the_monitor_page_rings_the_channel(backend: str) -> None:
    async with served(backend=backend) as (server, guest):
        devices = [await monitored(number).begin(server) for number in (1, 2, 3)]
        devices.append(await monitored(4, 127).begin(server))
        await guest.connect(pages=PAGES)
        offers = await guest.offers()
        assert [offer[188:190] for offer in offers] == [b"\0\1", b"\1\1", b"\2\1", b"\x7f\1"]
        await opened(guest, *devices)

        async def rung(gpa: int, data: bytes) -> list[int]:
            before = [device.doorbell.count for device in devices]
            await guest.vp.write_memory(gpa, data)
            await guest.partition.settled()
            return [device.doorbell.count - count for device, count in zip(devices, before, strict=True)]

        assert await rung(PENDING, struct.pack("<I", 1)) == [1, 0, 0, 0]
        assert await rung(PENDING, struct.pack("<I", 0b1010_0110)) == [0, 1, 1, 0]  # the others are nobody's
        assert await rung(PENDING + 3 * 8, struct.pack("<I", 1 << 31)) == [0, 0, 0, 1]
        assert await rung(PENDING, struct.pack("<Q", 0b111)) == [1, 1, 1, 0]
        assert await rung(PAGES[1] + 64, b"\xff" * 64) == [0, 0, 0, 0]
        assert await rung(PAGES[0] + 8, b"\xff" * 32) == [0, 0, 0, 0]
        assert await rung(0x30_0000, b"\xff" * 64) == [0, 0, 0, 0]


@item(103)
async def test_a_monitored_echo_needs_no_hypercall() -> None:
    device = EchoDevice(UUID(int=1))
    device.offer = OfferParams.device(INTERFACE, UUID(int=1), monitor_latency=1000)
    async with served() as (server, guest), serve_devices(server, device):
        await guest.connect(pages=PAGES)
        await guest.offers()
        rings = await guest.open()
        for number in range(3):
            payload = b"packet %d" % number
            rings.send(payload, number, completion=True)
            await guest.vp.write_memory(PENDING, struct.pack("<I", 1))
            assert await guest.signalled() == {1}
            assert rings.receive() == [(0xB, number, payload)]


@item(103)
async def test_pages_that_the_guest_takes_back_are_ordinary_memory() -> None:
    async with served() as (server, guest):
        device = await monitored(1).begin(server)
        await guest.connect(wire.COPPER, 0x04, PAGES)
        await guest.offers()
        await opened(guest, device)
        await guest.say(wire.modify_connection(0, 0))
        await guest.expect(wire.connection_modified(2))  # in use
        await guest.say(wire.close_channel(1))
        await guest.partition.settled()
        device.offer.close_ended()
        await guest.say(wire.modify_connection(0, 0))
        await guest.expect(wire.connection_modified(0))
        await guest.vp.write_memory(PENDING, b"\1\0\0\0")
        assert guest.memory.read(PENDING, 4) == b"\1\0\0\0"


@pytest.mark.parametrize("backend", ["emulated", "kvm"])
async def test_no_monitor_id_is_offered_where_nobody_looks_at_the_page(backend: str) -> None:
    device = EchoDevice(UUID(int=1))
    device.offer = OfferParams.device(INTERFACE, UUID(int=1), monitor_latency=1000)
    async with served(backend=backend) as (server, guest), serve_devices(server, device):
        await guest.connect(pages=PAGES)
        (offer,) = await guest.offers()
        is_monitored = guest.partition.synic().monitor_support is not None
        assert is_monitored == (backend == "emulated")
        assert offer[188:190] == (b"\0\1" if is_monitored else b"\xff\0")


@pytest.mark.parametrize("vp", [0, wire.NO_INTERRUPTS])
@item(53)
async def test_a_channel_without_interrupts_is_not_rung_by_the_monitor_page(vp: int) -> None:
    async with served() as (server, guest):
        device = await monitored(1).begin(server)
        await guest.connect(pages=PAGES)
        await guest.offers()
        await opened(guest, device, vp=vp)
        await guest.vp.write_memory(PENDING, b"\1\0\0\0")
        await guest.partition.settled()
        assert device.doorbell.count == (1 if vp == 0 else 0)


@item(102)
async def test_128_monitor_ids_are_used_at_once_and_a_freed_one_again() -> None:
    async with served() as (server, guest):
        devices = [await monitored(number).begin(server) for number in range(1, 130)]
        await guest.connect(pages=PAGES)
        offers = await guest.offers()
        assert [offer[188:190] for offer in offers] == [*(bytes((n, 1)) for n in range(128)), b"\xff\0"]
        await opened(guest, *devices)
        await guest.vp.write_memory(PENDING, struct.pack("<II", 0xFFFF_FFFF, 0) * 4)
        await guest.partition.settled()
        assert [device.doorbell.count for device in devices] == [1] * 128 + [0]
        devices[77].offer.revoke()
        await guest.expect(wire.rescind(78))
        await guest.say(wire.release(78))
        await guest.partition.settled()
        await monitored(500).begin(server)
        offer = await guest.hear()
        assert (offer[184], offer[188:190]) == (78, bytes((77, 1)))


@item(102)
async def test_a_monitor_id_in_use_fails_the_open_until_it_is_free() -> None:
    async with served() as (server, guest):
        first, second = await monitored(1, 5).begin(server), await monitored(2, 5).begin(server)
        await guest.connect(pages=PAGES)
        await guest.offers()
        await opened(guest, first)
        await guest.say(wire.open_channel(2))
        await guest.expect(wire.open_result(2, 0, 0x8000_FFFF))
        assert second.take() == []
        with pytest.raises(MonitorIdInUse):
            await guest.partition.synic().add_event_port(0x5000, Vtl.VTL0, Ignores(), MonitorInfo(5))
        await guest.say(wire.close_channel(1))
        await guest.partition.settled()
        first.offer.close_ended()
        await guest.say(wire.open_channel(2))
        await guest.partition.settled()
        second.offer.open_ended()
        await guest.expect(wire.open_result(2))


class Ignores:
    """An event port."""

    async def handle_event(self, flag: int) -> None:
        """Nothing."""


# the channel bitmap


@item(104)
def test_the_bitmap_gives_the_channels_in_order_and_clears_their_bits() -> None:
    page = bytearray(PAGE)
    signals = []
    bitmap = ChannelBitmap(memoryview(page), Interrupt.from_function(lambda: signals.append(0)))
    for channel_id in (500, 5):
        page[2048 + channel_id // 8] |= 1 << channel_id % 8
    assert bitmap.take_signalled() == [5, 500]
    assert bitmap.take_signalled() == []
    assert page == bytes(PAGE)
    bitmap.signal_guest(500)
    assert (page.index(1 << 500 % 8), signals) == (500 // 8, [0])
    for channel_id in (0, 63, 64, 2047):
        page[2048 + channel_id // 8] |= 1 << channel_id % 8
    assert bitmap.take_signalled() == [0, 63, 64, 2047]


@item(104)
@pytest.mark.parametrize("version", [wire.V1, wire.WIN7], ids=wire.version_id)
async def test_one_signal_may_mean_several_channels_and_an_unknown_one_nobody(version: int) -> None:
    async with served() as (server, guest):
        devices = [await LateDevice(number).begin(server) for number in range(1, 6)]
        await guest.connect(version)
        await guest.offers()
        await opened(guest, *devices)
        at = INTERRUPT_PAGE * PAGE + 2048
        guest.memory.write(at, bytes([0b0010_0011]))  # 0, 1 and 5
        guest.memory.write(at + 500 // 8, bytes([1 << 500 % 8]))
        assert await guest.synic.signal_event(2) == 0
        await guest.partition.settled()
        assert [device.doorbell.count for device in devices] == [1, 0, 0, 0, 1]
        assert guest.memory.read(at, 2048) == bytes(2048)


@pytest.mark.parametrize("version", [wire.V1, wire.WIN7], ids=wire.version_id)
async def test_below_2_4_the_host_signals_with_a_bit_and_flag_0(version: int) -> None:
    async with served(vp_count=2) as (server, guest):
        devices = [await LateDevice(number).begin(server) for number in range(1, 12)]
        await guest.connect(version)
        await guest.offers()
        await opened(guest, *devices, vp=1)  # there is no processor of the channel's own
        devices[2].interrupt.deliver()
        devices[10].interrupt.deliver()
        assert await guest.signalled() == {3, 11}


@pytest.mark.parametrize("version", [v for v in wire.VERSIONS if v >= 0x0001_0001], ids=wire.version_id)
async def test_from_1_1_on_a_guest_signals_a_channels_own_connection(version: int) -> None:
    async with served() as (server, guest):
        devices = [await LateDevice(number).begin(server) for number in (1, 2)]
        await guest.connect(version)
        await guest.offers()
        await opened(guest, *devices)
        assert await guest.synic.signal_event(0x2002) == 0
        await guest.partition.settled()
        assert [device.doorbell.count for device in devices] == [0, 1]


# flags and processors


@pytest.mark.parametrize("version", [v for v in wire.VERSIONS if v >= 0x0002_0004], ids=wire.version_id)
async def test_from_2_4_on_the_flag_is_the_channels_and_the_processor_the_opens(version: int) -> None:
    async with served(vp_count=2) as (server, guest):
        devices = [await LateDevice(number).begin(server) for number in (1, 2)]
        other = HandGuest(guest.partition, vp=1)
        async with other.listening():
            await guest.connect(version)
            await guest.offers()
            await opened(guest, *devices, vp=1)
            for device in devices:
                device.interrupt.deliver()
            assert await other.flags() == {1, 2}
            if version >= wire.RS3_0:
                await guest.say(wire.modify_channel(2, 0))
                await guest.partition.settled()
                devices[1].offer.modify_ended()
                devices[1].interrupt.deliver()
                assert await guest.flags() == {2}


async def test_a_guest_may_choose_flag_and_connection() -> None:
    async with served() as (server, guest):
        device = await LateDevice().begin(server)
        await guest.connect(wire.COPPER, 0x01)
        await guest.offers()
        await guest.say(wire.open_channel2(1, 0x2345, 2047))
        await guest.partition.settled()
        device.offer.open_ended()
        await guest.expect(wire.open_result(1))
        assert [await guest.synic.signal_event(number) for number in (0x2001, 0x2345)] == [0x12, 0]
        await guest.partition.settled()
        assert device.doorbell.count == 1
        device.interrupt.deliver()
        assert await guest.flags() == {2047}


async def test_a_redirected_interrupt_goes_to_the_servers_other_vtl_and_sint() -> None:
    redirect = ServerConfig(redirect_vtl=Vtl.VTL2, redirect_sint=7)
    settings = {"vtls": (Vtl.VTL0, Vtl.VTL2), "server": {"config": redirect}}
    async with served(**settings) as (server, guest):
        device = await LateDevice().begin(server)
        async with guest.partition.vp(0).guest_synic(Vtl.VTL2).events(7) as events:
            await guest.connect(wire.COPPER, 0x02)
            await guest.offers()
            await guest.say(wire.open_channel2(1, 0, 0, 1))
            await guest.partition.settled()
            device.offer.open_ended()
            await guest.expect(wire.open_result(1))
            device.interrupt.deliver()
            assert await anext(events) == {1}


async def test_a_paravisors_client_and_a_server_that_redirects_meet_at_the_other_vtl_and_sint() -> None:
    config = ServerConfig(redirects_messages=True)
    async with (
        Partition(PartitionConfig(vtls=(Vtl.VTL0, Vtl.VTL2))) as partition,
        VmbusServer(partition.synic(), partition.memory, config) as server,
        serve_devices(server, EchoDevice(UUID(int=9))),
    ):

        async def guest(vp: VirtualProcessor) -> None:
            async with VmbusClient(vp.guest_synic(Vtl.VTL2), redirect=True) as client:
                offer = await client.wait_offer()
                assert offer.connection_id == 0x27001
                channel = await client.open(offer)
                assert (await channel.request(b"8 bytes.")).payload == b"8 bytes."
                await client.close(channel)

        await partition.start(0, guest).wait()


@pytest.mark.parametrize(
    ("connection_id", "flag", "what"),
    [
        (1, 1, "the message connection"),
        (0x2002, 1, "another channel's"),
        (0x2001, 2048, "a flag of the next SINT"),
        (0x2001, 0xFFFF, "no flag"),
    ],
)
async def test_ports_that_cannot_be_fail_the_open_and_the_device_does_not_hear_of_it(
    connection_id: int, flag: int, what: str
) -> None:
    async with served() as (server, guest):
        first, second = await LateDevice(1).begin(server), await LateDevice(2).begin(server)
        await guest.connect(wire.COPPER, 0x01)
        await guest.offers()
        await guest.say(wire.open_channel2(2, 0x2002, 2))
        await guest.partition.settled()
        second.offer.open_ended()
        await guest.expect(wire.open_result(2))
        await guest.say(wire.open_channel2(1, connection_id, flag, open_id=5))
        await guest.expect(wire.open_result(1, 5, 0x8000_FFFF))
        assert first.take() == [], what
        await guest.say(wire.open_channel2(1, 0x2001, 1, open_id=6))
        await guest.partition.settled()
        assert [asked[0] for asked in first.take()] == ["open"]
        first.offer.open_ended()
        await guest.expect(wire.open_result(1, 6))


async def test_the_guests_first_signal_is_not_lost_though_it_comes_before_the_result() -> None:
    """bugs.md, first-signal-lost."""
    async with served() as (server, guest):
        device = await LateDevice().begin(server)
        await guest.connect()
        await guest.offers()
        await guest.say(wire.open_channel(1))
        await guest.partition.settled()
        await guest.signal()
        assert device.doorbell.count == 1


# the kick


class Early(Device):
    """Sends before the guest hears of the open, and then nothing."""

    offer = OfferParams.device(INTERFACE, UUID(int=1))

    async def open(self, channel: DeviceChannel) -> None:
        await channel.send(b"early...")

    async def run(self, channel: DeviceChannel) -> None:
        await channel.turns.wakeup(("never", 0)).wait()


@pytest.mark.parametrize("reads", [False, True])
async def test_100_ms_after_the_open_a_guest_that_was_deaf_is_signalled_again(reads: bool) -> None:
    """bugs.md, early-interrupt."""
    async with served() as (server, guest), serve_devices(server, Early()):
        await guest.connect()
        await guest.offers()
        before = guest.partition.clock.now()
        rings = await guest.open()
        assert await guest.flags() == {1}  # thrown away, as a storage driver does
        if reads:
            assert rings.receive() == [(6, 0, b"early...")]
            await guest.partition.sleep(2_000_000)
            assert await no_flags(guest)
            return
        await guest.partition.sleep(1_000_000 - (guest.partition.clock.now() - before) - 1)
        assert await no_flags(guest)
        assert await guest.flags() == {1}
        assert 0 <= guest.partition.clock.now() - before - 1_000_000 < 10  # a used-up quantum costs a tick
        await guest.partition.sleep(2_000_000)
        assert await no_flags(guest)


async def test_a_guest_that_waits_for_room_is_kicked_too() -> None:
    async with served() as (server, guest), serve_devices(server, Early()):
        await guest.connect()
        await guest.offers()
        rings = await guest.gpadl()
        guest.memory.write(rings.gpns[0] * PAGE + 12, struct.pack("<I", 4000))
        await guest.say(wire.open_channel(1, gpadl_id=1, page_offset=2))
        await guest.expect(wire.open_result(1))
        await guest.flags()
        rings.receive()
        assert await guest.flags() == {1}


async def no_flags(guest: HandGuest) -> bool:
    """No event flag is set, unless time passes."""
    await guest.partition.settled()
    siefp = await guest.vp.read_msr(0x4000_0082)
    return guest.memory.read((siefp & ~0xFFF) + 512, 256) == bytes(256)
