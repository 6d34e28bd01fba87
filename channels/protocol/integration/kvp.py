"""Bodies of the key-value pair component that are about keys and values (vmbus.md 8.3, 8.12; IP information: `kvp_ip`).

Each starts with u8 operation and u8 pool. What follows them:

| operation | offset 4 | size |
|---|---|---|
| get, set | u32 value type, u32 key size, u32 value size, 512 bytes key, 2048 bytes value | 2576 |
| delete | u32 key size, 512 bytes key | 520 |
| enumerate | u32 index, then as in get | 2580 |

Keys and text values are UTF-16LE; sizes are bytes and count the NUL. A guest answers in place. Bodies are sent with 2580
bytes whatever they are about, zeros where nothing is said: Linux counts NULs that it does not write.

It will: read what is consistent, and say what is not. It will not: know which pool is whose.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Annotated
from uuid import UUID

import msgspec

from broker.errors import ProtocolError

from ..wire import At, Wire
from .common import IcVersion
from .text import pack_text, parse_text, text_size

KVP_INSTANCE = UUID("242ff919-07db-4180-9c2e-b86cb68c8c55")
"""The one that Hyper-V has."""
KVP_TEXT_IP = IcVersion(4, 0)
"""The version that brought IP information, as texts."""
KVP_BINARY_IP = IcVersion(5, 0)
"""The version from which it is binary."""
KVP_VERSIONS = (IcVersion(1, 0), IcVersion(3, 0), KVP_TEXT_IP, KVP_BINARY_IP)
"""Oldest first. Linux knows all but the last."""
KEY_AREA = 512
VALUE_AREA = 2048
KEYED_SIZE = 2580
"""Bytes of each body here, as it is sent."""

_NUMBERS = {4: struct.Struct("<I"), 8: struct.Struct("<Q"), 11: struct.Struct("<Q")}
"""By value type."""


class KvpOperation(IntEnum):
    """What a body asks for."""

    GET = 0
    SET = 1
    DELETE = 2
    ENUMERATE = 3
    GET_IP = 4
    SET_IP = 5


class KvpPool(IntEnum):
    """Where a pair is kept."""

    EXTERNAL = 0
    """What the host tells the guest."""
    GUEST = 1
    """What the guest's programs tell the host."""
    AUTO = 2
    """What the guest says about itself, see `WELL_KNOWN_KEYS`."""
    AUTO_EXTERNAL = 3
    """What the host says about itself."""
    AUTO_INTERNAL = 4
    """Linux has it as well."""


class KvpValueType(IntEnum):
    """What a value is. UINT64 is what hosts send, UINT64_LINUX is the one that Linux knows; both are read."""

    STRING = 1
    EXPAND_STRING = 2
    UINT32 = 4
    UINT64_LINUX = 8
    UINT64 = 11


WELL_KNOWN_KEYS = (
    "FullyQualifiedDomainName",
    "IntegrationServicesVersion",
    "NetworkAddressIPv4",
    "NetworkAddressIPv6",
    "OSBuildNumber",
    "OSName",
    "OSMajorVersion",
    "OSMinorVersion",
    "OSVersion",
    "ProcessorArchitecture",
)
"""What Linux has in `KvpPool.AUTO`, in the order in which it is enumerated."""


class KvpHeader(Wire, frozen=True):
    """The first bytes of every body."""

    operation: Annotated[int, At(0, "B", "what is asked for")]
    pool: Annotated[int, At(1, "B", "where the pair is kept")] = 0


class KvpExchange(KvpHeader, frozen=True):
    """Get and set, 2576 bytes."""

    value_type: Annotated[int, At(4, "I", "what the value is")] = 0
    key_size: Annotated[int, At(8, "I", "bytes, NUL included")] = 0
    value_size: Annotated[int, At(12, "I", "bytes, NUL included")] = 0
    key: Annotated[bytes, At(16, "512s", "UTF-16LE")] = b""
    value: Annotated[bytes, At(528, "2048s", "UTF-16LE, or a number")] = b""


class KvpDelete(KvpHeader, frozen=True):
    """Delete, 520 bytes."""

    key_size: Annotated[int, At(4, "I", "bytes, NUL included")] = 0
    key: Annotated[bytes, At(8, "512s", "UTF-16LE")] = b""


class KvpEnumerate(KvpHeader, frozen=True):
    """Enumerate, 2580 bytes."""

    index: Annotated[int, At(4, "I", "which pair, from 0")] = 0
    value_type: Annotated[int, At(8, "I", "what the value is")] = 0
    key_size: Annotated[int, At(12, "I", "bytes, NUL included")] = 0
    value_size: Annotated[int, At(16, "I", "bytes, NUL included")] = 0
    key: Annotated[bytes, At(20, "512s", "UTF-16LE")] = b""
    value: Annotated[bytes, At(532, "2048s", "UTF-16LE, or a number")] = b""


class KvpRecord(msgspec.Struct, frozen=True):
    """What such a body says. Which fields count depends on the operation; a request to get or enumerate has no value."""

    operation: int
    pool: int
    key: str = ""
    value: str | int = ""
    value_type: int = KvpValueType.STRING
    """Of the value; read only where there is one."""
    index: int = 0
    """Of an enumeration."""

    def pack(self) -> bytes:
        """The body, `KEYED_SIZE` bytes. `ValueError` for texts that do not fit, a value that is not of its type, and
        for operations that are not about keys."""
        key_size = text_size(self.key) if self.key else 0
        key = pack_text(self.key, KEY_AREA, "key")
        value = _pack_value(self.value, self.value_type)
        size = len(value)
        value = value.ljust(VALUE_AREA, b"\0")
        body: Wire
        if self.operation == KvpOperation.DELETE:
            body = KvpDelete(self.operation, self.pool, key_size, key)
        elif self.operation == KvpOperation.ENUMERATE:
            body = KvpEnumerate(self.operation, self.pool, self.index, self.value_type, key_size, size, key, value)
        elif self.operation in (KvpOperation.GET, KvpOperation.SET):
            body = KvpExchange(self.operation, self.pool, self.value_type, key_size, size, key, value)
        else:
            raise ValueError(f"operation {self.operation} is not about a key")
        return body.pack().ljust(KEYED_SIZE, b"\0")


def parse_record(body: bytes) -> KvpRecord:
    """Read a body about keys, request or answer.

    `ProtocolError` for another operation, bytes that are missing, a size beyond its area, a text that nothing ends or that
    is no UTF-16, a value that is not of its type.
    """
    operation = KvpHeader.unpack(body).operation
    if operation == KvpOperation.DELETE:
        gone = KvpDelete.unpack(body)
        return KvpRecord(operation, gone.pool, parse_text(gone.key, "key", 8, gone.key_size))
    if operation == KvpOperation.ENUMERATE:
        pair = KvpEnumerate.unpack(body)
        return KvpRecord(operation, pair.pool, *_parse_pair(pair, 20), pair.value_type, pair.index)
    if operation in (KvpOperation.GET, KvpOperation.SET):
        exchange = KvpExchange.unpack(body)
        return KvpRecord(operation, exchange.pool, *_parse_pair(exchange, 16), exchange.value_type)
    raise ProtocolError("key-value pair", 0, "an operation from 0 to 3", f"{operation}")


def _parse_pair(pair: KvpExchange | KvpEnumerate, offset: int) -> tuple[str, str | int]:
    """Key and value, whose areas start at `offset`."""
    key = parse_text(pair.key, "key", offset, pair.key_size)
    offset += KEY_AREA
    if pair.value_size == 0:
        return key, ""
    if pair.value_type in (KvpValueType.STRING, KvpValueType.EXPAND_STRING):
        return key, parse_text(pair.value, "value", offset, pair.value_size)
    number = _NUMBERS.get(pair.value_type)
    if number is None:
        raise ProtocolError("value", offset, "type 1, 2, 4, 8 or 11", f"{pair.value_type}")
    if pair.value_size != number.size:
        raise ProtocolError("value", offset, f"{number.size} bytes for type {pair.value_type}", f"{pair.value_size}")
    return key, int(number.unpack_from(pair.value)[0])


def _pack_value(value: str | int, value_type: int) -> bytes:
    """The bytes that count. An empty text has none: nothing was said."""
    if value == "":
        return b""
    if isinstance(value, str):
        if value_type not in (KvpValueType.STRING, KvpValueType.EXPAND_STRING):
            raise ValueError(f"value {value!r} is a text, type {value_type} is not")
        return pack_text(value, VALUE_AREA, "value")[: text_size(value)]
    number = _NUMBERS.get(value_type)
    if number is None or not 0 <= value < 1 << 8 * number.size:
        raise ValueError(f"value {value} is not a number of type {value_type}")
    return number.pack(value)
