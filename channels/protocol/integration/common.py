"""What all integration components share: the header of their messages, and the negotiation (vmbus.md 8.2, 8.12).

The host asks, the guest answers with the same bytes, changed in place. Each message is one packet of a message pipe:

| offset | size | what |
|---|---|---|
| 0 | 20 | `IcHeader` |
| 20 | size | body; what follows it is padding |

Body of a negotiation:

| offset | size | what |
|---|---|---|
| 0 | 2 | count of framework versions |
| 2 | 2 | count of message versions |
| 4 | 4 | 0 |
| 8 | 4 each | framework versions, then message versions: u16 major, u16 minor |

The host sends what it knows, oldest first. The guest answers with counts 1 and 1 and its choice, or with counts 0 and 0
when it knows none of them; then the versions are leftovers.

It will: check sizes and counts. It will not: know what a component's body means.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum, IntFlag
from typing import Annotated, NamedTuple

from broker.errors import ProtocolError

from ..wire import At, Wire

MAX_IC_MESSAGE = 13312
"""Bytes of a message, header included."""
MAX_VERSIONS = 100
"""Versions that a negotiation may list, of both kinds together."""
NEGOTIATED_SIZE = 0x10
"""The body of a guest's answer to a negotiation: counts and two versions."""

_COUNTS = struct.Struct("<HHI")
_VERSION = struct.Struct("<HH")


class IcVersion(NamedTuple):
    """A framework version, or a component's message version."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


FRAMEWORK_1 = IcVersion(1, 0)
FRAMEWORK_3 = IcVersion(3, 0)
FRAMEWORKS = (FRAMEWORK_1, FRAMEWORK_3)
"""All that there are, oldest first."""
NO_VERSION = IcVersion(0, 0)
"""In the header of a negotiation."""


class IcMessageType(IntEnum):
    """What a message is about."""

    NEGOTIATE = 0
    HEARTBEAT = 1
    KEY_VALUE_PAIRS = 2
    SHUTDOWN = 3
    TIME_SYNC = 4
    VOLUME_SNAPSHOT = 5
    REMOTE_DESKTOP = 6
    FILE_COPY = 7
    VM_SESSION = 8


class IcFlags(IntFlag):
    """Which way a message goes. Unknown bits are kept."""

    TRANSACTION = 1
    REQUEST = 2
    RESPONSE = 4


REQUEST_FLAGS = IcFlags.TRANSACTION | IcFlags.REQUEST
RESPONSE_FLAGS = IcFlags.TRANSACTION | IcFlags.RESPONSE


class IcStatus(IntEnum):
    """How a request ended (HRESULTs). Other numbers are kept as they come."""

    SUCCESS = 0
    FAIL = 0x8000_4005
    NOT_FOUND = 0x8004_1002
    NOT_SUPPORTED = 0x8007_0032
    ALREADY_EXISTS = 0x8007_0050
    INVALID_ARGUMENT = 0x8007_0057
    DISK_FULL = 0x8007_0070
    NO_MORE_ITEMS = 0x8007_0103
    NOT_CONNECTED = 0x8007_048F
    MACHINE_LOCKED = 0x8007_04F7


class IcHeader(Wire, frozen=True):
    """The first 20 bytes of a message."""

    framework_major: Annotated[int, At(0, "H", "framework version, major")] = 0
    framework_minor: Annotated[int, At(2, "H", "framework version, minor")] = 0
    message_type: Annotated[int, At(4, "H", "what the message is about")] = 0
    version_major: Annotated[int, At(6, "H", "message version, major")] = 0
    version_minor: Annotated[int, At(8, "H", "message version, minor")] = 0
    size: Annotated[int, At(10, "H", "bytes of the body")] = 0
    status: Annotated[int, At(12, "I", "of a response; 0 in requests")] = 0
    transaction_id: Annotated[int, At(16, "B", "repeated by the response")] = 0
    flags: Annotated[int, At(17, "B", "1 transaction, 2 request, 4 response")] = 0
    reserved: Annotated[int, At(18, "H", "0")] = 0

    @property
    def framework(self) -> IcVersion:
        """The framework version."""
        return IcVersion(self.framework_major, self.framework_minor)

    @property
    def version(self) -> IcVersion:
        """The message version."""
        return IcVersion(self.version_major, self.version_minor)


HEADER_SIZE = IcHeader.layout().size
MAX_BODY = MAX_IC_MESSAGE - HEADER_SIZE


def pack_request(
    message_type: int,
    framework: IcVersion,
    message_version: IcVersion,
    body: bytes,
    transaction_id: int = 0,
    flags: int = REQUEST_FLAGS,
    *,
    status: int = 0,
) -> bytes:
    """A message. `ValueError` for more than `MAX_BODY` bytes, and for a number that does not fit its field."""
    if len(body) > MAX_BODY:
        raise ValueError(f"an integration message holds {MAX_BODY} bytes, {len(body)} do not fit")
    header = IcHeader(*framework, message_type, *message_version, len(body), status, transaction_id, flags)
    return header.pack() + body


def parse_ic(data: bytes) -> tuple[IcHeader, bytes]:
    """Header and body of a message; padding after the body is left out. `ProtocolError` when it ends too early."""
    header = IcHeader.unpack(data)
    room = len(data) - HEADER_SIZE
    if header.size > room:
        raise ProtocolError("integration message", 10, f"a body of at most {room} bytes", f"{header.size}")
    return header, data[HEADER_SIZE : HEADER_SIZE + header.size]


def ic_status(number: int) -> IcStatus | int:
    """The status with its name, where it has one."""
    try:
        return IcStatus(number)
    except ValueError:
        return number


def pack_negotiate(frameworks: Sequence[IcVersion], messages: Sequence[IcVersion]) -> bytes:
    """The body of a negotiation with these versions."""
    counts = _COUNTS.pack(len(frameworks), len(messages), 0)
    return counts + b"".join(_VERSION.pack(*version) for version in (*frameworks, *messages))


def parse_negotiate(body: bytes) -> tuple[tuple[IcVersion, ...], tuple[IcVersion, ...]]:
    """Framework versions and message versions. `ProtocolError` for more than `MAX_VERSIONS`, and when some are missing."""
    what = "integration negotiation"
    if len(body) < _COUNTS.size:
        raise ProtocolError(what, len(body), f"{_COUNTS.size} bytes", f"an end after {len(body)}")
    frameworks, messages, _ = _COUNTS.unpack_from(body)
    total = frameworks + messages
    if total > MAX_VERSIONS:
        raise ProtocolError(what, 0, f"at most {MAX_VERSIONS} versions", f"{total}")
    end = _COUNTS.size + _VERSION.size * total
    if end > len(body):
        raise ProtocolError(what, len(body), f"{total} versions", f"an end after {len(body)} bytes")
    versions = tuple(IcVersion(*pair) for pair in _VERSION.iter_unpack(body[_COUNTS.size : end]))
    return versions[:frameworks], versions[frameworks:]
