"""Disks against a model, an `mkfs.ext4` image block for block, and what a killed process leaves in its file."""

from __future__ import annotations

import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from channels.devices.storage import Disk, FileDisk, MemoryDisk, ScsiController
from channels.drivers.storage import ScsiInitiator

from .storage_child import BLOCK, BLOCKS, WRITERS, contents
from .test_storage_driver import guest_of

ROOT = Path(__file__).parents[2]
MODEL_BLOCKS = 700
"""More than one request moves."""
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["read", "write", "through", "unmap", "flush"]),
        st.integers(0, MODEL_BLOCKS - 1),
        st.integers(1, 20) | st.integers(1, MODEL_BLOCKS),
        st.integers(1, 255),
    ),
    max_size=30,
)


async def follow(disk: Disk, steps: list[tuple[str, int, int, int]], seed: int) -> None:
    """Do these steps through a guest and to an array of bytes: they never differ."""
    model = bytearray(MODEL_BLOCKS * 512)
    async with (
        guest_of(ScsiController(disks={0: disk}, max_subchannels=2), seed=seed) as client,
        ScsiInitiator.open(client, subchannels=2) as controller,
    ):
        found = await controller.disk(0)
        for step, lba, wanted, fill in steps:
            count = min(wanted, MODEL_BLOCKS - lba)
            part = slice(lba * 512, (lba + count) * 512)
            if step in ("write", "through"):
                data = random.Random(fill).randbytes(count * 512)
                model[part] = data
                await found.write(lba, data, through=step == "through")
            elif step == "unmap":
                model[part] = bytes(count * 512)
                await found.unmap(lba, count)
            elif step == "flush":
                await found.flush()
            else:
                assert await found.read(lba, count) == model[part]
        assert await found.read(0, MODEL_BLOCKS) == model
    assert await disk.read(0, MODEL_BLOCKS) == model


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(STEPS, st.integers(0, 3), st.booleans())
async def test_random_reads_writes_and_unmaps_never_diverge_from_a_model(
    steps: list[tuple[str, int, int, int]], seed: int, is_file: bool
) -> None:
    if not is_file:
        await follow(MemoryDisk(MODEL_BLOCKS * 512), steps, seed)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "disk")
        with FileDisk.open(path, size=MODEL_BLOCKS * 512, create=True) as disk:
            await follow(disk, steps, seed)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A file system of 8 MiB with files in it, made by `mkfs.ext4`."""
    tool = shutil.which("mkfs.ext4", path=f"{os.environ['PATH']}:/sbin:/usr/sbin")
    if tool is None:
        pytest.skip("mkfs.ext4 is not installed here")
    root, image = tmp_path / "root", tmp_path / "ext4.img"
    root.mkdir()
    for number in range(20):
        (root / f"file{number}").write_bytes(random.Random(number).randbytes(5000 * number))
    subprocess.run([tool, "-q", "-d", root, "-L", "vmbus", image, "8M"], check=True, capture_output=True, timeout=60)
    return image


@pytest.fixture
def expected(image: Path) -> bytes:
    """What is in it."""
    return image.read_bytes()


async def test_a_file_system_image_is_read_block_for_block(image: Path, expected: bytes) -> None:
    assert expected[0x438:0x43A] == b"\x53\xef", "the magic number of ext4"
    with FileDisk.open(image, read_only=True) as disk:
        async with (
            guest_of(ScsiController(disks={0: disk}, max_subchannels=3)) as client,
            ScsiInitiator.open(client, subchannels=3) as controller,
        ):
            found = await controller.disk(0)
            assert found.read_only
            assert found.block_count * found.block_size == len(expected) == 8 << 20
            for lba in range(0, found.block_count, 8):
                assert await found.read(lba, 8) == expected[lba * 512 : lba * 512 + 4096]
            assert await found.read(0, found.block_count) == expected


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_killed_process_leaves_every_completed_write_whole(tmp_path: Path, seed: int, backend: str) -> None:
    """SIGKILL after a seeded number of lines: a block holds the last completed write of it, or a later one that was begun."""
    path = tmp_path / "disk"
    lines = random.Random(seed).randint(60, 1500)
    command = [sys.executable, "-m", "tests.live.storage_child", str(path), str(seed), backend]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        said = [child.stdout.readline() for _ in range(lines)]
        child.send_signal(signal.SIGKILL)
        said += child.stdout.read().splitlines(keepends=True)
    assert child.returncode == -signal.SIGKILL
    words = [line.decode().split() for line in said if line.endswith(b"\n")]
    started = {int(word[1]): (int(word[2]), int(word[3])) for word in words if word[0] == "start"}
    done = {int(word[1]) for word in words if word[0] == "done"}
    flushed = {int(word[1]) for word in words if word[0] == "flushed"}
    assert len(done) > 20
    assert flushed <= done
    data = path.read_bytes()
    assert len(data) == BLOCK * BLOCKS
    for lba in range(BLOCKS):
        block = data[lba * BLOCK : (lba + 1) * BLOCK]
        writes = [number for number, (first, count) in started.items() if first <= lba < first + count]
        completed = max((number for number in writes if number in done), default=0)
        allowed = {completed} | {number for number in writes if number > completed}
        number, _ = struct.unpack_from("<QQ", block)
        assert number in allowed, f"block {lba} holds write {number}, not one of {sorted(allowed)}"
        assert block == (contents(number, lba) if number else bytes(BLOCK)), f"block {lba} is torn"
        assert number == 0 or number % WRITERS == lba // (BLOCKS // WRITERS)
