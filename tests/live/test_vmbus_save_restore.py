"""Save and restore with open channels: partition, server and client go on in new objects, over the same guest memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from uuid import UUID

import pytest

from broker import (
    ConfigurationError,
    DamagedDocument,
    GuestMemory,
    HostError,
    Partition,
    PartitionConfig,
    VirtualProcessor,
)
from channels.client import VmbusClient
from channels.core.server.state import ServerConfig
from channels.devices import EchoDevice, serve_devices
from channels.protocol import Version
from channels.server import VmbusServer

INSTANCES = [UUID(int=0x5A0 + number) for number in range(3)]


def echo(number: int) -> EchoDevice:
    return EchoDevice(INSTANCES[number])


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(4 << 20) as made:
        yield made


@asynccontextmanager
async def machine(
    memory: GuestMemory, *devices: EchoDevice, saved: bytes | None = None, config: ServerConfig | None = None
) -> AsyncIterator[tuple[Partition, VmbusServer]]:
    async with (
        Partition(PartitionConfig(memory=memory, virtual_time=True)) as partition,
        VmbusServer(partition.synic(), memory, config, saved=saved) as server,
        serve_devices(server, *devices),
    ):
        yield partition, server


class Saved:
    """What goes over to the new objects."""

    partition: bytes
    server: bytes
    client: bytes
    memory: bytes
    rings: list[tuple[int, tuple[int, ...], int]]
    """GPADL, pages and upstream pages of each open channel."""


async def save_with_open_channels(memory: GuestMemory, count: int, version: Version = Version.COPPER) -> Saved:
    """Connect, open `count` channels, use them, and save everything in the middle."""
    saved = Saved()
    devices = [echo(number) for number in range(count)]
    async with machine(memory, *devices) as (partition, server):

        async def guest(vp: VirtualProcessor) -> None:
            async with VmbusClient(vp.guest_synic(), version=version) as client:
                saved.rings = []
                for device in devices:
                    channel = await client.open(await client.wait_offer(instance_id=device.offer.instance_id))
                    assert (await channel.request(b"before")).payload == b"before\0\0"
                    saved.rings.append((channel.gpadl_id, channel.gpns, channel.upstream_pages))
                await client.pause()
                server.stop()
                saved.client, saved.server, saved.partition = client.save(), server.save(), partition.save()
                saved.memory = memory.read(0, memory.size)
                server.start()
                await client.resume()

        await partition.start(0, guest).wait()
    memory.write(0, saved.memory)
    return saved


@pytest.mark.parametrize("version", [Version.V1, Version.WIN7, Version.WIN8, Version.COPPER])
async def test_open_channels_go_on_where_they_were(memory: GuestMemory, version: Version) -> None:
    saved = await save_with_open_channels(memory, 2, version)
    async with machine(memory, echo(0), echo(1), saved=saved.server) as (partition, server):
        partition.restore(saved.partition)
        server.start()
        server.machine.check()

        async def guest(vp: VirtualProcessor) -> None:
            async with VmbusClient(vp.guest_synic(), document=saved.client) as client:
                assert client.version is version
                channels = []
                for number, rings in enumerate(saved.rings):
                    offer = await client.wait_offer(instance_id=INSTANCES[number])
                    channels.append(client.claim(offer, *rings))
                await client.resume()
                for channel in channels:
                    assert (await channel.request(b"after ")).payload == b"after \0\0"
                    await client.close(channel)

        await partition.start(0, guest).wait()
        assert not server.machine.open_offers()


async def test_a_device_that_does_not_come_back_is_rescinded_and_a_new_one_is_offered(memory: GuestMemory) -> None:
    saved = await save_with_open_channels(memory, 2)
    async with machine(memory, echo(1), echo(2), saved=saved.server) as (partition, server):
        partition.restore(saved.partition)
        server.start()

        async def guest(vp: VirtualProcessor) -> None:
            async with VmbusClient(vp.guest_synic(), document=saved.client) as client:
                gone = await client.wait_offer(instance_id=INSTANCES[0])
                await client.resume()
                new = await client.wait_offer(instance_id=INSTANCES[2])
                channel = await client.open(new)
                assert (await channel.request(b"new")).payload.startswith(b"new")
                assert gone.channel_id not in client.offers
                await client.close(channel)

        await partition.start(0, guest).wait()
        server.machine.check()


async def test_a_server_is_saved_while_it_stands_still_only(memory: GuestMemory) -> None:
    async with machine(memory) as (_, server):
        with pytest.raises(HostError, match="stop the VMBus server"):
            server.save()
        server.stop()
        assert server.save()


async def test_what_cannot_be_restored_is_refused_before_anything_begins(memory: GuestMemory) -> None:
    saved = await save_with_open_channels(memory, 1)
    with pytest.raises(ConfigurationError, match=r"speaks version 6\.0; this server goes up to 5\.3"):
        async with machine(memory, saved=saved.server, config=ServerConfig(max_version=Version.IRON)):
            pass
    for damaged in (b"", saved.server[:-1], saved.server[: len(saved.server) // 2], saved.partition):
        with pytest.raises(DamagedDocument):
            async with machine(memory, saved=damaged):
                pass


async def test_stop_and_start_lose_nothing_of_a_guest_that_goes_on(memory: GuestMemory) -> None:
    async with machine(memory, echo(0)) as (partition, server):

        async def guest(vp: VirtualProcessor) -> None:
            async with VmbusClient(vp.guest_synic()) as client:
                channel = await client.open(await client.wait_offer())
                await client.close(channel)

        server.stop()
        run = partition.start(0, guest)
        await partition.settled()
        assert server.statistics().waiting_in == 1
        server.start()
        await run.wait()
        assert server.statistics().waiting_in == 0
