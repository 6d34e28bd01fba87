"""`VmbusRelay` and a guest written by hand: monitor pages, signal parameters, hvsock, and whatever a hostile guest says."""

from __future__ import annotations

import random
import struct
from typing import Any
from uuid import UUID

import anyio
import pytest
from structlog.testing import capture_logs

from broker.hvdef import HvStatus, Vtl
from channels.devices import serve_devices
from channels.protocol.gparange import GpaRange
from channels.relay import VmbusRelay
from channels.server import ServerConfig

from ..machines import wire
from .hand_guest import INTERFACE, HandGuest, LateDevice, Rings, echoes, instance
from .relayed import World, outside, relayed

ENDPOINT, SERVICE, SILO = UUID(int=0xE), UUID(int=0x5), UUID(int=0x51)
PAGES = (0x90_0000, 0x90_1000)
PENDING = PAGES[1] + 8


class Manual(LateDevice):
    """An outer device whose opens and changes of processor the test answers; the rest it answers itself, unless told."""

    held: tuple[str, ...] = ()
    accepts = True

    def __init__(self, number: int = 1, **fields: Any) -> None:
        super().__init__(number, **fields)
        self.ranges: list[tuple[GpaRange, ...]] = []

    def create_gpadl(self, gpadl_id: int, ranges: tuple[GpaRange, ...]) -> None:
        super().create_gpadl(gpadl_id, ranges)
        self.ranges.append(ranges)
        self.offer.gpadl_created(gpadl_id, accepted=self.accepts)

    def teardown_gpadl(self, gpadl_id: int) -> None:
        super().teardown_gpadl(gpadl_id)
        if "teardown" not in self.held:
            self.offer.gpadl_torn_down(gpadl_id)

    def close_channel(self) -> None:
        super().close_channel()
        self.offer.close_ended()


async def begin(world: World, guest: HandGuest, version: int = wire.COPPER, **more: object) -> list[bytes]:
    """Connect; the offers."""
    await guest.connect(version, **more)  # type: ignore[arg-type]
    return await guest.offers()


# signals


@pytest.mark.parametrize("version", wire.VERSIONS, ids=wire.version_id)
async def test_a_hand_written_guest_of_each_version_gets_its_echo(version: int) -> None:
    async with relayed(*echoes(2)) as world, world.hand_guest() as guest:
        await begin(world, guest, version)
        first, second = await guest.open(1), await guest.open(2)
        for number in range(3):
            await guest.echo(first, b"packet %d" % number, 1)
            await guest.echo(second, b"packet %d" % number, 2)
        await guest.say(wire.close_channel(1), wire.gpadl_teardown(1, 1))
        await guest.expect(wire.gpadl_torndown(1))
        await guest.echo(await guest.open(1), b"again", 1)
        await guest.unload()
        assert world.host.statistics().open_channels == 0


async def test_a_monitored_channel_is_signalled_by_the_inner_guests_page_without_a_hypercall() -> None:
    late = Manual(monitor_latency=1000)
    async with relayed() as world, world.hand_guest() as guest:
        await late.begin(world.host)
        await world.partition.settled()
        (offer,) = await begin(world, guest, pages=PAGES)
        assert offer[188:190] == b"\0\1"
        assert world.outer.monitor_pages is not None
        assert world.outer.monitor_pages.child_to_parent == PAGES[1]
        await guest.say(wire.gpadl_header(1, 1))
        await guest.expect(wire.gpadl_created(1, 1))
        await guest.say(wire.open_channel(1, 7, 1, 0, 1))
        await world.partition.settled()
        params = late.asked[-1][2]
        assert (params.monitor_id, params.monitor_latency) == (0, 1000)
        late.offer.open_ended()
        await guest.expect(wire.open_result(1, 7))
        await guest.vp.write_memory(PENDING, struct.pack("<I", 1))
        await world.partition.settled()
        assert late.doorbell.count == 1


async def test_other_monitor_pages_of_the_inner_guest_are_the_outer_connections() -> None:
    async with relayed(*echoes(1)) as world, world.hand_guest() as guest:
        await begin(world, guest, features=0x4, pages=PAGES)
        for pages in ((PAGES[0] + 0x2000, PAGES[1] + 0x2000), (0, 0)):
            await guest.say(wire.modify_connection(*pages))
            await guest.expect(wire.connection_modified(0))
            known = world.host.machine.state.connection.monitor_pages
            assert (None if known is None else (known.parent_to_child, known.child_to_parent)) == (
                pages if pages[0] else None
            )
        await guest.unload()
        await begin(world, guest, features=0x4, pages=PAGES)
        assert world.host.machine.state.connection.monitor_pages is not None
        await guest.unload()
        assert world.host.machine.state.connection.monitor_pages is None


async def test_pages_that_an_open_outer_channel_uses_cannot_be_changed_from_inside() -> None:
    late = Manual(monitor_latency=1000)
    async with relayed() as world, world.hand_guest() as guest:
        await late.begin(world.host)
        await world.partition.settled()
        await begin(world, guest, features=0x4, pages=PAGES)
        await guest.say(wire.gpadl_header(1, 1))
        await guest.say(wire.open_channel(1, 7, 1, 0, 1))
        await world.partition.settled()
        late.offer.open_ended()
        await guest.expect(wire.gpadl_created(1, 1), wire.open_result(1, 7))
        await guest.say(wire.modify_connection(0, 0))
        await guest.expect(wire.connection_modified(2))
        assert world.outer.monitor_pages is not None


async def test_own_devices_of_the_paravisor_get_no_monitor_id_of_the_outer_hosts_page() -> None:
    own = LateDevice(9, monitor_latency=1000)
    async with relayed() as world, world.hand_guest() as guest:
        await own.begin(world.inner)
        (offer,) = await begin(world, guest, pages=PAGES)
        assert offer[188:190] == b"\xff\0"


async def test_event_flag_and_connection_of_the_inner_guests_choice_are_the_outer_hosts() -> None:
    async with relayed(*echoes(1)) as world, world.hand_guest() as guest:
        await begin(world, guest, features=0x1)
        rings = await guest.open(1, connection_id=0x2345, event_flag=777)
        rings.send(b"8 bytes.", 5, completion=True)
        assert await guest.synic.signal_event(0x2001) is HvStatus.INVALID_CONNECTION_ID
        assert await guest.synic.signal_event(0x2345) is HvStatus.SUCCESS
        assert await guest.flags() == {777}
        assert rings.receive() == [(0xB, 5, b"8 bytes.")]


async def test_an_inner_guest_may_not_have_interrupts_redirected_to_the_paravisor() -> None:
    """They would come to the relay, which would pass them on to itself."""
    async with relayed(*echoes(1)) as world, world.hand_guest() as guest:
        response = await guest.connect(wire.COPPER, 0xFF)
        assert struct.unpack_from("<I", response, 16) == (0x2D,)
        await guest.offers()
        rings = await guest.open(1, connection_id=0x2001, event_flag=1, flags=1)
        await guest.echo(rings, b"8 bytes.")


async def test_a_relay_that_comes_to_a_guest_with_redirected_interrupts_refuses_them() -> None:
    async with outside(*echoes(1)) as world, world.hand_guest() as guest:
        await guest.connect(wire.COPPER, 0x03)
        assert await guest.offers() == []
        async with VmbusRelay(world.outer, world.inner):
            await guest.hear()
            await guest.gpadl()
            await guest.say(wire.open_channel2(1, 0x2001, 1, 1, open_id=3, gpadl_id=1, page_offset=2))
            await guest.expect(wire.open_result(1, 3, wire.FAILED))
            await guest.echo(await _open_again(guest), b"8 bytes.")


async def _open_again(guest: HandGuest) -> Rings:
    rings = Rings(guest.memory, 1)
    await guest.say(wire.open_channel2(1, 0x2001, 1, 0, open_id=4, gpadl_id=1, page_offset=2))
    await guest.expect(wire.open_result(1, 4))
    return rings


async def test_an_open_right_behind_its_gpadl_is_not_too_early() -> None:
    async with relayed(*echoes(1)) as world, world.hand_guest() as guest:
        await begin(world, guest)
        rings = Rings(guest.memory, 1)
        await guest.say(wire.gpadl_header(1, 1, wire.gpa_range(*rings.gpns)), wire.open_channel(1, 7, 1, 0, 2))
        await guest.expect(wire.gpadl_created(1, 1), wire.open_result(1, 7))
        await guest.echo(rings, b"8 bytes.")


@pytest.mark.parametrize(
    ("connection_id", "flag"),
    [(1, 1), (0x80_0074, 1), (0x27002, 1), (0x2001, 2048), (0x2001, 0xFFFF), (0xFFFF_FFFF, 0)],
)
async def test_ports_that_cannot_be_fail_the_open_inside(connection_id: int, flag: int) -> None:
    async with relayed(*echoes(1)) as world, world.hand_guest() as guest:
        await begin(world, guest, features=0x1)
        await guest.gpadl()
        await guest.say(wire.open_channel2(1, connection_id, flag, open_id=3, gpadl_id=1, page_offset=2))
        heard = await guest.hear()
        assert heard[:16] == wire.open_result(1, 3)[:16]
        if connection_id == 0xFFFF_FFFF:
            return  # a connection like any other
        assert heard == wire.open_result(1, 3, wire.FAILED)
        await guest.say(wire.open_channel2(1, 0x2001, 1, open_id=3, gpadl_id=1, page_offset=2))
        await guest.expect(wire.open_result(1, 3))


async def test_a_channel_without_interrupts_and_a_reserved_one_are_open_outside_without_interrupts() -> None:
    async with relayed(*echoes(2)) as world, world.hand_guest() as guest:
        await begin(world, guest)
        await guest.open(1, vp=wire.NO_INTERRUPTS)
        await guest.gpadl(2)
        await guest.say(wire.open_reserved(2, 0, 2, 2, 2))
        await guest.expect(wire.open_result(2, 0))
        opened = [channel.open for channel in world.host.machine.state.channels.by_offer.values()]
        assert [None if params is None else params.target_vp for params in opened] == [None, None]
        await guest.unload()
        assert world.host.statistics().open_channels == 1
        await guest.say(wire.close_reserved(2, 0, 2))
        await guest.expect(wire.reserved_closed(2))
        await world.partition.settled()
        assert world.host.statistics().open_channels == 0


# guest memory


async def test_gpadls_of_several_ranges_and_odd_offsets_arrive_as_they_are() -> None:
    late = Manual()
    async with relayed() as world, world.hand_guest() as guest:
        await late.begin(world.host)
        await world.partition.settled()
        await begin(world, guest)
        data = wire.gpa_range(5, 6, size=4096, offset=8) + wire.gpa_range(9) + wire.gpa_range(1 << 50, size=1)
        await guest.say(wire.gpadl_header(1, 1, data, 3))
        await guest.expect(wire.gpadl_created(1, 1))
        pages = wire.gpa_range(*range(100, 140))
        await guest.say(wire.gpadl_header(1, 2, pages[:216], 1, len(pages)), wire.gpadl_body(2, pages[216:]))
        await guest.expect(wire.gpadl_created(1, 2))
        first, second = late.ranges
        assert [(r.byte_count, r.byte_offset, r.gpns) for r in first] == [
            *((4096, 8, (5, 6)), (4096, 0, (9,)), (1, 0, (1 << 50,)))
        ]
        assert [r.gpns for r in second] == [tuple(range(100, 140))]


async def test_the_same_gpadl_id_on_two_channels_is_two_outside() -> None:
    async with relayed(*echoes(2)) as world, world.hand_guest() as guest:
        await begin(world, guest)
        for channel_id in (1, 2):
            await guest.say(wire.gpadl_header(channel_id, 5))
            await guest.expect(wire.gpadl_created(channel_id, 5))
        assert len(world.outer._gpadls.by_id) == 2
        for channel_id in (1, 2):
            await guest.say(wire.gpadl_teardown(channel_id, 5))
            await guest.expect(wire.gpadl_torndown(5))
        assert len(world.outer._gpadls.by_id) == 0


async def test_a_gpadl_that_the_outer_device_refuses_is_refused_inside() -> None:
    late = Manual()
    async with relayed() as world, world.hand_guest() as guest:
        await late.begin(world.host)
        await world.partition.settled()
        await begin(world, guest)
        late.accepts = False
        await guest.say(wire.gpadl_header(1, 1))
        await guest.expect(wire.gpadl_created(1, 1, wire.FAILED))


async def test_a_teardown_that_takes_its_time_keeps_no_other_request_waiting() -> None:
    late = Manual(2)
    late.held = ("teardown",)
    async with relayed(*echoes(1)) as world, world.hand_guest() as guest:
        await late.begin(world.host)
        await world.partition.settled()
        await begin(world, guest)
        await guest.say(wire.gpadl_header(2, 1))
        await guest.expect(wire.gpadl_created(2, 1))
        await guest.say(wire.gpadl_teardown(2, 1))
        await guest.echo(await guest.open(1), b"meanwhile", 1)
        assert late.asked[-1][0] == "teardown"
        late.held = ()
        late.offer.gpadl_torn_down(late.asked[-1][1])
        await guest.expect(wire.gpadl_torndown(1))


async def test_a_status_of_the_outer_device_is_the_inner_guests() -> None:
    late = Manual()
    async with relayed() as world, world.hand_guest() as guest:
        await late.begin(world.host)
        await world.partition.settled()
        await begin(world, guest)
        await guest.gpadl()
        await guest.say(wire.open_channel(1, 4, 1, 0, 2))
        await world.partition.settled()
        late.offer.open_ended(0xC000_0123)
        await guest.expect(wire.open_result(1, 4, 0xC000_0123))
        await guest.say(wire.open_channel(1, 5, 99, 0, 2))
        await guest.expect(wire.open_result(1, 5, wire.FAILED))
        await guest.say(wire.open_channel(1, 6, 1, 0, 2))
        await world.partition.settled()
        late.offer.open_ended()
        await guest.expect(wire.open_result(1, 6))
        await guest.say(wire.modify_channel(1, 3))
        await world.partition.settled()
        assert late.asked[-1] == ("modify", 3)
        late.offer.modify_ended(0xC000_0321)
        await guest.expect(wire.channel_modified(1, 0xC000_0321))


# hvsock


async def test_an_outer_host_that_never_answers_connects_does_not_stop_the_inner_guest() -> None:
    is_over = anyio.Event()

    async def never(*ids: UUID) -> bool:
        await is_over.wait()
        return False

    endpoints = [UUID(int=number) for number in range(1, 17)]  # as many as the inner server has under way at most
    async with relayed(host={"hvsock_listener": never}) as world, world.hand_guest() as guest:
        await begin(world, guest)
        await guest.say(*(wire.hvsock_connect(endpoint, SERVICE) for endpoint in endpoints))
        heard = {await guest.hear() for _ in endpoints}
        assert heard == {wire.hvsock_result(endpoint, SERVICE) for endpoint in endpoints}
        await guest.unload()
        is_over.set()  # the outer host takes no messages either until then


async def test_hvsock_connects_are_passed_on_and_refusals_come_back() -> None:
    device = Manual()
    asked = []

    async def listener(service: UUID, endpoint: UUID, silo: UUID) -> bool:
        asked.append((service, endpoint, silo))
        if service != SERVICE:
            return False
        device.params = type(device.params).hvsock(service, endpoint, guest_accepts=False, silo_id=silo)
        await device.begin(world.host)
        return True

    async with relayed(host={"hvsock_listener": listener}) as world, world.hand_guest() as guest:
        assert await begin(world, guest) == []
        await guest.say(wire.hvsock_connect(ENDPOINT, SILO))
        await guest.expect(wire.hvsock_result(ENDPOINT, SILO))
        await guest.say(wire.hvsock_connect(ENDPOINT, SERVICE, SILO))
        offer = await guest.hear()
        area = struct.pack("<IBBI16s", 0, 0, 0, 0, SILO.bytes_le)
        expected = wire.offer_channel(1, SERVICE, ENDPOINT, 0x2011, offer[60:180])
        assert offer == expected
        assert offer[60 : 60 + len(area)][10:] == SILO.bytes_le
        assert asked == [(SILO, ENDPOINT, UUID(int=0)), (SERVICE, ENDPOINT, SILO)]
        assert await guest.silent()


async def test_the_inner_servers_own_listener_is_asked_before_the_outer_host() -> None:
    asked = []

    async def never(service: UUID, endpoint: UUID, silo: UUID) -> bool:
        asked.append(service)
        return False

    intercept = {"intercept": {SILO}}
    async with relayed(host={"hvsock_listener": never}, relay=intercept) as world, world.hand_guest() as guest:
        await begin(world, guest)
        await guest.say(wire.hvsock_connect(ENDPOINT, SILO), wire.hvsock_connect(ENDPOINT, SERVICE))
        await guest.expect(wire.hvsock_result(ENDPOINT, SILO), wire.hvsock_result(ENDPOINT, SERVICE))
        assert asked == [SERVICE]


# hostile guests


def any_message(draw: random.Random) -> bytes:
    """A message of a guest, most of them with numbers that mean something."""
    channel_id, gpadl_id = draw.choice((0, 1, 2, 3, 4, 2047, 0xFFFF_FFFF)), draw.randrange(4)
    page = draw.choice((0x100, 0x404, 0x500, 1 << 40, (1 << 64) - 1))
    ranges = wire.gpa_range(*(page + n & (1 << 64) - 1 for n in range(draw.choice((1, 2, 4)))))
    vp = draw.choice((0, 1, 9, wire.NO_INTERRUPTS))
    flag, connection_id = draw.choice((0, 1, 5, 2048, 0xFFFF)), draw.choice((0, 1, 2, 4, 0x2001, 0x27001, 0x80_0074))
    fields = {"open_id": 1, "gpadl_id": gpadl_id, "vp": vp, "page_offset": draw.choice((0, 1, 2, 0xFFFF_FFFF))}
    messages = (
        wire.open_channel2(channel_id, connection_id, flag, draw.choice((0, 1, 0xFFFE)), **fields),
        wire.close_channel(channel_id),
        wire.gpadl_header(channel_id, gpadl_id, ranges, draw.choice((0, 1, 2))),
        wire.gpadl_header(channel_id, gpadl_id, ranges, 1, 2 * len(ranges)),
        wire.gpadl_body(gpadl_id, ranges),
        wire.gpadl_teardown(channel_id, gpadl_id),
        wire.release(channel_id),
        wire.modify_channel(channel_id, vp),
        wire.modify_connection(draw.choice((0, 4096, 4097)), draw.choice((0, 8192, 1 << 50))),
        wire.open_reserved(channel_id, vp, draw.randrange(20), gpadl_id, 2),
        wire.close_reserved(channel_id, vp, draw.randrange(20)),
        wire.hvsock_connect(ENDPOINT, SERVICE, draw.choice((None, SILO))),
        wire.contact(draw.choice(wire.VERSIONS), 0, wire.info(features=0xFF), draw.choice(((0, 0), PAGES)), INTERFACE),
        wire.contact(draw.choice(wire.VERSIONS), 0, 0x8_0000, (0, draw.choice((0, 4096)))),
        *(wire.REQUEST_OFFERS, wire.REQUEST_OFFERS, wire.UNLOAD, wire.PAUSE, wire.RESUME),
        wire.header(draw.randrange(40)) + draw.randbytes(draw.randrange(232)),
    )
    return draw.choice(messages)


@pytest.mark.parametrize("seed", range(12))
async def test_no_message_of_an_inner_guest_crashes_the_relay(seed: int) -> None:
    draw = random.Random(seed)
    with capture_logs() as logs:
        async with relayed(*echoes(3), seed=seed) as world, world.hand_guest() as guest:
            await begin(world, guest, draw.choice(wire.VERSIONS))
            for _ in range(150):
                connection_id = draw.choice((1, 4))
                guest.connection_id = connection_id
                await guest.say(any_message(draw))
                if draw.random() < 0.3:
                    await drain(guest)
                if draw.random() < 0.1:
                    await guest.synic.signal_event(draw.choice((2, 0x2001, 0x2002, 0x27001)))
            await drain(guest)
            await world.inner.reset()
            await drain(guest)
            world.host.machine.check()
            world.inner.machine.check()
            assert world.host.statistics().open_channels == 0
            assert len(world.outer._gpadls.by_id) == 0
            assert len(world.outer.offers) == 3
            offers = await begin(world, guest)
            assert [offer[24:40] for offer in offers] == [instance(n).bytes_le for n in (1, 2, 3)]
            await guest.echo(await guest.open(1), b"still here", 1)
            assert world.outer.complaints == {}
    assert {"relay_failed", "device_failed"}.isdisjoint(log["event"] for log in logs)


async def drain(guest: HandGuest) -> None:
    """Hear all that the host has to say."""
    await guest.partition.settled()
    while not await guest.silent():
        await guest.hear()


async def test_a_flood_of_gpadls_is_bounded_by_what_the_inner_server_takes() -> None:
    async with relayed(*echoes(1)) as world, world.hand_guest() as guest:
        await begin(world, guest)
        for gpadl_id in range(300):
            await guest.say(wire.gpadl_header(1, gpadl_id))
            if gpadl_id % 50 == 49:
                await drain(guest)
        assert len(world.outer._gpadls.by_id) == 300
        await guest.unload()
        assert len(world.outer._gpadls.by_id) == 0


async def test_a_redirecting_host_takes_signals_of_the_guest_below_its_paravisor() -> None:
    """Its channel ports are for the VTL that it serves; its messages are the paravisor's alone."""
    async with relayed(*echoes(1), host={"config": ServerConfig(redirects_messages=True)}) as world:
        vp = world.partition.vp(0)
        assert await vp.post_message(0x80_0074, 1, wire.UNLOAD) is not HvStatus.SUCCESS
        async with serve_devices(world.host, *echoes(2)[1:]):
            channel = await world.outer.open(await world.outer.wait_offer(instance_id=instance(2)))
            assert await vp.signal_event(0x27002, vtl=Vtl.VTL0) is HvStatus.SUCCESS
            await world.outer.close(channel)
