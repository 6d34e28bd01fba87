"""Integration devices and their drivers in one partition; a guest that speaks in bytes; a host that does.

`RawGuest` and `RawHost` use nothing of `channels.protocol.integration`: what they say is written down from
`reference/vmbus.md` 8.2.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from uuid import UUID

from broker import Partition, PartitionConfig
from broker.access import Turns
from channels.channel import Channel
from channels.client import VmbusClient
from channels.devices import Device, DeviceChannel, serve_devices
from channels.devices.integration.component import IntegrationDevice
from channels.drivers.framework import Driver, run_drivers
from channels.drivers.integration.component import IntegrationDriver
from channels.scenarios.stage import Flag
from channels.server import VmbusServer

LIVE = PartitionConfig()
VIRTUAL = PartitionConfig(virtual_time=True)
SEEDED = PartitionConfig(virtual_time=True, seed=7)


@asynccontextmanager
async def hosting(
    *devices: Device, config: PartitionConfig = VIRTUAL, guest: Callable[[VmbusClient], Awaitable[None]]
) -> AsyncIterator[Partition]:
    """A host with these devices, and guest code with a client; the block's end waits for the guest code's."""
    async with Partition(config) as partition, VmbusServer(partition.synic(), partition.memory) as server:

        async def run(vp: object) -> None:
            async with VmbusClient(partition.vp(0).guest_synic()) as client:
                await guest(client)

        async with serve_devices(server, *devices):
            running = partition.start(0, run)
            yield partition
            await running.wait()


@asynccontextmanager
async def paired(
    devices: Sequence[Device], drivers: Sequence[Driver], config: PartitionConfig = VIRTUAL
) -> AsyncIterator[Partition]:
    """Devices, and a guest that runs drivers for them while the block lasts."""
    done: list[Flag] = []

    async def guest(client: VmbusClient) -> None:
        async with run_drivers(client, *drivers):
            await done[0].wait()

    async with Partition(config) as partition, VmbusServer(partition.synic(), partition.memory) as server:
        done.append(Flag(partition.turns, 0))

        async def run(vp: object) -> None:
            async with VmbusClient(partition.vp(0).guest_synic()) as client:
                await guest(client)

        async with serve_devices(server, *devices):
            running = partition.start(0, run)
            yield partition
            done[0].set()
            await running.wait()


async def in_turn(turns: Turns, work: Callable[[], Awaitable[None]]) -> None:
    """A task of a test, for a task group."""
    try:
        await turns.expect(("test", 0))()
        await work()
    finally:
        turns.leave()


class Raw:
    """One end of a message pipe, in bytes."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    async def hear(self) -> bytes:
        """The next message; its pipe header is checked and left out."""
        payload = (await self.channel.receive()).payload
        kind, size = struct.unpack_from("<II", payload)
        assert kind == 1
        assert len(payload) == (8 + size + 7) // 8 * 8
        return payload[8 : 8 + size]

    async def say(self, *messages: bytes) -> None:
        """Send messages."""
        for message in messages:
            await self.channel.send(struct.pack("<II", 1, len(message)) + message)


def ic(
    kind: int,
    body: bytes = b"",
    *,
    framework: tuple[int, int] = (3, 0),
    version: tuple[int, int] = (3, 0),
    size: int | None = None,
    status: int = 0,
    transaction_id: int = 0,
    flags: int = 5,
) -> bytes:
    """A message, a response unless told."""
    size = len(body) if size is None else size
    return struct.pack("<HHHHHHIBBH", *framework, kind, *version, size, status, transaction_id, flags, 0) + body


def chosen(framework: tuple[int, int] = (3, 0), version: tuple[int, int] = (3, 0), **fields: int) -> bytes:
    """A guest's answer to a negotiation."""
    body = struct.pack("<HHIHHHH", 1, 1, 0, *framework, *version)
    return ic(0, body, framework=(0, 0), version=(0, 0), **fields)


async def raw_guest(client: VmbusClient, device: IntegrationDevice) -> Raw:
    """Open the device's channel."""
    return Raw(await client.open(await client.wait_offer(device.interface_id), ring_pages=(4, 4)))


class RawHost(Device):
    """A device whose host side is a script; a driver of this kind takes it for its own."""

    def __init__(self, driver: IntegrationDriver, script: Callable[[Raw], Awaitable[None]]) -> None:

        from channels.core.server.offer_params import OfferParams

        self.offer = OfferParams.pipe(driver.interface_id, UUID(int=1))
        self._script = script

    async def run(self, channel: DeviceChannel) -> None:
        await self._script(Raw(channel))
