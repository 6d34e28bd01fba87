"""A `Bus` over another one, and `ChannelRequests` over others: bases for what watches or disturbs devices."""

from __future__ import annotations

from broker.access import Interrupt, Turns
from broker.memory import GuestMemory
from broker.trace import Trace

from .bus import Bus, ChannelRequests, Offer, OfferParams, OpenParams
from .doorbell import Doorbell
from .protocol.gparange import GpaRange


class BusWrapper:
    """A `Bus` over another one; subclasses change what they want to."""

    def __init__(self, inner: Bus) -> None:
        self._inner = inner

    @property
    def memory(self) -> GuestMemory:
        """See `Bus`, here and below."""
        return self._inner.memory

    @property
    def turns(self) -> Turns:
        """See there."""
        return self._inner.turns

    @property
    def trace(self) -> Trace | None:
        """See there."""
        return self._inner.trace

    async def offer(self, params: OfferParams, requests: ChannelRequests) -> Offer:
        """See there."""
        return await self._inner.offer(params, requests)


class RequestsWrapper:
    """`ChannelRequests` over others; subclasses change what they want to."""

    def __init__(self, inner: ChannelRequests) -> None:
        self._inner = inner

    def open_channel(self, channel_id: int, params: OpenParams, interrupt: Interrupt, doorbell: Doorbell) -> None:
        """See `ChannelRequests`, here and below."""
        self._inner.open_channel(channel_id, params, interrupt, doorbell)

    def drop_open(self) -> None:
        """See there."""
        self._inner.drop_open()

    def close_channel(self) -> None:
        """See there."""
        self._inner.close_channel()

    def create_gpadl(self, gpadl_id: int, ranges: tuple[GpaRange, ...]) -> None:
        """See there."""
        self._inner.create_gpadl(gpadl_id, ranges)

    def teardown_gpadl(self, gpadl_id: int) -> None:
        """See there."""
        self._inner.teardown_gpadl(gpadl_id)

    def modify_channel(self, target_vp: int) -> None:
        """See there."""
        self._inner.modify_channel(target_vp)

    def resume_gpadl(self, gpadl_id: int, ranges: tuple[GpaRange, ...]) -> None:
        """See there."""
        self._inner.resume_gpadl(gpadl_id, ranges)

    def resume_channel(self, channel_id: int, params: OpenParams, interrupt: Interrupt, doorbell: Doorbell) -> None:
        """See there."""
        self._inner.resume_channel(channel_id, params, interrupt, doorbell)

    def removed(self) -> None:
        """See there."""
        self._inner.removed()
