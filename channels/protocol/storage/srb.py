"""SCSI requests as storvsp carries them: the SRB, body of EXECUTE_SRB and of its answer (Linux `vmscsi_request`).

Little-endian, 52 bytes (0x34), or the first 36 (0x24) before Windows 8. Positions count from the start of the SRB, which is
byte 12 of the packet:

| offset | size | field |
|---|---|---|
| 0 | 2 | length of the SRB |
| 2 | 1 | SRB status: `SrbStatus` in bits 0 to 5, bit 6 queue frozen, bit 7 sense data is there |
| 3 | 1 | SCSI status |
| 4 | 4 x 1 | reserved (port), path, target, LUN |
| 8 | 1 | CDB length |
| 9 | 1 | sense length |
| 10 | 1 | data direction: 0 to the disk, 1 from it, 2 none |
| 11 | 1 | properties |
| 12 | 4 | transfer length: bytes asked for; in the answer bytes moved |
| 16 | 20 | CDB, 16 bytes of it at most; in the answer sense data |
| 36 | | from Windows 8 on: u16 reserved, u8 tag, u8 action, u32 flags, u32 timeout in s, u32 sort key |
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Annotated

from broker.errors import ProtocolError

from ..wire import At, Wire
from .vstor import NtStatus

SRB_SIZE = 0x34
OLD_SRB_SIZE = 0x24
CDB_SIZE = 16
"""Bytes that a CDB may have here."""
SENSE_SIZE = 20
"""Bytes of sense data that fit an answer."""


class SrbStatus(IntEnum):
    """What became of a request; bits 0 to 5 of the status byte."""

    PENDING = 0x00
    SUCCESS = 0x01
    ABORTED = 0x02
    ERROR = 0x04
    """The disk could not; the sense data say why."""
    BUSY = 0x05
    INVALID_REQUEST = 0x06
    """The request makes no sense; the sense data say why."""
    INVALID_PATH_ID = 0x07
    NO_DEVICE = 0x08
    TIMEOUT = 0x09
    SELECTION_TIMEOUT = 0x0A
    COMMAND_TIMEOUT = 0x0B
    BUS_RESET = 0x0E
    NO_HBA = 0x11
    DATA_OVERRUN = 0x12
    """The buffer does not hold the data."""
    BAD_SRB_BLOCK_LENGTH = 0x15
    REQUEST_FLUSHED = 0x16
    INVALID_LUN = 0x20
    INVALID_TARGET_ID = 0x21
    BAD_FUNCTION = 0x22


SRB_STATUS_MASK = 0x3F
QUEUE_FROZEN = 0x40
AUTOSENSE_VALID = 0x80
"""The answer has sense data where the CDB was."""


class ScsiStatus(IntEnum):
    """The status byte of SCSI (SAM)."""

    GOOD = 0x00
    CHECK_CONDITION = 0x02
    CONDITION_MET = 0x04
    BUSY = 0x08
    RESERVATION_CONFLICT = 0x18
    TASK_SET_FULL = 0x28
    TASK_ABORTED = 0x40


class DataDirection(IntEnum):
    """Which way the data of a request go."""

    TO_DISK = 0
    FROM_DISK = 1
    NONE = 2


class SrbFlags(IntFlag):
    """What Windows and Linux say about a request; a host need not look."""

    QUEUE_ACTION = 0x2
    NO_DISCONNECT = 0x4
    DATA_IN = 0x40
    DATA_OUT = 0x80


class ScsiRequest(Wire, frozen=True):
    """The SRB, both as a request and as an answer."""

    length: Annotated[int, At(0, "H", "bytes of the SRB")] = SRB_SIZE
    srb_status: Annotated[int, At(2, "B", "SRB status and its two flags")] = 0
    scsi_status: Annotated[int, At(3, "B", "SCSI status")] = 0
    path: Annotated[int, At(5, "B", "path (bus)")] = 0
    target: Annotated[int, At(6, "B", "target")] = 0
    lun: Annotated[int, At(7, "B", "logical unit")] = 0
    cdb_length: Annotated[int, At(8, "B", "bytes of the CDB")] = CDB_SIZE
    sense_length: Annotated[int, At(9, "B", "bytes that sense data may have")] = SENSE_SIZE
    direction: Annotated[int, At(10, "B", "0 to the disk, 1 from it, 2 none")] = DataDirection.NONE
    properties: Annotated[int, At(11, "B", "properties")] = 0
    transfer_length: Annotated[int, At(12, "I", "bytes asked for, or moved")] = 0
    payload: Annotated[bytes, At(16, "20s", "CDB, or sense data")] = bytes(SENSE_SIZE)
    queue_tag: Annotated[int, At(38, "B", "queue tag")] = 0
    queue_action: Annotated[int, At(39, "B", "queue action")] = 0
    flags: Annotated[int, At(40, "I", "SRB flags")] = 0
    timeout: Annotated[int, At(44, "I", "seconds")] = 0
    sort_key: Annotated[int, At(48, "I", "queue sort key")] = 0


def parse_srb(body: bytes) -> ScsiRequest:
    """An SRB of either size; the fields of Windows 8 are 0 where they are not there. `ProtocolError` under 36 bytes."""
    if len(body) < OLD_SRB_SIZE:
        raise ProtocolError("SCSI request", len(body), f"{OLD_SRB_SIZE} bytes", f"an end after {len(body)}")
    if len(body) < SRB_SIZE:
        body = body[:OLD_SRB_SIZE].ljust(SRB_SIZE, b"\0")
    return ScsiRequest.unpack(body)


_NT_STATUSES = {
    SrbStatus.SUCCESS: NtStatus.SUCCESS,
    SrbStatus.BUSY: NtStatus.DEVICE_BUSY,
    SrbStatus.INVALID_LUN: NtStatus.DEVICE_DOES_NOT_EXIST,
    SrbStatus.INVALID_TARGET_ID: NtStatus.DEVICE_DOES_NOT_EXIST,
    SrbStatus.NO_DEVICE: NtStatus.DEVICE_DOES_NOT_EXIST,
    SrbStatus.NO_HBA: NtStatus.DEVICE_DOES_NOT_EXIST,
    SrbStatus.TIMEOUT: NtStatus.IO_TIMEOUT,
    SrbStatus.COMMAND_TIMEOUT: NtStatus.IO_TIMEOUT,
    SrbStatus.SELECTION_TIMEOUT: NtStatus.DEVICE_NOT_CONNECTED,
    SrbStatus.BAD_FUNCTION: NtStatus.INVALID_DEVICE_REQUEST,
    SrbStatus.BAD_SRB_BLOCK_LENGTH: NtStatus.INVALID_DEVICE_REQUEST,
    SrbStatus.DATA_OVERRUN: NtStatus.BUFFER_OVERFLOW,
    SrbStatus.REQUEST_FLUSHED: NtStatus.UNSUCCESSFUL,
    SrbStatus.ABORTED: NtStatus.CANCELLED,
}


def nt_status_of(status: SrbStatus) -> NtStatus:
    """The NT status of an answer whose SRB has this status (OpenVMM)."""
    return _NT_STATUSES.get(status, NtStatus.IO_DEVICE_ERROR)
