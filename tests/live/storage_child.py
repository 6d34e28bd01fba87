"""A partition that writes to a disk file until it is killed: `python -m tests.live.storage_child FILE SEED`.

Writes blocks of 4096 bytes to places that a seed draws, 8 writes under way at once; each block is full of `number, lba` over
and over. Says on standard output, unbuffered: "start NUMBER LBA COUNT", "done NUMBER", "flushed NUMBER" (that writer's writes
up to this one are on the medium).
"""

from __future__ import annotations

import os
import random
import struct
import sys
from pathlib import Path

import anyio

from broker import Partition, VirtualProcessor
from channels.client import VmbusClient
from channels.devices import serve_devices
from channels.devices.storage import FileDisk, ScsiController
from channels.drivers.storage import ScsiDisk, ScsiInitiator
from channels.server import VmbusServer

BLOCK, BLOCKS = 4096, 256
WRITERS, LONGEST = 8, 32


def contents(number: int, lba: int) -> bytes:
    """What write `number` puts into a block."""
    return struct.pack("<QQ", number, lba) * (BLOCK // 16)


def _say(text: str) -> None:
    os.write(1, f"{text}\n".encode())


async def _write(disk: ScsiDisk, draw: random.Random, writer: int) -> None:
    """Each writer has blocks of its own, so the order of its writes is known."""
    room = BLOCKS // WRITERS
    for step in range(1, 1 << 30):
        number = step * WRITERS + writer
        count = draw.randint(1, LONGEST)
        lba = writer * room + draw.randint(0, room - count)
        _say(f"start {number} {lba} {count}")
        await disk.write(lba, b"".join(contents(number, lba + index) for index in range(count)))
        _say(f"done {number}")
        if step % 16 == 0:
            await disk.flush()
            _say(f"flushed {number}")


async def _guest(vp: VirtualProcessor, seed: int) -> None:
    async with VmbusClient(vp.guest_synic()) as client, ScsiInitiator.open(client, subchannels=2) as controller:
        disk = await controller.disk(0)
        async with anyio.create_task_group() as group:
            for writer in range(WRITERS):
                group.start_soon(_write, disk, random.Random(f"{seed} {writer}"), writer)


async def main(path: Path, seed: int) -> None:
    with FileDisk.open(path, size=BLOCK * BLOCKS, create=True, block_size=BLOCK) as disk:
        async with (
            Partition() as partition,
            VmbusServer(partition.synic(), partition.memory) as server,
            serve_devices(server, ScsiController(disks={0: disk}, max_subchannels=2)),
        ):
            await partition.start(0, lambda vp: _guest(vp, seed)).wait()


if __name__ == "__main__":
    anyio.run(main, Path(sys.argv[1]), int(sys.argv[2]), backend=sys.argv[3])
