"""Rings: the control page, and packets with their extended headers, pipe headers and footers."""

from __future__ import annotations

from channels.protocol.packet import (
    COMPLETION_REQUESTED,
    DESCRIPTOR_SIZE,
    EXTENDED_HEADER_SIZE,
    FOOTER_SIZE,
    PIPE_HEADER_SIZE,
    RING_TYPES,
    WITH_RANGES,
    GpaDirectHeader,
    PacketDescriptor,
    PacketType,
    PipeHeader,
    PipePacketType,
    TransferPagesHeader,
)
from channels.ring.control import CONTROL_PAGE_SIZE, FEATURE_BITS, PENDING_SEND_SIZE, PENDING_SEND_SIZE_SUPPORTED

from . import readings as read
from .ranges import gpa_ranges, transfer_ranges
from .table import Explain, Reading, Seen, Table, Wrong, plural

_WORD = 4
CONTROL_LEAST = _WORD * (FEATURE_BITS + 1)
"""Bytes of a control page up to its last word that means something."""
_LINUX_TRANSACTION_IDS = {
    (1 << 64) - 1: "Linux: no transaction",
    (1 << 64) - 2: "Linux: an error",
    (1 << 64) - 3: "Linux: the initialisation of a device, or no answer wanted",
    (1 << 64) - 4: "Linux: the reset of a device",
}


def explain_control(table: Table) -> None:
    """The control page of a ring: all of it, or its first 68 bytes or more."""
    table.title = "control page of a ring"
    table.need(CONTROL_LEAST, table.title)
    start = table.position
    seen = Seen()
    seen["in"] = table.number("in", _WORD, _in)
    table.number("out", _WORD, _out, seen)
    table.number("interrupt_mask", _WORD, _interrupt_mask)
    table.number("pending_send_size", _WORD, _pending_send_size)
    table.zeros("reserved", _WORD * (FEATURE_BITS - PENDING_SEND_SIZE - 1))
    table.number("feature_bits", _WORD, _feature_bits)

    def reserved(part: Table) -> None:
        part.misfit += any(part.data[part.position : part.end])
        part.rest("reserved", "newer hosts keep counters here")

    table.within(start + CONTROL_PAGE_SIZE - table.position, reserved)
    table.ignored("beyond the control page")


def explain_packet(table: Table) -> None:
    """A packet of any channel; a payload that looks like a pipe's is read as one."""
    _packet(table, is_pipe=False)


def explain_pipe_packet(table: Table) -> None:
    """A packet of a pipe: its payload must start with a pipe header."""
    _packet(table, is_pipe=True)


def _packet(table: Table, is_pipe: bool) -> None:
    table.title = "ring packet"
    table.need(DESCRIPTOR_SIZE, "packet descriptor")
    base = table.position
    seen = table.layout(PacketDescriptor, _DESCRIPTOR)
    packet_type = seen["packet_type"]
    start, end = 8 * seen["data_offset8"], 8 * seen["length8"]
    table.title = f"ring packet: {_type_name(packet_type)}, {plural(max(end - start, 0), 'byte')} of payload"
    if start < DESCRIPTOR_SIZE or end < start:
        table.rest("ignored", "where the payload lies cannot be told")
        return
    if end > table.end - base:
        table.problem("length8", base + 4, f"at most {table.end - base} bytes without footer", str(end))
    explain, about = _EXTENDED.get(packet_type, (_no_extended_header, ""))
    table.within(start - DESCRIPTOR_SIZE, explain, "padding", about)
    _payload(table, end - start, is_pipe)
    _footer(table)
    table.ignored("beyond the packet; the next one starts here, if this is a ring")


def _no_extended_header(table: Table) -> None:
    table.rest("extended_header", "this type has none: ignored")


def _gpa_direct(table: Table) -> None:
    table.need(EXTENDED_HEADER_SIZE, "GPA-direct header")
    seen = table.layout(GpaDirectHeader, {"range_count": _gpa_range_count}, gap="ignored")
    gpa_ranges(table, seen["range_count"])


def _transfer_pages(table: Table) -> None:
    table.need(EXTENDED_HEADER_SIZE, "transfer-page header")
    seen = table.layout(TransferPagesHeader, {}, gap="ignored")
    transfer_ranges(table, seen["range_count"])


_EXTENDED: dict[int, tuple[Explain, str]] = {
    PacketType.GPA_DIRECT: (_gpa_direct, "up to the payload"),
    PacketType.TRANSFER_PAGES: (_transfer_pages, "up to the payload"),
}


def _payload(table: Table, size: int, is_pipe: bool) -> None:
    if is_pipe or _looks_like_a_pipe(table, min(size, table.left)):
        table.title += f", {'in' if is_pipe else 'perhaps in'} a pipe"
        table.within(size, _pipe, "padding", "up to a multiple of 8")
        return
    padding = "; its last 1 to 7 bytes may be padding, only its sender knows" if size else ""
    table.within(size, lambda part: part.rest("payload", f"{plural(part.left, 'byte')}{padding}"))


def _looks_like_a_pipe(table: Table, size: int) -> bool:
    """True where the header says data, as much of it as there is room for but for the padding."""
    room = size - PIPE_HEADER_SIZE
    return room >= 0 and table.peek(4) == PipePacketType.DATA and 0 <= room - table.peek(4, 4) < 8


def _pipe(table: Table) -> None:
    table.need(PIPE_HEADER_SIZE, "pipe header")
    offset = table.position
    seen = table.layout(PipeHeader, {"packet_type": _pipe_type, "length": _pipe_length}, prefix="pipe.")
    length, consumed = seen["length"], 0
    if seen["packet_type"] == PipePacketType.PARTIAL:
        consumed, length = length >> 16, length & 0xFFFF
        if consumed >= length:
            table.problem("pipe.length", offset + 4, f"fewer than {length} bytes read", str(consumed))
    if length > table.left:
        table.problem("pipe.length", offset + 4, f"at most {plural(table.left, 'byte')}", str(length))
    length = min(length, table.left)
    consumed = min(consumed, length)
    table.octets("pipe.consumed", consumed, "read already")
    table.octets("pipe.data", length - consumed, plural(length - consumed, "byte"))


def _footer(table: Table) -> None:
    if not table.left:
        return
    table.need(FOOTER_SIZE, "footer")
    table.zeros("footer.reserved", 4)
    table.number("footer.start", 4, _start)


def _type_name(value: int) -> str:
    try:
        return read.words(PacketType(value).name)
    except ValueError:
        return f"type {value:#x}"


def _packet_type(value: int, _: Seen) -> str | Wrong:
    if value in RING_TYPES:
        return _type_name(value)
    has_name = value in set(PacketType)
    meaning = f"{_type_name(value)}: a name, but no ring carries it" if has_name else "no packet has this type"
    return Wrong(meaning, "6 (in band), 7 (transfer pages), 9 (GPA direct) or 0xb (completion)")


def _data_offset(value: int, seen: Seen) -> str | Wrong:
    least = DESCRIPTOR_SIZE + (EXTENDED_HEADER_SIZE if seen["packet_type"] in WITH_RANGES else 0)
    if 8 * value < least:
        return Wrong(f"byte {8 * value}: within the packet's own header", f"{least // 8} or more")
    return f"the payload starts at byte {8 * value}"


def _length(value: int, seen: Seen) -> str | Wrong:
    if value < seen["data_offset8"]:
        return Wrong(f"byte {8 * value}: before the payload", f"{seen['data_offset8']} or more")
    return f"the payload ends at byte {8 * value}"


def _flags(value: int, _: Seen) -> str | Wrong:
    if value & ~COMPLETION_REQUESTED:
        return Wrong("bit 0 asks for a completion, the others are 0", "0 or 1")
    return "the sender wants a completion" if value else "none: no completion is wanted"


def _transaction_id(value: int, seen: Seen) -> str:
    if value in _LINUX_TRANSACTION_IDS:
        return _LINUX_TRANSACTION_IDS[value]
    if seen["packet_type"] == PacketType.COMPLETION:
        return "as in the packet that this completes"
    return "the completion repeats it" if seen["flags"] & COMPLETION_REQUESTED else "means nothing here"


def _gpa_range_count(value: int, _: Seen) -> str | Wrong:
    return plural(value, "range") if value else Wrong("no ranges", "one range or more")


def _pipe_type(value: int, _: Seen) -> str | Wrong:
    try:
        return _pipe_words(PipePacketType(value))
    except ValueError:
        return Wrong("no pipe packet has this type", "a pipe packet type from 1 to 4")


def _pipe_words(kind: PipePacketType) -> str:
    """What follows a pipe header, in words."""
    partial = kind is PipePacketType.PARTIAL
    return "data, of which the reader has taken a part" if partial else read.words(kind.name)


def _pipe_length(value: int, seen: Seen) -> str:
    if seen["packet_type"] == PipePacketType.PARTIAL:
        return f"{plural(value & 0xFFFF, 'byte')}, of which {value >> 16} are read"
    return f"{plural(value, 'byte')} of data" if value else "0: the end of a byte stream, or an empty message"


def _start(value: int, _: Seen) -> str | Wrong:
    reading = read.index(value, {})
    return reading if isinstance(reading, Wrong) else f"this packet starts at {reading} of its ring"


def _in(value: int, seen: Seen) -> str | Wrong:
    reading = read.index(value, seen)
    return reading if isinstance(reading, Wrong) else f"the producer writes next at {reading}"


def _out(value: int, seen: Seen) -> str | Wrong:
    reading = read.index(value, seen)
    if isinstance(reading, Wrong):
        return reading
    used = seen["in"] - value
    state = "empty" if not used else plural(used, "byte") + " wait" if used > 0 else "what waits wraps around"
    return f"the consumer reads next at {reading}: {state}"


def _interrupt_mask(value: int, _: Seen) -> str:
    return "masked: the consumer wants no signals" if value else "0: the consumer wants signals"


def _pending_send_size(value: int, _: Seen) -> str:
    return f"the producer waits for {plural(value, 'byte')} of room" if value else "0: the producer does not wait"


def _feature_bits(value: int, _: Seen) -> str | Wrong:
    if value & ~PENDING_SEND_SIZE_SUPPORTED:
        return Wrong("bit 0 is pending send size, the others are 0", "0 or 1")
    return "the producer uses pending_send_size" if value else "none"


_DESCRIPTOR: dict[str, Reading] = {
    "packet_type": _packet_type,
    "data_offset8": _data_offset,
    "length8": _length,
    "flags": _flags,
    "transaction_id": _transaction_id,
}
