"""Wrappers around `SynicPortAccess`: what a busy or broken host does to those who post to it, and to those it posts to."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

from broker.access import (
    EventPort,
    GuestEventPort,
    GuestMessagePort,
    MessagePort,
    MonitorInfo,
    PortHandle,
    SynicMonitorAccess,
    SynicPortAccess,
    Turns,
)
from broker.hvdef import HvStatus, Vtl

Strikes = Callable[[], bool]
"""Says, each time it is asked, whether the fault strikes now."""

BeforeHandler = Callable[[int, Turns], Awaitable[None]]
"""(connection ID, where to wait): what happens before a port's handler runs."""


class AccessWrapper:
    """A `SynicPortAccess` over another one; subclasses change what they want to."""

    def __init__(self, inner: SynicPortAccess) -> None:
        self._inner = inner

    @property
    def prefer_os_events(self) -> bool:
        """See `SynicPortAccess`, here and below."""
        return self._inner.prefer_os_events

    @property
    def monitor_support(self) -> SynicMonitorAccess | None:
        """See there."""
        return self._inner.monitor_support

    async def add_message_port(self, connection_id: int, minimum_vtl: Vtl, port: MessagePort) -> PortHandle:
        """See there."""
        return await self._inner.add_message_port(connection_id, minimum_vtl, port)

    async def add_event_port(
        self,
        connection_id: int,
        minimum_vtl: Vtl,
        port: EventPort,
        monitor_info: MonitorInfo | None = None,
        *,
        os_event: int | None = None,
    ) -> PortHandle:
        """See there."""
        return await self._inner.add_event_port(connection_id, minimum_vtl, port, monitor_info, os_event=os_event)

    async def new_guest_message_port(self, vtl: Vtl, vp: int, sint: int) -> GuestMessagePort:
        """See there."""
        return await self._inner.new_guest_message_port(vtl, vp, sint)

    async def new_guest_event_port(
        self, port_id: int, vtl: Vtl, vp: int, sint: int, flag: int, monitor_info: MonitorInfo | None = None
    ) -> GuestEventPort:
        """See there."""
        return await self._inner.new_guest_event_port(port_id, vtl, vp, sint, flag, monitor_info)

    async def wait_reset(self) -> None:
        """See there."""
        await self._inner.wait_reset()


class RefusingAccess(AccessWrapper):
    """Refuses a share of all posts, as a busy SynIC may do.

    A guest's refused post gets INSUFFICIENT_BUFFERS and does not reach the port; a host's `try_post_message` is False and
    nothing is posted. `post_message` waits and is never refused, nor is a signal.
    """

    def __init__(self, inner: SynicPortAccess, refuses: Strikes | int, share: int = 4) -> None:
        """`refuses` says of each post whether it is refused; or a seed, from which one in `share` is drawn."""
        super().__init__(inner)
        if isinstance(refuses, int):
            draws = random.Random(refuses)
            self.refuses: Strikes = lambda: draws.randrange(share) == 0
        else:
            self.refuses = refuses

    async def add_message_port(self, connection_id: int, minimum_vtl: Vtl, port: MessagePort) -> PortHandle:
        """With a port that refuses."""
        return await super().add_message_port(connection_id, minimum_vtl, _RefusingPort(self, port))

    async def new_guest_message_port(self, vtl: Vtl, vp: int, sint: int) -> GuestMessagePort:
        """One that refuses."""
        return _RefusingGuestPort(self, await super().new_guest_message_port(vtl, vp, sint))


class HandlerAccess(AccessWrapper):
    """Something happens before each handler of a port runs: it takes its time, or crashes."""

    def __init__(self, inner: SynicPortAccess, before: BeforeHandler) -> None:
        super().__init__(inner)
        self._before = before

    async def add_message_port(self, connection_id: int, minimum_vtl: Vtl, port: MessagePort) -> PortHandle:
        """With such a handler."""
        late = _LatePort(port, None, connection_id, self._before)
        handle = await super().add_message_port(connection_id, minimum_vtl, late)
        late.turns = handle.turns
        return handle

    async def add_event_port(
        self,
        connection_id: int,
        minimum_vtl: Vtl,
        port: EventPort,
        monitor_info: MonitorInfo | None = None,
        *,
        os_event: int | None = None,
    ) -> PortHandle:
        """With such a handler; an eventfd that the backend signals itself is out of reach."""
        late = _LatePort(None, port, connection_id, self._before)
        handle = await super().add_event_port(connection_id, minimum_vtl, late, monitor_info, os_event=os_event)
        late.turns = handle.turns
        return handle


class _RefusingPort:
    def __init__(self, access: RefusingAccess, inner: MessagePort) -> None:
        self._access = access
        self._inner = inner

    async def handle_message(self, message: bytes, trusted: bool) -> HvStatus:
        if self._access.refuses():
            return HvStatus.INSUFFICIENT_BUFFERS
        return await self._inner.handle_message(message, trusted)


class _RefusingGuestPort:
    def __init__(self, access: RefusingAccess, inner: GuestMessagePort) -> None:
        self._access = access
        self._inner = inner

    def try_post_message(self, message_type: int, payload: bytes) -> bool:
        return not self._access.refuses() and self._inner.try_post_message(message_type, payload)

    async def post_message(self, message_type: int, payload: bytes) -> None:
        await self._inner.post_message(message_type, payload)

    async def set_target_vp(self, vp: int) -> None:
        await self._inner.set_target_vp(vp)

    def close(self) -> None:
        self._inner.close()


class _LatePort:
    """A message port, or an event port."""

    def __init__(
        self, messages: MessagePort | None, events: EventPort | None, connection_id: int, before: BeforeHandler
    ) -> None:
        self._messages = messages
        self._events = events
        self._connection_id = connection_id
        self._before = before
        self.turns: Turns | None = None
        """Known once the port is registered."""

    async def handle_message(self, message: bytes, trusted: bool) -> HvStatus:
        assert self._messages is not None
        await self._begin()
        return await self._messages.handle_message(message, trusted)

    async def handle_event(self, flag: int) -> None:
        assert self._events is not None
        await self._begin()
        await self._events.handle_event(flag)

    async def _begin(self) -> None:
        if self.turns is not None:
            await self._before(self._connection_id, self.turns)
