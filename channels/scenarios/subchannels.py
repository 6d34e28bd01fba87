"""Sub-channels: a guest asks for them in-band, echoes over all at once, and sees them go with the primary channel."""

from __future__ import annotations

from functools import partial
from uuid import UUID

import anyio

from broker.access import GuestSynic
from broker.errors import ChannelClosed

from ..channel import Channel
from ..client import VmbusClient
from ..devices import DeviceChannel, EchoDevice
from ..protocol.packet import PacketType
from .echo import echo_through, packets
from .stage import Scenario, Stage, expect, serve, start_task

INSTANCE = UUID("6ec80003-0000-4000-8000-000000000001")
_ASK = b"sub-channels, please: "


class SplitDevice(EchoDevice):
    """An echo device that first takes a request, `sub-channels, please: N`, and answers when they are offered."""

    async def run(self, channel: DeviceChannel) -> None:
        """Take the one request of the primary channel, then echo."""
        if not channel.subchannel_index:
            request = await channel.receive()
            count = int(request.payload[len(_ASK) :].rstrip(b"\0"))
            await channel.offer_subchannels(count)
            await channel.complete(request)
        await super().run(channel)


async def _play(stage: Stage) -> None:
    settings = stage.settings

    async def guest(synic: GuestSynic) -> None:
        async with VmbusClient(synic, version=settings.version) as client:
            offer = await client.wait_offer(instance_id=INSTANCE)
            primary = await client.open(offer, ring_pages=(5, 5))
            answer = await primary.request(_ASK + str(settings.channels).encode())
            expect(answer.packet_type == PacketType.COMPLETION, "the device did not answer")
            channels: list[Channel] = [primary]
            for index in range(1, settings.channels + 1):
                sub_offer = await client.wait_offer(instance_id=INSTANCE, subchannel=index)
                channels.append(await client.open(sub_offer, ring_pages=(5, 5)))
                stage.count("sub-channels opened")
            stage.say(f"{len(channels)} channels of one device are open")
            async with anyio.create_task_group() as group:
                for channel in channels:
                    payloads = packets(settings.packets, settings.payload)
                    work = partial(echo_through, channel, payloads, stage)
                    start_task(group, channel.turns, 0x10000 + channel.channel_id, work)
            stage.say(f"each of them echoed {settings.packets} packets")
            await client.close(primary)
            for channel in channels[1:]:
                try:
                    await channel.receive()
                except ChannelClosed:
                    stage.count("sub-channels rescinded")
            stage.say("the primary channel is closed, and its sub-channels are gone")

    device = SplitDevice(INSTANCE, max_subchannels=settings.channels)
    async with serve(stage, device):
        await stage.start(0, guest).wait()


subchannels = Scenario(about="sub-channels asked for in-band, used at once, gone with the primary", play=_play)
