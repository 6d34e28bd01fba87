"""NVSP messages byte by byte, as `reference/vmbus.md` 8.10 and Linux's `hyperv_net.h` have them, and what is refused."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import ProtocolError
from channels.protocol.network import nvsp
from channels.protocol.network.nvsp import (
    IndirectionTable,
    NvspMessage,
    NvspVersion,
    pack_receive,
    parse_from_guest,
    parse_from_host,
    parse_receive,
)
from channels.protocol.packet import parse_packet

FROM_GUEST = {
    nvsp.Init(0x60001, 0x60001): "01000000 01000600 01000600",
    nvsp.NdisVersion(6, 30): "64000000 06000000 1e000000",
    nvsp.NdisConfig(1514, 0x88): "7d000000 ea050000 00000000 88000000 00000000",
    nvsp.ReceiveBuffer(0xE1E10, 0xCAFE): "65000000 101e0e00 feca",
    nvsp.RevokeReceiveBuffer(0xCAFE): "67000000 feca",
    nvsp.SendBuffer(0xE1E11, 0): "68000000 111e0e00 0000",
    nvsp.RevokeSendBuffer(0): "6a000000 0000",
    nvsp.RndisPacket(1, 0xFFFFFFFF, 0): "6b000000 01000000 ffffffff 00000000",
    nvsp.RndisPacketComplete(1): "6c000000 01000000",
    nvsp.SwitchDataPath(1): "81000000 01000000",
    nvsp.Subchannels(1, 3): "85000000 01000000 03000000",
}
FROM_HOST = {
    nvsp.InitComplete(0xFFFFFFFF, 34, 1): "02000000 ffffffff 22000000 01000000",
    nvsp.ReceiveBufferComplete(1, 1, 0, 1792, 10, 17920): (
        "66000000 01000000 01000000 00000000 00070000 0a000000 00460000"
    ),
    nvsp.SendBufferComplete(1, 6144): "69000000 01000000 00180000",
    nvsp.RndisPacket(0, 0xFFFFFFFF, 0): "6b000000 00000000 ffffffff 00000000",
    nvsp.RndisPacketComplete(5): "6c000000 05000000",
    nvsp.VfAssociation(1, 7): "80000000 01000000 07000000",
    nvsp.SubchannelsComplete(1, 3): "85000000 01000000 03000000",
    IndirectionTable.of((0, 1)): "86000000 02000000 0c000000 00000000 01000000",
}


@pytest.mark.parametrize("message", FROM_GUEST, ids=lambda message: type(message).__name__)
def test_a_guests_messages_have_these_bytes(message: NvspMessage) -> None:
    data = bytes.fromhex(FROM_GUEST[message])
    assert message.pack() == data
    assert parse_from_guest(data) == message
    for size in range(len(data)):
        with pytest.raises(ProtocolError):
            parse_from_guest(data[:size])


@pytest.mark.parametrize("message", FROM_HOST, ids=lambda message: type(message).__name__)
def test_a_hosts_messages_have_these_bytes(message: NvspMessage) -> None:
    data = bytes.fromhex(FROM_HOST[message])
    assert message.pack() == data
    assert parse_from_host(data) == message
    if not isinstance(message, IndirectionTable):
        assert parse_from_host(message.padded(NvspVersion.V6_1)) == message


@pytest.mark.parametrize("version", NvspVersion)
def test_messages_are_padded_to_28_bytes_and_to_40_at_6_1(version: NvspVersion) -> None:
    message = nvsp.RndisPacketComplete(1)
    padded = message.padded(version)
    assert len(padded) == (40 if version is NvspVersion.V6_1 else 28)
    assert padded.rstrip(b"\0") == message.pack().rstrip(b"\0")
    assert len(message.padded(None)) == 28


def test_versions_have_the_numbers_of_the_reference() -> None:
    assert list(NvspVersion) == [0x2, 0x30002, 0x40000, 0x50000, 0x60000, 0x60001]


@pytest.mark.parametrize("parse", [parse_from_guest, parse_from_host])
@pytest.mark.parametrize("number", [0, 3, 99, 135, 0xFFFFFFFF])
def test_unknown_types_are_refused(parse: object, number: int) -> None:
    with pytest.raises(ProtocolError, match=f"got {number}"):
        parse(struct.pack("<I", number) + bytes(36))  # type: ignore[operator]


def test_each_side_sends_its_own_messages_only() -> None:
    with pytest.raises(ProtocolError, match="a type that a guest sends"):
        parse_from_guest(nvsp.InitComplete(2, 34, 1).padded(None))
    with pytest.raises(ProtocolError, match="a type that a host sends"):
        parse_from_host(nvsp.Init(2, 2).padded(None))


@pytest.mark.parametrize(
    ("count", "offset", "rest"), [(0, 12, 4), (129, 12, 600), (2, 12, 7), (1, 8, 4), (1, 16, 4), (16, 0xFFFFFFFF, 64)]
)
def test_a_table_that_is_not_all_there_is_refused(count: int, offset: int, rest: int) -> None:
    with pytest.raises(ProtocolError, match="indirection table"):
        IndirectionTable(count, offset, bytes(rest)).entries()


def test_a_table_may_lie_anywhere_after_the_header() -> None:
    assert IndirectionTable(2, 40, bytes(28) + struct.pack("<II", 5, 6)).entries() == (5, 6)


@given(
    st.integers(0, 0xFFFF),
    st.lists(st.tuples(st.integers(0, 1 << 31), st.integers(0, 1 << 31)), min_size=1, max_size=64),
    st.integers(0, (1 << 64) - 1),
)
def test_packets_to_the_guest_are_read_as_they_were_packed(
    set_id: int, ranges: list[tuple[int, int]], transaction_id: int
) -> None:
    flat = [number for part in ranges for number in part]
    packet = parse_packet(pack_receive(set_id, flat, b"payload.", transaction_id))
    assert parse_receive(packet.header) == (set_id, tuple(flat))
    assert packet.transfer_page_set_id == set_id
    assert [(part.byte_count, part.byte_offset) for part in packet.transfer_ranges()] == ranges
    assert (packet.transaction_id, packet.completion_requested, packet.payload) == (transaction_id, True, b"payload.")


@pytest.mark.parametrize("header", ["", "fecaffff0100", "feca000001000000", "feca0000ffffffff" + "00" * 16])
def test_ranges_that_are_missing_are_refused(header: str) -> None:
    with pytest.raises(ProtocolError, match="transfer ranges"):
        parse_receive(bytes.fromhex(header))
