"""Messages of the integration components byte for byte, as `reference/vmbus.md` 8.2 has them, and what breaks their rules."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import ProtocolError
from channels.protocol.integration.common import (
    FRAMEWORK_1,
    FRAMEWORK_3,
    FRAMEWORKS,
    MAX_BODY,
    MAX_IC_MESSAGE,
    NO_VERSION,
    IcFlags,
    IcHeader,
    IcMessageType,
    IcStatus,
    IcVersion,
    ic_status,
    pack_negotiate,
    pack_request,
    parse_ic,
    parse_negotiate,
)
from channels.protocol.integration.heartbeat import Heartbeat, HeartbeatState, heartbeat_state
from channels.protocol.integration.shutdown import (
    PLANNED,
    SHUTDOWN_SIZE,
    TEXT_SIZE,
    ShutdownFlags,
    ShutdownKind,
    ShutdownMessage,
)
from channels.protocol.integration.text import pack_text
from channels.protocol.integration.timesync import (
    TIME_SYNC_VERSIONS,
    UNIX_EPOCH,
    TimeSync,
    TimeSyncFlags,
    TimeSyncReference,
    pack_time_sync,
    time_sync_type,
)
from channels.protocol.packet import pack_pipe

GOLDEN_NEGOTIATE = bytes.fromhex(
    "01000000 2c000000  00000000 00000000 00001800 00000000 00030000  02000200 00000000 01000000 03000000 01000000 03000000"
)
"""8.2, with its pipe header: framework 1.0 and 3.0, message 1.0 and 3.0."""

versions = st.builds(IcVersion, st.integers(0, 0xFFFF), st.integers(0, 0xFFFF))


@pytest.mark.vmbus_item(106)
def test_a_negotiation_is_the_golden_one_byte_for_byte() -> None:
    body = pack_negotiate(FRAMEWORKS, (FRAMEWORK_1, FRAMEWORK_3))
    assert pack_pipe(pack_request(IcMessageType.NEGOTIATE, NO_VERSION, NO_VERSION, body)) == GOLDEN_NEGOTIATE
    header, found = parse_ic(GOLDEN_NEGOTIATE[8:])
    assert (header.message_type, header.flags, header.size) == (0, IcFlags.TRANSACTION | IcFlags.REQUEST, 24)
    assert parse_negotiate(found) == (FRAMEWORKS, (FRAMEWORK_1, FRAMEWORK_3))


def test_a_header_has_its_fields_where_they_belong() -> None:
    message = pack_request(7, IcVersion(0x0102, 0x0304), IcVersion(0x0506, 0x0708), b"body", 9, status=0x8007_0070)
    expected = struct.pack("<HHHHHHIBBH", 0x0102, 0x0304, 7, 0x0506, 0x0708, 4, 0x8007_0070, 9, 3, 0)
    assert message == expected + b"body"
    header, body = parse_ic(message + b"padding")
    assert body == b"body"
    assert (header.framework, header.version) == ((0x0102, 0x0304), (0x0506, 0x0708))
    assert header.pack() == expected


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (0, IcStatus.SUCCESS),
        (0x8000_4005, IcStatus.FAIL),
        (0x8007_0103, IcStatus.NO_MORE_ITEMS),
        (0x8007_0032, IcStatus.NOT_SUPPORTED),
        (0x8007_0057, IcStatus.INVALID_ARGUMENT),
        (0x8004_1002, IcStatus.NOT_FOUND),
        (0x8007_0050, IcStatus.ALREADY_EXISTS),
        (0x8007_0070, IcStatus.DISK_FULL),
        (0x8007_04F7, IcStatus.MACHINE_LOCKED),
        (0x8007_048F, IcStatus.NOT_CONNECTED),
    ],
)
def test_statuses_have_names(number: int, status: IcStatus) -> None:
    assert ic_status(number) is status


def test_numbers_without_a_name_are_kept() -> None:
    assert ic_status(0x1234) == 0x1234
    assert heartbeat_state(77) == 77
    assert heartbeat_state(2) is HeartbeatState.CRITICAL


@pytest.mark.parametrize("size", [0, 1, 19])
def test_a_message_that_ends_within_its_header_is_refused(size: int) -> None:
    with pytest.raises(ProtocolError, match=f"an end after {size}"):
        parse_ic(bytes(size))


def test_a_body_that_ends_beyond_its_packet_is_refused() -> None:
    message = pack_request(1, FRAMEWORK_3, FRAMEWORK_3, b"12345678")
    assert parse_ic(message)[1] == b"12345678"
    with pytest.raises(ProtocolError, match="at offset 10 expected a body of at most 7 bytes, got 8"):
        parse_ic(message[:-1])


def test_the_largest_message_has_13312_bytes() -> None:
    assert len(pack_request(1, FRAMEWORK_3, FRAMEWORK_3, bytes(MAX_BODY))) == MAX_IC_MESSAGE == 13312
    with pytest.raises(ValueError, match="13292 bytes, 13293 do not fit"):
        pack_request(1, FRAMEWORK_3, FRAMEWORK_3, bytes(MAX_BODY + 1))


@given(st.lists(versions, max_size=50), st.lists(versions, max_size=50), st.binary(max_size=9))
def test_lists_of_versions_come_back(frameworks: list[IcVersion], messages: list[IcVersion], rest: bytes) -> None:
    body = pack_negotiate(frameworks, messages)
    assert parse_negotiate(body + rest) == (tuple(frameworks), tuple(messages))
    if frameworks or messages:
        with pytest.raises(ProtocolError, match="versions, got an end after"):
            parse_negotiate(body[:-1])


@pytest.mark.parametrize(("frameworks", "messages"), [(101, 0), (0, 101), (50, 51), (0xFFFF, 0xFFFF)])
def test_more_than_100_versions_are_refused(frameworks: int, messages: int) -> None:
    with pytest.raises(ProtocolError, match="at most 100 versions"):
        parse_negotiate(struct.pack("<HHI", frameworks, messages, 0) + bytes(600))
    assert parse_negotiate(struct.pack("<HHI", 100, 0, 0) + bytes(400)) == ((NO_VERSION,) * 100, ())


def test_a_negotiation_without_its_counts_is_refused() -> None:
    with pytest.raises(ProtocolError, match="expected 8 bytes, got an end after 7"):
        parse_negotiate(bytes(7))


# heartbeat


def test_a_heartbeat_is_a_number_and_a_state() -> None:
    assert Heartbeat(0x1122, HeartbeatState.CRITICAL).pack() == struct.pack("<QI", 0x1122, 2)


# shutdown


def test_a_shutdown_has_2060_bytes() -> None:
    flags = ShutdownFlags.FORCE | ShutdownFlags.RESTART
    packed = ShutdownMessage(PLANNED, 30, flags, pack_text("Gute Nacht ☾", TEXT_SIZE, "message")).pack()
    text = "Gute Nacht ☾".encode("utf-16-le")
    assert packed == struct.pack("<III", 0x8000_0000, 30, 3) + text + bytes(2048 - len(text))
    assert len(packed) == SHUTDOWN_SIZE == 2060
    found = ShutdownMessage.unpack(packed)
    assert (found.kind, found.message) == (ShutdownKind.RESTART, "Gute Nacht ☾")


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        *((0, ShutdownKind.POWER_OFF), (1, ShutdownKind.POWER_OFF)),
        *((2, ShutdownKind.RESTART), (3, ShutdownKind.RESTART)),
        *((4, ShutdownKind.HIBERNATE), (5, ShutdownKind.HIBERNATE)),
        *((6, None), (7, None), (8, None), (0x8000_0000, None)),
    ],
)
def test_flags_of_a_shutdown_say_what_to_do(flags: int, kind: ShutdownKind | None) -> None:
    assert ShutdownMessage(0, 0, flags).kind is kind


def test_a_text_has_room_for_its_nul() -> None:
    assert len(pack_text("x" * 1023, TEXT_SIZE, "message")) == 2048
    assert pack_text("x" * 1023, TEXT_SIZE, "message").endswith(b"\0\0")
    for text in ("x" * 1024, "\N{CRESCENT MOON}" * 512):
        with pytest.raises(ValueError, match="message: 1023 UTF-16 code units fit, not 1024"):
            pack_text(text, TEXT_SIZE, "message")


@given(st.binary(min_size=2048, max_size=2048))
def test_any_text_of_a_peer_can_be_shown(text: bytes) -> None:
    assert "\0" not in ShutdownMessage(0, 0, 0, text).message


# time synchronisation


def test_a_time_before_4_0_has_28_bytes() -> None:
    packed = pack_time_sync(TimeSync(0x1111, 0x2222, 0x3333, TimeSyncFlags.SYNC))
    assert packed == struct.pack("<QQQB3x", 0x1111, 0x2222, 0x3333, 1)
    assert TimeSync.unpack(packed[:25]) == TimeSync.unpack(packed) == TimeSync(0x1111, 0x2222, 0x3333, 1)
    with pytest.raises(ProtocolError):
        TimeSync.unpack(packed[:24])


def test_a_time_of_4_0_has_24_bytes() -> None:
    packed = pack_time_sync(TimeSyncReference(0x1111, 0x2222, TimeSyncFlags.SAMPLE, 3, 15))
    assert packed == struct.pack("<QQBBB5x", 0x1111, 0x2222, 2, 3, 15)
    assert TimeSyncReference.unpack(packed[:22]) == TimeSyncReference(0x1111, 0x2222, 2, 3, 15)
    with pytest.raises(ProtocolError):
        TimeSyncReference.unpack(packed[:21])


def test_each_version_has_its_form() -> None:
    assert [time_sync_type(version) for version in TIME_SYNC_VERSIONS] == [TimeSync, TimeSync, TimeSyncReference]


def test_times_count_from_1601() -> None:
    assert UNIX_EPOCH == 0x019D_B1DE_D53E_8000


@given(st.binary(max_size=64))
def test_any_bytes_are_a_message_or_a_protocol_error(data: bytes) -> None:
    try:
        header, body = parse_ic(data)
    except ProtocolError:
        return
    assert IcHeader.unpack(header.pack()) == header
    assert header.pack() + body == data[: 20 + header.size]
