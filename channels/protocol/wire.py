"""Fixed layouts: bytes in, value out, bytes back.

A `Wire` value declares each field with its place: `Annotated[int, At(8, "I", "what it means")]`. The declaration is the
layout: packing, unpacking and `channels.explain` read the same table. All integers are little-endian, gaps are zero and
ignored on receipt, GUIDs have the Windows mixed-endian form (u32, u16, u16 little-endian, then 8 bytes).
"""

from __future__ import annotations

import struct
from functools import cache, lru_cache
from typing import Any, ClassVar, NamedTuple, Self, get_type_hints
from uuid import UUID

import msgspec

from broker.errors import ProtocolError

GUID_SIZE = 16
TAIL = "*"
NO_GUID = UUID(int=0)


class At(NamedTuple):
    """Where a field lies: byte offset, format, and what it means.

    Formats are those of `struct` ("B", "H", "I", "Q", "120s"), "guid", and "*" for all bytes that follow the fixed part.
    """

    offset: int
    format: str
    about: str = ""


class FieldLayout(NamedTuple):
    """One field of a layout."""

    name: str
    offset: int
    size: int
    format: str
    about: str


class Layout:
    """The fields of one `Wire` type in the order of their offsets, and the codec made of them."""

    def __init__(self, what: str, fields: list[FieldLayout], size: int) -> None:
        self.what = what
        self.fields = fields
        self.size = size
        """Bytes that the value takes at least, padding included."""
        self.has_tail = bool(fields) and fields[-1].format == TAIL
        fixed = fields[:-1] if self.has_tail else fields
        self._guids = [field.format == "guid" for field in fixed]
        self._areas = [
            (index, _shared_guid if field.format == "guid" else _shared_bytes)
            for index, field in enumerate(fixed)
            if field.format == "guid" or field.format.endswith("s")
        ]
        """The fields that are no numbers, and what makes values of them."""
        self._struct = struct.Struct(_format_of(fixed, size))

    def pack(self, values: list[Any]) -> bytes:
        """The bytes of these values, one for each field. `ValueError` when one does not fit its field."""
        *values, tail = values if self.has_tail else [*values, b""]
        raw = [value.bytes_le if is_guid else value for value, is_guid in zip(values, self._guids, strict=True)]
        try:
            return self._struct.pack(*raw) + bytes(tail)
        except struct.error as error:
            raise ValueError(f"{self.what}: a value does not fit its field ({error})") from None

    def unpack(self, data: bytes | bytearray | memoryview) -> list[Any]:
        """One value for each field. `ProtocolError` when the bytes end before the layout does."""
        if len(data) < self.size:
            raise ProtocolError(self.what, len(data), f"{self.size} bytes", f"an end after {len(data)}")
        values: list[Any] = list(self._struct.unpack_from(data))
        for index, share in self._areas:
            values[index] = share(values[index])
        return [*values, bytes(data[self.size :])] if self.has_tail else values


class Wire(msgspec.Struct, frozen=True):
    """Base of every fixed layout."""

    LEAST_SIZE: ClassVar[int] = 0
    """The size where no field reaches so far."""

    @classmethod
    def layout(cls) -> Layout:
        """The layout of this type."""
        return _layout_of(cls)

    def pack(self) -> bytes:
        """The bytes. `ValueError` when a value does not fit its field."""
        layout = _layout_of(type(self))
        return layout.pack([getattr(self, field.name) for field in layout.fields])

    @classmethod
    def unpack(cls, data: bytes | bytearray | memoryview) -> Self:
        """Read a value; bytes beyond its size are ignored. `ProtocolError` when there are too few."""
        return cls(*_layout_of(cls).unpack(data))


# Offers of a kind name the same class, most areas are zero: thousands of channels keep one copy.


@lru_cache(maxsize=256)
def _shared_guid(data: bytes) -> UUID:
    return UUID(bytes_le=data)


@lru_cache(maxsize=256)
def _shared_bytes(data: bytes) -> bytes:
    return data


@cache
def _layout_of(kind: type[Wire]) -> Layout:
    hints = get_type_hints(kind, include_extras=True)
    fields = []
    for name in kind.__struct_fields__:
        place = next((extra for extra in hints[name].__metadata__ if isinstance(extra, At)), None)
        assert place is not None, f"{kind.__name__}.{name} has no place in the layout"
        fields.append(FieldLayout(name, place.offset, _size_of(place.format), place.format, place.about))
    end = max((field.offset + field.size for field in fields), default=0)
    return Layout(kind.__name__, fields, max(kind.LEAST_SIZE, end))


def _size_of(format_: str) -> int:
    if format_ == TAIL:
        return 0
    return GUID_SIZE if format_ == "guid" else struct.calcsize(f"<{format_}")


def _format_of(fields: list[FieldLayout], size: int) -> str:
    parts, position = ["<"], 0
    for field in fields:
        assert field.offset >= position, f"{field.name} overlaps the field before it"
        parts.append(f"{field.offset - position}x" if field.offset > position else "")
        parts.append(f"{GUID_SIZE}s" if field.format == "guid" else field.format)
        position = field.offset + field.size
    parts.append(f"{size - position}x" if size > position else "")
    return "".join(parts)
