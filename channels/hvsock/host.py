"""The host's side of hvsock: listeners that guests connect to, and connections to listeners in the guest.

    hvsock = HvsockHost()
    async with VmbusServer(access, memory, hvsock_listener=hvsock.accepts) as server, hvsock.serve(server):
        listener = await hvsock.listen(5000)
        stream = await hvsock.connect(6000)

It will: offer a channel for each connection, revoke it once both ends are done, or when the guest does not open it in time
(5 s where the guest connects, 2 s where the host does). It will not: keep connections over a save and restore.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol
from uuid import UUID

import anyio
import anyio.abc
import structlog

from broker.clock import TICKS_PER_SECOND
from broker.errors import HostError, OfferRefused

from ..bus import Bus, OfferParams
from ..protocol.wire import NO_GUID
from .connection import Connection
from .listener import BACKLOG, HvsockListener
from .services import EndpointIds, service_id_of, service_name
from .stream import Address, HvsockStream

GUEST_OPENS_WITHIN = 5 * TICKS_PER_SECOND
"""A guest that connects has so long to open the channel."""
GUEST_TAKES_WITHIN = 2 * TICKS_PER_SECOND
"""A guest that is connected to has so long."""

_log = structlog.get_logger("channels")


class Takes(Protocol):
    """Says whether a listener for all services wants a connection to this one."""

    def __call__(self, service_id: UUID, /) -> bool: ...


class HvsockHost:
    """See the module. It is used once, by one server.

    Errors of all methods: `HostError` outside the block of `serve`.
    """

    def __init__(self) -> None:
        self._bus: Bus | None = None
        self._group: anyio.abc.TaskGroup
        self._ids: EndpointIds
        self._errors: list[BaseException] = []
        self._listeners: dict[UUID | None, HvsockListener] = {}
        self._takes: Takes = lambda _: True
        self._connections: set[Connection] = set()
        self._numbers = 0
        """Of listeners and connections, to tell their tasks apart."""

    @asynccontextmanager
    async def serve(self, bus: Bus) -> AsyncIterator[None]:
        """The block in which there are connections. Left normally, it waits for those that are closing, at most 8 s.

        Streams that are still in use then are at an end: `BrokenResourceError`.
        """
        self._ids, self._bus = EndpointIds("host", bus.turns), bus
        async with anyio.create_task_group() as self._group:
            try:
                yield
                for listener in tuple(self._listeners.values()):
                    await listener.aclose()
                self._bus = None
                for connection in tuple(self._connections):
                    connection.leave()
            except anyio.get_cancelled_exc_class():
                raise
            except BaseException as error:  # not from within the group, which would wrap it
                self._errors.insert(0, error)
                self._group.cancel_scope.cancel()
            finally:
                self._bus = None
        if self._errors:
            raise self._errors[0]

    async def accepts(self, service_id: UUID, endpoint_id: UUID, silo_id: UUID) -> bool:
        """A guest connects; for `VmbusServer(hvsock_listener=...)`. False where nobody listens, or the backlog is full."""
        listener = self._listeners.get(service_id)
        if listener is None and self._takes(service_id):
            listener = self._listeners.get(None)
        if self._bus is None or listener is None or not listener.expect():
            return False
        params = OfferParams.hvsock(service_id, endpoint_id, guest_accepts=False, silo_id=silo_id)
        connection = self._connection(params, silo_id)
        try:
            self._start(connection, GUEST_OPENS_WITHIN, listener)
            return await connection.offered()
        except OfferRefused as error:
            _log.info("hvsock_refused", service=str(service_id), reason=str(error))
            return False

    async def listen(
        self, service: UUID | int | None, *, backlog: int = BACKLOG, takes: Takes | None = None
    ) -> HvsockListener:
        """Listen to guests that connect to this service ID or port; None: to all that nobody else listens to, and `takes`.

        `OSError` (EADDRINUSE) when there is a listener already. A guest whose connection finds `backlog` others that
        wait is refused, with status 0xC0000236.
        """
        bus = self._running()
        service_id = None if service is None else service_id_of(service)
        if service_id in self._listeners:
            name = "all services" if service_id is None else service_name(service_id)
            raise OSError(errno.EADDRINUSE, f"there is a listener for hvsock {name} already")

        def forget() -> None:
            del self._listeners[service_id]

        self._numbers += 1
        address = Address(is_host=True, service_id=service_id)
        listener = HvsockListener(address, bus.turns, self._numbers, backlog, forget)
        self._listeners[service_id] = listener
        if service_id is None:
            self._takes = takes or (lambda _: True)
        return listener

    async def connect(
        self, service: UUID | int, *, silo_id: UUID = NO_GUID, for_container: bool = False
    ) -> HvsockStream:
        """Connect to a listener in the guest.

        `ConnectionRefusedError` when the guest does not open the channel in 2 s, `OfferRefused` when there is no room for
        its offer.
        """
        self._running()
        service_id = service_id_of(service)
        params = OfferParams.hvsock(
            service_id, self._ids.draw(), guest_accepts=True, silo_id=silo_id, for_container=for_container
        )
        connection = self._connection(params, silo_id)
        self._start(connection, GUEST_TAKES_WITHIN, None)
        try:
            stream = await connection.opened()
        except BaseException:
            connection.leave()
            raise
        if stream is None:
            raise ConnectionRefusedError(
                errno.ECONNREFUSED, f"nobody in the guest takes the connection to hvsock {service_name(service_id)}"
            )
        return stream

    # within

    def _running(self) -> Bus:
        if self._bus is None:
            raise HostError("hvsock is not running; use it within the block of `serve`")
        return self._bus

    def _connection(self, params: OfferParams, silo_id: UUID) -> Connection:
        address = Address(is_host=True, service_id=params.interface_id, endpoint_id=params.instance_id, silo_id=silo_id)
        self._numbers += 1
        return Connection(params, address, self._running(), self._numbers)

    def _start(self, connection: Connection, limit: int, listener: HvsockListener | None) -> None:
        self._connections.add(connection)
        begin = self._running().turns.expect(("hvsock", connection.number))
        self._group.start_soon(self._run, begin, connection, limit, listener)

    async def _run(
        self,
        begin: Callable[[], Awaitable[None]],
        connection: Connection,
        limit: int,
        listener: HvsockListener | None,
    ) -> None:
        try:
            await begin()
            await connection.run_offer(limit, listener)
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:
            self._errors.append(error)
            self._group.cancel_scope.cancel()
        finally:
            self._connections.discard(connection)
            connection.turns.leave()
