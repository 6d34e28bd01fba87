"""Replaying a recorded guest: every reply byte is checked, whatever is in the file."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import BACKENDS, OPENVMM, PROFILES, HvStatus
from broker.errors import DamagedDocument, SynicUnsupported
from broker.replay import (
    Conversation,
    DeviceAction,
    Offered,
    PostedMessage,
    Replay,
    decode_conversation,
    plan_devices,
    replay,
    summary,
)
from channels.core.server.offer_params import OfferParams
from channels.protocol import ids
from channels.protocol.connect import InitiateContact, VersionResponse, target_info
from channels.protocol.gpadl import GpadlCreated, GpadlHeader
from channels.protocol.hvsock import TlConnectRequest, TlConnectResult
from channels.protocol.message import ChannelMessage
from channels.protocol.offer import AllOffersDelivered, OfferChannel, OfferFlags, PipeType, RequestOffers
from channels.protocol.open import (
    CloseReservedChannel,
    CloseReservedChannelResponse,
    OpenChannel,
    OpenReservedChannel,
    OpenResult,
)
from channels.protocol.parse import parse_message
from channels.protocol.versions import Version

FILE = Path(__file__).parents[1] / "vectors" / "linux_guest_conversation.json"
STEPS: list[dict[str, Any]] = json.loads(FILE.read_text())["steps"]
HOST_STEPS = [number for number, step in enumerate(STEPS) if step["from"] == "host"]
WITH_SYNIC = [name for name, backend in BACKENDS.items() if backend.synic != "none"]
CLASS = UUID("99999999-0000-0000-0000-000000000002")
INSTANCE = UUID("aaaaaaaa-0000-0000-0000-000000000001")


def copy() -> list[dict[str, Any]]:
    return [dict(step) for step in STEPS]


def conversation(steps: list[dict[str, Any]]) -> Conversation:
    return decode_conversation(json.dumps({"steps": steps}).encode(), "file")


async def play(steps: list[dict[str, Any]], **options: Any) -> Replay:
    return await replay(conversation(steps), OPENVMM, **options)


def guest(message: ChannelMessage, connection_id: int = ids.MULTICLIENT_CONNECTION) -> dict[str, Any]:
    return {"from": "guest", "hex": message.pack().hex(), "connection_id": connection_id, "message_type": 1}


def host(message: ChannelMessage) -> dict[str, Any]:
    return {"from": "host", "hex": message.pack().hex()}


def offer(**fields: Any) -> dict[str, Any]:
    both = {"interface": str(CLASS), "instance": str(INSTANCE)}
    return {"from": "host device", "action": "offer", **both, **fields}


def contact(version: Version, vp: int = 0, page: int = 0) -> dict[str, Any]:
    connection = ids.MULTICLIENT_CONNECTION if version.names_connection else ids.MESSAGE_CONNECTION
    target = target_info(ids.VMBUS_SINT, 0) if version.names_connection else 0
    return guest(InitiateContact(int(version), vp, target, page, page and page + 4096), connection)


def answers(result: Replay) -> list[ChannelMessage]:
    return [parse_message(reply.payload) for reply in result.replies]


async def play_alone(*steps: dict[str, Any]) -> list[ChannelMessage]:
    result = await play(list(steps), compares=False)
    assert all(message.status is HvStatus.SUCCESS for message in result.posted)
    assert result.is_right
    return answers(result)


def flipped(number: int, offset: int, value: int) -> tuple[list[dict[str, Any]], int]:
    """The shipped steps with one byte of one reply changed, and what it was."""
    steps = copy()
    data = bytearray.fromhex(steps[number]["hex"])
    before, data[offset] = data[offset], data[offset] ^ value
    steps[number]["hex"] = data.hex()
    return steps, before


def field_offsets(message: bytes) -> dict[str, int]:
    """One byte of each field, and of each gap between them."""
    offsets = {"type": 0, "padding": 4}
    layout = parse_message(message).layout()
    offsets |= {field.name: field.offset + field.size - 1 for field in layout.fields}
    covered = {offset for field in layout.fields for offset in range(field.offset, field.offset + field.size)}
    gaps = sorted(set(range(8, layout.size)) - covered)
    return offsets | ({"reserved": gaps[0]} if gaps else {})


# The shipped conversation.


@pytest.mark.parametrize("backend", WITH_SYNIC)
@pytest.mark.parametrize("profile", PROFILES.values(), ids=list(PROFILES))
async def test_all_16_replies_to_the_recorded_linux_guest_are_identical(backend: str, profile: Any) -> None:
    for seed in range(3):
        result = await replay(conversation(STEPS), profile, backend, seed)
        assert result.is_right
        assert [message.status for message in result.posted] == [HvStatus.SUCCESS] * 18
        assert not any(message.complaints for message in result.posted)
        assert [reply.identical for reply in result.replies] == [True] * 16
        assert [reply.step for reply in result.replies] == HOST_STEPS
        assert [step.step for step in result.steps] == list(range(len(STEPS)))


async def test_nothing_of_its_devices_is_learned_from_the_replies() -> None:
    offers = [action for action in plan_devices(conversation(STEPS)).values() if isinstance(action, Offered)]
    assert [(action.source, action.unchecked) for action in offers] == [("name", ())] * 3


async def test_without_the_recorded_replies_the_same_16_come_out() -> None:
    result = await play(copy(), compares=False)
    assert [reply.payload.hex() for reply in result.replies] == [STEPS[number]["hex"] for number in HOST_STEPS]
    assert all(reply.identical is None and reply.step is None and reply.after is not None for reply in result.replies)
    assert result.is_right


@pytest.mark.parametrize("number", HOST_STEPS)
async def test_a_changed_byte_is_named_by_step_offset_field_and_both_values(number: int) -> None:
    draw = random.Random(number)
    message = bytes.fromhex(STEPS[number]["hex"])
    offsets = list(field_offsets(message).items()) + [("", draw.randrange(len(message))) for _ in range(6)]
    for field, offset in offsets:
        steps, before = flipped(number, offset, draw.randrange(1, 256))
        result = await play(steps)
        assert not result.is_right
        (wrong,) = [reply for reply in result.replies if not reply.identical]
        assert (wrong.step, wrong.verdict) == (number, "differs")
        (difference,) = wrong.differences
        assert (difference.offset, difference.own) == (offset, before)
        assert difference.recorded == bytes.fromhex(steps[number]["hex"])[offset]
        assert difference.field == field or not field


async def test_a_refused_backend_says_so() -> None:
    with pytest.raises(SynicUnsupported):
        await play(copy(), backend="kvm-arm64")


# Replies that are more, fewer, shorter, longer, or elsewhere.


async def test_a_reply_that_is_recorded_twice_is_missing_once_and_the_others_stay_identical() -> None:
    steps = copy()
    steps.insert(8, dict(steps[7]))
    result = await play(steps)
    (wrong,) = [reply for reply in result.replies if not reply.identical]
    assert (wrong.verdict, wrong.name) == ("missing", "ALL_OFFERS_DELIVERED")
    assert wrong.step in (7, 8)
    assert wrong.after is None


async def test_a_reply_that_is_not_recorded_is_surplus_and_the_others_stay_identical() -> None:
    steps = copy()
    del steps[10]
    result = await play(steps)
    (wrong,) = [reply for reply in result.replies if not reply.identical]
    assert (wrong.verdict, wrong.name, wrong.step, wrong.after) == ("surplus", "GPADL_CREATED", None, 9)
    assert [step for step in result.steps if step.step is None] == [wrong]


async def test_replies_in_another_order_are_noticed() -> None:
    steps = copy()
    steps[5], steps[6] = steps[6], steps[5]
    assert not (await play(steps)).is_right
    steps = copy()
    steps[16], steps[17] = steps[17], steps[16]
    (wrong,) = [reply for reply in (await play(steps)).replies if not reply.identical]
    assert (wrong.verdict, wrong.step, wrong.after) == ("early", 16, 17)


async def test_a_reply_that_is_shorter_or_longer_differs_at_its_end() -> None:
    for number, text, expected in ((3, "0f000000000000000100000004", [13, 14, 15]), (39, "1100000000000000ff", [8])):
        steps = copy()
        steps[number]["hex"] = text
        (wrong,) = [reply for reply in (await play(steps)).replies if not reply.identical]
        assert [difference.offset for difference in wrong.differences] == expected
        assert all(None in (difference.recorded, difference.own) for difference in wrong.differences)
    assert wrong.differences[0].field == "beyond the message"


async def test_a_file_of_another_host_is_compared_reply_by_reply() -> None:
    replies = [{"from": "host", "hex": "ff" * 9} for _ in range(1100)]
    result = await play([*replies, *copy()])
    assert not result.is_right
    assert len(result.replies) >= 1100


# The guest.


async def test_a_message_of_241_bytes_is_refused_alone() -> None:
    steps = copy()
    steps[11]["hex"] = steps[11]["hex"].ljust(2 * 241, "0")
    result = await play(steps)
    refused = [message.step for message in result.posted if message.status is not HvStatus.SUCCESS]
    assert refused == [11]
    assert result.posted[4].status is HvStatus.INVALID_PARAMETER
    assert not result.is_right


async def test_a_message_to_a_connection_without_a_port_is_refused() -> None:
    steps = copy()
    steps[38]["connection_id"] = 7
    result = await play(steps)
    assert [message.status for message in result.posted if message.status] == [HvStatus.INVALID_CONNECTION_ID]
    assert [reply.verdict for reply in result.replies if not reply.identical] == ["missing"]


async def test_what_the_server_finds_wrong_stands_at_the_message() -> None:
    steps = copy()
    steps[18]["hex"] = "16000000000000006300000001000000"
    result = await play(steps)
    (message,) = [message for message in result.posted if message.complaints]
    assert message.step == 18


async def test_messages_come_to_the_processor_that_the_guest_names() -> None:
    result = await play_alone(contact(Version.IRON, vp=700), guest(RequestOffers()))
    assert result == [VersionResponse(1, 0, ids.MULTICLIENT_CONNECTION), AllOffersDelivered()]


async def test_a_guest_has_as_many_processors_as_its_opens_need() -> None:
    gpadl = guest(GpadlHeader(1, 5, 24, 1, (0x2000).to_bytes(8, "little") + (16).to_bytes(8, "little") * 2))
    opens = guest(OpenChannel(1, 1, 5, 900, 1))
    result = await play_alone(contact(Version.IRON), offer(), guest(RequestOffers()), gpadl, opens)
    assert result[-2:] == [GpadlCreated(1, 5), OpenResult(1, 1)]


def test_more_processors_than_there_can_be_are_one_sentence() -> None:
    with pytest.raises(DamagedDocument, match=r"file, step 0: it names processor 2048; .* at most 2048"):
        anyio.run(lambda: play([contact(Version.IRON, vp=2048)]))


@pytest.mark.parametrize("version", Version)
async def test_every_version_is_played(version: Version) -> None:
    result = await play_alone(contact(version), guest(RequestOffers()))
    assert [message.TYPE.name for message in result] == ["VERSION_RESPONSE", "ALL_OFFERS_DELIVERED"]


async def test_a_guest_may_have_much_memory_and_name_pages_that_it_has_not() -> None:
    for page, supported in ((500 << 30, 1), (1 << 50, 0)):
        asks = guest(InitiateContact(int(Version.WIN7), 0, page), ids.MESSAGE_CONNECTION)
        (response,) = await play_alone(asks)
        assert isinstance(response, VersionResponse)
        assert response.version_supported == supported


async def test_answers_to_other_processors_and_sints_are_found() -> None:
    unsupported = InitiateContact(int(Version.IRON), 3, target_info(5, 0))
    assert await play_alone(guest(unsupported)) == [VersionResponse()]
    gpadl = guest(GpadlHeader(1, 5, 24, 1, (0x2000).to_bytes(8, "little") + (16).to_bytes(8, "little") * 2))
    opens = guest(OpenReservedChannel(1, 2, 7, 5, 1))
    closes = guest(CloseReservedChannel(1, 2, 7))
    result = await play_alone(contact(Version.IRON), offer(), guest(RequestOffers()), gpadl, opens, closes)
    assert result[-2:] == [OpenResult(1, 0), CloseReservedChannelResponse(1)]


async def test_an_hvsock_connect_is_taken_when_the_file_offers_its_channel_and_else_refused() -> None:
    service = UUID("00000405-facb-11e6-bd58-64006a7986d3")
    asks = [contact(Version.IRON), guest(RequestOffers()), guest(TlConnectRequest(INSTANCE, service))]
    assert (await play_alone(*asks))[-1] == TlConnectResult(INSTANCE, service, 0xC0000236)
    offered = (await play_alone(*asks, offer(interface=str(service))))[-1]
    assert isinstance(offered, OfferChannel)
    assert offered.flags == 0x2011
    assert offered.interface_id == service


# What a device is.


def planned(*steps: dict[str, Any]) -> Offered:
    (*_, last) = plan_devices(conversation(list(steps))).values()
    assert isinstance(last, Offered)
    return last


@pytest.mark.parametrize(
    ("kind", "params"),
    [
        ("device", OfferParams.device(CLASS, INSTANCE)),
        ("device with pipe packets", OfferParams.device(CLASS, INSTANCE, pipe_packets=True)),
        ("pipe", OfferParams.pipe(CLASS, INSTANCE)),
        ("byte pipe", OfferParams.pipe(CLASS, INSTANCE, PipeType.BYTE)),
        ("interface", OfferParams.interface(CLASS, INSTANCE)),
        ("hvsock from guest", OfferParams.hvsock(CLASS, INSTANCE, guest_accepts=False)),
        ("hvsock to guest", OfferParams.hvsock(CLASS, INSTANCE, guest_accepts=True)),
    ],
)
def test_the_step_may_say_of_which_kind_it_is(kind: str, params: OfferParams) -> None:
    assert planned(offer(kind=kind)) == Offered(str(INSTANCE), params, "step")
    assert planned(offer(kind=kind, device="pipe")) == Offered("pipe", params, "step")


@pytest.mark.parametrize(
    ("interface", "flags", "more"),
    [
        (ids.HEARTBEAT, 0x11, {}),
        (ids.DYNAMIC_MEMORY, 0, {}),
        (ids.NETWORK, 0, {"monitor_latency": 1000}),
        (ids.SCSI, 0, {}),
        (ids.KEYBOARD, 0, {}),
        (ids.MOUSE, 0x10, {}),
        (ids.VIDEO, 0x10, {"mmio_megabytes": 8}),
    ],
)
def test_a_well_known_class_says_it_too(interface: UUID, flags: int, more: dict[str, int]) -> None:
    offered = planned(offer(interface=str(interface), device="unheard-of"))
    assert (offered.source, offered.params.flags) == ("class", flags)
    assert {name: getattr(offered.params, name) for name in more} == more


RECORDED = OfferChannel(CLASS, INSTANCE, 0x11, 7, b"\4".ljust(120, b"\1"), 0, 9, 1, 0, 1, 1, 0x2001)


async def test_an_unknown_device_is_what_its_recorded_offer_says() -> None:
    steps = [
        offer(device="gadget"),
        contact(Version.IRON, page=0x8000),
        host(VersionResponse(1, 0, 4)),
        guest(RequestOffers()),
        host(RECORDED),
        host(AllOffersDelivered()),
    ]
    result = await play(steps)
    assert result.is_right
    (action,) = [step.did for step in result.steps if isinstance(step, DeviceAction)]
    assert isinstance(action, Offered)
    assert action.source == "recorded offer"
    assert action.unchecked == (
        "flags",
        "user_defined",
        "mmio_megabytes",
        "mmio_megabytes_optional",
        "monitor_latency",
    )
    steps[4] = host(OfferChannel(CLASS, INSTANCE, 0x11, 7, bytes(120), 0, 9, 2, 0, 1, 1, 0x2001))
    (wrong,) = [reply for reply in (await play(steps)).replies if not reply.identical]
    assert [difference.field for difference in wrong.differences] == ["channel_id"]


async def test_fields_of_the_step_go_before_the_recorded_offer() -> None:
    steps = [
        offer(flags=1, user_defined="0102", mmio_megabytes=3, monitor_latency=None, monitor_id=5, order=1),
        contact(Version.IRON),
        host(VersionResponse(1, 0, 4)),
        guest(RequestOffers()),
        host(RECORDED),
        host(AllOffersDelivered()),
    ]
    offered = planned(*steps)
    assert offered.params == OfferParams(
        interface_id=CLASS,
        instance_id=INSTANCE,
        flags=OfferFlags(1),
        user_defined=b"\1\2".ljust(120, b"\0"),
        mmio_megabytes=3,
        mmio_megabytes_optional=9,
        monitor_id=5,
        order=1,
    )
    assert offered.unchecked == ("mmio_megabytes_optional",)
    (wrong,) = [reply for reply in (await play(steps)).replies if not reply.identical]
    names = {difference.field for difference in wrong.differences}
    assert names == {"flags", "user_defined", "mmio_megabytes", "monitor_id", "monitor_allocated"}


def test_fields_of_the_step_go_before_name_and_class() -> None:
    assert planned(offer(device="pipe", monitor_latency=None)).params == OfferParams.pipe(CLASS, INSTANCE)
    video = planned(offer(interface=str(ids.VIDEO), mmio_megabytes=64)).params
    assert (video.flags, video.mmio_megabytes) == (0x10, 64)


def test_where_hosts_differ_the_recorded_offer_counts_more_than_the_class() -> None:
    nic = OfferChannel(ids.NETWORK, INSTANCE, 0x30, channel_id=1)
    offered = planned(offer(interface=str(ids.NETWORK)), host(nic))
    assert offered.params == OfferParams.device(ids.NETWORK, INSTANCE)
    assert offered.unchecked == ("monitor_latency",)


def test_a_device_of_which_nothing_is_known_is_a_plain_one() -> None:
    assert planned(offer(device="gadget")) == Offered("gadget", OfferParams.device(CLASS, INSTANCE), "nothing")


def test_a_subchannel_and_a_device_that_comes_back_are_what_the_device_was() -> None:
    first = offer(device="gadget", kind="pipe", mmio_megabytes=3)
    sub = {"from": "host device", "action": "offer", "device": "gadget", "subchannel": 2, "mmio_megabytes": 4}
    other = {"from": "host device", "action": "offer", "device": "gadget", "subchannel": 3}
    revoke = {"from": "host device", "action": "revoke", "device": "gadget"}
    back = {"from": "host device", "action": "offer", "device": "gadget"}
    params = {"mmio_megabytes": 3}
    assert planned(first, sub).params == OfferParams.pipe(CLASS, INSTANCE, subchannel_index=2, mmio_megabytes=4)
    assert planned(first, sub, other).params == OfferParams.pipe(CLASS, INSTANCE, subchannel_index=3, **params)
    assert planned(first, sub, revoke, back).params == OfferParams.pipe(CLASS, INSTANCE, **params)


async def test_a_device_may_be_revoked_and_come_back() -> None:
    revoke = {"from": "host device", "action": "revoke", "interface": str(CLASS), "instance": str(INSTANCE)}
    steps = [contact(Version.IRON), offer(), guest(RequestOffers()), revoke, offer(), revoke]
    names = [message.TYPE.name for message in await play_alone(*steps)]
    assert names == ["VERSION_RESPONSE", "OFFER_CHANNEL", "ALL_OFFERS_DELIVERED", "RESCIND_CHANNEL_OFFER"]


# Files that are none.


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({0: {"action": "explode"}}, "file, step 0, action: Invalid enum value 'explode'"),
        ({0: {"action": 5}}, "file, step 0, action: Expected `str`, got `int`"),
        ({0: {"from": "moon"}}, "file, step 0, from: Invalid value 'moon'"),
        ({0: {"instance": None}}, "file, step 0: nothing says which interface and instance nic has"),
        ({0: {"interface": "f86151"}}, "file, step 0, interface: Invalid UUID"),
        ({0: {"kind": "submarine"}}, "file, step 0, kind: Invalid enum value 'submarine'"),
        ({0: {"flags": 1 << 16}}, "file, step 0, flags: Expected `int` <= 65535"),
        ({0: {"flags": 10**40}}, "file, step 0, flags"),
        ({0: {"monitor_id": 128}}, "file, step 0, monitor_id: Expected `int` <= 127"),
        ({0: {"monitor_latency": -1}}, "file, step 0, monitor_latency: Expected `int` >= 0"),
        ({0: {"user_defined": "0g"}}, "file, step 0: its user_defined is not hexadecimal"),
        ({0: {"user_defined": "00" * 121}}, "file, step 0: its user_defined has 121 bytes, over 120"),
        ({1: {"interface": STEPS[0]["interface"], "instance": STEPS[0]["instance"]}}, "pipe is offered already"),
        ({0: {"action": "revoke"}}, "file, step 0: nic is not offered"),
        ({20: {"device": "other"}}, "step 20: nothing says which interface and instance other, sub-channel 1 has"),
        ({27: {"subchannel": 9}}, "step 27: nic, sub-channel 9 is not offered"),
        ({2: {"hex": 5}}, "file, step 2, hex: Expected `str`, got `int`"),
        ({2: {"hex": "0"}}, "file, step 2: its hex is not hexadecimal"),
        ({2: {"hex": "00" * 4097}}, "file, step 2: its hex has 4097 bytes, over 4096"),
        ({3: {"hex": "ff" * (1 << 20)}}, "file, step 3: its hex has 1048576 bytes, over 4096"),
        ({2: {"connection_id": 1 << 32}}, "file, step 2, connection_id: Expected `int` <= 4294967295"),
        ({2: {"message_type": None}}, "file, step 2, message_type: Expected `int`, got `null`"),
        ({2: {"hex": None}}, "file, step 2, hex: Expected `str`, got `null`"),
    ],
)
async def test_a_step_that_cannot_be_played_is_one_sentence(change: dict[int, dict[str, Any]], sentence: str) -> None:
    steps = copy()
    for number, fields in change.items():
        steps[number] |= fields
    with pytest.raises(DamagedDocument) as caught:
        await play(steps)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{}", b'{"steps": 5}', b'{"steps": [null]}', b'{"steps":' + b"[" * 100_000, b"\xff", b'{"a":"\xff"}'],
)
def test_a_file_that_is_no_conversation_is_one_sentence(data: bytes) -> None:
    with pytest.raises(DamagedDocument, match=r"^file"):
        decode_conversation(data, "file")


CHANGES = st.lists(
    st.tuples(
        st.integers(0, len(STEPS) - 1),
        st.sampled_from(["drop", "double", "byte", "head", "cut"]),
        st.integers(0, 255),
        st.sampled_from([0, 1, 2, 4, 5, 13, 255]),
    ),
    min_size=1,
    max_size=6,
)


@given(CHANGES, st.integers(0, 3))
@settings(max_examples=60)
def test_a_spoilt_conversation_is_played_or_one_sentence(changes: list[tuple[int, str, int, int]], seed: int) -> None:
    steps: list[dict[str, Any] | None] = [*copy()]
    for number, how, place, value in changes:
        step = steps[number]
        if how == "drop":
            steps[number] = None
        elif how == "double" and step is not None:
            steps.append(dict(step))
        elif step is not None and step.get("hex"):
            data = bytearray.fromhex(step["hex"])
            data[place % (len(data) if how == "byte" else min(len(data), 24))] = value
            step["hex"] = data[: place % len(data) if how == "cut" else None].hex()
    left = [step for step in steps if step is not None]

    async def main() -> Replay | None:
        try:
            return await play(left, seed=seed)
        except DamagedDocument:
            return None

    results = [anyio.run(main, backend=loop) for loop in ("asyncio", "trio")]
    assert results[0] == results[1]
    for step in [] if results[0] is None else results[0].steps:
        assert not isinstance(step, PostedMessage) or "\n" not in summary(step.payload)
