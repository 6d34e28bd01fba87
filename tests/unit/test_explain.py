"""Every byte has a row, every vector is explained without a complaint, what is wrong is named, and nothing raises."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.hvdef import (
    MessageType,
    PostMessageDirectInput,
    PostMessageInput,
    SignalEventDirectInput,
    SignalEventInput,
    SynicMessage,
    TimerMessage,
)
from broker.hvdef.hypercall import PARTITION_SELF, VP_SELF
from broker.hvdef.monitor import PARAMETER_OFFSET, pending_location
from channels.explain import KINDS, Explanation, explain
from channels.protocol.connect import InitiateContact, VersionResponse, target_info
from channels.protocol.gpadl import gpadl_messages
from channels.protocol.gparange import GpaRange, TransferRange
from channels.protocol.ids import HEARTBEAT, NO_INTERRUPTS, event_connection
from channels.protocol.message import STATUS_UNSUCCESSFUL
from channels.protocol.message import MessageType as ChannelMessageType
from channels.protocol.offer import OfferChannel, OfferFlags, hvsock_area, pipe_area
from channels.protocol.open import OpenChannel, OpenResult
from channels.protocol.packet import PipePacketType, pack_gpa_direct, pack_in_band, pack_pipe, pack_transfer_pages
from channels.protocol.parse import RULES

VECTORS = Path(__file__).parents[1] / "vectors"
REFUSED_CONTACT = "client_id: at offset 40 expected a client ID, 56 bytes in all, with feature 0x8, got none: no answer"
"""One vector is a contact with feature 0x8 in the form without client ID; no server answers it (reference, 1.5)."""

SHORT_FOR_ITS_FEATURES = bytes.fromhex("0f0000000000000001000000040000006f000000")
"""Another is a VERSION_RESPONSE with feature 0x40 in the form without monitor pages: zeros after it read as such."""


def explained(data: bytes, kind: str | None = None) -> Explanation:
    """The explanation, once it is certain that its rows cover the input exactly."""
    explanation = explain(data, kind)
    ends = [0, *(row.offset + row.size for row in explanation.rows)]
    assert [row.offset for row in explanation.rows] == ends[:-1]
    assert ends[-1] == len(data)
    assert all(row.size > 0 and row.field for row in explanation.rows)
    assert explanation.kind in KINDS
    assert explanation.title
    assert explanation.guessed is (kind is None)
    return explanation


def meaning(explanation: Explanation, field: str) -> str:
    return next(row.meaning for row in explanation.rows if row.field == field)


def value(explanation: Explanation, field: str) -> int | str:
    return next(row.value for row in explanation.rows if row.field == field)


def words(explanation: Explanation) -> str:
    return json.dumps([explanation.title, *(f"{row.field} {row.value} {row.meaning}" for row in explanation.rows)])


def fields(explanation: Explanation) -> list[str]:
    return [row.field for row in explanation.rows]


def load(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((VECTORS / name).read_text())
    return loaded


MESSAGES = [bytes.fromhex(entry["hex"]) for entry in load("messages.json")["messages"]]
CONVERSATION = [bytes.fromhex(step["hex"]) for step in load("linux_guest_conversation.json")["steps"] if "hex" in step]
RING_CASES = load("ring.json")["cases"]


def written_packets(case: dict[str, Any]) -> Iterator[tuple[int, bytes]]:
    """Each packet that the writes of a case left in the ring, with its offset there."""
    size = case["data_size"]
    data = bytearray([0xEE]) * size
    for offset, text in case["data_written"]:
        data[offset : offset + len(text) // 2] = bytes.fromhex(text)
    position = case["start"]["write_index"]
    while position != case["final"]["write_index"]:
        packet = bytes(data[position:] + data[:position])
        length = 8 * int.from_bytes(packet[4:6], "little") + 8
        yield position, packet[:length]
        position = (position + length) % size


# The vectors.


@pytest.mark.parametrize("message", MESSAGES + CONVERSATION, ids=lambda message: f"{message[0]}-{len(message)}")
def test_every_message_of_the_vectors_is_explained(message: bytes) -> None:
    for explanation in (explained(message), explained(message, "channel-message")):
        assert explanation.kind == "channel-message"
        assert "unknown" not in words(explanation).lower()
        is_refused_contact = message[0] == 14 and len(message) == 40 and message[20] & 0x8
        assert explanation.problems == ([REFUSED_CONTACT] if is_refused_contact else [])
        assert "ignored" not in fields(explanation)


@pytest.mark.parametrize("message", MESSAGES + CONVERSATION, ids=lambda message: f"{message[0]}-{len(message)}")
def test_a_message_is_explained_in_its_slot_and_in_its_hypercall(message: bytes) -> None:
    alone = explained(message)
    slot = explained(SynicMessage(1, message, origination_id=0x122).pack())
    post = explained(PostMessageInput(4, 1, message).pack())
    direct = explained(PostMessageDirectInput(PARTITION_SELF, 0, 0, 2, SynicMessage(1, message).pack()).pack())
    assert (slot.kind, post.kind, direct.kind) == ("synic-message", "post-message", "post-message-direct")
    for wrapped, before in ((slot, 16), (post, 16), (direct, 36)):
        assert wrapped.title.endswith(alone.title)
        inner = [row for row in wrapped.rows if before <= row.offset < before + len(message)]
        assert [(row.offset - before, row.field, row.meaning) for row in inner] == [
            (row.offset, row.field, row.meaning) for row in alone.rows
        ]
        assert len(wrapped.problems) == len(alone.problems)


@pytest.mark.parametrize("case", RING_CASES, ids=lambda case: case["id"])
def test_every_control_page_and_packet_of_the_vectors_is_explained(case: dict[str, Any]) -> None:
    head = bytes.fromhex(case["control_page_first_68"])
    for page in (head, head.ljust(4096, b"\0")):
        control = explained(page)
        assert control.kind == "ring-control"
        assert control.problems == []
        assert value(control, "in") == case["final"]["write_index"]
        assert value(control, "out") == case["final"]["read_index"]
        assert value(control, "feature_bits") == 1
    packets = list(written_packets(case))
    assert len(packets) == sum(result["ret"] == 0 for result in case["results"])
    written = [write for write, result in zip(case["writes"], case["results"], strict=True) if result["ret"] == 0]
    for (position, packet), write in zip(packets, written, strict=True):
        for data in (packet, packet[:-8]):
            explanation = explained(data)
            assert explanation.kind == "ring-packet"
            assert explanation.problems == []
            assert "unknown" not in words(explanation).lower()
            assert value(explanation, "transaction_id") == write["xid"]
            assert ("footer.start" in fields(explanation)) is (data is packet)
        ranges = [row for row in explanation.rows if row.field.startswith("range[") and "page" not in row.field]
        assert len(ranges) == len(write.get("ranges", [])) or (len(ranges) == 1 and "pfns" in write)
        assert value(explained(packet), "footer.start") == position


@pytest.mark.parametrize("behind", [b"", bytes(4096), b"\x5a" * 5000], ids=["nothing", "zeros", "bytes"])
def test_a_guess_finds_what_longer_bytes_begin_with(behind: bytes) -> None:
    page = CONTROL[:68].ljust(4096, b"\0")
    for data, kind in [
        *((message, "channel-message") for message in MESSAGES + CONVERSATION if message != SHORT_FOR_ITS_FEATURES),
        (SLOT, "synic-message"),
        (POST, "post-message"),
        (PACKET, "ring-packet"),
        (DIRECT, "ring-packet"),
        (page, "ring-control"),
        (changed(page, 0, 0x40), "ring-control"),
    ]:
        if any(behind) and kind == "channel-message" and len(RULES[ChannelMessageType(data[0])].forms) > 1:
            continue  # what follows would make it another form
        explanation = explain(data + behind, goes_on=True)
        assert explanation.guessed
        assert explanation.kind == kind, data.hex()
        assert sum(row.size for row in explanation.rows) == len(data + behind)


# What single kinds say.


def test_all_types_and_forms_have_their_own_rows_and_none_is_ignored() -> None:
    for message_type, rule in RULES.items():
        for form in rule.forms:
            data = bytes([message_type]).ljust(form.layout().size, b"\0")
            explanation = explained(data, "channel-message")
            assert message_type.name in explanation.title
            assert f"Sent by the {rule.sender.value}" in explanation.title
            assert "ignored" not in fields(explanation)


def test_an_offer_names_its_interface_flags_user_area_and_connection() -> None:
    flags = OfferFlags.ENUMERATE_DEVICE_INTERFACE | OfferFlags.NAMED_PIPE_MODE
    offer = OfferChannel(
        HEARTBEAT, HEARTBEAT, flags, user_defined=pipe_area(4), channel_id=5, connection_id=event_connection(5)
    )
    explanation = explained(offer.pack())
    assert meaning(explanation, "interface_id") == "class of the device: heartbeat"
    assert meaning(explanation, "flags") == "0x1 enumerate device interface, 0x10 named pipe mode"
    assert meaning(explanation, "pipe.pipe_type") == "messages"
    assert meaning(explanation, "monitor_id") == "0xFF: none"
    assert meaning(explanation, "connection_id") == "the guest signals events of channel 5, SINT 2, VTL 0"
    flags |= OfferFlags.TLNPI_PROVIDER
    area = hvsock_area(guest_accepts=True, silo_id=HEARTBEAT)
    hvsock = explained(OfferChannel(HEARTBEAT, HEARTBEAT, flags, user_defined=area).pack())
    assert value(hvsock, "hvsock.is_for_guest_accept") == 1
    assert value(hvsock, "hvsock.version") == 1
    assert value(hvsock, "hvsock.silo_id") == str(HEARTBEAT)


def test_bytes_16_to_23_of_a_contact_are_what_the_version_makes_them() -> None:
    old = explained(InitiateContact(0xD, 0, 0x5000).pack())
    assert meaning(old, "interrupt_page_gpa") == "a page's GPA"
    middle = explained(InitiateContact(0x40000, 0, 0x5001).pack())
    assert meaning(middle, "interrupt_page_gpa") == "ignored: version 4.0 has none"
    new = explained(InitiateContact(0x60000, 0, target_info(2, 0, 0x24)).pack())
    assert meaning(new, "feature_flags") == "0x4 modify connection, 0x20 pause resume"
    assert meaning(new, "version_requested") == "version 6.0"
    assert (old.problems, middle.problems, new.problems) == ([], [], [])


def test_statuses_and_answers_have_names() -> None:
    assert meaning(explained(OpenResult(1, 0, STATUS_UNSUCCESSFUL).pack()), "status") == "unsuccessful"
    assert meaning(explained(OpenResult(1).pack()), "status") == "success"
    no_interrupts = explained(OpenChannel(1, 0, 1, NO_INTERRUPTS, 4).pack())
    assert meaning(no_interrupts, "target_vp") == "0xFFFFFFFF: no interrupts"
    answer = "selected_version_or_connection_id"
    assert meaning(explained(VersionResponse(1, 0, 0x30000).pack()), answer) == "version 3.0"
    assert "connection 0x4: " in meaning(explained(VersionResponse(1, 0, 4).pack()), answer)
    assert "unsupported" in meaning(explained(VersionResponse().pack()), answer)


def test_a_range_buffer_in_several_messages_is_decoded_as_far_as_each_message_tells() -> None:
    gpa_range = GpaRange(40 * 4096, 0, tuple(range(100, 140)))
    messages = [message.pack() for message in gpadl_messages(1, 2, 1, gpa_range.pack())]
    header, body = map(explained, messages)
    assert header.problems == []
    assert body.problems == []
    assert "26 page numbers are here, the others in GPADL_BODY" in meaning(header, "range[0]")
    assert value(header, "range[0].page[25]") == 125
    assert value(body, "word[0]") == 126
    for message in messages:
        assert explained(message.ljust(240, b"\0")).problems == []


def test_pages_say_which_bits_and_entries_are_set() -> None:
    page = bytearray(4096)
    offset, mask = pending_location(67)
    page[0] = 0b0100
    page[offset : offset + 4] = mask.to_bytes(4, "little")
    start = PARAMETER_OFFSET + 8 * 67
    page[start : start + 4] = event_connection(3).to_bytes(4, "little")
    explanation = explained(bytes(page))
    assert explanation.kind == "monitor-page"
    assert explanation.problems == []
    assert meaning(explanation, "group[2].pending") == "monitors that are pending: {67}"
    assert meaning(explanation, "parameter[67].connection_id") == "events of channel 3, SINT 2, VTL 0"
    flags = bytearray(4096)
    flags[2 * 256] = 0b100010
    flags[2 * 256 + 255] = 0x80
    set_flags = explained(bytes(flags), "flags-page")
    assert value(set_flags, "SINT[2]") == "{1, 5, 2047}"
    assert fields(set_flags) == ["SINT[0..1]", "SINT[2]", "SINT[3..15]"]


def test_hypercall_inputs_and_hypervisor_messages_are_explained() -> None:
    signal = explained(SignalEventInput(event_connection(7), 0).pack())
    assert signal.kind == "signal-event"
    assert meaning(signal, "connection_id") == "events of channel 7, SINT 2, VTL 0"
    direct = explained(SignalEventDirectInput(PARTITION_SELF, VP_SELF, 0, 2, 9).pack())
    assert direct.kind == "signal-event-direct"
    assert meaning(direct, "vp_index") == "the calling processor"
    timer = explained(SynicMessage(MessageType.TIMER_EXPIRED, TimerMessage(1, 10_000_000, 10_000_005).pack(), 1).pack())
    assert meaning(timer, "expiration_time") == "1.0000000 s, in ticks of 100 ns"
    assert meaning(timer, "flags") == "message-pending: more wait, write EOM"
    assert explained(bytes(256), "synic-message").title == "SynIC message slot, empty"


def test_packets_show_ranges_and_pipes_and_say_what_is_padding() -> None:
    gpa = explained(pack_gpa_direct([GpaRange(5000, 20, (7, 9))], b"12345678", 9, start=16))
    assert meaning(gpa, "range[0]") == "5000 bytes from byte 20 of the first of 2 pages"
    assert meaning(gpa, "range[0].page[1]") == "GPA 0x9000"
    pages = explained(pack_transfer_pages(0xCAFE, [TransferRange(16, 32)], b"", 9))
    assert value(pages, "transfer_page_set_id") == 0xCAFE
    assert meaning(pages, "range[0]") == "16 bytes from byte 32 of the buffer"
    perhaps = explained(pack_in_band(pack_pipe(b"abc"), start=8))
    assert "perhaps in a pipe" in perhaps.title
    assert meaning(perhaps, "pipe.data") == '3 bytes; "abc"'
    assert "padding" in fields(perhaps)
    partial = explained(pack_in_band(bytes([2, 0, 0, 0, 5, 0, 2, 0]) + b"abcde"), "pipe-packet")
    assert partial.problems == []
    assert meaning(partial, "pipe.consumed") == "read already"
    assert meaning(partial, "pipe.data") == '3 bytes; "cde"'
    assert value(partial, "pipe.packet_type") == PipePacketType.PARTIAL


# What is wrong is named.


def changed(data: bytes, offset: int, *values: int) -> bytes:
    return data[:offset] + bytes(values) + data[offset + len(values) :]


OPEN = OpenChannel(1, 0, 1, 0, 4).pack()
CONTACT = InitiateContact(0x50003, 0, target_info(2, 0), 0x1000, 0x2000).pack()
GPADL = gpadl_messages(1, 2, 1, GpaRange(8192, 0, (1, 2)).pack())[0].pack()
SLOT = SynicMessage(1, OPEN).pack()
POST = PostMessageInput(4, 1, OPEN).pack()
PACKET = pack_in_band(b"hello", 5, True, start=0x40)
DIRECT = pack_gpa_direct([GpaRange(8192, 0, (1, 2))], b"", 1, start=0)
CONTROL = changed(bytes(4096), 64, 1)

WRONG = [
    ("channel-message", OPEN[:100], "OPEN_CHANNEL: at offset 100 expected 148 bytes, got an end after 100"),
    ("channel-message", OPEN[:3], "channel message: at offset 3 expected 8 bytes, got an end after 3"),
    ("channel-message", b"", "channel message: at offset 0 expected 8 bytes, got an end after 0"),
    ("channel-message", changed(OPEN, 0, 30), "type: at offset 0 expected a message type from 1 to 29, got 0x1e"),
    ("channel-message", changed(OPEN, 4, 7), "padding: at offset 4 expected zeros, got 07000000"),
    ("channel-message", changed(OPEN, 24, 0), "page_offset: at offset 24 expected a page number over 0, got 0"),
    ("channel-message", OPEN.ljust(241, b"\0"), "channel message: at offset 240 expected at most 240 bytes, got 241"),
    ("channel-message", changed(CONTACT, 10, 9), "version_requested: at offset 8 expected one of 0.13, 1.1, 2.4"),
    ("channel-message", changed(CONTACT, 16, 16), "sint: at offset 16 expected a SINT from 0 to 15, got 0x10"),
    ("channel-message", changed(CONTACT, 17, 3), "vtl: at offset 17 expected a VTL from 0 to 2, got 3"),
    ("channel-message", changed(CONTACT, 20, 1), "feature_flags: at offset 20 expected 0 below version 6.0, got 1"),
    ("channel-message", changed(CONTACT, 24, 1), "gpa: at offset 24 expected a multiple of 4096, got 0x1001"),
    ("channel-message", changed(CONTACT, 25, 0), "monitor pages: at offset 24 expected both or none, got one"),
    ("channel-message", changed(GPADL, 16, 23), "range_buffer_length: at offset 16 expected a multiple of 8, got 0x17"),
    ("channel-message", changed(GPADL, 16, 16), "range[0]: at offset 36 expected 2 page numbers, got 1"),
    ("channel-message", changed(GPADL, 18, 0), "range_count: at offset 18 expected a count over 0, got 0"),
    ("channel-message", changed(GPADL, 18, 2), "range[1]: at offset 44 expected a range, got an end: 1 of 2 are here"),
    ("channel-message", changed(GPADL, 21, 0), "range[0]: at offset 20 expected a byte count over 0, got 0"),
    ("channel-message", changed(GPADL, 25, 16), "range[0]: at offset 24 expected a byte offset below 4096, got 0x1000"),
    ("synic-message", changed(SLOT, 4, 241), "payload_size: at offset 4 expected at most 240 bytes, got 0xf1"),
    ("synic-message", changed(SLOT, 4, 20), "OPEN_CHANNEL: at offset 36 expected 148 bytes, got an end after 20"),
    ("synic-message", changed(SLOT, 5, 2), "flags: at offset 5 expected 0 or 1, got 2"),
    ("synic-message", changed(SLOT, 6, 2), "reserved: at offset 6 expected zeros, got 0200"),
    ("synic-message", SLOT[:99], "SynIC message slot: at offset 99 expected 256 bytes, got an end after 99"),
    ("post-message", changed(POST, 8, 0), "message_type: at offset 8 expected a message type over 0, got 0"),
    (
        "post-message",
        changed(POST, 11, 0x80),
        "message_type: at offset 8 expected a type without bit 31, got 0x80000001",
    ),
    ("post-message", POST[:200], "HvCallPostMessage input: at offset 200 expected 256 bytes, got an end after 200"),
    ("signal-event", b"\1\0\0\0\0\x08\0\0", "flag_number: at offset 4 expected a flag from 0 to 2047, got 0x800"),
    ("ring-packet", changed(PACKET, 0, 5), "packet_type: at offset 0 expected 6 (in band), 7 (transfer pages)"),
    ("ring-packet", changed(PACKET, 2, 1), "data_offset8: at offset 2 expected 2 or more, got 1"),
    ("ring-packet", changed(PACKET, 4, 1), "length8: at offset 4 expected 2 or more, got 1"),
    ("ring-packet", changed(PACKET, 4, 9), "length8: at offset 4 expected at most 32 bytes without footer, got 72"),
    ("ring-packet", changed(PACKET, 6, 3), "flags: at offset 6 expected 0 or 1, got 3"),
    ("ring-packet", changed(PACKET, 24, 1), "footer.reserved: at offset 24 expected zeros, got 01000000"),
    ("ring-packet", changed(PACKET, 28, 1), "footer.start: at offset 28 expected a multiple of 8, got 1"),
    ("ring-packet", PACKET[:28], "footer: at offset 28 expected 8 bytes, got an end after 4"),
    ("ring-packet", changed(DIRECT, 20, 0), "range_count: at offset 20 expected one range or more, got 0"),
    ("ring-packet", changed(DIRECT, 20, 2), "range[1]: at offset 48 expected a range, got an end: 1 of 2 are here"),
    ("ring-packet", changed(DIRECT, 2, 2), "data_offset8: at offset 2 expected 3 or more, got 2"),
    ("pipe-packet", PACKET, "pipe.packet_type: at offset 16 expected a pipe packet type from 1 to 4, got 0x6c6c6568"),
    ("pipe-packet", pack_in_band(pack_pipe(b"abc")[:8]), "pipe.length: at offset 20 expected at most 0 bytes, got 3"),
    ("ring-control", changed(CONTROL, 0, 9), "in: at offset 0 expected a multiple of 8, got 9"),
    ("ring-control", changed(CONTROL, 20, 9), "reserved: at offset 16 expected zeros"),
    ("ring-control", changed(CONTROL, 64, 2), "feature_bits: at offset 64 expected 0 or 1, got 2"),
    ("ring-control", CONTROL[:67], "control page of a ring: at offset 67 expected 68 bytes, got an end after 67"),
    ("monitor-page", changed(bytes(4096), 0, 16), "trigger_state: at offset 0 expected below 16, got 0x10"),
    ("monitor-page", changed(bytes(4096), 40, 1), "reserved: at offset 40 expected zeros"),
]


@pytest.mark.parametrize(("kind", "data", "complaint"), WRONG, ids=[row[2][:60] for row in WRONG])
def test_what_is_wrong_is_named_with_offset_expected_and_got(kind: str, data: bytes, complaint: str) -> None:
    assert any(complaint in problem for problem in explained(data, kind).problems), explained(data, kind).problems


@pytest.mark.parametrize("data", [OPEN, CONTACT, GPADL, SLOT, POST, PACKET, DIRECT, CONTROL])
def test_the_originals_of_the_damaged_ones_are_fine(data: bytes) -> None:
    assert explained(data).problems == []


def test_one_complaint_for_a_cut_however_deep_it_is() -> None:
    assert len(explained(OPEN[:21], "channel-message").problems) == 1
    assert len(explained(CONTROL[:50], "ring-control").problems) == 1


def test_a_kind_that_does_not_exist_is_a_value_error_that_lists_them() -> None:
    with pytest.raises(ValueError, match=r"no kind is called 'page', there are ring-packet, .*flags-page"):
        explain(b"", "page")


# Any bytes.

pieces = st.sampled_from([*MESSAGES, SLOT, POST, PACKET, DIRECT, CONTROL[:80]])


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Something valid, with some bytes changed, cut or added."""
    data = bytearray(draw(pieces))
    for _ in range(draw(st.integers(0, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))] + draw(st.binary(max_size=40)))


@given(st.one_of(st.binary(max_size=600), damaged()), st.sampled_from([None, *KINDS]))
def test_no_bytes_of_any_kind_raise_and_rows_always_cover_them(data: bytes, kind: str | None) -> None:
    explained(data, kind)


@given(st.sampled_from([*KINDS]), st.sampled_from([256, 280, 4096]), st.integers(0, 255))
def test_pages_of_one_byte_are_no_exception(kind: str, size: int, byte: int) -> None:
    explained(bytes([byte]) * size, kind)


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_a_megabyte_with_lying_counts_takes_few_rows_and_little_memory(kind: str | None) -> None:
    pages = (1 << 17) - 8
    data = DIRECT[:2] + b"\x06\x00\xff\xff" + DIRECT[6:20] + b"\xff" * 4 + (pages * 4096).to_bytes(8, "little")
    data += bytes(range(1, 9)) * pages
    one_page_each = DIRECT[:2] + b"\xff\xff\xff\xff" + DIRECT[6:20] + b"\xff" * 4 + (b"\1" + bytes(15)) * 60_000
    for attack in (data, one_page_each):
        tracemalloc.start()
        explanation = explained(attack, kind)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(explanation.rows) < 3000
        assert peak < 3 * len(attack) + (1 << 20)


def test_neighbouring_rows_of_an_explanation_never_share_an_offset() -> None:
    rows = explained(OPEN).rows
    assert all(one.offset < other.offset for one, other in pairwise(rows))
