"""Keyboard and mouse, the guest's side: they negotiate as Linux does, then events wait to be taken.

    keyboard = KeyboardDriver()
    async with VmbusClient(synic) as client, run_drivers(client, keyboard):
        async for event in keyboard:
            ...

It will: ask for one version after the other until the host accepts one; keep up to `depth` events, and read no more until
some are taken, so that the host waits. It will not: believe a host. One that breaks a rule ends the driver with
`ProtocolError`, one that accepts no version with `ChannelClosed`. Who waits for an event then gets `ChannelClosed`, after
the events that the driver has kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Generic, Self, TypeVar
from uuid import UUID

import anyio
import msgspec

from broker.access import Turns, Wakeup
from broker.errors import ChannelClosed, HostError, PeerError, ProtocolError

from ..client import GuestChannel
from ..pipe import MessagePipe
from ..protocol.ids import KEYBOARD, MOUSE
from ..protocol.input.hid import ReportLayout, Usage, parse_report_descriptor
from ..protocol.input.keyboard import (
    KEYBOARD_VERSION,
    KeyboardLeds,
    KeyboardRequest,
    KeyboardResponse,
    KeyEvent,
    Leds,
    parse_keyboard_host,
)
from ..protocol.input.mouse import (
    MOUSE_VERSION,
    MouseButton,
    MouseDeviceInfo,
    MouseDeviceInfoAck,
    MouseInputReport,
    MouseRequest,
    MouseResponse,
    parse_mouse_host,
)
from ..protocol.packet import Packet, PacketType
from .framework import Driver

EVENT_DEPTH = 64
"""Events that a driver keeps until they are taken."""
LINUX_RING_PAGES = (10, 10)
"""Rings of 36 KiB and a control page, as Linux has them."""
MOST_BUTTONS = 32

T = TypeVar("T")


class MouseEvent(msgspec.Struct, frozen=True):
    """What one report says. Positions have the limits of the device's report descriptor."""

    buttons: int
    """Bit n: button n is down; see `MouseButton`."""
    x: int
    y: int
    wheel: int
    """Steps since the last report."""

    def is_down(self, button: MouseButton) -> bool:
        """This button is held."""
        return bool(self.buttons >> button & 1)


class InputDriver(Driver, Generic[T]):
    """What both drivers share: events, for any guest task to take."""

    ring_pages = LINUX_RING_PAGES
    what = "input device"
    versions: tuple[int, ...]

    def __init__(
        self, *, instance_id: UUID | None = None, versions: Sequence[int] | None = None, depth: int = EVENT_DEPTH
    ) -> None:
        """`versions`: to ask for, in this order; the one there is unless given. `depth`: events that are kept."""
        if depth < 1:
            raise ValueError(f"a driver keeps at least one event, not {depth}")
        self.instance_id = instance_id
        if versions is not None:
            self.versions = tuple(versions)
        self.version: int | None = None
        """What the host has accepted, None while there is no host to listen to."""
        self.end_reason: str | None = None
        """Why the driver has ended, None before."""
        self._depth = depth
        self._events: deque[T] = deque()
        self._turns: Turns | None = None
        self._came: Wakeup
        self._taken: Wakeup

    def attached(self, turns: Turns) -> None:
        """See `Driver.attached`."""
        self._turns = turns
        self._came = turns.wakeup((f"{self.what}-events", 0))
        self._taken = turns.wakeup((f"{self.what}-room", 0))
        self.end_reason = None
        self._events.clear()

    async def wait_ready(self) -> None:
        """Wait until the host has accepted a version. `ChannelClosed` when it does not, `HostError` when nobody runs this."""
        self._check_attached()
        while self.version is None:
            self._check()
            await self._came.wait()

    async def next_event(self) -> T:
        """The next event. `ChannelClosed` once the driver has ended, `HostError` when nobody runs it."""
        self._check_attached()
        while not self._events:
            self._check()
            await self._came.wait()
        event = self._events.popleft()
        self._taken.notify()
        return event

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        try:
            return await self.next_event()
        except ChannelClosed:
            raise StopAsyncIteration from None

    async def run(self, channel: GuestChannel) -> None:
        """Negotiate, then take events until the channel ends."""
        try:
            await self.drive(channel)
        except (HostError, PeerError) as error:
            self.end_reason = str(error)
            raise
        except anyio.BrokenResourceError as error:
            self.end_reason = str(error.__cause__)
            raise

    def ended(self) -> None:
        """See `Driver.ended`: whoever waits for an event hears of it."""
        self.version = None
        if self.end_reason is None:
            self.end_reason = f"the {self.what}'s driver has ended"
        self._came.notify()

    async def drive(self, channel: GuestChannel) -> None:
        """The conversation."""
        raise NotImplementedError

    def ready(self, version: int) -> None:
        """The host has accepted this."""
        self.version = version
        self._came.notify()

    def refused(self) -> ChannelClosed:
        """The host has accepted nothing."""
        asked = ", ".join(f"{version >> 16}.{version & 0xFFFF}" for version in self.versions)
        return ChannelClosed(f"the host's {self.what} accepts none of the versions {asked}")

    async def keep(self, events: Sequence[T]) -> None:
        """Keep these until they are taken, waiting for room."""
        kept = 0
        while kept < len(events):
            room = self._depth - len(self._events)
            if not room:
                await self._taken.wait()
                continue
            self._events += events[kept : kept + room]
            kept += room
            self._came.notify()

    def _check(self) -> None:
        if self.end_reason is not None:
            raise ChannelClosed(self.end_reason)

    def _check_attached(self) -> None:
        if self._turns is None:
            raise HostError(f"nobody runs this {self.what}'s driver yet; use it within the block of run_drivers")


class KeyboardDriver(InputDriver[KeyEvent]):
    """See the module. Requests ask for a completion, which is not waited for (Linux)."""

    interface_id = KEYBOARD
    what = "keyboard"
    versions = (KEYBOARD_VERSION,)

    _channel: GuestChannel | None = None

    async def set_leds(self, leds: Leds) -> None:
        """Switch lights, once there is a keyboard. `ChannelClosed` when the driver has ended."""
        await self.wait_ready()
        assert self._channel is not None
        await self._channel.send(KeyboardLeds(int(leds)).pack())

    async def drive(self, channel: GuestChannel) -> None:
        """Request until accepted; then events."""
        self._channel = channel
        self.ready(await self._negotiate(channel))
        while True:
            events = []
            for packet in await channel.receive_batch():
                message = _message(packet)
                if isinstance(message, KeyboardResponse):
                    raise ProtocolError("keyboard message", 0, "an event (3)", "a response that was not asked for")
                if message is not None:
                    events.append(message)
            await self.keep(events)

    async def _negotiate(self, channel: GuestChannel) -> int:
        for number, version in enumerate(self.versions, 1):
            await channel.send(KeyboardRequest(version).pack(), number, completion=True)
            while (message := _message(await channel.receive())) is None:
                pass
            if not isinstance(message, KeyboardResponse):
                raise ProtocolError("keyboard message", 0, "a protocol response (2)", "an event")
            if message.is_accepted:
                return version
        raise self.refused()


class MouseDriver(InputDriver[MouseEvent]):
    """See the module. Reports are read as the device's own report descriptor lays them out."""

    interface_id = MOUSE
    what = "mouse"
    versions = (MOUSE_VERSION,)

    info: MouseDeviceInfo | None = None
    """What the device says of itself, None before."""

    async def drive(self, channel: GuestChannel) -> None:
        """Request until accepted, acknowledge the device info; then reports."""
        pipe = MessagePipe(channel)
        version = await self._negotiate(pipe)
        info = parse_mouse_host(await pipe.receive())
        if not isinstance(info, MouseDeviceInfo):
            raise ProtocolError("mouse message", 0, "device info (2)", f"type {info.TYPE}")
        layout = parse_report_descriptor(info.report_descriptor)
        await pipe.send(MouseDeviceInfoAck().pack())
        self.info = info
        self.ready(version)
        event = MouseEvent(0, 0, 0, 0)
        while True:
            events = []
            for data in await pipe.receive_batch():
                message = parse_mouse_host(data)
                if not isinstance(message, MouseInputReport):
                    raise ProtocolError("mouse message", 0, "an input report (4)", f"type {message.TYPE}")
                event = _read_report(layout, message.report, event)
                events.append(event)
            await self.keep(events)

    async def _negotiate(self, pipe: MessagePipe) -> int:
        for version in self.versions:
            await pipe.send(MouseRequest(version).pack())
            message = parse_mouse_host(await pipe.receive())
            if not isinstance(message, MouseResponse):
                raise ProtocolError("mouse message", 0, "a protocol response (1)", f"type {message.TYPE}")
            if message.version != version:
                raise ProtocolError("mouse message", 8, f"version {version:#010x}", f"{message.version:#010x}")
            if message.accepted:
                return version
        raise self.refused()


def _message(packet: Packet) -> KeyboardResponse | KeyEvent | None:
    """What a packet of the keyboard's says; None for a completion, which says nothing."""
    if packet.packet_type is PacketType.COMPLETION:
        return None
    if packet.packet_type is not PacketType.IN_BAND:
        raise ProtocolError("keyboard", 0, "a packet of plain data", f"one of type {packet.packet_type:#x}")
    return parse_keyboard_host(packet.payload)


def _read_report(layout: ReportLayout, report: bytes, last: MouseEvent) -> MouseEvent:
    """What a report says; what it does not say of buttons and position is as it was."""
    values = layout.values(report)
    buttons = last.buttons
    for number in range(MOST_BUTTONS):
        value = values.get(Usage.BUTTONS + 1 + number)
        if value is not None:
            buttons = buttons | 1 << number if value else buttons & ~(1 << number)
    x, y = values.get(Usage.X, last.x), values.get(Usage.Y, last.y)
    return MouseEvent(buttons, x, y, values.get(Usage.WHEEL, 0))
