"""RNDIS control messages, as netvsp carries them (MS-RNDIS; vmbus.md 8.10).

Each message is a u32 type, a u32 length that includes these eight bytes, and a body; all little-endian. A request has an
ID that its completion repeats; the type of a completion is that of its request with bit 31. Offsets of information
buffers count from byte 8.

| type | body of the request | body of the completion |
|---|---|---|
| 2 INITIALIZE | ID, u32 1, u32 0, u32 largest transfer | ID, status, 1, 0, flags, medium, packets, transfer, alignment, 0, 0 |
| 3 HALT | ID | none |
| 4 QUERY | ID, OID, length, offset, 0, information | ID, status, length, offset, information |
| 5 SET | as QUERY | ID, status |
| 6 RESET | 0 | status, u32 1 when the packet filter has to be set anew |
| 7 INDICATE_STATUS (host) | status, length, offset, information | none |
| 8 KEEP_ALIVE | ID | ID, status |
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Annotated, ClassVar, Self

from broker.errors import ProtocolError

from ..wire import TAIL, At, Wire

RNDIS_HEADER = struct.Struct("<II")
"""Type and length of every message."""
COMPLETION = 0x8000_0000
MAX_TRANSFER = 0x4000
"""Bytes of the largest message that both sides name at INITIALIZE."""
MAX_PACKETS = 8
"""Data messages that the guest may send as one (OpenVMM)."""
ALIGNMENT_SHIFT = 3
"""Each of them begins at a multiple of 8 bytes."""
_ORIGIN = 8
"""Where offsets count from."""


class RndisType(IntEnum):
    """The number at the start of every message."""

    PACKET = 1
    INITIALIZE = 2
    HALT = 3
    QUERY = 4
    SET = 5
    RESET = 6
    INDICATE_STATUS = 7
    KEEP_ALIVE = 8
    INITIALIZE_COMPLETE = COMPLETION | 2
    QUERY_COMPLETE = COMPLETION | 4
    SET_COMPLETE = COMPLETION | 5
    RESET_COMPLETE = COMPLETION | 6
    KEEP_ALIVE_COMPLETE = COMPLETION | 8


class RndisStatus(IntEnum):
    """How a request ended, or what an indication says."""

    SUCCESS = 0
    FAILURE = 0xC000_0001
    NOT_SUPPORTED = 0xC000_00BB
    INVALID_LENGTH = 0xC001_0014
    INVALID_DATA = 0xC001_0015
    MEDIA_CONNECT = 0x4001_000B
    MEDIA_DISCONNECT = 0x4001_000C


class RndisMessage(Wire, frozen=True):
    """A control message; offsets count from its type."""

    TYPE: ClassVar[RndisType]
    LEAST_SIZE: ClassVar[int] = RNDIS_HEADER.size

    def pack(self) -> bytes:
        """The message with its type and length. `ValueError` when a value does not fit its field."""
        data = super().pack()
        return RNDIS_HEADER.pack(self.TYPE, len(data)) + data[RNDIS_HEADER.size :]


class Initialize(RndisMessage, frozen=True):
    """INITIALIZE, 24 bytes: version 1.0."""

    TYPE: ClassVar[RndisType] = RndisType.INITIALIZE

    request_id: Annotated[int, At(8, "I", "repeated by the completion")]
    major: Annotated[int, At(12, "I", "1")] = 1
    minor: Annotated[int, At(16, "I", "0")] = 0
    max_transfer: Annotated[int, At(20, "I", "bytes of the largest message")] = MAX_TRANSFER


class InitializeComplete(RndisMessage, frozen=True):
    """INITIALIZE_COMPLETE, 52 bytes."""

    TYPE: ClassVar[RndisType] = RndisType.INITIALIZE_COMPLETE

    request_id: Annotated[int, At(8, "I", "of the request")]
    status: Annotated[int, At(12, "I", "0: it worked")]
    major: Annotated[int, At(16, "I", "1")] = 1
    minor: Annotated[int, At(20, "I", "0")] = 0
    flags: Annotated[int, At(24, "I", "1: connectionless")] = 1
    medium: Annotated[int, At(28, "I", "0: 802.3")] = 0
    max_packets: Annotated[int, At(32, "I", "data messages that may be sent as one")] = MAX_PACKETS
    max_transfer: Annotated[int, At(36, "I", "bytes of the largest message")] = MAX_TRANSFER
    alignment_shift: Annotated[int, At(40, "I", "each begins at a multiple of 1 << this")] = ALIGNMENT_SHIFT
    families_offset: Annotated[int, At(44, "I", "0")] = 0
    families_size: Annotated[int, At(48, "I", "0")] = 0


class Halt(RndisMessage, frozen=True):
    """HALT, 12 bytes: the guest stops using the adapter."""

    TYPE: ClassVar[RndisType] = RndisType.HALT

    request_id: Annotated[int, At(8, "I", "nobody repeats it")]


class Query(RndisMessage, frozen=True):
    """QUERY, 28 bytes and an information buffer: what is the value of this OID?"""

    TYPE: ClassVar[RndisType] = RndisType.QUERY

    request_id: Annotated[int, At(8, "I", "repeated by the completion")]
    oid: Annotated[int, At(12, "I", "object identifier")]
    length: Annotated[int, At(16, "I", "bytes of information")] = 0
    offset: Annotated[int, At(20, "I", "where it begins, from byte 8")] = 20
    handle: Annotated[int, At(24, "I", "0")] = 0
    rest: Annotated[bytes, At(28, TAIL, "information")] = b""

    @classmethod
    def of(cls, request_id: int, oid: int, information: bytes = b"") -> Self:
        """A request with this information."""
        return cls(request_id, oid, len(information), rest=information)

    @property
    def information(self) -> bytes:
        """The information buffer. `ProtocolError` when it is not inside the message."""
        return _information(self.rest, 28, self.offset, self.length)


class Set(Query, frozen=True):
    """SET, 28 bytes and an information buffer: let the value of this OID be that."""

    TYPE: ClassVar[RndisType] = RndisType.SET


class QueryComplete(RndisMessage, frozen=True):
    """QUERY_COMPLETE, 24 bytes and an information buffer."""

    TYPE: ClassVar[RndisType] = RndisType.QUERY_COMPLETE

    request_id: Annotated[int, At(8, "I", "of the request")]
    status: Annotated[int, At(12, "I", "0: here it is")]
    length: Annotated[int, At(16, "I", "bytes of information")] = 0
    offset: Annotated[int, At(20, "I", "where it begins, from byte 8")] = 16
    rest: Annotated[bytes, At(24, TAIL, "information")] = b""

    @classmethod
    def of(cls, request_id: int, status: int, information: bytes = b"") -> Self:
        """An answer with this information."""
        return cls(request_id, status, len(information), rest=information)

    @property
    def information(self) -> bytes:
        """The information buffer. `ProtocolError` when it is not inside the message."""
        return _information(self.rest, 24, self.offset, self.length)


class SetComplete(RndisMessage, frozen=True):
    """SET_COMPLETE, 16 bytes."""

    TYPE: ClassVar[RndisType] = RndisType.SET_COMPLETE

    request_id: Annotated[int, At(8, "I", "of the request")]
    status: Annotated[int, At(12, "I", "0: it is so now")]


class Reset(RndisMessage, frozen=True):
    """RESET, 12 bytes: forget the packet filter and what is on its way."""

    TYPE: ClassVar[RndisType] = RndisType.RESET

    reserved: Annotated[int, At(8, "I", "0")] = 0


class ResetComplete(RndisMessage, frozen=True):
    """RESET_COMPLETE, 16 bytes."""

    TYPE: ClassVar[RndisType] = RndisType.RESET_COMPLETE

    status: Annotated[int, At(8, "I", "0: done")]
    addressing: Annotated[int, At(12, "I", "1: set packet filter and multicast list anew")] = 1


class IndicateStatus(RndisMessage, frozen=True):
    """INDICATE_STATUS, 20 bytes: something has happened to the link."""

    TYPE: ClassVar[RndisType] = RndisType.INDICATE_STATUS

    status: Annotated[int, At(8, "I", "what")]
    length: Annotated[int, At(12, "I", "bytes of information")] = 0
    offset: Annotated[int, At(16, "I", "where it begins, from byte 8")] = 0


class KeepAlive(RndisMessage, frozen=True):
    """KEEP_ALIVE, 12 bytes: are you there?"""

    TYPE: ClassVar[RndisType] = RndisType.KEEP_ALIVE

    request_id: Annotated[int, At(8, "I", "repeated by the completion")]


class KeepAliveComplete(RndisMessage, frozen=True):
    """KEEP_ALIVE_COMPLETE, 16 bytes: yes."""

    TYPE: ClassVar[RndisType] = RndisType.KEEP_ALIVE_COMPLETE

    request_id: Annotated[int, At(8, "I", "of the request")]
    status: Annotated[int, At(12, "I", "0")] = 0


_FROM_GUEST: dict[int, type[RndisMessage]] = {
    kind.TYPE: kind for kind in (Initialize, Halt, Query, Set, Reset, KeepAlive)
}
_FROM_HOST: dict[int, type[RndisMessage]] = {
    kind.TYPE: kind
    for kind in (
        InitializeComplete,
        QueryComplete,
        SetComplete,
        ResetComplete,
        IndicateStatus,
        KeepAliveComplete,
    )
}


def parse_control_from_guest(data: bytes) -> RndisMessage:
    """A control message of a guest, at the start of `data`.

    `ProtocolError` for a type that guests do not send, or a length that is too small for it or beyond `data`.
    """
    return _parse(data, _FROM_GUEST, "a guest")


def parse_control_from_host(data: bytes) -> RndisMessage:
    """A control message of a host. `ProtocolError` as in `parse_control_from_guest`."""
    return _parse(data, _FROM_HOST, "a host")


def _parse(data: bytes, kinds: dict[int, type[RndisMessage]], sender: str) -> RndisMessage:
    if len(data) < RNDIS_HEADER.size:
        raise ProtocolError("RNDIS message", len(data), "8 bytes of header", f"an end after {len(data)}")
    number, length = RNDIS_HEADER.unpack_from(data)
    if not RNDIS_HEADER.size <= length <= len(data):
        raise ProtocolError("RNDIS message", 4, f"a length of 8 to {len(data)} bytes", f"{length}")
    kind = kinds.get(number)
    if kind is None:
        raise ProtocolError("RNDIS message", 0, f"a control message that {sender} sends", f"type {number:#x}")
    return kind.unpack(data[:length])


def _information(rest: bytes, at: int, offset: int, length: int) -> bytes:
    """`rest` begins at byte `at` of the message."""
    start = _ORIGIN + offset - at
    if not length:
        return b""
    if start < 0 or start + length > len(rest):
        raise ProtocolError(
            "RNDIS information buffer", at - 4, f"{length} bytes inside the message", f"an offset of {offset}"
        )
    return rest[start : start + length]
