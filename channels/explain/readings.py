"""What single numbers and GUIDs mean: names of flags, statuses, versions, interfaces and connection IDs."""

from __future__ import annotations

from enum import IntFlag
from uuid import UUID

from broker.hvdef import PAGE_SIZE
from broker.hvdef.registers import SINT_COUNT
from broker.hvdef.status import Vtl
from channels.protocol.ids import (
    EVENT_CONNECTION,
    INTERFACE_NAMES,
    MAX_CHANNELS,
    MESSAGE_CONNECTION,
    MULTICLIENT_CONNECTION,
    NO_INTERRUPTS,
    REDIRECT_CONNECTION,
    event_connection,
    message_connection,
)
from channels.protocol.message import (
    STATUS_CONNECTION_REFUSED,
    STATUS_SUCCESS,
    STATUS_UNSUCCESSFUL,
    ConnectionState,
)
from channels.protocol.offer import OfferFlags
from channels.protocol.open import OpenFlags
from channels.protocol.versions import NO_FEATURES, FeatureFlags, Version, find_version, version_label

from .table import Seen, Wrong

LINUX_OFFER_FLAGS = {0x100: "loopback", 0x200: "parent", 0x400: "request monitored notification"}
"""Offer flags that only Linux names."""
_PORT_SERVICE = UUID("00000000-facb-11e6-bd58-64006a7986d3").bytes_le[4:]
_STATUSES = {
    STATUS_SUCCESS: "success",
    STATUS_UNSUCCESSFUL: "unsuccessful",
    STATUS_CONNECTION_REFUSED: "connection refused",
}


def words(name: str) -> str:
    """The name of an enum's member as words."""
    return name.lower().replace("_", " ")


def flag_names(value: int, kind: type[IntFlag], others: dict[int, str] | None = None) -> str | Wrong:
    """The flags that are set, by name. Bits without a name are wrong."""
    names = {int(flag): words(flag.name or "") for flag in kind} | (others or {})
    told = [f"{bit:#x} {name}" for bit, name in names.items() if value & bit]
    nameless = value & ~sum(names)
    if nameless:
        return Wrong(", ".join([*told, f"{nameless:#x} has no name"]), f"flags within {sum(names):#x}")
    return ", ".join(told) or "none"


def offer_flags(value: int, _: Seen) -> str | Wrong:
    """Flags of an offer, Linux's own included."""
    return flag_names(value, OfferFlags, LINUX_OFFER_FLAGS)


def open_flags(value: int, _: Seen) -> str:
    """Flags of an open: a host masks off what has no name."""
    named = flag_names(value & OpenFlags.REDIRECT_INTERRUPT, OpenFlags)
    junk = value & ~int(OpenFlags.REDIRECT_INTERRUPT)  # an inverted IntFlag has no bits without a name
    return f"{named}; {junk:#x} is ignored" if junk else str(named)


def feature_flags(value: int, seen: Seen) -> str | Wrong:
    """Feature flags: version 6.0 brought them."""
    version = seen.get("version_requested")
    if version is not None and version < Version.COPPER and value:
        return Wrong("feature flags are ignored below version 6.0", "0 below version 6.0")
    return flag_names(value, FeatureFlags)


def has_client_id(version: int, features: int) -> bool:
    """True when an INITIATE_CONTACT says who the guest is."""
    return version >= Version.COPPER and features & FeatureFlags.CLIENT_ID != NO_FEATURES


def version(value: int, _: Seen) -> str | Wrong:
    """A version that is asked for."""
    if find_version(value) is None:
        known = ", ".join(version.label for version in Version)
        return Wrong(f"{version_label(value)}: there is none, a host answers unsupported", f"one of {known}")
    return f"version {version_label(value)}"


def version_or_connection(value: int, seen: Seen) -> str:
    """Bytes 12 to 15 of a VERSION_RESPONSE."""
    found = find_version(value)
    if not seen.get("version_supported"):
        return "means nothing: the version is unsupported"
    if found is not None and not found.names_connection:
        return f"version {found.label}"
    return f"post to: {message_target(value, seen)}"


def yes_or_no(value: int, _: Seen) -> str | Wrong:
    """A byte that is 0 or 1."""
    return {0: "no", 1: "yes"}.get(value) or Wrong("neither 0 nor 1", "0 or 1")


def connection_state(value: int, _: Seen) -> str | Wrong:
    """How a connection attempt ended."""
    names = {int(state): words(state.name) for state in ConnectionState}
    return names.get(value) or Wrong("no state has this number", "a state from 0 to 2")


def status(value: int, _: Seen) -> str:
    """A status: hosts take the sign bit for failure, guests anything but 0."""
    if value in _STATUSES:
        return _STATUSES[value]
    return "a failure" if value >> 31 else "not 0: a guest takes it for a failure"


def channel_id(value: int, _: Seen) -> str:
    """A channel ID."""
    return f"channel {value}" if 1 <= value <= MAX_CHANNELS else f"a channel ID; servers give 1 to {MAX_CHANNELS}"


def target_vp(value: int, _: Seen) -> str:
    """A processor, or none."""
    return "0xFFFFFFFF: no interrupts" if value == NO_INTERRUPTS else f"VP {value}"


def sint(value: int, _: Seen) -> str | Wrong:
    """A SINT."""
    return f"SINT {value}" if value < SINT_COUNT else Wrong("no such SINT", "a SINT from 0 to 15")


def vtl(value: int, _: Seen) -> str | Wrong:
    """A virtual trust level."""
    return f"VTL {value}" if value <= max(Vtl) else Wrong("no such VTL", "a VTL from 0 to 2")


def page_address(value: int, _: Seen) -> str | Wrong:
    """The GPA of a page, 0 for none."""
    if value % PAGE_SIZE:
        return Wrong("not the address of a page", f"a multiple of {PAGE_SIZE}")
    return "a page's GPA" if value else "none"


def event_target(value: int, _: Seen) -> str:
    """A connection ID that is signalled."""
    channel, sint_, vtl_ = value & 0xFFF, value >> 12 & 0xF, value >> 16
    if value == EVENT_CONNECTION:
        return "the channel bitmap (before version 2.4)"
    is_event = 1 <= channel <= MAX_CHANNELS and sint_ and vtl_ <= max(Vtl)
    if is_event and event_connection(channel, sint_, vtl_) == value:
        return f"events of channel {channel}, SINT {sint_}, VTL {vtl_}"
    return f"connection {value:#x}"


def message_target(value: int, _: Seen) -> str:
    """A connection ID that is posted to."""
    server = message_server(value)
    return f"connection {value:#x}: VMBus messages{server}" if server else f"connection {value:#x}"


def message_server(value: int) -> str:
    """Which VMBus server takes messages at this connection ID, nothing for an ID that none has."""
    names = {
        MESSAGE_CONNECTION: ", before version 5.0",
        MULTICLIENT_CONNECTION: ", from version 5.0 on",
        REDIRECT_CONNECTION: " to a paravisor, SINT 7, VTL 2",
    }
    sint_, vp, vtl_ = value >> 4 & 0xF, value >> 8 & 0x3FFF, value >> 22
    if value not in names and vtl_ <= max(Vtl) and message_connection(sint_, vp, vtl_) == value:
        return f", SINT {sint_}, VP {vp}, VTL {vtl_}"
    return names.get(value, "")


def interface(value: UUID) -> str:
    """The class of a device, by name where it has one."""
    known = INTERFACE_NAMES.get(value) or service(value)
    return f"class of the device: {known}" if known else "class of the device, not one of the well-known ones"


def service(value: UUID) -> str:
    """The port of an hvsock service, if it is one."""
    if value.bytes_le[4:] != _PORT_SERVICE:
        return ""
    return f"hvsock port {int.from_bytes(value.bytes_le[:4], 'little')}"


def bits(value: int, first: int = 0, most: int = 16) -> str:
    """The numbers of the bits that are set, counted from `first`."""
    numbers: list[int] = []
    left = value
    while left and len(numbers) <= most:
        lowest = left & -left
        numbers.append(first + lowest.bit_length() - 1)
        left ^= lowest
    shown = ", ".join(map(str, numbers[:most]))
    return f"{{{shown}{', ...' if len(numbers) > most else ''}}}"


def ticks(value: int, _: Seen) -> str:
    """A time of the reference counter."""
    return f"{value / 10_000_000:.7f} s, in ticks of 100 ns"


def index(value: int, _: Seen) -> str | Wrong:
    """An offset in a ring's data."""
    return f"byte {value} of the data" if not value % 8 else Wrong("no ring index", "a multiple of 8")
