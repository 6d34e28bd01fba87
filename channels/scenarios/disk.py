"""Disk: a guest finds the disks of a controller, writes blocks, reads them back, and is refused where it may not write."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from uuid import UUID

import anyio

from broker.access import GuestSynic, Turns

from ..client import VmbusClient
from ..devices.storage import MemoryDisk, ScsiController
from ..drivers.storage import ScsiDisk, ScsiError, ScsiInitiator
from ..protocol.storage.sense import WRITE_PROTECTED
from .stage import Scenario, Stage, expect, serve, start_task

INSTANCE = UUID("6ec80009-0000-4000-8000-000000000001")
DATA, SYSTEM = 0, 1
"""LUNs: a disk to write to, and one that is read-only."""
AT_ONCE = 8
"""Requests under way."""
_MARGIN = 64
_SYSTEM = b"this disk is read-only".ljust(4096, b".")


async def _write_and_read(disk: ScsiDisk, turns: Turns, stage: Stage) -> None:
    """Blocks of the payload's size, each of them another: write all, flush, read each, some at once over all channels."""
    settings = stage.settings
    length = -(-settings.payload // disk.block_size)

    async def write(index: int) -> None:
        await disk.write(index * length, _data(index, length * disk.block_size))
        stage.count("blocks written", length)

    async def read(index: int) -> None:
        data = await disk.read(index * length, length)
        expect(data == _data(index, len(data)), f"block {index * length} came back as {data[:16].hex(' ')} ...")
        stage.count("blocks read", length)

    await _several_at_once(turns, write, settings.packets)
    await disk.flush()
    await _several_at_once(turns, read, settings.packets)
    stage.say(f"{settings.packets * length} blocks of {disk.block_size} bytes were written, flushed and read back")


def _data(index: int, size: int) -> bytes:
    return index.to_bytes(8, "little").ljust(size, bytes([index & 0xFF]))


async def _several_at_once(turns: Turns, work: Callable[[int], Awaitable[None]], count: int) -> None:
    """Do this for each number, in order, `AT_ONCE` of them under way."""
    numbers = iter(range(count))

    async def worker() -> None:
        for number in numbers:
            await work(number)

    async with anyio.create_task_group() as group:
        for index in range(AT_ONCE):
            start_task(group, turns, index, worker)


async def _be_refused(disk: ScsiDisk, stage: Stage) -> None:
    expect(disk.read_only, "the second disk does not say that it is read-only")
    expect(await disk.read(0, 8) == _SYSTEM, "the second disk holds something else")
    try:
        await disk.write(0, bytes(disk.block_size))
    except ScsiError as error:
        expect(error.sense == WRITE_PROTECTED, f"the write was refused with {error.sense}")
        stage.count("writes refused")
        stage.say(f"the read-only disk refused a write: {error.sense}")
    expect(await disk.read(0, 8) == _SYSTEM, "a write that was refused has changed the disk")


async def _play(stage: Stage) -> None:
    settings = stage.settings
    blocks = settings.packets * -(-settings.payload // 512) + _MARGIN
    disks = {DATA: MemoryDisk(512 * blocks), SYSTEM: MemoryDisk(_SYSTEM, read_only=True)}

    async def guest(synic: GuestSynic) -> None:
        async with (
            VmbusClient(synic, version=settings.version) as client,
            ScsiInitiator.open(client, INSTANCE, subchannels=settings.channels) as controller,
        ):
            luns = await controller.luns()
            expect(luns == (DATA, SYSTEM), f"the controller has LUNs {luns}")
            stage.say(
                f"storage version {controller.version.label}, {controller.channel_count} channels, {len(luns)} disks"
            )
            disk = await controller.disk(DATA)
            expect(disk.block_count == blocks, f"the disk has {disk.block_count} blocks")
            await _write_and_read(disk, synic.turns, stage)
            await _be_refused(await controller.disk(SYSTEM), stage)
        stage.say("the guest has unloaded")

    controller = ScsiController(INSTANCE, disks, max_subchannels=settings.channels)
    async with serve(stage, controller):
        await stage.start(0, guest).wait()
    expect(controller.refused == 1, f"{controller.refused} requests were refused, not the one write")


disk = Scenario(about="blocks written to a disk and read back, and a read-only disk that refuses", play=_play)
