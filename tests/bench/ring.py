"""What a ring in one process costs: packets of 240 bytes written and read, beside a bare await of a handler.

    python -m tests.bench.ring [--json] [--loop asyncio|trio|both] [--rounds N]

Each round times all contenders in shuffled order, with `tests.bench.measure`. "single" puts, publishes, reads and commits
each packet by itself; "batch" does it for 64 at a time; "write" stands in for the consumer with one store of `out`, and
"read" is the rest of a batch. No goal is set: the ring has one only between processes, with a handler (P5, P6). Before
and after, every way is watched once: what was written is what is read.
"""

from __future__ import annotations

from collections.abc import Callable

from broker import HvStatus
from channels.ring import IncomingRing, OutgoingRing, RingMemory
from channels.ring.control import CONTROL_PAGE_SIZE, IN, OUT

from .measure import (
    REPETITIONS,
    Goal,
    Result,
    Round,
    expect,
    interleave,
    program,
    timed,
)

_ANSWER = HvStatus.SUCCESS
_PAYLOAD = bytes(range(240))

BATCH = 64
DATA_SIZE = 65_536
CALLS = 3_200
ROUNDS = 150

_PUBLISH_AND_READ = "producer.publish()\nconsumer.read_batch()\nconsumer.commit()"
WAYS = {
    "bare": ("await handler(payload)", 1),
    "single": ("producer.try_put(payload)\nproducer.publish()\nconsumer.read()\nconsumer.commit()", 1),
    "each": (f"for packet in batch: producer.try_put(packet)\n{_PUBLISH_AND_READ}", BATCH),
    "batch": (f"producer.put_many(batch)\n{_PUBLISH_AND_READ}", BATCH),
    "write": ("writer.put_many(batch)\nwriter.publish()\nwords[OUT] = words[IN]", BATCH),
    "write single": ("writer.try_put(payload)\nwriter.publish()\nwords[OUT] = words[IN]", 1),
    "read single": (
        "producer.put_many(batch)\nproducer.publish()\nfor _ in batch: consumer.read(); consumer.commit()",
        BATCH,
    ),
}


async def _handler(payload: bytes) -> HvStatus:
    return _ANSWER


def _ends() -> tuple[RingMemory, OutgoingRing, IncomingRing]:
    memory = RingMemory(bytearray(CONTROL_PAGE_SIZE + DATA_SIZE))
    producer, consumer = OutgoingRing(memory), IncomingRing(memory)
    producer.initialize()
    consumer.initialize()
    return memory, producer, consumer


def _prove(producer: OutgoingRing, consumer: IncomingRing) -> None:
    payloads = [bytes([index]) * 240 for index in range(BATCH)]
    expect(producer.put_many(payloads) == BATCH, "the ring is empty between two rounds")
    producer.publish()
    expect([packet.payload for packet in consumer.read_batch()] == payloads, "what was written is what is read")
    consumer.commit()
    expect(producer.try_put(_PAYLOAD) and not producer.publish(), "a masked consumer is not signalled")
    packet = consumer.read()
    expect(packet is not None and packet.payload == _PAYLOAD, "a single packet is read")
    consumer.commit()


async def measure(loop: str, rounds: int) -> list[Result]:
    """All figures on the running loop."""
    _, producer, consumer = _ends()
    written, writer, _ = _ends()
    names: dict[str, object] = {
        "IN": IN,
        "OUT": OUT,
        "batch": [_PAYLOAD] * BATCH,
        "consumer": consumer,
        "handler": _handler,
        "payload": _PAYLOAD,
        "producer": producer,
        "words": written.words,
        "writer": writer,
    }
    _prove(producer, consumer)
    contenders = {name: timed(statement, names, per) for name, (statement, per) in WAYS.items()}
    repetitions = await interleave(contenders, rounds, CALLS)
    _prove(producer, consumer)

    def figures(what: str, value: Callable[[Round], float]) -> list[Result]:
        def result(goal: Goal, figure: Callable[[Round], float]) -> Result:
            return Result.best_of(loop, goal, [[figure(times) for times in repetition] for repetition in repetitions])

        cost = result(Goal("ring", what, unit="ns"), value)
        rate = Result(loop, Goal("ring", what, unit="M/s"), 1e3 / cost.measured, 1e3 / cost.high, 1e3 / cost.low, None)
        return [cost, rate, result(Goal("ring", what), lambda times: value(times) / times["bare"])]

    return [
        *figures("bare await handler(payload)", lambda times: times["bare"])[:1],
        *figures("write and read, single", lambda times: times["single"]),
        *figures("write and read, batch of 64, put one by one", lambda times: times["each"]),
        *figures("write and read, batch of 64", lambda times: times["batch"]),
        *figures("write, single", lambda times: times["write single"]),
        *figures("write, batch of 64", lambda times: times["write"]),
        *figures("read and commit one by one", lambda times: times["read single"] - times["write"]),
        *figures("read, batch of 64", lambda times: times["batch"] - times["write"]),
    ]


main = program(
    measure,
    "Measure what a packet costs in a ring.",
    f"x: to the bare await of the same round; medians of {{}} interleaved rounds of {CALLS} packets, best of"
    f" {REPETITIONS}; range: 80 % of the rounds",
    rounds=ROUNDS,
    calls=CALLS,
    packages=("anyio", "msgspec"),
    loop="asyncio",
)

if __name__ == "__main__":
    main()
