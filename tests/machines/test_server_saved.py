"""The server's machine: save and restore (`reference/vmbus.md` 6.6; items 32 to 40, 66)."""

from __future__ import annotations

import msgspec
import pytest

from broker.errors import HostError
from channels.core.server import effects as do

from . import wire
from .host import ENDPOINT, PAGES, SERVICE, Host, To, connected, device, offered, reading
from .saved_support import in_state, moved

item = pytest.mark.vmbus_item


# the connection


@item(34)
@pytest.mark.parametrize("version", wire.VERSIONS, ids=wire.version_id)
def test_pages_and_processor_are_set_up_again_and_reset_clears_them(version: int) -> None:
    host = connected(version, devices=0)
    value = 0x7000 if version < wire.WIN8 else wire.info() if version >= wire.RS3_1 else 0
    host.hear(wire.contact(version, 3, value, PAGES))
    new = moved(host, ())
    (request,) = new.start()
    assert isinstance(request, do.ModifyConnection)
    vp, page = 3 if version >= 0x0003_0000 else 0, 0x7000 if version < 0x0002_0004 else None
    assert (request.version, request.target_vp) == (version, vp)
    assert (request.interrupt_page, request.monitor_pages) == (page, do.MonitorPages(*PAGES))
    assert new.answer(do.ModifyConnection) == []
    assert new.phase == "connected"
    assert new.reset() == [do.ModifyConnection(None, target_vp=0)]


@item(35)
def test_a_contact_that_waits_for_the_backend_is_asked_for_again() -> None:
    host = Host(holds=[do.ModifyConnection])
    host.offer(1)
    host.connect(wire.COPPER, 0x2F, pages=PAGES, vp=2)
    (asked,) = host.waiting
    new = moved(host)
    assert new.phase == "connecting"
    assert new.start() == [asked]
    assert new.answer(do.ModifyConnection) == [wire.version_response(4, 0x2F)]
    assert reading(new.hear(wire.REQUEST_OFFERS)) == ["OFFER", "ALL_OFFERS_DELIVERED"]


def test_monitor_pages_of_the_host_are_asked_for_again_with_the_contact() -> None:
    host = Host(holds=[do.ModifyConnection])
    host.connect(wire.COPPER, 0x41)
    new = moved(host, ())
    assert new.start() == host.waiting
    response = new.answer(do.ModifyConnection, host_pages=do.MonitorPages(0, 0x5000))
    assert response == [wire.version_response(4, 0x41, pages=(0, 0x5000))]


@item(36)
@pytest.mark.parametrize("state", [0, 2])
def test_a_change_of_monitor_pages_is_asked_for_again(state: int) -> None:
    host = connected(wire.COPPER, 0x04, devices=0)
    host.hold()
    host.hear(wire.modify_connection(*PAGES))
    new = moved(host, ())
    (request,) = new.start()
    assert isinstance(request, do.ModifyConnection)
    assert request.monitor_pages == do.MonitorPages(*PAGES)
    assert new.answer(do.ModifyConnection, status=state) == [wire.connection_modified(state)]


@pytest.mark.parametrize("action", ["UNLOAD", "INITIATE_CONTACT", "VM reset"])
def test_what_is_next_is_kept_but_a_reset(action: str) -> None:
    host = in_state("open")
    if action == "UNLOAD":
        host.hear(wire.UNLOAD)
    elif action == "INITIATE_CONTACT":
        host.connect(wire.WIN10)
    else:
        host.reset()
    new = moved(host)
    out = new.start()
    out += new.go_on()
    expected = {"UNLOAD": ["unloaded", "UNLOAD_COMPLETE"], "INITIATE_CONTACT": ["backend", "VERSION_RESPONSE"]}
    assert reading(out) == ["backend reset", *expected.get(action, [])]


def test_a_pause_and_what_it_holds_back_are_kept() -> None:
    host = connected(wire.COPPER, 0x20)
    host.hear(wire.PAUSE)
    host.offer(2)
    new = moved(host, (1, 2))
    for offer_id in (1, 2):
        new.restore_channel(offer_id, is_open=False)
    assert reading(new.start()) == ["backend"]
    assert new.refusal(wire.open_channel(1))
    assert new.hear(wire.RESUME) == [offered(2)]


def test_monitor_pages_of_the_host_cannot_be_saved() -> None:
    host = Host(holds=[do.ModifyConnection])
    host.connect(wire.COPPER, 0x40)
    host.answer(do.ModifyConnection, host_pages=do.MonitorPages(0, 0x5000))
    with pytest.raises(HostError):
        host.machine.save()


# offers


@item(38)
def test_before_the_offers_are_asked_for_nothing_is_sent() -> None:
    host = Host()
    for number in (1, 2, 3):
        host.offer(number)
    host.connect()
    body = msgspec.msgpack.decode(msgspec.msgpack.decode(host.machine.save())["body"])
    assert body["channels"] == []
    new = moved(host, (3, 1, 2))
    for offer_id in (1, 2, 3):
        assert new.restore_channel(offer_id, is_open=False) == []
    assert reading(new.start()) == ["backend"]
    assert new.hear(wire.REQUEST_OFFERS) == [offered(1), offered(2), offered(3), wire.ALL_OFFERS_DELIVERED]


@item(39)
def test_a_new_device_is_offered_once_the_restore_is_done() -> None:
    host = connected(devices=3)
    new = moved(host, (4, 3, 2, 1))
    for offer_id in range(1, 5):
        assert new.restore_channel(offer_id, is_open=False) == []
    assert new.start()[1:] == [offered(4)]
    assert new.refusal(wire.REQUEST_OFFERS)


def test_a_device_may_come_back_before_and_after_the_restore() -> None:
    host = connected(devices=2)
    new = moved(host, (2,))
    offer_id, out = new.offer(1)
    assert out == []
    assert [new.restore_channel(number, is_open=False) for number in (1, offer_id)] == [[], []]
    assert reading(new.start()) == ["backend"]
    assert [new.state(number) for number in (1, offer_id)] == ["closed", "closed"]


# the table: state when saved, and how the device stands

RESTORED: dict[str, dict[bool, str]] = {
    "closed": {True: "error", False: "closed:"},
    "opening": {
        True: "open: ports, device resume, OPEN_RESULT ok",
        False: "opening: ports, device open",
    },
    "open": {True: "open: ports, device resume", False: "error"},
    "closing": {True: "closing: device close", False: "closed:"},
    "closing-reopen": {True: "closing-reopen: device close", False: "opening: ports, device open"},
    "reserved opening": {
        True: "open: ports, device resume, OPEN_RESULT ok to 0:5",
        False: "opening: ports, device open",
    },
    "reserved open": {True: "open: ports, device resume", False: "error"},
    "reserved closing": {True: "closing: device close", False: "closed: CLOSE_RESERVED_RESPONSE to 0:5"},
    "revoked": {True: "error", False: "reoffered:"},
    "reoffered": {True: "error", False: "reoffered:"},
}


@item(32, 33)
@pytest.mark.parametrize("is_open", [True, False], ids=["open", "closed"])
@pytest.mark.parametrize("state", RESTORED)
def test_cell(state: str, is_open: bool) -> None:
    new = moved(in_state(state))
    cell = RESTORED[state][is_open]
    if cell == "error":
        with pytest.raises(HostError):
            new.restore_channel(1, is_open=is_open)
        return
    out = new.restore_channel(1, is_open=is_open)
    assert f"{new.state(1)}: {', '.join(reading(out))}".rstrip() == cell
    assert reading(new.start()) == ["backend"]
    assert not new.complaints


def test_a_new_device_can_only_be_closed() -> None:
    new = moved(connected(devices=0))
    with pytest.raises(HostError):
        new.restore_channel(1, is_open=True)
    assert new.restore_channel(1, is_open=False) == []
    assert new.start()[1:] == [offered(1)]


def test_an_open_is_restored_with_everything_that_the_guest_said() -> None:
    host = connected(wire.COPPER, 0x03)
    user_data = bytes(range(120))
    opening = wire.open_channel2(1, 0x2009, 9, 1, open_id=77, gpadl_id=7, vp=3, page_offset=4)
    (ports, *_) = host.hear(opening[:28] + user_data + opening[148:])
    assert isinstance(ports, do.CreatePorts)
    assert ports.params == do.OpenParams(77, 7, 3, 4, user_data, 0x2009, 9, True)
    new = moved(host)
    assert new.restore_channel(1, is_open=True) == [ports, do.ResumeDevice(1, ports.params)]


def test_the_processor_of_a_modified_channel_is_kept() -> None:
    host = in_state("open", version=wire.IRON)
    host.go_on()
    host.hear(wire.modify_channel(1, 5))
    (ports, *_) = moved(host).restore_channel(1, is_open=True)
    assert isinstance(ports, do.CreatePorts)
    assert ports.params.target_vp == 5


@pytest.mark.parametrize("version", [wire.RS5, wire.IRON], ids=wire.version_id)
def test_a_modification_goes_on(version: int) -> None:
    host = in_state("open", version=version)
    host.hear(wire.modify_channel(1, 5))
    host.hear(wire.modify_channel(1, 6))
    new = moved(host)
    assert reading(new.restore_channel(1, is_open=True)) == ["ports", "device resume", "device modify"]
    out = new.answer(do.ModifyDevice)
    assert out == ([wire.channel_modified(1)] if version == wire.IRON else [do.ModifyDevice(1, 6)])


RESTORED_ONE_BY_ONE = ("closed", "opening", "open", "closing", "closing-reopen")


@item(32)
@pytest.mark.parametrize("state", RESTORED_ONE_BY_ONE)
def test_a_device_that_is_there_and_says_nothing_is_rescinded_and_offered_again(state: str) -> None:
    new = moved(in_state(state))
    assert reading(new.start()) == ["backend", "RESCIND"]
    assert new.state(1) == "reoffered"
    assert new.hear(wire.release(1)) == [offered(1)]


@item(32)
@pytest.mark.parametrize("state", RESTORED_ONE_BY_ONE)
def test_a_device_that_did_not_come_back_is_rescinded(state: str) -> None:
    new = moved(in_state(state), ())
    out = new.start()
    assert out[-1] == wire.rescind(1)
    assert reading(out).count("RESCIND") == 1
    assert new.hear(wire.release(1)) == []
    assert new.offer(1)[1] == [offered(1)]


@item(33)
@pytest.mark.parametrize("comes_back", [True, False])
@pytest.mark.parametrize("state", ["revoked", "reoffered"])
def test_a_revoked_channel_waits_for_its_release_and_is_rescinded_once(state: str, comes_back: bool) -> None:
    new = moved(in_state(state), (1,) if comes_back else ())
    if comes_back:
        assert new.restore_channel(1, is_open=False) == []
    assert reading(new.start()) == ["backend"]
    assert new.state(1) == ("reoffered" if comes_back else "revoked")
    assert new.hear(wire.release(1)) == ([offered(1)] if comes_back else [])


@item(32)
def test_a_whole_server_is_restored() -> None:
    host = Host()
    for number in range(1, 8):
        host.offer(device(number, monitor_latency=1000 if number in (1, 4, 7) else None))
    host.connect(pages=PAGES)
    host.hear(wire.REQUEST_OFFERS)
    host.hear(wire.gpadl_header(2, 7))
    for channel_id in (2, 3, 7):
        host.hear(wire.open_channel(channel_id, gpadl_id=7))
    for channel_id in (5, 6):
        host.hear(wire.open_reserved(channel_id, 0, 5))
    host.hold()
    host.hear(wire.gpadl_header(2, 8, wire.gpa_range(4)))
    host.hear(wire.gpadl_header(2, 9, wire.gpa_range(5), length=32))
    host.hear(wire.open_channel(1))
    host.hear(wire.close_channel(3))
    host.hear(wire.open_reserved(4, 0, 5))
    host.hear(wire.close_reserved(6, 0, 5))
    assert host.machine.state.channels.monitor_ids == 0b111
    devices = [device(number, monitor_latency=1000 if number in (1, 4, 7) else None) for number in range(1, 8)]
    new = moved(host, devices)
    assert new.machine.state.channels.monitor_ids == 0b111
    stands = {1: False, 2: True, 3: True, 4: False, 5: True, 6: True}
    out = {number: reading(new.restore_channel(number, is_open=is_open)) for number, is_open in stands.items()}
    assert out[1] == out[4] == ["ports", "device open"]
    assert out[2] == ["device gpadl resume", "device gpadl", "ports", "device resume"]
    assert out[3] == out[6] == ["device close"]
    assert out[5] == ["ports", "device resume"]
    states = [new.state(number) for number in range(1, 7)]
    assert states == ["opening", "open", "closing", "opening", "open", "closing"]
    assert reading(new.start()) == ["backend", "RESCIND"]
    assert new.state(7) == "reoffered"
    new.answer(do.ModifyConnection)
    # all of it goes on
    assert new.answer(do.OpenDevice) == [wire.open_result(1)]
    assert new.answer(do.OpenDevice) == [To(0, 5, wire.open_result(4))]
    assert new.answer(do.CreateGpadl) == [wire.gpadl_created(2, 8)]
    assert new.answer(do.CloseDevice) == []
    assert new.answer(do.CloseDevice) == [To(0, 5, wire.reserved_closed(6))]
    assert new.hear(wire.gpadl_body(9, wire.gpa_range(5) + bytes(8))) == [do.CreateGpadl(2, 9, 1, wire.gpa_range(5))]
    new.revoke(7)
    new.hear(wire.release(7))
    assert new.machine.state.channels.monitor_ids == 0b011
    assert not new.complaints


# GPADLs


@pytest.mark.parametrize("state", ["offered", "accepted", "tearing-down"])
@item(32, 66)
def test_a_gpadl_is_restored_as_it_was(state: str) -> None:
    host = connected()
    if state == "offered":
        host.hold()
    host.hear(wire.gpadl_header(1, 7))
    host.hold()
    if state == "tearing-down":
        host.hear(wire.gpadl_teardown(1, 7))
    new = moved(host)
    out = new.restore_channel(1, is_open=False)
    if state == "offered":
        assert out == [do.CreateGpadl(1, 7, 1, wire.gpa_range(1))]
        assert new.answer(do.CreateGpadl) == [wire.gpadl_created(1, 7)]
    else:
        assert out[0] == do.ResumeGpadl(1, 7, 1, wire.gpa_range(1))
        assert out[1:] == ([do.TeardownGpadl(1, 7)] if state == "tearing-down" else [])
    assert reading(new.start()) == ["backend"]
    if state == "tearing-down":
        assert new.answer(do.TeardownGpadl) == [wire.gpadl_torndown(7)]
    else:
        assert new.hear(wire.gpadl_teardown(1, 7)) == [do.TeardownGpadl(1, 7)]


@pytest.mark.parametrize(
    ("state", "answer"), [("offered", wire.gpadl_created(1, 7, 0x8000_FFFF)), ("tearing-down", wire.gpadl_torndown(7))]
)
def test_a_device_that_did_not_come_back_has_its_gpadls_answered(state: str, answer: bytes) -> None:
    host = connected()
    if state == "offered":
        host.hold()
    host.hear(wire.gpadl_header(1, 7))
    host.hold()
    if state == "tearing-down":
        host.hear(wire.gpadl_teardown(1, 7))
    for devices in ((1,), ()):
        out = moved(host, devices).start()
        assert [message for message in out if isinstance(message, bytes)] == [answer, wire.rescind(1)]


# messages


@item(40)
def test_messages_that_were_not_posted_come_first_and_in_order() -> None:
    waiting = [wire.gpadl_created(1, 7), wire.open_result(1, 9)]
    new = moved(in_state("opening"), messages=waiting)
    out = new.restore_channel(1, is_open=True) + new.start()
    sent = [effect.data if isinstance(effect, do.SendSaved) else effect for effect in out]
    assert [data for data in sent if isinstance(data, bytes)] == [*waiting, wire.open_result(1, 9)]


def test_connects_that_nobody_has_answered_are_refused() -> None:
    host = connected(devices=0)
    host.hear(wire.hvsock_connect(ENDPOINT, SERVICE))
    out = moved(host, ()).start()
    refused = [wire.hvsock_result(ENDPOINT, SERVICE)]
    assert [effect.data for effect in out if isinstance(effect, do.SendSaved)] == refused
