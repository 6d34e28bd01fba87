"""What an author of devices writes, `Device`, and what a device gets, `DeviceChannel`. `framework` runs them."""

from __future__ import annotations

import contextlib
from typing import Protocol

from broker.access import Interrupt, Turns
from broker.errors import HostError, RingCorrupt

from ..bus import Bus, OfferParams, OpenParams
from ..channel import Channel
from ..doorbell import Doorbell
from ..protocol.gparange import GpaRange
from ..protocol.message import STATUS_UNSUCCESSFUL
from ..ring import split_rings


class RefuseOpen(HostError):
    """Raised by `Device.open`: the guest's open fails with `status`, and nothing is wrong with the device."""

    def __init__(self, reason: str, status: int = STATUS_UNSUCCESSFUL) -> None:
        super().__init__(reason)
        self.status = status


class Device:
    """Base of devices. Sub-channels, where a device has them, run the same methods, at the same time."""

    __slots__ = ()

    offer: OfferParams
    """What is offered; sub-channels are offered with the same and their index."""
    max_subchannels: int = 0
    """Sub-channels that a guest may ask for."""

    def attached(self, turns: Turns) -> None:
        """Before the offer: where tasks wait that use this device."""
        return

    def detached(self) -> None:
        """Nobody serves the device any more: whoever waits for a guest of it waits in vain."""
        return

    async def open(self, channel: DeviceChannel) -> None:
        """Before the guest hears of the open: packets may be there already. `RefuseOpen` refuses, `PeerError` as well."""

    async def run(self, channel: DeviceChannel) -> None:
        """Serve the channel. It stays open when this returns, until the guest closes it."""
        raise NotImplementedError

    async def close(self, channel: DeviceChannel) -> None:
        """After `run`, however it ended; the rings may still be used."""

    async def modify(self, channel: DeviceChannel, target_vp: int) -> None:
        """Interrupts go to another processor from now on."""


class Offered(Protocol):
    """What a channel needs of the offer that it belongs to."""

    bus: Bus
    gpadls: dict[int, tuple[GpaRange, ...]]
    offer_params: OfferParams

    async def offer_subchannels(self, count: int) -> None:
        """See `DeviceChannel.offer_subchannels`."""
        ...


class DeviceChannel(Channel):
    """A channel as a device sees it."""

    __slots__ = ("_interrupt", "_offered", "params")

    def __init__(
        self, offered: Offered, channel_id: int, params: OpenParams, interrupt: Interrupt, doorbell: Doorbell
    ) -> None:
        bus = offered.bus
        self.params = params
        """What the guest opened it with: user data, target processor, confidentiality."""
        self._offered = offered
        self._interrupt = interrupt
        ranges = offered.gpadls.get(params.gpadl_id)
        if ranges is None:
            raise RefuseOpen(f"channel {channel_id} has no GPADL {params.gpadl_id:#x} for its rings")
        rings = split_rings(bus.memory, ranges, params.page_offset)
        super().__init__(channel_id, bus.memory, rings, doorbell, bus.turns, is_host=True, trace=bus.trace)

    async def signal(self) -> None:
        """See `Channel.signal`."""
        self._interrupt.deliver()

    @property
    def subchannel_index(self) -> int:
        """0 for the primary channel."""
        return self._offered.offer_params.subchannel_index

    @property
    def gpadls(self) -> dict[int, tuple[GpaRange, ...]]:
        """Guest memory that the guest has given to this channel, by GPADL ID."""
        return self._offered.gpadls

    def kick(self) -> None:
        """Signal the guest once more if the rings say that it waits."""
        with contextlib.suppress(RingCorrupt):  # whoever runs the channel will notice
            if self.peer_waits:
                self._interrupt.deliver()

    async def offer_subchannels(self, count: int) -> None:
        """Offer sub-channels 1 to `count`, those that are not offered yet. `HostError` above `Device.max_subchannels`."""
        await self._offered.offer_subchannels(count)
