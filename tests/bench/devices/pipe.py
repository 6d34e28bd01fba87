"""What pipes carry in one process, beside an anyio Unix socket pair: bytes in pieces of 64 KiB, messages of 240 bytes.

A sender, which is a task of its own, and a receiver that counts. A socket keeps no messages apart, so its receiver takes
whatever is there: the measure is a little better off than the pipe. Rings have 128 KiB of data, the kernel's buffers are
as they come. Each round times all contenders in shuffled order, see `tests.bench.measure`.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from time import perf_counter_ns
from uuid import UUID

import anyio
import msgspec
from anyio.abc import ByteStream, UNIXSocketStream

from broker import Partition
from broker.access import Wakeup
from channels.bus import OfferParams
from channels.client import VmbusClient
from channels.devices import Device, DeviceChannel, serve_devices
from channels.pipe import BytePipe, MessagePipe
from channels.protocol.offer import PipeType
from channels.server import VmbusServer

from ..measure import Goal, Result, Round, Timed, expect, interleave

_INTERFACE = UUID("6ec80000-0000-4000-8000-0000000000bf")
_PIECE = bytes(range(256)) * 256
_MESSAGE = bytes(range(240))

BATCH = 64
RING_PAGES = (33, 33)
PIECES = 64
"""Sends of 64 KiB in a round."""
MESSAGES = 640


class _Lent(Device):
    """Lends its channel to the benchmark."""

    def __init__(self, pipe_type: PipeType, instance: int) -> None:
        self.offer = OfferParams.pipe(_INTERFACE, UUID(int=instance), pipe_type)
        self.channel: DeviceChannel | None = None
        self._never: Wakeup

    async def run(self, channel: DeviceChannel) -> None:
        self.channel = channel
        self._never = channel.turns.wakeup(("bench", 0))
        while True:
            await self._never.wait()


class _Scene(msgspec.Struct, frozen=True):
    """(guest's end, host's end) of both pipes, and a socket pair."""

    byte_pipe: tuple[BytePipe, BytePipe]
    message_pipe: tuple[MessagePipe, MessagePipe]
    sockets: tuple[ByteStream, ByteStream]


@asynccontextmanager
async def _open() -> AsyncIterator[_Scene]:
    lent = [_Lent(PipeType.BYTE, 1), _Lent(PipeType.MESSAGE, 2)]
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    async with (
        Partition() as partition,
        VmbusServer(partition.synic(), partition.memory) as server,
        serve_devices(server, *lent),
        VmbusClient(partition.vp(0).guest_synic()) as client,
        await UNIXSocketStream.from_socket(near) as one,
        await UNIXSocketStream.from_socket(far) as other,
    ):
        ends = []
        for device in lent:
            offer = await client.wait_offer(instance_id=device.offer.instance_id)
            guest = await client.open(offer, ring_pages=RING_PAGES)
            while device.channel is None:
                await anyio.lowlevel.checkpoint()
            ends.append((guest, device.channel))
        (byte_guest, byte_host), (message_guest, message_host) = ends
        yield _Scene(
            (BytePipe(byte_guest), BytePipe(byte_host)),
            (MessagePipe(message_guest), MessagePipe(message_host)),
            (one, other),
        )


async def _carry(send: Callable[[], Awaitable[None]], receive: Callable[[], Awaitable[int]], count: int) -> float:
    """Nanoseconds for each of `count`: one task sends all of them, this one takes them. `receive` says how many came."""
    async with anyio.create_task_group() as group:
        start = perf_counter_ns()
        group.start_soon(send)
        while count > 0:
            count -= await receive()
        return perf_counter_ns() - start


async def _bytes(near: ByteStream, far: ByteStream, count: int) -> float:
    async def send() -> None:
        for _ in range(count):
            await near.send(_PIECE)

    async def receive() -> int:
        return len(await far.receive())

    return await _carry(send, receive, count * len(_PIECE)) / count


async def _socket_messages(near: ByteStream, far: ByteStream, batch: int, count: int) -> float:
    data = _MESSAGE * batch

    async def send() -> None:
        for _ in range(count // batch):
            await near.send(data)

    async def receive() -> int:
        return len(await far.receive())

    return await _carry(send, receive, count * len(_MESSAGE)) / count


async def _single_messages(near: MessagePipe, far: MessagePipe, count: int) -> float:
    async def send() -> None:
        for _ in range(count):
            await near.send(_MESSAGE)

    async def receive() -> int:
        await far.receive()
        return 1

    return await _carry(send, receive, count) / count


async def _batches(near: MessagePipe, far: MessagePipe, count: int) -> float:
    batch = [_MESSAGE] * BATCH

    async def send() -> None:
        for _ in range(count // BATCH):
            await near.send_batch(batch)

    async def receive() -> int:
        return len(await far.receive_batch())

    return await _carry(send, receive, count) / count


async def _prove(scene: _Scene) -> None:
    """What is sent arrives, whole and in order."""
    data = bytes(number % 251 for number in range(500_000))
    for near, far in (scene.byte_pipe, scene.byte_pipe[::-1], scene.sockets):
        came = b""
        async with anyio.create_task_group() as group:
            group.start_soon(near.send, data)
            while len(came) < len(data):
                came += await far.receive()
        expect(came == data, "bytes arrive whole and in order")
    messages = [b"%d" % number for number in range(1000)]
    for sender, receiver in (scene.message_pipe, scene.message_pipe[::-1]):
        found: list[bytes] = []
        async with anyio.create_task_group() as group:
            group.start_soon(sender.send_batch, messages)
            while len(found) < len(messages):
                found += await receiver.receive_batch()
        expect(found == messages, "messages arrive in order, each as it was sent")


async def measure(loop: str, rounds: int) -> list[Result]:
    """Every figure on the running loop."""
    async with _open() as scene:
        there, back = scene.byte_pipe, scene.byte_pipe[::-1]
        bytes_contenders: dict[str, Timed] = {
            "socket": partial(_bytes, *scene.sockets),
            "guest to host": partial(_bytes, *there),
            "host to guest": partial(_bytes, *back),
        }
        message_contenders: dict[str, Timed] = {
            "socket, single": partial(_socket_messages, *scene.sockets, 1),
            "socket, batches": partial(_socket_messages, *scene.sockets, BATCH),
        }
        for name, (near, far) in (("guest to host", scene.message_pipe), ("host to guest", scene.message_pipe[::-1])):
            message_contenders[f"{name}, single"] = partial(_single_messages, near, far)
            message_contenders[f"{name}, batches"] = partial(_batches, near, far)
        await _prove(scene)
        pieces = await interleave(bytes_contenders, rounds, PIECES)
        messages = await interleave(message_contenders, rounds, MESSAGES)
        await _prove(scene)

    def results(
        name: str, what: str, measure: str, repetitions: list[list[Round]], unit: str, per: float
    ) -> list[Result]:
        """The rate, `per` a nanosecond, and what the measure of the same round carries for each that this one does."""

        def best(goal: Goal, figure: Callable[[Round], float]) -> Result:
            return Result.best_of(loop, goal, [[figure(times) for times in repetition] for repetition in repetitions])

        cost = best(Goal("pipe", what, unit="ns"), lambda times: times[name])
        rate = Result(loop, Goal("pipe", what, unit=unit), per / cost.measured, per / cost.high, per / cost.low, None)
        if name == measure:
            return [rate]
        ratio = Goal("pipe", f"{what}: time, to the socket's")
        return [rate, best(ratio, lambda times: times[name] / times[measure])]

    found: list[Result] = []
    for name in bytes_contenders:
        what = f"bytes in pieces of 64 KiB, {name}"
        found += results(name, what, "socket", pieces, "MB/s", len(_PIECE) * 1e3)
    for name in message_contenders:
        kind = name.rpartition(", ")[2]
        found += results(name, f"messages of 240 bytes, {name}", f"socket, {kind}", messages, "k/s", 1e6)
    return found
