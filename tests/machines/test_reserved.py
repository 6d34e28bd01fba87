"""The server's machine: reserved channels (`reference/vmbus.md` 1.6, 2.7, 6.4; items 41, 44 to 46, 48 to 50)."""

from __future__ import annotations

import pytest

from channels.core.server import effects as do

from . import wire
from .host import Host, To, connected, offered, reading

item = pytest.mark.vmbus_item
RESERVING = [version for version in wire.VERSIONS if version >= 0x0004_0000]


def reserved(**how: object) -> Host:
    """A host whose channel 1 is open as a reserved one, for processor 1 and SINT 5, over GPADL 7."""
    host = connected(**how)  # type: ignore[arg-type]
    host.hear(wire.gpadl_header(1, 7))
    host.hear(wire.open_reserved(1, 1, 5, 7, 1))
    assert host.state(1) == "open"
    return host


@item(44)
@pytest.mark.parametrize("version", RESERVING, ids=wire.version_id)
def test_the_result_goes_where_the_guest_asked_with_open_id_0(version: int) -> None:
    host = connected(version)
    out = host.hear(wire.open_reserved(1, 3, 0xABCD_EF05, 7, 9))
    params = do.OpenParams(0, 7, None, 9, bytes(120), 0x2001, 1, reserved=do.Target(3, 5))
    expected = [do.CreatePorts(1, 1, params), do.OpenDevice(1, params), To(3, 5, wire.open_result(1, 0))]
    assert out == expected


@pytest.mark.parametrize("status", [0x8000_FFFF, 0xC000_0001])
def test_a_failure_goes_there_too(status: int) -> None:
    host = connected()
    host.hold()
    host.hear(wire.open_reserved(1, 3, 6))
    assert host.answer(do.OpenDevice, status=status)[-1] == To(3, 6, wire.open_result(1, 0, status))
    assert host.state(1) == "closed"


def test_a_reserved_channel_has_no_interrupts_and_no_monitor_id() -> None:
    host = connected()
    (ports, *_) = host.hear(wire.open_reserved(1, 0, 5))
    assert isinstance(ports, do.CreatePorts)
    assert (ports.params.target_vp, ports.params.monitor_id) == (None, None)
    assert host.hear(wire.modify_channel(1, 0)) == [wire.channel_modified(1, 0x8000_FFFF)]


@item(45)
def test_an_ordinary_close_of_a_reserved_channel_is_refused() -> None:
    assert "reserved channel" in reserved().refusal(wire.close_channel(1))


def test_a_reserved_close_of_an_ordinary_channel_is_refused() -> None:
    host = connected()
    host.hear(wire.open_channel(1))
    assert "not open as a reserved channel" in host.refusal(wire.close_reserved(1, 1, 5))


def test_gpadls_of_an_open_reserved_channel_stay_as_they_are() -> None:
    host = reserved()
    assert host.hear(wire.gpadl_header(1, 8)) == [wire.gpadl_created(1, 8, 0x8000_FFFF)]
    assert host.refusal(wire.gpadl_teardown(1, 7))
    host.hear(wire.close_reserved(1, 1, 5))
    assert reading(host.hear(wire.gpadl_teardown(1, 7))) == ["device teardown", "GPADL_TORNDOWN"]


@item(49)
def test_the_answer_to_a_close_goes_where_the_close_says() -> None:
    host = reserved()
    out = host.hear(wire.close_reserved(1, 2, 0x109))
    response = bytes.fromhex("14000000 00000000 01000000")
    assert out == [do.CloseDevice(1), do.DestroyPorts(1), To(2, 9, response)]
    assert host.state(1) == "closed"


@item(46, 50)
def test_reserved_channels_and_their_gpadls_survive_an_unload() -> None:
    host = reserved(devices=2)
    host.hear(wire.gpadl_header(2, 7))
    host.hear(wire.open_channel(2))
    out = host.hear(wire.UNLOAD)
    assert reading(out) == [
        *("device teardown", "device close", "no ports"),
        *("backend reset", "unloaded", "UNLOAD_COMPLETE"),
    ]
    assert (host.state(1), list(host.machine.state.channels.by_offer[1].gpadls)) == ("open", [7])
    host.hold()
    assert reading(host.hear(wire.close_reserved(1, 0, 5))) == ["device close", "no ports"]
    out = host.answer(do.CloseDevice)
    assert out == [To(0, 5, wire.reserved_closed(1)), do.TeardownGpadl(1, 7)]
    assert host.answer(do.TeardownGpadl) == []
    assert host.state(1) == "client-released"


@item(50)
def test_a_close_that_is_under_way_at_an_unload_is_answered() -> None:
    host = reserved()
    host.hold(do.CloseDevice)
    host.hear(wire.close_reserved(1, 0, 5))
    assert reading(host.hear(wire.UNLOAD)) == ["backend reset", "unloaded", "UNLOAD_COMPLETE"]
    assert host.answer(do.CloseDevice)[0] == To(0, 5, wire.reserved_closed(1))


@pytest.mark.parametrize("version", wire.VERSIONS, ids=wire.version_id)
def test_a_reserved_channel_keeps_its_id_at_the_next_connection(version: int) -> None:
    host = reserved(devices=3)
    host.hear(wire.UNLOAD)
    host.connect(version)
    assert host.hear(wire.REQUEST_OFFERS) == [offered(2), offered(3), wire.ALL_OFFERS_DELIVERED]
    out = host.hear(wire.close_reserved(1, 0, 5))
    assert out[2] == To(0, 5, wire.reserved_closed(1))
    assert host.state(1) == "closed"  # the guest may open it again, and gets no offer for it


@item(46)
def test_closed_before_the_offers_are_asked_for_it_is_offered_with_the_others() -> None:
    host = reserved()
    host.hear(wire.UNLOAD)
    host.connect()
    out = host.hear(wire.close_reserved(1, 0, 5))
    assert reading(out) == [*("device close", "no ports"), "CLOSE_RESERVED_RESPONSE to 0:5", "device teardown"]
    assert host.hear(wire.REQUEST_OFFERS) == [offered(1), wire.ALL_OFFERS_DELIVERED]


@item(48)
def test_closed_and_offered_it_can_be_opened_as_a_reserved_channel_again() -> None:
    host = reserved()
    host.hear(wire.UNLOAD)
    host.hear(wire.close_reserved(1, 0, 5))
    host.connect(wire.WIN10)
    host.hear(wire.REQUEST_OFFERS)
    assert host.hear(wire.open_reserved(1, 0, 6))[-1] == To(0, 6, wire.open_result(1))
    assert host.hear(wire.close_reserved(1, 0, 6))[-1] == To(0, 6, wire.reserved_closed(1))


@item(48)
def test_closed_while_connected_it_can_be_opened_either_way() -> None:
    host = reserved()
    host.hear(wire.close_reserved(1, 0, 5))
    assert host.hear(wire.open_channel(1, open_id=4))[-1] == wire.open_result(1, 4)
    host.hear(wire.close_channel(1))
    assert host.hear(wire.open_reserved(1, 0, 5))[-1] == To(0, 5, wire.open_result(1))


@pytest.mark.parametrize("unloaded", [False, True])
def test_a_device_that_leaves_a_reserved_channel_is_rescinded_where_there_is_a_guest(unloaded: bool) -> None:
    host = reserved()
    if unloaded:
        host.hear(wire.UNLOAD)
    out = reading(host.revoke(1))
    assert out == (["no ports", "removed"] if unloaded else ["no ports", "removed", "RESCIND"])
    assert host.state(1) == (None if unloaded else "revoked")


@item(41)
def test_an_answer_to_a_target_is_never_held_back() -> None:
    host = connected(wire.COPPER, 0x20)
    host.hold(do.OpenDevice)
    host.hear(wire.open_reserved(1, 0, 5))
    assert host.hear(wire.PAUSE) == [wire.PAUSE_RESPONSE]
    assert host.answer(do.OpenDevice) == [To(0, 5, wire.open_result(1))]


def test_a_contact_lets_reserved_channels_be() -> None:
    host = reserved(devices=2)
    host.hear(wire.open_channel(2))
    assert reading(host.connect()) == [*("device close", "no ports"), "backend reset", "backend", "VERSION_RESPONSE"]
    assert (host.state(1), host.state(2)) == ("open", "client-released")


def test_without_an_open_reserved_channel_there_is_none_to_close() -> None:
    host = Host()
    host.offer(1)
    assert "no channel 0x1" in host.refusal(wire.close_reserved(1, 0, 5))
