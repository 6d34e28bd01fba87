"""Wrappers around `Bus`: what devices do to a guest."""

from __future__ import annotations

from broker.access import Interrupt

from ..bus import Bus, ChannelRequests, Offer, OfferParams, OpenParams
from ..bus_wrapper import BusWrapper, RequestsWrapper
from ..doorbell import Doorbell
from .access import Strikes


class RescindingBus(BusWrapper):
    """Takes an offer back while the guest opens it."""

    def __init__(self, inner: Bus, strikes: Strikes) -> None:
        super().__init__(inner)
        self._strikes = strikes

    async def offer(self, params: OfferParams, requests: ChannelRequests) -> Offer:
        """One that may go when it is opened."""
        rescinding = _RescindingRequests(requests, self._strikes)
        rescinding.offer = offer = await super().offer(params, rescinding)
        return offer


class _RescindingRequests(RequestsWrapper):
    def __init__(self, inner: ChannelRequests, strikes: Strikes) -> None:
        super().__init__(inner)
        self._strikes = strikes
        self.offer: Offer | None = None

    def open_channel(self, channel_id: int, params: OpenParams, interrupt: Interrupt, doorbell: Doorbell) -> None:
        if self.offer is not None and self._strikes():
            self.offer.revoke()
        else:
            super().open_channel(channel_id, params, interrupt, doorbell)
