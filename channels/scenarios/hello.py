"""Hello: a guest connects, sees what is offered, opens it, says hello, hears it back, closes and unloads."""

from __future__ import annotations

from uuid import UUID

from broker.access import GuestSynic

from ..client import VmbusClient
from ..devices import EchoDevice
from ..protocol.versions import version_label
from .stage import Scenario, Stage, expect, serve

INSTANCE = UUID("6ec80001-0000-4000-8000-000000000001")


async def _play(stage: Stage) -> None:
    async def guest(synic: GuestSynic) -> None:
        async with VmbusClient(synic, version=stage.settings.version) as client:
            stage.say(f"the guest is connected, version {version_label(client.version)}")
            offer = await client.wait_offer(instance_id=INSTANCE)
            stage.say(f"the host offers channel {offer.channel_id}, interface {offer.interface_id}")
            channel = await client.open(offer)
            stage.say(f"channel {offer.channel_id} is open over {len(channel.gpns)} pages of guest memory")
            answer = await channel.request(b"hello, host")
            expect(answer.payload.startswith(b"hello, host"), f"the host answered {answer.payload!r}")
            stage.say(f"the guest said hello and heard {answer.payload.rstrip(bytes(1)).decode()!r}")
            stage.count("packets echoed")
            await client.close(channel)
            stage.say("the channel is closed")
        stage.say("the guest has unloaded")

    async with serve(stage, EchoDevice(INSTANCE)):
        await stage.start(0, guest).wait()


hello = Scenario(about="connect, open a channel, say hello, hear it back, close, unload", play=_play)
