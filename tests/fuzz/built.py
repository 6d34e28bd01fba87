"""Channel messages made of a script: well-formed, of small numbers, so that IDs meet."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from uuid import UUID

import msgspec

from channels.protocol.connect import InitiateContact, VersionResponse, target_info
from channels.protocol.gparange import GpaRange
from channels.protocol.message import ChannelMessage
from channels.protocol.parse import RULES, Sender
from channels.protocol.versions import Version
from channels.protocol.wire import TAIL

from .script import Script

VERSIONS = tuple(Version)
FORMS: dict[Sender, tuple[type[ChannelMessage], ...]] = {
    sender: tuple(form for rule in RULES.values() if rule.sender is sender for form in rule.forms) for sender in Sender
}


def built(script: Script, forms: Sequence[type[ChannelMessage]]) -> ChannelMessage:
    """A message of one of these forms."""
    form = script.pick(forms)
    values: list[object] = []
    for field in form.layout().fields:
        if field.format == "guid":
            values.append(small_guid(script))
        elif field.format == TAIL:
            values.append(script.text())
        elif field.format.endswith("s"):
            values.append(bytes([script.number()]) * field.size)
        else:
            values.append(script.value(8 * struct.calcsize(f"<{field.format}")))
    message = form(*values)
    if isinstance(message, InitiateContact):
        target = target_info(script.pick((2, 2, 2, 7)), script.pick((0, 0, 0, 2)), script.number())
        if message.interrupt_page_or_target_info:
            message = msgspec.structs.replace(message, interrupt_page_or_target_info=target)
        message = msgspec.structs.replace(message, version_requested=script.pick(VERSIONS))
    if isinstance(message, VersionResponse):
        message = msgspec.structs.replace(message, version_supported=script.pick((0, 1, 1, 1)))
        message = msgspec.structs.replace(message, connection_state=script.pick((0, 0, 0, 1)))
    return message


def small_guid(script: Script) -> UUID:
    """One of few GUIDs."""
    return UUID(int=script.number() % 4)


def range_buffer(script: Script) -> tuple[int, bytes]:
    """(count, bytes) of ranges that are sound: one or more, up to 64 pages each."""
    ranges = []
    for number in range(script.number() % 3 + 1):
        pages = script.number() % 64 + 1
        ranges.append(GpaRange(4096 * pages, 0, tuple(range(1000 * number, 1000 * number + pages))).pack())
    return len(ranges), b"".join(ranges)
