"""Targets for the network adapter's decoders: NVSP, RNDIS, frames, the structures of its OIDs."""

from __future__ import annotations

from collections.abc import Callable

from broker.errors import ProtocolError
from channels.protocol.network import nvsp, oids, rndis
from channels.protocol.network.frames import ETHERNET_HEADER, Frame, PacketInfo, pack_frame, packed_size, parse_frames

from .script import Script

_NVSP = (
    nvsp.Init(0x60001, 0x60001),
    nvsp.InitComplete(0xFFFFFFFF, 34, 1),
    nvsp.NdisVersion(6, 30),
    nvsp.NdisConfig(1514, 0x88),
    nvsp.ReceiveBuffer(0xE1E10),
    nvsp.ReceiveBufferComplete(1, 1, 0, 1792, 10, 17920),
    nvsp.RevokeReceiveBuffer(),
    nvsp.SendBuffer(0xE1E11),
    nvsp.SendBufferComplete(1, 6144),
    nvsp.RevokeSendBuffer(),
    nvsp.RndisPacket(1),
    nvsp.RndisPacketComplete(),
    nvsp.VfAssociation(1, 7),
    nvsp.SwitchDataPath(1),
    nvsp.Subchannels(1, 3),
    nvsp.IndirectionTable.of((0, 1, 2, 3) * 4),
)
_RNDIS = (
    rndis.Initialize(1),
    rndis.InitializeComplete(1, 0),
    rndis.Halt(2),
    rndis.Query.of(3, oids.Oid.CURRENT_ADDRESS),
    rndis.QueryComplete.of(3, 0, b"\0\x15\x5d\1\2\3"),
    rndis.Set.of(4, oids.Oid.PACKET_FILTER, b"\x0d\0\0\0"),
    rndis.SetComplete(4, 0),
    rndis.Reset(),
    rndis.ResetComplete(0),
    rndis.IndicateStatus(0x4001000C),
    rndis.KeepAlive(5),
    rndis.KeepAliveComplete(5),
)


def nvsp_message(data: bytes) -> None:
    """An NVSP message, from either side: what is read is written the same."""
    for parse in (nvsp.parse_from_guest, nvsp.parse_from_host):
        try:
            message = parse(data)
        except ProtocolError:
            continue
        packed = message.pack()
        assert len(packed) <= len(data)
        assert parse(packed) == message
        if isinstance(message, nvsp.IndirectionTable):
            _tried(message.entries)


def nvsp_message_seeds() -> list[bytes]:
    """Every message, padded as at 6.1."""
    return [message.padded(nvsp.NvspVersion.V6_1) for message in _NVSP]


def receive_ranges(data: bytes) -> None:
    """The extended header of a packet to the guest."""
    try:
        _, ranges = nvsp.parse_receive(data)
    except ProtocolError:
        return
    assert len(ranges) % 2 == 0
    assert 8 + 4 * len(ranges) <= len(data)


def receive_ranges_seeds() -> list[bytes]:
    """Headers with none to four ranges."""
    return [nvsp.pack_receive(0xCAFE, [60, 0] * count, b"", 1)[16:] for count in range(5)]


def rndis_control(data: bytes) -> None:
    """An RNDIS control message, from either side."""
    for parse in (rndis.parse_control_from_guest, rndis.parse_control_from_host):
        try:
            message = parse(data)
        except ProtocolError:
            continue
        assert parse(message.pack()) == message
        if isinstance(message, rndis.Query | rndis.QueryComplete):
            information = _tried(lambda message=message: message.information)  # type: ignore[misc]
            assert information is None or information in data


def rndis_control_seeds() -> list[bytes]:
    """Every message."""
    return [message.pack() for message in _RNDIS]


def frames(data: bytes) -> None:
    """RNDIS data messages: each frame lies in the data, and is written and read again the same."""
    try:
        found = parse_frames(data)
    except ProtocolError:
        return
    assert found
    for frame in found:
        assert len(frame.data) >= ETHERNET_HEADER
        assert frame.data in data
        packed = pack_frame(frame)
        assert len(packed) == packed_size(frame)
        (again,) = parse_frames(packed)
        assert again.data == frame.data
        assert [(kind, value[: len(old)]) for (kind, value), (_, old) in zip(again.info, frame.info, strict=True)] == [
            *frame.info
        ]


def frames_seeds() -> list[bytes]:
    """One frame, several, and one with information."""
    plain = pack_frame(Frame(bytes(range(60))))
    told = pack_frame(Frame(bytes(range(60)), (PacketInfo(0, b"\1\0\0\0"), PacketInfo(6, b"\5\0\0\0"))))
    return [plain, plain * 3, told, plain + told]


def oid_structures(data: bytes) -> None:
    """Byte 0: which. Then a structure of an OID."""
    script = Script(data)
    parse = script.pick((oids.parse_rss_capabilities, oids.parse_rss_table, oids.parse_wants_offload))
    rest = script.rest()
    value = _tried(lambda: parse(rest))
    if isinstance(value, tuple):
        assert len(value) <= nvsp.MAX_TABLE_SIZE


def oid_structures_seeds() -> list[bytes]:
    """One of each."""
    return [
        b"\0" + oids.pack_rss_capabilities(4),
        b"\1" + oids.pack_rss_parameters((0, 1, 2, 3)),
        b"\2" + bytes.fromhex("80011400") + bytes(16),
    ]


def _tried(call: Callable[[], object]) -> object:
    try:
        return call()
    except ProtocolError:
        return None
