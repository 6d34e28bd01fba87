"""Goal P4: a million ports, a hundred thousand registrations, ten thousand processors.

    python -m tests.bench.scale --loop asyncio

measures the resident growth alone and prints it in bytes; `tests.bench.dispatch` runs that in a child process, whose
heap nothing else has touched.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import anyio
import click

from broker import HvStatus, Partition, PartitionConfig, PortHandle, SynicPortAccess, Vtl
from broker.processor import VirtualProcessor

from .measure import BACKENDS, REPETITIONS, Goal, Result, expect, refuse_debug_modes

MANY_PORTS = 1_000_000
PORTS = 100_000
PROCESSORS = 10_000
BURST = 20
BURSTS = 5

RESIDENT = Goal("P4", "resident growth, 1M ports registered, handles held", at_most=300, unit="MB")
REGISTER = Goal("P4", "100k ports registered", at_most=0.3, unit="s")
UNREGISTER = Goal("P4", "100k ports closed", unit="s")
POSTS = Goal("P4", "posts in total, 10k processors' tasks, bursts of 20", at_least=0.4, unit="M/s")

_ANSWER = HvStatus.SUCCESS
_PAYLOAD = bytes(240)
_CONNECTION = 1


class _Port:
    async def handle_message(self, message: bytes, trusted: bool) -> HvStatus:
        return _ANSWER


async def measure_scale(loop: str) -> list[Result]:
    """All of goal P4 on the running loop; the memory part in a child process of its own."""
    growth = [await _resident_growth_in_child(loop) / 1e6]
    registrations = [await _register_and_close() for _ in range(REPETITIONS)]
    posts = [await _posts_per_second() / 1e6 for _ in range(REPETITIONS)]
    return [
        Result.best_of(loop, RESIDENT, [growth]),
        _best(loop, REGISTER, [register for register, _ in registrations]),
        _best(loop, UNREGISTER, [close for _, close in registrations]),
        _best(loop, POSTS, posts),
    ]


def _best(loop: str, goal: Goal, values: list[float]) -> Result:
    """The best single value; the range is that of all."""
    best = max(values) if goal.at_least is not None else min(values)
    return Result(loop, goal, best, min(values), max(values), Result.best_of(loop, goal, [[best]]).met)


async def _register(access: SynicPortAccess, count: int) -> list[PortHandle]:
    port = _Port()
    return [await access.add_message_port(connection_id, Vtl.VTL0, port) for connection_id in range(count)]


async def _register_and_close() -> tuple[float, float]:
    gc.collect()
    async with Partition() as partition:
        start = perf_counter()
        handles = await _register(partition.synic(), PORTS)
        registered = perf_counter()
        for handle in handles:
            handle.close()
        closed = perf_counter()
        expect(not partition.port_map.statistics().ports, "every port is closed")
    return registered - start, closed - registered


async def _posts_per_second() -> float:
    """The time from the moment all processors' tasks run to the moment the last one has posted."""
    gc.collect()
    running = 0
    all_run = anyio.Event()

    async def guest(vp: VirtualProcessor) -> bool:
        nonlocal running
        running += 1
        if running == PROCESSORS:
            all_run.set()
        await all_run.wait()
        good = True
        for _ in range(BURSTS):
            for _ in range(BURST):
                good &= await vp.post_message(_CONNECTION, 1, _PAYLOAD) is _ANSWER
            await anyio.lowlevel.checkpoint()
        return good

    async with Partition(PartitionConfig(vp_count=PROCESSORS)) as partition:
        await partition.synic().add_message_port(_CONNECTION, Vtl.VTL0, _Port())
        runs = [partition.start(index, guest) for index in range(PROCESSORS)]
        await all_run.wait()
        start = perf_counter()
        ends = [await run.wait() for run in runs]
        seconds = perf_counter() - start
        accepted = partition.port_map.statistics().ports[_CONNECTION].accepted
    expect(all(end.result for end in ends), "every post of every processor is answered SUCCESS")
    expect(accepted == PROCESSORS * BURSTS * BURST, "every post reaches the port")
    return accepted / seconds


async def _resident_growth_in_child(loop: str) -> float:
    command = [sys.executable, "-m", "tests.bench.scale", "--loop", loop]
    checkout = Path(__file__).parents[2]
    child = await anyio.run_process(command, cwd=checkout, stderr=None, stdin=subprocess.DEVNULL)
    return float(child.stdout)


async def _resident_growth() -> int:
    """Bytes. A first partition comes and goes before, so that what its first use imports is not counted."""
    async with Partition() as partition:
        await _register(partition.synic(), 1)
    async with Partition() as partition:
        gc.collect()
        before = _resident()
        handles = await _register(partition.synic(), MANY_PORTS)
        growth = _resident() - before
        expect(len(handles) == MANY_PORTS, "all ports are registered")
    return growth


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@click.command()
@click.option("--loop", type=click.Choice(BACKENDS), default=BACKENDS[0])
def main(loop: str) -> None:
    """Print by how many bytes a million registered ports make this process grow."""
    refuse_debug_modes()
    click.echo(anyio.run(_resident_growth, backend=loop))


if __name__ == "__main__":
    main()
