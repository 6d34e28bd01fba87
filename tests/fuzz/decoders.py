"""Targets that decode bytes by themselves: messages, packets, ranges, pipe headers, SynIC structures, explanations.

Each decodes and, where it succeeds, encodes again: both ways must agree.
"""

from __future__ import annotations

from broker.errors import ProtocolError
from broker.hvdef.hypercall import (
    POST_MESSAGE_DIRECT_SIZE,
    POST_MESSAGE_SIZE,
    SIGNAL_EVENT,
    SIGNAL_EVENT_DIRECT,
    PostMessageDirectInput,
    PostMessageInput,
    SignalEventDirectInput,
    SignalEventInput,
)
from broker.hvdef.message import MESSAGE_SIZE, SynicMessage, TimerMessage
from channels.explain import KINDS, explain
from channels.protocol.gparange import GpaRange, TransferRange, parse_gpa_ranges, resolve_transfer_range
from channels.protocol.message import HEADER
from channels.protocol.packet import (
    FOOTER_SIZE,
    Packet,
    PacketType,
    pack_gpa_direct,
    pack_in_band,
    pack_packet,
    pack_transfer_pages,
    parse_packet,
    parse_pipe,
)
from channels.protocol.parse import RULES, Agreed, Sender, message_type_of, name_of, parse_message
from channels.protocol.versions import FeatureFlags, Version

from . import vectors
from .script import Script

AGREEMENTS: tuple[Agreed | None, ...] = (None, Agreed(), *(Agreed(version) for version in Version))
SENDERS = (None, Sender.GUEST, Sender.HOST)


def channel_message(data: bytes) -> None:
    """Bytes 0 to 2: sender, agreement, features. Then a message."""
    script = Script(data)
    sender, agreed = script.pick(SENDERS), script.pick(AGREEMENTS)
    features = FeatureFlags(script.number())
    if agreed is not None and agreed.version is Version.COPPER:
        agreed = Agreed(agreed.version, features)
    message = script.rest()
    name, channel_id = name_of(message)
    assert name
    assert 0 <= channel_id < 1 << 32
    try:
        found = parse_message(message, sender, agreed)
    except ProtocolError:
        return
    assert message_type_of(message) is found.TYPE
    assert sender in (None, RULES[found.TYPE].sender)
    packed = found.pack()
    assert packed[: HEADER.size] == message[:4] + bytes(4)
    assert len(packed) <= len(message)
    assert type(found).unpack(packed) == found


def channel_message_seeds() -> list[bytes]:
    """Every message, read from both sides and as a connection of version 6.0 would."""
    everything = [*vectors.messages(), *(step.data for step in vectors.conversation())]
    return [bytes((sender, 12, 0xFF)) + message for message in everything for sender in range(3)]


def packet_strict(data: bytes) -> None:
    """A packet as a host takes it."""
    _packet(data, strict=True)


def packet_lenient(data: bytes) -> None:
    """A packet as a guest takes it."""
    _packet(data, strict=False)


def packet_seeds() -> list[bytes]:
    """Packets with and without footer, and some with each extended header."""
    found = [*vectors.packets(), *(packet[:-FOOTER_SIZE] for packet in vectors.packets())]
    for count in (1, 3):
        ranges = [GpaRange(5000, 8 * index, (index, index + 1)) for index in range(count)]
        found.append(pack_gpa_direct(ranges, b"payload", 7))
        found.append(pack_transfer_pages(3, [TransferRange(8, index) for index in range(count)], b"payload", 7))
    return found


def gpa_ranges(data: bytes) -> None:
    """Bytes 0 and 1: count of ranges; 2 to 9: a transfer range within the first. Then the ranges."""
    script = Script(data)
    count = script.number(2)
    transfer = TransferRange(script.number(4), script.number(4))
    buffer = script.rest()
    try:
        ranges, used = parse_gpa_ranges(buffer, count)
    except ProtocolError:
        return
    assert len(ranges) == count
    assert b"".join(found.pack() for found in ranges) == buffer[:used]
    for found in ranges:
        _check_pieces(found)
    if not ranges:
        return
    try:
        part = resolve_transfer_range(transfer, ranges[0])
    except ProtocolError:
        return
    assert part.byte_count == transfer.byte_count
    _check_pieces(part)


def gpa_range_seeds() -> list[bytes]:
    """The range buffers of GPADLs."""
    headers = [data for data in (step.data for step in vectors.conversation()) if data[0] == 8]
    transfer = (64).to_bytes(4, "little") + (16).to_bytes(4, "little")
    return [data[18:20] + transfer + data[20:] for data in headers] + [b"\0\0" + bytes(8)]


def pipe_header(data: bytes) -> None:
    """A pipe's payload."""
    try:
        _, content = parse_pipe(data)
    except ProtocolError:
        return
    assert content in data


def pipe_header_seeds() -> list[bytes]:
    """One of each type."""
    return [bytes((kind, 0, 0, 0, 4, 0, consumed, 0)) + b"data\0\0\0\0" for kind in range(6) for consumed in range(2)]


def synic_structures(data: bytes) -> None:
    """A message slot, a timer's payload, and the inputs of hypercalls, each of its own size; other sizes are refused."""
    slot = data[:MESSAGE_SIZE]
    try:
        message = SynicMessage.unpack(slot)
    except ValueError:
        assert len(slot) != MESSAGE_SIZE
    else:
        assert SynicMessage.unpack(message.pack()) == message
    try:
        timer = TimerMessage.unpack(data)
    except ValueError:
        assert len(data) < len(TimerMessage(0, 0, 0).pack())
    else:
        assert TimerMessage.unpack(timer.pack()) == timer
    padded = data.ljust(POST_MESSAGE_DIRECT_SIZE, b"\0")
    post = PostMessageInput.unpack(padded[:POST_MESSAGE_SIZE])
    assert PostMessageInput.unpack(post.pack()) == post
    direct = PostMessageDirectInput.unpack(padded[:POST_MESSAGE_DIRECT_SIZE])
    assert PostMessageDirectInput.unpack(direct.pack()) == direct
    signal = SignalEventInput.unpack(padded[: SIGNAL_EVENT.size])
    assert SignalEventInput.unpack(signal.pack()) == signal == SignalEventInput.from_fast(signal.fast)
    signal_direct = SignalEventDirectInput.unpack(padded[: SIGNAL_EVENT_DIRECT.size])
    assert SignalEventDirectInput.unpack(signal_direct.pack()) == signal_direct


def synic_structure_seeds() -> list[bytes]:
    """Slots with channel messages."""
    return [SynicMessage(1, message).pack() for message in vectors.messages()[:4]]


def explanation(data: bytes) -> None:
    """Byte 0: the kind, or a guess at it. Then what is to be explained."""
    script = Script(data)
    kind = script.pick((None, None, *KINDS))
    goes_on = script.flag()
    content = script.rest()
    found = explain(content, kind, goes_on=goes_on)
    assert found.title
    assert found.guessed == (kind is None)
    end = 0
    for row in found.rows:
        assert row.offset == end, f"{row} does not follow byte {end}"
        end += row.size
    assert end == len(content), f"the rows end at {end} of {len(content)} bytes"


def explanation_seeds() -> list[bytes]:
    """Messages, packets and others, as what they are and as a guess."""
    names = (None, None, *KINDS)
    message, packet, pipe, slot = map(names.index, ("channel-message", "ring-packet", "pipe-packet", "synic-message"))
    seeds = [bytes((kind, 0)) + data for data in vectors.messages() for kind in (0, message)]
    seeds += [bytes((kind, 0)) + data for data in packet_seeds() for kind in (0, packet)]
    seeds += [bytes((pipe, 0)) + pack_in_band(data) for data in pipe_header_seeds()]
    seeds += [bytes((slot, 0)) + data for data in synic_structure_seeds()]
    return [*seeds, *(bytes((kind, 0)) + bytes((fill,)) * 80 for kind in range(len(names)) for fill in (0, 0xFF))]


def _packet(data: bytes, strict: bool) -> None:
    try:
        packet = parse_packet(data, strict)
    except ProtocolError:
        return
    again = pack_packet(packet.packet_type, packet.payload, packet.transaction_id, packet.flags, packet.header)
    assert again == data[: len(again)], "a packet is packed as it was read"
    check_ranges(packet)


def check_ranges(packet: Packet) -> None:
    """Ask for all that a packet may have."""
    try:
        assert packet.transfer_page_set_id < 1 << 16
        assert packet.packet_type is PacketType.TRANSFER_PAGES
        packet.transfer_ranges()
    except ProtocolError:
        pass
    try:
        for found in packet.gpa_ranges():
            _check_pieces(found)
    except ProtocolError:
        pass


def _check_pieces(found: GpaRange) -> None:
    assert sum(size for _, size in found.pieces()) == found.byte_count
