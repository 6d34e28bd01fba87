"""What a channel costs in one process: packets of 240 bytes between a guest and a device, through SynIC, server and client.

    python -m tests.bench.channel [--json] [--loop asyncio|trio|both] [--rounds N]

Round trips go to an echo device and back: one request at a time with its completion, or 64 packets sent at once and 64
taken back. One direction is a stream: the sender, a task of its own, goes on until the ring is full, and the receiver
counts. Each round times all contenders in shuffled order, with `tests.bench.measure`, beside a bare await of a handler
and beside the same packets written to a ring and read from it (`tests.bench.ring`), both ways for a round trip.

Then 2,047 channels on one partition, see `tests.bench.idle`. Only what an idle channel weighs is a goal.

The exit status is 1 when a goal is missed. Under a debug mode there are no figures.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from time import perf_counter_ns
from uuid import UUID

import msgspec

from broker import HvStatus, Partition
from broker.access import Wakeup
from channels.channel import Channel
from channels.client import VmbusClient
from channels.core.server.offer_params import OfferParams
from channels.devices import Device, DeviceChannel, EchoDevice, serve_devices
from channels.ring import IncomingRing, OutgoingRing, RingMemory
from channels.ring.control import CONTROL_PAGE_SIZE
from channels.server import VmbusServer

from .idle import measure_idle
from .measure import (
    REPETITIONS,
    Goal,
    Result,
    Round,
    Timed,
    expect,
    interleave,
    program,
    timed,
)

_ANSWER = HvStatus.SUCCESS
_PAYLOAD = bytes(range(240))
_INTERFACE = UUID("6ec80000-0000-4000-8000-0000000000be")
_ECHO, _SOURCE, _SINK = (UUID(int=number) for number in (1, 2, 3))

BATCH = 64
RING_PAGES = (17, 17)
"""Pages of each ring: 64 KiB of data, almost four batches."""
CALLS = 640
"""Packets in a round."""
ROUNDS = 30

_REQUEST = "await channel.request(payload)"
_BATCH = """
await channel.send_batch(batch)
left = {batch}
while left:
    left -= len(await channel.receive_batch())
"""
_RING = {
    "ring single": ("producer.try_put(payload)\nproducer.publish()\nconsumer.read()\nconsumer.commit()", 1),
    "ring batch": ("producer.put_many(batch)\nproducer.publish()\nconsumer.read_batch()\nconsumer.commit()", BATCH),
}


async def _handler(payload: bytes) -> HvStatus:
    return _ANSWER


class _Source(Device):
    """Sends as many packets as it is told to."""

    offer = OfferParams.device(_INTERFACE, _SOURCE)

    def __init__(self) -> None:
        self._wanted = 0
        self._told: Wakeup

    async def open(self, channel: DeviceChannel) -> None:
        self._told = channel.turns.wakeup(("source", 0))

    def send(self, count: int) -> None:
        """Send so many more, a multiple of a batch."""
        self._wanted += count
        self._told.notify()

    async def run(self, channel: DeviceChannel) -> None:
        batch = [_PAYLOAD] * BATCH
        while True:
            while not self._wanted:
                await self._told.wait()
            self._wanted -= BATCH
            await channel.send_batch(batch)


class _Sink(Device):
    """Counts what it gets, and tells when there was enough."""

    offer = OfferParams.device(_INTERFACE, _SINK)

    def __init__(self) -> None:
        self._left = 0
        self._done: Wakeup

    async def open(self, channel: DeviceChannel) -> None:
        self._done = channel.turns.wakeup(("sink", 0))

    def expect(self, count: int) -> None:
        """So many are going to be sent."""
        self._left += count

    async def wait(self) -> None:
        """Until they have come."""
        while self._left:
            await self._done.wait()

    async def run(self, channel: DeviceChannel) -> None:
        while True:
            packets = await channel.receive_batch()
            self._left -= len(packets)
            if not self._left:
                self._done.notify()


class _Scene(msgspec.Struct, frozen=True):
    """Three devices, and the guest's channel to each."""

    echo: EchoDevice
    source: _Source
    sink: _Sink
    to_echo: Channel
    to_source: Channel
    to_sink: Channel


@asynccontextmanager
async def _open_channels() -> AsyncIterator[_Scene]:
    echo, source, sink = EchoDevice(_ECHO), _Source(), _Sink()
    async with (
        Partition() as partition,
        VmbusServer(partition.synic(), partition.memory) as server,
        serve_devices(server, echo, source, sink),
        VmbusClient(partition.vp(0).guest_synic()) as client,
    ):

        async def open_channel(instance_id: UUID) -> Channel:
            return await client.open(await client.wait_offer(instance_id=instance_id), ring_pages=RING_PAGES)

        channels = [await open_channel(instance_id) for instance_id in (_ECHO, _SOURCE, _SINK)]
        yield _Scene(echo, source, sink, *channels)


async def _to_guest(scene: _Scene, count: int) -> float:
    start = perf_counter_ns()
    scene.source.send(count)
    left = count
    receive = scene.to_source.receive_batch
    while left:
        left -= len(await receive())
    return (perf_counter_ns() - start) / count


async def _to_device(scene: _Scene, count: int) -> float:
    batch = [_PAYLOAD] * BATCH
    start = perf_counter_ns()
    scene.sink.expect(count)
    send = scene.to_sink.send_batch
    for _ in range(count // BATCH):
        await send(batch)
    await scene.sink.wait()
    return (perf_counter_ns() - start) / count


async def _prove(scene: _Scene) -> None:
    """Requests are answered with what they asked, batches come back in order, streams arrive whole."""
    payloads = [bytes([index]) * 240 for index in range(BATCH)]
    before = scene.echo.echoed
    for payload in payloads:
        expect((await scene.to_echo.request(payload)).payload == payload, "a request is answered with what it asked")
    await scene.to_echo.send_batch(payloads)
    came: list[bytes] = []
    while len(came) < BATCH:
        came += [packet.payload for packet in await scene.to_echo.receive_batch()]
    expect(came == payloads, "a batch comes back in order")
    expect(scene.echo.echoed - before == 2 * BATCH, "the device has echoed each packet once")
    await _to_guest(scene, CALLS)
    await _to_device(scene, CALLS)


async def measure_packets(loop: str, rounds: int) -> list[Result]:
    """Round trips and streams on the running loop."""
    memory = RingMemory(bytearray(CONTROL_PAGE_SIZE + 65_536))
    names: dict[str, object] = {
        "batch": [_PAYLOAD] * BATCH,
        "consumer": IncomingRing(memory),
        "handler": _handler,
        "payload": _PAYLOAD,
        "producer": OutgoingRing(memory),
    }
    async with _open_channels() as scene:
        names["channel"] = scene.to_echo
        contenders: dict[str, Timed] = {
            "bare": timed("await handler(payload)", names),
            **{name: timed(statement, names, per) for name, (statement, per) in _RING.items()},
            "request": timed(_REQUEST, names),
            "batch": timed(_BATCH.format(batch=BATCH), names, BATCH),
            "to guest": partial(_to_guest, scene),
            "to device": partial(_to_device, scene),
        }
        await _prove(scene)
        repetitions = await interleave(contenders, rounds, CALLS)
        await _prove(scene)

    def result(goal: Goal, figure: Callable[[Round], float]) -> Result:
        return Result.best_of(loop, goal, [[figure(times) for times in repetition] for repetition in repetitions])

    def figures(what: str, name: str, ring: str, trips: int) -> list[Result]:
        cost = result(Goal("channel", what, unit="us"), lambda times: times[name] / 1e3)
        rate = Goal("channel", what, unit="k/s")
        written = "a ring's write and read" + (", both ways" if trips == 2 else "")
        return [
            cost,
            Result(loop, rate, 1e3 / cost.measured, 1e3 / cost.high, 1e3 / cost.low, None),
            result(Goal("channel", f"{what}, to a bare await"), lambda times: times[name] / times["bare"]),
            result(
                Goal("channel", f"{what}, to {written}"),
                lambda times: times[name] / (trips * times[ring]),
            ),
        ]

    return [
        result(Goal("channel", "bare await handler(payload)", unit="us"), lambda times: times["bare"] / 1e3),
        *figures("request and completion, one at a time", "request", "ring single", 2),
        *figures(f"echo, batches of {BATCH}, a packet", "batch", "ring batch", 2),
        *figures(f"device to guest, batches of {BATCH}, a packet", "to guest", "ring batch", 1),
        *figures(f"guest to device, batches of {BATCH}, a packet", "to device", "ring batch", 1),
    ]


async def measure(loop: str, rounds: int) -> list[Result]:
    """Every figure on the running loop."""
    return [*await measure_packets(loop, rounds), *await measure_idle(loop)]


main = program(
    measure,
    "Measure what packets and idle channels cost, and say whether the goal is met.",
    f"packets: medians of {{}} interleaved rounds of {CALLS}, best of {REPETITIONS}; range: 80 % of the rounds;"
    " x: to what the same round measured",
    rounds=ROUNDS,
    calls=CALLS,
    packages=("anyio", "trio", "msgspec"),
)

if __name__ == "__main__":
    main()
