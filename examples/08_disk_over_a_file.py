"""A disk over a file: one guest writes and flushes, then a second partition opens the same file and its guest reads.

Shows: `ScsiController`, `FileDisk`, `ScsiInitiator`, what a disk refuses.
Run: python examples/08_disk_over_a_file.py
"""

import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio

from broker import Partition, VirtualProcessor
from channels.client import VmbusClient
from channels.devices import serve_devices
from channels.devices.storage import Disk, FileDisk, ScsiController
from channels.drivers.storage import ScsiError, ScsiInitiator
from channels.server import VmbusServer

MESSAGE = b"written by the first guest"


async def writer(vp: VirtualProcessor) -> None:
    async with VmbusClient(vp.guest_synic()) as client, ScsiInitiator.open(client, subchannels=2) as controller:
        print(f"storage version {controller.version.label}, {controller.channel_count} channels")
        disk = await controller.disk(0)
        print(f"writer: {disk.inquiry.product}, {disk.block_count} blocks of {disk.block_size} bytes")
        await disk.write(100, MESSAGE.ljust(disk.block_size, b"\0"))
        await disk.flush()
        print("writer: block 100 is written and flushed")


async def reader(vp: VirtualProcessor) -> None:
    async with VmbusClient(vp.guest_synic()) as client, ScsiInitiator.open(client) as controller:
        disk = await controller.disk(0)
        print(f"reader: block 100 says {(await disk.read(100, 1)).rstrip(bytes(1)).decode()!r}")
        try:
            await disk.write(100, bytes(disk.block_size))
        except ScsiError as error:
            print(f"reader: {error}")


async def run(disk: Disk, guest: Callable[[VirtualProcessor], Awaitable[None]]) -> None:
    async with (
        Partition() as partition,
        VmbusServer(partition.synic(), partition.memory) as server,
        serve_devices(server, ScsiController(disks={0: disk}, max_subchannels=2)),
    ):
        await partition.start(0, guest).wait()


def look(path: Path) -> None:
    data = path.read_bytes()
    print(f"file: {len(data)} bytes, at block 100 {data[100 * 512 :][: len(MESSAGE)]!r}")


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "disk.img")
        with FileDisk.open(path, size=8 << 20, create=True) as disk:
            await run(disk, writer)
        look(path)
        with FileDisk.open(path, read_only=True) as disk:
            await run(disk, reader)


if __name__ == "__main__":
    anyio.run(main)
