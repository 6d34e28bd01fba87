"""The file of a recorded conversation: its format and its checks.

JSON, {"about": str, "steps": [...]}; `tests/vectors/README.md` describes the steps. Steps keep their number in the file,
from 0, also when some are left out. Fields that are not listed here are for the reader.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, UnsetType

from channels.protocol.offer import USER_AREA

from ..errors import DamagedDocument
from ..hvdef import MONITOR_COUNT, PAGE_SIZE

MAX_FILE = 64 << 20
"""Bytes of a conversation file."""
MAX_HEX = PAGE_SIZE
"""Bytes that a step's `hex` may have. A SynIC message has at most 240; a longer one is posted, and refused."""

U16 = Annotated[int, Meta(ge=0, le=0xFFFF)]
U32 = Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]

Kind = Literal[
    "device", "device with pipe packets", "pipe", "byte pipe", "interface", "hvsock from guest", "hvsock to guest"
]


class GuestMessage(msgspec.Struct, frozen=True):
    """A message as the guest posts it."""

    connection_id: int
    message_type: int
    payload: bytes


class HostMessage(msgspec.Struct, frozen=True):
    """A message as the host answered when it was recorded."""

    payload: bytes


class DeviceStep(msgspec.Struct, frozen=True, tag_field="from", tag="host device"):
    """What the host's devices do at this point. What an offer leaves out is looked for elsewhere, see `devices`."""

    action: Literal["offer", "revoke", "refuse"]
    device: str | None = None
    """What the file calls it."""
    interface: UUID | None = None
    instance: UUID | None = None
    subchannel: U16 | UnsetType = UNSET
    kind: Kind | UnsetType = UNSET
    flags: U16 | UnsetType = UNSET
    user_defined: str | UnsetType = UNSET
    """Hexadecimal; zeros follow."""
    mmio_megabytes: U16 | UnsetType = UNSET
    mmio_megabytes_optional: U16 | UnsetType = UNSET
    order: U32 | UnsetType | None = UNSET
    monitor_latency: U32 | UnsetType | None = UNSET
    """Ticks of 100 ns; null: not monitored."""
    monitor_id: Annotated[int, Meta(ge=0, lt=MONITOR_COUNT)] | UnsetType | None = UNSET


class Conversation(msgspec.Struct, frozen=True):
    """A conversation: its steps by their number in the file, in order."""

    file: str
    steps: dict[int, GuestMessage | HostMessage | DeviceStep]

    def without_replies(self) -> Self:
        """The same, with nothing of what the host answered."""
        steps = {number: step for number, step in self.steps.items() if not isinstance(step, HostMessage)}
        return msgspec.structs.replace(self, steps=steps)

    def damage(self, number: int, what: str) -> DamagedDocument:
        """The error that says what is wrong with a step."""
        return DamagedDocument(f"{self.file}, step {number}: {what}")


class _GuestStep(msgspec.Struct, frozen=True, tag_field="from", tag="guest"):
    hex: str
    connection_id: U32
    message_type: U32


class _HostStep(msgspec.Struct, frozen=True, tag_field="from", tag="host"):
    hex: str


class _File(msgspec.Struct, frozen=True):
    steps: list[_GuestStep | _HostStep | DeviceStep]
    about: str = ""


_PLACE = re.compile(r"(?P<what>.*) - at `\$\.steps\[(?P<step>\d+)\]\.?(?P<field>.*)`")


def read_conversation(path: str | Path) -> Conversation:
    """Read a conversation file. `DamagedDocument` with a sentence; `OSError` when it cannot be read."""
    with Path(path).open("rb") as stream:
        data = stream.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise DamagedDocument(f"{path} is no conversation file: it has more than {MAX_FILE} bytes")
    return decode_conversation(data, str(path))


def decode_conversation(data: bytes, name: str) -> Conversation:
    """Read a conversation from the bytes of the file with this name. `DamagedDocument` with a sentence."""
    try:
        file = msgspec.json.decode(data, type=_File)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
        raise DamagedDocument(_sentence(name, str(error))) from error
    conversation = Conversation(name, {})
    for number, step in enumerate(file.steps):
        if isinstance(step, DeviceStep):
            if step.user_defined is not UNSET:
                _from_hex(conversation, number, "user_defined", step.user_defined, USER_AREA)
            conversation.steps[number] = step
            continue
        payload = _from_hex(conversation, number, "hex", step.hex, MAX_HEX)
        conversation.steps[number] = (
            HostMessage(payload)
            if isinstance(step, _HostStep)
            else GuestMessage(step.connection_id, step.message_type, payload)
        )
    return conversation


def _sentence(name: str, error: str) -> str:
    place = _PLACE.fullmatch(error)
    if place is None:
        return f"{name} is no conversation file: {error}"
    field = f", {place['field']}" if place["field"] else ""
    return f"{name}, step {place['step']}{field}: {place['what']}"


def _from_hex(conversation: Conversation, number: int, field: str, text: str, limit: int) -> bytes:
    try:
        data = bytes.fromhex(text)
    except ValueError:
        raise conversation.damage(number, f"its {field} is not hexadecimal") from None
    if len(data) > limit:
        raise conversation.damage(number, f"its {field} has {len(data)} bytes, over {limit}")
    return data
