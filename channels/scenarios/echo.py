"""Echo: a guest sends packets in batches and checks that each comes back, in order, byte for byte."""

from __future__ import annotations

from uuid import UUID

import anyio

from broker.access import GuestSynic

from ..channel import Channel
from ..client import VmbusClient
from ..devices import EchoDevice
from ..protocol.versions import version_label
from .stage import Scenario, Stage, expect, serve, start_task

INSTANCE = UUID("6ec80002-0000-4000-8000-000000000001")
BATCH = 64


def packets(number: int, size: int) -> list[bytes]:
    """So many payloads, each of them another."""
    return [index.to_bytes(8, "little").ljust(size, bytes([index & 0xFF]))[:size] for index in range(number)]


async def echo_through(channel: Channel, payloads: list[bytes], stage: Stage) -> None:
    """Send these and take their echoes: a batch is on its way while the one before comes back."""
    padded = [payload.ljust((len(payload) + 7) // 8 * 8, b"\0") for payload in payloads]

    async def send() -> None:
        for start in range(0, len(payloads), BATCH):
            await channel.send_batch(payloads[start : start + BATCH])

    async with anyio.create_task_group() as group:
        start_task(group, channel.turns, channel.channel_id, send)
        came = 0
        while came < len(payloads):
            for packet in await channel.receive_batch():
                expect(came < len(payloads), "more packets came back than were sent")
                expect(packet.payload == padded[came], f"packet {came} came back as {packet.payload[:16].hex(' ')} ...")
                came += 1
                stage.count("packets echoed")


async def _play(stage: Stage) -> None:
    settings = stage.settings

    async def guest(synic: GuestSynic) -> None:
        async with VmbusClient(synic, version=settings.version) as client:
            stage.say(f"the guest is connected, version {version_label(client.version)}")
            channel = await client.open(await client.wait_offer(instance_id=INSTANCE), ring_pages=(5, 5))
            await echo_through(channel, packets(settings.packets, settings.payload), stage)
            stage.say(f"{settings.packets} packets of {settings.payload} bytes came back as they were sent")
            await client.close(channel)
        stage.say("the guest has unloaded")

    async with serve(stage, EchoDevice(INSTANCE)):
        await stage.start(0, guest).wait()


echo = Scenario(about="packets in batches, each checked as it comes back", play=_play)
