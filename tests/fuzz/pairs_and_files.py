"""Targets that decode bodies of key-value pairs, snapshots and file copies."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address, ip_interface

from broker.errors import ProtocolError
from channels.protocol.integration.file_copy import (
    CopyRequest,
    FileCopyFlags,
    FileCopyHeader,
    FileCopyOperation,
    pack_start,
    pack_write,
    parse_start,
    parse_write,
)
from channels.protocol.integration.kvp import KEYED_SIZE, KvpOperation, KvpPool, KvpRecord, parse_record
from channels.protocol.integration.kvp_ip import (
    IpFamily,
    IpInfo,
    pack_ip_binary,
    pack_ip_text,
    parse_ip_binary,
    parse_ip_text,
)
from channels.protocol.integration.text import pack_text, parse_text
from channels.protocol.integration.vss import VssMessage, VssOperation

LONGEST = 7428 + 16
"""Bytes of an input: the largest body and some."""

_INFO = IpInfo(
    "00:15:5D:00:00:01",
    IpFamily.BOTH,
    True,
    (ip_interface("10.1.2.3/20"), ip_interface("fe80::7/64")),
    (ip_address("10.1.2.254"), ip_address("fe80::1")),
    (ip_address("9.9.9.9"), ip_address("2001:db8::53")),
)


def text(data: bytes) -> None:
    """Byte 0: how much of the area counts, in units, or all. Then the area."""
    size, area = 2 * data[0] if data[:1].strip(b"\xff") else None, data[1:]
    try:
        found = parse_text(area, "text", 0, size)
    except ProtocolError:
        return
    assert "\0" not in found
    again = pack_text(found, len(area) + 2, "text")
    assert parse_text(again, "text", 0) == found
    assert not found or area.startswith(again.rstrip(b"\0"))


def text_seeds() -> list[bytes]:
    """Some that end and some that do not."""
    areas = [pack_text(words, 24, "text") for words in ("", "word", "Āā", "😀")] + [
        b"\0A\0\0\0\0",
        b"A\0B\0",
        b"\x3d\xd8",
    ]
    return [bytes((size,)) + area for area in areas for size in (0, 2, 5, 0xFF)]


def pair(data: bytes) -> None:
    """A body about a key."""
    try:
        found = parse_record(data)
    except ProtocolError:
        return
    packed = found.pack()
    assert len(packed) == KEYED_SIZE
    assert parse_record(packed) == found


def pair_seeds() -> list[bytes]:
    """Each operation with each type of value."""
    values: list[tuple[str | int, int]] = [("", 1), ("value", 1), ("%PATH%", 2), (7, 4), (1 << 40, 8), (1 << 63, 11)]
    return [
        KvpRecord(operation, KvpPool.GUEST, "key", value, kind, 3).pack()
        for operation in (KvpOperation.GET, KvpOperation.SET, KvpOperation.DELETE, KvpOperation.ENUMERATE)
        for value, kind in values
    ]


def ip_text(data: bytes) -> None:
    """IP information in the form of 4.0."""
    _ip(data, pack_ip_text, parse_ip_text)


def ip_binary(data: bytes) -> None:
    """IP information in the form of 5.0."""
    _ip(data, pack_ip_binary, parse_ip_binary)


def _ip(data: bytes, pack: Callable[[int, IpInfo], bytes], parse: Callable[[bytes], IpInfo]) -> None:
    try:
        found = parse(data)
    except ProtocolError:
        return
    try:
        packed = pack(data[0], found)
    except ValueError:  # a text may become longer: a mask that was a number, an address that was written shorter
        assert pack is pack_ip_text
        return
    assert parse(packed) == found


def ip_text_seeds() -> list[bytes]:
    """One with everything, one with nothing."""
    return [pack_ip_text(5, _INFO), pack_ip_text(4, IpInfo("{guid}", IpFamily.NONE))]


def ip_binary_seeds() -> list[bytes]:
    """One with everything, one with nothing."""
    return [pack_ip_binary(5, _INFO), pack_ip_binary(4, IpInfo("{guid}", IpFamily.NONE))]


def file_copy(data: bytes) -> None:
    """A body of a file copy, by its operation."""
    try:
        header = FileCopyHeader.unpack(data)
        assert header.pack() == data[:36]
        if header.operation == FileCopyOperation.START:
            request = parse_start(data)
            assert request.name
            assert parse_start(pack_start(request)) == request
        elif header.operation == FileCopyOperation.WRITE:
            offset, content = parse_write(data)
            assert parse_write(pack_write(offset, content)) == (offset, content)
    except ProtocolError:
        return


def file_copy_seeds() -> list[bytes]:
    """One of each."""
    start = pack_start(CopyRequest("name", "C:\\path", FileCopyFlags(3), 1 << 33))
    writes = [pack_write(6144, bytes(6144)), pack_write(0, b"data"), pack_write(0, b"data")[:60]]
    return [start, *writes, *(FileCopyHeader(operation).pack() for operation in (2, 3, 4))]


def snapshot(data: bytes) -> None:
    """A body of a snapshot."""
    try:
        found = VssMessage.unpack(data)
    except ProtocolError:
        assert len(data) < 12
        return
    assert VssMessage.unpack(found.pack()) == found


def snapshot_seeds() -> list[bytes]:
    """One of each."""
    return [VssMessage(operation, 5).pack() for operation in VssOperation]
