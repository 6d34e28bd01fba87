"""Packets and ranges of guest memory: bytes against the compiler's layouts and golden packets, refusals, hostile bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import ProtocolError
from channels.protocol.gparange import (
    GpaRange,
    TransferRange,
    page_count,
    parse_gpa_ranges,
    resolve_transfer_range,
)
from channels.protocol.packet import (
    COMPLETION_REQUESTED,
    DESCRIPTOR_SIZE,
    MAX_LENGTH8,
    GpaDirectHeader,
    Packet,
    PacketDescriptor,
    PacketType,
    PipeHeader,
    PipePacketType,
    TransferPagesHeader,
    pack_completion,
    pack_gpa_direct,
    pack_in_band,
    pack_packet,
    pack_pipe,
    pack_pipes,
    pack_transfer_pages,
    parse_packet,
    parse_pipe,
)
from channels.protocol.wire import Wire
from channels.ring.control import CONTROL_PAGE_SIZE, FEATURE_BITS, IN, INTERRUPT_MASK, OUT, PENDING_SEND_SIZE

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors" / "layouts.json").read_text())
STRUCTS: dict[str, Any] = VECTORS["structs"]
PACKET_TYPES: dict[str, int] = VECTORS["enums"]["vmbus_packet_type"]

GOLDEN = {
    "in-band": (
        pack_in_band(b"hello", 0x1122334455667788, completion=True, start=0x40),
        "06000200 03000100 88776655 44332211 68656c6c 6f000000 00000000 40000000",
    ),
    "completion": (
        pack_completion(0x1122334455667788, start=0),
        "0b000200 02000000 88776655 44332211 00000000 00000000",
    ),
    "pipe": (
        pack_in_band(pack_pipe(b"abc"), start=0),
        "06000200 04000000 00000000 00000000 01000000 03000000 61626300 00000000 00000000 00000000",
    ),
    "GPA-direct": (
        pack_gpa_direct([GpaRange(0x1000, 0x14, (0x1000, 0x2000))], bytes(range(1, 9)), 9, start=0),
        "09000600 07000100 09000000 00000000 00000000 01000000 00100000 14000000 00100000 00000000"
        "00200000 00000000 01020304 05060708 00000000 00000000",
    ),
    "transfer pages": (
        pack_transfer_pages(0xCAFE, [TransferRange(0x10, 0x20)], bytes(range(1, 9)), 9, start=0),
        "07000400 05000100 09000000 00000000 feca0000 01000000 10000000 20000000 01020304 05060708 00000000 00000000",
    ),
}

LAYOUTS: list[tuple[type[Wire], str, int, dict[str, str]]] = [
    (
        PacketDescriptor,
        "struct vmpacket_descriptor",
        0,
        {
            "packet_type": "type",
            "data_offset8": "offset8",
            "length8": "len8",
            "flags": "flags",
            "transaction_id": "trans_id",
        },
    ),
    (
        TransferPagesHeader,
        "struct vmtransfer_page_packet_header",
        DESCRIPTOR_SIZE,
        {"transfer_page_set_id": "xfer_pageset_id", "range_count": "range_cnt"},
    ),
    (GpaDirectHeader, "struct vmdata_gpa_direct", DESCRIPTOR_SIZE, {"range_count": "range_cnt"}),
    (
        GpaDirectHeader,
        "struct vmbus_channel_packet_page_buffer",
        DESCRIPTOR_SIZE,
        {"range_count": "rangecount"},
    ),
    (GpaDirectHeader, "struct vmbus_packet_mpb_array", DESCRIPTOR_SIZE, {"range_count": "rangecount"}),
    (
        TransferRange,
        "struct vmtransfer_page_range",
        0,
        {"byte_count": "byte_count", "byte_offset": "byte_offset"},
    ),
    (PipeHeader, "struct vmbuspipe_hdr", 0, {"packet_type": "flags", "length": "msgsize"}),
]


def _fields(name: str) -> dict[str, tuple[int, int]]:
    return {field["name"]: (field["offset"], field["size"]) for field in STRUCTS[name]["fields"] if "size" in field}


@pytest.mark.parametrize(("kind", "name", "base", "names"), LAYOUTS)
def test_a_header_lies_where_a_compiler_put_it(kind: type[Wire], name: str, base: int, names: dict[str, str]) -> None:
    theirs = _fields(name)
    ours = {field.name: (base + field.offset, field.size) for field in kind.layout().fields}
    assert ours == {field: theirs[names[field]] for field in ours}
    if base == 0:
        assert kind.layout().size == STRUCTS[name]["size"]


@pytest.mark.parametrize("name", ["struct gpa_range", "struct hv_mpb_array", "struct hv_page_buffer"])
def test_a_gpa_range_lies_where_a_compiler_put_it(name: str) -> None:
    theirs = list(_fields(name).values())
    packed = GpaRange(0x01020304, 0x506, tuple(range(page_count(0x01020304, 0x506)))).pack()
    (count, _), (offset, _), (gpns, _) = theirs
    assert packed[count : count + 4] == bytes.fromhex("04030201")
    assert packed[offset : offset + 4] == bytes.fromhex("06050000")
    assert packed[gpns + 8 : gpns + 16] == (1).to_bytes(8, "little")


def test_a_page_buffer_packet_of_linux_is_a_gpa_direct_packet_of_one_page_ranges() -> None:
    fields = _fields("struct vmbus_channel_packet_page_buffer")
    size = STRUCTS["struct hv_page_buffer"]["size"]
    packet = pack_gpa_direct([GpaRange(10, 20, (index,)) for index in range(32)], b"", 0)
    assert len(packet) == STRUCTS["struct vmbus_channel_packet_page_buffer"]["size"]
    assert len(packet) - fields["range"][0] == 32 * size


def test_the_control_page_lies_where_a_compiler_put_it() -> None:
    fields = _fields("struct hv_ring_buffer")
    words = {
        "write_index": IN,
        "read_index": OUT,
        "interrupt_mask": INTERRUPT_MASK,
        "pending_send_sz": PENDING_SEND_SIZE,
        "feature_bits": FEATURE_BITS,
    }
    assert {name: fields[name] for name in words} == {name: (4 * word, 4) for name, word in words.items()}
    assert STRUCTS["struct hv_ring_buffer"]["size"] == fields["buffer"][0] == CONTROL_PAGE_SIZE


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_packets(name: str) -> None:
    packet, golden = GOLDEN[name]
    assert packet == bytes.fromhex(golden)


@pytest.mark.parametrize("name", GOLDEN)
def test_a_golden_packet_reads_back_with_and_without_its_footer(name: str) -> None:
    packet, _ = GOLDEN[name]
    read = parse_packet(packet)
    assert read == parse_packet(packet[:-8])
    assert pack_packet(read.packet_type, read.payload, read.transaction_id, read.flags, read.header) == packet[:-8]


def test_a_packet_of_the_largest_length_is_packed_and_a_larger_one_refused() -> None:
    largest = 8 * MAX_LENGTH8 - DESCRIPTOR_SIZE
    assert parse_packet(pack_in_band(bytes(largest))).payload == bytes(largest)
    with pytest.raises(ValueError, match="524280"):
        pack_in_band(bytes(largest + 1))


def test_a_transaction_id_that_is_no_u64_is_a_value_error() -> None:
    for wrong in (-1, 1 << 64):
        with pytest.raises(ValueError, match="fit"):
            pack_in_band(b"", wrong)


def test_the_reply_id_is_there_only_where_it_means_something() -> None:
    assert Packet(PacketType.IN_BAND, 0, 7, b"").reply_id is None
    assert Packet(PacketType.IN_BAND, COMPLETION_REQUESTED, 7, b"").reply_id == 7
    assert Packet(PacketType.COMPLETION, 0, 7, b"").reply_id == 7
    assert [Packet(PacketType.IN_BAND, flags, 7, b"").completion_requested for flags in (0, 1)] == [False, True]


def _descriptor(kind: int, data_offset8: int, length8: int, flags: int = 0) -> bytes:
    return PacketDescriptor(kind, data_offset8, length8, flags, 9).pack()


REFUSED = {
    "no descriptor": (bytes(15), 15, "a descriptor of 16"),
    "payload inside the descriptor": (_descriptor(6, 1, 2), 2, "byte 16 or later"),
    "end before the payload": (_descriptor(6, 3, 2) + bytes(16), 4, "byte 24 or later"),
    "end beyond the data": (_descriptor(6, 2, 3), 4, "at most 16 bytes"),
    "unknown flag": (_descriptor(6, 2, 2, 2), 6, "no flag but bit 0"),
    "unknown type": (_descriptor(8, 2, 2), 0, "packet type"),
    "GPA-direct without ranges": (_descriptor(9, 3, 3) + bytes(8), 20, "one range or more"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_packet_that_breaks_a_rule_is_refused_with_what_where_expected_and_got(name: str) -> None:
    data, offset, expected = REFUSED[name]
    with pytest.raises(ProtocolError, match=expected) as caught:
        parse_packet(data)
    assert caught.value.offset == offset


@pytest.mark.vmbus_item(93)
@pytest.mark.parametrize("kind", [PacketType.GPA_DIRECT, PacketType.TRANSFER_PAGES])
def test_an_extended_header_needs_room_before_the_payload(kind: PacketType) -> None:
    with pytest.raises(ProtocolError, match="byte 24 or later, after the extended header, got 16"):
        parse_packet(_descriptor(kind, 2, 8) + bytes(48))


def test_checks_come_in_the_order_of_the_reference() -> None:
    everything_wrong = [
        _descriptor(1, 1, 0, 2),
        _descriptor(1, 5, 4, 2),
        _descriptor(1, 5, 6, 2),
        _descriptor(1, 2, 2, 2),
        _descriptor(1, 2, 2, 0),
    ]
    offsets = []
    for data in everything_wrong:
        with pytest.raises(ProtocolError) as caught:
            parse_packet(data)
        offsets.append(caught.value.offset)
    assert offsets == [2, 4, 4, 6, 0]


def test_a_lenient_reader_ignores_unknown_flags() -> None:
    packet = parse_packet(_descriptor(6, 2, 2, 0x8001), strict=False)
    assert packet.completion_requested


@pytest.mark.parametrize("kind", [kind for kind in PacketType if kind.value not in (6, 7, 9, 0xB)])
def test_types_that_rings_do_not_carry_are_refused(kind: PacketType) -> None:
    with pytest.raises(ProtocolError, match=f"packet type .* got {kind.value:#x}"):
        parse_packet(_descriptor(kind, 4, 8) + bytes(64))


def test_ranges_of_another_type_of_packet_are_a_protocol_error() -> None:
    packet = Packet(PacketType.IN_BAND, 0, 0, b"")
    for read in (packet.gpa_ranges, packet.transfer_ranges, lambda: packet.transfer_page_set_id):
        with pytest.raises(ProtocolError, match="type 0x"):
            read()


def test_missing_transfer_ranges_are_found_when_asked_for() -> None:
    packet = parse_packet(_descriptor(7, 4, 4, 1) + TransferPagesHeader(3, 2).pack() + bytes(8))
    assert packet.transfer_page_set_id == 3
    with pytest.raises(ProtocolError, match="2 ranges, got 1"):
        packet.transfer_ranges()


def test_a_transfer_page_packet_may_have_no_ranges() -> None:
    assert parse_packet(pack_transfer_pages(1, [], b"", 0)).transfer_ranges() == ()


def test_ignored_bytes_of_an_extended_header_are_ignored() -> None:
    packet = bytearray(GOLDEN["transfer pages"][0])
    packet[18:20] = b"\xff\xff"
    assert parse_packet(bytes(packet)).transfer_page_set_id == 0xCAFE
    packet = bytearray(GOLDEN["GPA-direct"][0])
    packet[16:20] = b"\xff\xff\xff\xff"
    assert parse_packet(bytes(packet)).gpa_ranges() == (GpaRange(0x1000, 0x14, (0x1000, 0x2000)),)


def _header(byte_count: int, byte_offset: int) -> bytes:
    return TransferRange(byte_count, byte_offset).pack()


@pytest.mark.vmbus_item(94)
def test_an_offset_beyond_the_first_page_is_too_large() -> None:
    with pytest.raises(ProtocolError, match="too large") as caught:
        parse_gpa_ranges(_header(1, 0x1000) + bytes(16), 1)
    assert caught.value.offset == 4


def test_gpa_ranges_are_checked_in_the_order_of_the_reference() -> None:
    for data, expected in (
        (bytes(7), "empty range"),
        (_header(0, 0x1000), "over 0, got 0"),
        (_header(0xFFFF_FFFF, 0x1000), "too large"),
        (_header(0xFFFF_F001, 0), "32 bits"),
        (_header(0xFFFF_EFF2, 0xFFF), "32 bits"),
        (_header(0xFFFF_F000, 0), "1048575 page numbers, got 0"),
        (_header(0x1000, 1) + bytes(8), "2 page numbers, got 1"),
    ):
        with pytest.raises(ProtocolError, match=expected):
            parse_gpa_ranges(data, 1)


def test_an_error_says_what_was_read_and_where() -> None:
    data = GpaRange(1, 2, (3,)).pack() + _header(0, 0)
    with pytest.raises(ProtocolError, match=r"^GPADL 7: at offset 16 ") as caught:
        parse_gpa_ranges(data, 2, "GPADL 7")
    assert caught.value.what == "GPADL 7"


@given(
    st.lists(
        st.tuples(st.integers(1, 5 * 4096), st.integers(0, 4095), st.integers(0, (1 << 64) - 1)), min_size=1, max_size=5
    ),
    st.binary(max_size=40),
)
def test_gpa_ranges_read_back_and_what_follows_is_left(shapes: list[tuple[int, int, int]], rest: bytes) -> None:
    ranges = tuple(GpaRange(count, offset, (gpn,) * page_count(count, offset)) for count, offset, gpn in shapes)
    packed = b"".join(gpa_range.pack() for gpa_range in ranges)
    assert parse_gpa_ranges(packed + rest, len(ranges)) == (ranges, len(packed))


@given(st.binary(max_size=200), st.integers(0, (1 << 32) - 1))
def test_hostile_ranges_raise_nothing_but_a_protocol_error(data: bytes, count: int) -> None:
    try:
        ranges, used = parse_gpa_ranges(data, count)
    except ProtocolError:
        return
    assert used <= len(data)
    assert b"".join(gpa_range.pack() for gpa_range in ranges) == data[:used]


@given(
    st.one_of(
        st.binary(max_size=120),
        st.builds(
            lambda kind, offset, length, flags, rest: _descriptor(kind, offset, length, flags) + rest,
            st.sampled_from([6, 7, 9, 11]),
            st.integers(0, 8),
            st.integers(0, 10),
            st.sampled_from([0, 1, 2]),
            st.binary(max_size=80),
        ),
    ),
    st.booleans(),
)
def test_hostile_packets_raise_nothing_but_a_protocol_error(data: bytes, strict: bool) -> None:
    try:
        packet = parse_packet(data, strict)
        assert DESCRIPTOR_SIZE + len(packet.header) + len(packet.payload) <= len(data)
        packet.gpa_ranges() if packet.packet_type == PacketType.GPA_DIRECT else packet.transfer_ranges()
    except ProtocolError:
        return


@pytest.mark.parametrize(
    "wrong",
    [
        GpaRange(0, 0, ()),
        GpaRange(1, 4096, (0,)),
        GpaRange(4097, 0, (0,)),
        GpaRange(1, 0, ()),
        GpaRange(1 << 32, 0, ()),
        GpaRange(1, 0, (1 << 64,)),
        GpaRange(1, -1, (0,)),
    ],
)
def test_a_range_that_no_receiver_accepts_is_not_packed(wrong: GpaRange) -> None:
    with pytest.raises(ValueError, match=r"range|pages|page number"):
        wrong.pack()


def test_pieces_merge_neighbours_and_keep_to_offset_and_count() -> None:
    assert GpaRange(0x2800, 0x800, (7, 8, 3)).pieces() == ((0x7800, 0x1800), (0x3000, 0x1000))
    assert GpaRange(0x10, 0xFF8, (9, 2)).pieces() == ((0x9FF8, 8), (0x2000, 8))
    assert GpaRange(5, 1, (4,)).pieces() == ((0x4001, 5),)
    assert GpaRange(0x3000, 0, (4, 5, 6)).pieces() == ((0x4000, 0x3000),)


@given(st.integers(1, 5 * 4096), st.integers(0, 4095), st.data())
def test_pieces_are_the_bytes_of_the_range(count: int, offset: int, data: st.DataObject) -> None:
    pages = page_count(count, offset)
    gpns = tuple(data.draw(st.lists(st.integers(0, 8), min_size=pages, max_size=pages)))
    every_byte = [4096 * gpn + byte for gpn in gpns for byte in range(4096)][offset : offset + count]
    pieces = GpaRange(count, offset, gpns).pieces()
    assert [gpa + byte for gpa, size in pieces for byte in range(size)] == every_byte


@pytest.mark.vmbus_item(100)
def test_transfer_ranges_resolve_against_their_buffer() -> None:
    buffer = GpaRange(3 * 4096, 0, (11, 12, 13))
    assert resolve_transfer_range(TransferRange(0x10, 0x10), buffer) == GpaRange(0x10, 0x10, (11,))
    assert resolve_transfer_range(TransferRange(0x10, 0xFFF), buffer) == GpaRange(0x10, 0xFFF, (11, 12))
    assert resolve_transfer_range(TransferRange(0x10, 0x1000), buffer) == GpaRange(0x10, 0, (12,))
    assert resolve_transfer_range(TransferRange(3 * 4096, 0), buffer) == buffer
    assert resolve_transfer_range(TransferRange(0, 3 * 4096), buffer).pieces() == ()


def test_a_transfer_range_counts_from_the_start_of_the_buffer_s_bytes() -> None:
    buffer = GpaRange(0x2000, 0x800, (11, 12, 13))
    assert resolve_transfer_range(TransferRange(0x1000, 0x7FF), buffer) == GpaRange(0x1000, 0xFFF, (11, 12))
    assert resolve_transfer_range(TransferRange(1, 0x1FFF), buffer) == GpaRange(1, 0x7FF, (13,))


@pytest.mark.parametrize("outside", [TransferRange(1, 0x2000), TransferRange(0x2001, 0), TransferRange(0xFFFF_FFFF, 1)])
def test_a_transfer_range_outside_its_buffer_is_a_protocol_error(outside: TransferRange) -> None:
    with pytest.raises(ProtocolError, match="within 0x2000 bytes"):
        resolve_transfer_range(outside, GpaRange(0x2000, 0x800, (11, 12, 13)))


@given(st.binary(max_size=64))
def test_a_pipe_s_data_reads_back_without_its_padding(data: bytes) -> None:
    payload = parse_packet(pack_in_band(pack_pipe(data))).payload
    assert len(payload) % 8 == 0
    assert parse_pipe(payload) == (PipePacketType.DATA, data)


def test_a_partial_pipe_packet_gives_what_is_left() -> None:
    assert parse_pipe(PipeHeader(2, 2 << 16 | 5).pack() + b"abcde") == (PipePacketType.PARTIAL, b"cde")


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (bytes(7), "8 bytes"),
        (PipeHeader(0, 0).pack(), "from 1 to 4, got 0x0"),
        (PipeHeader(5, 0).pack(), "from 1 to 4, got 0x5"),
        (PipeHeader(1, 9).pack() + bytes(8), "up to 8 bytes, got 9"),
        (PipeHeader(2, 5 << 16 | 5).pack() + bytes(8), "fewer than 5"),
        (PipeHeader(2, 2 << 16 | 9).pack() + bytes(8), "up to 8 bytes, got 9"),
    ],
)
def test_a_pipe_header_that_breaks_a_rule_is_refused(payload: bytes, expected: str) -> None:
    with pytest.raises(ProtocolError, match=expected):
        parse_pipe(payload)


def test_packet_types_have_the_compiler_s_values() -> None:
    assert list(PACKET_TYPES.values()) == [kind.value for kind in PacketType]
    assert PACKET_TYPES["VM_PKT_DATA_INBAND"] == PacketType.IN_BAND
    assert PACKET_TYPES["VM_PKT_DATA_USING_XFER_PAGES"] == PacketType.TRANSFER_PAGES
    assert PACKET_TYPES["VM_PKT_DATA_USING_GPA_DIRECT"] == PacketType.GPA_DIRECT
    assert PACKET_TYPES["VM_PKT_COMP"] == PacketType.COMPLETION


def test_the_ranges_of_openvmm_s_gpadl_message_read_back() -> None:
    messages = json.loads((Path(__file__).parents[1] / "vectors" / "messages.json").read_text())["messages"]
    (header,) = [message for message in messages if message["type"] == 8]
    gpa_range = GpaRange(0x2000, 0, (0x100, 0x1FF))
    data = bytes.fromhex(header["hex"])[20:]
    assert parse_gpa_ranges(data, 1) == ((gpa_range,), len(data))
    assert gpa_range.pack() == data


@pytest.mark.parametrize("items", [[], [b""], [b"abc"] * 3, [b"a", b"", b"abc", memoryview(b"xabcx")[1:4], b"a" * 300]])
def test_many_pipe_payloads_are_those_of_one_each(items: list[bytes]) -> None:
    assert pack_pipes(items) == [pack_pipe(bytes(item)) for item in items]
