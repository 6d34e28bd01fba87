"""The server's machine: GPADLs (`reference/vmbus.md` 3.1 to 3.3; items 47, 64, 65, 68)."""

from __future__ import annotations

import struct

import pytest

from channels.core.server import effects as do
from channels.core.server.state import ServerConfig

from . import wire
from .host import Host, connected, reading

item = pytest.mark.vmbus_item
GPADL = 0xE1E10


def held(**how: object) -> Host:
    """A host with a channel, whose device does not answer by itself."""
    host = connected(**how)  # type: ignore[arg-type]
    host.hold()
    return host


def state_of(host: Host, offer_id: int = 1, gpadl_id: int = GPADL) -> str | None:
    gpadls = host.machine.state.channels.by_offer[offer_id].gpadls
    return gpadls[gpadl_id].state.value if gpadl_id in gpadls else None


def created(host: Host) -> Host:
    host.hear(wire.gpadl_header(1, GPADL))
    host.answer(do.CreateGpadl)
    return host


# from header to accepted


def test_a_gpadl_of_one_message_reaches_the_device_and_its_answer_the_guest() -> None:
    host = held()
    message = bytes.fromhex(
        "08000000 00000000 01000000 101e0e00 48000100 00800000 00000000 00010000 00000000 01010000 00000000"
        "02010000 00000000 03010000 00000000 04010000 00000000 05010000 00000000 06010000 00000000 07010000 00000000"
    )
    assert message == wire.gpadl_header(1, GPADL, wire.gpa_range(*range(0x100, 0x108)))
    assert host.hear(message) == [do.CreateGpadl(1, 0xE1E10, 1, message[20:])]
    assert host.answer(do.CreateGpadl) == [bytes.fromhex("0a000000 00000000 01000000 101e0e00 00000000")]
    assert host.hear(bytes.fromhex("0b000000 00000000 01000000 101e0e00")) == [do.TeardownGpadl(1, 0xE1E10)]
    assert host.answer(do.TeardownGpadl) == [bytes.fromhex("0c000000 00000000 101e0e00")]
    assert state_of(host) is None


def test_a_device_that_fails_leaves_nothing() -> None:
    host = held()
    host.hear(wire.gpadl_header(1, GPADL))
    assert host.answer(do.CreateGpadl, accepted=False) == [wire.gpadl_created(1, GPADL, 0x8000_FFFF)]
    assert state_of(host) is None


@pytest.mark.parametrize("pages", [26, 27, 28, 54, 55, 200, 8190])
def test_a_long_range_buffer_comes_in_several_messages(pages: int) -> None:
    host = held()
    data = wire.gpa_range(*range(1, pages + 1))
    first, rest = data[:216], [data[start : start + 224] for start in range(216, len(data), 224)]
    out = host.hear(wire.gpadl_header(1, GPADL, first, length=len(data)))
    for body in rest:
        assert out == []
        assert state_of(host) == "in-progress"
        out = host.hear(wire.gpadl_body(GPADL, body))
    assert out == [do.CreateGpadl(1, GPADL, 1, data)]


def test_a_header_may_be_empty_and_messages_as_long_as_they_like() -> None:
    host = held()
    data = wire.gpa_range(1, 2)
    assert host.hear(wire.gpadl_header(1, GPADL, b"", length=len(data))) == []
    assert host.hear(wire.gpadl_body(GPADL, data[:8])) == []
    assert host.hear(wire.gpadl_body(GPADL, data[8:] + bytes(96))) == [do.CreateGpadl(1, GPADL, 1, data)]


def test_bytes_that_are_no_whole_word_do_not_count() -> None:
    host = held()
    data = wire.gpa_range(1, 2)
    assert host.hear(wire.gpadl_header(1, GPADL, data[:15], length=len(data) + 7)) == []
    assert host.hear(wire.gpadl_body(GPADL, data[8:])) == [do.CreateGpadl(1, GPADL, 1, data)]


def test_words_after_the_last_range_are_cut_off() -> None:
    host = held()
    data = wire.gpa_range(1) + wire.gpa_range(2, 3)
    assert host.hear(wire.gpadl_header(1, GPADL, data + bytes(24), count=2)) == [do.CreateGpadl(1, GPADL, 2, data)]


def test_a_range_touches_as_many_pages_as_its_bytes() -> None:
    for size, offset, pages in ((1, 0, 1), (1, 4095, 1), (2, 4095, 2), (4096, 1, 2), (4097, 4095, 2), (4098, 4095, 3)):
        data = wire.gpa_range(*range(pages), size=size, offset=offset)
        assert reading(held().hear(wire.gpadl_header(1, GPADL, data))) == ["device gpadl"]
        assert host_fails(wire.gpadl_header(1, GPADL, data[:-8]))


def host_fails(message: bytes) -> bool:
    """The message is answered with a failure, and its ID is free."""
    host = held()
    channel_id, gpadl_id = struct.unpack_from("<II", message, 8)
    assert host.hear(message) == [wire.gpadl_created(channel_id, gpadl_id, 0x8000_FFFF)]
    assert host.machine.state.gpadl_words == 0
    assert len(host.complaints) == 1
    return True


BAD_RANGES = {
    "no range": wire.gpadl_header(1, GPADL, wire.gpa_range(1), count=0),
    "no words": wire.gpadl_header(1, GPADL, b""),
    "a range that is missing": wire.gpadl_header(1, GPADL, wire.gpa_range(1), count=2),
    "an empty range": wire.gpadl_header(1, GPADL, wire.gpa_range(1, size=0)),
    "an offset beyond the page": wire.gpadl_header(1, GPADL, wire.gpa_range(1, 2, size=1, offset=0x1000)),
    "a size that overflows": wire.gpadl_header(1, GPADL, wire.gpa_range(1, size=0xFFFF_FFFF, offset=0)),
    "a size and an offset that overflow": wire.gpadl_header(1, GPADL, wire.gpa_range(1, size=0xFFFF_F000, offset=1)),
    "a page that is missing": wire.gpadl_header(1, GPADL, wire.gpa_range(1, size=4097)),
    "a bad second range": wire.gpadl_header(1, GPADL, wire.gpa_range(1) + wire.gpa_range(1, size=0), count=2),
    "an unknown channel": wire.gpadl_header(2, GPADL),
    "channel 0": wire.gpadl_header(0, GPADL),
}


@item(64)
@pytest.mark.parametrize("what", BAD_RANGES)
def test_a_header_that_cannot_be_is_answered_with_a_failure(what: str) -> None:
    assert host_fails(BAD_RANGES[what])


@item(64)
def test_a_bad_first_range_fails_after_the_last_body_and_the_id_can_be_used_again() -> None:
    host = held()
    data = wire.gpa_range(1, offset=0x1000) + wire.gpa_range(*range(30))
    assert host.hear(wire.gpadl_header(1, GPADL, data[:216], count=2, length=len(data))) == []
    assert host.hear(wire.gpadl_body(GPADL, data[216:])) == [wire.gpadl_created(1, GPADL, 0x8000_FFFF)]
    assert reading(host.hear(wire.gpadl_header(1, GPADL))) == ["device gpadl"]


@item(64)
def test_after_a_failure_the_id_can_be_used_again() -> None:
    host = held()
    host.hear(wire.gpadl_header(1, GPADL, wire.gpa_range(1, offset=0x1000)))
    assert reading(host.hear(wire.gpadl_header(1, GPADL))) == ["device gpadl"]
    assert host.answer(do.CreateGpadl) == [wire.gpadl_created(1, GPADL)]


# IDs


@item(47)
def test_the_same_id_may_be_used_on_another_channel() -> None:
    host = held(devices=2)
    for channel_id in (1, 2):
        assert reading(host.hear(wire.gpadl_header(channel_id, GPADL))) == ["device gpadl"]
    assert host.answer(do.CreateGpadl) == [wire.gpadl_created(1, GPADL)]
    assert host.answer(do.CreateGpadl) == [wire.gpadl_created(2, GPADL)]
    assert host.hear(wire.gpadl_teardown(2, GPADL)) == [do.TeardownGpadl(2, GPADL)]
    assert (state_of(host), state_of(host, 2)) == ("accepted", "tearing-down")


def test_an_id_is_used_once_on_a_channel() -> None:
    host = created(held())
    assert host.hear(wire.gpadl_header(1, GPADL)) == [wire.gpadl_created(1, GPADL, 0x8000_FFFF)]
    assert state_of(host) == "accepted"


def test_while_one_is_not_whole_another_with_its_id_must_be() -> None:
    host = held(devices=2)
    data = wire.gpa_range(1, 2)
    host.hear(wire.gpadl_header(1, GPADL, data[:8], length=len(data)))
    failed = wire.gpadl_created(2, GPADL, 0x8000_FFFF)
    assert host.hear(wire.gpadl_header(2, GPADL, data[:8], length=len(data))) == [failed]
    assert host.hear(wire.gpadl_header(2, GPADL, data)) == [do.CreateGpadl(2, GPADL, 1, data)]
    assert host.hear(wire.gpadl_body(GPADL, data[8:])) == [do.CreateGpadl(1, GPADL, 1, data)]


def test_a_body_that_belongs_to_nothing_has_no_answer() -> None:
    host = held()
    assert host.refusal(wire.gpadl_body(GPADL, bytes(8)))
    created(host)
    assert host.refusal(wire.gpadl_body(GPADL, bytes(8)))
    assert state_of(host) == "accepted"


def test_what_all_gpadls_hold_is_bounded() -> None:
    host = connected(config=ServerConfig(gpadl_words=2 * (2 + 16)))
    for gpadl_id in (1, 2):
        assert reading(host.hear(wire.gpadl_header(1, gpadl_id))) == ["device gpadl", "GPADL_CREATED ok"]
    assert reading(host.hear(wire.gpadl_header(1, 3))) == ["GPADL_CREATED failed"]
    assert reading(host.hear(wire.gpadl_teardown(1, 1))) == ["device teardown", "GPADL_TORNDOWN"]
    assert reading(host.hear(wire.gpadl_header(1, 3))) == ["device gpadl", "GPADL_CREATED ok"]


# the states of 3.3, row by row


def in_progress(host: Host) -> None:
    host.hear(wire.gpadl_header(1, GPADL, wire.gpa_range(1), length=32))


def offered(host: Host) -> None:
    host.hear(wire.gpadl_header(1, GPADL))


def offered_tearing_down(host: Host) -> None:
    offered(host)
    host.hear(wire.release(1))


def accepted(host: Host) -> None:
    created(host)


def tearing_down(host: Host) -> None:
    created(host)
    host.hear(wire.gpadl_teardown(1, GPADL))


STATES = {
    "in-progress": in_progress,
    "offered": offered,
    "offered-tearing-down": offered_tearing_down,
    "accepted": accepted,
    "tearing-down": tearing_down,
}
EVENTS = {
    "device ok": lambda host: host.ended(host.machine.gpadl_created(1, GPADL)),
    "device fails": lambda host: host.ended(host.machine.gpadl_created(1, GPADL, accepted=False)),
    "device done": lambda host: host.ended(host.machine.gpadl_torn_down(1, GPADL)),
    "TEARDOWN": lambda host: host.hear(wire.gpadl_teardown(1, GPADL)),
    "release": lambda host: host.hear(wire.release(1)),
    "revoke": lambda host: host.revoke(1),
}
ROWS = {
    "in-progress": {
        "device ok": "err",
        "device fails": "err",
        "device done": "err",
        "TEARDOWN": "err",
        "release": "gone:",
        "revoke": "in-progress: removed, RESCIND",
    },
    "offered": {
        "device ok": "accepted: GPADL_CREATED ok",
        "device fails": "gone: GPADL_CREATED failed",
        "device done": "err",
        "TEARDOWN": "err",
        "release": "offered-tearing-down:",
        "revoke": "gone: GPADL_CREATED failed, removed, RESCIND",
    },
    "offered-tearing-down": {
        "device ok": "tearing-down: device teardown",
        "device fails": "gone:",
        "device done": "err",
        "TEARDOWN": "err",
        "release": "err",
        "revoke": "gone: removed",
    },
    "accepted": {
        "device ok": "err",
        "device fails": "err",
        "device done": "err",
        "TEARDOWN": "tearing-down: device teardown",
        "release": "tearing-down: device teardown",
        "revoke": "accepted: removed, RESCIND",
    },
    "tearing-down": {
        "device ok": "err",
        "device fails": "err",
        "device done": "gone: GPADL_TORNDOWN",
        "TEARDOWN": "err",
        "release": "tearing-down:",
        "revoke": "gone: GPADL_TORNDOWN, removed, RESCIND",
    },
}


@pytest.mark.parametrize(("state", "event"), [(state, event) for state, row in ROWS.items() for event in row])
def test_row(state: str, event: str) -> None:
    host = held()
    STATES[state](host)
    assert state_of(host) == state
    complaints = len(host.complaints)
    out = reading(EVENTS[event](host))
    gone = 1 not in host.machine.state.channels.by_offer
    after = "gone" if gone else state_of(host) or "gone"
    if ROWS[state][event] == "err":
        assert (out, after, len(host.complaints)) == ([], state, complaints + 1)
    else:
        assert f"{after}: {', '.join(out)}".rstrip() == ROWS[state][event]
        assert len(host.complaints) == complaints


def test_a_teardown_that_ends_after_the_release_is_not_told() -> None:
    host = held()
    tearing_down(host)
    host.hear(wire.release(1))
    assert host.answer(do.TeardownGpadl) == []
    assert state_of(host) is None


@item(65)
@pytest.mark.parametrize("how", ["VM reset", "UNLOAD", "INITIATE_CONTACT"])
def test_a_gpadl_in_progress_goes_with_its_channel_and_the_id_can_be_used_again(how: str) -> None:
    host = connected()
    in_progress(host)
    if how == "VM reset":
        host.reset()
    elif how == "UNLOAD":
        host.hear(wire.UNLOAD)
    host.connect()
    host.hear(wire.REQUEST_OFFERS)
    assert host.refusal(wire.gpadl_body(GPADL, wire.gpa_range(1)))
    in_progress(host)
    data = wire.gpa_range(1) + wire.gpa_range(2)
    out = host.hear(wire.gpadl_body(GPADL, data[16:]))
    assert reading(out) == ["device gpadl", "GPADL_CREATED ok"]


@item(65)
def test_a_gpadl_in_progress_goes_when_its_channel_is_released() -> None:
    host = held(devices=2)
    in_progress(host)
    host.hear(wire.release(1))
    data = wire.gpa_range(1, 2)
    assert host.hear(wire.gpadl_header(2, GPADL, data[:8], length=len(data))) == []


def test_a_gpadl_lives_on_while_its_channel_is_closed_and_opened() -> None:
    host = created(held())
    host.go_on()
    for _ in range(3):
        host.hear(wire.open_channel(1, gpadl_id=GPADL))
        host.hear(wire.close_channel(1))
        assert state_of(host) == "accepted"


def test_a_gpadl_may_be_torn_down_while_its_channel_is_open() -> None:
    host = connected()
    host.hear(wire.gpadl_header(1, GPADL))
    host.hear(wire.open_channel(1, gpadl_id=GPADL))
    host.hold()
    assert host.hear(wire.gpadl_teardown(1, GPADL)) == [do.TeardownGpadl(1, GPADL)]


def test_a_teardown_of_what_is_not_there_has_no_answer() -> None:
    host = created(held())
    assert host.refusal(wire.gpadl_teardown(1, GPADL + 1))
    assert host.refusal(wire.gpadl_teardown(2, GPADL))
    assert state_of(host) == "accepted"


# channels whose device is gone


@item(68)
@pytest.mark.parametrize("reoffered", [False, True])
def test_a_gpadl_on_a_revoked_channel_is_taken_without_a_device(reoffered: bool) -> None:
    host = held()
    host.revoke(1)
    if reoffered:
        host.offer(1)
    assert host.hear(wire.gpadl_header(1, GPADL)) == [wire.gpadl_created(1, GPADL, 0)]
    assert host.hear(wire.gpadl_teardown(1, GPADL)) == [wire.gpadl_torndown(GPADL)]
    assert reading(host.hear(wire.release(1))) == (["OFFER"] if reoffered else [])
    assert not host.complaints


@item(68)
def test_a_revoked_channels_gpadl_may_come_in_several_messages() -> None:
    host = held()
    in_progress(host)
    host.revoke(1)
    assert host.hear(wire.gpadl_body(GPADL, wire.gpa_range(2))) == [wire.gpadl_created(1, GPADL)]


@pytest.mark.parametrize("reoffered", [False, True])
def test_what_a_revoked_channel_has_goes_silently_with_its_release(reoffered: bool) -> None:
    host = created(held())
    host.revoke(1)
    if reoffered:
        host.offer(1)
    assert reading(host.hear(wire.release(1))) == (["OFFER"] if reoffered else [])
    assert host.machine.state.gpadl_words == 0


def test_what_a_rescinded_channel_has_is_not_waited_for_at_unload() -> None:
    host = created(held())
    host.revoke(1)
    assert reading(host.hear(wire.UNLOAD)) == ["backend reset"]
