"""What goes over each channel of a VMBus server: packets, bytes and signals each way, by channel and device.

Reads the `Ring` events of the host's side from the trace that the channels join; where the partition has no trace, its
channels, and nothing else, get one that only this looks at.
"""

from __future__ import annotations

import msgspec

from channels.bus import Bus, ChannelRequests, Offer, OfferParams, OpenParams
from channels.bus_wrapper import BusWrapper, RequestsWrapper
from channels.doorbell import Doorbell
from channels.hvsock.services import service_name
from channels.protocol.ids import INTERFACE_NAMES
from channels.protocol.offer import OfferFlags

from .access import Interrupt
from .trace import AnyEvent, Ring, Trace


class Traffic(msgspec.Struct):
    """One direction of a channel. Bytes are those of the ring, descriptors and footers included."""

    packets: int = 0
    bytes: int = 0
    batches: int = 0
    """Runs of packets that were handed over, or taken, together."""


class ChannelTraffic(msgspec.Struct):
    """One channel, from its first open on; a channel that is opened again goes on here."""

    channel_id: int
    device: str
    subchannel: int
    to_host: Traffic = msgspec.field(default_factory=Traffic)
    to_guest: Traffic = msgspec.field(default_factory=Traffic)
    opens: int = 0


class Meter:
    """See the module."""

    def __init__(self) -> None:
        self._open: dict[int, ChannelTraffic] = {}
        """By channel ID: what was opened last under it."""
        self._all: list[ChannelTraffic] = []
        self._trace: Trace | None = None

    @property
    def channels(self) -> list[ChannelTraffic]:
        """Every channel that was opened, in the order of their first opens."""
        return self._all

    def bus(self, inner: Bus) -> Bus:
        """What devices are offered on instead of `inner`."""
        if self._trace is None:
            self._trace = inner.trace or Trace()
            self._trace.subscribe(self._observe)
        return _MeteredBus(inner, self, self._trace)

    def opened(self, channel_id: int, params: OfferParams) -> None:
        """A guest opens this channel."""
        device = _name_of(params)
        known = self._open.get(channel_id)
        if known is None or (known.device, known.subchannel) != (device, params.subchannel_index):
            known = self._open[channel_id] = ChannelTraffic(channel_id, device, params.subchannel_index)
            self._all.append(known)
        known.opens += 1

    def _observe(self, event: AnyEvent) -> None:
        if isinstance(event, Ring) and event.side == "host" and event.channel_id in self._open:
            channel = self._open[event.channel_id]
            traffic = channel.to_guest if event.action == "write" else channel.to_host
            traffic.packets += event.packets
            traffic.bytes += event.byte_count
            traffic.batches += 1


class _MeteredBus(BusWrapper):
    def __init__(self, inner: Bus, meter: Meter, trace: Trace) -> None:
        super().__init__(inner)
        self._meter = meter
        self._trace = trace

    @property
    def trace(self) -> Trace | None:
        return self._trace

    async def offer(self, params: OfferParams, requests: ChannelRequests) -> Offer:
        return await super().offer(params, _MeteredRequests(requests, self._meter, params))


class _MeteredRequests(RequestsWrapper):
    def __init__(self, inner: ChannelRequests, meter: Meter, params: OfferParams) -> None:
        super().__init__(inner)
        self._meter = meter
        self._params = params

    def open_channel(self, channel_id: int, params: OpenParams, interrupt: Interrupt, doorbell: Doorbell) -> None:
        self._meter.opened(channel_id, self._params)
        super().open_channel(channel_id, params, interrupt, doorbell)


def _name_of(params: OfferParams) -> str:
    if params.flags & OfferFlags.TLNPI_PROVIDER:
        return f"hvsock {service_name(params.interface_id)}"
    return INTERFACE_NAMES.get(params.interface_id, str(params.interface_id))
