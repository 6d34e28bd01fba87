"""What a SCSI controller serves: a `Disk`, here one in memory.

A disk is blocks, numbered from 0. The controller asks for nothing that is not there: ranges lie within the disk, data fill
whole blocks, a read-only disk gets no writes. Commands of one channel come one after another, those of several channels
may come at the same time.
"""

from __future__ import annotations

from typing import Protocol

from broker.errors import ConfigurationError

LEAST_BLOCK, LARGEST_BLOCK = 512, 4096
_ZEROS = 1 << 20
"""Bytes of zeros that are made at once."""


class Disk(Protocol):
    """See the module. `OSError` is a failure of the medium, which the guest hears of; any other exception is a mistake."""

    @property
    def block_size(self) -> int:
        """Bytes of a block: a power of two from 512 to 4096."""
        ...

    @property
    def block_count(self) -> int:
        """Blocks, at least one. It never changes."""
        ...

    @property
    def read_only(self) -> bool:
        """True for a disk that takes no writes."""
        ...

    async def read(self, lba: int, count: int) -> bytes:
        """The bytes of `count` blocks from `lba` on, one block or more."""
        ...

    async def write(self, lba: int, data: bytes) -> None:
        """Store one or more whole blocks from `lba` on. When it returns, every later read sees them."""
        ...

    async def flush(self) -> None:
        """What was written before is on the medium when this returns."""
        ...

    async def unmap(self, lba: int, count: int) -> None:
        """These blocks are not needed any more: they read as zeros from now on."""
        ...


def check_block_size(block_size: int) -> None:
    """`ConfigurationError` for a block size that no disk has."""
    if block_size & (block_size - 1) or not LEAST_BLOCK <= block_size <= LARGEST_BLOCK:
        raise ConfigurationError(
            f"a block has 512, 1024, 2048 or 4096 bytes, not {block_size}; choose one of these as block_size"
        )


class MemoryDisk:
    """A disk in memory, with these bytes, or zeroed where a size is given. It lasts as long as this object.

    `ConfigurationError` for a size that is no positive multiple of the block size, or a block size that no disk has.
    """

    def __init__(
        self, contents: int | bytes | bytearray | memoryview, *, block_size: int = 512, read_only: bool = False
    ) -> None:
        check_block_size(block_size)
        size = contents if isinstance(contents, int) else len(contents)
        if size < block_size or size % block_size:
            raise ConfigurationError(
                f"a disk of {size} bytes is no positive multiple of its blocks of {block_size} bytes; give it another size"
            )
        self.contents = bytearray(contents)
        """The bytes of all blocks. Whoever has the disk may look and change."""
        self.block_size = block_size
        self.block_count = size // block_size
        self.read_only = read_only

    async def read(self, lba: int, count: int) -> bytes:
        """See `Disk.read`."""
        start = lba * self.block_size
        return bytes(memoryview(self.contents)[start : start + count * self.block_size])

    async def write(self, lba: int, data: bytes) -> None:
        """See `Disk.write`."""
        start = lba * self.block_size
        self.contents[start : start + len(data)] = data

    async def flush(self) -> None:
        """Nothing lies between the guest and this memory."""

    async def unmap(self, lba: int, count: int) -> None:
        """See `Disk.unmap`."""
        start, end = lba * self.block_size, (lba + count) * self.block_size
        for position in range(start, end, _ZEROS):
            size = min(_ZEROS, end - position)
            self.contents[position : position + size] = bytes(size)
