"""`VmbusRelay` when something ends that it stands on, outer devices that come and go, and seeded runs on both loops."""

from __future__ import annotations

import random
from functools import partial
from typing import Any
from uuid import UUID

import anyio
import pytest

from broker import Partition, Trace, VirtualProcessor
from broker.errors import ConnectionFailed
from broker.trace import AnyEvent, encode_event
from channels.client import VmbusClient
from channels.devices import DeviceChannel, EchoDevice, serve_devices
from channels.pages import GuestPages
from channels.protocol.versions import Version
from channels.relay import VmbusRelay
from channels.server import ServerConfig, VmbusServer

from ..machines import wire
from .hand_guest import Rings
from .relayed import INNER_PAGES, echo, outside, paravisor, partition_config, relayed
from .test_relay_guests import Manual, any_message, begin, drain


async def test_an_outer_host_that_is_gone_ends_the_client_and_rescinds_everything_inside() -> None:
    is_up, is_wanted = anyio.Event(), anyio.Event()

    async def host(partition: Partition) -> None:
        config = ServerConfig(redirects_messages=True)
        async with VmbusServer(partition.synic(), partition.memory, config) as server, serve_devices(server, echo(1)):
            is_up.set()
            await is_wanted.wait()

    async def relay(partition: Partition, inner: VmbusServer, guest: VmbusClient) -> None:
        async with paravisor(partition) as outer, VmbusRelay(outer, inner):
            channel = await guest.open(await guest.wait_offer())
            is_wanted.set()
            await partition.settled()
            await guest.close(channel)
            await anyio.sleep_forever()

    async with (
        Partition(partition_config()) as partition,
        VmbusServer(partition.synic(), partition.memory) as inner,
        VmbusClient(partition.vp(0).guest_synic(), pages=GuestPages(partition.memory, *INNER_PAGES)) as guest,
        anyio.create_task_group() as group,
    ):
        group.start_soon(host, partition)
        await is_up.wait()
        with pytest.raises(ConnectionFailed, match="the VMBus server is gone"):
            await relay(partition, inner, guest)
        await partition.settled()
        assert guest.offers == {}


async def test_a_reset_of_the_partition_ends_the_paravisor_and_a_new_one_relays_again() -> None:
    async with (
        Partition(partition_config(vp_count=2)) as partition,
        VmbusServer(partition.synic(), partition.memory, ServerConfig(redirects_messages=True)) as host,
        VmbusServer(partition.synic(), partition.memory) as inner,
        serve_devices(host, echo(1)),
    ):

        async def vtl2(vp: VirtualProcessor) -> None:
            async with paravisor(partition) as outer, VmbusRelay(outer, inner):
                await partition.turns.wakeup(("never", 0)).wait()

        async def vtl0(done: list[bool], vp: VirtualProcessor) -> None:
            pages = GuestPages(partition.memory, *INNER_PAGES)
            async with VmbusClient(vp.guest_synic(), pages=pages, version=Version.COPPER) as guest:
                channel = await guest.open(await guest.wait_offer())
                assert (await channel.request(b"8 bytes.")).payload == b"8 bytes."
                done.append(True)
                await partition.turns.wakeup(("never", 1)).wait()

        for _ in range(3):
            done: list[bool] = []
            partition.start(0, vtl2)
            partition.start(1, partial(vtl0, done))
            while not done:
                await partition.settled()
            await partition.reset()
            await partition.settled()
            assert host.statistics().open_channels == inner.statistics().open_channels == 0
            host.machine.check()
            inner.machine.check()


async def test_a_relay_that_ends_while_a_channel_opens_leaves_nothing_open_outside() -> None:
    late = Manual()
    async with outside() as world, world.hand_guest() as guest:
        await late.begin(world.host)
        await world.partition.settled()
        async with VmbusRelay(world.outer, world.inner):
            await begin(world, guest)
            await guest.gpadl()
            await guest.say(wire.open_channel(1, 7, 1, 0, 2))
            await world.partition.settled()
            assert late.asked[-1][0] == "open"
        await world.partition.settled()
        late.offer.open_ended()
        await world.partition.settled()
        assert [asked[0] for asked in late.asked] == ["gpadl", "open", "teardown", "close"]
        assert len(world.outer._gpadls.by_id) == 0
        await guest.expect(wire.rescind(1))


async def test_a_relay_that_ends_while_the_inner_server_has_a_request_for_it_leaves_the_server_running() -> None:
    async with outside(echo(1)) as world, world.hand_guest() as guest:
        async with VmbusRelay(world.outer, world.inner):
            await begin(world, guest)
            await guest.gpadl()
            for request in (wire.open_channel(1, 7, 1, 0, 2), wire.gpadl_header(1, 2)):
                world.inner.run(world.inner.machine.receive(request))
        await guest.expect(wire.gpadl_created(1, 2, wire.FAILED), wire.rescind(1))
        await world.partition.settled()
        world.inner.machine.check()
        assert len(world.outer._gpadls.by_id) == 0
        async with VmbusRelay(world.outer, world.inner) as relay:
            assert len(relay.relayed()) == 1


class Moody(Manual):
    """An outer device that answers opens when it likes, with what it likes, and goes away in between."""

    def __init__(self, number: int, draw: random.Random, **fields: Any) -> None:
        super().__init__(number, **fields)
        self.draw = draw
        self.is_opening = False

    def open_channel(self, *told: Any) -> None:
        super().open_channel(*told)
        self.is_opening = True

    def drop_open(self) -> None:
        self.is_opening = False

    def removed(self) -> None:
        self.is_opening = False

    def answer(self, status: int) -> None:
        if self.is_opening:
            self.is_opening = False
            self.offer.open_ended(status)


@pytest.mark.parametrize("seed", range(10))
async def test_whatever_guest_and_outer_devices_do_the_two_sides_agree_in_the_end(seed: int) -> None:
    draw = random.Random(seed)
    async with relayed(seed=seed) as world, world.hand_guest() as guest:
        devices = [Moody(number, draw, monitor_latency=draw.choice((None, 9))) for number in (1, 2, 3)]
        for device in devices:
            await device.begin(world.host)
        await world.partition.settled()
        await begin(world, guest, draw.choice(wire.VERSIONS))
        for _ in range(200):
            kind = draw.randrange(8)
            device = draw.choice(devices)
            if kind == 0:
                device.answer(draw.choice((0, 0, wire.FAILED)))
            elif kind == 1 and draw.random() < 0.3:
                device.offer.revoke()
                device.is_opening = False
                if draw.random() < 0.5:
                    await drain(guest)
                await device.begin(world.host)
            elif kind == 2:
                channel_id = draw.randrange(1, 4)
                gpns = Rings(guest.memory, channel_id).gpns
                await guest.say(
                    wire.gpadl_header(channel_id, channel_id, wire.gpa_range(*gpns)),
                    wire.open_channel(channel_id, 7, channel_id, 0, 2),
                )
            else:
                guest.connection_id = draw.choice((1, 4))
                await guest.say(any_message(draw))
            if draw.random() < 0.4:
                await drain(guest)
        for device in devices:
            device.answer(0)
        await drain(guest)
        async with anyio.create_task_group() as group:
            group.start_soon(world.inner.reset)
            await world.partition.settled()
            for device in devices:
                device.answer(0)
        await drain(guest)
        world.host.machine.check()
        world.inner.machine.check()
        assert world.host.statistics().open_channels == world.inner.statistics().open_channels == 0
        assert len(world.outer._gpadls.by_id) == 0
        assert world.outer.complaints == {}
        assert len(await begin(world, guest)) == len(world.relay.relayed()) == 3


@pytest.mark.parametrize("version", [Version.V1, Version.COPPER], ids=lambda version: version.label)
def test_the_same_seed_relays_the_same_way_on_both_loops(version: Version) -> None:
    async def play() -> list[bytes]:
        told: list[AnyEvent] = []
        trace = Trace()
        trace.subscribe(told.append)
        async with relayed(echo(1), echo(2), seed=5, trace=trace) as world, world.guest(version=version) as guest:
            channels = [await guest.open(offer) for offer in list(guest.offers.values())]
            for _ in range(10):
                for channel in channels:
                    assert (await channel.request(b"8 bytes.")).payload == b"8 bytes."
            await guest.close(channels[0])
        return [encode_event(event) for event in told]

    runs = [anyio.run(play, backend=backend) for backend in ("asyncio", "trio", "trio")]
    assert runs[0] == runs[1] == runs[2]
    assert len(runs[0]) > 200


async def test_a_restored_inner_server_rescinds_its_relayed_channels_and_offers_them_anew() -> None:
    async with outside(echo(1), inner=False) as world, world.hand_guest() as guest:
        access = world.partition.synic()
        async with VmbusServer(access, world.memory) as inner, VmbusRelay(world.outer, inner):
            await begin(world, guest)
            await guest.open(1)
            inner.stop()
            document = inner.save()
        await world.partition.settled()
        assert world.host.statistics().open_channels == 0
        async with VmbusServer(access, world.memory, saved=document) as inner, VmbusRelay(world.outer, inner):
            inner.start()
            await guest.expect(wire.rescind(1))
            await guest.say(wire.gpadl_teardown(1, 1), wire.release(1))
            await guest.expect(wire.gpadl_torndown(1))
            assert (await guest.hear())[:4] == b"\1\0\0\0"
            await guest.echo(await guest.open(1), b"8 bytes.")


class Several(EchoDevice):
    """Offers its sub-channels when the primary is opened."""

    async def open(self, channel: DeviceChannel) -> None:
        if channel.subchannel_index == 0:
            await channel.offer_subchannels(3)


@pytest.mark.vmbus_item(72)
@pytest.mark.parametrize("ends", ["the device", "the relay", "the outer connection"])
@pytest.mark.parametrize("seed", range(3))
async def test_subchannels_are_rescinded_inside_before_what_they_belong_to(ends: str, seed: int) -> None:
    device = Several(UUID(int=1), max_subchannels=3)
    async with outside(seed=seed) as world, world.hand_guest() as guest:

        async def until_then() -> None:
            async with serve_devices(world.host, device), VmbusRelay(world.outer, world.inner):
                await begin(world, guest)
                await guest.gpadl()
                await guest.say(wire.open_channel(1, 7, 1, 0, 2))
                heard = {(await guest.hear())[0] for _ in range(4)}
                assert heard == {1, 6}
                if ends == "the device":
                    for offer_id in sorted(world.host.machine.state.channels.by_offer, reverse=True):
                        world.host.run(world.host.machine.revoke(offer_id))
                elif ends == "the outer connection":
                    await world.outer.unload()
                if ends != "the relay":
                    await world.partition.settled()

        await until_then()
        rescinded = [await guest.hear() for _ in range(4)]
        assert set(rescinded) == {wire.rescind(number) for number in (1, 2, 3, 4)}
        assert rescinded[-1] == wire.rescind(1)
