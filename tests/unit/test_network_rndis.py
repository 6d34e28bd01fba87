"""RNDIS control messages and the structures of their OIDs byte by byte, and what is refused."""

from __future__ import annotations

import struct

import pytest

from broker.errors import ProtocolError
from channels.protocol.network import rndis
from channels.protocol.network.oids import (
    Oid,
    pack_no_offload,
    pack_rss_capabilities,
    pack_rss_parameters,
    parse_rss_capabilities,
    parse_rss_table,
    parse_wants_offload,
)
from channels.protocol.network.rndis import RndisMessage, parse_control_from_guest, parse_control_from_host

FROM_GUEST = {
    rndis.Initialize(7): "02000000 18000000 07000000 01000000 00000000 00400000",
    rndis.Halt(9): "03000000 0c000000 09000000",
    rndis.Query.of(1, Oid.MAXIMUM_FRAME_SIZE): "04000000 1c000000 01000000 06010100 00000000 14000000 00000000",
    rndis.Set.of(2, Oid.PACKET_FILTER, b"\x0d\0\0\0"): (
        "05000000 20000000 02000000 0e010100 04000000 14000000 00000000 0d000000"
    ),
    rndis.Reset(): "06000000 0c000000 00000000",
    rndis.KeepAlive(3): "08000000 0c000000 03000000",
}
FROM_HOST = {
    rndis.InitializeComplete(7, 0): (
        "02000080 34000000 07000000 00000000 01000000 00000000 01000000 00000000 08000000 00400000 03000000"
        "00000000 00000000"
    ),
    rndis.QueryComplete.of(1, 0, b"\xdc\x05\0\0"): "04000080 1c000000 01000000 00000000 04000000 10000000 dc050000",
    rndis.SetComplete(2, 0xC00000BB): "05000080 10000000 02000000 bb0000c0",
    rndis.ResetComplete(0): "06000080 10000000 00000000 01000000",
    rndis.IndicateStatus(0x4001000C): "07000000 14000000 0c000140 00000000 00000000",
    rndis.KeepAliveComplete(3): "08000080 10000000 03000000 00000000",
}


@pytest.mark.parametrize("message", FROM_GUEST, ids=lambda message: type(message).__name__)
def test_a_guests_messages_have_these_bytes(message: RndisMessage) -> None:
    data = bytes.fromhex(FROM_GUEST[message])
    assert message.pack() == data
    assert parse_control_from_guest(data) == message
    assert parse_control_from_guest(data + b"what follows") == message
    for size in range(len(data)):
        with pytest.raises(ProtocolError):
            parse_control_from_guest(data[:size])
    with pytest.raises(ProtocolError):
        parse_control_from_host(data)


@pytest.mark.parametrize("message", FROM_HOST, ids=lambda message: type(message).__name__)
def test_a_hosts_messages_have_these_bytes(message: RndisMessage) -> None:
    data = bytes.fromhex(FROM_HOST[message])
    assert message.pack() == data
    assert parse_control_from_host(data) == message
    with pytest.raises(ProtocolError):
        parse_control_from_guest(data)


@pytest.mark.parametrize("length", [0, 7, 27, 33, 0xFFFFFFFF])
def test_a_length_that_does_not_fit_is_refused(length: int) -> None:
    data = bytearray(rndis.Set.of(2, Oid.PACKET_FILTER, b"\x0d\0\0\0").pack())
    struct.pack_into("<I", data, 4, length)
    with pytest.raises(ProtocolError):
        parse_control_from_guest(bytes(data))


@pytest.mark.parametrize(("length", "offset"), [(5, 20), (4, 21), (4, 19), (4, 0), (1, 0xFFFFFFFF), (0xFFFFFFFF, 20)])
def test_information_outside_of_its_message_is_refused(length: int, offset: int) -> None:
    query = rndis.Query(1, Oid.PACKET_FILTER, length, offset, 0, bytes(4))
    with pytest.raises(ProtocolError, match="information buffer"):
        query.information


def test_information_is_found_where_the_offset_says() -> None:
    assert rndis.Query(1, 2, 2, 24, 0, b"....ab..").information == b"ab"
    assert rndis.Query(1, 2, 0, 0xFFFFFFFF).information == b""
    assert rndis.QueryComplete(1, 0, 2, 18, b"..ab").information == b"ab"


def test_receive_scale_structures_have_the_layout_of_the_kernel() -> None:
    capabilities = pack_rss_capabilities(4)
    assert capabilities.hex() == "88021200" + "00030000" + "04000000" + "04000000" + "8000"
    assert parse_rss_capabilities(capabilities) == 4
    table = (0, 1, 2, 3) * 4
    parameters = pack_rss_parameters(table)
    table_at_40 = "4000" + "0000" + "28000000"
    assert parameters[:20].hex() == "89022800" + "0000" + "0000" + "00000000" + table_at_40
    assert len(parameters) == 40 + 64
    assert parse_rss_table(parameters) == table
    assert parse_rss_table(parameters[:4] + b"\x04\0" + parameters[6:]) == (), "the guest leaves it as it is"


def test_receive_scale_structures_that_lie_are_refused() -> None:
    parameters = bytearray(pack_rss_parameters((0, 1)))
    with pytest.raises(ProtocolError):
        parse_rss_table(bytes(parameters[:-1]))
    with pytest.raises(ProtocolError):
        parse_rss_table(bytes(parameters[:39]))
    for at, value in ((12, 6), (12, 4 * 129), (16, 41)):
        changed = bytearray(parameters)
        struct.pack_into("<H", changed, at, value)
        with pytest.raises(ProtocolError):
            parse_rss_table(bytes(changed))
    with pytest.raises(ProtocolError):
        parse_rss_capabilities(pack_rss_capabilities(4)[:17])
    with pytest.raises(ProtocolError):
        parse_rss_capabilities(bytes(18))


def test_there_is_no_offload_and_nothing_may_be_switched_on() -> None:
    capabilities = pack_no_offload()
    assert capabilities[:4].hex() == "a7017000"
    assert capabilities[4:] == bytes(108)
    assert not parse_wants_offload(bytes.fromhex("80011400") + bytes(16))
    assert not parse_wants_offload(bytes.fromhex("80011400") + b"\1" * 11 + bytes(5))
    assert parse_wants_offload(bytes.fromhex("80011400") + bytes(10) + b"\2" + bytes(5))
    for wrong in (b"", bytes(20), bytes.fromhex("80011400") + bytes(10)):
        with pytest.raises(ProtocolError):
            parse_wants_offload(wrong)
