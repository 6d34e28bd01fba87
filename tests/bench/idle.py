"""2,047 channels on one partition: how long they take to be offered, opened and closed, and what an idle one weighs.

    python -m tests.bench.idle [--loop asyncio|trio] [--traced]

measures once, in this process, and prints JSON; `tests.bench.channel` runs that in child processes, whose heap nothing
else has touched. The rings are the smallest there are, two pages each, and lie in guest memory, which is not counted.
What is counted is everything else that comes with a channel, at both ends: the device and its task, the server's and the
client's objects, each from before the device exists. `--traced` asks the allocator of Python instead of the system.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import tracemalloc
from pathlib import Path
from time import perf_counter
from uuid import UUID

import anyio
import click
import msgspec

from broker import Partition, PartitionConfig
from channels.client import VmbusClient
from channels.devices import EchoDevice, serve_devices
from channels.server import VmbusServer

from .measure import BACKENDS, REPETITIONS, Goal, Result, expect, refuse_debug_modes

CHANNELS = 2_047
RING_PAGES = (2, 2)
MEMORY_SIZE = 64 << 20

WEIGHT = Goal("channel", "memory of an idle open channel besides its rings, resident", at_most=12, unit="KiB")
TRACED = Goal("channel", "the same, as Python's allocator counts it", unit="KiB")
USED = Goal("channel", "the same, resident, after one request through each", unit="KiB")
TOTAL = Goal("channel", f"{CHANNELS:,} channels offered, opened and closed", unit="s")


class Measured(msgspec.Struct, frozen=True):
    """One run: seconds for all channels, bytes for all that are open."""

    offered: float
    opened: float
    closed: float
    growth: int
    used: int
    """The same after one request through each."""


async def measure_idle(loop: str) -> list[Result]:
    """All figures, each run in a child process."""
    runs = [await _measure_in_child(loop) for _ in range(REPETITIONS)]
    traced = await _measure_in_child(loop, "--traced")

    def best(goal: Goal, values: list[float]) -> Result:
        lowest = min(values)
        return Result(loop, goal, lowest, lowest, max(values), Result.best_of(loop, goal, [[lowest]]).met)

    def each(what: str, seconds: list[float]) -> Result:
        goal = Goal("channel", f"a channel is {what}", unit="us")
        return best(goal, [1e6 * value / CHANNELS for value in seconds])

    return [
        best(TOTAL, [run.offered + run.opened + run.closed for run in runs]),
        each("offered", [run.offered for run in runs]),
        each("opened", [run.opened for run in runs]),
        each("closed", [run.closed for run in runs]),
        best(WEIGHT, [run.growth / CHANNELS / 1024 for run in runs]),
        best(TRACED, [traced.growth / CHANNELS / 1024]),
        best(USED, [run.used / CHANNELS / 1024 for run in runs]),
    ]


async def _measure_in_child(loop: str, *options: str) -> Measured:
    command = [sys.executable, "-m", "tests.bench.idle", "--loop", loop, *options]
    checkout = Path(__file__).parents[2]
    child = await anyio.run_process(command, cwd=checkout, stderr=None, stdin=subprocess.DEVNULL)
    return msgspec.json.decode(child.stdout, type=Measured)


async def _measure(traced: bool) -> Measured:
    """A few channels come and go before, so that what the first use imports and makes is not counted."""
    await _run(16, traced)
    return await _run(CHANNELS, traced)


async def _run(count: int, traced: bool) -> Measured:
    async with (
        Partition(PartitionConfig(memory_size=MEMORY_SIZE)) as partition,
        VmbusServer(partition.synic(), partition.memory) as server,
        VmbusClient(partition.vp(0).guest_synic()) as client,
    ):
        before = _in_use(traced)
        start = perf_counter()
        async with serve_devices(server, *(EchoDevice(UUID(int=number)) for number in range(count))):
            offers = client.new_offers()
            offered = [await anext(offers) for _ in range(count)]
            all_offered = perf_counter()
            channels = [await client.open(offer, ring_pages=RING_PAGES) for offer in offered]
            all_opened = perf_counter()
            del offers, offered
            expect(server.statistics().open_channels == count, "all channels are open")
            growth = _in_use(traced) - before
            for channel in channels:
                answer = await channel.request(b"question")
                expect(answer.payload == b"question", "there is a device behind each channel")
            used = _in_use(traced) - before
            opened_and_weighed = perf_counter()
            for channel in channels:
                await client.close(channel)
            all_closed = perf_counter()
            expect(not server.statistics().open_channels, "all channels are closed")
    return Measured(all_offered - start, all_opened - all_offered, all_closed - opened_and_weighed, growth, used)


def _in_use(traced: bool) -> int:
    """Bytes of this process that are no shared memory, where guest memory lies; or those that Python has allocated."""
    gc.collect()
    if traced:
        return tracemalloc.get_traced_memory()[0]
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")) * 1024


@click.command()
@click.option("--loop", type=click.Choice(BACKENDS), default=BACKENDS[0])
@click.option("--traced", is_flag=True, help="Count what Python's allocator has given instead of resident memory.")
def main(loop: str, traced: bool) -> None:
    """Print what 2,047 channels take, as JSON."""
    refuse_debug_modes()
    if traced:
        tracemalloc.start()
    click.echo(msgspec.json.encode(anyio.run(_measure, traced, backend=loop)))


if __name__ == "__main__":
    main()
