"""`VmbusRelay`: a guest inside uses the devices of the outer host at every version, with rings where they are."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from uuid import UUID

import anyio
import pytest

from broker import ConfigurationError, Partition
from broker.errors import ChannelClosed, ConnectionFailed, HostError
from channels.client import VmbusClient
from channels.devices import DeviceChannel, serve_devices
from channels.protocol.gparange import GpaRange
from channels.protocol.offer import OfferChannel
from channels.protocol.versions import FeatureFlags, Version
from channels.relay import REQUIRED_FEATURES, VmbusRelay
from channels.relay.outer_host import RelayedConnection
from channels.server import VmbusServer

from .hand_guest import Noting
from .relayed import World, echo, outside, partition_config, relayed

VERSIONS = pytest.mark.parametrize("version", sorted(Version), ids=lambda version: version.label)
SEEDS = pytest.mark.parametrize("seed", [1, 7])


def statistics_of(world: World) -> tuple[int, int]:
    """Channels that are open on the outer host, and on the inner server."""
    return world.host.statistics().open_channels, world.inner.statistics().open_channels


async def exchange(client: VmbusClient, offer: OfferChannel, count: int = 50) -> None:
    channel = await client.open(offer)
    for number in range(count):
        payload = b"packet %04d" % number
        assert (await channel.request(payload)).payload[: len(payload)] == payload
    await client.close(channel)


@VERSIONS
@pytest.mark.parametrize("monitor", [False, True], ids=["", "monitored"])
@SEEDS
async def test_an_inner_guest_of_each_version_uses_an_outer_device(version: Version, monitor: bool, seed: int) -> None:
    device = echo(1)
    device.offer = type(device.offer).device(device.offer.interface_id, UUID(int=1), monitor_latency=1000)
    async with relayed(device, seed=seed) as world:
        async with world.guest(version=version, monitor=monitor) as guest:
            offer = await guest.wait_offer()
            assert offer.monitor_allocated == monitor
            for _ in range(2):
                await exchange(guest, offer)
            assert guest.complaints == {}
        await world.partition.settled()
        assert statistics_of(world) == (0, 0)
        assert world.outer.monitor_pages is None
    assert device.echoed == 100


@VERSIONS
async def test_signals_go_directly_from_2_4_on_and_through_the_relay_below(version: Version) -> None:
    async with relayed(echo(1)) as world, world.guest(version=version) as guest:
        channel = await guest.open(await guest.wait_offer())
        taken = world.outer._machine.channel(1)
        assert taken is not None
        is_direct = version >= Version.WIN8
        assert taken.connection_id == (0x2001 if is_direct else 0x27001)
        assert taken.has_own_flag is not is_direct
        assert (await channel.request(b"8 bytes.")).payload == b"8 bytes."
        ports = world.partition.port_map.statistics().ports
        assert (0x27001 in ports) is not is_direct
        outermost = ports[0x2001 if is_direct else 0x27001]
        assert (outermost.kind, outermost.accepted >= 1) == ("event", True)


async def test_without_the_event_loops_order_it_is_the_same() -> None:
    async with relayed(echo(1), virtual_time=False) as world, world.guest() as guest:
        await exchange(guest, await guest.wait_offer())


async def test_offers_are_the_outer_ones_in_their_order_with_channel_ids_of_the_inner_server() -> None:
    devices = [echo(3), echo(1), echo(2)]
    async with (
        outside(echo(9, interface_id=UUID(int=4))) as world,
        serve_devices(world.host, *devices),  # hot: numbered as they come, not sorted
        serve_devices(world.inner, echo(77, interface_id=UUID(int=1))),
    ):
        await world.partition.settled()
        async with VmbusRelay(world.outer, world.inner) as relay, world.guest() as guest:
            assert [offer.channel_id for offer in relay.relayed()] == [1, 2, 3, 4]
            found = [(offer.channel_id, offer.instance_id.int) for offer in guest.offers.values()]
            assert found == [(1, 77), (2, 9), (3, 3), (4, 1), (5, 2)]
            for offer in list(guest.offers.values()):
                await exchange(guest, offer, 3)


async def test_what_an_offer_says_is_passed_on_but_for_confidentiality() -> None:
    class Fancy(Noting):
        def __init__(self) -> None:
            super().__init__(5)
            area = bytes(range(120))
            self.offer = type(self.offer).interface(
                UUID(int=6), UUID(int=5), area, mmio_megabytes=8, mmio_megabytes_optional=2
            )

    async with relayed(Fancy()) as world, world.guest() as guest:
        inside, outer = next(iter(guest.offers.values())), next(iter(world.outer.offers.values()))
        for field in ("interface_id", "instance_id", "flags", "user_defined", "mmio_megabytes", "subchannel_index"):
            assert getattr(inside, field) == getattr(outer, field)
        assert (inside.mmio_megabytes, inside.mmio_megabytes_optional) == (8, 2)
        assert (inside.connection_id, outer.connection_id) == (0x2001, 0x27001)


async def test_several_channels_at_once_each_get_their_own_answers() -> None:
    async with relayed(*(echo(number) for number in range(1, 9)), seed=3) as world, world.guest() as guest:

        async def use(offer: OfferChannel, number: int) -> None:
            await world.partition.take_turn(number)
            await exchange(guest, offer, 30)

        async with anyio.create_task_group() as group:
            for number, offer in enumerate(list(guest.offers.values())):
                group.start_soon(use, offer, number)


class WithSubchannels(type(echo(1))):  # type: ignore[misc]
    """An echo device that offers its sub-channels when the primary is opened."""

    async def open(self, channel: DeviceChannel) -> None:
        if channel.subchannel_index == 0:
            await channel.offer_subchannels(self.max_subchannels)


@pytest.mark.parametrize("version", [Version.WIN7, Version.WIN10, Version.COPPER], ids=lambda version: version.label)
async def test_subchannels_are_relayed_as_they_come_and_go(version: Version) -> None:
    async with relayed(WithSubchannels(UUID(int=1), max_subchannels=3)) as world, world.guest(version=version) as guest:
        for _ in range(2):
            primary = await guest.open(await guest.wait_offer())
            subchannels = [await guest.open(await guest.wait_offer(subchannel=index)) for index in (1, 2, 3)]
            for channel in (primary, *subchannels):
                assert (await channel.request(b"8 bytes.")).payload == b"8 bytes."
            await guest.close(primary)
            for channel in subchannels:
                with pytest.raises(ChannelClosed, match="rescinded"):
                    await channel.receive()
                await guest.close(channel)
            await world.partition.settled()
            assert len(guest.offers) == len(world.outer.offers) == 1


class Sums(Noting):
    """Completes a GPA-direct packet with the bytes that its ranges hold, and tells of the GPADLs it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.channel: DeviceChannel

    async def run(self, channel: DeviceChannel) -> None:
        self.channel = channel
        async for packet in channel:
            ranges = packet.gpa_ranges()
            await channel.complete(packet, channel.read_ranges(ranges))


@pytest.mark.parametrize("version", [Version.V1, Version.COPPER], ids=lambda version: version.label)
async def test_guest_memory_reaches_the_outer_device_where_it_is(version: Version) -> None:
    device = Sums()
    async with relayed(device) as world, world.guest(version=version) as guest:
        channel = await guest.open(await guest.wait_offer())
        gpns = guest.pages.allocate(3)
        world.memory.write(gpns[1] * 4096 + 100, b"what the guest wrote")
        ranges = (GpaRange(20, 100, (gpns[1],)),)
        assert (await channel.request(b"a request", ranges)).payload[:20] == b"what the guest wrote"
        gpadl = await guest.create_gpadl(channel, gpns)
        assert sorted(len(ranges[0].gpns) for ranges in device.channel.gpadls.values()) == [3, 8]
        assert (GpaRange(3 * 4096, 0, gpns),) in device.channel.gpadls.values()
        await guest.teardown_gpadl(gpadl)
        assert [len(ranges[0].gpns) for ranges in device.channel.gpadls.values()] == [8]


async def test_user_data_and_ring_sizes_reach_the_outer_device() -> None:
    device = Sums()
    async with relayed(device) as world, world.guest() as guest:
        await guest.open(await guest.wait_offer(), ring_pages=(3, 5), user_data=b"hello")
        await world.partition.settled()
        params = device.channel.params
        assert (params.user_data[:6], params.page_offset, params.event_flag) == (b"hello\0", 3, 1)
        assert (params.connection_id, params.redirect, params.target_vp) == (0x2001, False, 0)


@pytest.mark.parametrize("version", [Version.WIN10_RS3_0, Version.IRON, Version.COPPER], ids=lambda v: v.label)
async def test_interrupts_move_to_another_processor(version: Version) -> None:
    moved: list[int] = []

    class Moving(type(echo(1))):  # type: ignore[misc]
        async def modify(self, channel: DeviceChannel, target_vp: int) -> None:
            moved.append(target_vp)

    async with relayed(Moving(UUID(int=1)), vp_count=2) as world, world.guest(version=version) as guest:
        channel = await guest.open(await guest.wait_offer(), target_vp=0)
        await guest.modify_channel(channel, 1)
        assert (await channel.request(b"8 bytes.")).payload == b"8 bytes."
        assert moved == [1]


async def test_a_guest_that_unloads_and_connects_again_finds_everything_anew() -> None:
    async with relayed(echo(1), echo(2)) as world:
        for version in (Version.COPPER, Version.V1, Version.WIN8, Version.COPPER):
            async with world.guest(version=version) as guest:
                for offer in list(guest.offers.values()):
                    channel = await guest.open(offer)
                    assert (await channel.request(b"8 bytes.")).payload == b"8 bytes."
                    await guest.create_gpadl(channel, 5)
            assert statistics_of(world) == (0, 0)
            assert len(world.outer._gpadls.by_id) == 0
            assert len(world.outer.offers) == 2


@SEEDS
async def test_an_inner_reset_lets_go_of_everything_outside_and_keeps_the_offers(seed: int) -> None:
    async with relayed(echo(1), echo(2), seed=seed) as world:
        async with anyio.create_task_group() as group, world.guest() as guest:
            for offer in list(guest.offers.values()):
                await guest.open(offer)
            await world.inner.reset()
            assert statistics_of(world) == (0, 0)
            assert len(world.outer._gpadls.by_id) == 0
            assert len(world.outer.offers) == 2
            group.cancel_scope.cancel()
        async with world.guest() as guest:
            await exchange(guest, await guest.wait_offer())


async def test_a_guest_that_crashed_and_boots_again_is_let_go_of_first() -> None:
    async with relayed(echo(1)) as world:

        async def crashes() -> None:
            async with world.guest() as guest:
                await guest.open(await guest.wait_offer())
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await crashes()
        assert statistics_of(world) == (1, 1)
        async with world.guest() as guest:
            assert statistics_of(world) == (0, 0)
            await exchange(guest, await guest.wait_offer())


# the outer side goes


async def test_an_outer_rescind_of_a_closed_channel_is_one_inside() -> None:
    async with relayed(echo(1)) as world, world.guest() as guest:
        async with serve_devices(world.host, echo(2)):
            await exchange(guest, await guest.wait_offer(instance_id=UUID(int=2)))
        await world.partition.settled()
        assert [offer.instance_id.int for offer in guest.offers.values()] == [1]
        async with serve_devices(world.host, echo(2)):
            await exchange(guest, await guest.wait_offer(instance_id=UUID(int=2)))


@pytest.mark.parametrize("version", [Version.V1, Version.COPPER], ids=lambda version: version.label)
async def test_an_outer_rescind_of_an_open_channel_ends_it_and_releases_it_outside(version: Version) -> None:
    async with relayed(echo(1)) as world, world.guest(version=version) as guest:
        for _ in range(3):
            async with serve_devices(world.host, echo(2)):
                channel = await guest.open(await guest.wait_offer(instance_id=UUID(int=2)))
                gpadl = await guest.create_gpadl(channel, 2)
                assert (await channel.request(b"8 bytes.")).payload == b"8 bytes."
            with pytest.raises(ChannelClosed, match="rescinded"):
                await channel.receive()
            await guest.teardown_gpadl(gpadl)
            await guest.close(channel)
            await world.partition.settled()
            assert list(world.outer.offers) == [1]
            assert world.outer._machine.channel(2) is None, "its ID is the outer host's again"


class Waits(Noting):
    """Opens when it is told to."""

    def __init__(self, until: Callable[[], Awaitable[None]]) -> None:
        super().__init__(2)
        self.until = until

    async def open(self, channel: DeviceChannel) -> None:
        await super().open(channel)
        await self.until()


async def test_an_outer_rescind_while_the_channel_opens_fails_the_open_inside() -> None:
    device = Waits(anyio.sleep_forever)
    async with relayed(echo(1)) as world, world.guest() as guest:

        async def use() -> None:
            with pytest.raises(ChannelClosed):
                await guest.open(await guest.wait_offer(instance_id=UUID(int=2)))

        async with anyio.create_task_group() as group, serve_devices(world.host, device):
            group.start_soon(use)
            while not device.noted:
                await world.partition.settled()
        await world.partition.settled()
        assert len(guest.offers) == 1
        await exchange(guest, await guest.wait_offer())


async def test_an_inner_reset_while_the_channel_opens_closes_it_outside_before_it_opens_again() -> None:
    proceed = anyio.Event()
    device = Waits(proceed.wait)
    async with relayed(device) as world:
        async with anyio.create_task_group() as group, world.guest() as guest:

            async def use() -> None:
                await guest.open(await guest.wait_offer())

            group.start_soon(use)
            while not device.noted:
                await world.partition.settled()
            await world.partition.settled()
            async with anyio.create_task_group() as resetting:
                resetting.start_soon(world.inner.reset)
                await world.partition.settled()
                proceed.set()
            group.cancel_scope.cancel()
        async with world.guest() as guest:
            channel = await guest.open(await guest.wait_offer())
            assert device.noted == ["open", "close", "open"]
            await guest.close(channel)


async def test_a_lost_outer_connection_rescinds_everything_inside() -> None:
    async with relayed(echo(1), echo(2)) as world, world.guest() as guest:
        channel = await guest.open(await guest.wait_offer())
        await world.outer.unload()
        with pytest.raises(ChannelClosed, match="rescinded"):
            await channel.receive()
        await guest.close(channel)
        await world.partition.settled()
        assert guest.offers == {}
        assert world.relay.relayed() == []


async def test_a_relay_that_ends_rescinds_what_it_offered_and_another_may_follow() -> None:
    async with outside(echo(1)) as world, world.guest() as guest:
        assert guest.offers == {}
        for _ in range(2):
            async with VmbusRelay(world.outer, world.inner):
                channel = await guest.open(await guest.wait_offer())
                assert (await channel.request(b"8 bytes.")).payload == b"8 bytes."
            with pytest.raises(ChannelClosed, match="rescinded"):
                await channel.receive()
            await guest.close(channel)
            await world.partition.settled()
            assert world.host.statistics().open_channels == 0


# what is not relayed


async def test_intercepted_offers_are_the_paravisors() -> None:
    mine = UUID(int=4)
    devices = [echo(1), echo(2), echo(3, interface_id=mine)]
    async with relayed(*devices, relay={"intercept": {mine, UUID(int=2)}}) as world, world.guest() as guest:
        assert [offer.instance_id.int for offer in guest.offers.values()] == [1]
        assert sorted(offer.instance_id.int for offer in world.relay.intercepted()) == [2, 3]
        for offer in world.relay.intercepted():
            await exchange(world.outer, offer)
        await exchange(guest, await guest.wait_offer())


@pytest.mark.parametrize("left_out", [0x1, 0x2, 0x4])
async def test_an_outer_host_without_the_features_is_refused_in_a_sentence(left_out: int) -> None:
    features = FeatureFlags(0x2F & ~left_out)
    async with outside(echo(1), outer={"features": features}) as world:
        with pytest.raises(ConfigurationError, match=f"needs features 0x7.*6.0.*{left_out:#x} are missing"):
            async with VmbusRelay(world.outer, world.inner):
                pass
        async with world.guest() as guest:
            assert guest.offers == {}


async def test_an_outer_host_of_an_older_version_is_refused() -> None:
    async with outside(outer={"version": Version.IRON}) as world:
        with pytest.raises(ConfigurationError, match=r"5\.3 and has agreed on 0x0; 0x7 are missing"):
            async with VmbusRelay(world.outer, world.inner):
                pass
    assert int(REQUIRED_FEATURES) == 7


async def test_a_client_of_the_inner_server_itself_is_refused() -> None:
    async with (
        Partition(partition_config()) as partition,
        VmbusServer(partition.synic(), partition.memory) as inner,
        VmbusClient(partition.vp(0).guest_synic()) as outer,
    ):
        with pytest.raises(ConfigurationError, match=r"is connected to the inner server \(connection 0x4\)"):
            async with VmbusRelay(outer, inner):
                pass


async def test_an_inner_guest_may_not_speak_a_newer_version_than_the_outer_host() -> None:
    async with outside(outer={"version": Version.WIN10_RS4, "monitor": False}) as world:
        await world.inner.relay_for(RelayedConnection(world.outer, frozenset()))
        with pytest.raises(ConnectionFailed, match=r"no server takes one of the versions 6\.0, 5\.3, 5\.2"):
            async with world.guest(version=(Version.COPPER, Version.IRON, Version.WIN10_RS5)):
                pass
        assert world.inner.machine.state.connection.version is Version.V1, "unsupported: no connection is kept"
        async with world.guest(version=(Version.COPPER, Version.WIN10_RS4, Version.WIN8)) as guest:
            assert guest.version is Version.WIN10_RS4


async def test_a_relay_is_used_once() -> None:
    async with outside(echo(1)) as world:
        relay = VmbusRelay(world.outer, world.inner)
        async with relay:
            pass
        with pytest.raises(HostError, match="used once"):
            async with relay:
                pass


# own devices


async def test_the_paravisors_own_devices_stand_beside_the_relayed_ones() -> None:
    own = echo(50)
    async with relayed(echo(1)) as world, serve_devices(world.inner, own), world.guest() as guest:
        await exchange(guest, await guest.wait_offer(instance_id=UUID(int=50)))
        await exchange(guest, await guest.wait_offer(instance_id=UUID(int=1)))
    assert own.echoed == 50


async def test_an_offer_that_the_inner_server_has_already_is_left_out() -> None:
    async with (
        outside(echo(1), echo(2)) as world,
        serve_devices(world.inner, echo(1)),
        VmbusRelay(world.outer, world.inner) as relay,
        world.guest() as guest,
    ):
        assert [offer.instance_id.int for offer in relay.relayed()] == [2]
        for offer in list(guest.offers.values()):
            await exchange(guest, offer)
