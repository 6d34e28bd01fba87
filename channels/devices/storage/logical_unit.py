"""`LogicalUnit`: carries out SCSI commands on one `Disk` (SPC-4, SBC-3).

It will: know INQUIRY with its pages, READ CAPACITY, READ, WRITE and VERIFY of all sizes, SYNCHRONIZE CACHE, UNMAP, TEST UNIT
READY, REQUEST SENSE, MODE SENSE and START STOP UNIT; check all of a command before any of it is done; refuse the rest with
sense data. It will not: keep sense data for REQUEST SENSE (each refusal has brought its own, so there is never more to tell),
change mode pages, compare in VERIFY, or stop.

| refused | sense |
|---|---|
| an operation code that it does not know | 5/20/00 |
| blocks that are not there; more blocks than the buffer has room for (as OpenVMM has it) | 5/21/00 |
| any other field of a CDB; an allocation length over the buffer; more than `MAX_TRANSFER` bytes | 5/24/00 |
| a list for UNMAP: its lengths; too many blocks in it | 5/1a/00; 5/26/00 |
| saved values of a mode page | 5/39/00 |
| writing to a read-only disk | 7/27/00 |
| `OSError` of the disk: reading; writing | 3/11/00; 3/0c/00 |

Where a buffer has more room than there are data the command is good, and the transfer length of the answer says how much was
moved; READ CAPACITY without room for its data is a data overrun (both as OpenVMM has it).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
import structlog

from broker.errors import ConfigurationError, ProtocolError

from ...protocol.storage import cdb as cdbs
from ...protocol.storage import inquiry, parameters, sense
from ...protocol.storage.cdb import BlockCdb, Opcode, cdb_size
from ...protocol.storage.inquiry import InquiryData, VpdPage
from ...protocol.storage.srb import SrbStatus
from ...protocol.storage.vstor import MAX_TRANSFER
from .buffer import DataBuffer
from .disk import Disk, check_block_size
from .refused import Refused

MAX_UNMAP_BYTES = 64 << 20
"""What one UNMAP covers at most: it may have to be written as zeros, at one go."""
FLUSH_COST = 1 << 18
"""Bytes that a flush counts for."""
MAX_UNMAP_RANGES = 256
_MOST_BLOCKS = 1 << 64
_CHANGEABLE, _SAVED = 1, 3

_log = structlog.get_logger("channels")


class Identity(msgspec.Struct, frozen=True):
    """Who a logical unit says it is."""

    serial: str
    """ASCII."""
    number: int
    """Its low 60 bits tell it from all others."""
    data: InquiryData = InquiryData("Msft", "Virtual Disk", "1.0")


class LogicalUnit:
    """See the module. `ConfigurationError` for a disk that is none: its block size, or no block."""

    def __init__(self, disk: Disk, identity: Identity) -> None:
        check_block_size(disk.block_size)
        if not 1 <= disk.block_count < _MOST_BLOCKS:
            raise ConfigurationError(f"a disk has at least one block and fewer than 2^64, not {disk.block_count}")
        self._disk = disk
        self._identity = identity
        self._block_count = disk.block_count
        self._block_size = disk.block_size
        self.failures = 0
        """How often the disk has raised `OSError`."""

    async def execute(self, cdb: bytes, buffer: DataBuffer) -> int:
        """Carry out a command: bytes that were moved. `Refused` when it was not."""
        command = _COMMANDS.get(cdb[0]) if cdb else None
        if command is None:
            raise Refused(sense.INVALID_OPCODE)
        if len(cdb) < cdb_size(cdb[0]):
            raise Refused
        return await command(self, cdb, buffer)

    # blocks

    async def _read(self, cdb: bytes, buffer: DataBuffer) -> int:
        command, size = self._blocks_of(cdb, buffer.size)
        if not size:
            return 0
        try:
            data = await self._disk.read(command.lba, command.count)
        except OSError as error:
            raise self._failed(error, sense.READ_ERROR) from error
        if len(data) != size:
            raise ValueError(f"{type(self._disk).__name__}.read returned {len(data)} bytes where {size} were asked for")
        return buffer.give(data)

    async def _write(self, cdb: bytes, buffer: DataBuffer) -> int:
        self._check_writable()
        command, size = self._blocks_of(cdb, buffer.size)
        data = buffer.take(size)
        try:
            if data:
                await self._disk.write(command.lba, data)
            if command.flags & cdbs.FUA:
                buffer.cost = FLUSH_COST
                await self._disk.flush()
        except OSError as error:
            raise self._failed(error, sense.WRITE_ERROR) from error
        return size

    async def _verify(self, cdb: bytes, buffer: DataBuffer) -> int:
        command, size = self._blocks_of(cdb, MAX_TRANSFER)
        buffer.cost = size
        if command.flags & cdbs.BYTE_CHECK_MASK:
            raise Refused
        try:
            if size:
                await self._disk.read(command.lba, command.count)
        except OSError as error:
            raise self._failed(error, sense.READ_ERROR) from error
        return 0

    async def _synchronize(self, cdb: bytes, buffer: DataBuffer) -> int:
        command = BlockCdb.unpack(cdb)
        self._check_range(command.lba, command.count)
        return await self._flush(cdb, buffer)

    async def _flush(self, _: bytes, buffer: DataBuffer) -> int:
        buffer.cost = FLUSH_COST
        try:
            await self._disk.flush()
        except OSError as error:
            raise self._failed(error, sense.WRITE_ERROR) from error
        return 0

    async def _unmap(self, cdb: bytes, buffer: DataBuffer) -> int:
        command = cdbs.UnmapCdb.unpack(cdb)
        self._check_writable()
        if command.anchor:
            raise Refused
        if not command.length:
            return 0
        try:
            ranges = parameters.parse_unmap(buffer.take(command.length))
        except ProtocolError:
            raise Refused(sense.PARAMETER_LIST_LENGTH) from None
        total = sum(count for _, count in ranges)
        if len(ranges) > MAX_UNMAP_RANGES or total * self._block_size > MAX_UNMAP_BYTES:
            raise Refused(sense.INVALID_FIELD_IN_LIST)
        for lba, count in ranges:
            self._check_range(lba, count)
        buffer.cost = total * self._block_size
        try:
            for lba, count in ranges:
                if count:
                    await self._disk.unmap(lba, count)
        except OSError as error:
            raise self._failed(error, sense.WRITE_ERROR) from error
        return command.length

    # what the unit says about itself

    async def _inquiry(self, cdb: bytes, buffer: DataBuffer) -> int:
        try:
            command = cdbs.InquiryCdb.unpack(cdb)
        except ProtocolError:
            raise Refused from None
        return _tell(buffer, self._inquiry_data(command.page), command.allocation)

    def _inquiry_data(self, page: int | None) -> bytes:
        identity = self._identity
        match page:
            case None:
                return identity.data.pack()
            case VpdPage.SUPPORTED_PAGES:
                return inquiry.supported_pages()
            case VpdPage.UNIT_SERIAL_NUMBER:
                return inquiry.serial_number(identity.serial)
            case VpdPage.DEVICE_IDENTIFICATION:
                return inquiry.device_identification(identity.data.vendor, identity.serial, identity.number)
            case VpdPage.BLOCK_LIMITS:
                size = self._block_size
                limits = inquiry.BlockLimits(MAX_TRANSFER // size, MAX_UNMAP_BYTES // size, MAX_UNMAP_RANGES, 1)
                return limits.pack()
            case VpdPage.BLOCK_DEVICE_CHARACTERISTICS:
                return inquiry.block_device_characteristics()
            case VpdPage.LOGICAL_BLOCK_PROVISIONING:
                return inquiry.logical_block_provisioning()
        raise Refused

    async def _capacity_10(self, _: bytes, buffer: DataBuffer) -> int:
        return _tell_capacity(buffer, self._capacity.pack_10())

    async def _service_action(self, cdb: bytes, buffer: DataBuffer) -> int:
        command = cdbs.ServiceActionCdb.unpack(cdb)
        if command.action != cdbs.READ_CAPACITY_16:
            raise Refused
        return _tell_capacity(buffer, self._capacity.pack_16()[: command.allocation])

    async def _mode_sense(self, cdb: bytes, buffer: DataBuffer) -> int:
        command = cdbs.ModeSenseCdb.unpack(cdb)
        if command.control == _SAVED:
            raise Refused(sense.SAVING_NOT_SUPPORTED)
        pages = parameters.mode_pages(command.page, changeable=command.control == _CHANGEABLE)
        if pages is None or command.subpage not in (0, parameters.ALL_SUBPAGES):
            raise Refused
        flags = parameters.HAS_FUA | (parameters.WRITE_PROTECT if self._disk.read_only else 0)
        return _tell(buffer, parameters.pack_mode(command.opcode, pages, flags), command.allocation)

    async def _request_sense(self, cdb: bytes, buffer: DataBuffer) -> int:
        command = cdbs.RequestSenseCdb.unpack(cdb)
        if command.wants_descriptors:
            raise Refused
        return _tell(buffer, sense.NO_SENSE.pack(), command.allocation)

    async def _test(self, _: bytes, __: DataBuffer) -> int:
        return 0

    # within

    @property
    def _capacity(self) -> parameters.Capacity:
        return parameters.Capacity(self._block_count, self._block_size)

    def _blocks_of(self, cdb: bytes, room: int) -> tuple[BlockCdb, int]:
        """The command, and the bytes that its blocks have."""
        command = BlockCdb.unpack(cdb)
        if command.flags & cdbs.PROTECT_MASK:
            raise Refused
        self._check_range(command.lba, command.count)
        size = command.count * self._block_size
        if size > MAX_TRANSFER:
            raise Refused
        if size > room:
            raise Refused(sense.LBA_OUT_OF_RANGE)
        return command, size

    def _check_range(self, lba: int, count: int) -> None:
        if lba >= self._block_count or count > self._block_count - lba:
            raise Refused(sense.LBA_OUT_OF_RANGE)

    def _check_writable(self) -> None:
        if self._disk.read_only:
            raise Refused(sense.WRITE_PROTECTED, SrbStatus.ERROR)

    def _failed(self, error: OSError, why: sense.Sense) -> Refused:
        self.failures += 1
        if self.failures == 1:
            _log.warning("disk_failed", serial=self._identity.serial, reason=str(error), sense=str(why))
        return Refused(why, SrbStatus.ERROR)


_COMMANDS: dict[int, Callable[[LogicalUnit, bytes, DataBuffer], Awaitable[int]]] = {
    Opcode.TEST_UNIT_READY: LogicalUnit._test,
    Opcode.REQUEST_SENSE: LogicalUnit._request_sense,
    Opcode.INQUIRY: LogicalUnit._inquiry,
    Opcode.MODE_SENSE_6: LogicalUnit._mode_sense,
    Opcode.MODE_SENSE_10: LogicalUnit._mode_sense,
    Opcode.START_STOP_UNIT: LogicalUnit._flush,
    Opcode.READ_CAPACITY_10: LogicalUnit._capacity_10,
    Opcode.SERVICE_ACTION_IN_16: LogicalUnit._service_action,
    Opcode.SYNCHRONIZE_CACHE_10: LogicalUnit._synchronize,
    Opcode.SYNCHRONIZE_CACHE_16: LogicalUnit._synchronize,
    Opcode.UNMAP: LogicalUnit._unmap,
    **dict.fromkeys((Opcode.READ_6, Opcode.READ_10, Opcode.READ_12, Opcode.READ_16), LogicalUnit._read),
    **dict.fromkeys((Opcode.WRITE_6, Opcode.WRITE_10, Opcode.WRITE_12, Opcode.WRITE_16), LogicalUnit._write),
    **dict.fromkeys((Opcode.VERIFY_10, Opcode.VERIFY_12, Opcode.VERIFY_16), LogicalUnit._verify),
}


def _tell(buffer: DataBuffer, data: bytes, allocation: int) -> int:
    """As many of these data as were allowed for. `Refused` where the buffer has no room for so many."""
    if allocation > buffer.size:
        raise Refused
    return buffer.give(data[:allocation])


def _tell_capacity(buffer: DataBuffer, data: bytes) -> int:
    if len(data) > buffer.size:
        raise Refused(sense.INVALID_FIELD_IN_CDB, SrbStatus.DATA_OVERRUN)
    return buffer.give(data)
