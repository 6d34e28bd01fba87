"""Messages of the synthetic mouse, a HID device (vmbus.md 8.7; Linux `hid-hyperv.c`).

Pipe packets. Each message is a header, u32 type and u32 size of the body, then the body, all little-endian and packed:

| type | from | body | bytes |
|---|---|---|---|
| 0 protocol request | guest | u32 version, 0x00020000 | 4 |
| 1 protocol response | host | u32 version as requested, u8 accepted | 5 |
| 2 device info | host | attributes (32), HID descriptor (9), report descriptor, zeros up to 128 | 169 |
| 3 device info ack | guest | u8 | 1 |
| 4 input report | host | a report as the report descriptor lays it out | 7 |

Order: request, response, device info, ack, reports. A guest that was refused may request again.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Annotated, ClassVar, Self, TypeAlias
from uuid import UUID

from broker.errors import ProtocolError

from ..wire import At, Wire

MOUSE_INSTANCE = UUID("58f75a6d-d949-4320-99e1-a2a2576d581c")
"""The well-known mouse."""
MOUSE_VERSION = 0x0002_0000
"""The only version: 2.0."""
MAX_POSITION = 0x7FFF
"""Coordinates are absolute, 0 to this on either axis, whatever the screen's size."""
MAX_WHEEL = 0x7FFF
"""Steps of the wheel in one report, either way."""
BUTTON_COUNT = 5
REPORT_AREA = 128
"""Bytes that this project's host gives a report descriptor, padded with zeros (as OpenVMM does)."""

ATTRIBUTES_SIZE = 32
VENDOR_ID = 0x045E
PRODUCT_ID = 0x0621
HID_DESCRIPTOR = 0x21
"""Descriptor type of a HID descriptor."""
HID_VERSION = 0x0101
REPORT_DESCRIPTOR_TYPE = 0x22

REPORT_DESCRIPTOR = bytes.fromhex(
    "0501 0902 a101 0901 a100"  # generic desktop, mouse: an application collection; in it a pointer, physical
    "0509 1901 2905 1500 2501 9505 7501 8102"  # buttons 1 to 5, a bit each
    "9501 7503 8101"  # 3 bits of padding
    "0501 0930 0931 1500 26ff7f 7510 9502 8102"  # X and Y, 16 bits each, 0 to 32767, absolute
    "0501 0938 160180 26ff7f 7510 9501 8106"  # wheel, 16 bits, -32767 to 32767, relative
    "c0 c0"
)
"""The mouse's report descriptor, 67 bytes; its reports are `MouseReport`."""

_HEADER = struct.Struct("<II")


class MouseMessageType(IntEnum):
    """The number at the start of every message."""

    PROTOCOL_REQUEST = 0
    PROTOCOL_RESPONSE = 1
    DEVICE_INFO = 2
    DEVICE_INFO_ACK = 3
    INPUT_REPORT = 4


class MouseButton(IntEnum):
    """Buttons, by their bits in a report."""

    LEFT = 0
    RIGHT = 1
    MIDDLE = 2
    FOURTH = 3
    FIFTH = 4


class MouseMessage(Wire, frozen=True):
    """A message; offsets count from its header."""

    TYPE: ClassVar[MouseMessageType]

    def pack(self) -> bytes:
        """The message with its header. `ValueError` when a value does not fit its field."""
        data = super().pack()
        return _HEADER.pack(self.TYPE, len(data) - _HEADER.size) + data[_HEADER.size :]


class MouseRequest(MouseMessage, frozen=True):
    """PROTOCOL_REQUEST, 12 bytes: the guest speaks this version."""

    TYPE: ClassVar[MouseMessageType] = MouseMessageType.PROTOCOL_REQUEST

    version: Annotated[int, At(8, "I", "major in the high half")] = MOUSE_VERSION


class MouseResponse(MouseMessage, frozen=True):
    """PROTOCOL_RESPONSE, 13 bytes: whether the host does, too."""

    TYPE: ClassVar[MouseMessageType] = MouseMessageType.PROTOCOL_RESPONSE

    version: Annotated[int, At(8, "I", "as requested")]
    accepted: Annotated[int, At(12, "B", "0: no")]


class MouseDeviceInfo(MouseMessage, frozen=True):
    """DEVICE_INFO, 177 bytes from this project's host: what the device is, and how its reports are laid out."""

    TYPE: ClassVar[MouseMessageType] = MouseMessageType.DEVICE_INFO

    attributes_size: Annotated[int, At(8, "I", "bytes of the attributes, up to the HID descriptor")] = ATTRIBUTES_SIZE
    vendor_id: Annotated[int, At(12, "H", "Microsoft")] = VENDOR_ID
    product_id: Annotated[int, At(14, "H", "synthetic mouse")] = PRODUCT_ID
    product_version: Annotated[int, At(16, "H", "version of the product")] = 1
    hid_length: Annotated[int, At(40, "B", "bytes of the HID descriptor")] = 9
    hid_type: Annotated[int, At(41, "B", "HID descriptor")] = HID_DESCRIPTOR
    hid_version: Annotated[int, At(42, "H", "version of HID, in BCD")] = HID_VERSION
    country: Annotated[int, At(44, "B", "0: not localised")] = 0
    descriptor_count: Annotated[int, At(45, "B", "descriptors that follow")] = 1
    report_type: Annotated[int, At(46, "B", "report descriptor")] = REPORT_DESCRIPTOR_TYPE
    report_length: Annotated[int, At(47, "H", "bytes of the report descriptor")] = len(REPORT_DESCRIPTOR)
    area: Annotated[bytes, At(49, "*", "the report descriptor, and zeros")] = REPORT_DESCRIPTOR.ljust(
        REPORT_AREA, b"\0"
    )

    @classmethod
    def of(cls, descriptor: bytes) -> Self:
        """For another report descriptor."""
        return cls(report_length=len(descriptor), area=descriptor.ljust(REPORT_AREA, b"\0"))

    @property
    def report_descriptor(self) -> bytes:
        """The report descriptor. `ProtocolError` when the HID descriptor is none, or names more than there is."""
        if self.hid_type != HID_DESCRIPTOR or self.report_type != REPORT_DESCRIPTOR_TYPE:
            expected = f"types {HID_DESCRIPTOR:#x} and {REPORT_DESCRIPTOR_TYPE:#x}"
            raise ProtocolError("HID descriptor", 41, expected, f"{self.hid_type:#x} and {self.report_type:#x}")
        if self.report_length > len(self.area):
            raise ProtocolError("HID descriptor", 47, f"at most {len(self.area)} bytes", f"{self.report_length}")
        return self.area[: self.report_length]


class MouseDeviceInfoAck(MouseMessage, frozen=True):
    """DEVICE_INFO_ACK, 9 bytes: the guest is ready for reports."""

    TYPE: ClassVar[MouseMessageType] = MouseMessageType.DEVICE_INFO_ACK

    reserved: Annotated[int, At(8, "B", "not looked at")] = 0


class MouseInputReport(MouseMessage, frozen=True):
    """INPUT_REPORT: a report of any layout."""

    TYPE: ClassVar[MouseMessageType] = MouseMessageType.INPUT_REPORT

    report: Annotated[bytes, At(8, "*", "as the report descriptor lays it out")]


class MouseReport(Wire, frozen=True):
    """A report of the mouse, 7 bytes: its whole state."""

    buttons: Annotated[int, At(0, "B", "bit n: button n is down; see `MouseButton`")] = 0
    x: Annotated[int, At(1, "H", "0, left, to 32767")] = 0
    y: Annotated[int, At(3, "H", "0, top, to 32767")] = 0
    wheel: Annotated[int, At(5, "h", "steps since the last report, positive away from the user")] = 0


FromGuest: TypeAlias = MouseRequest | MouseDeviceInfoAck
FromHost: TypeAlias = MouseResponse | MouseDeviceInfo | MouseInputReport


def parse_mouse_guest(data: bytes) -> FromGuest:
    """What a guest says. `ProtocolError` for a message that is too short, or that no guest sends."""
    number, message = _parse_header(data)
    match number:
        case MouseMessageType.PROTOCOL_REQUEST:
            return MouseRequest.unpack(message)
        case MouseMessageType.DEVICE_INFO_ACK:
            return MouseDeviceInfoAck.unpack(message)
        case _:
            raise ProtocolError("mouse message", 0, "a protocol request (0) or an ack (3)", f"type {number:#x}")


def parse_mouse_host(data: bytes) -> FromHost:
    """What a host says. `ProtocolError` for a message that is too short, or that no host sends."""
    number, message = _parse_header(data)
    match number:
        case MouseMessageType.PROTOCOL_RESPONSE:
            return MouseResponse.unpack(message)
        case MouseMessageType.DEVICE_INFO:
            return MouseDeviceInfo.unpack(message)
        case MouseMessageType.INPUT_REPORT:
            return MouseInputReport.unpack(message)
        case _:
            expected = "a protocol response (1), device info (2) or an input report (4)"
            raise ProtocolError("mouse message", 0, expected, f"type {number:#x}")


def _parse_header(data: bytes) -> tuple[int, bytes]:
    """The type, and the message without what follows its body."""
    if len(data) < _HEADER.size:
        raise ProtocolError("mouse message", len(data), f"a header of {_HEADER.size} bytes", f"{len(data)}")
    number, size = _HEADER.unpack_from(data)
    if size > len(data) - _HEADER.size:
        raise ProtocolError("mouse message", 4, f"a body of up to {len(data) - _HEADER.size} bytes", f"{size}")
    return number, data[: _HEADER.size + size]
