"""Runs devices behind a `Bus`: a device is an offer and a `run`, which gets the channel whenever a guest opens it.

    class Beeper(Device):
        offer = OfferParams.device(INTERFACE, INSTANCE)

        async def run(self, channel):
            async for packet in channel:
                await channel.complete(packet, b"beep")

    async with serve_devices(server, Beeper()):
        ...

`run` is cancelled when the guest closes or is gone. A guest that spoils a ring or lies in a packet (`PeerError`) ends
that channel alone, until it opens it again, also from within a task group of the device. Any other exception is the
device's own: its offer is revoked, and the block that serves it ends with the exception.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio

from broker.access import Turns

from ..bus import Bus
from .device import Device
from .offered import OfferedDevice


@asynccontextmanager
async def serve_devices(bus: Bus, *devices: Device) -> AsyncIterator[None]:
    """Offer these devices and run them while the block lasts; then their offers are revoked. See the module.

    `OfferRefused` when one cannot be offered. An exception of a device ends the block and is raised by it, unwrapped.
    """
    errors: list[BaseException] = []
    offers: list[OfferedDevice] = []
    async with _attached(devices, bus.turns), anyio.create_task_group() as group:
        try:
            for device in devices:
                offered = OfferedDevice(device, bus, device.offer, group, errors)
                await offered.begin()
                offers.append(offered)
            yield
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:  # not from within the group, which would wrap it
            errors.insert(0, error)
        finally:
            for offered in offers:
                offered.revoke()
            group.cancel_scope.cancel()
    if errors:
        raise errors[0]


@asynccontextmanager
async def _attached(devices: Sequence[Device], turns: Turns) -> AsyncIterator[None]:
    """While the block lasts somebody serves these, or tries to."""
    for device in devices:
        device.attached(turns)
    try:
        yield
    finally:
        for device in devices:
            device.detached()
