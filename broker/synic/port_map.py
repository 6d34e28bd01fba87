"""The router: connection ID -> port and minimum VTL. The partition's own; consumers never see it.

Dispatch is async and normally does not suspend. Order: lookup and kind, VTL, handler. No lock and no map entry is held
while a handler runs, so a handler may register and close ports, its own included. The map contains a handler's
exceptions, counts outcomes per port and knows how many calls are in flight; it never logs, traces or checkpoints on the
way to a handler.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec
import structlog

from ..access import EventPort, MessagePort, PortHandle
from ..errors import CalledFromOwnHandler, ConnectionIdInUse
from ..hvdef import HvStatus, Vtl
from ..trace import Trace
from ..turns import Turns, Wakeup
from .handler_calls import mark_callers, ports_on_the_stack

DispatchCall = Coroutine[Any, Any, HvStatus]
"""A call on its way through the map; while its handler is suspended, its local `port` says whose."""

_SUCCESS = HvStatus.SUCCESS
_INSUFFICIENT_BUFFERS = HvStatus.INSUFFICIENT_BUFFERS
_OPERATION_FAILED = HvStatus.OPERATION_FAILED
_INVALID_CONNECTION_ID = HvStatus.INVALID_CONNECTION_ID
_OPERATION_DENIED = HvStatus.OPERATION_DENIED

_REASONS = {
    _INSUFFICIENT_BUFFERS: "the port has no free buffer",
    _OPERATION_FAILED: "the port's handler failed",
    HvStatus.INVALID_PARAMETER: "the payload is too long, or the message type is not for guests",
}

_log = structlog.get_logger("broker")


class PortStatistics(msgspec.Struct, frozen=True):
    """What became of the calls to one port."""

    kind: str
    """"message" or "event"."""
    accepted: int
    refused: dict[HvStatus, int]
    """By status, the handler's own answers and OPERATION_DENIED."""
    failed: int
    """Calls whose handler raised or gave no `HvStatus`; answered OPERATION_FAILED."""
    abandoned: int
    """Calls whose handler was cancelled with its caller; they have no answer."""
    in_flight: int


class MapStatistics(msgspec.Struct, frozen=True):
    """What became of the calls to a port map."""

    ports: dict[int, PortStatistics]
    """The ports registered now, by connection ID."""
    unknown: int
    """Calls to connection IDs without a port."""
    wrong_kind: int
    """Posts to event ports and signals to message ports."""


class _Exceptions(msgspec.Struct):
    """The outcomes that most ports never have."""

    failed: int = 0
    abandoned: int = 0
    answers: dict[int, int] = {}


class RegisteredPort(PortHandle):
    """One entry of the map and the handle on it, in one slim object."""

    __slots__ = (
        "_busy",
        "_call",
        "_denied",
        "_exceptions",
        "_finished",
        "_map",
        "_started",
        "_undo",
        "_wakeup",
        "connection_id",
        "is_event",
        "minimum_vtl",
    )

    def __init__(
        self,
        port_map: SynicPortMap,
        connection_id: int,
        minimum_vtl: int,
        call: Callable[..., Awaitable[object]],
        is_event: bool,
    ) -> None:
        self.connection_id = connection_id
        self.minimum_vtl = minimum_vtl
        self.is_event = is_event
        self._map = port_map
        self._call = call
        self._started = 0
        self._finished = 0
        self._busy = 0
        self._denied = 0
        self._exceptions: _Exceptions | None = None
        self._wakeup: Wakeup | None = None
        self._undo: tuple[Callable[[], None], ...] = ()

    @property
    def turns(self) -> Turns:
        return self._map.turns

    @property
    def trace(self) -> Trace | None:
        return self._map.trace

    @property
    def is_open(self) -> bool:
        """True while the port is registered."""
        return self._map.find(self.connection_id) is self

    @property
    def in_flight(self) -> int:
        """How many calls of the handler run now."""
        return self._started - self._finished

    def on_close(self, step: Callable[[], None]) -> None:
        self._undo = (step, *self._undo)

    def close(self) -> None:
        if self._map.remove(self):
            undo, self._undo = self._undo, ()
            for step in undo:
                step()

    async def aclose(self) -> None:
        self.close()
        if self._started == self._finished:
            return
        if any(port is self for port in ports_on_the_stack()):
            raise CalledFromOwnHandler(self.connection_id)
        while self._started != self._finished:
            await self.wait_finished()

    async def wait_finished(self) -> None:
        """Wait until the next call of this port's handler finishes."""
        if self._wakeup is None:
            self._wakeup = self.turns.wakeup(("port", self.connection_id))
        await self._wakeup.wait()

    async def run_event_handler(self, flag: int) -> HvStatus:
        """Call an event port's handler from outside the dispatcher, as a backend does that signals by eventfd."""
        port = self
        port._started += 1
        try:
            await port._call(flag)
        except Exception as error:
            return port.handler_raised(error)
        except BaseException:
            port.handler_cancelled()
            raise
        finally:
            port._finished += 1
            if port._wakeup is not None:
                port._wakeup.notify()
        return _SUCCESS

    def handler_raised(self, error: Exception) -> HvStatus:
        """Contain, log and count what a handler raised."""
        _log.error("port_handler_failed", connection_id=f"{self.connection_id:#010x}", exc_info=error)
        self._exceptional().failed += 1
        return _OPERATION_FAILED

    def handler_answered(self, status: object) -> HvStatus:
        """Count an answer other than SUCCESS and INSUFFICIENT_BUFFERS."""
        if not isinstance(status, HvStatus):
            _log.error(
                "port_handler_answered_no_status", connection_id=f"{self.connection_id:#010x}", answer=repr(status)
            )
            self._exceptional().failed += 1
            return _OPERATION_FAILED
        answers = self._exceptional().answers
        answers[int(status)] = answers.get(int(status), 0) + 1
        return status

    def handler_cancelled(self) -> None:
        """Count a call that was cancelled."""
        self._exceptional().abandoned += 1

    def statistics(self) -> PortStatistics:
        """What became of this port's calls."""
        unusual = self._exceptions or _Exceptions()
        refused = {HvStatus(status): count for status, count in unusual.answers.items()}
        if self._busy:
            refused[_INSUFFICIENT_BUFFERS] = self._busy
        if self._denied:
            refused[_OPERATION_DENIED] = refused.get(_OPERATION_DENIED, 0) + self._denied
        refusals = self._busy + sum(unusual.answers.values())
        return PortStatistics(
            kind="event" if self.is_event else "message",
            accepted=self._finished - refusals - unusual.failed - unusual.abandoned,
            refused=refused,
            failed=unusual.failed,
            abandoned=unusual.abandoned,
            in_flight=self.in_flight,
        )

    def _exceptional(self) -> _Exceptions:
        if self._exceptions is None:
            self._exceptions = _Exceptions()
        return self._exceptions


class _Entries(dict[int, RegisteredPort | None]):
    """Ports by connection ID; asked for another one it says None, which costs a post to a port less than `get` does."""

    def __missing__(self, connection_id: int) -> None:
        return None


class SynicPortMap:
    """See the module. `wrong_kind` is the status of a call through a connection of the other kind."""

    __slots__ = ("_events", "_messages", "_unknown", "_wrong_kind", "_wrong_kind_status", "trace", "turns")

    def __init__(
        self, turns: Turns, wrong_kind: HvStatus = HvStatus.INVALID_CONNECTION_ID, trace: Trace | None = None
    ) -> None:
        self.turns = turns
        self.trace = trace
        self._wrong_kind_status = wrong_kind
        self._messages = _Entries()
        self._events = _Entries()
        self._unknown = 0
        self._wrong_kind = 0

    async def handle_post_message(self, vtl: int, connection_id: int, secure: bool, message: bytes) -> HvStatus:
        """Route a message to its port and answer with the status of the hypercall.

        INVALID_CONNECTION_ID (no such message port; TLFS profile: INVALID_PORT_ID for an event port), OPERATION_DENIED
        (VTL too low), OPERATION_FAILED (the handler failed), or what the handler answers. `secure` is what the handler
        sees as `trusted`. Never raises for a handler's exception.
        """
        port = self._messages[connection_id]
        if port is None or (port.minimum_vtl and vtl < port.minimum_vtl):
            return self._refuse(port, connection_id, self._events)
        port._started += 1
        try:
            status = await port._call(message, secure)
        except Exception as error:
            status = port.handler_raised(error)
        except BaseException:
            port.handler_cancelled()
            raise
        else:
            if status is not _SUCCESS:
                if status is _INSUFFICIENT_BUFFERS:
                    port._busy += 1
                else:
                    status = port.handler_answered(status)
        finally:
            port._finished += 1
            if port._wakeup is not None:
                port._wakeup.notify()
        return status

    async def handle_signal_event(self, vtl: int, connection_id: int, flag_number: int) -> HvStatus:
        """Route a signal to its port. Statuses as above; SUCCESS once the handler has run. The flag is not checked."""
        port = self._events[connection_id]
        if port is None or (port.minimum_vtl and vtl < port.minimum_vtl):
            return self._refuse(port, connection_id, self._messages)
        port._started += 1
        try:
            await port._call(flag_number)
        except Exception as error:
            return port.handler_raised(error)
        except BaseException:
            port.handler_cancelled()
            raise
        finally:
            port._finished += 1
            if port._wakeup is not None:
                port._wakeup.notify()
        return _SUCCESS

    def new_message_port(self, connection_id: int, minimum_vtl: Vtl, port: MessagePort) -> RegisteredPort:
        """An entry for a message port, not inserted yet. `ValueError` for an ID of more than 32 bits."""
        _check_connection_id(connection_id)
        return RegisteredPort(self, connection_id, int(Vtl(minimum_vtl)), port.handle_message, False)

    def new_event_port(self, connection_id: int, minimum_vtl: Vtl, port: EventPort) -> RegisteredPort:
        """An entry for an event port, not inserted yet. `ValueError` for an ID of more than 32 bits."""
        _check_connection_id(connection_id)
        return RegisteredPort(self, connection_id, int(Vtl(minimum_vtl)), port.handle_event, True)

    def insert(self, port: RegisteredPort) -> None:
        """Make the port reachable. `ConnectionIdInUse` when its ID has one already, of whichever kind."""
        if port.connection_id in self._messages or port.connection_id in self._events:
            raise ConnectionIdInUse(port.connection_id)
        (self._events if port.is_event else self._messages)[port.connection_id] = port

    def remove(self, port: RegisteredPort) -> bool:
        """Make the port unreachable; False when it was not in the map."""
        ports = self._events if port.is_event else self._messages
        if ports[port.connection_id] is not port:
            return False
        del ports[port.connection_id]
        return True

    def find(self, connection_id: int) -> RegisteredPort | None:
        """The port at this connection ID, of either kind."""
        return self._messages[connection_id] or self._events[connection_id]

    def explain(self, connection_id: int, status: HvStatus) -> str:
        """In words, why a call through this connection was answered with this status, as things stand now."""
        port = self.find(connection_id)
        if port is None:
            return "no port has this connection ID" if status is _INVALID_CONNECTION_ID else _REASONS.get(status, "")
        if status in (_INVALID_CONNECTION_ID, HvStatus.INVALID_PORT_ID):
            return (
                "the connection leads to an event port" if port.is_event else "the connection leads to a message port"
            )
        if status is _OPERATION_DENIED:
            return f"the port takes calls from VTL {port.minimum_vtl} up"
        return _REASONS.get(status, "the handler answered so")

    def close(self) -> None:
        """Close every port."""
        for port in self._ports():
            port.close()

    def statistics(self) -> MapStatistics:
        """Per port: accepted, refused by status, failed, in flight; and the calls that found no port."""
        return MapStatistics(
            ports={port.connection_id: port.statistics() for port in self._ports()},
            unknown=self._unknown,
            wrong_kind=self._wrong_kind,
        )

    def _ports(self) -> list[RegisteredPort]:
        return [port for ports in (self._messages, self._events) for port in ports.values() if port is not None]

    def _refuse(self, port: RegisteredPort | None, connection_id: int, others: _Entries) -> HvStatus:
        if port is not None:
            port._denied += 1
            return _OPERATION_DENIED
        if connection_id in others:
            self._wrong_kind += 1
            return self._wrong_kind_status
        self._unknown += 1
        return _INVALID_CONNECTION_ID


def _check_connection_id(connection_id: int) -> None:
    if not 0 <= connection_id <= 0xFFFF_FFFF:
        raise ValueError(f"a connection ID is 32 bits, {connection_id:#x} does not fit")


# Below the classes and not by decorators: mutation testing passes over functions that are decorated.
mark_callers(RegisteredPort.run_event_handler, SynicPortMap.handle_post_message, SynicPortMap.handle_signal_event)
