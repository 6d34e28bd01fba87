"""What a file copy costs: megabytes a second from a file on the host to a file below the guest's directory.

The protocol answers each 6144 bytes before the next are sent, so a copy is as fast as its transactions: host to guest and
back, two processor switches each. Each round copies a file of 3 MiB twice, in shuffled order: through the device and the
driver, and with reads and writes of 6144 bytes and nothing between them; and makes as many transactions of 12 bytes (a
snapshot's operation), so that the last line says what the bytes add to a transaction. No figure is a goal.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter_ns

from broker import Partition
from channels.client import VmbusClient
from channels.devices import serve_devices
from channels.devices.integration.file_copy import FileCopyDevice
from channels.devices.integration.vss import VssDevice
from channels.drivers.framework import run_drivers
from channels.drivers.integration.file_copy import FileCopyDriver
from channels.drivers.integration.vss import VssDriver
from channels.protocol.integration.file_copy import DATA_SIZE
from channels.server import VmbusServer

from ..measure import Goal, Result, Round, Timed, expect, interleave

WRITES = 512
"""In a round: 3 MiB."""
SIZE = WRITES * DATA_SIZE


async def measure(loop: str, rounds: int) -> list[Result]:
    """Every figure on the running loop."""
    with TemporaryDirectory() as folder:
        return await _measure(loop, rounds, Path(folder))


async def _measure(loop: str, rounds: int, folder: Path) -> list[Result]:
    source, guest = folder / "source", folder / "guest"
    data = _prepare(source, guest)
    files, snapshots = FileCopyDevice(), VssDevice()
    async with (
        Partition() as partition,
        VmbusServer(partition.synic(), partition.memory) as server,
        serve_devices(server, files, snapshots),
        VmbusClient(partition.vp(0).guest_synic()) as client,
        run_drivers(client, FileCopyDriver(guest), VssDriver()),
    ):

        async def copy(calls: int) -> float:
            start = perf_counter_ns()
            await files.copy(source, "/", "copied", overwrite=True)
            return (perf_counter_ns() - start) / calls

        async def plain(calls: int) -> float:
            start = perf_counter_ns()
            _copy_plainly(source, guest / "plain")
            return (perf_counter_ns() - start) / calls

        async def transactions(calls: int) -> float:
            start = perf_counter_ns()
            for _ in range(calls):
                await snapshots.backup_complete()
            return (perf_counter_ns() - start) / calls

        await files.wait_ready()
        contenders: dict[str, Timed] = {"copy": copy, "plain": plain, "transactions": transactions}
        repetitions = await interleave(contenders, rounds, WRITES)
        expect(_holds(guest / "copied", data), "the guest's file is the host's")
        expect(_holds(guest / "plain", data), "the plain copy is the host's")

    def result(what: str, unit: str, figure: Callable[[Round], float]) -> Result:
        goal = Goal("file copy", what, unit=unit)
        return Result.best_of(loop, goal, [[figure(times) for times in repetition] for repetition in repetitions])

    def rate(what: str, name: str) -> Result:
        cost = result(what, "MB/s", lambda times: times[name])
        speeds = (DATA_SIZE * 1e3 / cost.measured, DATA_SIZE * 1e3 / cost.high, DATA_SIZE * 1e3 / cost.low)
        return Result(loop, cost.goal, *speeds, None)

    return [
        rate("host file to guest file", "copy"),
        rate("the same read and written in one place", "plain"),
        result("a write of 6144 bytes and its answer", "us", lambda times: times["copy"] / 1e3),
        result("a transaction of 12 bytes", "us", lambda times: times["transactions"] / 1e3),
        result("a write, to a transaction of 12 bytes", "x", lambda times: times["copy"] / times["transactions"]),
    ]


def _prepare(source: Path, guest: Path) -> bytes:
    data = bytes(range(256)) * (SIZE // 256)
    source.write_bytes(data)
    guest.mkdir()
    return data


def _copy_plainly(source: Path, target: Path) -> None:
    with source.open("rb") as reader, target.open("wb", buffering=0) as writer:
        while data := reader.read(DATA_SIZE):
            writer.write(data)


def _holds(path: Path, data: bytes) -> bool:
    return path.read_bytes() == data
