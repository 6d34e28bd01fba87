"""Bodies of the file copy component, also called guest services (vmbus.md 8.5). The host copies a file into the guest.

Start, writes of up to 6144 bytes, complete; or cancel. Each is answered with itself and a status. All begin with a header
of 36 bytes: u32 operation and two GUIDs. Name and path are UTF-16LE.

It will: check texts and sizes. It will not: know which offsets were written.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Annotated
from uuid import UUID

import msgspec

from broker.errors import ProtocolError

from ..wire import NO_GUID, At, Wire
from .common import IcVersion
from .text import pack_text, parse_text

FILE_COPY_INSTANCE = UUID("eb765408-105f-49b6-b4aa-c123b64d17d4")
"""The one that Hyper-V has."""
FILE_COPY_VERSIONS = (IcVersion(1, 1),)
"""Linux knows it with framework 3.0 only."""
DATA_SIZE = 6144
"""Bytes that a write takes at most."""
NAME_AREA = 520
"""Bytes of the areas for the file's name and its directory: 259 code units and a NUL."""


class FileCopyOperation(IntEnum):
    """What a body is."""

    START = 0
    WRITE = 1
    COMPLETE = 2
    CANCEL = 3


class FileCopyFlags(IntFlag):
    """Of a start. Unknown bits are kept."""

    OVERWRITE = 1
    """The file may be there already."""
    CREATE_PATH = 2
    """Its directory need not be."""


class FileCopyHeader(Wire, frozen=True):
    """The first 36 bytes of each body; complete and cancel have no more."""

    operation: Annotated[int, At(0, "I", "what this is")]
    service_id0: Annotated[UUID, At(4, "guid", "not used")] = NO_GUID
    service_id1: Annotated[UUID, At(20, "guid", "not used")] = NO_GUID


class FileCopyStart(FileCopyHeader, frozen=True):
    """Start, 1088 bytes."""

    name_area: Annotated[bytes, At(36, "520s", "name of the file, UTF-16LE")] = b""
    path_area: Annotated[bytes, At(556, "520s", "its directory, UTF-16LE")] = b""
    flags: Annotated[int, At(1076, "I", "1 overwrite, 2 create path")] = 0
    size: Annotated[int, At(1080, "Q", "bytes of the file")] = 0


class FileCopyWrite(FileCopyHeader, frozen=True):
    """Write, 6196 bytes: 52 and `DATA_SIZE`, of which `size` count."""

    offset: Annotated[int, At(40, "Q", "where the bytes go")] = 0
    size: Annotated[int, At(48, "I", "bytes that count")] = 0
    area: Annotated[bytes, At(52, "*", "bytes of the file")] = b""


class CopyRequest(msgspec.Struct, frozen=True):
    """What a start says."""

    name: str
    path: str
    flags: FileCopyFlags
    size: int
    """Bytes of the file."""


def pack_start(request: CopyRequest) -> bytes:
    """The body of a start. `ValueError` when name or path do not fit."""
    return FileCopyStart(
        FileCopyOperation.START,
        name_area=pack_text(request.name, NAME_AREA, "file name"),
        path_area=pack_text(request.path, NAME_AREA, "path"),
        flags=request.flags,
        size=request.size,
    ).pack()


def parse_start(body: bytes) -> CopyRequest:
    """Read a start. `ProtocolError` for bytes that are missing, a text that nothing ends, a file without a name."""
    raw = FileCopyStart.unpack(body)
    name = parse_text(raw.name_area, "file name", 36)
    if not name:
        raise ProtocolError("file name", 36, "a name", "none")
    return CopyRequest(name, parse_text(raw.path_area, "path", 556), FileCopyFlags(raw.flags), raw.size)


def pack_write(offset: int, data: bytes | memoryview) -> bytes:
    """The body of a write of these bytes, `DATA_SIZE` at most (`ValueError`)."""
    if len(data) > DATA_SIZE:
        raise ValueError(f"a write takes {DATA_SIZE} bytes, not {len(data)}")
    area = bytes(data) if len(data) == DATA_SIZE else bytes(data).ljust(DATA_SIZE, b"\0")
    return FileCopyWrite(FileCopyOperation.WRITE, offset=offset, size=len(data), area=area).pack()


def parse_write(body: bytes) -> tuple[int, bytes]:
    """Offset and bytes of a write. `ProtocolError` when it says more bytes than fit, or has."""
    raw = FileCopyWrite.unpack(body)
    most = min(DATA_SIZE, len(raw.area))
    if raw.size > most:
        raise ProtocolError("file copy write", 48, f"at most {most} bytes", f"{raw.size}")
    return raw.offset, raw.area if raw.size == len(raw.area) else raw.area[: raw.size]
