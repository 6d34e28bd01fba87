"""The synthetic mouse, host side: a HID device with absolute coordinates (vmbus.md 8.7).

    mouse = MouseDevice()
    async with serve_devices(server, mouse):
        await mouse.move(16384, 16384)
        await mouse.click()

It will: answer each protocol request, accepted for version 2.0 and refused for any other; say what it is once accepted,
and send reports once the guest has acknowledged that. It will not: know the size of a screen.

The calls return once their reports are queued. A guest that stops reading fills its ring, then a queue of `depth`
reports, then the calls wait. Reports that a guest has not taken when it closes, or asks for a version again, are dropped.
A guest that breaks a rule (another message, one out of order, packets of other types) loses its channel.
"""

from __future__ import annotations

from uuid import UUID

from broker.access import Turns
from broker.errors import ProtocolError

from ...core.server.offer_params import OfferParams
from ...pipe import MessagePipe
from ...protocol.ids import MOUSE
from ...protocol.input.mouse import (
    MAX_POSITION,
    MAX_WHEEL,
    MOUSE_INSTANCE,
    MOUSE_VERSION,
    MouseButton,
    MouseDeviceInfo,
    MouseDeviceInfoAck,
    MouseInputReport,
    MouseMessage,
    MouseReport,
    MouseRequest,
    MouseResponse,
    parse_mouse_guest,
)
from ..device import Device, DeviceChannel
from .queue import QUEUE_DEPTH, InputQueue


class MouseDevice(Device):
    """See the module. Its methods may be called from any host task; they wait until a guest listens."""

    def __init__(self, instance_id: UUID = MOUSE_INSTANCE, *, depth: int = QUEUE_DEPTH) -> None:
        """`depth`: reports that wait for a guest that does not read, beyond those that its ring takes."""
        self.offer = OfferParams.device(MOUSE, instance_id, pipe_packets=True)
        self.state = MouseReport()
        """Buttons and position as last queued; its wheel is 0. No button is down when a guest opens the channel."""
        self._queue = InputQueue("mouse", depth)

    def attached(self, turns: Turns) -> None:
        """See `Device.attached`."""
        self._queue.attach(turns)

    def detached(self) -> None:
        """See `Device.detached`."""
        self._queue.detach()

    # for host tasks

    @property
    def is_ready(self) -> bool:
        """A guest listens."""
        return self._queue.is_ready

    async def wait_ready(self) -> None:
        """Wait until a guest listens. `HostError` for a mouse that nobody serves yet, as from all that wait here."""
        await self._queue.wait_ready()

    async def move(self, x: int, y: int) -> None:
        """Go to this place, 0 to 32767 on both axes whatever the screen's size: left to right, top to bottom.

        `ValueError` for any other.
        """
        for name, value in (("x", x), ("y", y)):
            if not 0 <= value <= MAX_POSITION:
                raise ValueError(f"{name} is 0 to {MAX_POSITION}, not {value}")
        await self._queue.wait_room(1)
        self._report(MouseReport(self.state.buttons, x, y))

    async def press(self, button: MouseButton = MouseButton.LEFT) -> None:
        """A button goes down. `ValueError` for one that there is not."""
        button = MouseButton(button)
        await self._queue.wait_room(1)
        self._press(button)

    async def release(self, button: MouseButton = MouseButton.LEFT) -> None:
        """A button goes up; as in `press`."""
        button = MouseButton(button)
        await self._queue.wait_room(1)
        self._release(button)

    async def click(self, button: MouseButton = MouseButton.LEFT) -> None:
        """A button goes down and up, with nothing in between; as in `press`."""
        button = MouseButton(button)
        await self._queue.wait_room(2)
        self._press(button)
        self._release(button)

    async def scroll(self, steps: int) -> None:
        """Turn the wheel, away from the user for a positive number. `ValueError` for more than 32767 either way."""
        if abs(steps) > MAX_WHEEL:
            raise ValueError(f"one report has up to {MAX_WHEEL} steps of the wheel either way, not {steps}")
        await self._queue.wait_room(1)
        self._report(MouseReport(self.state.buttons, self.state.x, self.state.y, steps))

    def _press(self, button: MouseButton) -> None:
        self._report(MouseReport(self.state.buttons | 1 << button, self.state.x, self.state.y))

    def _release(self, button: MouseButton) -> None:
        self._report(MouseReport(self.state.buttons & ~(1 << button), self.state.x, self.state.y))

    def _report(self, report: MouseReport) -> None:
        self.state = MouseReport(report.buttons, report.x, report.y)
        self._queue.add(MouseInputReport(report.pack()).pack())

    # the channel

    async def run(self, channel: DeviceChannel) -> None:
        """Request, response, device info, ack; then reports, until the guest asks again."""
        self.state = MouseReport(0, self.state.x, self.state.y)
        pipe = MessagePipe(channel)
        message = parse_mouse_guest(await pipe.receive())
        while True:
            if not isinstance(message, MouseRequest):
                raise ProtocolError("mouse message", 0, "a protocol request (0)", f"type {message.TYPE}")
            is_accepted = message.version == MOUSE_VERSION
            answers: list[MouseMessage] = [MouseResponse(message.version, int(is_accepted))]
            if is_accepted:
                answers.append(MouseDeviceInfo())
            await pipe.send_batch([answer.pack() for answer in answers])
            message = parse_mouse_guest(await pipe.receive())
            if is_accepted and isinstance(message, MouseDeviceInfoAck):
                async with self._queue.flowing(channel, pipe.send_batch):
                    message = parse_mouse_guest(await pipe.receive())
