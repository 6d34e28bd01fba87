"""The engine for where atheris is not: seeds, changed a little, at random. It knows no coverage."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

_BYTES = (0x00, 0x01, 0x7F, 0x80, 0xFE, 0xFF)
_SIZES = (1, 2, 4, 8)
_MOST_CHANGES = 5
_PIECE = 64
"""Bytes that one change moves at most."""


def mutations(seeds: Sequence[bytes], seed: int, longest: int) -> Iterator[bytes]:
    """Inputs without end, each a seed with one to five changes, at most `longest` bytes. The same for the same `seed`."""
    source = random.Random(seed)
    sound = list(seeds) or [b""]
    while True:
        data = bytearray(source.choice(sound))
        for _ in range(source.randint(1, _MOST_CHANGES)):
            source.choice(_CHANGES)(data, source, sound)
        yield bytes(data[:longest])


def _flip(data: bytearray, source: random.Random, _: Sequence[bytes]) -> None:
    if data:
        data[source.randrange(len(data))] ^= 1 << source.randrange(8)


def _set(data: bytearray, source: random.Random, _: Sequence[bytes]) -> None:
    if data:
        data[source.randrange(len(data))] = source.choice((*_BYTES, source.randrange(256)))


def _write_number(data: bytearray, source: random.Random, _: Sequence[bytes]) -> None:
    """A number near a power of two."""
    size = source.choice(_SIZES)
    number = (1 << source.randrange(8 * size)) + source.randint(-1, 1)
    at = source.randrange(len(data) + 1)
    data[at : at + size] = (number % (1 << 8 * size)).to_bytes(size, "little")


def _insert(data: bytearray, source: random.Random, _: Sequence[bytes]) -> None:
    at = source.randrange(len(data) + 1)
    data[at:at] = source.randbytes(source.randint(1, 8))


def _remove(data: bytearray, source: random.Random, _: Sequence[bytes]) -> None:
    at = source.randrange(len(data) + 1)
    del data[at : at + source.randint(1, _PIECE)]


def _repeat(data: bytearray, source: random.Random, _: Sequence[bytes]) -> None:
    at = source.randrange(len(data) + 1)
    data[at:at] = data[at : at + source.randint(1, _PIECE)]


def _splice(data: bytearray, source: random.Random, seeds: Sequence[bytes]) -> None:
    """The end of another seed."""
    other = source.choice(seeds)
    data[source.randrange(len(data) + 1) :] = other[source.randrange(len(other) + 1) :]


_CHANGES = (_flip, _set, _write_number, _insert, _remove, _repeat, _splice)
