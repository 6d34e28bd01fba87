"""Where a guest puts the files that a host sends: below its directory, whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channels.drivers.integration.guest_files import IncomingFile, check_name, split_guest_path


@pytest.mark.parametrize(
    ("path", "steps"),
    [
        ("", ()),
        ("/", ()),
        ("/tmp/x", ("tmp", "x")),
        ("tmp//x/.", ("tmp", "x")),
        ("C:\\tmp\\x", ("tmp", "x")),
        ("c:/tmp/x", ("tmp", "x")),
        ("z:", ()),
        ("\\\\server\\share", ("server", "share")),
        ("...", ("...",)),
    ],
)
def test_paths_of_either_kind_of_guest_lie_below_the_directory(path: str, steps: tuple[str, ...]) -> None:
    assert split_guest_path(path) == steps


@pytest.mark.parametrize(
    "path", ["..", "/../etc", "tmp/../../etc", "a\\..\\b", "C:\\..", "C:\\D:\\x", "ä:\\x", "file:stream"]
)
def test_paths_that_lead_elsewhere_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match="is not the name of a file"):
        split_guest_path(path)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "C:x", "/etc/passwd", "a\0"])
def test_names_that_are_more_than_a_name_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not the name of a file"):
        IncomingFile(tmp_path, (), name, 0, overwrite=True, create_path=True)


@given(st.text(max_size=30))
def test_no_path_leads_out(path: str) -> None:
    try:
        steps = split_guest_path(path)
    except ValueError:
        return
    assert all(check_name(step) == step for step in steps)
    top = Path("/top")
    assert os.path.normpath(top.joinpath(*steps)).startswith("/top")


def test_links_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    root = tmp_path / "root"
    outside.mkdir()
    root.mkdir()
    (root / "link").symlink_to(outside, target_is_directory=True)
    (outside / "file").write_text("as it was")
    (root / "file").symlink_to(outside / "file")
    with pytest.raises(OSError, match="link"):
        IncomingFile(root, ("link",), "file", 0, overwrite=True, create_path=True)
    with pytest.raises(FileExistsError):
        IncomingFile(root, (), "file", 0, overwrite=False, create_path=False)
    incoming = IncomingFile(root, (), "file", 3, overwrite=True, create_path=False)
    incoming.write(b"new")
    incoming.finish()
    assert not (root / "file").is_symlink()
    assert (root / "file").read_bytes() == b"new"
    assert (outside / "file").read_text() == "as it was"


def test_a_file_appears_at_once_and_leaves_nothing_when_it_does_not(tmp_path: Path) -> None:
    open_files = len(os.listdir("/proc/self/fd"))
    first = IncomingFile(tmp_path, ("a", "b"), "file", 4, overwrite=False, create_path=True)
    second = IncomingFile(tmp_path, ("a", "b"), "file", 4, overwrite=False, create_path=False)
    place = tmp_path / "a" / "b"
    first.write(b"some")
    assert not (place / "file").exists()
    first.finish()
    assert sorted(os.listdir(place)) == [".incoming:1", "file"]
    second.write(b"else")
    with pytest.raises(FileExistsError):
        second.finish()
    assert os.listdir(place) == ["file"]
    third = IncomingFile(tmp_path, ("a", "b"), "file", 4, overwrite=True, create_path=False)
    third.write(b"thir")
    third.discard()
    assert os.listdir(place) == ["file"]
    assert (place / "file").read_bytes() == b"some"
    assert len(os.listdir("/proc/self/fd")) == open_files


def test_a_directory_is_neither_missing_nor_replaced(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError):
        IncomingFile(tmp_path, ("missing",), "file", 0, overwrite=True, create_path=False)
    with pytest.raises(IsADirectoryError):
        IncomingFile(tmp_path, (), "directory", 0, overwrite=True, create_path=False)
    with pytest.raises(NotADirectoryError):
        IncomingFile(tmp_path, ("file",), "x", 0, overwrite=True, create_path=True)


def test_a_host_cannot_name_the_files_that_are_on_their_way(tmp_path: Path) -> None:
    other = IncomingFile(tmp_path, (), "other", 4, overwrite=True, create_path=False)
    (on_its_way,) = os.listdir(tmp_path)
    with pytest.raises(ValueError, match="is not the name of a file"):
        check_name(on_its_way)
    mine = IncomingFile(tmp_path, (), ".incoming-1", 4, overwrite=True, create_path=False)
    mine.write(b"mine")
    mine.finish()
    assert (tmp_path / ".incoming-1").read_bytes() == b"mine"
    other.discard()
    assert os.listdir(tmp_path) == [".incoming-1"]


def test_a_hard_link_that_is_replaced_leaves_the_file_at_its_other_end(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    root.mkdir()
    outside.write_text("as it was")
    (root / "file").hardlink_to(outside)
    os.mkfifo(root / "fifo")
    for name in ("file", "fifo"):
        incoming = IncomingFile(root, (), name, 3, overwrite=True, create_path=False)
        incoming.write(b"new")
        incoming.finish()
        assert (root / name).read_bytes() == b"new"
    assert outside.read_text() == "as it was"


@pytest.mark.parametrize("call", ["close", "unlink"])
@pytest.mark.parametrize("end", ["finish", "discard"])
def test_a_system_that_fails_at_the_end_keeps_no_file_open(
    call: str, end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk may tell only then that it is full, or be read-only after an error."""
    open_files = len(os.listdir("/proc/self/fd"))
    incoming = IncomingFile(tmp_path, (), "file", 0, overwrite=False, create_path=False)
    close, calls = os.close, 0

    def fail(*arguments: object, **_: object) -> None:
        nonlocal calls
        if call == "close":
            close(arguments[0])  # type: ignore[arg-type]
        calls += 1
        if calls == 1:
            raise OSError(errno.EROFS if call == "unlink" else errno.ENOSPC, "no")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        if end == "finish" and call == "close":
            with pytest.raises(OSError, match="no"):
                incoming.finish()
        else:
            getattr(incoming, end)()
    assert len(os.listdir("/proc/self/fd")) == open_files
    assert (tmp_path / "file").exists() == (end == "finish" and call == "unlink")
    assert call == "unlink" or os.listdir(tmp_path) == []
