"""Bodies of file copies and snapshots lie where vmbus.md 8.4 and 8.5 put them, and are refused where they lie."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import ProtocolError
from channels.protocol.integration.file_copy import (
    CopyRequest,
    FileCopyFlags,
    FileCopyHeader,
    FileCopyOperation,
    FileCopyStart,
    FileCopyWrite,
    pack_start,
    pack_write,
    parse_start,
    parse_write,
)
from channels.protocol.integration.vss import VssMessage, VssOperation


def test_sizes_are_those_of_the_protocol() -> None:
    sizes = [kind.layout().size for kind in (VssMessage, FileCopyHeader, FileCopyStart, FileCopyWrite)]
    assert sizes == [12, 36, 1088, 52]
    assert len(pack_write(0, b"")) == 6196


def test_a_start_lies_where_it_should_and_is_zero_elsewhere() -> None:
    request = CopyRequest("näme", "/tmp", FileCopyFlags.OVERWRITE | FileCopyFlags.CREATE_PATH, 1 << 40)
    body = pack_start(request)
    expected = bytearray(1088)
    expected[36:44], expected[556:564] = "näme".encode("utf-16-le"), "/tmp".encode("utf-16-le")
    struct.pack_into("<IQ", expected, 1076, 3, 1 << 40)
    assert body == expected
    assert parse_start(body) == request


def test_a_write_lies_where_it_should_and_is_zero_elsewhere() -> None:
    body = pack_write(6144, b"data")
    expected = bytearray(6196)
    expected[0] = 1
    struct.pack_into("<QI4s", expected, 40, 6144, 4, b"data")
    assert body == expected
    assert parse_write(body) == (6144, b"data")
    assert parse_write(pack_write(0, memoryview(bytes(range(256)) * 24))) == (0, bytes(range(256)) * 24)


def test_the_others_are_a_header_alone() -> None:
    assert FileCopyHeader(FileCopyOperation.COMPLETE).pack() == b"\x02" + bytes(35)
    assert FileCopyHeader(FileCopyOperation.CANCEL).pack() == b"\x03" + bytes(35)


def test_a_snapshot_message_is_an_operation_and_flags() -> None:
    assert VssMessage(VssOperation.QUERY_CLUSTER_INFO, 5).pack() == b"\x08" + bytes(7) + b"\x05\0\0\0"
    with pytest.raises(ProtocolError, match="12 bytes, got an end after 11"):
        VssMessage.unpack(bytes(11))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: pack_start(CopyRequest("n" * 260, "", FileCopyFlags(0), 0)), "file name: 259 UTF-16 code units fit"),
        (lambda: pack_start(CopyRequest("n", "p" * 260, FileCopyFlags(0), 0)), "path: 259 UTF-16 code units fit"),
        (lambda: pack_start(CopyRequest("n", "p", FileCopyFlags(0), 1 << 64)), "does not fit its field"),
        (lambda: pack_write(0, bytes(6145)), "a write takes 6144 bytes, not 6145"),
    ],
)
def test_what_does_not_fit_is_not_sent(make: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()


@pytest.mark.parametrize(
    ("at", "raw", "sentence"),
    [
        (36, b"\0\0", "expected a name, got none"),
        (36, b"n\0" * 260, "a NUL within 520 bytes"),
        (556, b"n\0" * 260, "a NUL within 520 bytes"),
        (556, b"\x00\xd8x\0", "expected UTF-16"),
    ],
)
def test_a_start_that_lies_is_refused(at: int, raw: bytes, sentence: str) -> None:
    body = bytearray(pack_start(CopyRequest("name", "path", FileCopyFlags(0), 0)))
    body[at : at + len(raw)] = raw
    with pytest.raises(ProtocolError, match=sentence):
        parse_start(bytes(body))


def test_a_write_that_says_more_than_it_has_is_refused() -> None:
    body = bytearray(pack_write(0, bytes(6144)))
    struct.pack_into("<I", body, 48, 6145)
    with pytest.raises(ProtocolError, match="at most 6144 bytes, got 6145"):
        parse_write(bytes(body) + bytes(100))
    struct.pack_into("<I", body, 48, 101)
    with pytest.raises(ProtocolError, match="at most 100 bytes, got 101"):
        parse_write(bytes(body[:152]))
    assert parse_write(bytes(body[:153])) == (0, bytes(101))


@given(st.binary(max_size=200), st.sampled_from([parse_start, parse_write]))
def test_whatever_a_peer_writes_is_read_or_refused(start: bytes, parse: Callable[[bytes], object]) -> None:
    for body in (start, start.ljust(6196, b"\0"), start.ljust(1088, b"\xff")):
        try:
            parse(body)
        except ProtocolError:
            continue
