"""The synthetic keyboard, host side (vmbus.md 8.6).

    keyboard = KeyboardDevice()
    async with serve_devices(server, keyboard):
        await keyboard.type("root\\n")
        await keyboard.wait_leds(Leds.CAPS_LOCK)

It will: answer each protocol request, 1 for version 1.0 and 0 for any other, and then wait for another one; let keys wait
until a guest has asked for 1.0; complete what asks for it. It will not: repeat a key that is held, or
remember over a save and restore what the guest had asked for.

Keys are events in order: the calls return once theirs are queued. A guest that stops reading fills its ring, then a queue
of `depth` events, then the calls wait. Events that a guest has not taken when it closes, or asks for a version again, are
dropped. A guest that breaks a rule (another message, LEDs before an accepted request, packets of other types) loses its
channel.
"""

from __future__ import annotations

from contextlib import nullcontext
from uuid import UUID

from broker.access import Turns, Wakeup
from broker.errors import ProtocolError

from ...core.server.offer_params import OfferParams
from ...protocol.ids import KEYBOARD
from ...protocol.input.keyboard import (
    KEYBOARD_INSTANCE,
    KEYBOARD_VERSION,
    KeyboardLeds,
    KeyboardRequest,
    KeyboardResponse,
    KeyEvent,
    KeyFlags,
    Leds,
    parse_keyboard_guest,
)
from ...protocol.input.scancodes import LEFT_SHIFT, STROKES
from ...protocol.packet import PacketType
from ..device import Device, DeviceChannel
from .queue import QUEUE_DEPTH, InputQueue


class KeyboardDevice(Device):
    """See the module. Its methods may be called from any host task; they wait until a guest listens."""

    def __init__(self, instance_id: UUID = KEYBOARD_INSTANCE, *, depth: int = QUEUE_DEPTH) -> None:
        """`depth`: events that wait for a guest that does not read, beyond those that its ring takes."""
        self.offer = OfferParams.device(KEYBOARD, instance_id)
        self.leds = Leds(0)
        """Lights, as the guest last set them; off when it opens the channel."""
        self._queue = InputQueue("keyboard", depth)
        self._leds_set = 0
        """How often the guest has set them."""
        self._leds_changed: Wakeup

    def attached(self, turns: Turns) -> None:
        """See `Device.attached`."""
        self._queue.attach(turns)
        self._leds_changed = turns.wakeup(("keyboard-leds", 0))

    def detached(self) -> None:
        """See `Device.detached`."""
        self._queue.detach()
        self._leds_changed.notify()

    # for host tasks

    @property
    def is_ready(self) -> bool:
        """A guest listens."""
        return self._queue.is_ready

    async def wait_ready(self) -> None:
        """Wait until a guest listens. `HostError` for a keyboard that nobody serves yet, as from all that wait here."""
        await self._queue.wait_ready()

    async def press(self, code: int, *, extended: bool = False, unicode: bool = False) -> None:
        """A key goes down: a make code of set 1, `extended` with the prefix 0xE0, or the UTF-16 code unit `unicode`.

        `ValueError` for a code over 16 bits.
        """
        await self.send(_event(code, extended, unicode))

    async def release(self, code: int, *, extended: bool = False, unicode: bool = False) -> None:
        """A key goes up; as in `press`."""
        await self.send(_event(code, extended, unicode, KeyFlags.BREAK))

    async def key(self, code: int, *, extended: bool = False, unicode: bool = False) -> None:
        """A key goes down and up; as in `press`."""
        await self.send(*_stroke(code, extended, unicode))

    async def type(self, text: str, *, unicode: bool = False) -> None:
        """Type a text: what a US keyboard has by its scan codes, anything else, or everything, as Unicode events.

        Linux takes no Unicode events.
        """
        for character in text:
            await self.send(*_typed(character, unicode))

    async def send(self, *events: KeyEvent) -> None:
        """Queue events with nothing in between, whatever they say."""
        await self._queue.put(*(event.pack() for event in events))

    async def wait_leds(self, leds: Leds | None = None) -> Leds:
        """Wait until the lights are these; where none are named, until the guest next sets them."""
        seen = self._leds_set
        while self._leds_set == seen if leds is None else self.leds != leds:
            if self.is_ready:
                await self._leds_changed.wait()
            else:
                await self._queue.wait_ready()
        return self.leds

    # the channel

    async def run(self, channel: DeviceChannel) -> None:
        """Answer requests; in between, once one was accepted, send keys and take LEDs."""
        self.leds = Leds(0)
        self._leds_changed.notify()
        is_accepted = False
        while True:
            async with self._queue.flowing(channel, channel.send_batch) if is_accepted else nullcontext():
                request = await self._next_request(channel, takes_leds=is_accepted)
            is_accepted = request.version == KEYBOARD_VERSION
            await channel.send(KeyboardResponse(int(is_accepted)).pack())

    async def _next_request(self, channel: DeviceChannel, *, takes_leds: bool) -> KeyboardRequest:
        while True:
            packet = await channel.receive()
            if packet.packet_type is not PacketType.IN_BAND:
                raise ProtocolError("keyboard", 0, "a packet of plain data", f"one of type {packet.packet_type:#x}")
            message = parse_keyboard_guest(packet.payload)
            if isinstance(message, KeyboardLeds):
                if not takes_leds:
                    raise ProtocolError("keyboard message", 0, "a protocol request (1) that is accepted first", "LEDs")
                self._set_leds(Leds(message.leds))
            await channel.complete(packet)
            if isinstance(message, KeyboardRequest):
                return message

    def _set_leds(self, leds: Leds) -> None:
        self.leds = leds
        self._leds_set += 1
        self._leds_changed.notify()


def _event(code: int, extended: bool, unicode: bool, flags: int = 0) -> KeyEvent:
    if extended:
        flags |= KeyFlags.E0
    if unicode:
        flags |= KeyFlags.UNICODE
    return KeyEvent.of(code, flags)


def _stroke(code: int, extended: bool, unicode: bool) -> tuple[KeyEvent, KeyEvent]:
    """Down and up."""
    return _event(code, extended, unicode), _event(code, extended, unicode, KeyFlags.BREAK)


def _typed(character: str, unicode: bool) -> list[KeyEvent]:
    """The events of one character."""
    stroke = None if unicode else STROKES.get(character)
    if stroke is not None:
        events = list(_stroke(stroke.code, False, False))
        shift = _stroke(LEFT_SHIFT, False, False)
        return [shift[0], *events, shift[1]] if stroke.is_shifted else events
    units = character.encode("utf-16-le", "surrogatepass")
    return [
        event
        for start in range(0, len(units), 2)
        for event in _stroke(int.from_bytes(units[start : start + 2], "little"), False, True)
    ]
