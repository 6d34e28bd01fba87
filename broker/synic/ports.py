"""`SynicPorts`: adapts any `Synic` to the contract, `SynicPortAccess`. The partition builds one and hands it out."""

from __future__ import annotations

from ..access import (
    EventPort,
    GuestEventPort,
    GuestMessagePort,
    MessagePort,
    MonitorInfo,
    PortHandle,
    SynicMonitorAccess,
)
from ..core import QueuedMessage
from ..errors import PortClosed
from ..hvdef import EVENT_FLAGS_PER_SINT, MAX_PAYLOAD, SINT_COUNT, Vtl
from ..interrupt import Interrupt, check_eventfd
from ..trace import Trace
from .backend import GuestEventTarget, Synic
from .host_posts import WaitingPost


class SynicPorts:
    """See the module."""

    def __init__(self, synic: Synic) -> None:
        self._synic = synic

    @property
    def prefer_os_events(self) -> bool:
        """True: hand in an eventfd as `os_event` where you can."""
        return self._synic.prefer_os_events

    @property
    def monitor_support(self) -> SynicMonitorAccess | None:
        """Monitored notifications, None where the backend has none."""
        return self._synic.monitor

    async def add_message_port(self, connection_id: int, minimum_vtl: Vtl, port: MessagePort) -> PortHandle:
        """See `SynicPortAccess.add_message_port`."""
        self._synic.check_open()
        port_map = self._synic.port_map
        entry = port_map.new_message_port(connection_id, minimum_vtl, port)
        port_map.insert(entry)
        return entry

    async def add_event_port(
        self,
        connection_id: int,
        minimum_vtl: Vtl,
        port: EventPort,
        monitor_info: MonitorInfo | None = None,
        *,
        os_event: int | None = None,
    ) -> PortHandle:
        """See `SynicPortAccess.add_event_port`. The eventfd is live before the map entry, the monitor comes last."""
        synic = self._synic
        synic.check_open()
        if os_event is not None:
            check_eventfd(os_event)
        entry = synic.port_map.new_event_port(connection_id, minimum_vtl, port)
        host_port = synic.new_host_event_port(entry, os_event)
        try:
            synic.port_map.insert(entry)
            if host_port is not None:
                entry.on_close(host_port.close)
            if monitor_info is not None and synic.monitor is not None:
                page = synic.monitor.page
                page.register(monitor_info.monitor_id, connection_id)
                entry.on_close(lambda: page.unregister(monitor_info.monitor_id))
        except BaseException:
            entry.close()
            if host_port is not None:
                host_port.close()
            raise
        return entry

    async def new_guest_message_port(self, vtl: Vtl, vp: int, sint: int) -> GuestMessagePort:
        """See `SynicPortAccess.new_guest_message_port`."""
        _check_sint(sint)
        self._synic.check_open()
        return _GuestMessagePort(self._synic, Vtl(vtl), vp, sint)

    async def new_guest_event_port(
        self, port_id: int, vtl: Vtl, vp: int, sint: int, flag: int, monitor_info: MonitorInfo | None = None
    ) -> GuestEventPort:
        """See `SynicPortAccess.new_guest_event_port`. `port_id` and `monitor_info` matter to in-hypervisor ports only."""
        _check_sint(sint)
        if not 0 <= flag < EVENT_FLAGS_PER_SINT:
            raise ValueError(f"event flag {flag} does not exist, a SINT has flags 0 to {EVENT_FLAGS_PER_SINT - 1}")
        self._synic.check_open()
        return _GuestEventPort(self._synic, GuestEventTarget(Vtl(vtl), vp, sint, flag))

    async def wait_reset(self) -> None:
        """See `SynicPortAccess.wait_reset`."""
        await self._synic.wait_reset()


class _GuestMessagePort:
    def __init__(self, synic: Synic, vtl: Vtl, vp: int, sint: int) -> None:
        self._synic = synic
        self._vtl = vtl
        self._vp = vp
        self._sint = sint
        self._waiting: set[WaitingPost] = set()
        self._is_open = True

    def try_post_message(self, message_type: int, payload: bytes) -> bool:
        return self._synic.try_post(self._vtl, self._vp, self._sint, self._message(message_type, payload))

    async def post_message(self, message_type: int, payload: bytes) -> None:
        message = self._message(message_type, payload)
        await self._synic.post(self._vtl, self._vp, self._sint, message, self._waiting)

    async def set_target_vp(self, vp: int) -> None:
        self._vp = vp

    def close(self) -> None:
        self._is_open = False
        for waiting in self._waiting:
            waiting.fail(self._closed_reason())

    def _message(self, message_type: int, payload: bytes) -> QueuedMessage:
        if not self._is_open:
            raise PortClosed(self._closed_reason())
        if len(payload) > MAX_PAYLOAD:
            raise ValueError(f"a message holds {MAX_PAYLOAD} bytes of payload, {len(payload)} do not fit")
        if not 0 < message_type <= 0xFFFF_FFFF:
            raise ValueError(
                f"message type {message_type:#x} cannot be posted; a type is 32 bits and 0 marks an empty slot"
            )
        trace = self._synic.port_map.trace
        flow = 0 if trace is None else Trace.context()[1] or trace.new_flow()
        return QueuedMessage(message_type, bytes(payload), flow=flow)

    def _closed_reason(self) -> str:
        return f"the guest message port to processor {self._vp}, SINT {self._sint} is closed"


class _GuestEventPort:
    __slots__ = ("_interrupt", "_target")

    def __init__(self, synic: Synic, target: GuestEventTarget) -> None:
        self._target = target
        self._interrupt = synic.new_guest_event(target)

    def interrupt(self) -> Interrupt:
        return self._interrupt.clone()

    async def set_target_vp(self, vp: int) -> None:
        self._target.vp = vp

    def close(self) -> None:
        self._target.is_open = False
        self._interrupt.disconnect()


def _check_sint(sint: int) -> None:
    if not 0 <= sint < SINT_COUNT:
        raise ValueError(f"SINT {sint} does not exist, a SynIC has SINT 0 to {SINT_COUNT - 1}")
