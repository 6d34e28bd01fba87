"""Packets of a ring: descriptor, extended header, payload, footer (Linux `vmpacket_descriptor`, OpenVMM `vmbus_ring`).

All integers little-endian. Positions count from the descriptor:

| offset | size | field |
|---|---|---|
| 0 | 2 | type, see `PacketType` |
| 2 | 2 | data_offset8: where the payload starts, in units of 8 bytes; 2 or more |
| 4 | 2 | length8: where the payload ends, in units of 8 bytes |
| 6 | 2 | flags, bit 0: the sender wants a completion |
| 8 | 8 | transaction ID, which a completion repeats |
| 16 | | extended header of types 7 and 9, below |
| 8 * data_offset8 | | payload, then zeros up to a multiple of 8: a receiver cannot tell them from payload |
| 8 * length8 | 4 | footer: 0 |
| + 4 | 4 | footer: offset in the ring at which this packet starts |

| offset | size | GPA-direct (9) | transfer pages (7) |
|---|---|---|---|
| 16 | 2 | ignored, with the next | transfer page set ID |
| 18 | 2 | | ignored |
| 20 | 4 | count of ranges, not 0 | count of ranges |
| 24 | | GPA ranges | transfer ranges |

In pipes each payload starts with a header of 8 bytes: u32 type (`PipePacketType`), u32 length of the data after it.

Reading a packet checks what its receiver needs in order to find its parts. Ranges are checked when they are asked for.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Annotated, NamedTuple

import msgspec

from broker.errors import ProtocolError

from .gparange import GpaRange, TransferRange, parse_gpa_ranges
from .wire import At, Wire


class PacketType(IntEnum):
    """What a packet is. Rings carry IN_BAND, TRANSFER_PAGES, GPA_DIRECT and COMPLETION; the others have only names."""

    INVALID = 0x0
    SYNCH = 0x1
    ADD_TRANSFER_PAGE_SET = 0x2
    REMOVE_TRANSFER_PAGE_SET = 0x3
    ESTABLISH_GPADL = 0x4
    TEARDOWN_GPADL = 0x5
    IN_BAND = 0x6
    TRANSFER_PAGES = 0x7
    GPADL = 0x8
    GPA_DIRECT = 0x9
    CANCEL_REQUEST = 0xA
    COMPLETION = 0xB
    ADDITIONAL_PACKET = 0xC
    ADDITIONAL_DATA = 0xD


class PipePacketType(IntEnum):
    """What follows a pipe header. PARTIAL is written by a reader only, into the ring that it reads."""

    DATA = 1
    PARTIAL = 2
    SETUP_GPA_DIRECT = 3
    TEARDOWN_GPA_DIRECT = 4


COMPLETION_REQUESTED = 0x1
DESCRIPTOR_SIZE = 16
FOOTER_SIZE = 8
EXTENDED_HEADER_SIZE = 8
PIPE_HEADER_SIZE = 8
MAX_LENGTH8 = 0xFFFF
"""The longest packet without its footer, in units of 8 bytes: 524,280 bytes."""

DESCRIPTOR = struct.Struct("<QQ")
"""The descriptor as two words: `descriptor_word`, transaction ID. Two numbers cost half of five."""
FOOTER = struct.Struct("<Q")
"""The footer as one word: `start << FOOTER_SHIFT`."""
FOOTER_SHIFT = 32
FLAGS_SHIFT = 48
_EXTENDED_HEADER = struct.Struct("<HHI")
_PIPE_HEADER = struct.Struct("<II")

RING_TYPES = {
    kind.value: kind
    for kind in (PacketType.IN_BAND, PacketType.TRANSFER_PAGES, PacketType.GPA_DIRECT, PacketType.COMPLETION)
}
WITH_RANGES = frozenset((PacketType.TRANSFER_PAGES, PacketType.GPA_DIRECT))


class PacketDescriptor(Wire, frozen=True):
    """The descriptor field by field, for tools."""

    packet_type: Annotated[int, At(0, "H", "packet type")]
    data_offset8: Annotated[int, At(2, "H", "start of the payload, in units of 8 bytes")]
    length8: Annotated[int, At(4, "H", "end of the payload, in units of 8 bytes")]
    flags: Annotated[int, At(6, "H", "bit 0: completion requested")]
    transaction_id: Annotated[int, At(8, "Q", "repeated by the completion")]


class TransferPagesHeader(Wire, frozen=True):
    """The extended header of a transfer-page packet, at byte 16 of it."""

    transfer_page_set_id: Annotated[int, At(0, "H", "which buffer the ranges lie in")]
    range_count: Annotated[int, At(4, "I", "ranges that follow")]


class GpaDirectHeader(Wire, frozen=True):
    """The extended header of a GPA-direct packet, at byte 16 of it."""

    range_count: Annotated[int, At(4, "I", "ranges that follow")]


class PipeHeader(Wire, frozen=True):
    """The first bytes of a pipe's payload."""

    packet_type: Annotated[int, At(0, "I", "pipe packet type")]
    length: Annotated[int, At(4, "I", "bytes of data after this header")]


class Packet(msgspec.Struct, frozen=True, gc=False):
    """One packet as its receiver has it: all of it is a copy, so nothing changes any more.

    `payload` has the zeros at its end up to a multiple of 8. `header` is what lies between the descriptor and the
    payload, empty for plain data and completions. `transaction_id` is what the descriptor says; it means something
    only where `completion_requested` or in a COMPLETION, see `reply_id`.
    """

    packet_type: PacketType
    flags: int
    transaction_id: int
    payload: bytes
    header: bytes = b""

    @property
    def completion_requested(self) -> bool:
        """True when the sender waits for a completion with this transaction ID."""
        return bool(self.flags & COMPLETION_REQUESTED)

    @property
    def reply_id(self) -> int | None:
        """The transaction ID where it has a meaning: a completion is wanted, or this is one."""
        if self.flags & COMPLETION_REQUESTED or self.packet_type == PacketType.COMPLETION:
            return self.transaction_id
        return None

    @property
    def transfer_page_set_id(self) -> int:
        """Which buffer the transfer ranges lie in. `ProtocolError` for any other type of packet."""
        return self._extended(PacketType.TRANSFER_PAGES)[0]

    def gpa_ranges(self) -> tuple[GpaRange, ...]:
        """The ranges of a GPA-direct packet. `ProtocolError` when they break a rule, and for any other type of packet."""
        _, count = self._extended(PacketType.GPA_DIRECT)
        return parse_gpa_ranges(self.header[EXTENDED_HEADER_SIZE:], count)[0]

    def transfer_ranges(self) -> tuple[TransferRange, ...]:
        """The ranges of a transfer-page packet. `ProtocolError` when some are missing, and for any other type of packet."""
        _, count = self._extended(PacketType.TRANSFER_PAGES)
        size = TransferRange.layout().size
        if EXTENDED_HEADER_SIZE + size * count > len(self.header):
            present = (len(self.header) - EXTENDED_HEADER_SIZE) // size
            raise ProtocolError("transfer ranges", EXTENDED_HEADER_SIZE, f"{count} ranges", f"{present}")
        numbers = iter(struct.unpack_from(f"<{2 * count}I", self.header, EXTENDED_HEADER_SIZE))
        return tuple(map(TransferRange, numbers, numbers))

    def _extended(self, kind: PacketType) -> tuple[int, int]:
        """(set ID, count of ranges) of the extended header."""
        if self.packet_type != kind:
            raise ProtocolError("packet", 0, f"type {kind.value:#x}", f"{self.packet_type:#x}")
        if len(self.header) < EXTENDED_HEADER_SIZE:
            raise ProtocolError("packet", DESCRIPTOR_SIZE, "an extended header", f"{len(self.header)} bytes")
        set_id, _, count = _EXTENDED_HEADER.unpack_from(self.header)
        return set_id, count


class PacketShape(NamedTuple):
    """What the first word of a descriptor says."""

    packet_type: PacketType
    flags: int
    payload_start: int
    """Bytes from the descriptor."""
    payload_end: int
    """Bytes from the descriptor; the footer follows."""


def descriptor_word(packet_type: int, header_size: int, size: int, flags: int) -> int:
    """The first word of a descriptor: `header_size` and `size` are bytes, multiples of 8 from the descriptor's start."""
    return packet_type | header_size << 13 | size << 29 | flags << FLAGS_SHIFT


def parse_shape(
    word: int, room: int, strict: bool = True, position: int = 0, error: type[ProtocolError] = ProtocolError
) -> PacketShape:
    """Check the first word of a descriptor at `position`, when `room` bytes are there for the packet without its footer.

    Raises `error`, in the order of the checks: offset, length, room, flags (unless `strict` is false: then unknown ones
    are ignored), type, room for an extended header.
    """
    what = "packet descriptor"
    kind, data_offset8, length8, flags = word & 0xFFFF, word >> 16 & 0xFFFF, word >> 32 & 0xFFFF, word >> FLAGS_SHIFT
    start, end = 8 * data_offset8, 8 * length8
    if start < DESCRIPTOR_SIZE:
        raise error(what, position + 2, f"a payload at byte {DESCRIPTOR_SIZE} or later", f"{start}")
    if end < start:
        raise error(what, position + 4, f"an end at byte {start} or later", f"{end}")
    if end > room:
        raise error(what, position + 4, f"at most {max(room, 0)} bytes without footer", f"{end}")
    if strict and flags & ~COMPLETION_REQUESTED:
        raise error(what, position + 6, "no flag but bit 0", f"{flags:#06x}")
    packet_type = RING_TYPES.get(kind)
    if packet_type is None:
        raise error(what, position, "packet type 0x6, 0x7, 0x9 or 0xb", f"{kind:#x}")
    least = DESCRIPTOR_SIZE + EXTENDED_HEADER_SIZE
    if start < least and packet_type in WITH_RANGES:
        raise error(what, position + 2, f"a payload at byte {least} or later, after the extended header", f"{start}")
    return PacketShape(packet_type, flags, start, end)


def check_header(
    packet_type: PacketType, header: bytes, position: int = 0, error: type[ProtocolError] = ProtocolError
) -> None:
    """Check the extended header of a packet at `position`. Raises `error` for a GPA-direct packet without ranges."""
    if packet_type is PacketType.GPA_DIRECT and not any(header[4:EXTENDED_HEADER_SIZE]):
        raise error("GPA-direct packet", position + DESCRIPTOR_SIZE + 4, "one range or more", "none")


def parse_packet(data: bytes, strict: bool = True) -> Packet:
    """One packet, with or without its footer, at the start of `data`. `ProtocolError` when it breaks a rule."""
    if len(data) < DESCRIPTOR_SIZE:
        raise ProtocolError(
            "packet", len(data), f"a descriptor of {DESCRIPTOR_SIZE} bytes", f"an end after {len(data)}"
        )
    word, transaction_id = DESCRIPTOR.unpack_from(data)
    packet_type, flags, start, end = parse_shape(word, len(data), strict)
    header = bytes(data[DESCRIPTOR_SIZE:start])
    check_header(packet_type, header)
    return Packet(packet_type, flags, transaction_id, bytes(data[start:end]), header)


def pack_packet(
    packet_type: int,
    payload: bytes,
    transaction_id: int = 0,
    flags: int = 0,
    header: bytes = b"",
    start: int | None = None,
) -> bytes:
    """Descriptor, extended header and payload, padded with zeros; with its footer if `start`, its ring offset, is given.

    `ValueError` for a packet over 524,280 bytes, or a value that does not fit its field.
    """
    header_size = DESCRIPTOR_SIZE + round_up_8(len(header))
    size = header_size + round_up_8(len(payload))
    if size > 8 * MAX_LENGTH8:
        raise ValueError(f"a packet is at most {8 * MAX_LENGTH8} bytes, not {size}")
    try:
        descriptor = DESCRIPTOR.pack(descriptor_word(packet_type, header_size, size, flags), transaction_id)
        footer = b"" if start is None else FOOTER.pack(start << FOOTER_SHIFT)
    except struct.error as error:
        raise ValueError(f"packet: a value does not fit its field ({error})") from None
    return (descriptor + header).ljust(header_size, b"\0") + payload.ljust(size - header_size, b"\0") + footer


def pack_in_band(payload: bytes, transaction_id: int = 0, completion: bool = False, start: int | None = None) -> bytes:
    """A packet of plain data; `completion` asks for one."""
    return pack_packet(PacketType.IN_BAND, payload, transaction_id, int(completion), start=start)


def pack_completion(transaction_id: int, payload: bytes = b"", start: int | None = None) -> bytes:
    """The answer to the packet with this transaction ID."""
    return pack_packet(PacketType.COMPLETION, payload, transaction_id, start=start)


def pack_gpa_direct(
    ranges: Iterable[GpaRange], payload: bytes, transaction_id: int, completion: bool = True, start: int | None = None
) -> bytes:
    """Data that lies in guest memory, and a payload that says what it is."""
    packed = [gpa_range.pack() for gpa_range in ranges]
    header = _EXTENDED_HEADER.pack(0, 0, len(packed)) + b"".join(packed)
    return pack_packet(PacketType.GPA_DIRECT, payload, transaction_id, int(completion), header, start)


def pack_transfer_pages(
    set_id: int,
    ranges: Iterable[TransferRange],
    payload: bytes,
    transaction_id: int,
    completion: bool = True,
    start: int | None = None,
) -> bytes:
    """Data that lies in a buffer both sides know, and a payload that says what it is."""
    packed = [transfer_range.pack() for transfer_range in ranges]
    header = _EXTENDED_HEADER.pack(set_id, 0, len(packed)) + b"".join(packed)
    return pack_packet(PacketType.TRANSFER_PAGES, payload, transaction_id, int(completion), header, start)


def pack_pipe(data: bytes | memoryview, packet_type: int = PipePacketType.DATA) -> bytes:
    """The payload that carries `data` in a pipe."""
    return _PIPE_HEADER.pack(packet_type, len(data)) + data


def pack_pipes(items: Sequence[bytes | memoryview]) -> list[bytes]:
    """The payloads that carry these in a pipe: `pack_pipe` for many, and cheapest when there are few sizes."""
    headers = {size: _PIPE_HEADER.pack(PipePacketType.DATA, size) for size in set(map(len, items))}
    return [headers[len(item)] + item for item in items]


def parse_pipe(payload: bytes) -> tuple[PipePacketType, bytes]:
    """What a pipe's payload carries, without the zeros after it. For PARTIAL the data is what is left of it.

    `ProtocolError` for a payload without header, an unknown type, more data than there is, or a partial packet whose
    consumed bytes (high 16 bits of the length) are not fewer than all (low 16 bits).
    """
    if len(payload) < PIPE_HEADER_SIZE:
        raise ProtocolError("pipe header", len(payload), f"{PIPE_HEADER_SIZE} bytes", f"an end after {len(payload)}")
    kind, length = _PIPE_HEADER.unpack_from(payload)
    if kind == PipePacketType.DATA and length <= len(payload) - PIPE_HEADER_SIZE:
        return PipePacketType.DATA, payload[PIPE_HEADER_SIZE : PIPE_HEADER_SIZE + length]
    try:
        packet_type = PipePacketType(kind)
    except ValueError:
        raise ProtocolError("pipe header", 0, "a pipe packet type from 1 to 4", f"{kind:#x}") from None
    consumed = 0
    if packet_type is PipePacketType.PARTIAL:
        consumed, length = length >> 16, length & 0xFFFF
        if consumed >= length:
            raise ProtocolError("pipe header", 4, f"fewer than {length} bytes consumed", f"{consumed}")
    if length > len(payload) - PIPE_HEADER_SIZE:
        raise ProtocolError("pipe header", 4, f"up to {len(payload) - PIPE_HEADER_SIZE} bytes", f"{length}")
    return packet_type, payload[PIPE_HEADER_SIZE + consumed : PIPE_HEADER_SIZE + length]


def round_up_8(size: int) -> int:
    """The next multiple of 8."""
    return size + 7 & ~7
