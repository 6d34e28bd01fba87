"""Command descriptor blocks: the SCSI commands that a disk knows (SPC-4, SBC-3). All numbers in them are big-endian.

Bits 5 to 7 of the operation code say how long a CDB is: 6 bytes (0), 10 (1, 2), 16 (4), 12 (5). `unpack` looks at what its
command uses; reserved bytes, the group number and the control byte are ignored.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Any, ClassVar, Self

import msgspec

from broker.errors import ProtocolError


class Opcode(IntEnum):
    """Operation codes."""

    TEST_UNIT_READY = 0x00
    REQUEST_SENSE = 0x03
    READ_6 = 0x08
    WRITE_6 = 0x0A
    INQUIRY = 0x12
    MODE_SENSE_6 = 0x1A
    START_STOP_UNIT = 0x1B
    READ_CAPACITY_10 = 0x25
    READ_10 = 0x28
    WRITE_10 = 0x2A
    VERIFY_10 = 0x2F
    SYNCHRONIZE_CACHE_10 = 0x35
    UNMAP = 0x42
    MODE_SENSE_10 = 0x5A
    READ_16 = 0x88
    WRITE_16 = 0x8A
    VERIFY_16 = 0x8F
    SYNCHRONIZE_CACHE_16 = 0x91
    SERVICE_ACTION_IN_16 = 0x9E
    REPORT_LUNS = 0xA0
    READ_12 = 0xA8
    WRITE_12 = 0xAA
    VERIFY_12 = 0xAF


READ_CAPACITY_16 = 0x10
"""Service action of SERVICE_ACTION_IN_16."""
FUA = 0x08
"""Force unit access, a flag of READ and WRITE: the data are on the medium before the command ends."""
PROTECT_MASK = 0xE0
"""RDPROTECT or WRPROTECT; 0 for disks without protection information."""
BYTE_CHECK_MASK = 0x06
"""BYTCHK of VERIFY; 0: nothing is compared."""
MAX_LBA_6 = 0x1F_FFFF
MAX_COUNT_6 = 0x100

_SIZES = (6, 10, 10, 0, 16, 12, 0, 0)


def cdb_size(opcode: int) -> int:
    """Bytes of a CDB with this operation code; 0 for groups whose CDBs vary."""
    return _SIZES[opcode >> 5]


_BLOCKS = {
    6: struct.Struct(">BBHBx"),
    10: struct.Struct(">BBIxHx"),
    12: struct.Struct(">BBIIxx"),
    16: struct.Struct(">BBQIxx"),
}
"""Operation code, flags (the top of the address where there are 6 bytes), address, count."""
_BLOCK_OPCODES = (
    *(Opcode.READ_6, Opcode.READ_10, Opcode.READ_12, Opcode.READ_16),
    *(Opcode.WRITE_6, Opcode.WRITE_10, Opcode.WRITE_12, Opcode.WRITE_16),
    *(Opcode.VERIFY_10, Opcode.VERIFY_12, Opcode.VERIFY_16),
    *(Opcode.SYNCHRONIZE_CACHE_10, Opcode.SYNCHRONIZE_CACHE_16),
)
_BLOCK_FORMS = {int(opcode): _BLOCKS[cdb_size(opcode)] for opcode in _BLOCK_OPCODES}


def _unpack(what: str, layout: struct.Struct, opcodes: tuple[int, ...], cdb: bytes) -> tuple[Any, ...]:
    if len(cdb) < layout.size:
        raise ProtocolError(what, len(cdb), f"{layout.size} bytes", f"an end after {len(cdb)}")
    if cdb[0] not in opcodes:
        raise ProtocolError(what, 0, f"operation code {opcodes[0]:#04x}", f"{cdb[0]:#04x}")
    return layout.unpack_from(cdb)


def _pack(what: str, layout: struct.Struct, *values: int) -> bytes:
    try:
        return layout.pack(*values)
    except struct.error as error:
        raise ValueError(f"{what}: a value does not fit its field ({error})") from None


class BlockCdb(msgspec.Struct, frozen=True, gc=False):
    """READ, WRITE, VERIFY and SYNCHRONIZE CACHE of every size: blocks `lba` to `lba + count - 1`.

    In the 6-byte forms a count of 256 is written as 0, and there are no flags.
    """

    opcode: int
    lba: int
    count: int
    flags: int = 0

    def pack(self) -> bytes:
        """The CDB. `ValueError` for numbers that do not fit the form of this operation code."""
        layout = _BLOCK_FORMS[self.opcode]
        if layout.size != 6:
            return _pack("block command", layout, self.opcode, self.flags, self.lba, self.count)
        if not 0 <= self.lba <= MAX_LBA_6 or not 1 <= self.count <= MAX_COUNT_6 or self.flags:
            raise ValueError(f"{self.count} blocks at {self.lba:#x} do not fit a CDB of 6 bytes")
        return layout.pack(self.opcode, self.lba >> 16, self.lba & 0xFFFF, self.count & 0xFF)

    @classmethod
    def unpack(cls, cdb: bytes) -> Self:
        """`ProtocolError` for a short CDB, and for any other operation code."""
        layout = _BLOCK_FORMS.get(cdb[0]) if cdb else None
        if layout is None or len(cdb) < layout.size:
            raise ProtocolError("block command", 0, "a CDB of a command about blocks", f"{cdb[:16].hex(' ')!r}")
        opcode, flags, lba, count = layout.unpack_from(cdb)
        if layout.size == 6:
            return cls(opcode, (flags & 0x1F) << 16 | lba, count or MAX_COUNT_6)
        return cls(opcode, lba, count, flags)


class SimpleCdb(msgspec.Struct, frozen=True):
    """TEST UNIT READY, START STOP UNIT, READ CAPACITY (10): nothing but the operation code is used here."""

    opcode: int

    def pack(self) -> bytes:
        """The CDB."""
        return bytes([self.opcode]).ljust(cdb_size(self.opcode), b"\0")


class RequestSenseCdb(msgspec.Struct, frozen=True):
    """REQUEST SENSE: tell what went wrong, in the descriptor format where it is wanted."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct(">BBxxBx")

    allocation: int
    wants_descriptors: bool = False

    def pack(self) -> bytes:
        """The CDB. `ValueError` for numbers that do not fit."""
        return _pack("REQUEST SENSE", self.LAYOUT, Opcode.REQUEST_SENSE, self.wants_descriptors, self.allocation)

    @classmethod
    def unpack(cls, cdb: bytes) -> Self:
        """`ProtocolError` for a short CDB, and for any other operation code."""
        _, flags, allocation = _unpack("REQUEST SENSE", cls.LAYOUT, (Opcode.REQUEST_SENSE,), cdb)
        return cls(allocation, bool(flags & 1))


class InquiryCdb(msgspec.Struct, frozen=True):
    """INQUIRY: the standard data where `page` is None, else that vital product data page."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct(">BBBHx")

    allocation: int
    page: int | None = None

    def pack(self) -> bytes:
        """The CDB. `ValueError` for numbers that do not fit."""
        has_page = self.page is not None
        return _pack("INQUIRY", self.LAYOUT, Opcode.INQUIRY, has_page, self.page or 0, self.allocation)

    @classmethod
    def unpack(cls, cdb: bytes) -> Self:
        """`ProtocolError` for a short CDB, any other operation code, and a page code where no page is asked for."""
        _, flags, page, allocation = _unpack("INQUIRY", cls.LAYOUT, (Opcode.INQUIRY,), cdb)
        if not flags & 1 and page:
            raise ProtocolError("INQUIRY", 2, "page 0 for the standard data", f"{page:#04x}")
        return cls(allocation, page if flags & 1 else None)


class ModeSenseCdb(msgspec.Struct, frozen=True):
    """MODE SENSE (6) and (10): `control` 0 current, 1 changeable, 2 default, 3 saved values of a page."""

    LAYOUTS: ClassVar[dict[int, struct.Struct]] = {
        Opcode.MODE_SENSE_6: struct.Struct(">BBBBBx"),
        Opcode.MODE_SENSE_10: struct.Struct(">BBBBxxxHx"),
    }

    allocation: int
    page: int
    subpage: int = 0
    control: int = 0
    opcode: int = Opcode.MODE_SENSE_10
    no_descriptors: bool = True

    def pack(self) -> bytes:
        """The CDB. `ValueError` for numbers that do not fit."""
        flags, page = self.no_descriptors << 3, self.control << 6 | self.page
        return _pack("MODE SENSE", self.LAYOUTS[self.opcode], self.opcode, flags, page, self.subpage, self.allocation)

    @classmethod
    def unpack(cls, cdb: bytes) -> Self:
        """`ProtocolError` for a short CDB, and for any other operation code."""
        opcode = cdb[0] if cdb else None
        layout = cls.LAYOUTS[Opcode.MODE_SENSE_6 if opcode == Opcode.MODE_SENSE_6 else Opcode.MODE_SENSE_10]
        opcode, flags, page, subpage, allocation = _unpack("MODE SENSE", layout, tuple(cls.LAYOUTS), cdb)
        return cls(allocation, page & 0x3F, subpage, page >> 6, opcode, bool(flags & 8))


class ReportLunsCdb(msgspec.Struct, frozen=True):
    """REPORT LUNS: `select` 0 all but the well-known ones, 1 those alone, 2 all."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct(">BxBxxxIxx")

    allocation: int
    select: int = 0

    def pack(self) -> bytes:
        """The CDB. `ValueError` for numbers that do not fit."""
        return _pack("REPORT LUNS", self.LAYOUT, Opcode.REPORT_LUNS, self.select, self.allocation)

    @classmethod
    def unpack(cls, cdb: bytes) -> Self:
        """`ProtocolError` for a short CDB, and for any other operation code."""
        _, select, allocation = _unpack("REPORT LUNS", cls.LAYOUT, (Opcode.REPORT_LUNS,), cdb)
        return cls(allocation, select)


class ServiceActionCdb(msgspec.Struct, frozen=True):
    """SERVICE ACTION IN (16), of which READ CAPACITY (16) is one."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct(">BB8xIxx")

    allocation: int
    action: int = READ_CAPACITY_16

    def pack(self) -> bytes:
        """The CDB. `ValueError` for numbers that do not fit."""
        return _pack("SERVICE ACTION IN", self.LAYOUT, Opcode.SERVICE_ACTION_IN_16, self.action, self.allocation)

    @classmethod
    def unpack(cls, cdb: bytes) -> Self:
        """`ProtocolError` for a short CDB, and for any other operation code."""
        _, action, allocation = _unpack("SERVICE ACTION IN", cls.LAYOUT, (Opcode.SERVICE_ACTION_IN_16,), cdb)
        return cls(allocation, action & 0x1F)


class UnmapCdb(msgspec.Struct, frozen=True):
    """UNMAP: a parameter list of so many bytes says which blocks (`parameters.py`)."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct(">BB5xHx")

    length: int
    anchor: bool = False

    def pack(self) -> bytes:
        """The CDB. `ValueError` for numbers that do not fit."""
        return _pack("UNMAP", self.LAYOUT, Opcode.UNMAP, self.anchor, self.length)

    @classmethod
    def unpack(cls, cdb: bytes) -> Self:
        """`ProtocolError` for a short CDB, and for any other operation code."""
        _, flags, length = _unpack("UNMAP", cls.LAYOUT, (Opcode.UNMAP,), cdb)
        return cls(length, bool(flags & 1))
