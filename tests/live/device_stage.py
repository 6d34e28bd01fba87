"""What tests of single devices start from: a partition that serves them, a guest by hand or drivers, and devices that lie."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from broker import Partition, PartitionConfig, Trace, VirtualProcessor
from channels.bus import OfferParams
from channels.client import VmbusClient
from channels.devices import Device, DeviceChannel, EchoDevice, serve_devices
from channels.drivers.framework import Driver, run_drivers
from channels.server import VmbusServer

from ..machines import wire
from .hand_guest import HandGuest, Rings, instance, served

COMPLETION = 0xB


@asynccontextmanager
async def hosting(seed: int | None = None, trace: Trace | None = None) -> AsyncIterator[tuple[Partition, VmbusServer]]:
    """A partition in virtual time, and its server."""
    async with (
        Partition(PartitionConfig(virtual_time=True, seed=seed, trace=trace)) as partition,
        VmbusServer(partition.synic(), partition.memory) as server,
    ):
        yield partition, server


@asynccontextmanager
async def serving(*devices: Device, seed: int | None = None, trace: Trace | None = None) -> AsyncIterator[Partition]:
    """The same, and the server has these devices."""
    async with hosting(seed, trace) as (partition, server), serve_devices(server, *devices):
        yield partition


@asynccontextmanager
async def by_hand(device: Device) -> AsyncIterator[tuple[HandGuest, Rings]]:
    """A guest by hand that has opened channel 1, the device's; channel 2 is an echo device's."""
    async with served() as (server, guest), serve_devices(server, device):
        await guest.connect()
        (found,) = await guest.offers()
        assert found[8:24] == device.offer.interface_id.bytes_le
        async with serve_devices(server, EchoDevice(instance(2))):
            await guest.hear()
            yield guest, await guest.open(1)


async def answers(guest: HandGuest, rings: Rings) -> list[tuple[int, int, bytes]]:
    """Signal, let the host do what it does, and take what it has sent."""
    await guest.signal(1)
    await guest.partition.settled()
    return rings.receive()


async def reopened(guest: HandGuest) -> Rings:
    """Close channel 1, see that channel 2 is as it was, and open channel 1 again."""
    await guest.partition.settled()
    await guest.say(wire.close_channel(1), wire.gpadl_teardown(1, 1))
    await guest.expect(wire.gpadl_torndown(1))
    echo = await guest.open(2)
    echo.send(b"unharmed", 9, completion=True)
    await guest.signal(2)
    await guest.partition.settled()
    assert echo.receive() == [(COMPLETION, 9, b"unharmed")]
    return await guest.open(1)


def driven(*drivers: Driver, by: Callable[[], Awaitable[None]]) -> Callable[[VirtualProcessor], Awaitable[None]]:
    """Guest code that runs these drivers while it does this."""

    async def guest(vp: VirtualProcessor) -> None:
        async with VmbusClient(vp.guest_synic()) as client, run_drivers(client, *drivers):
            await by()

    return guest


class Lying(Device):
    """Sends these packets' payloads, each after `waits` packets of the guest, and then nothing."""

    def __init__(self, offer: OfferParams, payloads: Sequence[bytes], *, waits: int = 1) -> None:
        self.offer = offer
        self._payloads = payloads
        self._waits = waits

    async def run(self, channel: DeviceChannel) -> None:
        for _ in range(self._waits):
            await channel.receive()
        for payload in self._payloads:
            await channel.send(payload)
        async for _ in channel:
            pass
