"""What INQUIRY tells: the standard data and vital product data (VPD) pages of a disk (SPC-4 6.4, 7.8; SBC-3 6.6).

Standard data, 36 bytes: 0 peripheral (bits 5 to 7 qualifier, 0 to 4 device type), 2 version 6 (SPC-4), 3 response format 2 and
0x10 (hierarchical LUNs), 4 additional length 31, 7 flags 0x02 (command queuing), 8 vendor (8, ASCII, spaces after it), 16
product (16), 32 revision (4).

A VPD page: 0 peripheral, 1 page code, 2 length of the rest as a u16, then the page. All numbers are big-endian.
"""

from __future__ import annotations

import struct
from enum import IntEnum

import msgspec

from broker.errors import ProtocolError

DISK = 0x00
"""Peripheral: a direct access block device, which is there."""
NO_LOGICAL_UNIT = 0x7F
"""Peripheral: there is no logical unit, and there cannot be one."""
STANDARD_SIZE = 36

_STANDARD = struct.Struct(">BxBBBxxB8s16s4s")
_PAGE = struct.Struct(">BBH")
_DESIGNATOR = struct.Struct(">BBxB")
_BLOCK_LIMITS = struct.Struct(">BBHIIIIII32x")
_SPC_4, _FORMAT, _QUEUES = 0x06, 0x12, 0x02
_ASCII, _BINARY = 2, 1
_T10_VENDOR, _NAA = 1, 3
_LOCALLY_ASSIGNED = 3
_NOT_ROTATING = 1
_LBPU, _LBPRZ, _THIN = 0x80, 0x04, 0x02


class VpdPage(IntEnum):
    """Page codes."""

    SUPPORTED_PAGES = 0x00
    UNIT_SERIAL_NUMBER = 0x80
    DEVICE_IDENTIFICATION = 0x83
    BLOCK_LIMITS = 0xB0
    BLOCK_DEVICE_CHARACTERISTICS = 0xB1
    LOGICAL_BLOCK_PROVISIONING = 0xB2


class InquiryData(msgspec.Struct, frozen=True):
    """The standard data; texts without the spaces after them."""

    vendor: str
    product: str
    revision: str
    peripheral: int = DISK

    @property
    def is_disk(self) -> bool:
        """A disk is there."""
        return self.peripheral == DISK

    def pack(self) -> bytes:
        """36 bytes. `ValueError` for texts that are no ASCII or too long."""
        texts = [(self.vendor, 8), (self.product, 16), (self.revision, 4)]
        if any(not text.isascii() or len(text) > size for text, size in texts):
            raise ValueError(f"vendor, product and revision are 8, 16 and 4 ASCII characters at most, not {texts}")
        fields = [text.encode().ljust(size) for text, size in texts]
        return _STANDARD.pack(self.peripheral, _SPC_4, _FORMAT, STANDARD_SIZE - 5, _QUEUES, *fields)


def parse_inquiry(data: bytes) -> InquiryData:
    """Standard data; bytes beyond 36 are ignored, characters that are no ASCII become "?". `ProtocolError` for fewer."""
    if len(data) < STANDARD_SIZE:
        raise ProtocolError("INQUIRY data", len(data), f"{STANDARD_SIZE} bytes", f"an end after {len(data)}")
    peripheral, _, _, _, _, *texts = _STANDARD.unpack_from(data)
    vendor, product, revision = (
        bytes(byte if 0x20 <= byte < 0x7F else 0x3F for byte in text.rstrip(b"\0 ")).decode() for text in texts
    )
    return InquiryData(vendor, product, revision, peripheral)


def pack_page(page: int, rest: bytes, peripheral: int = DISK) -> bytes:
    """A VPD page: its header, and the rest of it."""
    return _PAGE.pack(peripheral, page, len(rest)) + rest


def parse_page(data: bytes, page: int) -> bytes:
    """The rest of this VPD page, as far as it is there. `ProtocolError` for another page, or no header."""
    if len(data) < _PAGE.size:
        raise ProtocolError("VPD page", len(data), f"{_PAGE.size} bytes", f"an end after {len(data)}")
    _, code, length = _PAGE.unpack_from(data)
    if code != page:
        raise ProtocolError("VPD page", 1, f"page {page:#04x}", f"{code:#04x}")
    return data[_PAGE.size : _PAGE.size + length]


def supported_pages() -> bytes:
    """Page 0x00: which pages there are."""
    return pack_page(VpdPage.SUPPORTED_PAGES, bytes(VpdPage))


def serial_number(serial: str) -> bytes:
    """Page 0x80: the unit's serial number, ASCII."""
    return pack_page(VpdPage.UNIT_SERIAL_NUMBER, serial.encode("ascii"))


def device_identification(vendor: str, serial: str, number: int) -> bytes:
    """Page 0x83: vendor and serial number (T10), and a locally assigned NAA of the low 60 bits of `number`."""
    naa = (_LOCALLY_ASSIGNED << 60 | number & (1 << 60) - 1).to_bytes(8, "big")
    text = vendor.encode("ascii").ljust(8) + serial.encode("ascii")
    designators = (
        _DESIGNATOR.pack(_BINARY, _NAA, len(naa)) + naa + _DESIGNATOR.pack(_ASCII, _T10_VENDOR, len(text)) + text
    )
    return pack_page(VpdPage.DEVICE_IDENTIFICATION, designators)


class BlockLimits(msgspec.Struct, frozen=True):
    """Page 0xB0, 64 bytes: what a command may ask for at most, in blocks; 0 where there is no limit."""

    max_transfer: int = 0
    max_unmap: int = 0
    max_unmap_descriptors: int = 0
    unmap_granularity: int = 0

    def pack(self) -> bytes:
        """The page. `ValueError` for numbers that do not fit."""
        numbers = (self.max_transfer, 0, 0, self.max_unmap, self.max_unmap_descriptors, self.unmap_granularity)
        try:
            return pack_page(VpdPage.BLOCK_LIMITS, _BLOCK_LIMITS.pack(0, 0, 0, *numbers))
        except struct.error as error:
            raise ValueError(f"block limits: a value does not fit its field ({error})") from None


def parse_block_limits(data: bytes) -> BlockLimits:
    """Page 0xB0. `ProtocolError` for another page, or a shorter one."""
    rest = parse_page(data, VpdPage.BLOCK_LIMITS)
    if len(rest) < _BLOCK_LIMITS.size:
        raise ProtocolError("block limits", len(rest), f"{_BLOCK_LIMITS.size} bytes", f"an end after {len(rest)}")
    _, _, _, transfer, _, _, unmap, descriptors, granularity = _BLOCK_LIMITS.unpack_from(rest)
    return BlockLimits(transfer, unmap, descriptors, granularity)


def block_device_characteristics() -> bytes:
    """Page 0xB1, 64 bytes: nothing rotates."""
    return pack_page(VpdPage.BLOCK_DEVICE_CHARACTERISTICS, _NOT_ROTATING.to_bytes(2, "big").ljust(60, b"\0"))


def logical_block_provisioning() -> bytes:
    """Page 0xB2, 8 bytes: UNMAP is there, unmapped blocks read as zeros, thinly provisioned."""
    return pack_page(VpdPage.LOGICAL_BLOCK_PROVISIONING, bytes((0, _LBPU | _LBPRZ, _THIN, 0)))
