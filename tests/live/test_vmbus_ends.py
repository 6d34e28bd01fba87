"""`VmbusServer` and a guest written by hand: resets and ends."""

from __future__ import annotations

import anyio
import pytest

from broker import HvStatus, Partition
from broker.errors import HostError, OfferRefused
from channels.devices import DeviceChannel, serve_devices
from channels.server import VmbusServer

from ..machines import wire
from .hand_guest import HandGuest, LateDevice, Noting, Rings, config, echoes, served

item = pytest.mark.vmbus_item


# reset


@item(24)
@pytest.mark.parametrize("virtual_time", [True, False], ids=["turns", "live"])
async def test_after_a_reset_of_the_partition_all_is_released_and_the_server_serves_again(virtual_time: bool) -> None:
    device = Noting(9)
    async with (
        Partition(config(virtual_time=virtual_time)) as partition,
        VmbusServer(partition.synic(), partition.memory) as server,
        serve_devices(server, *echoes(3), device),
    ):
        for turn in range(3):
            async with HandGuest(partition).listening() as guest:
                await guest.connect(wire.COPPER, 0x2F if turn == 1 else 0)
                assert len(await guest.offers()) == 4
                if turn != 1:
                    for channel_id in range(1, 5):
                        await guest.open(channel_id)
                    await guest.echo(await reopened(guest), b"hello")
                else:
                    await guest.say(wire.PAUSE)
            await partition.reset()
            await partition.settled()
            statistics = server.statistics()
            assert (statistics.open_channels, statistics.waiting_in, statistics.waiting_out) == (0, 0, 0)
            assert server.machine.state.gpadl_words == 0
        assert device.noted == ["open", "close"] * 2
        assert server.statistics().complaints == {}


async def reopened(guest: HandGuest) -> Rings:
    """Close channel 1 and open it anew."""
    await guest.say(wire.close_channel(1), wire.gpadl_teardown(1, 1))
    await guest.expect(wire.gpadl_torndown(1))
    return await guest.open(1)


@pytest.mark.parametrize("virtual_time", [True, False], ids=["turns", "live"])
async def test_a_reset_drops_what_a_deaf_guest_was_to_be_told(virtual_time: bool) -> None:
    async with (
        Partition(config(message_queue_depth=1, virtual_time=virtual_time)) as partition,
        VmbusServer(partition.synic(), partition.memory) as server,
        serve_devices(server, *echoes(20)),
    ):
        async with HandGuest(partition).listening() as guest:
            await guest.connect()
            await guest.say(wire.REQUEST_OFFERS)
            await partition.settled()
            assert server.statistics().waiting_out
        await partition.reset()
        await partition.settled()
        async with HandGuest(partition).listening() as guest:
            assert await guest.connect() == wire.version_response(4, 0)
            assert len(await guest.offers()) == 20


async def test_the_servers_own_reset_returns_when_every_device_has_let_go() -> None:
    async with served() as (server, guest):
        late = await LateDevice().begin(server)
        await guest.connect()
        await guest.offers()
        await guest.say(wire.open_channel(1))
        await guest.partition.settled()
        late.offer.open_ended()
        await guest.expect(wire.open_result(1))
        is_over = False

        async def reset() -> None:
            nonlocal is_over
            await server.reset()
            is_over = True

        async with anyio.create_task_group() as group:
            group.start_soon(reset)
            await anyio.lowlevel.checkpoint()
            await guest.partition.settled()
            assert [asked[0] for asked in late.take()] == ["open", "close"]
            assert not is_over
            late.offer.close_ended()
        assert is_over


async def test_a_reset_does_not_wait_for_an_open_that_a_stopped_device_never_ends() -> None:
    """bugs.md, opening-reset."""

    class Slow(Noting):
        async def open(self, channel: DeviceChannel) -> None:
            await super().open(channel)
            if len(self.noted) == 1:
                await anyio.sleep_forever()

    device = Slow()
    async with served(virtual_time=False) as (server, guest), serve_devices(server, device):
        await guest.connect()
        await guest.offers()
        await guest.gpadl()
        await guest.say(wire.open_channel(1, gpadl_id=1, page_offset=2))
        await guest.partition.settled()
        assert device.noted == ["open"]
        await server.reset()
        await guest.connect()
        await guest.offers()
        await guest.open()
        assert server.statistics().open_channels == 1
        assert await guest.silent()
        await guest.unload()
        assert device.noted == ["open", "open", "close"]


# ends


@pytest.mark.parametrize("virtual_time", [True, False], ids=["turns", "live"])
@pytest.mark.parametrize("how", ["server", "partition"])
async def test_an_end_with_open_channels_ends_everything(how: str, virtual_time: bool) -> None:
    device = Noting(3)
    with anyio.fail_after(20):
        async with Partition(config(virtual_time=virtual_time)) as partition:
            async with (
                VmbusServer(partition.synic(), partition.memory) as server,
                serve_devices(server, *echoes(2), device),
                HandGuest(partition).listening() as guest,
            ):
                await guest.connect()
                await guest.offers()
                for channel_id in (1, 2, 3):
                    await guest.open(channel_id)
            assert device.noted == ["open", "close"]
            if how == "server":
                status = await partition.vp(0).post_message(4, 1, wire.UNLOAD)
                assert status is HvStatus.INVALID_CONNECTION_ID
                async with VmbusServer(partition.synic(), partition.memory), HandGuest(partition).listening() as guest:
                    assert await guest.connect()


@pytest.mark.parametrize("is_deaf", [False, True])
async def test_a_partition_that_ends_before_its_server_takes_the_server_along(is_deaf: bool) -> None:
    device = Noting()
    with anyio.fail_after(20):
        partition = Partition(config(message_queue_depth=1))
        async with anyio.create_task_group() as group:
            served_out = anyio.Event()
            servers = []

            async def serve(*, task_status: anyio.abc.TaskStatus[None]) -> None:
                async with VmbusServer(partition.synic(), partition.memory) as server, serve_devices(server, device):
                    servers.append(server)
                    task_status.started()
                    await served_out.wait()

            async with partition:
                await group.start(serve)
                async with HandGuest(partition).listening() as guest:
                    await guest.connect()
                    await guest.offers()
                    await guest.open()
                    if is_deaf:
                        await guest.say(*(wire.modify_channel(9, 0) for _ in range(5)))
                        await partition.settled()
                        assert servers[0].statistics().waiting_out
            served_out.set()
    assert device.noted == ["open", "close"]


async def test_devices_that_the_server_leaves_behind_hear_of_it() -> None:
    async with Partition(config()) as partition:
        async with VmbusServer(partition.synic(), partition.memory) as server:
            late = await LateDevice().begin(server)
        assert late.take() == [("removed",)]
        late.offer.revoke()
        late.offer.close_ended()
        assert not late.offer.open_ended()
        with pytest.raises(OfferRefused):
            await LateDevice(2).begin(server)


async def test_an_exception_of_the_block_leaves_it_as_it_is() -> None:
    async with Partition(config()) as partition:
        with pytest.raises(ZeroDivisionError):
            async with VmbusServer(partition.synic(), partition.memory) as server, serve_devices(server, *echoes(2)):
                raise ZeroDivisionError
        async with VmbusServer(partition.synic(), partition.memory):
            pass


async def test_two_servers_cannot_have_the_same_connections() -> None:
    async with Partition(config()) as partition, VmbusServer(partition.synic(), partition.memory):
        with pytest.raises(HostError):
            async with VmbusServer(partition.synic(), partition.memory):
                pass
