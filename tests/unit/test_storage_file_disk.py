"""`FileDisk`: what opens and what does not, in one sentence each; whole blocks in place; holes."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.errors import ConfigurationError
from channels.devices.storage import FileDisk, file_disk

FileMaker = Callable[[Path], object]


def sized(size: int) -> FileMaker:
    return lambda path: path.write_bytes(bytes(size))


@pytest.mark.parametrize(
    ("make", "options", "sentence"),
    [
        (lambda path: None, {}, "there is no disk file {path}; create it"),
        (lambda path: path.mkdir(), {}, "{path} is a directory; a disk needs a regular file"),
        (lambda path: path.mkdir(), {"read_only": True}, "{path} is a directory; a disk needs a regular file"),
        (lambda path: os.mkfifo(path), {}, "{path} is no regular file; a disk needs a regular file"),
        (sized(0), {}, "{path} would be a disk of 0 bytes"),
        (sized(511), {}, "{path} would be a disk of 511 bytes"),
        (sized(513), {}, "{path} would be a disk of 513 bytes"),
        (sized(5120), {"block_size": 4096}, "{path} would be a disk of 5120 bytes"),
        (sized(4096), {"size": 8192}, "{path} has 4096 bytes, and a disk of 8192 bytes was asked for"),
        (sized(4096), {"size": 8192, "create": True}, "{path} has 4096 bytes, and a disk of 8192 bytes was asked for"),
        (sized(4096), {"size": 1 << 64}, "{path} would be a disk of 18446744073709551616 bytes"),
        (lambda path: None, {"size": 1 << 64, "create": True}, "{path} would be a disk of 18446744073709551616 bytes"),
        (lambda path: None, {"size": 1 << 62, "create": True}, "{path} of 4611686018427387904 bytes cannot be made"),
        (sized(4096), {"size": 1000}, "{path} would be a disk of 1000 bytes"),
        (sized(4096), {"create": True}, "to create the disk file {path}, give it a size"),
        (sized(4096), {"block_size": 1000}, "not 1000"),
        (lambda path: path.symlink_to(path), {}, "the disk file {path} does not open: Too many levels"),
    ],
)
def test_a_file_that_is_no_disk_is_one_sentence(
    tmp_path: Path, make: FileMaker, options: dict[str, int], sentence: str
) -> None:
    path = tmp_path / "disk"
    make(path)
    descriptors = os.listdir("/proc/self/fd")
    with pytest.raises(ConfigurationError, match=re.escape(sentence.format(path=path))) as caught:
        FileDisk.open(path, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert os.listdir("/proc/self/fd") == descriptors


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open anything")
def test_a_file_that_may_not_be_written_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(4096))
    path.chmod(0o444)
    with pytest.raises(ConfigurationError, match=f"{path} may not be opened for this .*read_only"):
        FileDisk.open(path)
    with FileDisk.open(path, read_only=True) as disk:
        assert disk.read_only


def test_an_immutable_refusal_of_the_system_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where root is told EACCES or EROFS, which a test cannot arrange for."""

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ConfigurationError, match=r"may not be opened for this \(Permission denied\); try read_only"):
        FileDisk.open(tmp_path / "disk")


def test_a_file_has_one_writer_or_several_readers(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    with FileDisk.open(path, size=8192, create=True):
        for read_only in (False, True):
            with pytest.raises(ConfigurationError, match=f"{path} is locked, another disk has it open"):
                FileDisk.open(path, read_only=read_only)
    with (
        FileDisk.open(path, read_only=True),
        FileDisk.open(path, read_only=True),
        pytest.raises(ConfigurationError, match="is locked"),
    ):
        FileDisk.open(path)
    disk = FileDisk.open(path)
    disk.close()
    disk.close()
    FileDisk.open(path).close()


async def test_blocks_are_in_place_and_the_rest_of_the_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"a" * 4096 + b"tail")
    with FileDisk.open(path, size=4096) as disk:
        assert (disk.block_count, disk.block_size) == (8, 512)
        await disk.write(1, b"b" * 1024)
        await disk.flush()
        await disk.unmap(7, 1)
        assert await disk.read(0, 4) == b"a" * 512 + b"b" * 1024 + b"a" * 512
    assert path.read_bytes() == b"a" * 512 + b"b" * 1024 + b"a" * 2048 + bytes(512) + b"tail"


@pytest.mark.parametrize("has_holes", [True, False])
async def test_unmapped_blocks_take_no_room_where_the_file_system_has_holes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_holes: bool
) -> None:
    if not has_holes:
        monkeypatch.setattr(file_disk, "_punch_hole", lambda *_: False)
    path = tmp_path / "disk"
    path.write_bytes(b"x" * (4 << 20))
    before = path.stat().st_blocks
    with FileDisk.open(path, block_size=4096) as disk:
        await disk.unmap(1, 800)
        assert await disk.read(0, 802) == b"x" * 4096 + bytes(800 * 4096) + b"x" * 4096
    assert path.stat().st_size == 4 << 20
    if has_holes:
        with path.open("r+b") as file:
            knows_holes = file_disk._punch_hole(file.fileno(), 0, 4096)
        assert not knows_holes or path.stat().st_blocks < before // 2


async def test_a_file_that_was_cut_short_fails_its_reads(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    with FileDisk.open(path, size=8192, create=True) as disk:
        os.truncate(path, 5000)
        assert await disk.read(0, 8) == bytes(4096)
        with pytest.raises(OSError, match="the file ends before the disk does"):
            await disk.read(8, 4)
        await disk.write(15, b"y" * 512)
        assert await disk.read(15, 1) == b"y" * 512


@pytest.mark.parametrize("size", [0, -512, 1000, 1 << 63])
def test_no_file_is_made_for_a_size_that_no_disk_has(tmp_path: Path, size: int) -> None:
    path = tmp_path / "disk"
    with pytest.raises(ConfigurationError, match=f"would be a disk of {size} bytes"):
        FileDisk.open(path, size=size, create=True)
    assert not path.exists()


def test_the_name_of_a_new_file_is_on_the_medium(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a power cut takes the file, whatever was flushed."""
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    FileDisk.open(tmp_path / "disk", size=512, create=True).close()
    assert synced == [str(tmp_path.resolve())]
    FileDisk.open(tmp_path / "disk", size=512, create=True).close()
    assert len(synced) == 1


async def test_a_disk_that_was_closed_fails_everything_with_an_error_of_the_medium(tmp_path: Path) -> None:
    disk = FileDisk.open(tmp_path / "disk", size=4096, create=True)
    disk.close()
    for work in (disk.read(0, 1), disk.write(0, bytes(512)), disk.flush(), disk.unmap(0, 1)):
        with pytest.raises(OSError, match="Bad file descriptor"):
            await work


async def test_a_flush_that_failed_is_never_followed_by_a_good_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tells of pages that it could not store once, and drops them."""
    answers = [OSError(errno.ENOSPC, "No space left on device")]

    def sync_once(fd: int) -> None:
        if answers:
            raise answers.pop()

    with FileDisk.open(tmp_path / "disk", size=4096, create=True) as disk:
        await disk.flush()
        monkeypatch.setattr(os, "fdatasync", sync_once)
        for _ in range(3):
            with pytest.raises(OSError, match="No space left on device"):
                await disk.flush()
        assert not answers


async def test_a_full_medium_fails_its_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part fits, and the rest does not: never a good answer, never an endless loop."""
    store = os.pwrite

    def nearly_full(fd: int, data: bytes | memoryview, offset: int) -> int:
        if offset:
            raise OSError(errno.ENOSPC, "No space left on device")
        return store(fd, data[:512], offset)

    with FileDisk.open(tmp_path / "disk", size=4096, create=True) as disk:
        monkeypatch.setattr(os, "pwrite", nearly_full)
        with pytest.raises(OSError, match="No space left on device"):
            await disk.write(0, b"z" * 1024)
        assert await disk.read(0, 2) == b"z" * 512 + bytes(512)
