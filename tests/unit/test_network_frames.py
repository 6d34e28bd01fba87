"""Frames in RNDIS data messages: layouts, round trips, and every length and offset that leads out of a message."""

from __future__ import annotations

import struct

import pytest
from dpkt.ethernet import Ethernet
from dpkt.ip import IP, IP_PROTO_UDP
from dpkt.ip6 import IP6
from dpkt.udp import UDP
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import ProtocolError
from channels.protocol.network.frames import Frame, PacketInfo, flow_hash, pack_frame, packed_size, parse_frames

DATA = bytes(range(60))
infos = st.lists(st.tuples(st.integers(0, (1 << 32) - 1), st.binary(max_size=24)), max_size=4)
frames = st.builds(
    lambda data, info: Frame(data, tuple(PacketInfo(kind, part) for kind, part in info)),
    st.binary(min_size=14, max_size=200),
    infos,
)


def padded(frame: Frame) -> Frame:
    """Per-packet information comes back padded to a multiple of 4 bytes."""
    info = tuple(PacketInfo(kind, data.ljust((len(data) + 3) // 4 * 4, b"\0")) for kind, data in frame.info)
    return Frame(frame.data, info)


def test_a_plain_frame_has_these_bytes() -> None:
    message = pack_frame(Frame(DATA))
    assert message[:44].hex() == struct.pack("<11I", 1, 104, 36, 60, 0, 0, 0, 0, 0, 0, 0).hex()
    assert message[44:] == DATA


def test_information_lies_between_header_and_frame() -> None:
    message = pack_frame(Frame(DATA, (PacketInfo(0, b"\x01\0\0\0"), PacketInfo(6, b"\x05\0\0\0"))))
    assert struct.unpack_from("<11I", message) == (1, 136, 68, 60, 0, 0, 0, 36, 32, 0, 0)
    assert message[44:60].hex() == "10000000" + "00000000" + "0c000000" + "01000000"
    assert message[60:76].hex() == "10000000" + "06000000" + "0c000000" + "05000000"
    assert message[76:] == DATA


@given(st.lists(frames, min_size=1, max_size=9))
def test_frames_come_back_as_they_were_packed(some: list[Frame]) -> None:
    messages = [pack_frame(frame) for frame in some]
    assert [len(message) for message in messages] == [packed_size(frame) for frame in some]
    assert all(len(message) % 8 == 0 for message in messages)
    assert parse_frames(b"".join(messages)) == [padded(frame) for frame in some]


@given(st.binary(max_size=300))
def test_anything_else_raises_a_protocol_error_or_is_frames(data: bytes) -> None:
    try:
        found = parse_frames(b"\1\0\0\0" + data)
    except ProtocolError:
        return
    assert all(14 <= len(frame.data) <= len(data) for frame in found)


FIELDS = {
    "another type": (0, 2),
    "a length of 0": (4, 0),
    "a length below the header": (4, 43),
    "a length beyond the data": (4, 121),
    "a length of all bits": (4, 0xFFFFFFFF),
    "a frame in the header": (8, 35),
    "a frame beyond the message": (8, 53),
    "a frame offset of all bits": (8, 0xFFFFFFFF),
    "a short frame": (12, 13),
    "a long frame": (12, 61),
    "a frame of all bits": (12, 0xFFFFFFFF),
    "information in the header": (28, 35),
    "information beyond the message": (28, 110),
    "information longer than the message": (32, 77),
    "information that ends within a header": (32, 8),
}


@pytest.mark.parametrize("what", FIELDS)
def test_a_field_that_leads_out_of_the_message_is_refused(what: str) -> None:
    message = bytearray(pack_frame(Frame(DATA, (PacketInfo(0, b"\x01\0\0\0"),))))
    assert len(message) == 120
    struct.pack_into("<I", message, *FIELDS[what])
    with pytest.raises(ProtocolError):
        parse_frames(bytes(message))


@pytest.mark.parametrize(("at", "value"), [(44, 11), (44, 17), (44, 0), (52, 11), (52, 17), (52, 0xFFFFFFFF)])
def test_information_that_does_not_add_up_is_refused(at: int, value: int) -> None:
    message = bytearray(pack_frame(Frame(DATA, (PacketInfo(0, b"\x01\0\0\0"),))))
    struct.pack_into("<I", message, at, value)
    with pytest.raises(ProtocolError, match="per-packet information"):
        parse_frames(bytes(message))


def test_no_message_and_a_rest_after_the_last_are_refused() -> None:
    with pytest.raises(ProtocolError):
        parse_frames(b"")
    with pytest.raises(ProtocolError):
        parse_frames(pack_frame(Frame(DATA)) + bytes(8))


def udp(port: int, text: bytes, *, last: int = 2, number: int = 1) -> bytes:
    datagram = UDP(sport=port, dport=7, data=text, ulen=8 + len(text))
    packet = IP(src=b"\x0a\0\0\1", dst=bytes((10, 0, 0, last)), id=number, p=IP_PROTO_UDP, data=datagram)
    return bytes(Ethernet(src=b"\2" * 6, dst=b"\4" * 6, data=packet))


def test_frames_of_a_flow_have_one_hash_and_flows_have_several() -> None:
    assert flow_hash(udp(1, b"one")) == flow_hash(udp(1, b"another, longer", number=9))
    assert len({flow_hash(udp(port, b"x")) for port in range(64)}) == 64
    assert flow_hash(udp(1, b"x")) != flow_hash(udp(1, b"x", last=3))
    six = [
        bytes(
            Ethernet(
                src=b"\2" * 6,
                dst=b"\4" * 6,
                type=0x86DD,
                data=IP6(src=bytes(15) + b"\1", dst=bytes(15) + b"\2", nxt=17, data=UDP(sport=port, dport=7)),
            )
        )
        for port in (1, 1, 2)
    ]
    assert flow_hash(six[0]) == flow_hash(six[1]) != flow_hash(six[2])
    other = b"\4" * 6 + b"\2" * 6 + b"\x08\x06"
    assert flow_hash(other + b"a") == flow_hash(other + b"b")
    assert flow_hash(b"") == flow_hash(b"")
