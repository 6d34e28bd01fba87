"""Rows in the making: each takes the next bytes, so that together they cover the input exactly, whatever it holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import NamedTuple, TypeAlias
from uuid import UUID

import msgspec

from channels.protocol.wire import TAIL, FieldLayout, Wire

SHOWN_BYTES = 16
"""Bytes that a value shows of a longer field."""
SHOWN_TEXT = 40
LEAST_TEXT = 3


class Row(msgspec.Struct, frozen=True):
    """One piece of the input: a field, padding, or bytes that nobody looks at. Offset and size are bytes."""

    offset: int
    size: int
    field: str
    value: int | str
    """A number, a GUID, or bytes in hexadecimal, cut where there are many."""
    meaning: str


class Wrong(NamedTuple):
    """The reading of a value that should not be."""

    meaning: str
    expected: str


class Cut(Exception):
    """The bytes end within a field. Never leaves this package."""


Seen: TypeAlias = dict[str, int]
"""The numbers of a layout that stand before a field."""
Reading: TypeAlias = Callable[[int, Seen], "str | Wrong"]
Explain: TypeAlias = Callable[["Table"], None]
Split: TypeAlias = Callable[["Table", Seen], None]


class Table:
    """Rows, problems and a title, from one input."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0
        self.end = len(data)
        """Where the part of the input ends that is being explained."""
        self.title = ""
        self.rows: list[Row] = []
        self.problems: list[str] = []
        self.misfit = 0
        """How much speaks against the kind: 2 for what is wrong, 1 for what is legal and yet odd."""
        self._end_told = False

    @property
    def left(self) -> int:
        """Bytes that have no row yet."""
        return self.end - self.position

    def problem(self, what: str, offset: int, expected: str, got: str) -> None:
        """Say what is wrong, as `ProtocolError` does."""
        self.misfit += 2
        self.problems.append(f"{what}: at offset {offset} expected {expected}, got {got}")

    def need(self, size: int, what: str) -> None:
        """Say it once if fewer than `size` bytes are left; fields are then read as far as they go."""
        if self.left < size:
            self.problem(what, self.end, f"{size} bytes", f"an end after {self.left}")
            self._end_told = True

    def number(self, field: str, size: int, meaning: str | Reading = "", seen: Seen | None = None) -> int:
        """A little-endian number. Its reading sees the numbers before it."""
        offset = self.position
        value = int.from_bytes(self._next(field, size), "little")
        reading = meaning if isinstance(meaning, str) else meaning(value, seen if seen is not None else {})
        if isinstance(reading, Wrong):
            self.problem(field, offset, reading.expected, number_text(value))
            reading = reading.meaning
        self._add(offset, field, value, reading)
        return value

    def guid(self, field: str, meaning: str | Callable[[UUID], str] = "") -> UUID:
        """A GUID in the Windows form."""
        offset = self.position
        value = UUID(bytes_le=self._next(field, 16))
        self._add(offset, field, str(value), meaning if isinstance(meaning, str) else meaning(value))
        return value

    def octets(self, field: str, size: int, meaning: str = "") -> None:
        """Bytes without a form; readable ones are quoted. Nothing for a size of 0."""
        if not size:
            return
        offset = self.position
        value = self._next(field, size)
        text = quoted(value)
        self._add(offset, field, bytes_text(value), "; ".join(filter(None, (meaning, text))))

    def zeros(self, field: str, size: int, meaning: str = "written 0, ignored") -> None:
        """Bytes that a sender writes as zero. Nothing for a size of 0."""
        if not size:
            return
        offset = self.position
        value = self._next(field, size)
        if any(value):
            self.problem(field, offset, "zeros", bytes_text(value))
        self._add(offset, field, 0 if not any(value) else bytes_text(value), meaning)

    def rest(self, field: str, meaning: str) -> None:
        """All bytes that are left, if any."""
        self.octets(field, self.left, meaning)

    def ignored(self, meaning: str) -> None:
        """The bytes beyond what was explained, if any."""
        if any(self.data[self.position : self.end]):
            self.misfit += 1
        self.rest("ignored", meaning)

    def text(self, field: str, size: int, value: str, meaning: str = "") -> None:
        """Bytes whose value is better said in words."""
        offset = self.position
        self._next(field, size)
        self._add(offset, field, value, meaning)

    def peek(self, size: int, ahead: int = 0) -> int:
        """The number that comes next, or `ahead` bytes later. As far as there are bytes."""
        start = self.position + ahead
        return int.from_bytes(self.data[start : min(start + size, self.end)], "little")

    def within(self, size: int, explain: Explain, left: str = "ignored", meaning: str = "") -> None:
        """Let `explain` see the next `size` bytes only; what it leaves becomes one row."""
        outer, told = self.end, self._end_told
        self.end = min(outer, self.position + size)
        with suppress(Cut):
            explain(self)
        self.rest(left, meaning)
        self.end, self._end_told = outer, told

    def layout(
        self,
        form: type[Wire],
        readings: Mapping[str, Reading],
        splits: Mapping[str, Split] | None = None,
        gap: str = "zeros",
        base: int | None = None,
        prefix: str = "",
    ) -> Seen:
        """The fields of a layout, and its gaps: "zeros", or "ignored" where a sender may leave anything.

        `splits` take over the fields that have an inner form. `base`: where the layout began, if some of it was read.
        `prefix` goes before the names in the rows.
        What is returned are the numbers, by field.
        """
        base, seen = self.position if base is None else base, Seen()
        for field in form.layout().fields:
            self._gap(base + field.offset - self.position, gap)
            if splits is not None and field.name in splits:
                splits[field.name](self, seen)
            else:
                self._field(field, prefix + field.name, readings, seen)
        self._gap(base + form.layout().size - self.position, gap)
        return seen

    def array(self, field: str, count: int, size: int, entry: Callable[[Table, str], None]) -> None:
        """Entries of one size: a row or more for each that is not zero, one row for neighbours that are."""
        index = 0
        while index < count and self.left:
            zeros = index
            while zeros < count and not any(
                self.data[self._at(zeros - index, size) : self._at(zeros - index + 1, size)]
            ):
                zeros += 1
            if zeros > index:
                name = f"{field}[{index}]" if zeros == index + 1 else f"{field}[{index}..{zeros - 1}]"
                self.zeros(name, size * (zeros - index), "")
            if zeros < count:
                entry(self, f"{field}[{zeros}]")
            index = zeros + 1

    def _at(self, entries: int, size: int) -> int:
        return min(self.position + entries * size, self.end)

    def _gap(self, size: int, gap: str) -> None:
        if size <= 0:
            return
        if gap == "zeros":
            self.zeros("reserved", size)
        else:
            self.octets("reserved", size, "ignored")

    def _field(self, field: FieldLayout, name: str, readings: Mapping[str, Reading], seen: Seen) -> None:
        if field.format == "guid":
            self.guid(name, field.about)
        elif field.format == TAIL:
            self.rest(name, field.about)
        elif field.format.endswith("s"):
            self.octets(name, field.size, field.about)
        else:
            seen[field.name] = self.number(name, field.size, readings.get(field.name, field.about), seen)

    def _next(self, field: str, size: int) -> bytes:
        """The next bytes. Where fewer are left these become a row, and the explanation of this part ends."""
        present = self.data[self.position : min(self.position + size, self.end)]
        if len(present) < size:
            if not self._end_told:
                self.need(size, field)
            if present:
                meaning = f"cut: {len(present)} of {size} bytes"
                self.rows.append(Row(self.position, len(present), field, bytes_text(present), meaning))
            self.position = self.end
            raise Cut
        self.position += size
        return present

    def _add(self, offset: int, field: str, value: int | str, meaning: str) -> None:
        self.rows.append(Row(offset, self.position - offset, field, value, meaning))


def number_text(value: int) -> str:
    """A number as tables show it."""
    return str(value) if value < 10 else f"{value:#x}"


def bytes_text(data: bytes) -> str:
    """Bytes in hexadecimal, the first of many."""
    if len(data) > 4 and not any(data):
        return f"{len(data)} x 00"
    shown = data[:SHOWN_BYTES].hex(" ", 4)
    return shown if len(data) <= SHOWN_BYTES else f"{shown} ..."


def quoted(data: bytes) -> str:
    """The text that these bytes are, quoted, or nothing: zeros at the end aside, all of it is printable."""
    text = data[: 8 * SHOWN_TEXT].rstrip(b"\0")
    if len(text) < LEAST_TEXT or not all(0x20 <= byte < 0x7F for byte in text):
        return ""
    return f'"{text[:SHOWN_TEXT].decode("ascii")}"{" ..." if len(text) > SHOWN_TEXT else ""}'


def plural(count: int, word: str) -> str:
    """A count with its word."""
    return f"{count} {word}{'' if count == 1 else 's'}"
