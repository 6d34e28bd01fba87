"""Targets for storage: packets of storvsp, SCSI commands and their data, and a whole disk behind a hostile request."""

from __future__ import annotations

from broker.errors import ProtocolError
from broker.memory import GuestMemory
from channels.devices.storage.buffer import DataBuffer
from channels.devices.storage.disk import MemoryDisk
from channels.devices.storage.logical_unit import Identity, LogicalUnit
from channels.devices.storage.negotiation import Negotiation
from channels.devices.storage.refused import Refused
from channels.protocol.gparange import GpaRange
from channels.protocol.packet import Packet, pack_gpa_direct, parse_packet
from channels.protocol.storage import (
    BlockCdb,
    Capacity,
    InquiryCdb,
    InquiryData,
    ModeSenseCdb,
    Opcode,
    Operation,
    ProtocolVersion,
    ReportLunsCdb,
    RequestSenseCdb,
    ScsiRequest,
    Sense,
    ServiceActionCdb,
    SubchannelCount,
    UnmapCdb,
    VstorPacket,
    inquiry,
    pack_luns,
    pack_unmap,
    parameters,
    parse_block_limits,
    parse_capacity,
    parse_inquiry,
    parse_luns,
    parse_mode,
    parse_page,
    parse_sense,
    parse_srb,
    parse_unmap,
)
from channels.protocol.storage.vstor import MAX_TRANSFER

from .script import Script

CDBS = (
    BlockCdb,
    InquiryCdb,
    ModeSenseCdb,
    ReportLunsCdb,
    RequestSenseCdb,
    ServiceActionCdb,
    UnmapCdb,
)
COMMANDS = (
    BlockCdb(Opcode.READ_6, 1, 1),
    BlockCdb(Opcode.WRITE_6, 1, 1),
    BlockCdb(Opcode.READ_10, 1, 2),
    BlockCdb(Opcode.WRITE_16, 3, 1, 8),
    BlockCdb(Opcode.VERIFY_12, 0, 8),
    BlockCdb(Opcode.SYNCHRONIZE_CACHE_10, 0, 0),
    InquiryCdb(96),
    InquiryCdb(96, 0xB0),
    ModeSenseCdb(192, 0x3F),
    ModeSenseCdb(192, 8, opcode=Opcode.MODE_SENSE_6),
    ReportLunsCdb(64),
    RequestSenseCdb(18),
    ServiceActionCdb(32),
    UnmapCdb(24),
)
_BLOCKS = 8


def storage_command(data: bytes) -> None:
    """A CDB, as each kind of command."""
    for kind in CDBS:
        try:
            command = kind.unpack(data)
        except ProtocolError:
            continue
        assert kind.unpack(command.pack()) == command


def storage_command_seeds() -> list[bytes]:
    """Each command."""
    return [command.pack() for command in COMMANDS]


def storage_data(data: bytes) -> None:
    """Bytes as everything that a disk may tell, or be told."""
    script = Script(data)
    rest = script.rest()
    for read in (parse_inquiry, parse_luns, parse_capacity, parse_sense, parse_block_limits, parse_unmap, parse_srb):
        try:
            read(rest)
        except ProtocolError:
            continue
    for opcode in (Opcode.MODE_SENSE_6, Opcode.MODE_SENSE_10):
        try:
            mode = parse_mode(rest, opcode)
        except ProtocolError:
            continue
        assert sum(map(len, mode.pages.values())) <= len(rest)
    for page in inquiry.VpdPage:
        try:
            assert len(parse_page(rest, page)) <= len(rest)
        except ProtocolError:
            continue


def storage_data_seeds() -> list[bytes]:
    """Each kind of data."""
    return [
        InquiryData("Msft", "Virtual Disk", "1.0").pack(),
        inquiry.supported_pages(),
        inquiry.BlockLimits(512, 1, 1, 1).pack(),
        pack_luns([0, 1, 255]),
        Capacity(8, 512).pack_10(),
        Capacity(8, 512).pack_16(),
        Sense(5, 0x24).pack(),
        pack_unmap([(0, 1), (3, 2)]),
        parameters.pack_mode(Opcode.MODE_SENSE_6, parameters.mode_pages(0x3F) or b"", 0x10),
        parameters.pack_mode(Opcode.MODE_SENSE_10, parameters.mode_pages(0x3F) or b"", 0x10),
        ScsiRequest().pack(),
    ]


def storage_guest(data: bytes) -> None:
    """A negotiation, packet after packet: operation, then a body of its own length. Then one request, as a ring has it."""
    script = Script(data)
    negotiation = Negotiation(4)
    for _ in range(script.number() % 8):
        before = negotiation.state
        try:
            status, _ = negotiation.answer(script.number(), script.text())
        except ProtocolError:
            continue
        assert status == 0 or negotiation.state is before
        assert negotiation.subchannels in (None, 0, 1, 2, 3, 4)
    _request(script.rest())


def _request(data: bytes) -> None:
    try:
        packet = parse_packet(data)
        request = parse_srb(VstorPacket.unpack(packet.payload).body)
    except ProtocolError:
        return
    with GuestMemory(1 << 16) as memory:
        disk = MemoryDisk(_BLOCKS * 512)
        _execute(memory, packet, request, LogicalUnit(disk, Identity("fuzz", 1)))
        assert len(disk.contents) == _BLOCKS * 512


def _execute(memory: GuestMemory, packet: Packet, request: ScsiRequest, unit: LogicalUnit) -> None:
    try:
        buffer = DataBuffer(memory, packet, request)
    except Refused:
        return
    running = unit.execute(request.payload[:16], buffer)
    moved = 0
    try:
        running.send(None)  # a disk in memory waits for nothing
    except StopIteration as end:
        moved = end.value
    except Refused:
        return
    assert 0 <= moved <= min(request.transfer_length, MAX_TRANSFER)


def storage_guest_seeds() -> list[bytes]:
    """A whole negotiation, and each command with and without data."""
    steps = [
        (Operation.BEGIN_INITIALIZATION, b""),
        (Operation.QUERY_PROTOCOL_VERSION, ProtocolVersion(0x0602).pack()),
        (Operation.QUERY_PROPERTIES, b""),
        (Operation.CREATE_SUBCHANNELS, SubchannelCount(2).pack()),
        (Operation.END_INITIALIZATION, b""),
    ]
    talk = bytes([len(steps)]) + b"".join(bytes((operation, len(body))) + body for operation, body in steps)
    seeds = []
    for command in COMMANDS:
        cdb = command.pack()
        for direction in (0, 1):
            request = ScsiRequest(
                cdb_length=len(cdb), direction=direction, transfer_length=4096, payload=cdb.ljust(20, b"\0")
            )
            packet = VstorPacket(Operation.EXECUTE_SRB, 1, body=request.pack()).pack()
            seeds.append(talk + pack_gpa_direct((GpaRange(4096, 8, (1, 3)),), packet, 1, True))
    return seeds
