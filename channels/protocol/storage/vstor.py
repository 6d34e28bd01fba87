"""Packets of storvsp, the storage protocol of VMBus (Linux `storvsc_drv.c`, OpenVMM `storvsp/src/protocol.rs`).

A packet, little-endian, is 64 bytes, or 48 before Windows 8 (versions below 5.1):

| offset | size | field |
|---|---|---|
| 0 | 4 | operation, see `Operation` |
| 4 | 4 | flags, bit 0: a completion is wanted (the ring packet's own flag is what counts) |
| 8 | 4 | status, see `NtStatus`; of answers |
| 12 | 52 or 36 | body: version, properties, count of sub-channels, SCSI request (`srb.py`); then zeros |

A guest sends each with the ring's completion flag, as in-band data or, where a SCSI request has data, as a GPA-direct packet.
The host answers with a completion whose payload is a packet of operation COMPLETE_IO, as long as the request was.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Annotated, ClassVar

from ..wire import TAIL, At, Wire

HEADER_SIZE = 12
PACKET_SIZE = 64
OLD_PACKET_SIZE = 48
"""Of packets before Windows 8."""
MAX_TRANSFER = 0x40000
"""Bytes of data that one request moves at most, as hosts say in their properties."""


class Operation(IntEnum):
    """What a packet is about. REMOVE_DEVICE, ENUMERATE_BUS and EVENT_NOTIFICATION are notices of the host, without answers."""

    COMPLETE_IO = 1
    REMOVE_DEVICE = 2
    EXECUTE_SRB = 3
    RESET_LUN = 4
    RESET_ADAPTER = 5
    RESET_BUS = 6
    BEGIN_INITIALIZATION = 7
    END_INITIALIZATION = 8
    QUERY_PROTOCOL_VERSION = 9
    QUERY_PROPERTIES = 10
    ENUMERATE_BUS = 11
    FIBRE_CHANNEL_HBA_DATA = 12
    CREATE_SUBCHANNELS = 13
    EVENT_NOTIFICATION = 14


class NtStatus(IntEnum):
    """Statuses of answers that storvsp gives."""

    SUCCESS = 0
    BUFFER_OVERFLOW = 0x8000_0005
    """A request's buffer does not hold the data."""
    DEVICE_BUSY = 0x8000_0011
    UNSUCCESSFUL = 0xC000_0001
    INVALID_PARAMETER = 0xC000_000D
    """More sub-channels than there may be, or asked for twice."""
    INVALID_DEVICE_REQUEST = 0xC000_0010
    REVISION_MISMATCH = 0xC000_0059
    """The host does not know this version; the guest asks for an older one."""
    DEVICE_NOT_CONNECTED = 0xC000_009D
    IO_TIMEOUT = 0xC000_00B5
    DEVICE_DOES_NOT_EXIST = 0xC000_00C0
    """No such LUN."""
    CANCELLED = 0xC000_0120
    INVALID_DEVICE_STATE = 0xC000_0184
    """The packet is not due now."""
    IO_DEVICE_ERROR = 0xC000_0185
    """A SCSI request failed; its SRB status, SCSI status and sense say why."""


class StorageVersion(IntEnum):
    """Versions, `major << 8 | minor`, by the Windows that brought them."""

    WIN6 = 0x0200
    WIN7 = 0x0402
    WIN8 = 0x0501
    WIN8_1 = 0x0600
    WIN10 = 0x0602

    @property
    def label(self) -> str:
        """As people write it: "6.2"."""
        return f"{self >> 8}.{self & 0xFF}"

    @property
    def packet_size(self) -> int:
        """Bytes of a packet."""
        return OLD_PACKET_SIZE if self < StorageVersion.WIN8 else PACKET_SIZE

    @property
    def has_subchannels(self) -> bool:
        """Sub-channels may be asked for (from 5.1)."""
        return self >= StorageVersion.WIN8


VERSIONS = {version.value: version for version in StorageVersion}


class PropertyFlags(IntFlag):
    """Flags of `ChannelProperties`."""

    MULTI_CHANNEL = 1


class VstorPacket(Wire, frozen=True):
    """A packet, whose body is all that follows the header."""

    operation: Annotated[int, At(0, "I", "operation")]
    flags: Annotated[int, At(4, "I", "bit 0: completion wanted")] = 0
    status: Annotated[int, At(8, "I", "NT status")] = NtStatus.SUCCESS
    body: Annotated[bytes, At(HEADER_SIZE, TAIL, "body")] = b""

    def pack_to(self, size: int) -> bytes:
        """The packet in exactly so many bytes: zeros follow the body, or its end is left out."""
        return self.pack()[:size].ljust(size, b"\0")


class ProtocolVersion(Wire, frozen=True):
    """Body of QUERY_PROTOCOL_VERSION and of its answer, 4 bytes."""

    version: Annotated[int, At(0, "H", "major << 8 | minor")]
    revision: Annotated[int, At(2, "H", "0")] = 0


class ChannelProperties(Wire, frozen=True):
    """Body of the answer to QUERY_PROPERTIES, 24 bytes. Linux opens its channels with a zeroed one as user data."""

    LEAST_SIZE: ClassVar[int] = 24

    max_subchannels: Annotated[int, At(4, "H", "sub-channels that may be asked for")] = 0
    flags: Annotated[int, At(8, "I", "bit 0: sub-channels are supported")] = 0
    max_transfer: Annotated[int, At(12, "I", "bytes that one request moves at most")] = 0


class SubchannelCount(Wire, frozen=True):
    """Body of CREATE_SUBCHANNELS, 2 bytes."""

    count: Annotated[int, At(0, "H", "sub-channels to offer")]
