"""`RefusingAccess`: a `SynicPortAccess` on which a seeded quarter of all posts is refused, as a busy SynIC may do.

A guest's refused post gets INSUFFICIENT_BUFFERS and does not reach the port; a host's `try_post_message` is False and
nothing is posted. `post_message` waits and is never refused, nor is a signal. Everything else passes through.
"""

from __future__ import annotations

import random

from broker import (
    EventPort,
    GuestEventPort,
    GuestMessagePort,
    HvStatus,
    MessagePort,
    MonitorInfo,
    PortHandle,
    SynicMonitorAccess,
    SynicPortAccess,
    Vtl,
)


class RefusingAccess:
    """See the module. One in `share` posts is refused, drawn from `seed`."""

    def __init__(self, inner: SynicPortAccess, seed: int, share: int = 4) -> None:
        self._inner = inner
        self._random = random.Random(seed)
        self._share = share

    def refuses(self) -> bool:
        """Draw: is this post one of the refused?"""
        return self._random.randrange(self._share) == 0

    @property
    def prefer_os_events(self) -> bool:
        return self._inner.prefer_os_events

    @property
    def monitor_support(self) -> SynicMonitorAccess | None:
        return self._inner.monitor_support

    async def add_message_port(self, connection_id: int, minimum_vtl: Vtl, port: MessagePort) -> PortHandle:
        return await self._inner.add_message_port(connection_id, minimum_vtl, _RefusingPort(self, port))

    async def add_event_port(
        self,
        connection_id: int,
        minimum_vtl: Vtl,
        port: EventPort,
        monitor_info: MonitorInfo | None = None,
        *,
        os_event: int | None = None,
    ) -> PortHandle:
        return await self._inner.add_event_port(connection_id, minimum_vtl, port, monitor_info, os_event=os_event)

    async def new_guest_message_port(self, vtl: Vtl, vp: int, sint: int) -> GuestMessagePort:
        return _RefusingGuestPort(self, await self._inner.new_guest_message_port(vtl, vp, sint))

    async def new_guest_event_port(
        self, port_id: int, vtl: Vtl, vp: int, sint: int, flag: int, monitor_info: MonitorInfo | None = None
    ) -> GuestEventPort:
        return await self._inner.new_guest_event_port(port_id, vtl, vp, sint, flag, monitor_info)

    async def wait_reset(self) -> None:
        await self._inner.wait_reset()


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
