"""What a VMBus server keeps of a partition for one connection: the event ports of its channels and the channel bitmap.

Versions 0.13 and 1.1 share one page of guest memory with the guest: bit n of its first half says that the host signals
channel n, bit n of its second half that the guest does. Later ones have an event flag and a connection for each channel.
"""

from __future__ import annotations

from broker.access import GuestEventPort, Interrupt, MonitorInfo, PortHandle, SynicPortAccess
from broker.hvdef import Vtl

from ..core.server.effects import OpenParams
from ..core.server.state import ServerConfig
from ..doorbell import Doorbell
from ..protocol.ids import EVENT_CONNECTION, VMBUS_SINT, event_port

HALF_PAGE = 2048
"""Bytes of the channel bitmap of one direction."""


class ChannelBitmap:
    """The interrupt page of a connection below 2.4. `interrupt` sets event flag 0."""

    def __init__(self, page: memoryview, interrupt: Interrupt) -> None:
        self._page = page
        self._interrupt = interrupt

    def signal_guest(self, channel_id: int) -> None:
        """Set the channel's bit in the first half, then event flag 0."""
        self._page[channel_id >> 3] |= 1 << (channel_id & 7)
        self._interrupt.deliver()

    def take_signalled(self) -> list[int]:
        """The channels whose bits the guest has set, in order; they are cleared, a 64-bit word at a time."""
        words = self._page[HALF_PAGE:].cast("Q")
        signalled = []
        for index, word in enumerate(words):
            if word:
                words[index] = 0
                signalled += [64 * index + bit for bit in range(64) if word >> bit & 1]
        return signalled


class ChannelPorts:
    """The event ports of one open channel. The guest's signals ring `doorbell`, `interrupt` signals the guest.

    A relayed channel whose ends signal each other directly has none: nobody rings, and `interrupt` signals nobody.
    """

    __slots__ = ("_guest_port", "_handle", "channel_id", "doorbell", "interrupt")

    def __init__(
        self,
        channel_id: int,
        handle: PortHandle | None,
        guest_port: GuestEventPort | None,
        doorbell: Doorbell,
        interrupt: Interrupt,
    ) -> None:
        self.channel_id = channel_id
        self._handle = handle
        self._guest_port = guest_port
        self.doorbell = doorbell
        self.interrupt = interrupt

    async def set_target_vp(self, vp: int) -> None:
        """Interrupts go to another processor."""
        if self._guest_port is not None:
            await self._guest_port.set_target_vp(vp)

    def close(self, reason: str) -> None:
        """The channel is closed: no more signals in either direction."""
        if self._handle is not None:
            self._handle.close()
        if self._guest_port is not None:
            self._guest_port.close()
        self.doorbell.close(reason)


class _SharedEventPort:
    """The one event connection of version 0.13: look at the bitmap."""

    def __init__(self, bitmap: ChannelBitmap, doorbells: dict[int, Doorbell]) -> None:
        self._bitmap = bitmap
        self._doorbells = doorbells

    async def handle_event(self, flag: int) -> None:
        for channel_id in self._bitmap.take_signalled():
            doorbell = self._doorbells.get(channel_id)
            if doorbell is not None:
                doorbell.ring()


class ServerPorts:
    """See the module. Ports are by offer."""

    def __init__(self, access: SynicPortAccess, config: ServerConfig) -> None:
        self._access = access
        self._config = config
        self._ports: dict[int, ChannelPorts] = {}
        self._doorbells: dict[int, Doorbell] = {}
        """By channel ID, for the bitmap."""
        self._bitmap: ChannelBitmap | None = None
        self._shared: list[PortHandle | GuestEventPort] = []

    def of(self, offer_id: int) -> ChannelPorts | None:
        """The ports of a channel, None where there are none."""
        return self._ports.get(offer_id)

    async def create(self, offer_id: int, channel_id: int, params: OpenParams, doorbell: Doorbell) -> None:
        """Make the ports of a channel, all or none. `HostError` or `ValueError` when one cannot be had."""
        if params.is_direct:
            self._ports[offer_id] = ChannelPorts(channel_id, None, None, doorbell, Interrupt.null())
            return
        monitor = None if params.monitor_id is None else MonitorInfo(params.monitor_id, params.monitor_latency)
        # Also of a server that redirects its messages: with a paravisor's guest below it speaks directly.
        handle = await self._access.add_event_port(params.connection_id, self._config.vtl, doorbell, monitor)
        try:
            guest_port, interrupt = await self._towards_guest(channel_id, params)
        except BaseException:
            handle.close()
            raise
        self._ports[offer_id] = ChannelPorts(channel_id, handle, guest_port, doorbell, interrupt)
        self._doorbells[channel_id] = doorbell

    async def _towards_guest(self, channel_id: int, params: OpenParams) -> tuple[GuestEventPort | None, Interrupt]:
        config, bitmap = self._config, self._bitmap
        if params.target_vp is None:
            return None, Interrupt.null()
        if bitmap is not None:
            return None, Interrupt.from_function(lambda: bitmap.signal_guest(channel_id))
        vtl, sint = (config.redirect_vtl, config.redirect_sint) if params.redirect else (config.vtl, VMBUS_SINT)
        port_id = event_port(channel_id, sint, vtl)
        port = await self._access.new_guest_event_port(port_id, vtl, params.target_vp, sint, params.event_flag)
        return port, port.interrupt()

    def destroy(self, offer_id: int, reason: str) -> None:
        """Close the ports of a channel; nothing happens where there are none."""
        ports = self._ports.pop(offer_id, None)
        if ports is not None:
            self._doorbells.pop(ports.channel_id, None)
            ports.close(reason)

    async def use_bitmap(self, page: memoryview) -> None:
        """The connection is below 2.4: signals go through this page. `HostError` when its connection ID is taken."""
        port = await self._access.new_guest_event_port(EVENT_CONNECTION, Vtl(self._config.vtl), 0, VMBUS_SINT, 0)
        self._bitmap = ChannelBitmap(page, port.interrupt())
        self._shared.append(port)
        shared = _SharedEventPort(self._bitmap, self._doorbells)
        self._shared.append(await self._access.add_event_port(EVENT_CONNECTION, self._config.vtl, shared))

    def drop_bitmap(self) -> None:
        """The connection is gone."""
        self._bitmap = None
        for port in self._shared:
            port.close()
        self._shared.clear()

    def close(self, reason: str) -> None:
        """The server has ended."""
        for offer_id in list(self._ports):
            self.destroy(offer_id, reason)
        self.drop_bitmap()
