"""Messages of keyboard and mouse: bytes as vmbus.md 8.6 and 8.7 have them, written by hand; report descriptors; scan codes."""

from __future__ import annotations

import string
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import ProtocolError
from channels.protocol.input import (
    LEFT_SHIFT,
    REPORT_DESCRIPTOR,
    STROKES,
    KeyboardLeds,
    KeyboardRequest,
    KeyboardResponse,
    KeyEvent,
    KeyFlags,
    Leds,
    MouseButton,
    MouseDeviceInfo,
    MouseDeviceInfoAck,
    MouseInputReport,
    MouseReport,
    MouseRequest,
    MouseResponse,
    ReportField,
    Stroke,
    Usage,
    parse_keyboard_guest,
    parse_keyboard_host,
    parse_mouse_guest,
    parse_mouse_host,
    parse_report_descriptor,
)
from channels.protocol.wire import Wire

DESCRIPTOR = bytes.fromhex(
    "05 01 09 02 a1 01 09 01 a1 00 05 09 19 01 29 05 15 00 25 01 95 05 75 01 81 02 95 01 75 03 81 01 05 01 09 30 09 31"
    "15 00 26 ff 7f 75 10 95 02 81 02 05 01 09 38 16 01 80 26 ff 7f 75 10 95 01 81 06 c0 c0"
)
"""As vmbus.md 8.7 has it."""
DEVICE_INFO = bytes.fromhex(
    "02000000 a9000000 20000000 5e04 2106 0100 00000000000000000000000000000000000000000000 09 21 0101 00 01 22 4300"
) + DESCRIPTOR.ljust(128, b"\0")
MESSAGES: list[tuple[Callable[[bytes], Wire], Wire, bytes]] = [
    (parse_keyboard_guest, KeyboardRequest(), bytes.fromhex("01000000 00000100")),
    (parse_keyboard_guest, KeyboardRequest(0x0BADF00D), bytes.fromhex("01000000 0df0ad0b")),
    (parse_keyboard_host, KeyboardResponse(1), bytes.fromhex("02000000 01000000")),
    (parse_keyboard_host, KeyEvent(0x1E), bytes.fromhex("03000000 1e00 0000 00000000")),
    (parse_keyboard_host, KeyEvent(0x4B, 2 | 4), bytes.fromhex("03000000 4b00 0000 06000000")),
    (parse_keyboard_guest, KeyboardLeds(5), bytes.fromhex("04000000 0500 0000")),
    (parse_mouse_guest, MouseRequest(), bytes.fromhex("00000000 04000000 00000200")),
    (parse_mouse_host, MouseResponse(0x20000, 1), bytes.fromhex("01000000 05000000 00000200 01")),
    (parse_mouse_host, MouseDeviceInfo(), DEVICE_INFO),
    (parse_mouse_guest, MouseDeviceInfoAck(), bytes.fromhex("03000000 01000000 00")),
    (
        parse_mouse_host,
        MouseInputReport(MouseReport(0x11, 1, 32767, -2).pack()),
        bytes.fromhex("04000000 07000000 11 0100 ff7f feff"),
    ),
]
each_message = pytest.mark.parametrize(
    ("parse", "message", "data"),
    MESSAGES,
    ids=[f"{type(message).__name__}-{n}" for n, (_, message, _) in enumerate(MESSAGES)],
)


@each_message
def test_a_message_has_these_bytes_and_they_are_read_back(
    parse: Callable[[bytes], Wire], message: Wire, data: bytes
) -> None:
    assert message.pack() == data
    assert parse(data) == message
    if not isinstance(message, MouseInputReport):  # whose length is its header's to say
        assert parse(data + bytes(7)) == message, "what pads a packet is ignored"


@each_message
def test_a_message_that_is_cut_short_is_refused(parse: Callable[[bytes], Wire], message: Wire, data: bytes) -> None:
    for end in range(len(data)):
        with pytest.raises(ProtocolError):
            parse(data[:end])


@pytest.mark.parametrize("number", [0, 5, 6, 0xFFFF_FFFF])
@pytest.mark.parametrize("parse", [parse_keyboard_guest, parse_keyboard_host])
def test_a_keyboard_message_of_another_type_is_refused(parse: Callable[[bytes], Wire], number: int) -> None:
    with pytest.raises(ProtocolError, match=f"got type {number:#x}"):
        parse(struct.pack("<III", number, 0, 0))


def test_what_the_other_side_says_is_refused() -> None:
    for parse, other, data in (
        (parse_keyboard_guest, parse_keyboard_host, MESSAGES[2][2]),
        (parse_keyboard_host, parse_keyboard_guest, MESSAGES[0][2]),
        (parse_mouse_guest, parse_mouse_host, MESSAGES[7][2]),
        (parse_mouse_host, parse_mouse_guest, MESSAGES[6][2]),
    ):
        other(data)
        with pytest.raises(ProtocolError, match="message: at offset 0 expected"):
            parse(data)


def test_a_keyboard_message_has_at_most_256_bytes() -> None:
    request = KeyboardRequest().pack()
    assert parse_keyboard_guest(request.ljust(256, b"\0")) == KeyboardRequest()
    with pytest.raises(ProtocolError, match="expected 4 to 256 bytes, got 264"):
        parse_keyboard_guest(request.ljust(264, b"\0"))


def test_a_mouse_message_whose_header_says_more_than_there_is_is_refused() -> None:
    with pytest.raises(ProtocolError, match="at offset 4 expected a body of up to 4 bytes, got 5"):
        parse_mouse_guest(struct.pack("<III", 0, 5, 0x20000))
    with pytest.raises(ProtocolError, match="MouseRequest"):
        parse_mouse_guest(struct.pack("<III", 0, 3, 0x20000))


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_a_protocol_error(data: bytes) -> None:
    for parse in (parse_keyboard_guest, parse_keyboard_host, parse_mouse_guest, parse_mouse_host):
        try:
            message = parse(data)
        except ProtocolError:
            continue
        assert parse(message.pack()) == message


def test_flags_have_their_bits() -> None:
    assert [*KeyFlags] == [1, 2, 4, 8]
    assert [*Leds] == [1, 2, 4]
    assert [*MouseButton] == [0, 1, 2, 3, 4]
    event = KeyEvent(0x4B, KeyFlags.E0 | KeyFlags.BREAK)
    assert (event.is_up, event.is_extended, event.is_unicode) == (True, True, False)
    with pytest.raises(ValueError, match="does not fit"):
        KeyEvent.of(0x10000)


# the device info


def test_the_device_info_has_a_body_of_169_bytes_with_the_67_byte_descriptor() -> None:
    assert len(DESCRIPTOR) == 67
    assert REPORT_DESCRIPTOR == DESCRIPTOR
    info = parse_mouse_host(DEVICE_INFO)
    assert len(DEVICE_INFO) == 8 + 169
    assert isinstance(info, MouseDeviceInfo)
    assert info.report_descriptor == DESCRIPTOR


@pytest.mark.parametrize(("offset", "value"), [(41, b"\x22"), (46, b"\x21"), (47, b"\x81\0"), (47, b"\xff\xff")])
def test_a_hid_descriptor_that_is_none_or_names_too_much_is_refused(offset: int, value: bytes) -> None:
    spoilt = parse_mouse_host(DEVICE_INFO[:offset] + value + DEVICE_INFO[offset + len(value) :])
    assert isinstance(spoilt, MouseDeviceInfo)
    with pytest.raises(ProtocolError, match="HID descriptor"):
        _ = spoilt.report_descriptor


# report descriptors


def test_the_mouse_reports_five_buttons_a_place_and_a_wheel_in_7_bytes() -> None:
    layout = parse_report_descriptor(DESCRIPTOR)
    assert layout.size == 7
    assert layout.fields == (
        *(ReportField(Usage.BUTTONS + 1 + number, number, 1, 0, 1, False) for number in range(5)),
        ReportField(Usage.X, 8, 16, 0, 32767, False),
        ReportField(Usage.Y, 24, 16, 0, 32767, False),
        ReportField(Usage.WHEEL, 40, 16, -32767, 32767, True),
    )


@given(st.integers(0, 31), st.integers(0, 32767), st.integers(0, 32767), st.integers(-32767, 32767))
def test_a_report_is_read_by_the_descriptor_as_it_was_packed(buttons: int, x: int, y: int, wheel: int) -> None:
    values = parse_report_descriptor(DESCRIPTOR).values(MouseReport(buttons, x, y, wheel).pack())
    assert sum(values.pop(Usage.BUTTONS + 1 + number) << number for number in range(5)) == buttons
    assert values == {Usage.X: x, Usage.Y: y, Usage.WHEEL: wheel}


def test_a_value_outside_its_limits_says_nothing() -> None:
    values = parse_report_descriptor(DESCRIPTOR).values(MouseReport(0, 32768, 5, -32768).pack())
    assert Usage.X not in values
    assert Usage.WHEEL not in values
    assert values[Usage.Y] == 5


def test_a_report_that_is_too_short_is_refused() -> None:
    with pytest.raises(ProtocolError, match="expected 7 bytes, got an end after 6"):
        parse_report_descriptor(DESCRIPTOR).values(bytes(6))


def test_arrays_constants_outputs_and_features_take_no_field() -> None:
    descriptor = bytes.fromhex("0501 0930 1500 257f 7508 9501 8100 8101 8103 9102 b102 0931 8102")
    layout = parse_report_descriptor(descriptor)
    assert layout.fields == (ReportField(Usage.Y, 24, 8, 0, 127, False),)
    assert layout.size == 4


def test_the_last_usage_is_for_all_fields_that_are_left_and_four_bytes_name_their_page() -> None:
    layout = parse_report_descriptor(bytes.fromhex("0509 0b30000100 0901 2501 7501 9504 8106"))
    assert [field.usage for field in layout.fields] == [Usage.X, *[Usage.BUTTONS + 1] * 3]
    assert all(field.is_relative for field in layout.fields)
    assert parse_report_descriptor(bytes.fromhex("2501 7501 9508 8102")).fields == ()


@pytest.mark.parametrize(
    ("descriptor", "sentence"),
    [
        ("0501 09", "at offset 2 expected 1 bytes of data, got an end after 0"),
        ("27ff", "expected 4 bytes of data"),
        ("c0", "expected a collection before its end"),
        ("a101", "expected an end of each collection, got 1 open ones"),
        ("2905", "expected a usage minimum before its maximum"),
        ("8501", "no long item, push, pop or report ID, got 0x84"),
        ("a4", "no long item, push, pop or report ID"),
        ("fe00 00", "no long item, push, pop or report ID"),
        ("7500 9501 8102", "expected fields of 1 to 32 bits, got 0"),
        ("7521 9501 8102", "expected fields of 1 to 32 bits, got 33"),
        ("7501 97ffffffff 8102", "expected a report of 256 bytes or less"),
        ("7508 960001 8102 8102", "expected a report of 256 bytes or less"),
    ],
)
def test_a_descriptor_that_breaks_a_rule_is_refused(descriptor: str, sentence: str) -> None:
    with pytest.raises(ProtocolError, match=sentence):
        parse_report_descriptor(bytes.fromhex(descriptor))


# scan codes


def test_each_printable_ascii_character_has_a_stroke_of_its_own() -> None:
    printable = [*string.ascii_letters, *string.digits, *string.punctuation, " ", "\n", "\t", "\b"]
    assert set(printable) <= STROKES.keys()
    assert len(set(STROKES.values())) == len(STROKES)
    assert not any(stroke.code == LEFT_SHIFT for stroke in STROKES.values())


@pytest.mark.parametrize(
    ("character", "code", "is_shifted"),
    [
        ("a", 0x1E, False), ("A", 0x1E, True), ("m", 0x32, False), ("1", 0x02, False), ("!", 0x02, True),
        ("0", 0x0B, False), ("=", 0x0D, False), ("\b", 0x0E, False), ("\t", 0x0F, False), ("]", 0x1B, False),
        ("\n", 0x1C, False), ("`", 0x29, False), ("\\", 0x2B, False), ("/", 0x35, False), (" ", 0x39, False),
        ("\x1b", 0x01, False),
    ],
)  # fmt: skip
def test_strokes_are_those_of_scan_code_set_1(character: str, code: int, is_shifted: bool) -> None:
    assert STROKES[character] == Stroke(code, is_shifted)
