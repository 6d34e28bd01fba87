"""The server's machine: MODIFY_CHANNEL and MODIFY_CONNECTION (`reference/vmbus.md` 2.9, 5.3, 6.2; items 19, 42, 43)."""

from __future__ import annotations

import pytest

from channels.core.server import effects as do
from channels.core.server.state import ServerConfig
from channels.protocol.message import ConnectionState

from . import wire
from .host import PAGES, Host, connected, device, reading

item = pytest.mark.vmbus_item


# MODIFY_CHANNEL


@item(19)
@pytest.mark.parametrize("version", [v for v in wire.VERSIONS if v >= 0x0004_0001], ids=wire.version_id)
@pytest.mark.parametrize("status", [0, wire.FAILED])
def test_the_status_of_a_modification_is_told_from_5_3_on(version: int, status: int) -> None:
    host = connected(version)
    host.hear(wire.open_channel(1))
    host.hold()
    assert host.hear(bytes.fromhex("16000000 00000000 01000000 03000000")) == [do.ModifyDevice(1, 3)]
    expected = [wire.channel_modified(1, status)] if version >= 0x0005_0003 else []
    assert host.answer(do.ModifyDevice, status=status) == expected


@pytest.mark.parametrize("version", [wire.RS5, wire.IRON], ids=wire.version_id)
@pytest.mark.parametrize("case", ["no interrupts before", "no interrupts after", "reserved", "closed"])
def test_a_modification_that_cannot_be_has_a_failure_reply_from_5_3_on(case: str, version: int) -> None:
    host = connected(version)
    if case == "reserved":
        host.hear(wire.open_reserved(1, 0, 5))
    elif case != "closed":
        host.hear(wire.open_channel(1, vp=wire.NO_INTERRUPTS if case == "no interrupts before" else 0))
    vp = wire.NO_INTERRUPTS if case == "no interrupts after" else 1
    expected = [wire.channel_modified(1, 0x8000_FFFF)] if version >= 0x0005_0003 else []
    assert host.hear(wire.modify_channel(1, vp)) == expected


@pytest.mark.parametrize("version", [wire.IRON, wire.COPPER], ids=wire.version_id)
def test_from_5_3_on_a_second_modification_is_dropped(version: int) -> None:
    host = connected(version)
    host.hear(wire.open_channel(1))
    host.hold()
    host.hear(wire.modify_channel(1, 1))
    assert host.refusal(wire.modify_channel(1, 2))
    assert host.answer(do.ModifyDevice) == [wire.channel_modified(1)]
    assert host.waiting == []


@pytest.mark.parametrize("version", [wire.RS3_0, wire.RS5], ids=wire.version_id)
def test_below_5_3_the_latest_processor_follows(version: int) -> None:
    host = connected(version)
    host.hear(wire.open_channel(1))
    host.hold()
    host.hear(wire.modify_channel(1, 1))
    assert host.hear(wire.modify_channel(1, 2)) == host.hear(wire.modify_channel(1, 3)) == []
    assert host.answer(do.ModifyDevice) == [do.ModifyDevice(1, 3)]
    assert host.answer(do.ModifyDevice) == []


def test_a_close_does_not_wait_for_a_modification_whose_end_is_not_told() -> None:
    host = connected(wire.RS5)
    host.hear(wire.open_channel(1))
    host.hold()
    host.hear(wire.modify_channel(1, 1))
    assert reading(host.hear(wire.close_channel(1))) == ["device close", "no ports"]
    assert host.answer(do.ModifyDevice) == []
    assert host.complaints[-1].event == "device_answer_unexpected"
    assert host.answer(do.CloseDevice) == []
    assert host.state(1) == "closed"


# MODIFY_CONNECTION


@item(42)
@pytest.mark.parametrize("state", list(ConnectionState))
def test_other_monitor_pages_reach_the_backend_and_its_status_the_guest(state: ConnectionState) -> None:
    host = connected(wire.COPPER, 0x04)
    host.hold()
    message = bytes.fromhex("19000000 00000000 00f02103 00000000 00f02301 00000000")
    assert message == wire.modify_connection(*PAGES)
    (request,) = host.hear(message)
    assert isinstance(request, do.ModifyConnection)
    assert request.monitor_pages == do.MonitorPages(0x321F000, 0x123F000)
    assert host.answer(do.ModifyConnection, status=state) == [bytes.fromhex("1a000000 00000000") + bytes([state])]


@item(43)
@pytest.mark.parametrize(("version", "features"), [(wire.IRON, 0), (wire.COPPER, 0), (wire.COPPER, 0x2B)])
def test_without_the_feature_monitor_pages_are_not_changed(version: int, features: int) -> None:
    reason = connected(version, features).refusal(wire.modify_connection(*PAGES))
    assert "25" in reason


@pytest.mark.parametrize("pages", [(0x1000, 0), (0, 0x1000), (0x1004, 0x2000), (0x1000, 0x2800)])
def test_monitor_pages_that_are_none_are_refused(pages: tuple[int, int]) -> None:
    host = connected(wire.COPPER, 0x04, pages=PAGES)
    assert host.hear(wire.modify_connection(*pages)) == [wire.connection_modified(2)]
    assert host.machine.state.connection.monitor_pages == do.MonitorPages(*PAGES)


def test_monitor_pages_can_be_taken_back() -> None:
    host = connected(wire.COPPER, 0x04, pages=PAGES)
    (request, response) = host.hear(wire.modify_connection(0, 0))
    assert isinstance(request, do.ModifyConnection)
    assert (request.monitor_pages, response) == (None, wire.connection_modified(0))


def test_monitor_pages_of_the_host_stay() -> None:
    host = Host(holds=[do.ModifyConnection])
    host.connect(wire.COPPER, 0x44)
    host.answer(do.ModifyConnection, host_pages=do.MonitorPages(0, 0x5000))
    assert host.hear(wire.modify_connection(*PAGES)) == [wire.connection_modified(2)]


def test_the_guests_monitor_pages_are_refused_where_the_host_must_allocate_them() -> None:
    host = Host(ServerConfig(must_allocate_monitor_pages=True))
    host.offer(device(monitor_latency=1000))
    host.connect(wire.COPPER, 0x04, pages=PAGES)
    assert host.hear(wire.modify_connection(*PAGES)) == [wire.connection_modified(2)]
    assert host.hear(wire.modify_connection(0, 0))[-1] == wire.connection_modified(0)
    (offer, _) = host.hear(wire.REQUEST_OFFERS)
    assert isinstance(offer, bytes)
    assert offer[188:190] == b"\xff\0"


def test_a_second_change_is_refused_and_the_first_goes_on() -> None:
    host = connected(wire.COPPER, 0x04)
    host.hold()
    host.hear(wire.modify_connection(*PAGES))
    assert host.hear(wire.modify_connection(0x1000, 0x2000)) == [wire.connection_modified(2)]
    assert host.answer(do.ModifyConnection) == [wire.connection_modified(0)]
    assert host.machine.state.connection.monitor_pages == do.MonitorPages(*PAGES)


@pytest.mark.parametrize("vp", [0, wire.NO_INTERRUPTS])
def test_monitor_pages_stay_while_an_open_channel_uses_them(vp: int) -> None:
    host = Host()
    host.offer(device(monitor_latency=1000))
    host.connect(wire.COPPER, 0x04, pages=PAGES)
    host.hear(wire.REQUEST_OFFERS)
    host.hear(wire.open_channel(1, vp=vp))
    uses_it = vp == 0
    assert host.hear(wire.modify_connection(0, 0))[-1] == wire.connection_modified(2 if uses_it else 0)
    host.hear(wire.close_channel(1))
    assert host.hear(wire.modify_connection(0x1000, 0x2000))[-1] == wire.connection_modified(0)


def test_a_change_that_a_new_contact_overtakes_has_no_answer() -> None:
    host = connected(wire.COPPER, 0x04)
    host.hold()
    host.hear(wire.modify_connection(*PAGES))
    host.hear(wire.contact(wire.IRON, info=wire.info()))
    assert reading(host.go_on()) == ["backend", "VERSION_RESPONSE"]
