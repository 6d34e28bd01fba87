"""Trace files, format 1: JSON lines. The first line says what it is, each other line is one event.

{"format":"vmbus-trace","version":1}
{"event":"post","id":1,"time":0,"cause":0,"flow":1,"vp":0,...}
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Self

import msgspec

from ..errors import DamagedDocument, UnsupportedVersion
from .events import AnyEvent

FORMAT = "vmbus-trace"
VERSION = 1


class TraceHeader(msgspec.Struct):
    """The first line of a trace file."""

    format: str
    version: int


_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent)


def encode_event(event: AnyEvent) -> bytes:
    """One event as one line of JSON, without the line's end."""
    return _encoder.encode(event)


class TraceRecorder:
    """Writes events to a file; an observer for `Trace.subscribe`. Close it, or use it as a context manager.

    `OSError` when the file cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self._file: BinaryIO = Path(path).open("wb")
        self._file.write(_encoder.encode(TraceHeader(FORMAT, VERSION)) + b"\n")

    def __call__(self, event: AnyEvent) -> None:
        self._file.write(_encoder.encode(event) + b"\n")

    def close(self) -> None:
        """Write out what is buffered and close; idempotent."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_trace(path: str | Path) -> Iterator[AnyEvent]:
    """The events of a trace file, in order.

    `DamagedDocument` (with the line's number) for a file that is no trace, cut short or changed; `UnsupportedVersion`
    for one that a newer version wrote; `OSError` when it cannot be read.
    """
    with Path(path).open("rb") as file:
        try:
            header = msgspec.json.decode(file.readline(), type=TraceHeader)
        except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError):
            header = None
        if header is None or header.format != FORMAT:
            raise DamagedDocument(f"{path} is no trace file: its first line does not say so")
        if header.version > VERSION:
            raise UnsupportedVersion(
                f"{path} is a trace of version {header.version}; this program reads up to {VERSION}"
            )
        for number, line in enumerate(file, start=2):
            try:
                if not line.endswith(b"\n"):
                    raise msgspec.DecodeError("the line is cut short")
                yield _decoder.decode(line)
            except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
                raise DamagedDocument(f"{path}, line {number}: no trace event ({error})") from error
