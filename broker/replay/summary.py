"""A channel message in one line: its name, and the fields that matter. `vmbus explain` tells the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

from channels.bus import OfferParams
from channels.explain.readings import service, status
from channels.protocol.connect import InitiateContact, VersionResponse, VersionResponse2
from channels.protocol.gpadl import GpadlBody, GpadlHeader
from channels.protocol.gparange import GPN_SIZE
from channels.protocol.ids import INTERFACE_NAMES, NO_INTERRUPTS
from channels.protocol.message import ChannelMessage, ConnectionState
from channels.protocol.offer import OfferChannel
from channels.protocol.parse import name_of as trace_name
from channels.protocol.parse import parse_message
from channels.protocol.versions import Version, find_version, version_label

from ..errors import ProtocolError

SHOWN_BYTES = 8


def name_of(message: bytes) -> str:
    """What a message calls itself, also where nothing else of it can be read."""
    return trace_name(message)[0]


def summary(message: bytes) -> str:
    """The fields of a message that matter, in a few words; what is wrong with it, where it cannot be read."""
    try:
        parsed = parse_message(message)
    except ProtocolError as error:
        return str(error)
    match parsed:
        case InitiateContact():
            return _contact(parsed)
        case VersionResponse():
            return _version(parsed)
        case OfferChannel():
            return _offer(parsed)
        case GpadlHeader(range_count=1):
            size = int.from_bytes(parsed.data[:4], "little")
            return f"{_fields(parsed)}, {size} bytes, {_pages(len(parsed.data) - GPN_SIZE)}"
        case GpadlHeader():
            return f"{_fields(parsed)}, {parsed.range_count} ranges"
        case GpadlBody():
            return f"{_fields(parsed)}, {_pages(len(parsed.data))}"
        case _:
            return _fields(parsed)


def offer_summary(params: OfferParams) -> str:
    """What a device offers, in the same words."""
    return _told(
        _interface(params.interface_id),
        f"instance {_short(params.instance_id)}",
        params.flags and f"flags {int(params.flags):#x}",
        params.mmio_megabytes and f"{params.mmio_megabytes} MB of MMIO",
        "monitored" if params.monitor_latency is not None or params.monitor_id is not None else "",
    )


def _told(*parts: object) -> str:
    return ", ".join(str(part) for part in parts if part)


def _short(guid: UUID) -> str:
    return f"{str(guid)[:8]}…"


def _interface(guid: UUID) -> str:
    return INTERFACE_NAMES.get(guid) or service(guid) or f"interface {_short(guid)}"


def _pages(size: int) -> str:
    count = max(size, 0) // GPN_SIZE
    return f"{count} page number{'' if count == 1 else 's'}"


def _contact(message: InitiateContact) -> str:
    version = find_version(message.version_requested) or Version.V1
    pages = (message.parent_to_child_monitor_page_gpa, message.child_to_parent_monitor_page_gpa)
    target = message.interrupt_page_or_target_info
    return _told(
        f"version {version_label(message.version_requested)}",
        version >= Version.WIN8_1 and f"VP {message.target_message_vp}",
        version.names_connection and f"SINT {message.sint}",
        version >= Version.WIN10_RS4 and f"VTL {message.vtl}",
        version >= Version.COPPER and f"features {int(message.feature_flags):#x}",
        version.has_interrupt_page and target and f"interrupt page {target:#x}",
        any(pages) and f"monitor pages {pages[0]:#x} and {pages[1]:#x}",
    )


def _version(message: VersionResponse) -> str:
    if not message.version_supported:
        return "unsupported"
    if message.connection_state:
        return f"supported, but {_state(message.connection_state)}"
    value = message.selected_version_or_connection_id
    version = find_version(value)
    is_version = version is not None and not version.names_connection
    features = message.supported_features if isinstance(message, VersionResponse2) else None
    return _told(
        "supported",
        f"version {version_label(value)}" if is_version else f"post to connection {value:#x}",
        features is not None and f"features {features:#x}",
    )


def _offer(message: OfferChannel) -> str:
    return _told(
        f"channel {message.channel_id}",
        _interface(message.interface_id),
        message.subchannel_index and f"sub-channel {message.subchannel_index}",
        message.flags and f"flags {message.flags:#x}",
        message.mmio_megabytes and f"{message.mmio_megabytes} MB of MMIO",
        message.monitor_allocated and f"monitor {message.monitor_id}",
        f"connection {message.connection_id:#x}",
    )


def _state(value: int) -> str:
    names = {int(state): state.name.lower().replace("_", " ") for state in ConnectionState}
    return names.get(value, f"state {value}")


def _octets(data: bytes) -> str:
    end = len(data.rstrip(b"\0"))
    return data[: min(end, SHOWN_BYTES)].hex() + (" ..." if end > SHOWN_BYTES else "")


_WORDS: dict[str, Callable[[Any], str]] = {
    "channel_id": lambda value: f"channel {value}",
    "open_id": lambda value: f"open ID {value}",
    "gpadl_id": lambda value: f"GPADL {value:#x}",
    "ring_buffer_gpadl_id": lambda value: f"GPADL {value:#x}",
    "downstream_ring_buffer_page_offset": lambda value: f"ring 2 at page {value}",
    "target_vp": lambda value: "no interrupts" if value == NO_INTERRUPTS else f"VP {value}",
    "target_sint": lambda value: f"SINT {value & 0xFF}",
    "user_data": lambda value: f"data {_octets(value)}" if any(value) else "",
    "connection_id": lambda value: f"connection {value:#x}",
    "event_flag": lambda value: f"event flag {value}",
    "flags": lambda value: f"flags {value:#x}" if value else "",
    "endpoint_id": lambda value: f"endpoint {_short(value)}",
    "service_id": lambda value: f"service {_short(value)}",
    "silo_id": lambda value: f"silo {_short(value)}" if value.int else "",
    "connection_state": _state,
    "status": lambda value: f"{status(value, {})} ({value:#x})" if value else "success",
    "parent_to_child_monitor_page_gpa": lambda value: f"monitor pages {value:#x}",
    "child_to_parent_monitor_page_gpa": lambda value: f"{value:#x}",
}
"""What to say of a field. Those that are not here are not worth it."""


def _fields(message: ChannelMessage) -> str:
    names = [field.name for field in message.layout().fields if field.name in _WORDS]
    return _told(*(_WORDS[name](getattr(message, name)) for name in names))
