"""One hvsock connection at the host: a device that is offered, opened once at most, and revoked when it is over."""

from __future__ import annotations

import contextlib

from broker.errors import OfferRefused, RingCorrupt

from ..bus import Bus, OfferParams
from ..devices import Device, DeviceChannel, RefuseOpen, serve_devices
from .listener import HvsockListener
from .stream import Address, HvsockStream


class Connection(Device):
    """See the module. `number` tells its tasks from those of others."""

    def __init__(self, params: OfferParams, address: Address, bus: Bus, number: int) -> None:
        self.offer = params
        self.number = number
        self.turns = bus.turns
        self._address = address
        self._bus = bus
        self._changed = self.turns.wakeup(("hvsock-connection", number))
        self._stream: HvsockStream | None = None
        self._listener: HvsockListener | None = None
        self._refused: OfferRefused | None = None
        self._is_offered = self._is_over = False

    async def run_offer(self, limit: int, listener: HvsockListener | None) -> None:
        """Offer it, hand the stream to the listener, if there is one, and take the offer back when all is over.

        `limit`: ticks that the guest has to open it.
        """
        self._listener = listener
        key = ("hvsock-limit", self.number)
        try:
            async with serve_devices(self._bus, self):
                self._is_offered = True
                self._changed.notify()
                timer = self.turns.schedule(self.turns.clock.now() + limit, key, self._give_up)
                try:
                    while not self._is_over:
                        await self._changed.wait()
                finally:
                    timer.cancel()
        except OfferRefused as error:
            self._refused = error
        finally:
            if self._listener is not None:
                self._listener.lose()
            self._is_over = True
            self._changed.notify()

    def leave(self) -> None:
        """The host's user goes: what is closing goes on, anything else is at an end."""
        if self._stream is None or not self._stream.is_shut:
            self._is_over = True
            self._changed.notify()

    async def offered(self) -> bool:
        """Wait until it is on offer; False when it was over before that. `OfferRefused`."""
        while not self._is_offered and not self._is_over:
            await self._changed.wait()
        if self._refused is not None:
            raise self._refused
        return self._is_offered

    async def opened(self) -> HvsockStream | None:
        """Wait until the guest has opened it; None when it does not. `OfferRefused`."""
        while self._stream is None and not self._is_over:
            await self._changed.wait()
        if self._refused is not None:
            raise self._refused
        return self._stream

    def _give_up(self) -> None:
        if self._stream is None:
            self._is_over = True
            self._changed.notify()

    # see Device

    async def open(self, channel: DeviceChannel) -> None:
        """Once."""
        if self._stream is not None or self._is_over:
            raise RefuseOpen("an hvsock connection is opened once")

    async def run(self, channel: DeviceChannel) -> None:
        """The stream is its user's from now on; wait until that has closed it, then for the guest."""
        self._stream = stream = HvsockStream(channel, self._address, lambda _: self._changed.notify())
        self._changed.notify()
        if self._listener is not None:
            listener, self._listener = self._listener, None
            if not listener.arrive(stream):
                stream.close()
        while not stream.is_shut:
            await self._changed.wait()
        await stream.wind_up()

    async def close(self, channel: DeviceChannel) -> None:
        """The connection is over; what the guest had sent before may still be received."""
        channel.end("the guest has closed the connection, or it was revoked")
        with contextlib.suppress(RingCorrupt):
            await channel.take_in()
        self._is_over = True
        self._changed.notify()
