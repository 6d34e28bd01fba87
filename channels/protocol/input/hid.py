"""HID report descriptors, as far as a pointing device's needs: which bits of an input report mean what (USB HID 1.11, 6.2.2).

A descriptor is a run of items: a byte (bits 0 and 1 size, 2 and 3 type, 4 to 7 tag), then 0, 1, 2 or 4 bytes of data,
little-endian. Global items stay until they are changed, local items until the next main item, and each input item says
what the next bits of the report are.

It will: lay out variables, absolute and relative, with their usages and limits; skip constants, arrays, outputs and
features. It will not: read long items, push and pop, or report IDs, which the synthetic mouse has no use for.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import msgspec

from broker.errors import ProtocolError

MAX_REPORT = 256
"""Bytes of a report."""
MAX_FIELD = 32
"""Bits of a field."""

_CONSTANT, _VARIABLE, _RELATIVE = 1, 2, 4


class Usage(IntEnum):
    """What a field is, page in the high half. Buttons are `BUTTONS` + 1 and up."""

    X = 0x0001_0030
    Y = 0x0001_0031
    WHEEL = 0x0001_0038
    BUTTONS = 0x0009_0000


class _Item(IntEnum):
    """Tag and type of an item: its first byte without the size."""

    INPUT = 0x80
    OUTPUT = 0x90
    FEATURE = 0xB0
    COLLECTION = 0xA0
    END_COLLECTION = 0xC0
    USAGE_PAGE = 0x04
    LOGICAL_MINIMUM = 0x14
    LOGICAL_MAXIMUM = 0x24
    REPORT_SIZE = 0x74
    REPORT_ID = 0x84
    REPORT_COUNT = 0x94
    PUSH = 0xA4
    POP = 0xB4
    USAGE = 0x08
    USAGE_MINIMUM = 0x18
    USAGE_MAXIMUM = 0x28
    LONG = 0xFC


_REFUSED = frozenset((_Item.REPORT_ID, _Item.PUSH, _Item.POP, _Item.LONG))
_MAIN = frozenset((_Item.INPUT, _Item.OUTPUT, _Item.FEATURE, _Item.COLLECTION, _Item.END_COLLECTION))


class ReportField(NamedTuple):
    """A variable of a report."""

    usage: int
    offset: int
    """In bits, from bit 0 of byte 0."""
    size: int
    """In bits."""
    minimum: int
    """Its logical minimum; a field with a negative one is signed."""
    maximum: int
    is_relative: bool


class ReportLayout(msgspec.Struct, frozen=True):
    """How an input report is laid out."""

    fields: tuple[ReportField, ...]
    size: int
    """Bytes of a report."""

    def values(self, report: bytes) -> dict[int, int]:
        """By usage; a value outside the limits of its field says nothing and is left out.

        `ProtocolError` for a short report.
        """
        if len(report) < self.size:
            raise ProtocolError("input report", len(report), f"{self.size} bytes", f"an end after {len(report)}")
        bits = int.from_bytes(report[: self.size], "little")
        found = {}
        for field in self.fields:
            value = bits >> field.offset & (1 << field.size) - 1
            if field.minimum < 0 and value >> field.size - 1:
                value -= 1 << field.size
            if field.minimum <= value <= field.maximum:
                found[field.usage] = value
        return found


def parse_report_descriptor(descriptor: bytes) -> ReportLayout:
    """The layout of a device's only input report. `ProtocolError` for a descriptor that breaks a rule, or that asks for
    what is not read here (see the module), or for a report of more than 256 bytes."""
    parser = _Parser()
    position = 0
    while position < len(descriptor):
        prefix = descriptor[position]
        size = (0, 1, 2, 4)[prefix & 3]
        data = descriptor[position + 1 : position + 1 + size]
        if len(data) < size:
            raise ProtocolError("report descriptor", position, f"{size} bytes of data", f"an end after {len(data)}")
        parser.take(prefix & 0xFC, data, position)
        position += 1 + size
    if parser.depth:
        raise ProtocolError("report descriptor", position, "an end of each collection", f"{parser.depth} open ones")
    return ReportLayout(tuple(parser.fields), (parser.bits + 7) // 8)


class _Parser:
    """What the items so far have set."""

    def __init__(self) -> None:
        self.fields: list[ReportField] = []
        self.bits = 0
        """Of the report, so far."""
        self.depth = 0
        """Open collections."""
        self._globals: dict[int, bytes] = {}
        self._usages: list[range] = []
        self._usage_minimum: int | None = None

    def take(self, item: int, data: bytes, position: int) -> None:
        """One item."""
        value = int.from_bytes(data, "little")
        if item in _REFUSED:
            raise ProtocolError("report descriptor", position, "no long item, push, pop or report ID", f"{item:#x}")
        if item & 0x0C == 0x04:
            self._globals[item] = data
        elif item == _Item.USAGE:
            self._add_usages(value, value, len(data))
        elif item == _Item.USAGE_MINIMUM:
            self._usage_minimum = value
        elif item == _Item.USAGE_MAXIMUM:
            if self._usage_minimum is None:
                raise ProtocolError("report descriptor", position, "a usage minimum before its maximum", "none")
            self._add_usages(self._usage_minimum, value, len(data))
            self._usage_minimum = None
        elif item in _MAIN:
            self._main(item, value, position)
            self._usages, self._usage_minimum = [], None

    def _main(self, item: int, value: int, position: int) -> None:
        if item == _Item.COLLECTION:
            self.depth += 1
        elif item == _Item.END_COLLECTION:
            if not self.depth:
                raise ProtocolError("report descriptor", position, "a collection before its end", "none")
            self.depth -= 1
        elif item == _Item.INPUT:
            self._input(value, position)

    def _input(self, flags: int, position: int) -> None:
        size, count = self._number(_Item.REPORT_SIZE), self._number(_Item.REPORT_COUNT)
        if not 1 <= size <= MAX_FIELD:
            raise ProtocolError("report descriptor", position, f"fields of 1 to {MAX_FIELD} bits", f"{size}")
        if self.bits + size * count > 8 * MAX_REPORT:
            raise ProtocolError("report descriptor", position, f"a report of {MAX_REPORT} bytes or less", "more")
        if flags & _VARIABLE and not flags & _CONSTANT:
            minimum = self._number(_Item.LOGICAL_MINIMUM, signed=True)
            maximum = self._number(_Item.LOGICAL_MAXIMUM, signed=minimum < 0)
            usages = self._usages_of(count)
            self.fields += (
                ReportField(usage, self.bits + size * index, size, minimum, maximum, bool(flags & _RELATIVE))
                for index, usage in enumerate(usages)
            )
        self.bits += size * count

    def _number(self, item: _Item, *, signed: bool = False) -> int:
        return int.from_bytes(self._globals.get(item, b""), "little", signed=signed)

    def _add_usages(self, first: int, last: int, size: int) -> None:
        """Usages of 4 bytes name their page, shorter ones are of the page that is set."""
        page = 0 if size == 4 else self._number(_Item.USAGE_PAGE) << 16
        self._usages.append(range(page | first, (page | last) + 1))

    def _usages_of(self, count: int) -> list[int]:
        """One for each of `count` fields: the last one is for all that are left. None at all when none was named."""
        found: list[int] = []
        for usages in self._usages:
            found += usages[: count - len(found)]
        return found + found[-1:] * (count - len(found))
