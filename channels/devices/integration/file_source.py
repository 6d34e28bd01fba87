"""What a file copy reads from: a file, bytes, or an asynchronous iterable of bytes; never more than a chunk at a time.

Files are read in place, without threads: they have to be regular ones, so that nothing waits.
"""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterable
from pathlib import Path

from broker.errors import ConfigurationError, HostError

READ_AHEAD = 1 << 18
"""Bytes that are read from a file at once."""

Copyable = str | Path | bytes | AsyncIterable[bytes]


class Source(ABC):
    """Bytes in order, and how many there are said to be. An asynchronous context manager that closes it."""

    name: str
    size: int

    @abstractmethod
    async def read(self, count: int) -> bytes | memoryview:
        """The next `count` bytes, fewer at the end only. `HostError` when they cannot be read."""

    async def aclose(self) -> None:
        """Let go of it."""
        return

    async def __aenter__(self) -> Source:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def open_source(source: Copyable, size: int | None) -> Source:
    """Look at what is to be copied. `HostError` for a file that cannot be read or is no regular file,
    `ConfigurationError` for an iterable whose size is not given, and for any other whose size is."""
    if isinstance(source, (str, Path, bytes)):
        if size is not None:
            raise ConfigurationError("a size is given for an iterable only; files and bytes have their own")
        return _Bytes(source) if isinstance(source, bytes) else _File(Path(source))
    if size is None or not 0 <= size < 1 << 64:
        raise ConfigurationError(f"an iterable is copied with its size in bytes, which is not {size}")
    return _Stream(source, size)


class _Bytes(Source):
    def __init__(self, data: bytes) -> None:
        self.name = "what is copied"
        self.size = len(data)
        self._left = memoryview(data)

    async def read(self, count: int) -> memoryview:
        taken, self._left = self._left[:count], self._left[count:]
        return taken


class _File(Source):
    def __init__(self, path: Path) -> None:
        self.name = f"the file {path}"
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO would wait for a writer
        except OSError as error:
            raise HostError(f"{self.name} cannot be copied: {error.strerror}") from None
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            os.close(descriptor)
            raise HostError(f"{self.name} cannot be copied: it is no regular file")
        self._file = open(descriptor, "rb", buffering=READ_AHEAD)
        self.size = about.st_size

    async def read(self, count: int) -> bytes:
        try:
            return self._file.read(count)
        except OSError as error:
            raise HostError(f"{self.name} cannot be read: {error.strerror}") from None

    async def aclose(self) -> None:
        self._file.close()


class _Stream(Source):
    def __init__(self, source: AsyncIterable[bytes], size: int) -> None:
        self.name = "what is copied"
        self.size = size
        self._chunks = aiter(source)
        self._unread = memoryview(b"")

    async def read(self, count: int) -> bytes:
        parts: list[memoryview] = []
        while count:
            if not self._unread:
                try:
                    self._unread = memoryview(await anext(self._chunks))
                except StopAsyncIteration:
                    break
            parts.append(self._unread[:count])
            self._unread = self._unread[count:]
            count -= len(parts[-1])
        return b"".join(parts)

    async def aclose(self) -> None:
        if isinstance(self._chunks, AsyncGenerator):  # nobody else goes on with it
            await self._chunks.aclose()
