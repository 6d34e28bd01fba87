"""File copies: what the host sends is what the guest has, or nothing is; 0 bytes to 100 MB."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import resource
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import PartitionConfig
from broker.errors import ChannelClosed, ConfigurationError, HostError
from channels.client import VmbusClient
from channels.devices.integration.component import GuestRefused
from channels.devices.integration.file_copy import CANCEL_LIMIT, FileCopyDevice
from channels.drivers.framework import run_drivers
from channels.drivers.integration.component import Request
from channels.drivers.integration.file_copy import FileCopyDriver
from channels.protocol.integration.common import FRAMEWORKS, IcHeader, IcStatus, IcVersion
from channels.protocol.integration.file_copy import (
    DATA_SIZE,
    FILE_COPY_VERSIONS,
    CopyRequest,
    FileCopyFlags,
    FileCopyHeader,
    FileCopyOperation,
    pack_start,
    pack_write,
)
from channels.scenarios.stage import Flag

from .integration_pair import LIVE, SEEDED, VIRTUAL, chosen, hosting, ic, paired, raw_guest
from .test_kvp import at_once

CONFIGS = pytest.mark.parametrize("config", [LIVE, VIRTUAL, SEEDED], ids=["live", "virtual", "seeded"])
SIZES = (0, 1, DATA_SIZE - 1, DATA_SIZE, DATA_SIZE + 1, 1 << 20)
FRAMEWORK_1, FRAMEWORK_3 = FRAMEWORKS
MIB = 1 << 20


def some_bytes(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def listing(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir())


def contents(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """What the host takes for the guest's root. No file stays open."""
    directory = tmp_path / "guest"
    directory.mkdir()
    yield directory
    held = [os.readlink(f"/proc/self/fd/{entry}") for entry in os.listdir("/proc/self/fd") if is_there(entry)]
    assert not [path for path in held if path.startswith(str(tmp_path))]


def is_there(descriptor: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{descriptor}")


# what arrives


@CONFIGS
@pytest.mark.parametrize("size", SIZES)
async def test_a_file_arrives_as_it_was(size: int, config: PartitionConfig, root: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(some_bytes(size))
    told: list[tuple[int, int]] = []
    device, driver = FileCopyDevice(), FileCopyDriver(root)
    async with paired([device], [driver], config):
        await device.copy(source, "/", "file", progress=lambda done, total: told.append((done, total)))
    assert (root / "file").read_bytes() == some_bytes(size)
    assert listing(root) == ["file"]
    assert driver.copied == 1
    assert told == [(min(done + DATA_SIZE, size), size) for done in range(0, size, DATA_SIZE)]


@pytest.mark.parametrize("pieces", [1, 1000, DATA_SIZE, 50_000])
async def test_bytes_and_streams_arrive_as_they_were(pieces: int, root: Path) -> None:
    data = some_bytes(100_001)

    async def stream() -> AsyncIterator[bytes]:
        for start in range(0, len(data), pieces):
            yield data[start : start + pieces]
            yield b""

    device = FileCopyDevice()
    async with paired([device], [FileCopyDriver(root)]):
        await device.copy(stream(), "a", "stream", size=len(data), create_path=True)
        await device.copy(data, "a", "bytes")
    assert (root / "a/stream").read_bytes() == (root / "a/bytes").read_bytes() == data


async def test_100_mb_arrive_as_they_were(root: Path, tmp_path: Path) -> None:
    source, block = tmp_path / "source", some_bytes(MIB)
    with source.open("wb") as file:
        for number in range(100):
            file.write(number.to_bytes(8, "little") + block[8:])
    device = FileCopyDevice()
    async with paired([device], [FileCopyDriver(root)], LIVE):
        await device.copy(source, "/", "copy")
    assert (root / "copy").stat().st_size == 100 * MIB
    assert digest(root / "copy") == digest(source)
    source.unlink()
    (root / "copy").unlink()


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
@pytest.mark.parametrize("narrow", ["host", "guest"])
async def test_every_version_is_agreed_on_and_works(narrow: str, framework: IcVersion, root: Path) -> None:
    if narrow == "host":
        device = FileCopyDevice(versions=FILE_COPY_VERSIONS, frameworks=[framework])
        driver = FileCopyDriver(root, framework_versions=FRAMEWORKS[::-1])
    else:
        device = FileCopyDevice()
        driver = FileCopyDriver(root, framework_versions=[framework], message_versions=FILE_COPY_VERSIONS)
    async with paired([device], [driver]):
        await device.copy(b"data", "/", "file")
        assert (device.framework, device.version) == (framework, IcVersion(1, 1))
    assert (root / "file").read_bytes() == b"data"


async def test_a_linux_guest_wants_framework_3_0(root: Path) -> None:
    device = FileCopyDevice(frameworks=[FRAMEWORK_1])
    async with paired([device], [FileCopyDriver(root)]):
        with pytest.raises(ChannelClosed, match="the guest supports no version of FILE_COPY"):
            await device.copy(b"data", "/", "file")


# what the guest refuses


async def test_a_file_that_exists_is_replaced_only_where_that_is_allowed(root: Path) -> None:
    (root / "file").write_text("as it was")
    device = FileCopyDevice()
    async with paired([device], [FileCopyDriver(root)]):
        with pytest.raises(GuestRefused, match="refused the file 'file': status 0x80070050") as refused:
            await device.copy(b"new", "/", "file")
        assert refused.value.status is IcStatus.ALREADY_EXISTS
        assert (root / "file").read_text() == "as it was"
        await device.copy(b"new", "/", "file", overwrite=True)
    assert (root / "file").read_bytes() == b"new"
    assert listing(root) == ["file"]


async def test_a_directory_is_made_only_where_that_is_wanted(root: Path) -> None:
    device = FileCopyDevice()
    async with paired([device], [FileCopyDriver(root)]):
        with pytest.raises(GuestRefused, match="0x80004005"):
            await device.copy(b"new", "C:\\a\\b", "file")
        assert contents(root) == []
        await device.copy(b"new", "C:\\a\\b", "file", create_path=True)
        await device.copy(b"new", "/a/b", "other")
    assert listing(root) == ["a/b/file", "a/b/other"]


@pytest.mark.parametrize(
    ("path", "name", "status"),
    [
        ("/../outside", "file", IcStatus.INVALID_ARGUMENT),
        ("/", "../file", IcStatus.INVALID_ARGUMENT),
        ("/", "..", IcStatus.INVALID_ARGUMENT),
        ("/", "C:file", IcStatus.INVALID_ARGUMENT),
        ("/link", "file", IcStatus.FAIL),
        ("/", "n" * 256, IcStatus.FAIL),
    ],
)
async def test_no_name_leads_out_of_the_directory(path: str, name: str, status: IcStatus, root: Path) -> None:
    outside = root.parent / "outside"
    outside.mkdir()
    (root / "link").symlink_to(outside, target_is_directory=True)
    device = FileCopyDevice()
    async with paired([device], [FileCopyDriver(root)]):
        with pytest.raises(GuestRefused) as refused:
            await device.copy(b"new", path, name, overwrite=True, create_path=True)
    assert refused.value.status is status
    assert contents(outside) == []
    assert contents(root.parent) == ["guest", "outside"]


async def test_a_guest_may_allow_some_directories_alone(root: Path) -> None:
    device = FileCopyDevice()
    async with paired([device], [FileCopyDriver(root, ["/incoming", "C:\\tmp"])]):
        await device.copy(b"new", "/incoming/deeper", "file", create_path=True)
        await device.copy(b"new", "/tmp", "file", create_path=True)
        for path in ("/", "/incoming2", "/etc"):
            with pytest.raises(GuestRefused, match="0x80004005"):
                await device.copy(b"new", path, "file", create_path=True)
    assert listing(root) == ["incoming/deeper/file", "tmp/file"]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The system refuses to write beyond, as it does where a disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_full_disk_is_said_and_nothing_of_the_file_stays(root: Path) -> None:
    device = FileCopyDevice()
    async with paired([device], [FileCopyDriver(root)]):
        with files_of_at_most(100_000), pytest.raises(GuestRefused, match="0x80070070") as refused:
            await device.copy(some_bytes(200_000), "/", "file")
        assert refused.value.status is IcStatus.DISK_FULL
        assert contents(root) == []
        await device.copy(b"small", "/", "file")
    assert listing(root) == ["file"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_the_other_errors_of_a_full_disk_are_said_as_well(
    number: int, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(descriptor: int, data: bytes) -> int:
        raise OSError(number, os.strerror(number))

    driver = FileCopyDriver(root)
    tell(driver, start(size=4))
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        assert tell(driver, pack_write(0, b"data")) is IcStatus.DISK_FULL
    assert contents(root) == []


# copies that are given up


@CONFIGS
async def test_a_copy_that_is_cancelled_leaves_nothing_and_the_next_one_works(
    config: PartitionConfig, root: Path
) -> None:
    (root / "file").write_text("as it was")
    device, driver = FileCopyDevice(), FileCopyDriver(root)
    async with paired([device], [driver], config):
        with anyio.CancelScope() as scope:
            await device.copy(some_bytes(MIB), "/", "file", overwrite=True, progress=lambda *_: scope.cancel())
        assert scope.cancelled_caught
        assert listing(root) == ["file"]
        assert (root / "file").read_text() == "as it was"
        await device.copy(b"new", "/", "file", overwrite=True)
    assert (root / "file").read_bytes() == b"new"
    assert driver.copied == 1


async def test_a_copy_whose_progress_or_stream_fails_leaves_nothing(root: Path) -> None:
    async def stream() -> AsyncIterator[bytes]:
        yield some_bytes(50_000)
        raise ZeroDivisionError

    device = FileCopyDevice()
    async with paired([device], [FileCopyDriver(root)]):
        with pytest.raises(ZeroDivisionError):
            await device.copy(stream(), "/", "file", size=100_000)
        with pytest.raises(ZeroDivisionError):
            await device.copy(some_bytes(50_000), "/", "file", progress=lambda *_: 1 // 0)
        assert contents(root) == []


async def test_a_source_of_another_size_than_it_said_leaves_nothing(root: Path) -> None:
    async def stream() -> AsyncIterator[bytes]:
        yield some_bytes(10_000)

    device = FileCopyDevice()
    async with paired([device], [FileCopyDriver(root)]):
        with pytest.raises(HostError, match="shorter while it was copied: 10000 bytes instead of 10001"):
            await device.copy(stream(), "/", "file", size=10_001)
        with pytest.raises(HostError, match="longer while it was copied: more than 9999 bytes"):
            await device.copy(stream(), "/", "file", size=9_999)
        assert contents(root) == []


@pytest.mark.parametrize("change", ["shorter", "longer"])
async def test_a_file_that_changes_meanwhile_leaves_nothing(change: str, root: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(some_bytes(MIB))

    def progress(done: int, total: int) -> None:
        if done == DATA_SIZE:
            os.truncate(source, MIB // 2 if change == "shorter" else MIB + 1)

    device = FileCopyDevice()
    async with paired([device], [FileCopyDriver(root)]):
        with pytest.raises(HostError, match=f"the file {source} has become {change} while it was copied"):
            await device.copy(source, "/", "file", progress=progress)
        assert contents(root) == []


async def test_files_that_cannot_be_copied_are_one_sentence(root: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    device = FileCopyDevice()
    async with paired([device], [FileCopyDriver(root)]):
        for path, sentence in (
            (tmp_path / "missing", "missing cannot be copied: No such file or directory"),
            (str(tmp_path), "it is no regular file"),
            (tmp_path / "fifo", "it is no regular file"),
            (tmp_path / "missing" / "file", "No such file or directory"),
        ):
            with pytest.raises(HostError, match=sentence):
                await device.copy(path, "/", "file")
        with pytest.raises(ConfigurationError, match="a size is given for an iterable only"):
            await device.copy(b"data", "/", "file", size=4)
        with pytest.raises(ConfigurationError, match="with its size in bytes, which is not None"):
            await device.copy(aiter_of(b"data"), "/", "file")
        with pytest.raises(ValueError, match="file name: 259 UTF-16 code units fit"):
            await device.copy(b"data", "/", "n" * 260)
    assert contents(root) == []


async def aiter_of(data: bytes) -> AsyncIterator[bytes]:
    yield data


@CONFIGS
async def test_a_guest_that_goes_leaves_nothing_and_the_host_hears(config: PartitionConfig, root: Path) -> None:
    flags: list[Flag] = []

    async def guest(client: VmbusClient) -> None:
        async with run_drivers(client, FileCopyDriver(root)):
            await flags[0].wait()

    device = FileCopyDevice()
    async with hosting(device, config=config, guest=guest) as partition:
        flags.append(Flag(partition.turns, 1))
        with pytest.raises(ChannelClosed, match="no longer has the channel of FileCopyDevice open"):
            await device.copy(some_bytes(8 * MIB), "/", "file", progress=lambda *_: flags[0].set())
    assert contents(root) == []


@CONFIGS
async def test_two_copies_at_once_go_one_after_the_other(config: PartitionConfig, root: Path) -> None:
    order: list[str] = []
    device = FileCopyDevice()
    async with paired([device], [FileCopyDriver(root)], config) as partition, anyio.create_task_group() as group:

        async def copy(number: int) -> None:
            await begins[number]()
            name = f"file{number}"
            await device.copy(some_bytes(30_000 + number), "/", name, progress=lambda *_: order.append(name))
            partition.turns.leave()

        begins = [partition.turns.expect(("copier", number)) for number in range(3)]
        for number in range(3):
            group.start_soon(copy, number)
    assert [order[start : start + 5] for start in (0, 5, 10)] == [[name] * 5 for name in dict.fromkeys(order)]
    assert [(root / f"file{number}").read_bytes() for number in range(3)] == [
        some_bytes(30_000 + number) for number in range(3)
    ]


@pytest.mark.parametrize("seed", [1, 2])
def test_a_seed_gives_the_same_copies_on_both_loops(seed: int, root: Path) -> None:
    async def play(noted: list[tuple[int, str]], directory: Path) -> None:
        device = FileCopyDevice()
        config = PartitionConfig(virtual_time=True, seed=seed)
        async with (
            paired([device], [FileCopyDriver(directory)], config) as partition,
            anyio.create_task_group() as group,
        ):

            async def copy(number: int) -> None:
                await begins[number]()
                with anyio.CancelScope() as scope:

                    def progress(done: int, total: int) -> None:
                        noted.append((partition.clock.now(), f"{number}: {done}"))
                        if number == 1:
                            scope.cancel()

                    await device.copy(some_bytes(20_000), "/", f"file{number}", progress=progress)
                noted.append((partition.clock.now(), f"{number} done"))
                partition.turns.leave()

            begins = [partition.turns.expect(("copier", number)) for number in range(4)]
            for number in range(4):
                group.start_soon(copy, number)

    runs: list[list[tuple[int, str]]] = [[], []]
    for noted, loop in zip(runs, ("asyncio", "trio"), strict=True):
        directory = root / loop
        directory.mkdir()
        anyio.run(play, noted, directory, backend=loop)
        assert listing(directory) == ["file0", "file2", "file3"]
    assert runs[0] == runs[1]


def test_a_disk_that_turned_read_only_does_not_end_the_guest(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unlink(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    driver = FileCopyDriver(root)
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unlink)
        for body, status in ((COMPLETE, IcStatus.FAIL), (CANCEL, IcStatus.SUCCESS)):
            assert tell(driver, start(size=4)) is IcStatus.SUCCESS
            assert tell(driver, body) is status


def test_one_path_is_not_taken_for_several(root: Path) -> None:
    with pytest.raises(ValueError, match=r"several paths, not one: \['/incoming'\]"):
        FileCopyDriver(root, "/incoming")


# ends that lie


def start(name: str = "file", path: str = "/", flags: int = 0, size: int = 0) -> bytes:
    return pack_start(CopyRequest(name, path, FileCopyFlags(flags), size))


def simple(operation: FileCopyOperation) -> bytes:
    return FileCopyHeader(operation).pack()


def tell(driver: FileCopyDriver, body: bytes) -> int:
    status, answer = at_once(driver.answer(Request(IcHeader(), IcVersion(1, 1), body)))
    assert answer == body
    return status


COMPLETE, CANCEL = simple(FileCopyOperation.COMPLETE), simple(FileCopyOperation.CANCEL)


@pytest.mark.parametrize(
    ("bodies", "status"),
    [
        ([pack_write(0, b"data")], IcStatus.FAIL),
        ([COMPLETE], IcStatus.FAIL),
        ([CANCEL], IcStatus.SUCCESS),
        ([b"\x04" + bytes(35)], IcStatus.INVALID_ARGUMENT),
        ([b"\x02" + bytes(34)], IcStatus.INVALID_ARGUMENT),
        ([start(size=8), pack_write(4, b"data")], IcStatus.INVALID_ARGUMENT),
        ([start(size=8), pack_write(0, b"data"), pack_write(0, b"data")], IcStatus.INVALID_ARGUMENT),
        ([start(size=8), pack_write(0, b"more than 8")], IcStatus.INVALID_ARGUMENT),
        ([start(size=8), pack_write(0, b"data"), COMPLETE], IcStatus.FAIL),
        ([start(size=4), pack_write(0, b"data"), pack_write(4, b"x")], IcStatus.INVALID_ARGUMENT),
        ([start(size=4), pack_write(0, b"data")[:60]], IcStatus.SUCCESS),
        ([start(size=4), pack_write(0, b"data")[:55]], IcStatus.INVALID_ARGUMENT),
        ([start(size=1 << 63), pack_write((1 << 64) - 1, b"data")], IcStatus.INVALID_ARGUMENT),
        ([start(size=4), CANCEL, pack_write(0, b"data")], IcStatus.FAIL),
        ([start(size=4), start(size=8), pack_write(0, b"data"), COMPLETE], IcStatus.FAIL),
    ],
)
def test_a_wrong_order_is_refused_and_leaves_nothing(bodies: list[bytes], status: IcStatus, root: Path) -> None:
    driver = FileCopyDriver(root)
    for body in bodies[:-1]:
        assert tell(driver, body) is IcStatus.SUCCESS or body is bodies[-2]
    assert tell(driver, bodies[-1]) is status
    tell(driver, CANCEL)
    assert contents(root) == []
    assert driver.copied == 0


STEPS = st.one_of(
    st.builds(
        start,
        st.sampled_from(["a", "b", "../x", ""]),
        st.sampled_from(["/", "/d", ".."]),
        st.integers(0, 3),
        st.integers(0, 9),
    ),
    st.builds(pack_write, st.integers(0, 9), st.binary(max_size=9)),
    st.sampled_from([COMPLETE, CANCEL]),
    st.binary(max_size=60),
)


@settings(max_examples=60)
@given(st.lists(st.tuples(STEPS, st.integers(0, 6200)), max_size=12))
def test_a_guest_answers_whatever_a_host_sends_and_holds_whole_files_only(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[bytes, int]]
) -> None:
    root = tmp_path_factory.mktemp("guest")
    driver = FileCopyDriver(root)
    whole = b""
    for step, cut in steps:
        body = step[:cut] if cut < 100 else step
        status = tell(driver, body)
        assert IcStatus(status) is status
        if body[:1] == b"\x00":
            whole = b""
        if status is IcStatus.SUCCESS and body[:4] == b"\x01\0\0\0":
            whole += body[52 : 52 + struct.unpack_from("<I", body, 48)[0]]
        if status is IcStatus.SUCCESS and body[:4] == b"\x02\0\0\0":
            assert whole in [path.read_bytes() for path in root.rglob("*") if path.is_file()]
    tell(driver, CANCEL)
    assert not list(root.rglob(".incoming*"))
    assert len(listing(root)) <= driver.copied


async def test_a_guest_that_does_not_answer_holds_a_cancelled_copy_for_a_while_only() -> None:
    async def guest(client: VmbusClient) -> None:
        raw = await raw_guest(client, device)
        await raw.hear()
        await raw.say(chosen(version=(1, 1)))
        heard = await raw.hear()
        await raw.say(ic(7, heard[20:], version=(1, 1), transaction_id=heard[16]))
        await raw.hear()
        scope.cancel()
        await done[0].wait()

    done: list[Flag] = []
    scope = anyio.CancelScope()
    device = FileCopyDevice()
    async with hosting(device, guest=guest) as partition:
        done.append(Flag(partition.turns, 1))
        with scope:
            await device.copy(b"data", "/", "file")
        assert scope.cancelled_caught
        assert partition.clock.now() >= CANCEL_LIMIT
        done[0].set()


async def test_a_guest_that_answers_with_nonsense_refuses_a_copy_at_worst() -> None:
    draw = random.Random(3)

    async def guest(client: VmbusClient) -> None:
        raw = await raw_guest(client, device)
        await raw.hear()
        await raw.say(chosen(version=(1, 1)))
        while (heard := await raw.hear())[20:] != start("the end"):
            status = draw.choice([0, 0, 0, 0x8007_0070, 0x1234_5678])
            answer = draw.randbytes(draw.randrange(200))
            await raw.say(ic(7, answer, version=(1, 1), status=status, transaction_id=heard[16]))
        await client.close(raw.channel)  # type: ignore[arg-type]

    refused: set[int] = set()
    device = FileCopyDevice()
    async with hosting(device, guest=guest):
        for _ in range(30):
            try:
                await device.copy(some_bytes(20_000), "/", "file")
            except GuestRefused as error:
                refused.add(error.status)
        with pytest.raises(ChannelClosed):
            await device.copy(b"", "/", "the end")
    assert refused == {0x8007_0070, 0x1234_5678}
