"""The offloaded backend: the SynIC lives elsewhere, and eventfds lead there and back.

A guest's signal rings the event port's doorbell and does not enter the dispatcher. A consumer's own eventfd carries
flag 0 only, other flags are dispatched; a doorbell made here carries any flag, beside a set of those pending, and a
task of the partition reads it and runs the handler. A guest event port's interrupt is an eventfd that a task of the
partition reads, so the flag is set a little after `deliver`.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import anyio.abc

from ..hvdef import HvStatus, Vtl
from ..interrupt import EVENTFD_FLAGS, Interrupt, drain_eventfd, signal_eventfd
from ..trace import NO_CONTEXT, Context, Trace
from .backend import Backend, GuestEventTarget, HostEventPort, HostSynic
from .emulated import EmulatedSynic
from .host_posts import HostPosts
from .monitor import Monitor
from .port_map import DispatchCall, RegisteredPort, SynicPortMap


class OffloadedSynic(EmulatedSynic):
    """`group` runs the tasks that read eventfds; it belongs to the partition."""

    def __init__(
        self,
        backend: Backend,
        port_map: SynicPortMap,
        locate: Callable[[int, int], HostPosts | None],
        monitor: Monitor | None,
        host: HostSynic | None,
        group: anyio.abc.TaskGroup,
    ) -> None:
        super().__init__(backend, port_map, locate, monitor, host)
        self.handle_signal_event = self._handle_signal_event
        self._group = group
        self._turns = port_map.turns
        self._doorbells: dict[int, _Doorbell] = {}
        self._serial = 0
        self._guest_events: set[_GuestEvent] = set()

    def new_host_event_port(self, port: RegisteredPort, os_event: int | None) -> HostEventPort | None:
        """A doorbell for this port."""
        if os_event is None and self.backend.host_event_ports == "given":
            return None
        doorbell = _Doorbell(port, os_event, self._doorbells)
        if os_event is None:
            self._group.start_soon(self._serve_doorbell, doorbell, name=f"doorbell {port.connection_id:#x}")
        return doorbell

    def new_guest_event(self, target: GuestEventTarget) -> Interrupt:
        """Backed by an eventfd, where the backend has those for this VTL, else by a function."""
        if self.backend.guest_events == "function" or target.vtl == Vtl.VTL2:
            return super().new_guest_event(target)
        self._serial += 1
        event = _GuestEvent(target, os.eventfd(0, EVENTFD_FLAGS), self._serial)
        self._guest_events.add(event)
        self._group.start_soon(self._serve_guest_event, event, name=f"guest event of VP {target.vp}")
        event.interrupt = Interrupt.from_event(event.fd, lambda _: self._close_guest_event(event))
        return event.interrupt

    async def finish_handlers(self) -> None:
        """Wait until no handler runs that a doorbell called."""
        for doorbell in list(self._doorbells.values()):
            while doorbell.port.in_flight:
                await doorbell.port.wait_finished()

    def close(self) -> None:
        """The partition ends: eventfds are closed."""
        super().close()
        for event in list(self._guest_events):
            event.interrupt.disconnect()

    def _handle_signal_event(self, vtl: int, connection_id: int, flag_number: int) -> DispatchCall:
        """Ring the doorbell where there is one that this caller may ring and that carries this flag; else dispatch."""
        doorbell = self._doorbells.get(connection_id)
        if doorbell is None or not doorbell.accepts(vtl, flag_number):
            return self.port_map.handle_signal_event(vtl, connection_id, flag_number)
        return self._ring(doorbell, flag_number)

    async def _ring(self, doorbell: _Doorbell, flag: int) -> HvStatus:
        doorbell.ring(flag, NO_CONTEXT if self.port_map.trace is None else Trace.context())
        return HvStatus.SUCCESS

    async def _serve_doorbell(self, doorbell: _Doorbell) -> None:
        key = ("doorbell", doorbell.port.connection_id)
        while await self._turns.wait_readable(doorbell.fd, key):
            for flag in doorbell.take():
                if doorbell.fd < 0:
                    break  # closed meanwhile: what is undelivered is dropped
                if self.port_map.trace is not None:
                    self.port_map.trace.work_on(doorbell.context)
                await doorbell.port.run_event_handler(flag)

    async def _serve_guest_event(self, event: _GuestEvent) -> None:
        while await self._turns.wait_readable(event.fd, ("guest event", event.serial)):
            if event.fd >= 0 and drain_eventfd(event.fd):
                self.signal(event.target)

    def _close_guest_event(self, event: _GuestEvent) -> None:
        self._guest_events.discard(event)
        fd, event.fd = event.fd, -1
        self._turns.close_descriptor(fd)


class _GuestEvent:
    """The eventfd behind a guest event port."""

    def __init__(self, target: GuestEventTarget, fd: int, serial: int) -> None:
        self.target = target
        self.serial = serial
        """Its place in the order of those that are readable at once."""
        self.fd = fd
        self.interrupt = Interrupt.from_event(fd)


class _Doorbell:
    """An eventfd in front of an event port, with the flags that are pending beside it."""

    def __init__(self, port: RegisteredPort, os_event: int | None, doorbells: dict[int, _Doorbell]) -> None:
        self.port = port
        self.context: Context = NO_CONTEXT
        # a descriptor of our own, because the consumer may close its one at any time
        self.fd = os.eventfd(0, EVENTFD_FLAGS) if os_event is None else os.dup(os_event)
        self._carries_flags = os_event is None
        self._pending: set[int] = set()
        self._doorbells = doorbells
        doorbells.setdefault(port.connection_id, self)

    def accepts(self, vtl: int, flag: int) -> bool:
        return vtl >= self.port.minimum_vtl and (self._carries_flags or flag == 0)

    def ring(self, flag: int, context: Context) -> None:
        self._pending.add(flag)
        self.context = context
        signal_eventfd(self.fd)

    def take(self) -> list[int]:
        if self.fd < 0 or not drain_eventfd(self.fd):
            return []
        flags, self._pending = sorted(self._pending), set()
        return flags

    def close(self) -> None:
        if self.fd < 0:
            return
        if self._doorbells.get(self.port.connection_id) is self:
            del self._doorbells[self.port.connection_id]
        fd, self.fd = self.fd, -1
        self._pending.clear()
        self.port.turns.close_descriptor(fd)
