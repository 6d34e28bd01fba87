"""The server's machine: which bytes are a message at all (`reference/vmbus.md` 2, 2.10, D23; items 43, 89), pause and resume,
and hvsock (items 21, 22)."""

from __future__ import annotations

import random

import pytest

from channels.core.server import MAX_HVSOCK_CONNECTS
from channels.core.server import effects as do

from . import wire
from .host import ENDPOINT, PAGES, SERVICE, SILO, Host, connected, offered, reading

item = pytest.mark.vmbus_item

FROM_HOST = (1, 2, 4, 6, 10, 12, 15, 17, 20, 23, 24, 26, 28)
LEAST = {
    **{3: (0x0D, 0, 8), 5: (0x0D, 0, 148), 7: (0x0D, 0, 12), 8: (0x0D, 0, 20), 9: (0x0D, 0, 16), 11: (0x0D, 0, 16)},
    **{13: (0x0D, 0, 12), 14: (0, 0, 40), 16: (0x0D, 0, 8), 18: (0x40000, 0, 28), 19: (0, 0, 20), 21: (0x40000, 0, 40)},
    **{22: (0x40001, 0, 16), 25: (0x60000, 4, 24), 27: (0x60000, 0x20, 8), 29: (0x60000, 0x20, 8)},
}
"""Message of the guest -> first version, feature, least size: the table of section 2."""


def message_of(message_type: int, size: int = 240) -> bytes:
    return wire.header(message_type) + bytes(size - 8)


def test_the_tables_name_all_29_messages() -> None:
    assert sorted([*FROM_HOST, *LEAST]) == list(range(1, 30))


@item(43)
@pytest.mark.parametrize("features", [0, 0x2F])
@pytest.mark.parametrize("version", wire.VERSIONS, ids=wire.version_id)
@pytest.mark.parametrize("message_type", LEAST)
def test_a_message_is_taken_from_its_first_version_on(message_type: int, version: int, features: int) -> None:
    host = connected(version, features, devices=0)
    first, feature, _ = LEAST[message_type]
    complaints = len(host.complaints)
    host.hear(message_of(message_type))
    refused = any(complaint.event == "message_refused" for complaint in host.complaints[complaints:])
    agreed = features if version == 0x60000 else 0
    assert refused == (version < first or bool(feature & ~agreed))


@pytest.mark.parametrize("version", [None, *wire.VERSIONS], ids=lambda version: version and wire.version_id(version))
@pytest.mark.parametrize("message_type", [*FROM_HOST, 0, 30, 31, 0xFFFF_FFFF, 0x8000_0005])
def test_what_only_a_host_says_or_nobody_is_refused_without_a_reply(message_type: int, version: int | None) -> None:
    host = connected(version, 0x2F) if version else Host()
    phase = host.phase
    for size in (8, 240):
        assert str(message_type) in host.refusal(message_of(message_type, size))
    assert host.phase == phase
    assert not version or host.hear(wire.gpadl_header(1, 1))


@pytest.mark.parametrize("message_type", LEAST)
def test_a_message_that_is_too_short_has_no_reply(message_type: int) -> None:
    size = LEAST[message_type][2]
    for length in range(size):
        host = connected(wire.COPPER, 0x2D if message_type != 5 else 0x24, devices=0)
        assert host.refusal(message_of(message_type)[:length])
        assert host.phase == "connected"


@pytest.mark.parametrize(
    ("message", "size"),
    [
        (wire.open_channel2(1, 0x2001, 1), 156),
        (wire.hvsock_connect(ENDPOINT, SERVICE), 40),
        (wire.gpadl_header(1, 7), 36),
        (wire.modify_channel(1, 0), 16),
        (wire.release(1), 12),
        (wire.UNLOAD, 8),
        (wire.PAUSE, 8),
    ],
    ids=lambda value: wire.NAMES[value[0]] if isinstance(value, bytes) else str(value),
)
def test_a_message_may_be_longer_than_it_is(message: bytes, size: int) -> None:
    """As UEFI pads all of them to 240 bytes."""
    assert len(message) == size
    short, long = connected(wire.COPPER, 0x2F), connected(wire.COPPER, 0x2F)
    expected = reading(short.hear(message))
    assert reading(long.hear(message.ljust(240, b"\0"))) == expected
    assert long.complaints == short.complaints


def test_an_open_of_the_short_form_is_too_short_where_the_long_one_was_agreed_on() -> None:
    for features, is_long in ((0, False), (1, True), (2, True), (4, False)):
        host = connected(wire.COPPER, features)
        message = wire.open_channel(1)
        assert bool(host.hear(message)) is not is_long


def test_the_padding_of_the_header_is_not_looked_at() -> None:
    message = bytearray(wire.open_channel(1))
    message[4:8] = b"\xff" * 4
    assert reading(connected().hear(bytes(message)))[-1] == "OPEN_RESULT ok"


@item(89)
def test_the_golden_bytes_are_understood() -> None:
    host = connected(wire.IRON, devices=5)
    for channel_id in range(1, 6):
        host.hear(wire.open_channel(channel_id))
    assert host.hear(bytes.fromhex("07000000 00000000 05000000")) == [do.CloseDevice(5), do.DestroyPorts(5)]
    opening = bytes.fromhex("05000000 00000000 05000000 01000000 101e0e00 00000000 04000000") + bytes(120)
    (ports, *_, result) = host.hear(opening)
    assert isinstance(ports, do.CreatePorts)
    assert (ports.params.gpadl_id, ports.params.page_offset) == (0xE1E10, 4)
    assert result == bytes.fromhex("06000000 00000000 05000000 01000000 00000000")
    assert host.hear(bytes.fromhex("10000000 00000000"))[-1] == bytes.fromhex("11000000 00000000")
    contact = bytes.fromhex("0e000000 00000000 03000500 00000000 02000000 00000000 00100000 00000000 00200000 00000000")
    (request, _) = host.hear(contact)
    assert isinstance(request, do.ModifyConnection)
    assert request.monitor_pages == do.MonitorPages(0x1000, 0x2000)


@item(89)
def test_the_words_after_a_header_are_joined_without_padding() -> None:
    host = connected()
    words = bytes(range(8, 24))
    host.hear(wire.gpadl_header(1, 7, wire.gpa_range(1, 2)[:8] + words[:8], length=24))
    host.hold()
    assert host.hear(wire.gpadl_body(7, words[8:])) == [do.CreateGpadl(1, 7, 1, wire.gpa_range(1, 2)[:8] + words)]


@pytest.mark.parametrize("seed", range(40))
def test_noise_does_no_harm(seed: int) -> None:
    """Any bytes, most of them of a known type and about a channel that is there."""
    source = random.Random(seed)
    host = connected(source.choice(wire.VERSIONS), 0x2F, devices=3, pages=PAGES)
    for _ in range(150):
        data = bytearray(source.randbytes(source.choice((0, 3, 8, 12, 16, 20, 40, 60, 156, 240))))
        if len(data) >= 16 and source.random() < 0.9:
            data[0:4] = source.choice([*LEAST] * 3 + [*range(32)]).to_bytes(4, "little")
            data[8:12] = source.randrange(5).to_bytes(4, "little")
            data[12:16] = source.randrange(3).to_bytes(4, "little")
        host.hear(bytes(data), trusted=source.random() < 0.5, multiclient=source.random() < 0.5)
    host.go_on()
    if not host.machine.may_receive:
        host.reset()
        host.go_on()
    host.machine.state.connection.trusted = False
    assert reading(host.hear(wire.contact(wire.WIN10)))[-1] == "VERSION_RESPONSE"


# pause and resume

PAUSED = [
    wire.REQUEST_OFFERS,
    wire.open_channel2(1, 0x2001, 1),
    wire.close_channel(1),
    wire.gpadl_header(1, 7),
    wire.gpadl_body(7, bytes(8)),
    wire.gpadl_teardown(1, 7),
    wire.release(1),
    wire.open_reserved(1, 0, 5),
    wire.close_reserved(1, 0, 5),
    wire.hvsock_connect(ENDPOINT, SERVICE),
    wire.modify_channel(1, 0),
    wire.modify_connection(0, 0),
    wire.PAUSE,
]


def paused() -> Host:
    host = connected(wire.COPPER, 0x2F)
    assert host.hear(wire.PAUSE) == [bytes.fromhex("1c000000 00000000")]
    return host


@pytest.mark.parametrize("message", PAUSED, ids=lambda message: wire.NAMES[message[0]])
def test_after_a_pause_other_messages_are_refused_and_change_nothing(message: bytes) -> None:
    host = paused()
    assert "PAUSE" in host.refusal(message)
    assert host.hear(wire.RESUME) == []
    assert host.state(1) == "closed"


def test_what_comes_up_while_paused_is_sent_in_order_after_the_resume() -> None:
    host = paused()
    assert host.offer(2)[1] == []
    assert reading(host.revoke(1)) == ["removed"]
    assert host.hear(wire.RESUME) == [offered(2), wire.rescind(1)]


@pytest.mark.parametrize("how", ["UNLOAD", "INITIATE_CONTACT"])
def test_unload_and_contact_end_a_pause(how: str) -> None:
    host = paused()
    host.offer(2)
    out = host.hear(wire.UNLOAD) if how == "UNLOAD" else host.connect()
    assert out[0] == offered(2)
    assert reading(out)[-1] == ("UNLOAD_COMPLETE" if how == "UNLOAD" else "VERSION_RESPONSE")
    if how == "UNLOAD":
        host.connect()
    assert reading(host.hear(wire.REQUEST_OFFERS)) == ["OFFER", "OFFER", "ALL_OFFERS_DELIVERED"]


def test_a_reset_drops_what_was_held() -> None:
    host = paused()
    host.offer(2)
    assert reading(host.reset()) == ["backend reset", "messages dropped", "reset done"]
    assert reading(host.connect()) == ["backend", "VERSION_RESPONSE"]


def test_a_resume_without_a_pause_does_nothing() -> None:
    assert connected(wire.COPPER, 0x20).hear(wire.RESUME) == []


# hvsock


@item(21)
@pytest.mark.parametrize("version", [wire.WIN10, wire.RS3_0, wire.RS3_1, wire.RS4, wire.RS5, wire.IRON, wire.COPPER])
@pytest.mark.parametrize("silo", [None, SILO], ids=["40 bytes", "56 bytes"])
def test_a_connect_carries_service_endpoint_and_silo(silo: object, version: int) -> None:
    host = connected(version)
    (request,) = host.hear(wire.hvsock_connect(ENDPOINT, SERVICE, SILO if silo else None))
    assert isinstance(request, do.ConnectHvsock)
    assert (request.request.endpoint_id, request.request.service_id) == (ENDPOINT, SERVICE)
    assert request.silo_id == (SILO if silo and version >= 0x0005_0002 else wire.NO_GUID)


@item(22)
@pytest.mark.parametrize("version", [wire.WIN10, wire.RS3_0, wire.RS5, wire.COPPER], ids=wire.version_id)
def test_a_refused_connect_is_told_from_4_1_on(version: int) -> None:
    host = connected(version)
    host.hear(wire.hvsock_connect(ENDPOINT, SERVICE))
    refused = [wire.header(23) + ENDPOINT.bytes_le + SERVICE.bytes_le + bytes.fromhex("360200c0")]
    assert host.answer(do.ConnectHvsock, accepted=False) == (refused if version >= 0x0004_0001 else [])


def test_an_accepted_connect_is_told_by_its_offer_alone() -> None:
    host = connected()
    host.hear(wire.hvsock_connect(ENDPOINT, SERVICE))
    assert host.answer(do.ConnectHvsock, accepted=True) == []


def test_connects_that_wait_are_bounded() -> None:
    assert MAX_HVSOCK_CONNECTS == 16
    host = connected()
    for _ in range(16):
        assert host.machine.may_receive
        host.hear(wire.hvsock_connect(ENDPOINT, SERVICE))
    assert not host.machine.may_receive
    host.answer(do.ConnectHvsock, accepted=False)
    assert host.machine.may_receive


@pytest.mark.parametrize("how", ["UNLOAD", "INITIATE_CONTACT", "VM reset"])
def test_the_end_of_a_connect_reaches_the_connection_that_asked_only(how: str) -> None:
    host = connected()
    host.hear(wire.hvsock_connect(ENDPOINT, SERVICE))
    if how == "UNLOAD":
        host.hear(wire.UNLOAD)
    elif how == "VM reset":
        host.reset()
    host.connect()
    assert host.answer(do.ConnectHvsock, accepted=False) == []
