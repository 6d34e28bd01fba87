"""Channel messages: every type in every form, told apart by their sizes."""

from __future__ import annotations

from uuid import UUID

from channels.protocol.connect import InitiateContact, ModifyConnection, VersionResponse3
from channels.protocol.gpadl import GpadlBody
from channels.protocol.ids import MAX_MESSAGE, NO_MONITOR
from channels.protocol.message import HEADER, ChannelMessage, MessageType
from channels.protocol.offer import HVSOCK_AREA, PIPE_AREA, USER_AREA, OfferChannel, OfferFlags, PipeType
from channels.protocol.open import OpenChannel2
from channels.protocol.parse import RULES, Rule
from channels.protocol.versions import NO_FEATURES, Version, version_label

from . import readings as read
from .ranges import gpa_ranges, range_buffer
from .table import Reading, Seen, Split, Table, Wrong, plural

MONITORS = 128


def explain_message(table: Table) -> None:
    """Any channel message. One longer than its layout has ignored bytes behind it, as UEFI's have."""
    base, size = table.position, table.left
    rule = RULES.get(MessageType(number)) if (number := table.peek(4)) in RULES and size >= 4 else None
    if rule is None:
        table.title = "no channel message"
        table.need(HEADER.size, "channel message")
        table.number("type", 4, _message_type)
        table.zeros("padding", 4)
        table.rest("ignored", "what it is depends on the type")
        return
    form = _form(rule, size)
    table.title = _title(rule, form)
    table.need(form.layout().size, form.TYPE.name)
    if size > MAX_MESSAGE:
        table.problem("channel message", base + MAX_MESSAGE, f"at most {MAX_MESSAGE} bytes", str(size))
    table.number("type", 4, _message_type)
    table.zeros("padding", 4)
    seen = table.layout(form, _READINGS_OF.get(form, _READINGS), _SPLITS, base=base)
    _check_together(table, form, seen, base)
    table.ignored("beyond the message")


def _message_type(value: int, _: Seen) -> str | Wrong:
    if value in RULES:
        return MessageType(value).name
    return Wrong("no channel message has this type", "a message type from 1 to 29")


def _form(rule: Rule, size: int) -> type[ChannelMessage]:
    fitting = [form for form in rule.forms if form.layout().size <= size]
    return fitting[-1] if fitting else rule.forms[0]


def _title(rule: Rule, form: type[ChannelMessage]) -> str:
    about = (form.__doc__ or f"{form.TYPE.name}.").splitlines()[0]
    since = f"Sent by the {rule.sender.value}"
    if rule.since is not Version.V1:
        since += f", from version {rule.since.label} on"
    if rule.feature is not NO_FEATURES:
        since += f", with feature {int(rule.feature):#x}"
    return f"{about} {since}."


def _check_together(table: Table, form: type[ChannelMessage], seen: Seen, base: int) -> None:
    """What is wrong with numbers that are right one by one."""
    pages = [seen.get(name) for name in ("parent_to_child_monitor_page_gpa", "child_to_parent_monitor_page_gpa")]
    if issubclass(form, (InitiateContact, ModifyConnection)) and pages.count(0) == 1:
        table.problem("monitor pages", _offset(form, "parent_to_child_monitor_page_gpa", base), "both or none", "one")
    if issubclass(form, VersionResponse3) and pages[1] == 0 and seen["supported_features"] & 0x40:
        table.problem("monitor pages", _offset(form, "child_to_parent_monitor_page_gpa", base), "a page's GPA", "0")
    if form is InitiateContact and read.has_client_id(seen["version_requested"], seen.get("feature_flags", 0)):
        table.problem("client_id", table.position, "a client ID, 56 bytes in all, with feature 0x8", "none: no answer")


def _offset(form: type[ChannelMessage], name: str, base: int) -> int:
    return base + next(field.offset for field in form.layout().fields if field.name == name)


# The inner forms of fields.


def _target_info(table: Table, seen: Seen) -> None:
    """Bytes 16 to 23 of an INITIATE_CONTACT."""
    version = seen["version_requested"]
    if version < Version.WIN10_RS3_1:
        has_page = version < Version.WIN8
        unused = f"ignored: version {version_label(version)} has none"
        table.number("interrupt_page_gpa", 8, read.page_address if has_page else unused)
        return
    table.number("sint", 1, _contact_sint)
    table.number("vtl", 1, read.vtl if version >= Version.WIN10_RS4 else "ignored below version 5.1")
    table.zeros("reserved", 2)
    seen["feature_flags"] = table.number("feature_flags", 4, read.feature_flags, seen)


def _contact_sint(value: int, seen: Seen) -> str | Wrong:
    reading = read.sint(value, seen)
    return (
        reading if isinstance(reading, Wrong) or value == 2 else f"{reading}; a host answers unsupported to all but 2"
    )


def _user_area(table: Table, seen: Seen) -> None:
    """The user area of an offer: the flags say what it is."""
    flags = seen["flags"]
    if flags & OfferFlags.TLNPI_PROVIDER:
        table.number("hvsock.pipe_type", 4, _pipe_type)
        table.number("hvsock.is_for_guest_accept", 1, "1: the host connects to a listener in the guest")
        table.number("hvsock.is_for_guest_container", 1, "1: to one in a container of the guest")
        table.number("hvsock.version", 4, "0 before RS5, 1 since; 1 has a silo ID")
        table.guid("hvsock.silo_id", "the container")
        table.octets("hvsock.rest", USER_AREA - (HVSOCK_AREA.size - 2), "not used")
    elif flags & OfferFlags.NAMED_PIPE_MODE:
        table.number("pipe.pipe_type", 4, _pipe_type)
        table.octets("pipe.user", PIPE_AREA.size - 8, "for the device")
        table.number("pipe.flags", 4, "bit 0: GPA-direct transfers")
    else:
        table.octets("user_defined", USER_AREA, "for the device")


def _pipe_type(value: int, _: Seen) -> str:
    names = {int(PipeType.BYTE): "a byte stream", int(PipeType.MESSAGE): "messages"}
    return names.get(value, "neither 0 (a byte stream) nor 4 (messages)")


def _range_buffer(table: Table, seen: Seen) -> None:
    if "range_count" not in seen:
        range_buffer(table)
        return
    declared, present = seen["range_buffer_length"], table.left
    elsewhere = max(declared // 8 - present // 8, 0) * 8
    table.within(
        declared, lambda part: gpa_ranges(part, seen["range_count"], elsewhere), meaning="beyond the last range"
    )


def _range_buffer_length(value: int, _: Seen) -> str | Wrong:
    if value % 8:
        return Wrong("hosts take whole words of it", "a multiple of 8")
    return f"{plural(value, 'byte')} of range buffer in all"


def _range_count(value: int, _: Seen) -> str | Wrong:
    return plural(value, "range") if value else Wrong("a GPADL of nothing", "a count over 0")


def _interface(table: Table, _: Seen) -> None:
    table.guid("interface_id", read.interface)


def _service(table: Table, _: Seen) -> None:
    def about(value: UUID) -> str:
        return read.service(value) or "the listener; interface of the offer"

    table.guid("service_id", about)


def _monitor_id(value: int, _: Seen) -> str | Wrong:
    if value == NO_MONITOR:
        return "0xFF: none"
    return f"monitor {value}" if value < MONITORS else Wrong("no such monitor", f"0 to {MONITORS - 1}, or 0xFF")


def _ring_split(value: int, _: Seen) -> str | Wrong:
    if not value:
        return Wrong("no room for the guest-to-host ring", "a page number over 0")
    return f"the guest-to-host ring takes {plural(value, 'page')}, the other one the rest"


def _target_sint(value: int, seen: Seen) -> str | Wrong:
    return read.sint(value & 0xFF, seen)


def _subchannel(value: int, _: Seen) -> str:
    return f"sub-channel {value}" if value else "0: the primary channel"


def _dedicated(value: int, _: Seen) -> str:
    return "the channel has a connection of its own" if value & 1 else "the channel bitmap is used (before 1.1)"


def _allocated(value: int, _: Seen) -> str:
    return "signal by the monitor page" if value & 1 else "signal by hypercall"


def _offer_connection(value: int, seen: Seen) -> str:
    return f"the guest signals {read.event_target(value, seen)}"


def _open_id(value: int, _: Seen) -> str:
    return "chosen by the guest, comes back in the result"


def _reserved(value: int, _: Seen) -> str | Wrong:
    return Wrong("written 0, ignored", "0") if value else "written 0, ignored"


_READINGS: dict[str, Reading] = {
    "channel_id": read.channel_id,
    "child_to_parent_monitor_page_gpa": read.page_address,
    "connection_state": read.connection_state,
    "downstream_ring_buffer_page_offset": _ring_split,
    "is_dedicated": _dedicated,
    "monitor_allocated": _allocated,
    "monitor_id": _monitor_id,
    "open_id": _open_id,
    "parent_to_child_monitor_page_gpa": read.page_address,
    "range_buffer_length": _range_buffer_length,
    "range_count": _range_count,
    "selected_version_or_connection_id": read.version_or_connection,
    "status": read.status,
    "subchannel_index": _subchannel,
    "supported_features": read.feature_flags,
    "target_message_vp": read.target_vp,
    "target_sint": _target_sint,
    "target_vp": read.target_vp,
    "version_requested": read.version,
    "version_supported": read.yes_or_no,
}
_READINGS_OF: dict[type[ChannelMessage], dict[str, Reading]] = {
    OfferChannel: {**_READINGS, "flags": read.offer_flags, "connection_id": _offer_connection},
    OpenChannel2: {**_READINGS, "flags": read.open_flags, "connection_id": _offer_connection},
    GpadlBody: {**_READINGS, "reserved": _reserved},
}
_SPLITS: dict[str, Split] = {
    "data": _range_buffer,
    "interface_id": _interface,
    "interrupt_page_or_target_info": _target_info,
    "service_id": _service,
    "user_defined": _user_area,
}
