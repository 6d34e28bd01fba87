"""The server's machine: offers, channel IDs, monitor IDs, flags (`reference/vmbus.md` 2.1, 5.3, 6.3; items 1, 23, 52, 55 to 59,
70, 72)."""

from __future__ import annotations

import struct
from typing import Any
from uuid import UUID

import pytest

from broker.errors import OfferRefused
from channels.core.server import effects as do
from channels.core.server.offer_params import OfferParams
from channels.core.server.state import ServerConfig
from channels.protocol.offer import OfferFlags, PipeType

from . import wire
from .host import INTERFACE, PAGES, SILO, Host, connected, device, instance, offered, reading

item = pytest.mark.vmbus_item


def offers(host: Host, *, trusted: bool = False) -> list[bytes]:
    """Ask for offers; the offers."""
    *found, end = host.hear(wire.REQUEST_OFFERS, trusted=trusted)
    assert end == wire.ALL_OFFERS_DELIVERED
    assert all(isinstance(message, bytes) for message in found)
    return found  # type: ignore[return-value]


def flags_of(offer: bytes) -> int:
    return int.from_bytes(offer[56:58], "little")


def monitor_of(offer: bytes) -> tuple[int, int]:
    """Bytes 188 and 189: monitor ID, allocated."""
    return offer[188], offer[189]


def one_offer(params: OfferParams, **how: Any) -> bytes:
    host = Host()
    host.offer(params)
    host.connect(**how)
    (offer,) = offers(host, trusted=bool(how.get("trusted")))
    return offer


# what an offer looks like


@item(1)
def test_a_message_pipe_says_so_in_its_user_area() -> None:
    user = bytes(range(1, 113))
    offer = one_offer(OfferParams.pipe(INTERFACE, instance(1), PipeType.MESSAGE, user))
    assert offer[60:180] == bytes.fromhex("04000000") + user + bytes(4)
    assert flags_of(offer) == 0x11


@item(1)
def test_a_pipe_says_that_it_takes_gpa_direct_packets() -> None:
    area = struct.pack("<I112sI", 4, b"user", 1)
    offer = one_offer(device(flags=OfferFlags.NAMED_PIPE_MODE, user_defined=area))
    assert offer[60:180] == area


KINDS = {
    "device": (OfferParams.device(INTERFACE, instance(1)), 0, b""),
    "device with pipe packets": (OfferParams.device(INTERFACE, instance(1), pipe_packets=True), 0x10, b"\x04"),
    "interface": (OfferParams.interface(INTERFACE, instance(1), b"any bytes"), 0x01, b"any bytes"),
    "byte pipe": (OfferParams.pipe(INTERFACE, instance(1), PipeType.BYTE), 0x11, b""),
    "hvsock of the guest": (
        OfferParams.hvsock(INTERFACE, instance(1), guest_accepts=False),
        0x2011,
        struct.pack("<IBBI", 0, 0, 0, 1),
    ),
    "hvsock of the host": (
        OfferParams.hvsock(INTERFACE, instance(1), guest_accepts=True, silo_id=SILO),
        0x2011,
        struct.pack("<IBBI16s", 0, 1, 0, 1, SILO.bytes_le),
    ),
    "hvsock of the host, to a container": (
        OfferParams.hvsock(INTERFACE, instance(1), guest_accepts=True, for_container=True, silo_id=SILO),
        0x2011,
        struct.pack("<IBBI16s", 0, 1, 1, 1, SILO.bytes_le),
    ),
    "byte pipe that takes GPA-direct packets": (
        OfferParams.pipe(INTERFACE, instance(1), PipeType.BYTE, b"any bytes", gpa_direct=True),
        0x11,
        struct.pack("<I112sI", 0, b"any bytes", 1),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_channel_has_its_flags_and_user_area(kind: str) -> None:
    params, flags, area = KINDS[kind]
    assert one_offer(params) == offered(1, flags=flags, user_defined=area)


def test_every_field_of_an_offer_is_in_its_place() -> None:
    golden = bytes.fromhex(
        "01000000 00000000 394f1657 1591784e ab55382f 3bd5422d 919e14fd e0827d4a afa62a41 66cbd7c0"
        + "00" * 16
        + "11000000 04000000"
        + "00" * 116
        + "00000000 01000000 ff000100 01200000"
    )
    heartbeat = UUID("57164f39-9115-4e78-ab55-382f3bd5422d"), UUID("fd149e91-82e0-4a7d-afa6-2a4166cbd7c0")
    assert one_offer(OfferParams.pipe(*heartbeat)) == golden
    expected = offered(1, subchannel=3, megabytes=(8, 16), user_defined=b"x" * 120)
    params = device(subchannel_index=3, mmio_megabytes=8, mmio_megabytes_optional=16, user_defined=b"x" * 120)
    assert one_offer(params) == expected


@pytest.mark.parametrize("version", wire.VERSIONS, ids=wire.version_id)
def test_every_offer_is_of_a_dedicated_channel(version: int) -> None:
    offer = one_offer(device(), version=version)
    assert (offer, offer[190:192]) == (offered(1), b"\x01\x00")


def test_the_connection_of_a_channel_says_sint_and_vtl() -> None:
    host = Host(ServerConfig(vtl=2, redirects_messages=True))  # type: ignore[arg-type]
    host.offer(1)
    host.hear(wire.contact(wire.COPPER, info=wire.info(vtl=2)))
    assert offers(host) == [offered(1, connection_id=0x27001)]


# IDs


@item(23)
def test_devices_of_all_times_get_ids_in_order_and_can_be_opened() -> None:
    host = Host(holds=[do.ModifyConnection])
    host.offer(1)
    host.connect()
    host.offer(2)
    host.answer(do.ModifyConnection)
    host.offer(3)
    assert offers(host) == [offered(1), offered(2), offered(3)]
    assert host.offer(4)[1] == [offered(4)]
    for channel_id in range(1, 5):
        assert reading(host.hear(wire.open_channel(channel_id))) == ["ports", "device open", "OPEN_RESULT ok"]


def test_ids_are_the_lowest_free_ones() -> None:
    host = connected(devices=4)
    for channel_id in (3, 2):
        host.hear(wire.release(channel_id))
    assert [host.offer(number)[1] for number in (5, 6, 7)] == [[offered(2, 5)], [offered(3, 6)], [offered(5, 7)]]


def test_the_id_of_a_rescinded_channel_is_free_when_the_guest_has_released_it() -> None:
    host = connected()
    host.revoke(1)
    assert host.offer(2)[1] == [offered(2)]
    host.hear(wire.release(1))
    assert host.offer(3)[1] == [offered(1, 3)]


def test_a_device_without_a_guest_that_asked_has_no_id() -> None:
    host = Host()
    host.connect()
    for number in (1, 2):
        assert host.offer(number)[1] == []
    assert host.refusal(wire.open_channel(1))
    assert reading(host.revoke(1)) == ["removed"]
    assert offers(host) == [offered(1, 2)]


def test_a_released_channel_is_offered_at_the_next_connection_only() -> None:
    host = connected(devices=2)
    host.hear(wire.release(1))
    host.connect()
    assert offers(host) == [offered(1), offered(2)]


@pytest.mark.parametrize(("first", "capacity"), [(1, 2047), (1025, 1023)])
def test_there_are_as_many_offers_as_there_are_ids(first: int, capacity: int) -> None:
    host = Host(ServerConfig(first_channel_id=first))
    for number in range(1, capacity + 1):
        host.offer(number)
    with pytest.raises(OfferRefused):
        host.offer(5000)
    host.connect()
    found = offers(host)
    ids = [int.from_bytes(offer[184:188], "little") for offer in found]
    assert ids == list(range(first, 2048))
    assert [int.from_bytes(offer[192:196], "little") for offer in found] == [0x2000 + channel_id for channel_id in ids]


def test_ids_of_rescinded_channels_count_until_they_are_released() -> None:
    host = Host(ServerConfig(first_channel_id=2046))
    host.offer(1)
    host.offer(2)
    host.connect()
    offers(host)
    host.revoke(1)
    with pytest.raises(OfferRefused):
        host.offer(3)
    host.hear(wire.release(2046))
    assert host.offer(3)[1] == [offered(2046, 3)]


def test_an_offer_like_one_that_is_there_is_refused_unless_its_device_is_gone() -> None:
    host = connected()
    with pytest.raises(OfferRefused):
        host.offer(1)
    assert host.offer(device(subchannel_index=1))[1] == [offered(2, 1, subchannel=1)]
    host.revoke(1)
    assert host.offer(1)[1] == []


# order


A, B = UUID("00000002-0000-0000-0000-000000000000"), UUID("00000010-0000-0000-0000-000000000000")
DEVICES = [
    (B, 1, None),
    (B, 2, 7),
    (A, 3, 9),
    (A, 4, None),
    (A, 5, 2),
    (A, 0x1000_0000, 2),
    (B, 6, 1),
]


def order_of(config: ServerConfig) -> list[int]:
    host = Host(config)
    for interface, number, order in DEVICES:
        host.offer(OfferParams.device(interface, UUID(int=number << 96), order=order))
    host.connect()
    return [int.from_bytes(offer[24:28], "little") for offer in offers(host)]


@item(55)
def test_offers_go_by_interface_then_order_then_instance() -> None:
    assert order_of(ServerConfig()) == [5, 0x1000_0000, 3, 4, 6, 2, 1]


@item(56)
def test_with_absolute_order_it_counts_first_and_those_without_come_last() -> None:
    assert order_of(ServerConfig(absolute_order=True)) == [6, 5, 0x1000_0000, 2, 3, 4, 1]


def test_guids_are_compared_by_their_fields_and_not_by_their_bytes() -> None:
    host = Host()
    low, high = UUID("000000ff-0000-0000-0000-000000000000"), UUID("00000100-0000-0000-0000-000000000000")
    host.offer(OfferParams.device(INTERFACE, high))
    host.offer(OfferParams.device(INTERFACE, low))
    host.connect()
    assert [offer[24:40] for offer in offers(host)] == [low.bytes_le, high.bytes_le]


# monitor IDs


@item(52)
def test_without_monitor_pages_offers_have_no_monitor_id() -> None:
    assert monitor_of(one_offer(device(monitor_latency=1000))) == (0xFF, 0)
    assert monitor_of(one_offer(device(monitor_id=5))) == (0xFF, 0)


@item(52)
def test_where_the_host_must_allocate_the_guests_pages_give_no_monitor_id() -> None:
    host = Host(ServerConfig(must_allocate_monitor_pages=True))
    host.offer(device(monitor_latency=1000))
    host.connect(pages=PAGES)
    assert monitor_of(offers(host)[0]) == (0xFF, 0)


@item(52)
def test_monitor_ids_are_assigned_or_somebody_elses() -> None:
    host = Host()
    host.offer(device(1, monitor_latency=1000))
    host.offer(device(2, monitor_id=5))
    host.offer(device(3))
    host.connect(pages=PAGES)
    assert [monitor_of(offer) for offer in offers(host)] == [(0, 1), (5, 1), (0xFF, 0)]
    assert host.machine.state.channels.monitor_ids == 0b1


@item(102)
def test_the_128_monitor_ids_go_lowest_first_and_come_back() -> None:
    host = Host()
    for number in range(1, 130):
        host.offer(device(number, monitor_latency=1000))
    host.connect(pages=PAGES)
    found = [monitor_of(offer) for offer in offers(host)]
    assert found == [*((number, 1) for number in range(128)), (0xFF, 0)]
    host.hear(wire.release(78))
    (offer,) = host.offer(device(200, monitor_latency=1000))[1]
    assert isinstance(offer, bytes)
    assert monitor_of(offer) == (77, 1)


# confidential and pinned


@item(57, 70)
def test_a_trusted_connection_takes_no_untrusted_message_and_gets_confidential_offers() -> None:
    host = Host()
    host.offer(1)
    host.offer(device(2, confidential_external_memory=True))
    host.offer(device(3, relayed=True, flags=OfferFlags(0x7)))
    host.connect(wire.COPPER, 0x10, trusted=True)
    assert "trusted" in host.refusal(wire.REQUEST_OFFERS)
    assert [flags_of(offer) for offer in offers(host, trusted=True)] == [0x02, 0x06, 0x01]
    opened = [host.hear(wire.open_channel(channel_id), trusted=True)[0] for channel_id in (1, 2, 3)]
    assert [(ports.params.confidential_ring, ports.params.confidential_external_memory) for ports in opened] == [
        (True, False),
        (True, True),
        (False, False),
    ]


@item(58, 70)
@pytest.mark.parametrize(("features", "trusted"), [(0, True), (0x2F, True), (0x10, False), (0, False)])
def test_without_the_feature_or_trust_nothing_is_confidential(features: int, trusted: bool) -> None:
    host = Host()
    host.offer(device(confidential_external_memory=True, flags=OfferFlags(0xFFF7)))
    host.connect(wire.COPPER, features, trusted=trusted)
    assert [flags_of(offer) for offer in offers(host, trusted=trusted)] == [0xFFF1]
    opening = wire.open_channel2(1, 0x2001, 1) if features & 3 else wire.open_channel(1)
    (ports, *_) = host.hear(opening, trusted=trusted)
    assert isinstance(ports, do.CreatePorts)
    assert not ports.params.confidential_ring
    assert not ports.params.confidential_external_memory


def test_a_trusted_message_is_taken_on_any_connection() -> None:
    host = connected()
    assert host.hear(wire.open_channel(1), trusted=True)


def test_an_untrusted_contact_does_not_end_a_trusted_connection() -> None:
    host = connected(trusted=True)
    assert "trusted" in host.refusal(wire.contact(wire.IRON, info=wire.info()))
    assert host.phase == "connected"


def test_an_untrusted_contact_does_not_replace_a_trusted_one_that_the_backend_has_not_answered() -> None:
    host = Host(holds=[do.ModifyConnection])
    host.connect(wire.COPPER, 0x10, trusted=True)
    assert "trusted" in host.refusal(wire.contact(wire.IRON, info=wire.info()))
    assert host.answer(do.ModifyConnection) == [wire.version_response(4, 0x10)]
    host.hear(wire.contact(wire.IRON, info=wire.info()), trusted=True)
    assert host.phase == "disconnecting"


@item(59)
@pytest.mark.parametrize(("features", "flags"), [(0, 0x0), (0x2F, 0x0), (0x80, 0x8)])
def test_pinning_is_asked_for_where_it_was_agreed_on(features: int, flags: int) -> None:
    host = Host(ServerConfig(gpa_pinning=True))
    host.offer(device(flags=OfferFlags(0x8)))
    host.connect(wire.COPPER, features)
    assert [flags_of(offer) for offer in offers(host)] == [flags]


# sub-channels


@item(72)
def test_subchannels_are_offered_with_their_index_and_rescinded_each() -> None:
    host = connected()
    numbers = []
    for index in (1, 2, 3):
        offer_id, out = host.offer(device(subchannel_index=index))
        assert out == [offered(index + 1, 1, subchannel=index)]
        numbers.append(offer_id)
    for offer_id, channel_id in zip((*numbers, 1), (2, 3, 4, 1), strict=True):
        assert host.revoke(offer_id)[-1] == wire.rescind(channel_id)


# relayed monitor IDs


def monitor_opened(host: Host, channel_id: int) -> int | None:
    """The monitor ID that the ports of a channel are made with."""
    (ports, *_) = host.hear(wire.open_channel(channel_id))
    assert isinstance(ports, do.CreatePorts)
    return ports.params.monitor_id


def test_a_relayed_monitor_id_is_told_the_guest_and_watched_by_the_outer_host_alone() -> None:
    host = Host()
    host.offer(device(1, monitor_id=5, relayed=True))
    host.offer(device(2, monitor_id=6))
    host.connect(pages=PAGES)
    assert [monitor_of(offer) for offer in offers(host)] == [(5, 1), (6, 1)]
    assert [monitor_opened(host, channel_id) for channel_id in (1, 2)] == [None, 6]


def test_an_assigned_monitor_id_is_none_that_somebody_has_brought() -> None:
    host = Host()
    for number in (1, 2):
        host.offer(device(number, order=number, monitor_id=number - 1, relayed=True))
    host.offer(device(3, order=3, monitor_latency=1000))
    host.connect(pages=PAGES)
    assert [monitor_of(offer) for offer in offers(host)] == [(0, 1), (1, 1), (2, 1)]


def test_a_device_that_comes_back_has_the_monitor_id_that_it_wants_now() -> None:
    wishes: list[tuple[dict[str, object], tuple[int, int]]] = [
        ({"monitor_latency": 1000}, (0, 1)),
        ({"monitor_id": 9}, (9, 1)),
        ({}, (0xFF, 0)),
    ]
    for before, _ in wishes:
        for after, expected in wishes:
            host = Host()
            offer_id, _ = host.offer(device(1, **before))
            host.connect(pages=PAGES)
            offers(host)
            host.revoke(offer_id)
            host.offer(device(1, **after))
            (offer,) = host.hear(wire.release(1))
            assert isinstance(offer, bytes)
            assert monitor_of(offer) == expected
            assert host.machine.state.channels.monitor_ids == ("monitor_latency" in after)


def test_the_latency_that_a_device_asks_for_comes_with_its_open() -> None:
    host = Host()
    host.offer(device(1, monitor_latency=1000))
    host.connect(pages=PAGES)
    offers(host)
    (ports, *_) = host.hear(wire.open_channel(1))
    assert isinstance(ports, do.CreatePorts)
    assert (ports.params.monitor_id, ports.params.monitor_latency) == (0, 1000)


@pytest.mark.parametrize("version", wire.VERSIONS, ids=wire.version_id)
def test_the_ends_of_a_relayed_channel_signal_each_other_directly_from_2_4_on(version: int) -> None:
    host = Host()
    host.offer(device(1, relayed=True))
    host.offer(device(2))
    host.connect(version)
    offers(host)
    for channel_id, is_direct in ((1, version >= wire.WIN8), (2, False)):
        (ports, *_) = host.hear(wire.open_channel(channel_id))
        assert isinstance(ports, do.CreatePorts)
        assert ports.params.is_direct is is_direct
