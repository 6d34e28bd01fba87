"""Saved states as documents: msgpack, {format, version, crc32, body}; the checksum covers the body, encoded on its own."""

from __future__ import annotations

import zlib
from typing import Any, TypeVar

import msgspec

from broker.errors import DamagedDocument, UnsupportedVersion

T = TypeVar("T")


class Envelope(msgspec.Struct, frozen=True):
    """The document."""

    format: str
    version: int
    crc32: int
    body: bytes


class DocumentFormat(msgspec.Struct, frozen=True):
    """One kind of document; `what` it is, in words."""

    name: str
    version: int
    what: str

    def encode(self, body: msgspec.Struct) -> bytes:
        """The document with this body."""
        data = msgspec.msgpack.encode(body)
        return msgspec.msgpack.encode(Envelope(self.name, self.version, zlib.crc32(data), data))

    def decode(self, document: bytes, kind: type[T]) -> T:
        """The body of a document. `DamagedDocument` or `UnsupportedVersion` with a sentence."""
        envelope: Envelope = self._read(document, Envelope, f"this {self.what}")
        if envelope.format != self.name:
            raise DamagedDocument(f"this is a document of format {envelope.format!r}, not a {self.what}")
        if envelope.version < 1:
            raise DamagedDocument(f"the {self.what} says its version is {envelope.version}; versions count from 1")
        if envelope.version > self.version:
            raise UnsupportedVersion(
                f"the {self.what} is of version {envelope.version}; this program reads up to version {self.version}"
            )
        if zlib.crc32(envelope.body) != envelope.crc32:
            raise DamagedDocument(f"the {self.what} is damaged: its checksum does not fit")
        body: T = self._read(envelope.body, kind, f"the body of the {self.what}")
        return body

    def _read(self, data: bytes, kind: Any, where: str) -> Any:
        try:
            return msgspec.msgpack.decode(data, type=kind)
        except (
            msgspec.DecodeError,
            ValueError,
            RecursionError,
        ) as error:  # ValidationError and bad UTF-8 are among them
            raise DamagedDocument(f"{where} cannot be read: {error}") from error
