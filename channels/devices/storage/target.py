"""`Target`: the logical units of one controller, and what they answer to a SCSI request together.

All of them are at path 0, target 0. REPORT LUNS may be asked of any LUN. Where no unit is, INQUIRY says so in its data
(peripheral 0x7F), as scanning guests expect; everything else is refused with SRB status 0x20, invalid LUN (OpenVMM).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from uuid import UUID

from broker.errors import ConfigurationError
from broker.memory import GuestMemory

from ...protocol.packet import Packet
from ...protocol.storage.cdb import InquiryCdb, Opcode, ReportLunsCdb, cdb_size
from ...protocol.storage.inquiry import NO_LOGICAL_UNIT, InquiryData
from ...protocol.storage.parameters import LEAST_LUNS_SIZE, pack_luns
from ...protocol.storage.srb import (
    AUTOSENSE_VALID,
    CDB_SIZE,
    OLD_SRB_SIZE,
    SENSE_SIZE,
    SRB_SIZE,
    ScsiRequest,
    ScsiStatus,
    SrbStatus,
    nt_status_of,
    parse_srb,
)
from ...protocol.storage.vstor import HEADER_SIZE, PACKET_SIZE, Operation, VstorPacket
from .buffer import DataBuffer
from .disk import Disk
from .logical_unit import Identity, LogicalUnit
from .refused import Refused

MAX_LUN = 255
_WELL_KNOWN_ONLY, _ALL = 1, 2
_NOBODY = InquiryData("", "", "", NO_LOGICAL_UNIT)


class Target:
    """See the module. `ConfigurationError` for LUNs over 255, and for disks that are none."""

    def __init__(self, instance_id: UUID, disks: Mapping[int, Disk]) -> None:
        wrong = [lun for lun in disks if not 0 <= lun <= MAX_LUN]
        if wrong:
            raise ConfigurationError(f"LUNs are 0 to {MAX_LUN}, not {wrong[0]}")
        self.units = {
            lun: LogicalUnit(disk, Identity(f"{instance_id.hex}{lun:02x}", instance_id.int << 8 | lun))
            for lun, disk in sorted(disks.items())
        }
        self.refused = 0
        """Requests that were answered with anything but success."""

    async def answer(self, memory: GuestMemory, packet: Packet) -> tuple[bytes, int]:
        """Carry out the request of an EXECUTE_SRB packet: the answer, and the bytes that it has cost.

        `ProtocolError` for a packet too short for a request; whatever else is wrong is in the answer.
        """
        payload = packet.payload
        request = parse_srb(payload[HEADER_SIZE:])
        size = min(len(payload), PACKET_SIZE)
        try:
            buffer = DataBuffer(memory, packet, request)
            if request.cdb_length > CDB_SIZE:
                raise Refused
            moved = await self._execute(request, request.payload[: request.cdb_length], buffer)
        except Refused as refused:
            self.refused += 1
            return _refusal(refused, size), 0
        return _success(moved, size), moved + buffer.cost

    async def _execute(self, request: ScsiRequest, cdb: bytes, buffer: DataBuffer) -> int:
        is_here = not request.path and not request.target
        opcode = cdb[0] if cdb else None
        if opcode == Opcode.REPORT_LUNS:
            return self._report(cdb, buffer, tuple(self.units) if is_here else ())
        unit = self.units.get(request.lun) if is_here else None
        if unit is not None:
            return await unit.execute(cdb, buffer)
        if opcode != Opcode.INQUIRY:
            raise Refused(None, SrbStatus.INVALID_LUN)
        if len(cdb) < cdb_size(Opcode.INQUIRY) or cdb[1] & 1 or cdb[2]:
            raise Refused
        command = InquiryCdb.unpack(cdb)
        if command.allocation > buffer.size:
            raise Refused
        return buffer.give(_NOBODY.pack()[: command.allocation])

    def _report(self, cdb: bytes, buffer: DataBuffer, luns: tuple[int, ...]) -> int:
        if len(cdb) < cdb_size(Opcode.REPORT_LUNS):
            raise Refused
        command = ReportLunsCdb.unpack(cdb)
        if command.select > _ALL or command.allocation < LEAST_LUNS_SIZE:
            raise Refused
        data = pack_luns(() if command.select == _WELL_KNOWN_ONLY else luns)
        return buffer.give(data[: min(command.allocation, buffer.size)])


@lru_cache(maxsize=64)
def _success(moved: int, size: int) -> bytes:
    """Most answers are one of a few."""
    answer = ScsiRequest(length=_srb_size(size), srb_status=SrbStatus.SUCCESS, transfer_length=moved)
    return _pack(answer, SrbStatus.SUCCESS, size)


def _refusal(refused: Refused, size: int) -> bytes:
    sense = b"" if refused.sense is None else refused.sense.pack()
    answer = ScsiRequest(
        length=_srb_size(size),
        srb_status=refused.status | (AUTOSENSE_VALID if sense else 0),
        scsi_status=ScsiStatus.CHECK_CONDITION,
        sense_length=SENSE_SIZE,
        payload=sense.ljust(SENSE_SIZE, b"\0"),
    )
    return _pack(answer, refused.status, size)


def _srb_size(size: int) -> int:
    """Bytes of the SRB in a packet of so many."""
    return SRB_SIZE if size >= PACKET_SIZE else OLD_SRB_SIZE


def _pack(answer: ScsiRequest, status: SrbStatus, size: int) -> bytes:
    packet = VstorPacket(Operation.COMPLETE_IO, status=nt_status_of(status), body=answer.pack())
    return packet.pack_to(size)
