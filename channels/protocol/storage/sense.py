"""Sense data: why a SCSI command was refused (SPC-4 4.5).

Fixed format, 18 bytes: 0 response code 0x70, 2 sense key in bits 0 to 3, 7 additional length 10, 12 additional sense code
(ASC), 13 its qualifier (ASCQ), all else 0. Descriptor format, read but not written: 0 response code 0x72, 1 sense key, 2 ASC,
3 ASCQ, descriptors from byte 8 on.
"""

from __future__ import annotations

import struct
from enum import IntEnum

import msgspec

from broker.errors import ProtocolError

_FIXED = struct.Struct(">BxB4xB4xBB4x")
_FIXED_CODES = (0x70, 0x71)
_DESCRIPTOR_CODES = (0x72, 0x73)
_LEAST_FIXED, _LEAST_DESCRIPTOR = 14, 4


class SenseKey(IntEnum):
    """What kind of trouble it is."""

    NO_SENSE = 0x0
    RECOVERED_ERROR = 0x1
    NOT_READY = 0x2
    MEDIUM_ERROR = 0x3
    HARDWARE_ERROR = 0x4
    ILLEGAL_REQUEST = 0x5
    UNIT_ATTENTION = 0x6
    DATA_PROTECT = 0x7
    ABORTED_COMMAND = 0xB
    MISCOMPARE = 0xE


class Sense(msgspec.Struct, frozen=True):
    """A sense key, its additional sense code and the qualifier of that. Unknown numbers are kept."""

    key: int
    asc: int = 0
    ascq: int = 0

    def pack(self) -> bytes:
        """The fixed format, 18 bytes. `ValueError` for numbers that do not fit."""
        try:
            return _FIXED.pack(_FIXED_CODES[0], self.key, 10, self.asc, self.ascq)
        except struct.error as error:
            raise ValueError(f"sense data: a value does not fit its field ({error})") from None

    def __str__(self) -> str:
        """As people write it: "5/24/00 (invalid field in the CDB)"."""
        numbers = f"{self.key:x}/{self.asc:02x}/{self.ascq:02x}"
        about = _ABOUT.get(self)
        return f"{numbers} ({about})" if about else numbers


NO_SENSE = Sense(SenseKey.NO_SENSE)
WRITE_ERROR = Sense(SenseKey.MEDIUM_ERROR, 0x0C)
READ_ERROR = Sense(SenseKey.MEDIUM_ERROR, 0x11)
PARAMETER_LIST_LENGTH = Sense(SenseKey.ILLEGAL_REQUEST, 0x1A)
INVALID_OPCODE = Sense(SenseKey.ILLEGAL_REQUEST, 0x20)
LBA_OUT_OF_RANGE = Sense(SenseKey.ILLEGAL_REQUEST, 0x21)
INVALID_FIELD_IN_CDB = Sense(SenseKey.ILLEGAL_REQUEST, 0x24)
NO_SUCH_LUN = Sense(SenseKey.ILLEGAL_REQUEST, 0x25)
INVALID_FIELD_IN_LIST = Sense(SenseKey.ILLEGAL_REQUEST, 0x26)
SAVING_NOT_SUPPORTED = Sense(SenseKey.ILLEGAL_REQUEST, 0x39)
WRITE_PROTECTED = Sense(SenseKey.DATA_PROTECT, 0x27)

_ABOUT = {
    NO_SENSE: "no sense",
    WRITE_ERROR: "write error",
    READ_ERROR: "unrecovered read error",
    PARAMETER_LIST_LENGTH: "wrong length of the parameter list",
    INVALID_OPCODE: "unknown operation code",
    LBA_OUT_OF_RANGE: "block address out of range",
    INVALID_FIELD_IN_CDB: "invalid field in the CDB",
    NO_SUCH_LUN: "no such logical unit",
    INVALID_FIELD_IN_LIST: "invalid field in the parameter list",
    SAVING_NOT_SUPPORTED: "saving parameters is not supported",
    WRITE_PROTECTED: "write protected",
}


def parse_sense(data: bytes) -> Sense:
    """Sense data of either format. `ProtocolError` for another response code, or where they end before the qualifier."""
    code = data[0] & 0x7F if data else 0
    if code in _FIXED_CODES and len(data) >= _LEAST_FIXED:
        return Sense(data[2] & 0xF, data[12], data[13])
    if code in _DESCRIPTOR_CODES and len(data) >= _LEAST_DESCRIPTOR:
        return Sense(data[1] & 0xF, data[2], data[3])
    raise ProtocolError("sense data", 0, "a response code from 0x70 to 0x73 and its fields", f"{data[:18].hex(' ')!r}")
