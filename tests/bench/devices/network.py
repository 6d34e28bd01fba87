"""What frames cost between two guests on a virtual switch: two partitions of this process, each with an adapter and its driver.

A stream goes one way: the sender, a task of its own, hands over batches of 64 frames, and the receiver counts. Between them
lie, for each frame, a copy into the send buffer, one out of it, the switch, a copy into the receive buffer and one out.
Each round times both sizes in shuffled order, beside a bare await of a handler.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from time import perf_counter_ns
from uuid import UUID

import anyio

from broker import HvStatus, Partition
from channels.client import VmbusClient
from channels.devices import serve_devices
from channels.devices.network import NetworkAdapter, NetworkBackend, VirtualSwitch
from channels.drivers.network import Frame, NetworkClient
from channels.protocol.network.frames import BROADCAST
from channels.server import VmbusServer

from ..measure import Goal, Result, Timed, expect, interleave, timed

BATCH = 64
FRAMES = 6400
"""In a round."""
SIZES = (64, 1500)
"""Bytes of a frame, its header included."""
_TYPE = b"\x88\xb5"


async def _handler(payload: bytes) -> HvStatus:
    return HvStatus.SUCCESS


@asynccontextmanager
async def _guest(number: int, backend: NetworkBackend) -> AsyncIterator[NetworkClient]:
    async with (
        Partition() as partition,
        VmbusServer(partition.synic(), partition.memory) as server,
        serve_devices(server, NetworkAdapter(UUID(int=number), backend)),
        VmbusClient(partition.vp(0).guest_synic()) as client,
        NetworkClient.open(client) as nic,
    ):
        yield nic


async def _stream(sender: NetworkClient, receiver: NetworkClient, batch: list[Frame], _: int) -> float:
    """Nanoseconds a frame."""

    async def send() -> None:
        for _ in range(FRAMES // BATCH):
            await sender.send_batch(batch)

    start = perf_counter_ns()
    async with anyio.create_task_group() as group:
        group.start_soon(send)
        left = FRAMES
        while left:
            left -= len(await receiver.receive_batch())
    return (perf_counter_ns() - start) / FRAMES


async def _prove(sender: NetworkClient, receiver: NetworkClient, size: int) -> None:
    """Frames arrive in order, byte for byte."""
    head = receiver.address + sender.address + _TYPE
    frames = [Frame((head + number.to_bytes(4, "big")).ljust(size, b"x")) for number in range(BATCH)]
    await sender.send_batch(frames)
    came: list[Frame] = []
    while len(came) < BATCH:
        came += await receiver.receive_batch()
    expect(came == frames, "frames arrive in order, byte for byte")


async def measure(loop: str, rounds: int) -> list[Result]:
    """Frames a second from guest to guest over the switch, at both sizes."""
    switch = VirtualSwitch()
    async with _guest(1, switch.port("a")) as a, _guest(2, switch.port("b")) as b:
        await b.send(Frame(BROADCAST + b.address + _TYPE))
        await a.receive()
        head = b.address + a.address + _TYPE
        contenders: dict[str, Timed] = {"bare": timed("await handler(payload)", {"handler": _handler, "payload": b""})}
        for size in SIZES:
            await _prove(a, b, size)
            contenders[str(size)] = partial(_stream, a, b, [Frame(head.ljust(size, b"x"))] * BATCH)
        repetitions = await interleave(contenders, rounds, FRAMES)
        for size in SIZES:
            await _prove(a, b, size)
    expect(all(port.statistics().dropped == 0 for port in switch.ports), "no frame is dropped")

    results: list[Result] = []
    for size in SIZES:
        what = f"frames of {size} bytes, guest to switch to guest, batches of {BATCH}"
        cost = Result.best_of(
            loop, Goal("network", what, unit="us"), [[times[str(size)] / 1e3 for times in some] for some in repetitions]
        )
        rate = Goal("network", what, unit="k/s")
        results.append(Result(loop, rate, 1e3 / cost.measured, 1e3 / cost.high, 1e3 / cost.low, None))
        results.append(
            Result.best_of(
                loop,
                Goal("network", f"{what}, to a bare await"),
                [[times[str(size)] / times["bare"] for times in some] for some in repetitions],
            )
        )
    return results
