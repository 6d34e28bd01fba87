"""Where files go that a host copies into a guest: under one directory, whatever the host calls the place.

"/tmp/x", "C:\\\\tmp\\\\x" and "tmp/x" are all tmp/x below that directory. Each step down is opened by itself and follows no
link, so that no name, and no link that lies there, leads out of it. A file has another name until it is whole, one that
no host can say: it appears at once, and one that it replaces stays as it was until then.

Errors are `ValueError` for names that cannot be, and those of the operating system.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Sequence
from itertools import count
from pathlib import Path

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def split_guest_path(path: str) -> tuple[str, ...]:
    """The steps down to a directory; none for the topmost. `ValueError` where one leads up or cannot be a name."""
    path = path.replace("\\", "/")
    if path[1:2] == ":" and path[0].isascii() and path[0].isalpha():
        path = path[2:]
    return tuple(check_name(part) for part in path.split("/") if part not in ("", "."))


def check_name(name: str) -> str:
    """The name itself. `ValueError` when it is more than a name, or none."""
    if name in ("", ".", "..") or any(character in name for character in "/\\:\0"):
        raise ValueError(f"{name!r} is not the name of a file")
    return name


class IncomingFile:
    """A file on its way."""

    def __init__(
        self, root: Path, directory: Sequence[str], name: str, size: int, *, overwrite: bool, create_path: bool
    ) -> None:
        """`size`: bytes that will come. `FileExistsError` when it is there and may not be replaced."""
        self.size = size
        self.written = 0
        self._name = check_name(name)
        self._overwrite = overwrite
        self._directory = _open_directory(root, directory, create=create_path)
        try:
            self._check_target()
            self._partial, self._file = _create_partial(self._directory)
        except BaseException:
            os.close(self._directory)
            raise

    def write(self, data: bytes) -> None:
        """Append, all of it. `OSError` when there is no room."""
        left = memoryview(data)
        while left:
            left = left[os.write(self._file, left) :]
        self.written += len(data)

    def finish(self) -> None:
        """It is whole: give it its name. `FileExistsError` as above. Not to be used after that, or after `discard`."""
        try:
            os.close(self._file)  # which may be the first to hear that a disk is full
            if not self._overwrite:
                os.link(self._partial, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
                self._remove()
            else:
                os.replace(self._partial, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        except BaseException:
            self._remove()
            raise
        finally:
            os.close(self._directory)

    def discard(self) -> None:
        """It will never be whole: nothing is left of it, unless the system does not let it be removed."""
        with contextlib.suppress(OSError):
            os.close(self._file)
        self._remove()
        os.close(self._directory)

    def _check_target(self) -> None:
        try:
            there = os.stat(self._name, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return
        if not self._overwrite:
            raise FileExistsError(self._name)
        if stat.S_ISDIR(there.st_mode):
            raise IsADirectoryError(self._name)

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self._partial, dir_fd=self._directory)


def _open_directory(root: Path, steps: Sequence[str], *, create: bool) -> int:
    found = os.open(root, _DIRECTORY)
    try:
        for step in steps:
            if create:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(step, dir_fd=found)
            below = os.open(step, _DIRECTORY | os.O_NOFOLLOW, dir_fd=found)
            os.close(found)
            found = below
    except BaseException:
        os.close(found)
        raise
    return found


def _create_partial(directory: int) -> tuple[str, int]:
    """Several guests may share a directory. `check_name` refuses a name with a colon."""
    for number in count():
        name = f".incoming:{number}"
        with contextlib.suppress(FileExistsError):
            return name, os.open(name, _NEW_FILE, 0o644, dir_fd=directory)
    raise AssertionError("numbers do not end")
