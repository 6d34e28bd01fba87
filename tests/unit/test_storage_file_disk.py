"""`FileDisk`: what opens and what does not, in one sentence each; whole blocks in place; holes."""

from __future__ import annotations

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
    with pytest.raises(ConfigurationError, match=re.escape(sentence.format(path=path))) as caught:
        FileDisk.open(path, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


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

    monkeypatch.setattr(file_disk.os, "open", refuse)
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
