"""A paravisor in VTL 2 between an outer host and a guest in VTL 0, all of one partition."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import UUID

from broker import Partition, PartitionConfig, Vtl
from channels.client import VmbusClient
from channels.devices import Device, EchoDevice, serve_devices
from channels.pages import GuestPages
from channels.relay import VmbusRelay
from channels.server import ServerConfig, VmbusServer

from .hand_guest import HandGuest, config

OUTER_PAGES = (0x200, 0x200)
INNER_PAGES = (0x400, 0x800)


def echo(number: int, **more: Any) -> EchoDevice:
    """An echo device with this instance."""
    return EchoDevice(UUID(int=number), **more)


class World:
    """See the module: `host` and `outer` are the two ends outside, `inner` the server inside."""

    def __init__(self, partition: Partition, host: VmbusServer, outer: VmbusClient, inner: VmbusServer) -> None:
        self.partition = partition
        self.memory = partition.memory
        self.host = host
        self.outer = outer
        self.inner = inner
        self.relay: VmbusRelay

    def guest(self, **settings: Any) -> VmbusClient:
        """The guest inside."""
        synics = [self.partition.vp(index).guest_synic() for index in range(self.partition.config.vp_count)]
        pages = GuestPages(self.memory, *INNER_PAGES)
        return VmbusClient(synics[0], pages=pages, processors=synics[1:], **settings)

    @asynccontextmanager
    async def hand_guest(self) -> AsyncIterator[HandGuest]:
        """A guest inside that says what the test has it say."""
        async with HandGuest(self.partition).listening() as guest:
            yield guest


def paravisor(partition: Partition, **settings: Any) -> VmbusClient:
    """The paravisor's client."""
    pages = GuestPages(partition.memory, *OUTER_PAGES)
    synic = partition.vp(0).guest_synic(Vtl.VTL2)
    return VmbusClient(synic, **({"pages": pages, "redirect": True, "monitor": True} | settings))


@asynccontextmanager
async def outside(
    *devices: Device,
    host: dict[str, Any] | None = None,
    outer: dict[str, Any] | None = None,
    inner: bool = True,
    **settings: Any,
) -> AsyncIterator[World]:
    """All but the relay. `host`: what the outer server is told, `outer`: the paravisor's client; the rest the partition.
    Without `inner` the test makes the server inside."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        partition = await enter(Partition(partition_config(**settings)))
        told = {"config": ServerConfig(redirects_messages=True)} | (host or {})
        server = await enter(VmbusServer(partition.synic(), partition.memory, **told))
        await enter(serve_devices(server, *devices))
        inside = VmbusServer(partition.synic(), partition.memory)
        if inner:
            await enter(inside)
        client = await enter(paravisor(partition, **(outer or {})))
        yield World(partition, server, client, inside)


@asynccontextmanager
async def relayed(*devices: Device, relay: dict[str, Any] | None = None, **settings: Any) -> AsyncIterator[World]:
    """All of it. `relay`: what the relay is told."""
    async with outside(*devices, **settings) as world, VmbusRelay(world.outer, world.inner, **(relay or {})) as through:
        world.relay = through
        yield world


def partition_config(**settings: Any) -> PartitionConfig:
    """Both VTLs, virtual time."""
    return config(**({"vtls": (Vtl.VTL0, Vtl.VTL2)} | settings))
