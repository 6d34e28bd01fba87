"""The guest's side of hvsock: connections to listeners on the host, and listeners that the host connects to.

    async with VmbusClient(synic) as client, HvsockGuest(client) as hvsock:
        stream = await hvsock.connect(5000)

It will: open an offer of the host at once when somebody listens and has room, and leave others alone, as Linux does (the
host takes them back after 2 s). It will not: share a client with a second one.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Self
from uuid import UUID

import anyio
import anyio.abc

from broker.clock import TICKS_PER_SECOND
from broker.errors import ChannelClosed, ConnectionFailed, HostError, RingCorrupt

from ..client import GuestChannel, VmbusClient
from ..protocol.offer import HVSOCK_AREA, OfferChannel, OfferFlags
from ..protocol.wire import NO_GUID
from .listener import BACKLOG, HvsockListener
from .services import EndpointIds, service_id_of, service_name
from .stream import Address, HvsockStream

RING_PAGES = (6, 6)
"""Pages of both rings, control pages included: what Linux takes, and the fewest that it thinks enough."""
HOST_ANSWERS_WITHIN = 5 * TICKS_PER_SECOND
"""A host that does not answer for so long refuses: at version 4.0 it has no other way to."""


class HvsockGuest(anyio.AsyncContextManagerMixin):
    """See the module. Use it within its block, and that within the client's.

    Left normally, the block waits for connections that are closing, at most 8 s; streams that are still in use then are
    at an end: `ClosedResourceError`. `ValueError` for rings of fewer than 6 pages.
    """

    def __init__(self, client: VmbusClient, *, ring_pages: tuple[int, int] = RING_PAGES) -> None:
        if min(ring_pages) < RING_PAGES[0]:
            raise ValueError(f"a ring of hvsock has at least {RING_PAGES[0]} pages, not {min(ring_pages)}")
        self._client = client
        self._ring_pages = ring_pages
        self._turns = client.guest_synic.turns
        self._ids = EndpointIds(f"guest {client.guest_synic.vp_index}", self._turns)
        self._listeners: dict[UUID, HvsockListener] = {}
        self._streams: set[HvsockStream] = set()
        self._group: anyio.abc.TaskGroup | None = None
        self._is_running = False
        self._errors: list[BaseException] = []
        self._numbers = 0
        """Of tasks and listeners, to tell them apart."""

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncIterator[Self]:
        async with anyio.create_task_group() as group:
            self._group, self._is_running = group, True
            watching = anyio.CancelScope()
            self._start(partial(self._take_offers, watching))
            try:
                yield self
                watching.cancel()
                for listener in tuple(self._listeners.values()):
                    await listener.aclose()
                for stream in tuple(self._streams):
                    stream.abort()
            except anyio.get_cancelled_exc_class():
                raise
            except BaseException as error:  # not from within the group, which would wrap it
                self._errors.insert(0, error)
                group.cancel_scope.cancel()
            finally:
                self._is_running = False
        self._group = None
        if self._errors:
            raise self._errors[0]

    async def connect(
        self, service: UUID | int, *, silo_id: UUID = NO_GUID, limit: int = HOST_ANSWERS_WITHIN
    ) -> HvsockStream:
        """Connect to a listener on the host by service ID or port.

        `ConnectionRefusedError` when nobody listens there, or its backlog is full; `TimeoutError` when the host says
        nothing for `limit` ticks; `ConnectionResetError` when the host takes the offer back. `HostError` outside the block.
        """
        self._check_running()
        service_id, endpoint_id = service_id_of(service), self._ids.draw()
        name = f"hvsock {service_name(service_id)}"
        try:
            offer = await self._within(limit, partial(self._client.connect_hvsock, service_id, endpoint_id, silo_id))
        except ChannelClosed:
            raise ConnectionRefusedError(
                errno.ECONNREFUSED, f"nobody on the host takes the connection to {name}"
            ) from None
        if offer is None:
            raise TimeoutError(errno.ETIMEDOUT, f"the host does not answer to a connection to {name}")
        try:
            return await self._open(offer, silo_id)
        except (ChannelClosed, RingCorrupt) as error:
            raise ConnectionResetError(
                errno.ECONNRESET, f"the host has dropped the connection to {name}: {error}"
            ) from error

    async def listen(self, service: UUID | int, *, backlog: int = BACKLOG) -> HvsockListener:
        """Listen to a host that connects to this service ID or port.

        `OSError` (EADDRINUSE) when there is a listener already. Connections that find `backlog` others that wait are left
        alone: the host gives up after 2 s.
        """
        self._check_running()
        service_id = service_id_of(service)
        if service_id in self._listeners:
            raise OSError(errno.EADDRINUSE, f"there is a listener for hvsock {service_name(service_id)} already")

        def forget() -> None:
            del self._listeners[service_id]

        self._numbers += 1
        address = Address(is_host=False, service_id=service_id)
        listener = HvsockListener(address, self._turns, self._numbers, backlog, forget)
        self._listeners[service_id] = listener
        return listener

    # within

    def _check_running(self) -> None:
        if not self._is_running:
            raise HostError("hvsock is not running; use it within its block")

    def _start(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do this in the background; nothing once all has ended."""
        if self._group is not None:
            self._numbers += 1
            begin = self._turns.expect(("hvsock-guest", self._numbers))
            self._group.start_soon(self._guard, begin, work, self._group.cancel_scope)

    async def _guard(
        self, begin: Callable[[], Awaitable[None]], work: Callable[[], Awaitable[None]], scope: anyio.CancelScope
    ) -> None:
        try:
            await begin()
            await work()
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:
            self._errors.append(error)
            scope.cancel()
        finally:
            self._turns.leave()

    async def _within(self, limit: int, work: Callable[[], Awaitable[OfferChannel]]) -> OfferChannel | None:
        """The result, or None after so many ticks."""
        self._numbers += 1
        key = ("hvsock-answer", self._numbers)
        with anyio.CancelScope() as scope:
            timer = self._turns.schedule(self._turns.clock.now() + limit, key, scope.cancel)
            try:
                return await work()
            finally:
                timer.cancel()
        await self._turns.expect(key)()  # whoever was called back from a wait goes on in its turn
        return None

    async def _take_offers(self, watching: anyio.CancelScope) -> None:
        """Open what the host offers to listeners, until nothing can come any more."""
        with watching, contextlib.suppress(ConnectionFailed):
            async for offer in self._client.new_offers():
                listener = self._listeners.get(offer.interface_id)
                if listener is not None and _is_for_guest(offer) and listener.expect():
                    self._start(partial(self._take, offer, listener))
        for listener in self._listeners.values():
            listener.break_off()

    async def _take(self, offer: OfferChannel, listener: HvsockListener) -> None:
        try:
            stream = await self._open(offer, _silo_of(offer))
        except (HostError, RingCorrupt):  # the host did not wait
            listener.lose()
        except BaseException:
            listener.lose()
            raise
        else:
            if not listener.arrive(stream):
                stream.close()

    async def _open(self, offer: OfferChannel, silo_id: UUID) -> HvsockStream:
        channel = await self._client.open(offer, ring_pages=self._ring_pages)
        address = Address(is_host=False, service_id=offer.interface_id, endpoint_id=offer.instance_id, silo_id=silo_id)
        stream = HvsockStream(channel, address, self._shut, partial(self._give_back, offer, channel))
        self._streams.add(stream)
        return stream

    def _shut(self, stream: HvsockStream) -> None:
        self._start(partial(self._wind_up, stream))

    async def _wind_up(self, stream: HvsockStream) -> None:
        try:
            await stream.wind_up()
        finally:
            self._streams.discard(stream)

    async def _give_back(self, offer: OfferChannel, channel: GuestChannel) -> None:
        """Close the channel, and let the host have its ID."""
        with contextlib.suppress(HostError):  # rescinded before, or the connection has ended
            await self._client.close(channel)
            await self._client.release(offer)


def _is_for_guest(offer: OfferChannel) -> bool:
    """The host connects to a listener in the guest."""
    return bool(offer.flags & OfferFlags.TLNPI_PROVIDER) and bool(HVSOCK_AREA.unpack_from(offer.user_defined)[1])


def _silo_of(offer: OfferChannel) -> UUID:
    return UUID(bytes_le=HVSOCK_AREA.unpack_from(offer.user_defined)[4])
