"""Connected pairs of streams: both ends of our own pipes and hvsock connections, and anyio's own as the measure.

Every pair of ours is on a partition with virtual time; `later` lets it pass.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, NamedTuple
from uuid import UUID

import anyio
from anyio.abc import ByteStream, UNIXSocketStream
from anyio.lowlevel import checkpoint
from anyio.streams.stapled import StapledObjectStream

from broker import Partition, PartitionConfig
from broker.access import Turns
from broker.clock import TICKS_PER_SECOND
from channels.bus import OfferParams
from channels.client import GuestChannel, VmbusClient
from channels.devices import Device, DeviceChannel, serve_devices
from channels.hvsock import HvsockGuest, HvsockHost
from channels.pipe import BytePipe, MessagePipe
from channels.protocol.offer import PipeType
from channels.server import VmbusServer

INTERFACE, INSTANCE = UUID(int=0x500), UUID(int=0x501)
PORT = 5000
LATER = 10 * TICKS_PER_SECOND
"""Longer than any limit there is."""


class Ends(NamedTuple):
    """Both ends of an open channel, and the way to close the guest's."""

    guest: GuestChannel
    host: DeviceChannel
    client: VmbusClient
    turns: Turns
    revoked: anyio.Event

    async def close(self) -> None:
        await self.client.close(self.guest)

    def revoke(self) -> None:
        """The device goes."""
        self.revoked.set()


class HandedOut(Device):
    """A device that hands its channel to the test, and waits until the guest closes it."""

    def __init__(self, pipe_type: PipeType = PipeType.BYTE) -> None:
        self.offer = OfferParams.pipe(INTERFACE, INSTANCE, pipe_type)
        self.opened = anyio.Event()
        self.channel: DeviceChannel

    async def run(self, channel: DeviceChannel) -> None:
        self.channel = channel
        self.opened.set()
        await anyio.sleep_forever()


def partition() -> Partition:
    """Each hypercall waits, so that all that makes one can be cancelled there."""
    return Partition(PartitionConfig(virtual_time=True, quantum=1))


@asynccontextmanager
async def open_ends(ring_pages: int = 2, pipe_type: PipeType = PipeType.BYTE) -> AsyncIterator[Ends]:
    """An open channel; each ring has so many pages, its control page included."""
    device = HandedOut(pipe_type)
    async with (
        partition() as part,
        VmbusServer(part.synic(), part.memory) as server,
        VmbusClient(part.vp(0).guest_synic()) as client,
        anyio.create_task_group() as group,
    ):
        revoked = anyio.Event()

        async def serve() -> None:
            async with serve_devices(server, device):
                await revoked.wait()

        group.start_soon(serve)
        offer = await client.wait_offer(instance_id=INSTANCE)
        guest = await client.open(offer, ring_pages=(ring_pages, ring_pages))
        await device.opened.wait()
        yield Ends(guest, device.channel, client, server.turns, revoked)
        revoked.set()


class Pair(NamedTuple):
    """Two ends, and how to let time pass."""

    first: Any
    second: Any
    later: Callable[[], Awaitable[None]] = checkpoint

    async def close(self) -> None:
        await self.first.aclose()
        await self.second.aclose()


def _later(turns: Turns) -> Callable[[], Awaitable[None]]:
    return lambda: turns.sleep_until(turns.clock.now() + LATER, ("later", 0))


@asynccontextmanager
async def _pipes(kind: type[BytePipe | MessagePipe], is_host_first: bool, pages: int) -> AsyncIterator[Pair]:
    pipe_type = PipeType.BYTE if kind is BytePipe else PipeType.MESSAGE
    async with open_ends(pages, pipe_type) as ends:
        guest, host = kind(ends.guest, close=ends.close), kind(ends.host)
        first, second = (host, guest) if is_host_first else (guest, host)
        yield Pair(first, second, _later(ends.turns))


def byte_pipe(pages: int = 2) -> AbstractAsyncContextManager[Pair]:
    return _pipes(BytePipe, False, pages)


def byte_pipe_of_host(pages: int = 2) -> AbstractAsyncContextManager[Pair]:
    return _pipes(BytePipe, True, pages)


def message_pipe(pages: int = 2) -> AbstractAsyncContextManager[Pair]:
    return _pipes(MessagePipe, False, pages)


def message_pipe_of_host(pages: int = 2) -> AbstractAsyncContextManager[Pair]:
    return _pipes(MessagePipe, True, pages)


class Sides(NamedTuple):
    """hvsock of both sides of a partition."""

    host: HvsockHost
    guest: HvsockGuest
    server: VmbusServer
    client: VmbusClient
    later: Callable[[], Awaitable[None]]


@asynccontextmanager
async def hvsocks(**client: Any) -> AsyncIterator[Sides]:
    """hvsock on both sides; `client`: what the VMBus client is told."""
    host = HvsockHost()
    async with (
        partition() as part,
        VmbusServer(part.synic(), part.memory, hvsock_listener=host.accepts) as server,
        host.serve(server),
        VmbusClient(part.vp(0).guest_synic(), **client) as vmbus,
        HvsockGuest(vmbus) as guest,
    ):
        yield Sides(host, guest, server, vmbus, _later(server.turns))


@asynccontextmanager
async def _hvsock(connects: str, is_connector_first: bool) -> AsyncIterator[Pair]:
    async with hvsocks() as sides:
        connector, other = (sides.guest, sides.host) if connects == "guest" else (sides.host, sides.guest)
        async with await other.listen(PORT) as listener:
            near = await connector.connect(PORT)
            far = await listener.accept()
            yield Pair(near, far, sides.later) if is_connector_first else Pair(far, near, sides.later)


def hvsock_guest() -> AbstractAsyncContextManager[Pair]:
    return _hvsock("guest", True)


def hvsock_guest_accepted() -> AbstractAsyncContextManager[Pair]:
    return _hvsock("guest", False)


def hvsock_host() -> AbstractAsyncContextManager[Pair]:
    return _hvsock("host", True)


def hvsock_host_accepted() -> AbstractAsyncContextManager[Pair]:
    return _hvsock("host", False)


@asynccontextmanager
async def unix_sockets() -> AsyncIterator[Pair]:
    """anyio's own, over a socket pair."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    async with await UNIXSocketStream.from_socket(near) as first, await UNIXSocketStream.from_socket(far) as second:
        yield Pair(first, second)


@asynccontextmanager
async def memory_streams() -> AsyncIterator[Pair]:
    """anyio's own object streams, crosswise."""
    there = anyio.create_memory_object_stream[bytes](0)
    back = anyio.create_memory_object_stream[bytes](0)
    async with (
        StapledObjectStream(there[0], back[1]) as first,
        StapledObjectStream(back[0], there[1]) as second,
    ):
        yield Pair(first, second)


Opener = Callable[[], AbstractAsyncContextManager[Pair]]

OWN_BYTES: dict[str, Opener] = {
    "byte pipe, guest": byte_pipe,
    "byte pipe, host": byte_pipe_of_host,
    "hvsock, guest connects": hvsock_guest,
    "hvsock, host accepts": hvsock_guest_accepted,
    "hvsock, host connects": hvsock_host,
    "hvsock, guest accepts": hvsock_host_accepted,
}
ALL_BYTES: dict[str, Opener] = {**OWN_BYTES, "anyio's sockets": unix_sockets}
OWN_OBJECTS: dict[str, Opener] = {"message pipe, guest": message_pipe, "message pipe, host": message_pipe_of_host}
ALL_OBJECTS: dict[str, Opener] = {**OWN_OBJECTS, "anyio's memory streams": memory_streams}


async def read_to_end(stream: ByteStream) -> bytes:
    """All that comes until the other end says that no more will."""
    return b"".join([data async for data in stream])


async def read_exactly(stream: ByteStream, size: int) -> bytes:
    """So many bytes."""
    data = b""
    while len(data) < size:
        data += await stream.receive(size - len(data))
    return data
