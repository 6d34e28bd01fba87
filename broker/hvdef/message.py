"""SynIC messages, event flags and their pages (TLFS, "SynIC Message Format" and "SynIC Event Flags").

Message slot, 256 bytes, little-endian; the SIM page holds sixteen, slot n at byte 256 * n:

| offset | size | field |
|---|---|---|
| 0 | 4 | message_type, 0 when the slot is empty; written last, cleared by the guest |
| 4 | 1 | payload_size, 0 to 240 |
| 5 | 1 | flags, bit 0 message-pending |
| 6 | 2 | reserved, 0 |
| 8 | 8 | origination ID |
| 16 | 240 | payload |

SIEF page: sixteen arrays of 2048 flags; flag f of SINT s is bit f % 8 of byte 256 * s + f // 8.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Self

import msgspec

MESSAGE_SIZE = 256
PAYLOAD_OFFSET = 16
MAX_PAYLOAD = 240
FLAGS_OFFSET = 5
MESSAGE_PENDING = 0x01
EVENT_FLAGS_PER_SINT = 2048
EVENT_FLAG_BYTES = EVENT_FLAGS_PER_SINT // 8
HYPERVISOR_MESSAGE = 0x8000_0000
"""Bit 31 of a message type: the hypervisor owns it, a guest may not post it."""

MESSAGE_HEADER = struct.Struct("<IBBHQ")
MESSAGE_TYPE = struct.Struct("<I")
TIMER_PAYLOAD = struct.Struct("<IIQQ")


class MessageType(IntEnum):
    """HV_MESSAGE_TYPE. Guests and hosts may use any other non-zero number with bit 31 clear."""

    NONE = 0x0000_0000
    CHANNEL = 0x0000_0001
    UNMAPPED_GPA = 0x8000_0000
    GPA_INTERCEPT = 0x8000_0001
    UNACCEPTED_GPA = 0x8000_0003
    GPA_ATTRIBUTE_INTERCEPT = 0x8000_0004
    TIMER_EXPIRED = 0x8000_0010
    INVALID_VP_REGISTER_VALUE = 0x8000_0020
    UNRECOVERABLE_EXCEPTION = 0x8000_0021
    UNSUPPORTED_FEATURE = 0x8000_0022
    OPAQUE_INTERCEPT = 0x8000_003F
    EVENT_LOG_BUFFER_COMPLETE = 0x8000_0040
    HYPERCALL_INTERCEPT = 0x8000_0050
    SYNIC_EVENT_INTERCEPT = 0x8000_0060
    SYNIC_SINT_INTERCEPT = 0x8000_0061
    SYNIC_SINT_DELIVERABLE = 0x8000_0062
    ASYNC_CALL_COMPLETION = 0x8000_0070
    X64_IO_PORT_INTERCEPT = 0x8001_0000
    X64_MSR_INTERCEPT = 0x8001_0001
    X64_CPUID_INTERCEPT = 0x8001_0002
    X64_EXCEPTION_INTERCEPT = 0x8001_0003
    X64_APIC_EOI = 0x8001_0004
    X64_LEGACY_FP_ERROR = 0x8001_0005
    X64_REGISTER_INTERCEPT = 0x8001_0006
    X64_HALT = 0x8001_0007
    X64_INTERRUPTION_DELIVERABLE = 0x8001_0008
    X64_SIPI_INTERCEPT = 0x8001_0009


class SynicMessage(msgspec.Struct, frozen=True):
    """One message as it lies in a slot."""

    message_type: int
    payload: bytes
    flags: int = 0
    origination_id: int = 0

    def pack(self) -> bytes:
        """The 256 bytes of the slot. `ValueError` for a payload over 240 bytes."""
        if len(self.payload) > MAX_PAYLOAD:
            raise ValueError(f"a message holds {MAX_PAYLOAD} bytes of payload, {len(self.payload)} do not fit")
        header = MESSAGE_HEADER.pack(self.message_type, len(self.payload), self.flags, 0, self.origination_id)
        return header + self.payload.ljust(MAX_PAYLOAD, b"\0")

    @classmethod
    def unpack(cls, slot: bytes | bytearray | memoryview) -> Self:
        """Read a slot. The payload has the length the header states, at most 240 bytes. `ValueError` if not 256 bytes."""
        if len(slot) != MESSAGE_SIZE:
            raise ValueError(f"a message slot is {MESSAGE_SIZE} bytes, got {len(slot)}")
        message_type, size, flags, _, origination_id = MESSAGE_HEADER.unpack_from(slot)
        end = PAYLOAD_OFFSET + min(size, MAX_PAYLOAD)
        return cls(message_type, bytes(slot[PAYLOAD_OFFSET:end]), flags, origination_id)

    @property
    def message_pending(self) -> bool:
        """True when more messages wait for this slot: the guest must write EOM after clearing it."""
        return bool(self.flags & MESSAGE_PENDING)


class TimerMessage(msgspec.Struct, frozen=True):
    """Payload of TIMER_EXPIRED: u32 index, u32 0, u64 expiration time, u64 delivery time; ticks of 100 ns."""

    timer_index: int
    expiration_time: int
    delivery_time: int

    def pack(self) -> bytes:
        """The 24 bytes of the payload."""
        return TIMER_PAYLOAD.pack(self.timer_index, 0, self.expiration_time, self.delivery_time)

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        """Read a payload. `ValueError` when it is shorter than 24 bytes."""
        if len(payload) < TIMER_PAYLOAD.size:
            raise ValueError(f"a timer payload is {TIMER_PAYLOAD.size} bytes, got {len(payload)}")
        index, _, expiration, delivery = TIMER_PAYLOAD.unpack_from(payload)
        return cls(index, expiration, delivery)


def slot_offset(sint: int) -> int:
    """Byte offset of a SINT's message slot in the SIM page."""
    return MESSAGE_SIZE * sint


def flag_location(sint: int, flag: int) -> tuple[int, int]:
    """Byte offset in the SIEF page and bit mask within that byte of one event flag."""
    return EVENT_FLAG_BYTES * sint + (flag >> 3), 1 << (flag & 7)
