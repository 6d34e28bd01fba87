"""A fuzzer's bytes as a script: small numbers, choices and strings, each from the next bytes.

A script never fails: after the last byte come zeros and empty strings. One changed byte changes one decision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

_LARGE = 0xD0
_EXTREMES = [(1 << bits) + delta for bits in (7, 8, 11, 12, 15, 16, 31, 32, 48, 52, 63, 64) for delta in (-1, 0)]
"""Numbers around which mistakes live. Bytes from 0xD0 on stand for them."""


class Script:
    """See the module."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        """There is more of it."""
        return self._at < len(self._data)

    def take(self, size: int) -> bytes:
        """The next bytes, fewer at the end."""
        self._at += size
        return self._data[self._at - size : self._at]

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self._data))

    def number(self, size: int = 1) -> int:
        """An unsigned number of this many bytes, little-endian."""
        return int.from_bytes(self.take(size), "little")

    def flag(self) -> bool:
        """True or False."""
        return bool(self.number() & 1)

    def value(self, bits: int) -> int:
        """A number of up to `bits` bits, from one byte: mostly a small one, sometimes an extreme one."""
        byte = self.number()
        value = byte if byte < _LARGE else _EXTREMES[(byte - _LARGE) % len(_EXTREMES)]
        return value & (1 << bits) - 1

    def text(self, size: int = 1) -> bytes:
        """A length of this many bytes, then so many bytes."""
        return self.take(self.number(size))

    def pick(self, choices: Sequence[T]) -> T:
        """One of these."""
        return choices[self.number() % len(choices)]


def text(data: bytes, size: int = 1) -> bytes:
    """What `Script.text` reads."""
    return len(data).to_bytes(size, "little") + data
