"""The server's machine: INITIATE_CONTACT and its answers (`reference/vmbus.md` 1.3 to 1.6, items 2 to 14, 54, 60, 71)."""

from __future__ import annotations

import pytest

from channels.core.server import effects as do
from channels.core.server.state import ServerConfig
from channels.protocol.connect import InitiateContact
from channels.protocol.message import ConnectionState
from channels.protocol.versions import FeatureFlags, Version

from . import wire
from .host import CLIENT, PAGES, Host, To, connected, device, offered, reading

item = pytest.mark.vmbus_item
VERSIONS = pytest.mark.parametrize("version", wire.VERSIONS, ids=wire.version_id)
ID_1 = ServerConfig(message_connection_id=1)
HOST_PAGES = do.MonitorPages(0x456F000, 0x654F000)


def backend_request(host: Host, data: bytes, **how: bool) -> do.ModifyConnection:
    """The guest says this; the one request that comes of it."""
    (request, *_) = host.hear(data, **how)
    assert isinstance(request, do.ModifyConnection)
    return request


# which version


@item(2)
@pytest.mark.parametrize("version", [0xFFFF_FFFF, 0, 0x0001_0000, 0x0005_0004, 0x0006_0001, 0x000D_0000])
def test_an_unknown_version_is_answered_with_zeros_and_changes_nothing(version: int) -> None:
    host = Host()
    expected = "0f000000 00000000 00000000 00000000"
    assert host.hear(wire.contact(version, vp=1)) == [bytes.fromhex(expected)]
    assert (host.phase, host.last_vp) == ("disconnected", None)


@item(3)
def test_the_backend_is_asked_before_the_guest_is_answered() -> None:
    host = Host(holds=[do.ModifyConnection])
    request = backend_request(host, wire.contact(wire.WIN10, vp=3))
    assert request == do.ModifyConnection(Version.WIN10, FeatureFlags(0), 3, None, None, False)
    assert host.phase == "connecting"
    response = "0f000000 00000000 01000000 00000400"
    assert host.answer(do.ModifyConnection) == [bytes.fromhex(response)]
    assert host.phase == "connected"


@item(14)
@VERSIONS
def test_the_response_names_the_version_below_5_0_and_a_connection_from_there_on(version: int) -> None:
    host = Host(ID_1)
    value = version if version < 0x0005_0000 else 1
    features = 0 if version == 0x0006_0000 else None
    assert host.connect(version)[1:] == [wire.version_response(value, features)]


@VERSIONS
def test_connection_4_is_what_is_named_where_nothing_else_is_configured(version: int) -> None:
    contact = wire.contact(version, info=wire.info() if version >= wire.RS3_1 else 0)
    for multiclient in (True, False):
        response = Host().hear(contact, multiclient=multiclient)[1]
        assert isinstance(response, bytes)
        assert response[12:16] == (version if version < 0x0005_0000 else 4).to_bytes(4, "little")


@VERSIONS
def test_a_version_above_the_configured_one_is_unsupported(version: int) -> None:
    for newest in Version:
        out = Host(ServerConfig(max_version=newest)).connect(version)
        assert (out == [wire.UNSUPPORTED]) == (version > newest)


def test_a_delayed_maximum_counts_from_the_first_unload_until_the_reset() -> None:
    host = Host(ServerConfig(max_version_after_unload=Version.IRON))
    host.connect(wire.COPPER)
    host.connect(wire.COPPER)
    assert host.phase == "connected"
    host.hear(wire.UNLOAD)
    assert host.connect(wire.COPPER) == [wire.UNSUPPORTED]
    assert reading(host.connect(wire.IRON)) == ["backend", "VERSION_RESPONSE"]
    host.reset()
    assert reading(host.connect(wire.COPPER)) == ["backend", "VERSION_RESPONSE"]


# SINT and VTL


@item(4)
@pytest.mark.parametrize("version", [v for v in wire.VERSIONS if v >= 0x0005_0000], ids=wire.version_id)
def test_another_sint_is_answered_unsupported_right_there(version: int) -> None:
    host = Host()
    assert host.hear(wire.contact(version, vp=7, info=wire.info(sint=3))) == [To(7, 3, wire.UNSUPPORTED)]
    assert (host.phase, host.last_vp) == ("disconnected", None)


def test_another_sint_leaves_a_connection_as_it_is() -> None:
    host = connected(wire.RS3_1)
    assert host.hear(wire.contact(wire.RS3_1, info=wire.info(sint=5))) == [To(0, 5, wire.UNSUPPORTED)]
    assert host.phase == "connected"
    assert host.hear(wire.open_channel(1))


@item(5)
def test_the_sint_is_not_looked_at_on_the_connection_of_old() -> None:
    host = Host()
    out = host.hear(wire.contact(wire.RS3_1, vp=7, info=wire.info(sint=3)), multiclient=False)
    assert out[1:] == [wire.version_response(4)]


@item(4)
@pytest.mark.parametrize("version", [v for v in wire.VERSIONS if v < 0x0005_0000], ids=wire.version_id)
def test_below_5_0_a_contact_has_no_sint(version: int) -> None:
    assert reading(Host().hear(wire.contact(version, info=0x3000))) == ["backend", "VERSION_RESPONSE"]


@item(6)
@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("version", [v for v in wire.VERSIONS if v >= 0x0005_0001], ids=wire.version_id)
def test_a_contact_for_another_vtl_is_forwarded_and_nothing_else(version: int, trusted: bool) -> None:
    host = Host()
    (forward,) = host.hear(wire.contact(version, vp=7, info=wire.info(vtl=2)), trusted=trusted)
    assert isinstance(forward, do.ForwardContact)
    assert (forward.vtl, forward.trusted) == (2, trusted)
    assert isinstance(forward.message, InitiateContact)
    assert forward.message.pack()[:40] == wire.contact(version, vp=7, info=wire.info(vtl=2))
    assert host.phase == "disconnected"


@item(6)
def test_5_0_has_no_vtl() -> None:
    assert reading(Host().hear(wire.contact(wire.RS3_1, info=wire.info(vtl=2)))) == ["backend", "VERSION_RESPONSE"]


@item(7)
def test_the_vtl_is_not_looked_at_on_the_connection_of_old() -> None:
    out = Host().hear(wire.contact(wire.RS4, info=wire.info(vtl=2)), multiclient=False)
    assert out[1:] == [wire.version_response(4)]


# features


@item(8)
def test_6_0_without_features_gets_20_bytes() -> None:
    expected = "0f000000 00000000 01000000 01000000 00000000"
    assert Host(ID_1).connect(wire.COPPER)[1:] == [bytes.fromhex(expected)]


@item(9)
@pytest.mark.parametrize("bit", range(32))
def test_a_feature_is_agreed_on_where_the_host_has_it(bit: int) -> None:
    asked = 1 << bit
    given = asked & 0x2F
    host = Host(ID_1)
    assert host.connect(wire.COPPER, asked)[1:] == [wire.version_response(1, given)]
    assert host.machine.state.connection.features == given


@item(9)
def test_unknown_features_are_left_out_of_a_success() -> None:
    assert Host().connect(wire.COPPER, 0xF000_0001)[1:] == [wire.version_response(4, 1)]


@pytest.mark.parametrize("cap", [0, 0x01, 0x2E, 0x6F])
def test_no_more_is_agreed_on_than_configured(cap: int) -> None:
    host = Host(ServerConfig(features=FeatureFlags(cap)))
    assert host.connect(wire.COPPER, 0x2F)[1:] == [wire.version_response(4, 0x2F & cap)]


@item(10)
def test_a_guest_may_say_who_it_is() -> None:
    contact = bytes.fromhex(
        "0e000000 00000000 00000600 00000000 02000000 2f000000 00f02103 00000000"
        "00f02301 00000000 55cdb1ce 3b6ac541 94734dd3 0624c3d8"
    )
    assert contact == wire.contact(wire.COPPER, 0, wire.info(features=0x2F), PAGES, CLIENT)
    host = Host(ID_1)
    assert host.hear(contact)[1:] == [bytes.fromhex("0f000000 00000000 01000000 01000000 2f000000")]
    assert host.machine.state.connection.client_id == CLIENT


@item(10)
def test_a_client_id_that_is_missing_has_no_answer() -> None:
    whole = wire.contact(wire.COPPER, info=wire.info(features=8), client=CLIENT)
    for size in range(40, 56):
        host = Host()
        assert host.refusal(whole[:size])
        assert host.phase == "disconnected"


@pytest.mark.parametrize(("version", "features"), [(wire.IRON, 8), (wire.COPPER, 0)])
def test_a_client_id_that_was_not_announced_is_not_looked_at(version: int, features: int) -> None:
    host = Host()
    host.hear(wire.contact(version, info=wire.info(features=features), client=CLIENT))
    assert host.machine.state.connection.client_id.int == 0


@item(11)
@pytest.mark.parametrize(("configured", "given"), [(False, 0), (True, 0x80)])
def test_pinning_is_given_where_it_is_configured(configured: bool, given: int) -> None:
    host = Host(ServerConfig(gpa_pinning=configured))
    assert host.connect(wire.COPPER, 0x80)[1:] == [wire.version_response(4, given)]


@item(60)
@pytest.mark.parametrize(("trusted", "given"), [(False, 0), (True, 0x10)])
def test_confidential_channels_are_given_to_trusted_guests(trusted: bool, given: int) -> None:
    assert Host().connect(wire.COPPER, 0x10, trusted=trusted)[1:] == [wire.version_response(4, given)]


@VERSIONS
def test_below_6_0_nothing_is_a_feature(version: int) -> None:
    info = 0xFF << 32 | (0x2 if version >= wire.WIN8 else 0)
    request = backend_request(Host(), wire.contact(version, info=info, client=CLIENT))
    assert request.features == (0x6F if version == wire.COPPER else 0)


# interrupt page, processor, monitor pages


@item(12)
@VERSIONS
def test_the_interrupt_page_counts_below_2_4(version: int) -> None:
    value = 0x5000 if version < wire.RS3_1 else wire.info() | 0x5000_0000_0000
    request = backend_request(Host(), wire.contact(version, info=value))
    assert request.interrupt_page == (0x5000 if version < 0x0002_0004 else None)


@pytest.mark.parametrize("version", [wire.V1, wire.WIN7], ids=wire.version_id)
def test_an_interrupt_page_of_zero_is_none(version: int) -> None:
    assert backend_request(Host(), wire.contact(version)).interrupt_page is None


@pytest.mark.parametrize("version", [wire.V1, wire.WIN7], ids=wire.version_id)
def test_an_unaligned_interrupt_page_fails_the_contact(version: int) -> None:
    host = Host()
    assert host.hear(wire.contact(version, info=0x5008)) == [wire.UNSUPPORTED]
    assert host.phase == "disconnected"


@item(13)
@VERSIONS
def test_the_processor_counts_from_3_0(version: int) -> None:
    host = Host()
    host.connect(version, vp=1)
    assert host.last_vp == (1 if version >= 0x0003_0000 else 0)


ONE_PAGE = [(0x1000, 0), (0, 0x1000), (0x1001, 0x2000), (0x1000, 0x2008)]


@pytest.mark.parametrize("pages", ONE_PAGE)
@VERSIONS
def test_one_monitor_page_or_one_that_is_none_fails_the_contact(version: int, pages: tuple[int, int]) -> None:
    host = Host(ID_1)
    value = version if version < 0x0005_0000 else 1
    failed = wire.version_response(value, 0x01 if version == wire.COPPER else None, state=2)
    assert host.connect(version, 0x01, pages=pages) == [wire.UNSUPPORTED if version < 0x0002_0004 else failed]
    assert host.phase == "disconnected"


@VERSIONS
def test_two_monitor_pages_are_used(version: int) -> None:
    target = wire.info() if version >= wire.RS3_1 else 0
    request = backend_request(Host(), wire.contact(version, info=target, pages=PAGES))
    assert request.monitor_pages == do.MonitorPages(*PAGES)


@item(54)
@pytest.mark.parametrize("pages", [PAGES, (0, 0)], ids=["guest pages", "no guest pages"])
def test_monitor_pages_of_the_host_are_in_a_response_of_40_bytes(pages: tuple[int, int]) -> None:
    host = Host(ID_1, holds=[do.ModifyConnection])
    offer_id, _ = host.offer(device(monitor_latency=1000))
    (request,) = host.connect(wire.COPPER, 0x40, pages=pages)
    assert isinstance(request, do.ModifyConnection)
    assert request.allocate
    expected = "0f000000 00000000 01000000 01000000 40000000 00000000 00f05604 00000000 00f05406 00000000"
    assert host.answer(do.ModifyConnection, host_pages=HOST_PAGES) == [bytes.fromhex(expected)]
    assert host.hear(wire.REQUEST_OFFERS)[0] == offered(1, monitor_id=0)
    (ports, *_) = host.hear(wire.open_channel(1))
    assert isinstance(ports, do.CreatePorts)
    assert (ports.offer_id, ports.params.monitor_id) == (offer_id, 0)


@item(71)
@pytest.mark.parametrize("pages", [PAGES, (0, 0)], ids=["guest pages", "no guest pages"])
def test_a_host_that_cannot_allocate_uses_the_pages_of_the_guest(pages: tuple[int, int]) -> None:
    host = Host()
    host.offer(device(monitor_latency=1000))
    request, response = host.connect(wire.COPPER, 0x41, pages=pages)
    assert isinstance(request, do.ModifyConnection)
    assert request.allocate
    assert response == wire.version_response(4, 0x01)
    assert host.hear(wire.REQUEST_OFFERS)[0] == offered(1, monitor_id=0 if any(pages) else None)


@item(54)
def test_the_hosts_monitor_pages_may_lack_the_one_towards_the_guest() -> None:
    host = Host(holds=[do.ModifyConnection])
    host.connect(wire.COPPER, 0x40)
    expected = wire.version_response(4, 0x40, pages=(0, 0x654F000))
    assert host.answer(do.ModifyConnection, host_pages=do.MonitorPages(0, 0x654F000)) == [expected]


def test_pages_are_allocated_for_those_who_ask_only() -> None:
    for features in (0, 0x2F):
        (request, _) = Host().connect(wire.COPPER, features, pages=PAGES)
        assert isinstance(request, do.ModifyConnection)
        assert not request.allocate


# what the backend says


@pytest.mark.parametrize("state", [ConnectionState.FAILED_LOW_RESOURCES, ConnectionState.FAILED_UNKNOWN_FAILURE])
@VERSIONS
def test_a_failure_of_the_backend_reaches_the_guest(version: int, state: ConnectionState) -> None:
    host = Host(ID_1, holds=[do.ModifyConnection])
    host.connect(version)
    value = version if version < 0x0005_0000 else 1
    failed = wire.version_response(value, 0 if version == wire.COPPER else None, state=int(state))
    expected = wire.UNSUPPORTED if version < 0x0002_0004 else failed
    assert host.answer(do.ModifyConnection, status=state) == [expected]
    assert host.phase == "disconnected"


@VERSIONS
def test_a_backend_that_does_not_know_the_version_makes_it_unsupported(version: int) -> None:
    host = Host(holds=[do.ModifyConnection])
    host.connect(version)
    assert host.answer(do.ModifyConnection, supported=False) == [wire.UNSUPPORTED]
    assert host.phase == "disconnected"


def test_a_backend_that_answers_what_it_was_not_asked_does_no_harm() -> None:
    host = connected()
    (complaint,) = host.machine.connection_modified()
    assert isinstance(complaint, do.Complaint)
    assert host.phase == "connected"
