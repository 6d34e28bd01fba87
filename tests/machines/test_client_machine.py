"""`ClientMachine`: items 73 to 88 of the VMBus conformance list, the rest of `reference/vmbus.md` 6.7, and a hostile host."""

from __future__ import annotations

import struct
import zlib
from uuid import UUID

import msgspec
import pytest

from broker import ConfigurationError, DamagedDocument, UnsupportedVersion
from broker.errors import ChannelClosed, ConnectionFailed, HostError
from channels.core.client import ClientMachine
from channels.core.client.channels import OpenRequest
from channels.core.client.contact import ALL_VERSIONS, ConnectRequest
from channels.core.client.effects import (
    Connected,
    ConnectFailed,
    GpadlCreateEnded,
    GpadlTornDown,
    HvsockEnded,
    ModifyConnectionEnded,
    ModifyEnded,
    OfferAdded,
    OfferRescinded,
    OpenEnded,
    Paused,
    Released,
    UnloadEnded,
)
from channels.core.client.states import ChannelState, ClientState
from channels.core.server.effects import Complaint, MonitorPages
from channels.protocol.connect import (
    InitiateContact2,
    ModifyConnection,
    ModifyConnectionResponse,
    Pause,
    PauseResponse,
    Resume,
    Unload,
    UnloadComplete,
    VersionResponse,
    VersionResponse2,
    VersionResponse3,
)
from channels.protocol.gpadl import GpadlBody, GpadlCreated, GpadlHeader, GpadlTeardown, GpadlTorndown
from channels.protocol.hvsock import TlConnectRequest, TlConnectRequest2, TlConnectResult
from channels.protocol.message import ChannelMessage
from channels.protocol.offer import (
    AllOffersDelivered,
    OfferChannel,
    OfferFlags,
    RelidReleased,
    RequestOffers,
    RescindChannelOffer,
    hvsock_area,
)
from channels.protocol.open import (
    CloseChannel,
    CloseReservedChannelResponse,
    ModifyChannel,
    ModifyChannelResponse,
    OpenChannel,
    OpenChannel2,
    OpenResult,
)
from channels.protocol.versions import FeatureFlags, Version

from .client_support import CLIENT, ENDPOINT, FAILED, SERVICE, Guest, connected, offer

item = pytest.mark.vmbus_item
VERSIONS = pytest.mark.parametrize("version", list(Version), ids=lambda version: version.label)


# connecting


@item(73)
def test_the_first_contact_is_the_newest_version_with_features_and_client_id() -> None:
    guest = Guest()
    pages = MonitorPages(0x321F000, 0x123F000)
    contact = guest.contact(ConnectRequest(client_id=CLIENT, monitor_pages=pages))
    assert contact.pack().hex(" ", -4) == (
        "0e000000 00000000 00000600 00000000 02000000 2f000000 00f02103 00000000 00f02301 00000000"
        " 55cdb1ce 3b6ac541 94734dd3 0624c3d8"
    )
    assert guest.connections == [4]


@item(74)
def test_offers_are_asked_for_after_the_response_and_the_connection_stands_when_all_are_delivered() -> None:
    guest = Guest()
    guest.contact()
    assert guest.hear(VersionResponse2(1, 0, 0x31, 0x2F)) == [RequestOffers()]
    assert guest.hear(offer(1)) == [OfferAdded(offer(1))]
    assert guest.hear(AllOffersDelivered()) == [Connected(Version.COPPER, FeatureFlags(0x2F), 0x31, None)]
    assert guest.connections == [4, 0x31]
    assert guest.machine.state is ClientState.CONNECTED


@item(75)
def test_the_features_of_the_response_are_what_counts() -> None:
    guest = Guest()
    guest.contact()
    guest.hear(VersionResponse2(1, 0, 1, 2))
    assert guest.hear(AllOffersDelivered()) == [Connected(Version.COPPER, FeatureFlags(2), 1, None)]


def test_features_that_nobody_asked_for_are_a_complaint_and_do_not_count() -> None:
    guest = Guest()
    guest.contact(ConnectRequest(features=FeatureFlags(0x3)))
    complaint, request = guest.hear(VersionResponse2(1, 0, 1, 0x2F))
    assert isinstance(complaint, Complaint)
    assert request == RequestOffers()
    assert guest.machine.agreed.features == 0x3


@item(76)
def test_an_unsupported_version_is_followed_by_the_next_with_forty_bytes() -> None:
    guest = Guest()
    guest.contact(ConnectRequest(client_id=CLIENT, monitor_pages=MonitorPages(0x1000, 0x2000)))
    (contact,) = guest.hear(VersionResponse())
    assert isinstance(contact, ChannelMessage)
    assert contact.pack().hex(" ", -4) == (
        "0e000000 00000000 03000500 00000000 02000000 00000000 00100000 00000000 00200000 00000000"
    )
    assert guest.hear(VersionResponse(1, 0, 4)) == [RequestOffers()]
    (done,) = guest.hear(AllOffersDelivered())
    assert done == Connected(Version.IRON, FeatureFlags(0), 4, MonitorPages(0x1000, 0x2000))


def test_all_eleven_versions_are_tried_newest_first() -> None:
    guest = Guest()
    contact = guest.contact(ConnectRequest(interrupt_page=0x5000, vtl=1))
    seen = [contact]
    for _ in range(10):
        (answer,) = guest.hear(VersionResponse())
        assert isinstance(answer, type(contact).__mro__[1])
        seen.append(answer)
    assert [contact.version_requested for contact in seen] == list(ALL_VERSIONS)
    assert guest.connections == [4] * 5 + [1] * 6
    fields = [contact.interrupt_page_or_target_info for contact in seen]
    assert fields == [0x2F << 32 | 0x102, 0x102, 0x102, 0x102, 2, *[0x5000] * 6]
    assert guest.hear(VersionResponse()) == [
        ConnectFailed("no server takes one of the versions 6.0, 5.3, 5.2, 5.1, 5.0, 4.1, 4.0, 3.0, 2.4, 1.1, 0.13")
    ]
    assert guest.machine.state is ClientState.DISCONNECTED


@pytest.mark.parametrize("features", [0x27, 0x2F])
def test_a_contact_is_longer_exactly_when_it_asks_for_the_client_id(features: int) -> None:
    contact = Guest().contact(ConnectRequest(features=FeatureFlags(features)))
    assert isinstance(contact, InitiateContact2) == bool(features & 8)
    assert len(contact.pack()) == (56 if features & 8 else 40)


def test_the_server_of_a_paravisor_is_looked_for_first_where_asked() -> None:
    guest = Guest()
    guest.contact(ConnectRequest((Version.COPPER, Version.WIN10), tries_redirect=True))
    guest.step(guest.machine.contact_refused)
    guest.hear(VersionResponse())
    assert guest.connections == [0x800074, 4, 1]


def test_a_contact_that_reaches_nobody_is_followed_by_the_next_and_then_there_is_none() -> None:
    guest = Guest()
    guest.contact(ConnectRequest((Version.IRON, Version.WIN10)))
    guest.step(guest.machine.contact_refused)
    assert guest.connections == [4, 1]
    (failed,) = guest.step(guest.machine.contact_refused)
    assert failed == ConnectFailed("no server takes one of the versions 5.3, 4.0")
    assert guest.step(guest.machine.contact_refused) == []


@pytest.mark.parametrize("state", [1, 2])
def test_a_failed_connection_is_not_tried_with_another_version(state: int) -> None:
    guest = Guest()
    guest.contact()
    (failed,) = guest.hear(VersionResponse2(1, state, 1, 0))
    assert failed == ConnectFailed(f"the host refused version 6.0 with state {state}")
    guest.contact()


@pytest.mark.parametrize("asked", [0x2F, 0x6F])
def test_monitor_pages_of_the_host_count_only_where_they_were_asked_for(asked: int) -> None:
    guest = Guest()
    own, hosts = MonitorPages(0x1000, 0x2000), MonitorPages(0, 0x654F000)
    guest.contact(ConnectRequest(features=FeatureFlags(asked), monitor_pages=own))
    guest.hear(VersionResponse3(1, 0, 1, asked, 0, 0x654F000))
    assert guest.machine.monitor_pages == (hosts if asked & 0x40 else own)


@item(80)
def test_connecting_twice_is_refused() -> None:
    guest = connected()
    with pytest.raises(ConnectionFailed, match="this client is connected; it connects when it is disconnected only"):
        guest.machine.connect(ConnectRequest())
    guest.machine.check()


def test_a_request_that_cannot_be_leaves_the_machine_as_it_was() -> None:
    guest = Guest()
    with pytest.raises(ConfigurationError):
        guest.machine.connect(ConnectRequest(()))
    with pytest.raises(ValueError, match="does not fit"):
        guest.machine.connect(ConnectRequest(target_message_vp=1 << 32))
    guest.machine.check()
    assert guest.machine.state is ClientState.DISCONNECTED


def test_without_a_connection_there_is_nothing_to_ask() -> None:
    machine = ClientMachine()
    for ask in (machine.unload, machine.pause, machine.resume, machine.end_claims):
        with pytest.raises(ConnectionFailed, match="this client is disconnected"):
            ask()
    assert machine.connection_lost() == []


# channels


@item(77)
@pytest.mark.parametrize("status", [0, FAILED])
def test_an_open_says_flag_and_connection_where_the_feature_was_agreed_on(status: int) -> None:
    guest = connected(Version.COPPER, 0x1)
    request = OpenRequest(0xE1E10, 4, 3, b"\xc0\xff\xee", event_flag=2, connection_id=0x2002)
    (message,) = guest.step(guest.machine.open, 1, request)
    user_data = b"\xc0\xff\xee".ljust(120, b"\0")
    assert message == OpenChannel2(1, 1, 0xE1E10, 3, 4, user_data, 0x2002, 2, 0)
    assert guest.hear(OpenResult(1, 1, status)) == [OpenEnded(1, status)]
    channel = guest.machine.channel(1)
    assert channel is not None
    assert channel.state is (ChannelState.OFFERED if status else ChannelState.OPEN)
    assert (channel.event_flag, channel.connection_id) == ((0, 0) if status else (2, 0x2002))


@pytest.mark.parametrize(("version", "features"), [(Version.IRON, 0), (Version.COPPER, 0x2C), (Version.COPPER, 0x2)])
def test_without_the_feature_flag_and_connection_are_those_of_the_offer(version: Version, features: int) -> None:
    guest = connected(version, features, offer(9))
    message = guest.open(9)
    assert isinstance(message, OpenChannel2 if features & 3 else OpenChannel)
    assert len(message.pack()) == (156 if features & 3 else 148)
    channel = guest.machine.channel(9)
    assert channel is not None
    assert (channel.event_flag, channel.connection_id) == (9, 0x2009)


@item(86)
def test_event_flags_are_the_lowest_free_ones_each_time() -> None:
    guest = connected(Version.COPPER, 0x3, *(offer(channel_id) for channel_id in range(11, 16)))
    for _ in range(3):
        for flag, channel_id in enumerate(range(11, 16), start=1):
            message = guest.open(channel_id, OpenRequest(channel_id, 2, redirect=True))
            assert isinstance(message, OpenChannel2)
            assert (message.event_flag, message.flags, message.connection_id) == (flag, 1, 0x2000 + channel_id)
        for channel_id in (13, 11, 12, 15, 14):
            assert guest.step(guest.machine.close, channel_id) == [CloseChannel(channel_id)]


def test_event_flags_are_freed_by_close_failure_and_rescind() -> None:
    guest = connected(Version.COPPER, 0x1, *(offer(channel_id) for channel_id in range(1, 5)))
    for channel_id in range(1, 4):
        guest.open(channel_id)
    guest.step(guest.machine.close, 2)
    guest.step(guest.machine.open, 4, OpenRequest(7, 2))
    assert guest.machine.channel(4).event_flag == 2  # type: ignore[union-attr]
    guest.hear(OpenResult(4, 4, FAILED))
    guest.hear(RescindChannelOffer(1))
    guest.open(4)
    assert guest.machine.channel(4).event_flag == 1  # type: ignore[union-attr]


def test_a_channel_that_others_signal_over_takes_none_of_the_clients_event_flags() -> None:
    guest = connected(Version.COPPER, 0x3, offer(1), offer(2), offer(3))
    guest.open(2)
    for flag, connection_id in ((1, 0x2345), (0xFFFF, 0xFFFF_FFFF), (0, 0)):
        request = OpenRequest(7, 2, event_flag=flag, connection_id=connection_id, is_direct=True)
        message = guest.open(1, request)
        assert isinstance(message, OpenChannel2)
        assert (message.event_flag, message.connection_id, message.flags) == (flag, connection_id, 0)
        guest.open(3)
        assert guest.machine.channel(3).event_flag == 2  # type: ignore[union-attr]
        for channel_id in (1, 3):
            assert guest.step(guest.machine.close, channel_id) == [CloseChannel(channel_id)]
    too_large = OpenRequest(7, 2, event_flag=0x1_0000, connection_id=1, is_direct=True)
    with pytest.raises(ValueError, match=r"event_flag|65535|short|range"):
        guest.machine.open(1, too_large)
    guest.machine.check()
    without = connected(Version.COPPER, 0x4)
    with pytest.raises(ValueError, match="with feature 0x1"):
        without.machine.open(1, OpenRequest(7, 2, event_flag=1, connection_id=1, is_direct=True))


def test_what_is_asked_without_its_feature_is_refused() -> None:
    guest = connected(Version.COPPER, 0x4)
    for request in (
        OpenRequest(1, 2, event_flag=3),
        OpenRequest(1, 2, connection_id=3),
        OpenRequest(1, 2, redirect=True),
    ):
        with pytest.raises(ValueError, match="with feature 0x"):
            guest.machine.open(1, request)
    with pytest.raises(ValueError, match="at most 120 bytes"):
        guest.machine.open(1, OpenRequest(1, 2, user_data=bytes(121)))
    guest.machine.check()
    guest = connected(Version.COPPER, 0x1, offer(1), offer(2))
    guest.open(1)
    for flag in (1, 0, 2048):
        with pytest.raises(ValueError, match="none of the free ones"):
            guest.machine.open(2, OpenRequest(1, 2, event_flag=flag))
    guest.machine.check()


def test_a_channel_is_opened_once() -> None:
    guest = connected()
    guest.step(guest.machine.open, 1, OpenRequest(7, 2))
    with pytest.raises(HostError, match="channel 0x1 is opening; close it"):
        guest.machine.open(1, OpenRequest(7, 2))
    guest.hear(OpenResult(1, 1, 0))
    with pytest.raises(HostError, match="channel 0x1 is open; close it"):
        guest.machine.open(1, OpenRequest(7, 2))
    guest.step(guest.machine.close, 1)
    with pytest.raises(HostError, match="channel 0x1 is not open"):
        guest.machine.close(1)
    guest.open(1)


def test_a_channel_that_is_closed_while_it_opens_is_closed_as_soon_as_it_is_open() -> None:
    guest = connected()
    guest.step(guest.machine.open, 1, OpenRequest(7, 2))
    assert guest.step(guest.machine.close, 1) == []
    assert guest.hear(OpenResult(1, 1, 0)) == [CloseChannel(1), OpenEnded(1, FAILED)]
    guest.step(guest.machine.open, 1, OpenRequest(7, 2))
    guest.step(guest.machine.close, 1)
    assert guest.hear(OpenResult(1, 1, 5)) == [OpenEnded(1, 5)]


@item(78)
@pytest.mark.parametrize("status", [0, FAILED])
def test_a_change_of_processor_ends_with_the_hosts_status(status: int) -> None:
    guest = connected(Version.IRON)
    assert guest.step(guest.machine.modify_channel, 1, 3) == [ModifyChannel(1, 3)]
    with pytest.raises(HostError, match="is moving to another processor already"):
        guest.machine.modify_channel(1, 4)
    assert guest.hear(ModifyChannelResponse(1, status)) == [ModifyEnded(1, status)]
    assert guest.step(guest.machine.modify_channel, 1, 4) == [ModifyChannel(1, 4)]


@VERSIONS
def test_before_5_3_nobody_answers_a_change_of_processor_and_before_4_1_there_is_none(version: Version) -> None:
    guest = connected(version)
    said = guest.step(guest.machine.modify_channel, 1, 3)
    if version < Version.WIN10_RS3_0:
        assert said == [ModifyEnded(1, FAILED)]
    elif version < Version.IRON:
        assert said == [ModifyChannel(1, 3), ModifyEnded(1, 0)]
    else:
        assert said == [ModifyChannel(1, 3)]


@item(81)
def test_hot_add_and_rescind() -> None:
    guest = connected()
    assert guest.hear(offer(2)) == [OfferAdded(offer(2))]
    assert guest.hear(RescindChannelOffer(2)) == [OfferRescinded(2)]
    assert guest.step(guest.machine.release, 2) == [RelidReleased(2), Released(2)]
    assert guest.machine.channel(2) is None
    assert guest.hear(offer(2)) == [OfferAdded(offer(2))]


def test_a_second_rescind_and_one_of_an_unknown_channel_are_complaints() -> None:
    guest = connected()
    guest.hear(RescindChannelOffer(1))
    assert "it was rescinded before" in guest.complaint(RescindChannelOffer(1))
    assert "nobody knows it" in guest.complaint(RescindChannelOffer(2))


@item(87)
def test_an_open_of_a_rescinded_channel_fails_by_itself() -> None:
    guest = connected()
    guest.hear(RescindChannelOffer(1))
    assert guest.step(guest.machine.open, 1, OpenRequest(7, 2)) == [OpenEnded(1, FAILED)]


def test_a_rescind_ends_the_open_that_is_under_way() -> None:
    guest = connected()
    guest.step(guest.machine.open, 1, OpenRequest(7, 2))
    assert guest.hear(RescindChannelOffer(1)) == [OfferRescinded(1), OpenEnded(1, FAILED)]
    assert guest.step(guest.machine.close, 1) == []
    assert "nobody waits for open" in guest.complaint(OpenResult(1, 1, 0))


@item(88)
def test_an_offer_with_an_id_in_use_is_a_complaint_until_the_id_is_released() -> None:
    """The reference client panics; decision D34 of the reference makes it a protocol error."""
    guest = connected()
    assert guest.complaint(offer(1, flags=1)) == "channel 0x1 is offered while it is in use"
    guest.hear(RescindChannelOffer(1))
    assert guest.complaint(offer(1)) == "channel 0x1 is offered while it is in use"
    guest.step(guest.machine.release, 1)
    assert guest.hear(offer(1)) == [OfferAdded(offer(1))]


@item(88)
def test_released_first_a_channel_is_closed_and_its_id_given_back_after_the_rescind() -> None:
    guest = connected()
    guest.open()
    assert guest.step(guest.machine.release, 1) == [CloseChannel(1)]
    with pytest.raises(ChannelClosed):
        guest.machine.open(1, OpenRequest(7, 2))
    assert guest.hear(RescindChannelOffer(1)) == [OfferRescinded(1), RelidReleased(1), Released(1)]


def test_released_while_it_opens_a_channel_is_closed_and_given_back_in_turn() -> None:
    guest = connected()
    guest.step(guest.machine.open, 1, OpenRequest(7, 2))
    assert guest.step(guest.machine.release, 1) == []
    assert guest.hear(OpenResult(1, 1, 0)) == [CloseChannel(1), OpenEnded(1, FAILED)]
    assert guest.hear(RescindChannelOffer(1)) == [OfferRescinded(1), RelidReleased(1), Released(1)]


@pytest.mark.parametrize("channel_id", [0, 2048, 0xFFFF_FFFF])
def test_an_offer_without_a_possible_channel_id_is_a_complaint(channel_id: int) -> None:
    assert "channel IDs are 1 to 2047" in connected().complaint(offer(channel_id))


# GPADLs


@item(82)
def test_a_gpadl_is_told_created_and_torn_down() -> None:
    guest = connected()
    buffer = struct.pack("<II8Q", 0x8000, 0, *range(0x100, 0x108))
    (header,) = guest.step(guest.machine.create_gpadl, 1, 0xE1E10, 1, buffer)
    assert isinstance(header, GpadlHeader)
    assert header.pack() == struct.pack("<IIIIHH", 8, 0, 1, 0xE1E10, 0x48, 1) + buffer
    assert guest.hear(GpadlCreated(1, 0xE1E10, 0)) == [GpadlCreateEnded(1, 0xE1E10, 0)]
    assert guest.step(guest.machine.teardown_gpadl, 1, 0xE1E10) == [GpadlTeardown(1, 0xE1E10)]
    assert guest.hear(GpadlTorndown(0xE1E10)) == [GpadlTornDown(1, 0xE1E10)]


@item(82)
def test_a_gpadl_that_fails_is_gone_and_its_id_free() -> None:
    guest = connected()
    guest.step(guest.machine.create_gpadl, 1, 5, 1, bytes(16))
    assert guest.hear(GpadlCreated(1, 5, FAILED)) == [GpadlCreateEnded(1, 5, FAILED)]
    with pytest.raises(HostError, match="GPADL 0x00000005 of channel 0x1 is not there"):
        guest.machine.teardown_gpadl(1, 5)
    guest.gpadl(1, 5)


def test_a_long_range_buffer_takes_several_messages() -> None:
    guest = connected()
    buffer = struct.pack("<II100Q", 100 << 12, 0, *range(100))
    header, *bodies = guest.step(guest.machine.create_gpadl, 1, 5, 1, buffer)
    assert isinstance(header, GpadlHeader)
    assert [len(header.data), *(len(body.data) for body in bodies if isinstance(body, GpadlBody))] == [
        216,
        224,
        224,
        144,
    ]
    assert header.data + b"".join(body.data for body in bodies if isinstance(body, GpadlBody)) == buffer


def test_a_gpadl_id_is_used_once_in_the_whole_connection() -> None:
    guest = connected(Version.COPPER, 0x2F, offer(1), offer(2))
    guest.gpadl(1, 5)
    with pytest.raises(HostError, match="GPADL 0x00000005 is in use"):
        guest.machine.create_gpadl(2, 5, 1, bytes(16))
    for buffer in (bytes(7), bytes(65536)):
        with pytest.raises(ValueError, match="multiple of 8"):
            guest.machine.create_gpadl(1, 6, 1, buffer)
    guest.machine.check()


@pytest.mark.parametrize(
    "message",
    [GpadlCreated(1, 5, 0), GpadlCreated(9, 5, 0), GpadlTorndown(5), ModifyChannelResponse(1, 0), OpenResult(1, 1, 0)],
)
def test_an_answer_that_nobody_waits_for_is_a_complaint(message: ChannelMessage) -> None:
    guest = connected()
    guest.complaint(message)
    guest.gpadl(1, 5)
    guest.complaint(message)


@item(83)
def test_a_rescinded_channel_is_released_after_the_last_answer_about_its_gpadls() -> None:
    guest = connected()
    guest.gpadl(1, 1)
    guest.gpadl(1, 2)
    guest.step(guest.machine.teardown_gpadl, 1, 1)
    guest.hear(RescindChannelOffer(1))
    assert guest.hear(GpadlTorndown(1)) == [GpadlTornDown(1, 1)]
    assert len(guest.step(guest.machine.create_gpadl, 1, 3, 1, bytes(16))) == 1
    assert guest.hear(GpadlCreated(1, 3, FAILED)) == [GpadlCreateEnded(1, 3, FAILED)]
    assert guest.step(guest.machine.teardown_gpadl, 1, 2) == [GpadlTeardown(1, 2)]
    assert guest.step(guest.machine.release, 1) == []
    assert guest.hear(GpadlTorndown(2)) == [GpadlTornDown(1, 2), RelidReleased(1), Released(1)]


@item(83)
def test_a_create_that_is_under_way_delays_the_release_too() -> None:
    guest = connected()
    guest.step(guest.machine.create_gpadl, 1, 3, 1, bytes(16))
    guest.hear(RescindChannelOffer(1))
    assert guest.step(guest.machine.release, 1) == []
    assert guest.hear(GpadlCreated(1, 3, 0)) == [GpadlCreateEnded(1, 3, 0), RelidReleased(1), Released(1)]
    guest.hear(offer(1))
    guest.gpadl(1, 3)


def test_a_change_of_processor_that_is_under_way_delays_the_release_too() -> None:
    guest = connected()
    guest.step(guest.machine.modify_channel, 1, 3)
    guest.hear(RescindChannelOffer(1))
    assert guest.step(guest.machine.release, 1) == []
    assert guest.hear(ModifyChannelResponse(1, FAILED)) == [ModifyEnded(1, FAILED), RelidReleased(1), Released(1)]


# the connection


@item(84)
@pytest.mark.parametrize("state", [0, 1, 2])
def test_other_monitor_pages_are_used_when_the_host_takes_them(state: int) -> None:
    guest = connected()
    pages = MonitorPages(0x321F000, 0x123F000)
    assert guest.step(guest.machine.modify_connection, pages) == [ModifyConnection(0x321F000, 0x123F000)]
    refused = ModifyConnectionEnded(2, None)
    assert guest.step(guest.machine.modify_connection, None) == [refused]
    (ended,) = guest.hear(ModifyConnectionResponse(state))
    assert ended == ModifyConnectionEnded(state, None if state else pages)
    assert "nobody changes the monitor pages" in guest.complaint(ModifyConnectionResponse(0))
    assert guest.step(guest.machine.modify_connection, None) == [ModifyConnection(0, 0)]


@pytest.mark.parametrize(("version", "features"), [(Version.IRON, 0), (Version.COPPER, 0x2B)])
def test_without_the_feature_monitor_pages_stay(version: Version, features: int) -> None:
    guest = connected(version, features)
    assert guest.step(guest.machine.modify_connection, None) == [ModifyConnectionEnded(2, None)]


@VERSIONS
def test_unload_lets_go_of_everything(version: Version) -> None:
    guest = connected(version)
    guest.gpadl()
    guest.open()
    assert guest.step(guest.machine.unload) == [Unload()]
    with pytest.raises(ConnectionFailed, match="disconnecting"):
        guest.machine.unload()
    for late in (offer(2), RescindChannelOffer(1), GpadlTorndown(7), OpenResult(1, 1, 0), AllOffersDelivered()):
        assert guest.hear(late) == []
    assert guest.hear(UnloadComplete()) == [UnloadEnded()]
    assert guest.machine.state is ClientState.DISCONNECTED
    assert guest.machine.channel(1) is None
    assert guest.contact().version_requested == Version.COPPER


def test_unload_before_all_offers_are_there() -> None:
    guest = Guest()
    guest.contact()
    guest.hear(VersionResponse2(1, 0, 4, 0))
    assert guest.step(guest.machine.unload) == [Unload()]
    assert guest.hear(UnloadComplete()) == [UnloadEnded()]


@pytest.mark.parametrize(
    "message",
    [
        VersionResponse(),
        AllOffersDelivered(),
        UnloadComplete(),
        PauseResponse(),
        CloseReservedChannelResponse(1),
        Unload(),
    ],
)
def test_what_does_not_belong_to_the_state_is_a_complaint(message: ChannelMessage) -> None:
    guest = connected()
    guest.complaint(message)
    assert guest.machine.state is ClientState.CONNECTED


@pytest.mark.parametrize("data", [b"", bytes(7), bytes(8), b"\x1e" + bytes(7), b"\x01" + bytes(100)])
def test_bytes_that_are_no_message_are_a_complaint(data: bytes) -> None:
    assert connected().complaint(data)


def test_messages_may_be_longer_than_they_are() -> None:
    guest = connected()
    assert guest.hear(offer(2).pack().ljust(240, b"\xff")) == [OfferAdded(offer(2))]


# hvsock


def accepted(
    service: UUID = SERVICE, endpoint: UUID = ENDPOINT, flags: int = 0x2011, *, accept: bool = False
) -> OfferChannel:
    area = hvsock_area(guest_accepts=accept)
    return OfferChannel(service, endpoint, flags, 0, area, channel_id=2, connection_id=0x2002)


@item(85)
def test_a_refused_connection_ends_without_a_channel() -> None:
    guest = connected()
    (request,) = guest.step(guest.machine.connect_hvsock, SERVICE, ENDPOINT, UUID(int=9))
    assert request == TlConnectRequest2(ENDPOINT, SERVICE, UUID(int=9))
    result = TlConnectResult(ENDPOINT, SERVICE, 0xC000_0236)
    assert guest.hear(result) == [HvsockEnded(SERVICE, ENDPOINT, None)]
    guest.complaint(result)


@item(85)
def test_an_offer_takes_the_request_that_it_answers_once() -> None:
    guest = connected()
    guest.step(guest.machine.connect_hvsock, SERVICE, ENDPOINT)
    with pytest.raises(HostError, match="is being connected"):
        guest.machine.connect_hvsock(SERVICE, ENDPOINT)
    assert guest.hear(accepted()) == [HvsockEnded(SERVICE, ENDPOINT, accepted())]
    guest.hear(RescindChannelOffer(2))
    guest.step(guest.machine.release, 2)
    assert guest.hear(accepted()) == [OfferAdded(accepted())]


@item(85)
@pytest.mark.parametrize(
    "other",
    [
        accepted(flags=0x0011),
        accepted(accept=True),
        accepted(service=ENDPOINT),
        accepted(endpoint=SERVICE),
    ],
    ids=["no-tlnpi", "guest-accepts", "service", "endpoint"],
)
def test_another_offer_does_not(other: OfferChannel) -> None:
    guest = connected()
    guest.step(guest.machine.connect_hvsock, SERVICE, ENDPOINT)
    assert guest.hear(other) == [OfferAdded(other)]
    assert other.flags & OfferFlags.NAMED_PIPE_MODE


@VERSIONS
def test_the_form_of_a_connect_request_follows_the_version(version: Version) -> None:
    guest = connected(version)
    (said,) = guest.step(guest.machine.connect_hvsock, SERVICE, ENDPOINT)
    if version < Version.WIN10:
        assert said == HvsockEnded(SERVICE, ENDPOINT, None)
    else:
        assert type(said) is (TlConnectRequest if version < Version.WIN10_RS5 else TlConnectRequest2)


def test_a_connection_that_nobody_waits_for_any_more_is_an_offer_like_any_other() -> None:
    guest = connected()
    guest.step(guest.machine.connect_hvsock, SERVICE, ENDPOINT)
    guest.step(guest.machine.forget_hvsock, SERVICE, ENDPOINT)
    assert guest.hear(accepted()) == [OfferAdded(accepted())]


# pause, save, restore


def restored(document: bytes) -> tuple[Guest, list[object]]:
    guest = Guest()
    return guest, list(guest.step(guest.machine.restore, document))


@item(79)
def test_a_connected_client_is_saved_and_restored() -> None:
    guest = connected()
    assert guest.step(guest.machine.pause) == [Pause()]
    with pytest.raises(HostError, match="pause it before a save"):
        guest.machine.save()
    assert guest.hear(PauseResponse()) == [Paused()]
    again, said = restored(guest.machine.save())
    assert said == [OfferAdded(offer()), Connected(Version.COPPER, FeatureFlags(0x2F), 4, None)]
    assert again.step(again.machine.end_claims) == []
    assert again.step(again.machine.resume) == [Resume()]
    assert again.connections == [4]
    again.gpadl()
    again.open()


@item(79)
def test_an_open_channel_goes_on_when_it_is_claimed() -> None:
    guest = connected(Version.COPPER, 0x2F, offer(1), offer(2))
    for channel_id in (1, 2):
        guest.gpadl(channel_id, channel_id)
        guest.open(channel_id, OpenRequest(channel_id, 2))
    guest.step(guest.machine.pause)
    guest.hear(PauseResponse())
    again, _ = restored(guest.machine.save())
    assert again.step(again.machine.claim, 2) == []
    channel = again.machine.channel(2)
    assert channel is not None
    assert (channel.state, channel.event_flag, channel.connection_id) == (ChannelState.OPEN, 2, 0x2002)
    with pytest.raises(HostError, match="is open; only a restored one"):
        again.machine.claim(2)
    assert again.step(again.machine.end_claims) == []
    assert again.step(again.machine.resume) == [Resume(), CloseChannel(1), GpadlTeardown(1, 1)]
    assert again.hear(GpadlTorndown(1)) == [GpadlTornDown(1, 1)]
    again.step(again.machine.close, 2)


@item(79)
def test_a_revoked_channel_is_saved_as_its_release_once_nothing_is_due() -> None:
    guest = connected()
    guest.step(guest.machine.modify_channel, 1, 1)
    guest.hear(RescindChannelOffer(1))
    assert guest.step(guest.machine.pause) == []
    assert guest.hear(ModifyChannelResponse(1, 0)) == [ModifyEnded(1, 0), Pause()]
    assert guest.hear(PauseResponse()) == [Paused()]
    again, said = restored(guest.machine.save())
    assert [effect for effect in said if isinstance(effect, OfferAdded)] == []
    assert again.step(again.machine.resume) == [Resume(), RelidReleased(1)]


def test_what_is_said_while_paused_is_posted_after_the_resume() -> None:
    guest = connected(Version.COPPER, 0x2F, offer(1), offer(2))
    guest.gpadl()
    guest.open()
    guest.step(guest.machine.pause)
    guest.hear(PauseResponse())
    assert guest.step(guest.machine.close, 1) == []
    assert guest.step(guest.machine.teardown_gpadl, 1, 7) == []
    for ask, arguments in (
        (guest.machine.open, (2, OpenRequest(7, 2))),
        (guest.machine.create_gpadl, (2, 8, 1, bytes(16))),
        (guest.machine.modify_channel, (2, 0)),
        (guest.machine.modify_connection, (None,)),
        (guest.machine.connect_hvsock, (SERVICE, ENDPOINT)),
    ):
        with pytest.raises(HostError, match="this client is paused; resume it"):
            ask(*arguments)  # type: ignore[operator]
    again, _ = restored(guest.machine.save())
    for one in (guest, again):
        assert one.step(one.machine.resume) == [Resume(), CloseChannel(1), GpadlTeardown(1, 7)]


def test_unload_ends_a_pause() -> None:
    guest = connected()
    guest.step(guest.machine.pause)
    guest.hear(PauseResponse())
    guest.step(guest.machine.release, 1)
    assert guest.step(guest.machine.unload) == [Unload()]
    assert guest.hear(UnloadComplete()) == [UnloadEnded()]


def test_without_the_feature_the_host_is_not_asked_to_be_quiet() -> None:
    guest = connected(Version.IRON)
    assert guest.step(guest.machine.pause) == [Paused()]
    with pytest.raises(HostError, match="paused; it cannot pause"):
        guest.machine.pause()
    assert guest.hear(offer(2)) == [OfferAdded(offer(2))]
    assert guest.step(guest.machine.resume) == []
    with pytest.raises(HostError, match="running, not paused"):
        guest.machine.resume()


def test_a_disconnected_client_is_saved_as_one() -> None:
    again, said = restored(ClientMachine().save())
    assert said == []
    again.contact()


def test_a_document_that_is_none_is_refused() -> None:
    guest = connected()
    guest.gpadl()
    guest.open()
    guest.step(guest.machine.pause)
    guest.hear(PauseResponse())
    document = guest.machine.save()
    with pytest.raises(HostError, match="into a disconnected one"):
        guest.machine.restore(document)
    for length in range(len(document)):
        with pytest.raises(DamagedDocument):
            ClientMachine().restore(document[:length])
    for place in range(len(document)):
        changed = bytearray(document)
        changed[place] ^= 1
        machine = ClientMachine()
        with pytest.raises((DamagedDocument, UnsupportedVersion)):
            machine.restore(bytes(changed))
        machine.check()


def reseal(document: bytes, **changes: object) -> bytes:
    """The same document with other contents and a checksum that fits."""
    envelope = msgspec.msgpack.decode(document)
    body = msgspec.msgpack.decode(envelope["body"])
    body["connection"] |= changes
    envelope["body"] = msgspec.msgpack.encode(body)
    envelope["crc32"] = zlib.crc32(envelope["body"])
    return msgspec.msgpack.encode(envelope)


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 0x0006_0001},
        {"version": 0x0005_0003},
        {"features": 1 << 32},
        {"connection_id": 1 << 32},
        {"interrupt_page": 1 << 64 - 1, "monitor_pages": {"parent_to_child": -1, "child_to_parent": 0}},
        {"held": [b"\x01" + bytes(7)]},
        {"channels": [{}]},
    ],
    ids=str,
)
def test_a_document_that_contradicts_itself_is_refused(changes: dict[str, object]) -> None:
    guest = connected()
    guest.step(guest.machine.pause)
    guest.hear(PauseResponse())
    machine = ClientMachine()
    with pytest.raises(DamagedDocument):
        machine.restore(reseal(guest.machine.save(), **changes))
    machine.check()


@pytest.mark.parametrize(
    "changes",
    [
        {"state": "revoked"},
        {"state": "opening"},
        {"state": "offered"},
        {"event_flag": 0},
        {"event_flag": 2048},
        {"has_own_flag": True, "event_flag": -1},
        {"is_held": False},
        {"connection_id": -1},
        {"gpadls": {7: "creating"}},
        {"gpadls": {1 << 32: "created"}},
        {"offer": bytes(8)},
        {"offer": RescindChannelOffer(1).pack()},
        {"offer": offer(0).pack()},
    ],
    ids=str,
)
def test_a_document_with_an_impossible_channel_is_refused(changes: dict[str, object]) -> None:
    guest = connected()
    guest.gpadl()
    guest.open()
    guest.step(guest.machine.pause)
    guest.hear(PauseResponse())
    document = guest.machine.save()
    (channel,) = msgspec.msgpack.decode(msgspec.msgpack.decode(document)["body"])["connection"]["channels"]
    assert restored(reseal(document, channels=[channel]))
    for channels in ([channel | changes], [channel, channel]):
        machine = ClientMachine()
        with pytest.raises(DamagedDocument):
            machine.restore(reseal(document, channels=channels))
        machine.check()
