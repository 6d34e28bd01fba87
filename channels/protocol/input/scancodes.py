"""Scan codes of set 1 for what a US keyboard types: make codes of 8 bits, without prefix."""

from __future__ import annotations

from typing import NamedTuple

LEFT_SHIFT = 0x2A

_ROWS = (
    (0x02, "1234567890-=", "!@#$%^&*()_+"),
    (0x10, "qwertyuiop[]", "QWERTYUIOP{}"),
    (0x1E, "asdfghjkl;'`", 'ASDFGHJKL:"~'),
    (0x2B, "\\zxcvbnm,./", "|ZXCVBNM<>?"),
    (0x0E, "\b\t", ""),
    (0x1C, "\n", ""),
    (0x39, " ", ""),
    (0x01, "\x1b", ""),
)
"""First code of a row, its keys, the same with Shift."""


class Stroke(NamedTuple):
    """A key, and whether Shift is held meanwhile."""

    code: int
    is_shifted: bool


STROKES: dict[str, Stroke] = {
    character: Stroke(first + index, is_shifted)
    for first, plain, shifted in _ROWS
    for is_shifted, row in ((False, plain), (True, shifted))
    for index, character in enumerate(row)
}
"""By character: printable ASCII, Backspace, Tab, Enter (a newline) and Escape."""
