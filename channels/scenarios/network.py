"""Network: two adapters on one switch exchange numbered frames, both ways at once, and none is lost."""

from __future__ import annotations

from uuid import UUID

import anyio

from broker.access import GuestSynic

from ..client import VmbusClient
from ..devices.network import NetworkAdapter, VirtualSwitch
from ..drivers.network import Frame, NetworkClient
from ..protocol.network.frames import BROADCAST, ETHERNET_HEADER, LARGEST_MTU, USUAL_MTU
from .stage import Scenario, Stage, expect, serve, start_task

INSTANCES = (UUID("6ec80009-0000-4000-8000-00000000000a"), UUID("6ec80009-0000-4000-8000-00000000000b"))
ETHER_TYPE = b"\x88\xb5"
"""For local experiments."""
BATCH = 64
NUMBER_SIZE = 4


def numbered(destination: bytes, source: bytes, number: int, size: int) -> Frame:
    """A frame with a number and `size` bytes of payload, at least the number's."""
    payload = number.to_bytes(NUMBER_SIZE, "big").ljust(size, bytes([number & 0xFF]))
    return Frame(destination + source + ETHER_TYPE + payload)


async def exchange(sender: NetworkClient, receiver: NetworkClient, stage: Stage) -> None:
    """Send frames one way, and check each where it arrives: all of them, in order, byte for byte."""
    count, size = stage.settings.packets, stage.settings.payload
    frames = [numbered(receiver.address, sender.address, number, size) for number in range(count)]
    came = 0

    async def send() -> None:
        for start in range(0, count, BATCH):
            await sender.send_batch(frames[start : start + BATCH])

    async with anyio.create_task_group() as group:
        start_task(group, sender.turns, int.from_bytes(sender.address[-2:], "big"), send)
        while came < count:
            for frame in await receiver.receive_batch():
                expect(came < count, "more frames came than were sent")
                expect(frame == frames[came], f"frame {came} came as {frame.data[:20].hex(' ')} ...")
                came += 1
                stage.count("frames delivered")


async def greet(first: NetworkClient, second: NetworkClient) -> None:
    """Each tells all others where it is, as ARP does: from then on the switch knows both."""
    for sender, receiver in ((first, second), (second, first)):
        await sender.send(numbered(BROADCAST, sender.address, 0, NUMBER_SIZE))
        frame = await receiver.receive()
        expect(frame.data[6:12] == sender.address, f"a greeting came from {frame.data[6:12].hex('-')}")


async def _play(stage: Stage) -> None:
    settings = stage.settings
    expect(settings.payload <= LARGEST_MTU, f"a frame carries up to {LARGEST_MTU} bytes")
    mtu = max(settings.payload, USUAL_MTU)
    switch = VirtualSwitch()
    adapters = [NetworkAdapter(instance, switch.port()) for instance in INSTANCES]

    async def guest(synic: GuestSynic) -> None:
        async with (
            VmbusClient(synic, version=settings.version) as client,
            NetworkClient.open(client, INSTANCES[0], mtu=mtu) as first,
            NetworkClient.open(client, INSTANCES[1], mtu=mtu) as second,
        ):
            version = f"{first.version >> 16}.{first.version & 0xFFFF}"
            stage.say(f"two adapters are open, NVSP {version}: {first.address.hex('-')}, {second.address.hex('-')}")
            await greet(first, second)
            expect(len(switch.addresses) == 2, f"the switch knows {len(switch.addresses)} addresses")
            stage.say("the switch has learned where both are")
            async with anyio.create_task_group() as group:
                start_task(group, first.turns, 0, lambda: exchange(second, first, stage))
                await exchange(first, second, stage)
            frames = f"{settings.packets} frames of {ETHERNET_HEADER + max(settings.payload, NUMBER_SIZE)} bytes"
            stage.say(f"{frames} went each way, and none was lost")
        stage.say("the guest has unloaded")

    async with serve(stage, *adapters):
        await stage.start(0, guest).wait()
    for port in switch.ports:
        expect(port.statistics().dropped == 0, f"{port.name} of the switch dropped frames")


network = Scenario(about="two adapters on one switch, frames both ways at once", play=_play, memory_size=32 << 20)
