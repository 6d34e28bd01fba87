"""Messages of the synthetic keyboard (vmbus.md 8.6; Linux `hyperv-keyboard.c`).

Raw packets of plain data, no pipe header. Each message is a u32 type and a body, 256 bytes at most, all little-endian:

| type | from | body | bytes |
|---|---|---|---|
| 1 protocol request | guest | u32 version, 0x00010000 | 8 |
| 2 protocol response | host | u32, bit 0: accepted | 8 |
| 3 event | host | u16 make code, u16 0, u32 flags | 12 |
| 4 LEDs | guest | u16 flags, u16 0 | 8 |

The guest requests after its open, the host answers; a guest that was refused may request again. Then events.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import Annotated, ClassVar, Self
from uuid import UUID

from broker.errors import ProtocolError

from ..wire import At, Wire

KEYBOARD_INSTANCE = UUID("d34b2567-b9b6-42b9-8778-0a4ec0b955bf")
"""The well-known keyboard."""
KEYBOARD_VERSION = 0x0001_0000
"""The only version: 1.0."""
MAX_KEYBOARD_MESSAGE = 256

_TYPE = struct.Struct("<I")


class KeyboardMessageType(IntEnum):
    """The number at the start of every message."""

    PROTOCOL_REQUEST = 1
    PROTOCOL_RESPONSE = 2
    EVENT = 3
    SET_LEDS = 4


class KeyFlags(IntFlag):
    """What a key event is about. Unknown bits are kept."""

    UNICODE = 1
    """The make code is a UTF-16 code unit, not a scan code."""
    BREAK = 2
    """The key goes up."""
    E0 = 4
    """The scan code has the prefix 0xE0: an extended key."""
    E1 = 8
    """The scan code has the prefix 0xE1: Pause."""


class Leds(IntFlag):
    """Lights of the keyboard, by the bits that Windows gives them (`KEYBOARD_SCROLL_LOCK_ON` and so on)."""

    SCROLL_LOCK = 1
    NUM_LOCK = 2
    CAPS_LOCK = 4


class KeyboardMessage(Wire, frozen=True):
    """A message; offsets count from its type."""

    TYPE: ClassVar[KeyboardMessageType]

    def pack(self) -> bytes:
        """The message with its type. `ValueError` when a value does not fit its field."""
        return _TYPE.pack(self.TYPE) + super().pack()[_TYPE.size :]


class KeyboardRequest(KeyboardMessage, frozen=True):
    """PROTOCOL_REQUEST, 8 bytes: the guest speaks this version."""

    TYPE: ClassVar[KeyboardMessageType] = KeyboardMessageType.PROTOCOL_REQUEST

    version: Annotated[int, At(4, "I", "major in the high half")] = KEYBOARD_VERSION


class KeyboardResponse(KeyboardMessage, frozen=True):
    """PROTOCOL_RESPONSE, 8 bytes: whether the host does, too."""

    TYPE: ClassVar[KeyboardMessageType] = KeyboardMessageType.PROTOCOL_RESPONSE

    status: Annotated[int, At(4, "I", "bit 0: accepted")]

    @property
    def is_accepted(self) -> bool:
        """Bit 0; the others are not looked at."""
        return bool(self.status & 1)


class KeyEvent(KeyboardMessage, frozen=True):
    """EVENT, 12 bytes: a key goes down or up."""

    TYPE: ClassVar[KeyboardMessageType] = KeyboardMessageType.EVENT

    code: Annotated[int, At(4, "H", "scan code of set 1, or a UTF-16 code unit")]
    flags: Annotated[int, At(8, "I", "1 unicode, 2 key up, 4 prefix E0, 8 prefix E1")] = 0

    @classmethod
    def of(cls, code: int, flags: int = 0) -> Self:
        """An event to send. `ValueError` for a code over 16 bits or flags over 32."""
        event = cls(code, int(flags))
        event.pack()
        return event

    @property
    def is_up(self) -> bool:
        """The key goes up."""
        return bool(self.flags & KeyFlags.BREAK)

    @property
    def is_extended(self) -> bool:
        """The key has the prefix 0xE0."""
        return bool(self.flags & KeyFlags.E0)

    @property
    def is_unicode(self) -> bool:
        """The code is a UTF-16 code unit."""
        return bool(self.flags & KeyFlags.UNICODE)


class KeyboardLeds(KeyboardMessage, frozen=True):
    """SET_LEDS, 8 bytes: the guest switches lights on and off."""

    TYPE: ClassVar[KeyboardMessageType] = KeyboardMessageType.SET_LEDS

    LEAST_SIZE: ClassVar[int] = 8

    leds: Annotated[int, At(4, "H", "1 scroll lock, 2 num lock, 4 caps lock")]


def parse_keyboard_guest(payload: bytes) -> KeyboardRequest | KeyboardLeds:
    """What a guest says. `ProtocolError` for a message that is too short or too long, or that no guest sends."""
    match _type_of(payload):
        case KeyboardMessageType.PROTOCOL_REQUEST:
            return KeyboardRequest.unpack(payload)
        case KeyboardMessageType.SET_LEDS:
            return KeyboardLeds.unpack(payload)
        case other:
            raise ProtocolError("keyboard message", 0, "a protocol request (1) or LEDs (4)", f"type {other:#x}")


def parse_keyboard_host(payload: bytes) -> KeyboardResponse | KeyEvent:
    """What a host says. `ProtocolError` for a message that is too short or too long, or that no host sends."""
    match _type_of(payload):
        case KeyboardMessageType.PROTOCOL_RESPONSE:
            return KeyboardResponse.unpack(payload)
        case KeyboardMessageType.EVENT:
            return KeyEvent.unpack(payload)
        case other:
            raise ProtocolError("keyboard message", 0, "a protocol response (2) or an event (3)", f"type {other:#x}")


def _type_of(payload: bytes) -> int:
    size = len(payload)
    if not _TYPE.size <= size <= MAX_KEYBOARD_MESSAGE:
        raise ProtocolError("keyboard message", size, f"{_TYPE.size} to {MAX_KEYBOARD_MESSAGE} bytes", f"{size}")
    number: int = _TYPE.unpack_from(payload)[0]
    return number
