"""Texts in areas of fixed size: UTF-16LE, ended by a NUL, zeros after it.

It will: check what a peer has written before it is decoded. It will not: hand out anything behind the NUL.
"""

from __future__ import annotations

from broker.errors import ProtocolError

UNIT = 2
"""Bytes of a code unit; the NUL takes one."""


def text_size(text: str) -> int:
    """Bytes that a text takes, its NUL included. `ValueError` for one that UTF-16 cannot say."""
    return len(text.encode("utf-16-le")) + UNIT


def pack_text(text: str, size: int, what: str) -> bytes:
    """An area of `size` bytes with this text. `ValueError` when it has a NUL or does not fit with the one that ends it."""
    data = text.encode("utf-16-le")
    if "\0" in text:
        raise ValueError(f"{what}: a text ends at its first NUL, {text!r} has one inside")
    if len(data) + UNIT > size:
        raise ValueError(f"{what}: {size // UNIT - 1} UTF-16 code units fit, not {len(data) // UNIT}")
    return data.ljust(size, b"\0")


def parse_text(area: bytes, what: str, offset: int, size: int | None = None) -> str:
    """The text of an area that lies at `offset`; of its first `size` bytes, NUL included, where a size is given.

    `ProtocolError` when no NUL ends it, for an odd size or one beyond the area, and for what is no UTF-16. Size 0 is "".
    """
    if size is not None:
        if size > len(area) or size % UNIT:
            raise ProtocolError(what, offset, f"an even size of at most {len(area)} bytes", f"{size}")
        area = area[:size]
        if not area:
            return ""
    end = area.find(b"\0\0")
    while end % UNIT and end >= 0:
        end = area.find(b"\0\0", end + 1)
    if end < 0:
        raise ProtocolError(what, offset, f"a NUL within {len(area)} bytes", "none")
    try:
        return area[:end].decode("utf-16-le")
    except UnicodeDecodeError as error:
        raise ProtocolError(what, offset + error.start, "UTF-16", error.reason) from None
