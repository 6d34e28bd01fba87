"""NVSP: what a network adapter and its driver say to each other in ring packets (vmbus.md 8.10; Linux `hyperv_net.h`).

Raw packets, no pipe header, all little-endian. Each message is a u32 type and a body, padded with zeros to 28 bytes, to 40
at version 6.1. Offsets count from the type:

| type | from | body |
|---|---|---|
| 1 INIT | guest | u32 version, twice |
| 2 INIT_COMPLETE | host, completion | u32 0xFFFFFFFF (2 at version 1), u32 MDL chain, u32 status: 1, or 0 to try a lower one |
| 100 NDIS_VERSION | guest | u32 major, u32 minor |
| 101 RECEIVE_BUFFER | guest | u32 GPADL, u16 buffer ID |
| 102 RECEIVE_BUFFER_COMPLETE | host, completion | u32 status, u32 sections 1, then offset, suballocation size, count, end |
| 103, 106 REVOKE_... | guest | u16 buffer ID |
| 104 SEND_BUFFER | guest | u32 GPADL, u16 buffer ID |
| 105 SEND_BUFFER_COMPLETE | host, completion | u32 status, u32 section size |
| 107 RNDIS_PACKET | both | u32 channel type, u32 send section, u32 bytes in it |
| 108 RNDIS_PACKET_COMPLETE | both, completion | u32 status |
| 125 NDIS_CONFIG | guest, from 3.2 | u32 MTU + 14, u32 0, u64 capabilities |
| 128 VF_ASSOCIATION | host | u32 allocated, u32 serial |
| 129 SWITCH_DATA_PATH | guest | u32 path; its completion is empty |
| 133 SUBCHANNELS | guest, from 5.0 | u32 operation 1, u32 count |
| 133 | host, completion | u32 status, u32 count |
| 134 INDIRECTION_TABLE | host | u32 entries, u32 offset of the table, the table of u32 |

The RNDIS message of a packet to the host lies in a section of the send buffer, in GPA-direct ranges, or begins in the one
and goes on in the others. That of a packet to the guest lies in the receive buffer; the packet is of type 7.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum, IntFlag
from typing import Annotated, ClassVar, Self

from broker.errors import ProtocolError

from ..packet import COMPLETION_REQUESTED, PacketType, pack_packet
from ..wire import TAIL, At, Wire

NO_SECTION = 0xFFFF_FFFF
"""As a send section: the data is not in the send buffer."""
RECEIVE_BUFFER_ID = 0xCAFE
"""What Linux calls its receive buffer."""
SEND_BUFFER_ID = 0
"""What Linux calls its send buffer."""
SECTION_SIZE = 6144
"""Bytes of a section of the send buffer (OpenVMM)."""
MDL_CHAIN = 34
"""Pieces of memory that a packet of the guest may have (OpenVMM)."""
TABLE_SIZE = 16
"""Entries of the indirection table."""
MAX_TABLE_SIZE = 128
"""Entries that are taken of any table."""
MESSAGE_SIZE = 28
MESSAGE_SIZE_6_1 = 40

MESSAGE_TYPE = struct.Struct("<I")
RNDIS_PACKET = struct.Struct("<IIII")
"""Type, channel type, section, bytes: what is read and written for every packet of data."""
RNDIS_PACKET_COMPLETE = struct.Struct("<II")
_TRANSFER_HEADER = struct.Struct("<HHI")


class NvspVersion(IntEnum):
    """Versions, by the names that Linux gives them."""

    V1 = 0x0000_0002
    V2 = 0x0003_0002
    """3.2: NDIS configuration."""
    V4 = 0x0004_0000
    V5 = 0x0005_0000
    """Sub-channels."""
    V6 = 0x0006_0000
    V6_1 = 0x0006_0001

    @property
    def message_size(self) -> int:
        """Bytes to which a message is padded."""
        return MESSAGE_SIZE_6_1 if self >= NvspVersion.V6_1 else MESSAGE_SIZE


class NvspType(IntEnum):
    """The number at the start of every message."""

    INIT = 1
    INIT_COMPLETE = 2
    NDIS_VERSION = 100
    RECEIVE_BUFFER = 101
    RECEIVE_BUFFER_COMPLETE = 102
    REVOKE_RECEIVE_BUFFER = 103
    SEND_BUFFER = 104
    SEND_BUFFER_COMPLETE = 105
    REVOKE_SEND_BUFFER = 106
    RNDIS_PACKET = 107
    RNDIS_PACKET_COMPLETE = 108
    NDIS_CONFIG = 125
    VF_ASSOCIATION = 128
    SWITCH_DATA_PATH = 129
    SUBCHANNELS = 133
    INDIRECTION_TABLE = 134


class NvspStatus(IntEnum):
    """How a request ended."""

    NONE = 0
    SUCCESS = 1
    FAILURE = 2
    INVALID_RNDIS = 5
    """The packet arrived, and what is in it is no RNDIS message."""
    BUSY = 6
    """There was no room for the packet: it is dropped."""


class ChannelType(IntEnum):
    """What an RNDIS packet carries."""

    DATA = 0
    CONTROL = 1


class Capabilities(IntFlag):
    """What a guest can do, in its NDIS configuration."""

    VMQ = 0x01
    CHIMNEY = 0x02
    SRIOV = 0x04
    IEEE_802_1Q = 0x08
    CORRELATION_ID = 0x10
    TEAMING = 0x20
    VIRTUAL_SUBNET = 0x40
    RSC = 0x80


class NvspMessage(Wire, frozen=True):
    """A message; offsets count from its type."""

    TYPE: ClassVar[NvspType]
    LEAST_SIZE: ClassVar[int] = MESSAGE_TYPE.size

    def pack(self) -> bytes:
        """The message with its type, not padded. `ValueError` when a value does not fit its field."""
        return MESSAGE_TYPE.pack(self.TYPE) + super().pack()[MESSAGE_TYPE.size :]

    def padded(self, version: NvspVersion | None) -> bytes:
        """The message as it is sent at this version, None before there is one."""
        return self.pack().ljust(MESSAGE_SIZE if version is None else version.message_size, b"\0")


class Init(NvspMessage, frozen=True):
    """INIT: the guest would like to speak this version."""

    TYPE: ClassVar[NvspType] = NvspType.INIT

    version: Annotated[int, At(4, "I", "version")]
    highest: Annotated[int, At(8, "I", "the same again")]


class InitComplete(NvspMessage, frozen=True):
    """INIT_COMPLETE: whether the host does, too."""

    TYPE: ClassVar[NvspType] = NvspType.INIT_COMPLETE

    negotiated: Annotated[int, At(4, "I", "0xFFFFFFFF, or 2 at version 1")]
    mdl_chain: Annotated[int, At(8, "I", "longest chain of buffers")]
    status: Annotated[int, At(12, "I", "1: agreed, 0: try a lower version")]


class NdisVersion(NvspMessage, frozen=True):
    """NDIS_VERSION: what NDIS the guest speaks, 6.1 or 6.30."""

    TYPE: ClassVar[NvspType] = NvspType.NDIS_VERSION

    major: Annotated[int, At(4, "I", "6")]
    minor: Annotated[int, At(8, "I", "1 up to version 4, then 30")]


class NdisConfig(NvspMessage, frozen=True):
    """NDIS_CONFIG: the largest frame, and what the guest can do."""

    TYPE: ClassVar[NvspType] = NvspType.NDIS_CONFIG

    frame_size: Annotated[int, At(4, "I", "MTU and 14 bytes of Ethernet header")]
    capabilities: Annotated[int, At(12, "Q", "bits of `Capabilities`")] = 0


class ReceiveBuffer(NvspMessage, frozen=True):
    """RECEIVE_BUFFER: where the host may put frames."""

    TYPE: ClassVar[NvspType] = NvspType.RECEIVE_BUFFER

    gpadl_id: Annotated[int, At(4, "I", "a GPADL of this channel")]
    buffer_id: Annotated[int, At(8, "H", "transfer page set of the packets that use it")] = RECEIVE_BUFFER_ID


class ReceiveBufferComplete(NvspMessage, frozen=True):
    """RECEIVE_BUFFER_COMPLETE: how the host divides it, in one section."""

    TYPE: ClassVar[NvspType] = NvspType.RECEIVE_BUFFER_COMPLETE

    status: Annotated[int, At(4, "I", "1: taken")]
    sections: Annotated[int, At(8, "I", "1")] = 0
    offset: Annotated[int, At(12, "I", "where the section begins")] = 0
    size: Annotated[int, At(16, "I", "bytes of a suballocation")] = 0
    count: Annotated[int, At(20, "I", "suballocations")] = 0
    end: Annotated[int, At(24, "I", "where the section ends")] = 0


class RevokeReceiveBuffer(NvspMessage, frozen=True):
    """REVOKE_RECEIVE_BUFFER: the host may use it no more."""

    TYPE: ClassVar[NvspType] = NvspType.REVOKE_RECEIVE_BUFFER

    buffer_id: Annotated[int, At(4, "H", "which")] = RECEIVE_BUFFER_ID


class SendBuffer(NvspMessage, frozen=True):
    """SEND_BUFFER: where the guest will put small packets."""

    TYPE: ClassVar[NvspType] = NvspType.SEND_BUFFER

    gpadl_id: Annotated[int, At(4, "I", "a GPADL of this channel")]
    buffer_id: Annotated[int, At(8, "H", "name for its revocation")] = SEND_BUFFER_ID


class SendBufferComplete(NvspMessage, frozen=True):
    """SEND_BUFFER_COMPLETE: how large its sections are."""

    TYPE: ClassVar[NvspType] = NvspType.SEND_BUFFER_COMPLETE

    status: Annotated[int, At(4, "I", "1: taken")]
    section_size: Annotated[int, At(8, "I", "bytes of a section")] = 0


class RevokeSendBuffer(NvspMessage, frozen=True):
    """REVOKE_SEND_BUFFER: the guest uses it no more."""

    TYPE: ClassVar[NvspType] = NvspType.REVOKE_SEND_BUFFER

    buffer_id: Annotated[int, At(4, "H", "which")] = SEND_BUFFER_ID


class RndisPacket(NvspMessage, frozen=True):
    """RNDIS_PACKET: one or several RNDIS messages, elsewhere in memory."""

    TYPE: ClassVar[NvspType] = NvspType.RNDIS_PACKET

    channel_type: Annotated[int, At(4, "I", "0 data, 1 control")]
    section: Annotated[int, At(8, "I", "send section, 0xFFFFFFFF: none")] = NO_SECTION
    section_bytes: Annotated[int, At(12, "I", "bytes used in it")] = 0


class RndisPacketComplete(NvspMessage, frozen=True):
    """RNDIS_PACKET_COMPLETE: the memory may be used again."""

    TYPE: ClassVar[NvspType] = NvspType.RNDIS_PACKET_COMPLETE

    status: Annotated[int, At(4, "I", "1: taken")] = NvspStatus.SUCCESS


class VfAssociation(NvspMessage, frozen=True):
    """VF_ASSOCIATION: whether there is a virtual function beside this adapter."""

    TYPE: ClassVar[NvspType] = NvspType.VF_ASSOCIATION

    allocated: Annotated[int, At(4, "I", "1: there is one")]
    serial: Annotated[int, At(8, "I", "its serial number")] = 0


class SwitchDataPath(NvspMessage, frozen=True):
    """SWITCH_DATA_PATH: where the guest's frames go from now on."""

    TYPE: ClassVar[NvspType] = NvspType.SWITCH_DATA_PATH

    path: Annotated[int, At(4, "I", "0 this adapter, 1 the virtual function")]


class Subchannels(NvspMessage, frozen=True):
    """SUBCHANNELS of a guest: so many are wanted."""

    TYPE: ClassVar[NvspType] = NvspType.SUBCHANNELS

    operation: Annotated[int, At(4, "I", "1: allocate")]
    count: Annotated[int, At(8, "I", "how many")]


class SubchannelsComplete(NvspMessage, frozen=True):
    """SUBCHANNELS of a host: so many will be offered."""

    TYPE: ClassVar[NvspType] = NvspType.SUBCHANNELS

    status: Annotated[int, At(4, "I", "1: they will")]
    count: Annotated[int, At(8, "I", "how many")] = 0


class IndirectionTable(NvspMessage, frozen=True):
    """INDIRECTION_TABLE: the channel for each value of a flow's hash."""

    TYPE: ClassVar[NvspType] = NvspType.INDIRECTION_TABLE

    count: Annotated[int, At(4, "I", "entries")]
    offset: Annotated[int, At(8, "I", "where the table begins")]
    rest: Annotated[bytes, At(12, TAIL, "the table, u32 each")] = b""

    @classmethod
    def of(cls, entries: Sequence[int]) -> Self:
        """A table of these channels."""
        return cls(len(entries), 12, struct.pack(f"<{len(entries)}I", *entries))

    def entries(self) -> tuple[int, ...]:
        """The channels. `ProtocolError` for no entry, more than 128, or a table that is not all there."""
        if not 1 <= self.count <= MAX_TABLE_SIZE:
            raise ProtocolError("indirection table", 4, f"1 to {MAX_TABLE_SIZE} entries", f"{self.count}")
        start = self.offset - 12
        if start < 0 or start + 4 * self.count > len(self.rest):
            raise ProtocolError("indirection table", 8, f"{self.count} entries inside the message", f"{self.offset}")
        return struct.unpack_from(f"<{self.count}I", self.rest, start)


_FROM_GUEST: dict[int, type[NvspMessage]] = {
    kind.TYPE: kind
    for kind in (
        Init,
        NdisVersion,
        NdisConfig,
        ReceiveBuffer,
        RevokeReceiveBuffer,
        SendBuffer,
        RevokeSendBuffer,
        RndisPacket,
        RndisPacketComplete,
        SwitchDataPath,
        Subchannels,
    )
}
_FROM_HOST: dict[int, type[NvspMessage]] = {
    kind.TYPE: kind
    for kind in (
        InitComplete,
        ReceiveBufferComplete,
        SendBufferComplete,
        RndisPacket,
        RndisPacketComplete,
        VfAssociation,
        SubchannelsComplete,
        IndirectionTable,
    )
}


def parse_from_guest(data: bytes) -> NvspMessage:
    """A message of a guest. `ProtocolError` for a type that guests do not send, or too few bytes."""
    return _parse(data, _FROM_GUEST, "a guest")


def parse_from_host(data: bytes) -> NvspMessage:
    """A message of a host. `ProtocolError` for a type that hosts do not send, or too few bytes."""
    return _parse(data, _FROM_HOST, "a host")


def pack_receive(set_id: int, ranges: Sequence[int], payload: bytes, transaction_id: int) -> bytes:
    """A packet of type 7 that asks for a completion, without footer. `ranges`: bytes and offset of each, flat.

    The hot path's form of `pack_transfer_pages`.
    """
    header = _TRANSFER_HEADER.pack(set_id, 0, len(ranges) >> 1) + struct.pack(f"<{len(ranges)}I", *ranges)
    return pack_packet(PacketType.TRANSFER_PAGES, payload, transaction_id, COMPLETION_REQUESTED, header)


def parse_receive(header: bytes) -> tuple[int, tuple[int, ...]]:
    """(set ID, bytes and offset of each range, flat) of the extended header of a packet of type 7; see `pack_receive`.

    `ProtocolError` when ranges are missing.
    """
    if len(header) < _TRANSFER_HEADER.size:
        raise ProtocolError("transfer ranges", len(header), f"{_TRANSFER_HEADER.size} bytes", "an end before")
    set_id, _, count = _TRANSFER_HEADER.unpack_from(header)
    if 8 * count > len(header) - _TRANSFER_HEADER.size:
        raise ProtocolError("transfer ranges", 4, f"at most {(len(header) - 8) >> 3} ranges", f"{count}")
    return set_id, struct.unpack_from(f"<{2 * count}I", header, _TRANSFER_HEADER.size)


def _parse(data: bytes, kinds: dict[int, type[NvspMessage]], sender: str) -> NvspMessage:
    if len(data) < MESSAGE_TYPE.size:
        raise ProtocolError("NVSP message", len(data), "a type of 4 bytes", f"an end after {len(data)}")
    (number,) = MESSAGE_TYPE.unpack_from(data)
    kind = kinds.get(number)
    if kind is None:
        raise ProtocolError("NVSP message", 0, f"a type that {sender} sends", f"{number}")
    return kind.unpack(data)
