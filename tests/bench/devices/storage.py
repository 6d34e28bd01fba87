"""What a disk costs in one process: a guest's driver and a controller over a disk in memory or a file, through rings and SynIC.

Random operations are 4 KiB each, 32 under way at once over one channel; sequential reads are 256 KiB each, 8 under way.
Each round times all contenders in shuffled order, with `tests.bench.measure`, beside a bare await of a handler; `disk`
reads the same blocks from the same disk without any VMBus between.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from time import perf_counter_ns

import anyio
import msgspec

from broker import HvStatus, Partition
from channels.client import VmbusClient
from channels.devices import serve_devices
from channels.devices.storage import Disk, FileDisk, MemoryDisk, ScsiController
from channels.drivers.storage import ScsiDisk, ScsiInitiator
from channels.server import VmbusServer

from ..measure import Goal, Result, Round, Timed, expect, interleave, timed

SIZE = 32 << 20
"""Bytes of a disk."""
IN_FLIGHT = 32
SMALL, LARGE = 4096, 256 << 10
CALLS = 640
"""Operations of 4 KiB in a round; a tenth as many long reads."""

Operation = Callable[[int], Awaitable[object]]
"""One operation on the block with this number."""


async def _handler(payload: bytes) -> HvStatus:
    return HvStatus.SUCCESS


async def _random(operation: Operation, count: int, *, blocks: int, span: int) -> float:
    """Nanoseconds of one operation: so many, 32 at once, each on another random place of `span` blocks."""
    draw = random.Random(count)
    places = [draw.randrange(0, blocks // span) * span for _ in range(count)]

    async def work() -> None:
        while places:
            await operation(places.pop())

    start = perf_counter_ns()
    async with anyio.create_task_group() as group:
        for _ in range(IN_FLIGHT):
            group.start_soon(work)
    return (perf_counter_ns() - start) / count


async def _sequential(read: Callable[[int, int], Awaitable[bytes]], count: int, *, blocks: int) -> float:
    """Nanoseconds of 256 KiB, read from the start to the end again and again."""
    total = max(count // 10, 1) * LARGE // 512
    left = total
    start = perf_counter_ns()
    while left:
        part = min(left, blocks)
        await read(0, part)
        left -= part
    return (perf_counter_ns() - start) * (LARGE // 512) / total


class _Scene(msgspec.Struct, frozen=True):
    """One disk, and the guest's way to it."""

    disk: Disk
    seen: ScsiDisk


@asynccontextmanager
async def _serve(disk: Disk) -> AsyncIterator[_Scene]:
    async with (
        Partition() as partition,
        VmbusServer(partition.synic(), partition.memory) as server,
        serve_devices(server, ScsiController(disks={0: disk})),
        VmbusClient(partition.vp(0).guest_synic()) as client,
        ScsiInitiator.open(client) as controller,
    ):
        yield _Scene(disk, await controller.disk(0))


async def _prove(scene: _Scene) -> None:
    data = bytes(range(256)) * 16
    await scene.seen.write(800, data)
    expect(await scene.disk.read(800, 8) == data, "what a guest has written is on the disk")
    expect(await scene.seen.read(800, 8) == data, "and the guest reads it again")


def _contenders(scene: _Scene, name: str) -> dict[str, Timed]:
    seen, disk, blocks, span = scene.seen, scene.disk, scene.seen.block_count, SMALL // 512
    data = bytes(SMALL)
    places = {"blocks": blocks, "span": span}
    return {
        f"{name} read": partial(_random, lambda lba: seen.read(lba, span), **places),
        f"{name} write": partial(_random, lambda lba: seen.write(lba, data), **places),
        f"{name} long": partial(_sequential, seen.read, blocks=blocks),
        f"{name} direct": partial(_random, lambda lba: disk.read(lba, span), **places),
    }


async def measure(loop: str, rounds: int) -> list[Result]:
    """Every figure on the running loop."""
    with tempfile.TemporaryDirectory() as folder, FileDisk.open(Path(folder, "disk"), size=SIZE, create=True) as file:
        async with _serve(MemoryDisk(SIZE)) as memory_scene, _serve(file) as file_scene:
            scenes = {"memory": memory_scene, "file": file_scene}
            contenders = {"bare": timed("await handler(b'')", {"handler": _handler})}
            for name, scene in scenes.items():
                await _prove(scene)
                contenders |= _contenders(scene, name)
            repetitions = await interleave(contenders, rounds, CALLS)
            for scene in scenes.values():
                await _prove(scene)

    def result(goal: Goal, figure: Callable[[Round], float]) -> Result:
        return Result.best_of(loop, goal, [[figure(times) for times in repetition] for repetition in repetitions])

    def rate(what: str, unit: str, cost: Result, scale: float) -> Result:
        low, high = scale / cost.high, scale / cost.low
        return Result(loop, Goal("storage", what, unit=unit), scale / cost.measured, low, high, None)

    def figures(name: str) -> list[Result]:
        found: list[Result] = []
        for kind in ("read", "write"):
            what = f"{name} disk, random {kind} of 4 KiB, {IN_FLIGHT} at once"
            cost = result(Goal("storage", what, unit="us"), lambda times, key=f"{name} {kind}": times[key] / 1e3)  # type: ignore[misc]
            ratio = Goal("storage", f"{what}, to a bare await")
            found += [
                rate(what, "k/s", cost, 1e3),
                result(ratio, lambda times, key=f"{name} {kind}": times[key] / times["bare"]),  # type: ignore[misc]
            ]
        what = f"{name} disk, sequential read of 256 KiB"
        cost = result(Goal("storage", what, unit="us"), lambda times: times[f"{name} long"] / 1e3)
        direct = result(
            Goal("storage", f"{name} disk, random read of 4 KiB, to the same without VMBus"),
            lambda times: times[f"{name} read"] / times[f"{name} direct"],
        )
        return [*found, direct, rate(what, "MB/s", cost, LARGE)]

    return [*figures("memory"), *figures("file")]
