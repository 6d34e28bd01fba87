"""The server's machine: its connection from contact to contact (`reference/vmbus.md` 6.1, 6.4, items 24, 42, 43, 51, 61 to 63).

The table of 6.1 stands in `CELLS`, one cell for each event and state: the state after it and what is done, in words.
"err" is a complaint and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from channels.core.server import effects as do
from channels.core.server.state import ServerConfig
from channels.protocol.message import ConnectionState
from channels.protocol.versions import Version

from . import wire
from .host import PAGES, SERVICE, Host, To, connected, reading

item = pytest.mark.vmbus_item

STATES = ("disconnected", "connecting", "connected", "disconnecting")


def disconnected() -> Host:
    host = Host()
    host.offer(1)
    host.hold()
    return host


def connecting() -> Host:
    host = disconnected()
    host.connect(wire.COPPER, 0x2F)
    return host


def connected_host() -> Host:
    host = connected(wire.COPPER, 0x2F)
    host.hold()
    return host


def disconnecting() -> Host:
    """After an UNLOAD with a device that is still closing."""
    host = connected(wire.COPPER, 0x2F)
    host.hear(wire.open_channel2(1, 0x2001, 1))
    host.hold()
    host.hear(wire.UNLOAD)
    return host


START: dict[str, Callable[[], Host]] = dict(
    zip(STATES, (disconnected, connecting, connected_host, disconnecting), strict=True)
)
CONTACT = wire.contact(wire.IRON, info=wire.info())
EVENTS: dict[str, Callable[[Host], list]] = {
    "INITIATE_CONTACT": lambda host: host.hear(CONTACT),
    "bad INITIATE_CONTACT": lambda host: host.hear(wire.contact(0xFFFF_FFFF)),
    "UNLOAD": lambda host: host.hear(wire.UNLOAD),
    "REQUEST_OFFERS": lambda host: host.hear(wire.REQUEST_OFFERS),
    "CLOSE_RESERVED": lambda host: host.hear(wire.close_reserved(1, 0, 2)),
    "VM reset": lambda host: host.reset(),
}
CELLS: dict[str, dict[str, str]] = {
    "INITIATE_CONTACT": {
        "disconnected": "connecting: backend",
        "connecting": "connecting: | connected: VERSION_RESPONSE, backend reset, backend, VERSION_RESPONSE",
        "connected": "disconnecting: backend reset | connected: backend, VERSION_RESPONSE",
        "disconnecting": "disconnecting: | connected: backend reset, backend, VERSION_RESPONSE",
    },
    "bad INITIATE_CONTACT": {
        "disconnected": "disconnected: VERSION_RESPONSE",
        "connecting": "connecting: | disconnected: VERSION_RESPONSE, backend reset, VERSION_RESPONSE",
        "connected": "disconnecting: backend reset | disconnected: VERSION_RESPONSE",
        "disconnecting": "disconnecting: | disconnected: backend reset, VERSION_RESPONSE",
    },
    "UNLOAD": {
        "disconnected": "err",
        "connecting": "err",
        "connected": "disconnecting: backend reset | disconnected: unloaded, UNLOAD_COMPLETE",
        "disconnecting": "err",
    },
    "REQUEST_OFFERS": {
        "disconnected": "err",
        "connecting": "err",
        "connected": "err",
        "disconnecting": "err",
    },
    "CLOSE_RESERVED": {
        "disconnected": "err",
        "connecting": "err",
        "connected": "err",
        "disconnecting": "err",
    },
    "VM reset": {
        "disconnected": "disconnected: messages dropped, reset done",
        "connecting": "connecting: | disconnected: backend reset, messages dropped, reset done",
        "connected": "disconnecting: backend reset | disconnected: messages dropped, reset done",
        "disconnecting": "disconnecting: | disconnected: backend reset, messages dropped, reset done",
    },
}


def row(host: Host, out: list) -> str:
    return f"{host.phase}: {', '.join(reading(out))}".rstrip()


@item(61, 62)
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("event", CELLS)
def test_cell(event: str, state: str) -> None:
    host = START[state]()
    assert host.phase == state
    cell, _, later = CELLS[event][state].partition(" | ")
    complaints = len(host.complaints)
    out = EVENTS[event](host)
    if cell == "err":
        assert (out, host.phase, len(host.complaints)) == ([], state, complaints + 1)
    else:
        assert row(host, out) == cell
        assert len(host.complaints) == complaints
        if later:
            assert row(host, host.go_on()) == later


OTHERS = [
    wire.open_channel2(1, 0x2001, 1),
    wire.close_channel(1),
    wire.gpadl_header(1, 7),
    wire.gpadl_body(7, bytes(8)),
    wire.gpadl_teardown(1, 7),
    wire.release(1),
    wire.open_reserved(1, 0, 2),
    wire.hvsock_connect(SERVICE, SERVICE),
    wire.modify_channel(1, 0),
    wire.modify_connection(0, 0),
    wire.PAUSE,
    wire.RESUME,
]


@pytest.mark.parametrize("state", ["disconnected", "connecting", "disconnecting"])
@pytest.mark.parametrize("message", OTHERS, ids=lambda message: wire.NAMES[message[0]])
def test_without_a_connection_other_messages_have_no_answer(message: bytes, state: str) -> None:
    host = START[state]()
    assert "without a connection" in host.refusal(message)
    assert host.phase == state


@pytest.mark.parametrize("state", ["connecting", "connected", "disconnecting"])
def test_during_a_reset_no_message_is_looked_at(state: str) -> None:
    host = START[state]()
    host.reset()
    for message in (*OTHERS, CONTACT, wire.UNLOAD, wire.REQUEST_OFFERS, wire.close_reserved(1, 0, 2)):
        assert not host.machine.may_receive
        assert "reset" in host.refusal(message)
    assert reading(host.go_on())[-1] == "reset done"
    assert host.machine.may_receive


def test_offers_are_sent_once_for_each_connection() -> None:
    host = connected(devices=2)
    assert host.refusal(wire.REQUEST_OFFERS)
    host.connect()
    assert reading(host.hear(wire.REQUEST_OFFERS)) == ["OFFER", "OFFER", "ALL_OFFERS_DELIVERED"]


# what the backend answers, by state


@pytest.mark.parametrize("next_event", ["INITIATE_CONTACT", "VM reset"])
@pytest.mark.parametrize("answer", [{"status": ConnectionState.FAILED_LOW_RESOURCES}, {"supported": False}])
def test_a_backend_that_fails_a_contact_goes_on_with_what_is_next(answer: dict, next_event: str) -> None:
    host = connecting()
    EVENTS[next_event](host)
    out = reading(host.answer(do.ModifyConnection, **answer))
    if next_event == "VM reset":
        assert out == ["messages dropped", "reset done"]  # whoever asked is gone
    else:
        assert out == ["VERSION_RESPONSE", "backend"]
        assert host.phase == "connecting"


@pytest.mark.parametrize("answer", [{"status": ConnectionState.FAILED_LOW_RESOURCES}, {"supported": False}])
def test_the_answer_to_a_reset_of_the_connection_is_not_looked_at(answer: dict) -> None:
    host = connected_host()
    host.hear(wire.UNLOAD)
    assert reading(host.answer(do.ModifyConnection, **answer)) == ["unloaded", "UNLOAD_COMPLETE"]


# which of several contacts


def test_of_several_contacts_the_last_one_counts() -> None:
    host = disconnecting()
    for version in (wire.WIN8, wire.WIN10, wire.RS5):
        assert host.hear(wire.contact(version, info=wire.info() if version >= wire.RS3_1 else 0)) == []
    out = host.go_on()
    assert reading(out) == ["backend reset", "backend", "VERSION_RESPONSE"]
    assert host.machine.state.connection.version == Version.WIN10_RS5


@item(63)
@pytest.mark.parametrize("version", wire.VERSIONS, ids=wire.version_id)
def test_a_contact_while_connected_lets_go_of_the_old_connection_without_a_word(version: int) -> None:
    host = connected(wire.COPPER)
    host.hear(wire.open_channel(1))
    out = host.connect(version)
    assert reading(out) == ["device close", "no ports", "backend reset", "backend", "VERSION_RESPONSE"]
    assert host.phase == "connected"
    assert host.refusal(wire.open_channel(1))  # its ID went with the old connection
    assert reading(host.hear(wire.REQUEST_OFFERS)) == ["OFFER", "ALL_OFFERS_DELIVERED"]


# UNLOAD


@item(61)
def test_unload_without_open_channels_resets_the_backend_and_is_completed() -> None:
    host = connected_host()
    assert host.hear(wire.UNLOAD) == [do.ModifyConnection(None)]
    assert host.answer(do.ModifyConnection) == [do.UnloadDone(), bytes.fromhex("11000000 00000000")]


@item(62)
def test_unload_waits_for_every_close() -> None:
    host = connected(devices=3)
    for channel_id in (1, 2, 3):
        host.hear(wire.open_channel(channel_id))
    host.hold()
    assert reading(host.hear(wire.UNLOAD)) == ["device close", "no ports"] * 3
    assert host.answer(do.CloseDevice) == host.answer(do.CloseDevice) == []
    assert reading(host.answer(do.CloseDevice)) == ["backend reset"]
    assert reading(host.answer(do.ModifyConnection)) == ["unloaded", "UNLOAD_COMPLETE"]


def test_unload_waits_for_every_gpadl() -> None:
    host = connected()
    host.hear(wire.gpadl_header(1, 7))
    host.hear(wire.gpadl_header(1, 8))
    host.hold()
    assert reading(host.hear(wire.UNLOAD)) == ["device teardown"] * 2
    assert host.answer(do.TeardownGpadl) == []
    assert reading(host.answer(do.TeardownGpadl)) == ["backend reset"]


def test_unload_is_taken_from_the_oldest_version_on() -> None:
    for version in wire.VERSIONS:
        assert reading(connected(version).hear(wire.UNLOAD)) == ["backend reset", "unloaded", "UNLOAD_COMPLETE"]


# reset of the VM


@item(24)
def test_a_reset_waits_for_four_closes_and_the_backend() -> None:
    host = connected(devices=4)
    for channel_id in range(1, 5):
        host.hear(wire.open_channel(channel_id))
    host.hold()
    assert reading(host.reset()) == ["device close", "no ports"] * 4
    for _ in range(3):
        assert host.answer(do.CloseDevice) == []
    assert host.answer(do.CloseDevice) == [do.ModifyConnection(None, target_vp=0)]
    assert reading(host.answer(do.ModifyConnection)) == ["messages dropped", "reset done"]
    assert host.machine.state.connection.target_vp == 0


def test_a_reset_does_not_wait_for_opens() -> None:
    host = connected(devices=2)
    host.hold()
    host.hear(wire.open_channel(1))
    host.hear(wire.open_channel(2))
    assert reading(host.reset()) == ["device drop", "no ports", "device drop", "no ports", "backend reset"]
    assert reading(host.answer(do.ModifyConnection)) == ["messages dropped", "reset done"]


@item(51)
@pytest.mark.parametrize("unloaded", [False, True])
def test_a_reset_closes_reserved_channels_and_takes_their_gpadls_back(unloaded: bool) -> None:
    host = connected()
    host.hear(wire.gpadl_header(1, 7))
    host.hear(wire.open_reserved(1, 0, 5, 7))
    if unloaded:
        host.hear(wire.UNLOAD)
    host.hold()
    assert reading(host.reset()) == ["device teardown", "device close", "no ports"]
    assert host.answer(do.CloseDevice) == []
    assert reading(host.answer(do.TeardownGpadl)) == ["backend reset"]
    assert reading(host.go_on()) == ["messages dropped", "reset done"]
    assert host.state(1) == "client-released"


@item(51)
def test_a_reset_with_nothing_left_is_done_at_once() -> None:
    assert reading(Host().reset()) == ["messages dropped", "reset done"]


def test_after_a_reset_there_is_nothing_of_the_guest_left() -> None:
    host = connected(wire.COPPER, 0x2F, pages=PAGES)
    host.hear(wire.gpadl_header(1, 7))
    host.hear(wire.gpadl_header(1, 8, wire.gpa_range(1), length=80))
    host.hear(wire.PAUSE)
    host.offer(2)
    host.reset()
    state = host.machine.state
    assert (state.gpadl_words, state.gpadls_in_progress, list(state.held)) == (0, {}, [])
    assert state.connection.monitor_pages is None
    assert reading(host.connect(wire.V1)) == ["backend", "VERSION_RESPONSE"]
    assert reading(host.hear(wire.REQUEST_OFFERS)) == ["OFFER", "OFFER", "ALL_OFFERS_DELIVERED"]


# reserved channels and the connection


@item(46)
@pytest.mark.parametrize("state", STATES)
def test_a_reserved_channel_is_closed_whatever_the_connection_is(state: str) -> None:
    host = connected(wire.COPPER, 0x2F, devices=2)
    host.hear(wire.open_reserved(1, 0, 5))
    host.hear(wire.open_channel2(2, 0x2002, 2))
    if state != "connected":
        if state == "disconnecting":
            host.hold(do.CloseDevice)
        host.hear(wire.UNLOAD)
        host.holds.discard(do.CloseDevice)
    if state == "connecting":
        host.hold(do.ModifyConnection)
        host.connect()
    assert host.phase == state
    out = host.hear(wire.close_reserved(1, 0, 5))
    assert out[:3] == [do.CloseDevice(1), do.DestroyPorts(1), To(0, 5, wire.reserved_closed(1))]


def test_monitor_pages_that_the_host_must_allocate_leave_the_guests_alone() -> None:
    host = Host(ServerConfig(must_allocate_monitor_pages=True))
    (request, _) = host.connect(wire.COPPER, pages=PAGES)
    assert isinstance(request, do.ModifyConnection)
    assert request.monitor_pages is None
