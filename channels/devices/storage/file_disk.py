"""`FileDisk`: a disk over a file, in place, and what it promises.

- A write that was completed is in the file, whole, whatever becomes of this process: it went into the file (the kernel's page
  cache) before the guest heard of it. A killed process never leaves half a block of a completed write.
- After SYNCHRONIZE CACHE, or a write with FUA, it also survives a power cut (`fdatasync`). Once that has failed, each later one
  fails, too: the kernel may have dropped what it could not store, and would then say that all is well.
- A write that was under way when the process was killed may be there in part, but in whole blocks: the kernel stops between
  pages of 4096 bytes, and no block crosses one.

The file is locked while it is open (`flock`): one disk writes, or several read. Reads, writes and flushes are plain system
calls in the event loop, not in threads: so the same seed plays the same way, and a slow medium holds up the loop meanwhile.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Self

from broker.errors import ConfigurationError

from .disk import check_block_size

_PUNCH_HOLE, _KEEP_SIZE = 0x02, 0x01
_LARGEST = (1 << 63) - 1
_ZEROS = 1 << 20
"""Bytes of zeros that are written at once where the file system knows no holes."""


class FileDisk:
    """See the module. Made by `open`; close it when nobody serves it any more."""

    def __init__(self, fd: int, path: Path, size: int, block_size: int, read_only: bool) -> None:
        self.path = path
        self.block_size = block_size
        self.block_count = size // block_size
        self.read_only = read_only
        self._fd = fd
        self._lost = 0
        """`errno` of the flush that has failed."""

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        size: int | None = None,
        create: bool = False,
        read_only: bool = False,
        block_size: int = 512,
    ) -> Self:
        """Open and lock a file. `size`: bytes of the disk, all of the file unless given; the file may be larger.

        `create`: make a file of `size` bytes, all zeros and taking no room yet, where there is none or an empty one.

        `ConfigurationError`, one sentence with the path, for a file that is missing, no regular file, smaller than one block
        or than `size`, no multiple of the block size, locked by another disk, or not to be written. No file is made for a
        size that no disk has.
        """
        check_block_size(block_size)
        if create and (size is None or read_only):
            raise ConfigurationError(f"to create the disk file {os.fspath(path)}, give it a size, and not read_only")
        place = Path(path)
        if size is not None:
            _check_size(place, size, block_size)
        flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC | os.O_NONBLOCK | (os.O_CREAT if create else 0)
        try:
            fd = os.open(place, flags, 0o666)
        except OSError as error:
            raise ConfigurationError(_refusal(place, error)) from None
        try:
            return cls(fd, place, _prepare(fd, place, size, create, read_only, block_size), block_size, read_only)
        except BaseException:
            os.close(fd)
            raise

    def close(self) -> None:
        """Close and unlock; idempotent. What was not flushed is still the kernel's to write."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def read(self, lba: int, count: int) -> bytes:
        """See `Disk.read`. `OSError` also where somebody has cut the file short."""
        size = count * self.block_size
        data = os.pread(self._fd, size, lba * self.block_size)
        while len(data) < size:
            more = os.pread(self._fd, size - len(data), lba * self.block_size + len(data))
            if not more:
                raise OSError(errno.EIO, "the file ends before the disk does", str(self.path))
            data += more
        return data

    async def write(self, lba: int, data: bytes) -> None:
        """See `Disk.write` and the module."""
        start = lba * self.block_size
        done = os.pwrite(self._fd, data, start)
        while done < len(data):
            done += os.pwrite(self._fd, memoryview(data)[done:], start + done)

    async def flush(self) -> None:
        """See `Disk.flush` and the module."""
        reason = self._lost if self._fd >= 0 else errno.EBADF  # fdatasync(-1) is no `OSError`
        if reason:
            raise OSError(reason, os.strerror(reason), str(self.path))
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            self._lost = error.errno or errno.EIO
            raise

    async def unmap(self, lba: int, count: int) -> None:
        """Punch a hole; where the file system has none, write zeros."""
        start, end = lba * self.block_size, (lba + count) * self.block_size
        if _punch_hole(self._fd, start, end - start):
            return
        for position in range(start, end, _ZEROS):
            await self.write(position // self.block_size, bytes(min(_ZEROS, end - position)))


def _refusal(path: Path, error: OSError) -> str:
    """One sentence about a file that does not open."""
    if isinstance(error, FileNotFoundError):
        return f"there is no disk file {path}; create it, or let FileDisk do so with create and a size"
    if isinstance(error, IsADirectoryError):
        return f"{path} is a directory; a disk needs a regular file"
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return f"the disk file {path} may not be opened for this ({error.strerror}); try read_only, or change its mode"
    return f"the disk file {path} does not open: {error.strerror}"


def _check_size(path: Path, size: int, block_size: int) -> None:
    if not block_size <= size <= _LARGEST or size % block_size:
        raise ConfigurationError(
            f"the disk file {path} would be a disk of {size} bytes, which is no positive multiple of its blocks"
            f" of {block_size} bytes below 2^63"
        )


def _prepare(fd: int, path: Path, size: int | None, create: bool, read_only: bool, block_size: int) -> int:
    """Check, lock and, where that is asked, size a file that is open. The bytes of the disk."""
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        kind = "a directory" if stat.S_ISDIR(found.st_mode) else "no regular file"
        raise ConfigurationError(f"{path} is {kind}; a disk needs a regular file")
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno != errno.EWOULDBLOCK:
            raise ConfigurationError(f"the disk file {path} cannot be locked: {error.strerror}") from None
        raise ConfigurationError(
            f"the disk file {path} is locked, another disk has it open; close that one, or open both read_only"
        ) from None
    there = os.fstat(fd).st_size  # whoever had the lock before may have made the file longer
    wanted = there if size is None else size
    _check_size(path, wanted, block_size)
    if create and not there:
        try:
            _sync_folder(path.resolve().parent)
            os.ftruncate(fd, wanted)
        except OSError as error:
            raise ConfigurationError(
                f"the disk file {path} of {wanted} bytes cannot be made: {error.strerror}"
            ) from None
    elif there < wanted:
        raise ConfigurationError(f"the disk file {path} has {there} bytes, and a disk of {wanted} bytes was asked for")
    return wanted


def _sync_folder(folder: Path) -> None:
    """The name of a new file is on the medium, without which its data could not be found."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _punch_hole(fd: int, start: int, size: int) -> bool:
    """Free a part of a file; it reads as zeros. False where the file system cannot."""
    while _fallocate()(fd, _PUNCH_HOLE | _KEEP_SIZE, start, size):
        number = ctypes.get_errno()
        if number in (errno.EOPNOTSUPP, errno.ENOSYS):
            return False
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
    return True


@cache
def _fallocate() -> Callable[[int, int, int, int], int]:
    """`fallocate(2)`, which Python has no call for."""
    function = ctypes.CDLL(None, use_errno=True).fallocate
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return function
