"""Targets of keyboard and mouse: messages from either side, report descriptors, reports."""

from __future__ import annotations

from collections.abc import Callable

from broker.errors import ProtocolError
from channels.protocol.input import (
    REPORT_DESCRIPTOR,
    KeyboardLeds,
    KeyboardRequest,
    KeyboardResponse,
    KeyEvent,
    MouseDeviceInfo,
    MouseDeviceInfoAck,
    MouseInputReport,
    MouseReport,
    MouseRequest,
    MouseResponse,
    parse_keyboard_guest,
    parse_keyboard_host,
    parse_mouse_guest,
    parse_mouse_host,
    parse_report_descriptor,
)
from channels.protocol.input.hid import MAX_REPORT
from channels.protocol.wire import Wire


def keyboard(data: bytes) -> None:
    """A message of the keyboard, as either side takes it."""
    for parse in (parse_keyboard_guest, parse_keyboard_host):
        _decoded(parse, data)


def keyboard_seeds() -> list[bytes]:
    """One of each type."""
    return [message.pack() for message in (KeyboardRequest(), KeyboardResponse(1), KeyEvent(0x1E, 2), KeyboardLeds(7))]


def mouse(data: bytes) -> None:
    """A message of the mouse, as either side takes it; a report descriptor in it is read."""
    _decoded(parse_mouse_guest, data)
    message = _decoded(parse_mouse_host, data)
    if isinstance(message, MouseDeviceInfo):
        try:
            descriptor = message.report_descriptor
        except ProtocolError:
            return
        assert len(descriptor) == message.report_length
        hid_report(descriptor)


def mouse_seeds() -> list[bytes]:
    """One of each type."""
    report = MouseInputReport(MouseReport(1, 2, 3, -4).pack())
    messages = (MouseRequest(), MouseResponse(0x20000, 1), MouseDeviceInfo(), MouseDeviceInfoAck(), report)
    return [message.pack() for message in messages]


def hid_report(data: bytes) -> None:
    """A report descriptor; reports of all zeros and all ones are read by it."""
    try:
        layout = parse_report_descriptor(data)
    except ProtocolError:
        return
    assert 0 <= layout.size <= MAX_REPORT
    usages = {field.usage for field in layout.fields}
    for fill in (0, 0xFF):
        assert layout.values(bytes([fill]) * layout.size).keys() <= usages
    for field in layout.fields:
        assert field.offset + field.size <= 8 * layout.size


def hid_report_seeds() -> list[bytes]:
    """The mouse's, and one with each kind of item."""
    return [
        REPORT_DESCRIPTOR,
        bytes.fromhex(
            "0501 0930 1581 257f 7508 9501 8102 8101 8100 9102 b102 a100 0b31000100 0509 1901 2903 2501 7501 9505 8106 c0"
        ),
    ]


def _decoded(parse: Callable[[bytes], Wire], data: bytes) -> Wire | None:
    try:
        message = parse(data)
    except ProtocolError:
        return None
    packed = message.pack()
    assert len(packed) <= len(data)
    assert parse(packed) == message
    return message
