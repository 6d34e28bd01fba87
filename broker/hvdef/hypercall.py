"""Hypercall control word, result and the inputs of the SynIC calls (TLFS, "Hypercall Interface" and "SynIC Hypercalls").

All inputs are little-endian and lie 8-byte aligned within one page of guest memory. HvCallSignalEvent may also be a
fast call: the same 8 bytes travel in the input register.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Self

import msgspec

from .bits import Field, Flag, Register
from .message import MAX_PAYLOAD, MESSAGE_SIZE

PARTITION_SELF = 0xFFFF_FFFF_FFFF_FFFF
VP_SELF = 0xFFFF_FFFE
VP_ANY = 0xFFFF_FFFF

POST_MESSAGE = struct.Struct("<IIII")
POST_MESSAGE_SIZE = 256
SIGNAL_EVENT = struct.Struct("<IHH")
SIGNAL_EVENT_DIRECT = struct.Struct("<QIBBH")
SIGNAL_EVENT_DIRECT_OUTPUT = struct.Struct("<Q")
POST_MESSAGE_DIRECT = struct.Struct("<QIB3xB3x")
POST_MESSAGE_DIRECT_SIZE = 280
_POST_OFFSET = POST_MESSAGE.size
_DIRECT_MESSAGE_OFFSET = POST_MESSAGE_DIRECT.size


class CallCode(IntEnum):
    """Hypercall codes of this model."""

    POST_MESSAGE = 0x005C
    SIGNAL_EVENT = 0x005D
    SIGNAL_EVENT_DIRECT = 0x00C0
    POST_MESSAGE_DIRECT = 0x00C1


class HypercallControl(Register):
    """The hypercall input value."""

    code = Field(0, 16)
    fast = Flag(16)
    variable_header_size = Field(17, 10)
    reserved0 = Field(27, 4)
    nested = Flag(31)
    rep_count = Field(32, 12)
    reserved1 = Field(44, 4)
    rep_start = Field(48, 12)
    reserved2 = Field(60, 4)


class HypercallResult(Register):
    """The hypercall result value. Bits 31:16 and 63:44 are reserved and zero."""

    status = Field(0, 16)
    reps_completed = Field(32, 12)


class Privilege(IntEnum):
    """Bits of the partition privilege mask that the SynIC calls ask for (strict profile)."""

    POST_MESSAGES = 1 << 36
    SIGNAL_EVENTS = 1 << 37


ALL_PRIVILEGES = Privilege.POST_MESSAGES | Privilege.SIGNAL_EVENTS


class PostMessageInput(msgspec.Struct, frozen=True):
    """Input of HvCallPostMessage: 0 u32 connection ID, 4 u32 0, 8 u32 type, 12 u32 payload size, 16 payload[240]."""

    connection_id: int
    message_type: int
    payload: bytes
    payload_size: int | None = None
    """As written; None means the length of the payload. It may lie: the hypercall checks it."""

    def pack(self) -> bytes:
        """The 256 bytes of the input; a longer payload is cut there, its stated size stays."""
        size = len(self.payload) if self.payload_size is None else self.payload_size
        header = POST_MESSAGE.pack(self.connection_id, 0, self.message_type, size)
        return header + self.payload[:MAX_PAYLOAD].ljust(MAX_PAYLOAD, b"\0")

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Read 256 bytes. A stated size over 240 is kept as it is and the payload holds all 240 bytes."""
        connection_id, _, message_type, size = POST_MESSAGE.unpack_from(data)
        return cls(connection_id, message_type, bytes(data[_POST_OFFSET : _POST_OFFSET + min(size, MAX_PAYLOAD)]), size)


class SignalEventInput(msgspec.Struct, frozen=True):
    """Input of HvCallSignalEvent: 0 u32 connection ID, 4 u16 flag number, 6 u16 0; the fast form is the same as a u64."""

    connection_id: int
    flag_number: int = 0

    def pack(self) -> bytes:
        """The 8 bytes of the memory form."""
        return SIGNAL_EVENT.pack(self.connection_id, self.flag_number, 0)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Read 8 bytes; the reserved half-word is ignored, as OpenVMM does."""
        connection_id, flag_number, _ = SIGNAL_EVENT.unpack_from(data)
        return cls(connection_id, flag_number)

    @property
    def fast(self) -> int:
        """The fast form: one register."""
        return self.connection_id | self.flag_number << 32

    @classmethod
    def from_fast(cls, value: int) -> Self:
        """Read the fast form; bits 63:48 are ignored."""
        return cls(value & 0xFFFF_FFFF, value >> 32 & 0xFFFF)


class SignalEventDirectInput(msgspec.Struct, frozen=True):
    """Input of HvCallSignalEventDirect: 0 u64 partition, 8 u32 VP, 12 u8 VTL, 13 u8 SINT, 14 u16 flag.

    Its output is 8 bytes: u8 newly_signaled and seven zero bytes.
    """

    partition_id: int
    vp_index: int
    vtl: int
    sint: int
    flag_number: int

    def pack(self) -> bytes:
        """The 16 bytes of the input."""
        return SIGNAL_EVENT_DIRECT.pack(self.partition_id, self.vp_index, self.vtl, self.sint, self.flag_number)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Read 16 bytes."""
        return cls(*SIGNAL_EVENT_DIRECT.unpack_from(data))


class PostMessageDirectInput(msgspec.Struct, frozen=True):
    """Input of HvCallPostMessageDirect, 280 bytes: 0 u64 partition, 8 u32 VP, 12 u8 VTL, 16 u8 SINT, 20 the 256-byte message.

    This is the layout on the wire (OpenVMM and Linux mshv); the TLFS text prints another one.
    """

    partition_id: int
    vp_index: int
    vtl: int
    sint: int
    message: bytes

    def pack(self) -> bytes:
        """The 280 bytes of the input."""
        header = POST_MESSAGE_DIRECT.pack(self.partition_id, self.vp_index, self.vtl, self.sint)
        return (header + self.message).ljust(POST_MESSAGE_DIRECT_SIZE, b"\0")

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Read 280 bytes."""
        partition_id, vp_index, vtl, sint = POST_MESSAGE_DIRECT.unpack_from(data)
        message = bytes(data[_DIRECT_MESSAGE_OFFSET : _DIRECT_MESSAGE_OFFSET + MESSAGE_SIZE])
        return cls(partition_id, vp_index, vtl, sint, message)
