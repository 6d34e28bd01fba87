"""Channel messages: layouts as a compiler put them, bytes as OpenVMM serialises them, and what is refused with which words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import ProtocolError
from channels.protocol import (
    PIPE_AREA,
    RULES,
    Agreed,
    AllOffersDelivered,
    ChannelMessage,
    CloseChannel,
    CloseReservedChannel,
    FeatureFlags,
    GpadlBody,
    GpadlCreated,
    GpadlHeader,
    GpadlTeardown,
    GpadlTorndown,
    InitiateContact,
    InitiateContact2,
    MessageType,
    ModifyChannel,
    ModifyChannelResponse,
    ModifyConnection,
    ModifyConnectionResponse,
    OfferChannel,
    OpenChannel,
    OpenChannel2,
    OpenResult,
    PacketType,
    RelidReleased,
    RequestOffers,
    RescindChannelOffer,
    Sender,
    TlConnectRequest,
    TlConnectRequest2,
    Unload,
    UnloadComplete,
    Version,
    VersionResponse,
    VersionResponse2,
    VersionResponse3,
    gpadl_messages,
    parse_message,
    target_info,
)

VECTORS = Path(__file__).parents[1] / "vectors"
LAYOUTS: dict[str, Any] = json.loads((VECTORS / "layouts.json").read_text())
MESSAGES: list[dict[str, Any]] = json.loads((VECTORS / "messages.json").read_text())["messages"]
CONVERSATION: list[dict[str, Any]] = json.loads((VECTORS / "linux_guest_conversation.json").read_text())["steps"]

ALL_FEATURES = FeatureFlags(0xFF)
NEWEST = Agreed(Version.COPPER, ALL_FEATURES)

# Linux's structure -> our type, and Linux's fields -> ours
COUNTERPARTS: dict[str, tuple[type[ChannelMessage], dict[str, str]]] = {
    "vmbus_channel_offer_channel": (
        OfferChannel,
        {
            "offer.if_type": "interface_id",
            "offer.if_instance": "instance_id",
            "offer.chn_flags": "flags",
            "offer.mmio_megabytes": "mmio_megabytes",
            "offer.u": "user_defined",
            "offer.sub_channel_index": "subchannel_index",
            "offer.reserved3": "mmio_megabytes_optional",
            "child_relid": "channel_id",
            "monitorid": "monitor_id",
            "monitor_allocated": "monitor_allocated",
            "is_dedicated_interrupt": "is_dedicated",
            "connection_id": "connection_id",
        },
    ),
    "vmbus_channel_rescind_offer": (RescindChannelOffer, {"child_relid": "channel_id"}),
    "vmbus_channel_open_channel": (
        OpenChannel,
        {
            "child_relid": "channel_id",
            "openid": "open_id",
            "ringbuffer_gpadlhandle": "ring_buffer_gpadl_id",
            "target_vp": "target_vp",
            "downstream_ringbuffer_pageoffset": "downstream_ring_buffer_page_offset",
            "userdata": "user_data",
        },
    ),
    "vmbus_channel_open_result": (OpenResult, {"child_relid": "channel_id", "openid": "open_id", "status": "status"}),
    "vmbus_channel_modifychannel": (ModifyChannel, {"child_relid": "channel_id", "target_vp": "target_vp"}),
    "vmbus_channel_modifychannel_response": (
        ModifyChannelResponse,
        {"child_relid": "channel_id", "status": "status"},
    ),
    "vmbus_channel_close_channel": (CloseChannel, {"child_relid": "channel_id"}),
    "vmbus_channel_gpadl_header": (
        GpadlHeader,
        {
            "child_relid": "channel_id",
            "gpadl": "gpadl_id",
            "range_buflen": "range_buffer_length",
            "rangecount": "range_count",
            "range": "data",
        },
    ),
    "vmbus_channel_gpadl_body": (GpadlBody, {"msgnumber": "reserved", "gpadl": "gpadl_id", "pfn": "data"}),
    "vmbus_channel_gpadl_created": (
        GpadlCreated,
        {"child_relid": "channel_id", "gpadl": "gpadl_id", "creation_status": "status"},
    ),
    "vmbus_channel_gpadl_teardown": (GpadlTeardown, {"child_relid": "channel_id", "gpadl": "gpadl_id"}),
    "vmbus_channel_gpadl_torndown": (GpadlTorndown, {"gpadl": "gpadl_id"}),
    "vmbus_channel_relid_released": (RelidReleased, {"child_relid": "channel_id"}),
    "vmbus_channel_initiate_contact": (
        InitiateContact,
        {
            "vmbus_version_requested": "version_requested",
            "target_vcpu": "target_message_vp",
            "interrupt_page": "interrupt_page_or_target_info",
            "monitor_page1": "parent_to_child_monitor_page_gpa",
            "monitor_page2": "child_to_parent_monitor_page_gpa",
        },
    ),
    "vmbus_channel_version_response": (
        VersionResponse,
        {
            "version_supported": "version_supported",
            "connection_state": "connection_state",
            "msg_conn_id": "selected_version_or_connection_id",
        },
    ),
    "vmbus_channel_tl_connect_request": (
        TlConnectRequest,
        {"guest_endpoint_id": "endpoint_id", "host_service_id": "service_id"},
    ),
}


@pytest.mark.parametrize("structure", COUNTERPARTS)
def test_sizes_and_offsets_are_the_compilers(structure: str) -> None:
    kind, fields = COUNTERPARTS[structure]
    vector = LAYOUTS["structs"][f"struct {structure}"]
    assert kind.layout().size == vector["size"]
    ours = {field.name: field for field in kind.layout().fields}
    theirs = {field["name"]: field for field in vector["fields"]}
    assert set(fields.values()) == set(ours)
    for name, own_name in fields.items():
        assert ours[own_name].offset == theirs[name]["offset"], name
        if "size" in theirs[name]:
            assert ours[own_name].size == theirs[name]["size"], name


def test_the_user_area_of_a_pipe_begins_with_its_type() -> None:
    fields = {field["name"]: field for field in LAYOUTS["structs"]["struct vmbus_channel_offer"]["fields"]}
    assert fields["u.pipe.pipe_mode"]["offset"] == fields["u"]["offset"]
    assert fields["u.pipe.user_def"]["offset"] - fields["u"]["offset"] == 4
    assert PIPE_AREA.size == fields["u"]["size"]


def test_the_numbers_of_message_and_packet_types_are_linuxs() -> None:
    names = {
        "CHANNELMSG_OFFERCHANNEL": MessageType.OFFER_CHANNEL,
        "CHANNELMSG_RESCIND_CHANNELOFFER": MessageType.RESCIND_CHANNEL_OFFER,
        "CHANNELMSG_REQUESTOFFERS": MessageType.REQUEST_OFFERS,
        "CHANNELMSG_ALLOFFERS_DELIVERED": MessageType.ALL_OFFERS_DELIVERED,
        "CHANNELMSG_OPENCHANNEL": MessageType.OPEN_CHANNEL,
        "CHANNELMSG_OPENCHANNEL_RESULT": MessageType.OPEN_CHANNEL_RESULT,
        "CHANNELMSG_CLOSECHANNEL": MessageType.CLOSE_CHANNEL,
        "CHANNELMSG_GPADL_HEADER": MessageType.GPADL_HEADER,
        "CHANNELMSG_GPADL_BODY": MessageType.GPADL_BODY,
        "CHANNELMSG_GPADL_CREATED": MessageType.GPADL_CREATED,
        "CHANNELMSG_GPADL_TEARDOWN": MessageType.GPADL_TEARDOWN,
        "CHANNELMSG_GPADL_TORNDOWN": MessageType.GPADL_TORNDOWN,
        "CHANNELMSG_RELID_RELEASED": MessageType.RELID_RELEASED,
        "CHANNELMSG_INITIATE_CONTACT": MessageType.INITIATE_CONTACT,
        "CHANNELMSG_VERSION_RESPONSE": MessageType.VERSION_RESPONSE,
        "CHANNELMSG_UNLOAD": MessageType.UNLOAD,
        "CHANNELMSG_UNLOAD_RESPONSE": MessageType.UNLOAD_COMPLETE,
        "CHANNELMSG_18": MessageType.OPEN_RESERVED_CHANNEL,
        "CHANNELMSG_19": MessageType.CLOSE_RESERVED_CHANNEL,
        "CHANNELMSG_20": MessageType.CLOSE_RESERVED_CHANNEL_RESPONSE,
        "CHANNELMSG_TL_CONNECT_REQUEST": MessageType.TL_CONNECT_REQUEST,
        "CHANNELMSG_MODIFYCHANNEL": MessageType.MODIFY_CHANNEL,
        "CHANNELMSG_TL_CONNECT_RESULT": MessageType.TL_CONNECT_RESULT,
        "CHANNELMSG_MODIFYCHANNEL_RESPONSE": MessageType.MODIFY_CHANNEL_RESPONSE,
    }
    theirs = LAYOUTS["enums"]["vmbus_channel_message_type"]
    assert {name: theirs[name] for name in names} == {name: int(value) for name, value in names.items()}
    assert set(theirs) - set(names) == {"CHANNELMSG_INVALID", "CHANNELMSG_COUNT"}
    assert sorted(LAYOUTS["enums"]["vmbus_packet_type"].values()) == sorted(map(int, PacketType))


# bytes


@pytest.mark.parametrize("vector", MESSAGES, ids=lambda vector: f"{vector['type']}-{vector['size']}")
def test_openvmms_messages_are_read_and_written_to_the_byte(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["hex"])
    message = parse_message(data)
    assert vector["type"] == message.TYPE
    assert len(data) == vector["size"]
    assert message.pack() == data


def test_openvmms_values_are_where_it_says() -> None:
    by_size = {(vector["type"], vector["size"]): parse_message(bytes.fromhex(vector["hex"])) for vector in MESSAGES}
    offer = by_size[1, 196]
    assert isinstance(offer, OfferChannel)
    assert offer.interface_id == UUID("01020304-0506-0708-090a-0b0c0d0e0f10")
    assert (offer.flags, offer.mmio_megabytes, offer.subchannel_index) == (0x2011, 0x1234, 5)
    assert (offer.mmio_megabytes_optional, offer.channel_id, offer.monitor_id) == (0x4321, 0x11223344, 9)
    assert (offer.monitor_allocated, offer.is_dedicated, offer.connection_id) == (1, 1, 0xDEADBEEF)
    assert offer.user_defined == bytes((0x40 + i) & 0xFF for i in range(120))
    opened = by_size[5, 156]
    assert isinstance(opened, OpenChannel2)
    assert (opened.channel_id, opened.open_id, opened.ring_buffer_gpadl_id) == (0x11223344, 0xA1A2A3A4, 0x55667788)
    assert (opened.target_vp, opened.downstream_ring_buffer_page_offset) == (7, 0x21)
    assert (opened.connection_id, opened.event_flag, opened.flags) == (0x00AABBCC, 0x1357, 1)
    contact = by_size[14, 56]
    assert isinstance(contact, InitiateContact2)
    assert (contact.sint, contact.vtl, contact.feature_flags, contact.target_message_vp) == (2, 0, 0x6F, 3)
    assert contact.client_id == UUID("01020306-0506-0708-090a-0b0c0d0e0f10")
    response = by_size[15, 40]
    assert isinstance(response, VersionResponse3)
    assert (response.selected_version_or_connection_id, response.supported_features) == (4, 0x6F)
    assert (response.parent_to_child_monitor_page_gpa, response.child_to_parent_monitor_page_gpa) == (0x7000, 0x8000)


@pytest.mark.parametrize("step", [s for s in CONVERSATION if "hex" in s], ids=lambda step: step["hex"][:4])
def test_a_real_conversation_is_read_and_written_to_the_byte(step: dict[str, Any]) -> None:
    data = bytes.fromhex(step["hex"])
    sender = Sender(step["from"])
    assert parse_message(data, sender, Agreed(Version.IRON)).pack() == data


CLIENT = UUID("ceb1cd55-6a3b-41c5-9473-4dd30624c3d8")
HEARTBEAT = (UUID("57164f39-9115-4e78-ab55-382f3bd5422d"), UUID("fd149e91-82e0-4a7d-afa6-2a4166cbd7c0"))
GOLDEN = [
    (
        InitiateContact(0x50003, 0, target_info(2, 0), 0x1000, 0x2000),
        "0e000000 00000000 03000500 00000000 02000000 00000000 00100000 00000000 00200000 00000000",
    ),
    (
        InitiateContact2(0x60000, 0, target_info(2, 0, 0x2F), 0x321F000, 0x123F000, CLIENT),
        "0e000000 00000000 00000600 00000000 02000000 2f000000 00f02103 00000000 00f02301 00000000"
        " 55cdb1ce 3b6ac541 94734dd3 0624c3d8",
    ),
    (VersionResponse(), "0f000000 00000000 00000000 00000000"),
    (VersionResponse2(1, 0, 1, 0x2F), "0f000000 00000000 01000000 01000000 2f000000"),
    (
        VersionResponse3(1, 0, 1, 0x40, 0x456F000, 0x654F000),
        "0f000000 00000000 01000000 01000000 40000000 00000000 00f05604 00000000 00f05406 00000000",
    ),
    (
        OfferChannel(*HEARTBEAT, flags=0x11, user_defined=bytes([4, *bytes(119)]), channel_id=1, connection_id=0x2001),
        "01000000 00000000 394f1657 1591784e ab55382f 3bd5422d 919e14fd e0827d4a afa62a41 66cbd7c0"
        + "00" * 16
        + "11000000 04000000"
        + "00" * 116
        + "00000000 01000000 ff000100 01200000",
    ),
    (
        OpenChannel(1, 1, 0xE1E10, 0, 4),
        "05000000 00000000 01000000 01000000 101e0e00 00000000 04000000" + "00" * 120,
    ),
    (OpenResult(1, 1, 0), "06000000 00000000 01000000 01000000 00000000"),
    (GpadlCreated(1, 0xE1E10, 0), "0a000000 00000000 01000000 101e0e00 00000000"),
    (GpadlTeardown(1, 0xE1E10), "0b000000 00000000 01000000 101e0e00"),
    (GpadlTorndown(0xE1E10), "0c000000 00000000 101e0e00"),
    (CloseChannel(5), "07000000 00000000 05000000"),
    (Unload(), "10000000 00000000"),
    (UnloadComplete(), "11000000 00000000"),
    (RequestOffers(), "03000000 00000000"),
    (AllOffersDelivered(), "04000000 00000000"),
    (ModifyChannel(1, 3), "16000000 00000000 01000000 03000000"),
    (ModifyConnection(0x321F000, 0x123F000), "19000000 00000000 00f02103 00000000 00f02301 00000000"),
    (ModifyConnectionResponse(0), "1a000000 00000000 00"),
]


@pytest.mark.parametrize(("message", "expected"), GOLDEN, ids=lambda value: type(value).__name__)
def test_golden_messages(message: ChannelMessage, expected: str) -> None:
    data = bytes.fromhex(expected)
    assert message.pack() == data
    assert parse_message(data) == message


def test_a_golden_gpadl_header() -> None:
    pages = range(0x100, 0x108)
    buffer = (0x8000).to_bytes(8, "little") + b"".join(page.to_bytes(8, "little") for page in pages)
    (message,) = gpadl_messages(1, 0xE1E10, 1, buffer)
    assert message.pack().hex() == "080000000000000001000000101e0e0048000100" + buffer.hex()


@pytest.mark.parametrize(("words", "messages"), [(1, 1), (27, 1), (28, 2), (55, 2), (56, 3), (8191, 293)])
def test_a_range_buffer_is_carried_by_27_words_and_then_28_at_a_time(words: int, messages: int) -> None:
    buffer = bytes(range(256)) * (words // 32 + 1)
    parts = gpadl_messages(7, 9, 1, buffer[: 8 * words])
    assert len(parts) == messages
    assert all(len(part.pack()) <= 240 for part in parts)
    assert b"".join(part.data for part in parts) == buffer[: 8 * words]  # type: ignore[attr-defined]


def test_a_range_buffer_that_no_header_can_announce_is_refused() -> None:
    for size in (7, 65536):
        with pytest.raises(ValueError, match="a multiple of 8 bytes up to 65528"):
            gpadl_messages(1, 1, 1, bytes(size))


# what is refused


@pytest.mark.parametrize("message_type", MessageType, ids=lambda kind: kind.name)
def test_each_type_is_refused_from_the_other_side_and_before_its_version(message_type: MessageType) -> None:
    rule = RULES[message_type]
    data = bytes([message_type]).ljust(240, b"\0")
    other = Sender.HOST if rule.sender is Sender.GUEST else Sender.GUEST
    with pytest.raises(ProtocolError, match=f"{int(message_type)} .*only a {rule.sender.value} does"):
        parse_message(data, other, NEWEST)
    assert parse_message(data, rule.sender, NEWEST).TYPE is message_type
    for version in Version:
        agreed = Agreed(version, ALL_FEATURES if version is Version.COPPER else FeatureFlags(0))
        if version >= rule.since or message_type in (14, 19):
            assert parse_message(data, rule.sender, agreed).TYPE is message_type
        else:
            with pytest.raises(ProtocolError, match=f"expected a type of version {version.label}"):
                parse_message(data, rule.sender, agreed)


SINCE = {1: 13, 2: 13, 3: 13, 4: 13, 5: 13, 6: 13, 7: 13, 8: 13, 9: 13, 10: 13, 11: 13, 12: 13, 13: 13, 16: 13,
         17: 0x10001, 18: 0x40000, 20: 0x40000, 21: 0x40000, 22: 0x40001, 23: 0x40001, 24: 0x50003,
         25: 0x60000, 26: 0x60000, 27: 0x60000, 28: 0x60000, 29: 0x60000}  # fmt: skip
SIZES = {1: [196], 2: [12], 3: [8], 4: [8], 5: [148, 156], 6: [20], 7: [12], 8: [20], 9: [16], 10: [20], 11: [16],
         12: [12], 13: [12], 14: [40, 56], 15: [16, 20, 40], 16: [8], 17: [8], 18: [28], 19: [20], 20: [12],
         21: [40, 56], 22: [16], 23: [44], 24: [16], 25: [24], 26: [9], 27: [8], 28: [8], 29: [8]}  # fmt: skip


def test_versions_and_sizes_are_the_references() -> None:
    assert {int(kind): int(RULES[kind].since) for kind in RULES if kind not in (14, 15, 19)} == SINCE
    assert {int(kind): [form.layout().size for form in RULES[kind].forms] for kind in RULES} == SIZES


@pytest.mark.parametrize("message_type", MessageType, ids=lambda kind: kind.name)
def test_a_message_that_is_too_short_says_where_it_ends_and_what_was_expected(message_type: MessageType) -> None:
    size = SIZES[int(message_type)][0]
    data = bytes([message_type]).ljust(size, b"\0")
    assert parse_message(data).pack()[:1] == data[:1]
    for cut in range(8, size):
        with pytest.raises(ProtocolError) as caught:
            parse_message(data[:cut])
        assert (caught.value.offset, caught.value.expected) == (cut, f"{size} bytes")
    for cut in range(8):
        with pytest.raises(ProtocolError, match="a header of 8 bytes"):
            parse_message(data[:cut])


@pytest.mark.parametrize("number", [0, 30, 0xFFFF_FFFF])
def test_a_type_that_does_not_exist_is_named(number: int) -> None:
    with pytest.raises(ProtocolError, match=f"expected a message type from 1 to 29, got {number}"):
        parse_message(number.to_bytes(4, "little") + bytes(236))


@pytest.mark.parametrize("bits", [0, 1, 2, 3, 0xFC])
def test_an_open_is_long_with_either_of_two_features(bits: int) -> None:
    data = bytes([5]).ljust(240, b"\0")
    form = type(parse_message(data, Sender.GUEST, Agreed(Version.COPPER, FeatureFlags(bits))))
    assert form is (OpenChannel2 if bits & 3 else OpenChannel)
    assert type(parse_message(data, Sender.GUEST, Agreed(Version.IRON))) is OpenChannel


def test_a_contact_says_who_it_is_when_it_asks_for_that_feature_and_a_short_one_is_refused() -> None:
    named = InitiateContact2(0x60000, 0, target_info(2, 0, 8), client_id=CLIENT).pack()
    assert parse_message(named, Sender.GUEST, Agreed()) == InitiateContact2.unpack(named)
    with pytest.raises(ProtocolError, match="56 bytes"):
        parse_message(named[:55], Sender.GUEST, Agreed())
    older = InitiateContact(0x50003, 0, target_info(2, 0, 8)).pack().ljust(56, b"\0")
    assert type(parse_message(older, Sender.GUEST, Agreed())) is InitiateContact


def test_a_silo_is_read_from_5_2_on_where_the_message_has_one() -> None:
    data = TlConnectRequest2(UUID(int=1), UUID(int=2), UUID(int=3)).pack()
    for version in Version:
        if version < Version.WIN10:
            continue
        form = TlConnectRequest2 if version >= Version.WIN10_RS5 else TlConnectRequest
        assert type(parse_message(data, Sender.GUEST, Agreed(version, ALL_FEATURES))) is form
    assert type(parse_message(data[:40], Sender.GUEST, Agreed(Version.IRON))) is TlConnectRequest


def test_without_a_connection_a_guest_may_contact_and_close_reserved_channels() -> None:
    assert parse_message(CloseReservedChannel(1).pack(), Sender.GUEST, Agreed())
    for message_type, rule in RULES.items():
        if rule.sender is Sender.GUEST and message_type not in (14, 19):
            with pytest.raises(ProtocolError, match="type 14 or 19 without a connection"):
                parse_message(bytes([message_type]).ljust(240, b"\0"), Sender.GUEST, Agreed())


@pytest.mark.parametrize(("message_type", "feature"), [(25, 4), (26, 4), (27, 0x20), (28, 0x20), (29, 0x20)])
def test_messages_of_a_feature_need_it(message_type: int, feature: int) -> None:
    data = bytes([message_type]).ljust(24, b"\0")
    assert parse_message(data, None, Agreed(Version.COPPER, FeatureFlags(feature)))
    with pytest.raises(ProtocolError, match=f"needs feature {feature:#x}"):
        parse_message(data, None, Agreed(Version.COPPER, FeatureFlags(0xFF & ~feature)))


def test_a_value_that_does_not_fit_its_field_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="OpenResult: a value does not fit"):
        OpenResult(1 << 32).pack()


@given(
    data=st.binary(max_size=300),
    sender=st.sampled_from([None, *Sender]),
    agreed=st.none()
    | st.builds(Agreed, st.none() | st.sampled_from(Version), st.builds(FeatureFlags, st.integers(0, 255))),
)
def test_any_bytes_are_a_message_or_the_one_error(data: bytes, sender: Sender | None, agreed: Agreed | None) -> None:
    refusal: ProtocolError | None = None
    try:
        packed = parse_message(data, sender, agreed).pack()
    except ProtocolError as error:
        refusal = error
    if refusal is None:
        assert parse_message(packed, sender, agreed).pack() == packed
    else:
        assert 0 <= refusal.offset <= len(data)
