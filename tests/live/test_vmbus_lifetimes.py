"""What ends a channel, a block or a command, and what is left then: a device's own task groups, peers that lie, Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import pytest

from broker import HostError, Partition, VirtualProcessor
from broker.errors import MessageTooLarge, ProtocolError
from broker.hvdef import OPENVMM
from broker.run import play
from channels.client import VmbusClient
from channels.devices import DeviceChannel, RefuseOpen, serve_devices
from channels.scenarios import Scenario, ScenarioFailed, Settings, Stage, echo, reset_storm, subchannels
from channels.server import VmbusServer

from ..machines import wire
from .hand_guest import HandGuest, Noting, config, echoes, served

REFUSED = 0xC000_0001


class Composed(Noting):
    """Does its work in children of a task group, as devices with several things to do are written."""

    def __init__(self, **calls: Callable[[DeviceChannel], Coroutine[Any, Any, object]]) -> None:
        super().__init__()
        self._calls = calls

    async def _call(self, name: str, channel: DeviceChannel) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self._calls.get(name, self._nothing), channel)

    async def _nothing(self, channel: DeviceChannel) -> None:
        return

    async def open(self, channel: DeviceChannel) -> None:
        await self._call("open", channel)
        await super().open(channel)

    async def run(self, channel: DeviceChannel) -> None:
        await self._call("run", channel)
        await anyio.sleep_forever()

    async def modify(self, channel: DeviceChannel, target_vp: int) -> None:
        await self._call("modify", channel)

    async def close(self, channel: DeviceChannel) -> None:
        await super().close(channel)
        await self._call("close", channel)


async def lie(channel: DeviceChannel) -> None:
    """What a device finds in what its guest sent."""
    raise ProtocolError("user data", 0, "a name", "none")


async def refuse(channel: DeviceChannel) -> None:
    raise RefuseOpen("not now", REFUSED)


async def fail(channel: DeviceChannel) -> None:
    raise ZeroDivisionError("broken")


@pytest.mark.parametrize(("found", "status"), [(lie, wire.FAILED), (refuse, REFUSED)])
async def test_an_open_in_which_the_guest_is_found_lying_is_answered(
    found: Callable[[DeviceChannel], Coroutine[Any, Any, None]], status: int
) -> None:
    async with served() as (server, guest), serve_devices(server, Composed(open=found), *echoes(2)[1:]):
        await guest.connect()
        await guest.offers()
        await guest.gpadl(1)
        for _ in range(2):
            await guest.say(wire.open_channel(1, 7, 1, page_offset=2))
            await guest.expect(wire.open_result(1, 7, status))
        await guest.echo(await guest.open(2), b"hello", 2)
        await server.reset()


@pytest.mark.parametrize("where", ["run", "modify", "close"])
async def test_a_lying_guest_ends_its_channel_alone_also_where_the_device_has_a_task_group(where: str) -> None:
    async with served() as (server, guest), serve_devices(server, Composed(**{where: lie}), *echoes(2)[1:]):
        await guest.connect()
        await guest.offers()
        await guest.open(1)
        other = await guest.open(2)
        if where == "modify":
            await guest.say(wire.modify_channel(1, 0))
            await guest.expect(wire.channel_modified(1, wire.FAILED))
        await guest.echo(other, b"hello", 2)
        await guest.say(wire.close_channel(1), wire.gpadl_teardown(1, 1))
        await guest.expect(wire.gpadl_torndown(1))
        await guest.open(1)
        await guest.echo(other, b"hello", 2)


async def test_a_channel_that_is_closed_while_its_device_moves_is_closed_and_nothing_more() -> None:
    device = Composed(modify=lambda channel: channel.receive())
    async with served() as (server, guest), serve_devices(server, device):
        await guest.connect()
        await guest.offers()
        await guest.open(1)
        await guest.say(wire.modify_channel(1, 0))
        await guest.partition.settled()
        await guest.say(wire.close_channel(1), wire.gpadl_teardown(1, 1))
        await guest.partition.settled()
        heard = []
        while not await guest.silent():
            heard.append(await guest.hear())
        assert heard[-1] == wire.gpadl_torndown(1)
        assert "device_answer_unexpected" not in server.statistics().complaints
        await guest.open(1)


@pytest.mark.parametrize("where", ["open", "run", "modify", "close"])
async def test_what_a_task_group_of_a_device_raises_comes_out_unwrapped(where: str) -> None:
    async with served() as (server, guest):

        async def use() -> None:
            async with serve_devices(server, Composed(**{where: fail})):
                await guest.connect()
                await guest.offers()
                await guest.gpadl(1)
                await guest.say(wire.open_channel(1, 7, 1, page_offset=2))
                await guest.partition.settled()
                if where == "modify":
                    await guest.say(wire.modify_channel(1, 0))
                elif where == "close":
                    await guest.say(wire.close_channel(1))
                await anyio.sleep_forever()

        with anyio.fail_after(20), pytest.raises(ZeroDivisionError, match="broken"):
            await use()


async def test_what_a_device_raises_while_it_is_cancelled_is_raised_as_itself() -> None:
    """On trio its task group wraps the cancellation and the exception together."""

    async def break_when_cancelled(channel: DeviceChannel) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            await fail(channel)

    async with served() as (server, guest):

        async def use() -> None:
            async with serve_devices(server, Composed(run=break_when_cancelled)):
                await guest.connect()
                await guest.offers()
                await guest.open(1)
                await guest.say(wire.close_channel(1))
                await anyio.sleep_forever()

        with anyio.fail_after(20), pytest.raises(ZeroDivisionError, match="broken"):
            await use()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ZeroDivisionError])
async def test_what_leaves_the_block_of_a_server_and_its_devices_is_not_wrapped(error: type[BaseException]) -> None:
    async with Partition(config()) as partition:
        with pytest.raises(error):
            async with VmbusServer(partition.synic(), partition.memory) as server, serve_devices(server, *echoes(1)):
                raise error
        async with (
            VmbusServer(partition.synic(), partition.memory) as server,
            serve_devices(server, *echoes(1)),
            HandGuest(partition).listening() as guest,
        ):
            await guest.connect()
            assert len(await guest.offers()) == 1


@pytest.mark.parametrize("scenario", [echo, subchannels, reset_storm])
async def test_a_packet_that_never_fits_ends_a_scenario_with_that_sentence(scenario: Scenario) -> None:
    settings = Settings(payload=100_000, packets=1, rounds=1)
    with anyio.fail_after(20), pytest.raises(MessageTooLarge):
        await play(scenario, settings, OPENVMM, "emulated", 0)


async def test_what_a_task_group_of_a_scenario_expects_in_vain_is_its_failure() -> None:
    async def play_badly(stage: Stage) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(expect_nothing)

    async def expect_nothing() -> None:
        raise ScenarioFailed("two is not three")

    report = await play(Scenario(about="it fails", play=play_badly), Settings(), OPENVMM, "emulated", 0)
    assert report.failure == "two is not three"


async def test_a_client_is_used_once_and_a_server_that_has_not_begun_has_done_nothing() -> None:
    async with Partition() as partition:
        server = VmbusServer(partition.synic(), partition.memory)
        assert (server.statistics().sent, server.statistics().waiting_out) == (0, 0)

        async def guest(vp: VirtualProcessor) -> None:
            client = VmbusClient(vp.guest_synic())
            async with client:
                pass
            with pytest.raises(HostError, match="used once"):
                async with client:
                    pass

        async with server:
            await partition.start(0, guest).wait()
