"""Storage: packets of storvsp (`vstor`, `srb`) and the SCSI that they carry (`cdb`, `sense`, `inquiry`, `parameters`).

Values only: nothing here waits or keeps state. Numbers of storvsp are little-endian, those of SCSI big-endian.
"""

from .cdb import (
    BlockCdb,
    InquiryCdb,
    ModeSenseCdb,
    Opcode,
    ReportLunsCdb,
    RequestSenseCdb,
    ServiceActionCdb,
    SimpleCdb,
    UnmapCdb,
    cdb_size,
)
from .inquiry import BlockLimits, InquiryData, VpdPage, parse_block_limits, parse_inquiry, parse_page
from .parameters import (
    Capacity,
    ModeData,
    ModePage,
    pack_luns,
    pack_unmap,
    parse_capacity,
    parse_luns,
    parse_mode,
    parse_unmap,
)
from .sense import Sense, SenseKey, parse_sense
from .srb import DataDirection, ScsiRequest, ScsiStatus, SrbFlags, SrbStatus, nt_status_of, parse_srb
from .vstor import (
    MAX_TRANSFER,
    ChannelProperties,
    NtStatus,
    Operation,
    PropertyFlags,
    ProtocolVersion,
    StorageVersion,
    SubchannelCount,
    VstorPacket,
)

__all__ = [
    "MAX_TRANSFER",
    "BlockCdb",
    "BlockLimits",
    "Capacity",
    "ChannelProperties",
    "DataDirection",
    "InquiryCdb",
    "InquiryData",
    "ModeData",
    "ModePage",
    "ModeSenseCdb",
    "NtStatus",
    "Opcode",
    "Operation",
    "PropertyFlags",
    "ProtocolVersion",
    "ReportLunsCdb",
    "RequestSenseCdb",
    "ScsiRequest",
    "ScsiStatus",
    "Sense",
    "SenseKey",
    "ServiceActionCdb",
    "SimpleCdb",
    "SrbFlags",
    "SrbStatus",
    "StorageVersion",
    "SubchannelCount",
    "UnmapCdb",
    "VpdPage",
    "VstorPacket",
    "cdb_size",
    "nt_status_of",
    "pack_luns",
    "pack_unmap",
    "parse_block_limits",
    "parse_capacity",
    "parse_inquiry",
    "parse_luns",
    "parse_mode",
    "parse_page",
    "parse_sense",
    "parse_srb",
    "parse_unmap",
]
