"""Any bytes in any pieces arrive as they were sent, whoever is cancelled on the way."""

from __future__ import annotations

import contextlib
from itertools import groupby

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from channels.pipe import BytePipe, MessagePipe
from channels.protocol.offer import PipeType

from .pairs import OWN_BYTES, OWN_OBJECTS, Pair, open_ends, read_to_end

item = pytest.mark.vmbus_item

some = settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])

PIECES = st.lists(
    st.binary(max_size=20) | st.integers(0, 9000).map(lambda size: bytes(size % 251 for _ in range(size)))
)
SIZES = st.lists(st.sampled_from([1, 7, 8, 100, 4096, 65536]), min_size=1, max_size=5)


@item(97)
@pytest.mark.parametrize("opener", OWN_BYTES.values(), ids=OWN_BYTES)
async def test_20000_bytes_arrive_whole_and_in_order(opener) -> None:
    data = bytes(number * 7 & 0xFF for number in range(20_000))
    async with opener() as pair, anyio.create_task_group() as group:

        async def send() -> None:
            await pair.first.send(data)
            await pair.first.send_eof()

        group.start_soon(send)
        assert await read_to_end(pair.second) == data


@pytest.mark.parametrize("opener", OWN_BYTES.values(), ids=OWN_BYTES)
@some
@given(there=PIECES, back=PIECES, sizes=SIZES)
async def test_any_pieces_both_ways_at_once(opener, there: list[bytes], back: list[bytes], sizes: list[int]) -> None:
    received: dict[str, bytes] = {}

    async def send(stream: BytePipe, pieces: list[bytes]) -> None:
        for piece in pieces:
            await stream.send(piece)
        await stream.send_eof()

    async def receive(name: str, stream: BytePipe) -> None:
        data = []
        with contextlib.suppress(anyio.EndOfStream):
            while True:
                data.append(await stream.receive(sizes[len(data) % len(sizes)]))
        assert all(1 <= len(piece) <= sizes[index % len(sizes)] for index, piece in enumerate(data))
        received[name] = b"".join(data)

    async with opener() as pair, anyio.create_task_group() as group:
        group.start_soon(send, pair.first, there)
        group.start_soon(send, pair.second, back)
        group.start_soon(receive, "there", pair.second)
        group.start_soon(receive, "back", pair.first)
    assert received == {"there": b"".join(there), "back": b"".join(back)}


async def cut_off(steps: int, action) -> bool:
    """Do it, cancelled after so many steps of the event loop. True when it came to its end."""
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:

            async def cut() -> None:
                for _ in range(steps):
                    await checkpoint()
                scope.cancel()

            group.start_soon(cut)
            await action()
            group.cancel_scope.cancel()
            return True
    return False


async def receive_on_and_on(pipe: BytePipe | MessagePipe) -> None:
    while True:
        await pipe.receive()


STEPS = st.lists(st.integers(0, 12), min_size=5, max_size=20)


@pytest.mark.parametrize("opener", OWN_BYTES.values(), ids=OWN_BYTES)
@some
@given(sends=st.lists(st.tuples(st.integers(1, 9000), st.integers(0, 30)), min_size=1, max_size=20), cuts=STEPS)
async def test_cancelled_sends_and_receives_lose_and_double_nothing(
    opener, sends: list[tuple[int, int]], cuts: list[int]
) -> None:
    """Each send has a byte of its own: what arrives is a beginning of each, all of those that came to their end."""
    whole: dict[int, int] = {}
    received: list[bytes] = []

    async def send(pair: Pair) -> None:
        for number, (size, steps) in enumerate(sends):
            if await cut_off(steps, lambda: pair.first.send(bytes([number]) * size)):  # noqa: B023
                whole[number] = size
        await pair.first.send_eof()

    async def receive(pair: Pair) -> None:
        async def once() -> None:
            with contextlib.suppress(anyio.EndOfStream):  # it comes again
                received.append(await pair.second.receive(1000))

        for steps in cuts:
            await cut_off(steps, once)
        received.append(await read_to_end(pair.second))

    async with opener() as pair, anyio.create_task_group() as group:
        group.start_soon(send, pair)
        group.start_soon(receive, pair)
    runs = [(number, len(list(run))) for number, run in groupby(b"".join(received))]
    assert [number for number, _ in runs] == sorted({number for number, _ in runs})
    assert all(size <= sends[number][0] for number, size in runs)
    assert whole.items() <= dict(runs).items()


@pytest.mark.parametrize("opener", OWN_OBJECTS.values(), ids=OWN_OBJECTS)
@some
@given(sends=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 20)), min_size=1, max_size=30), cuts=STEPS)
async def test_cancelled_messages_come_whole_or_not_at_all_and_once(
    opener, sends: list[tuple[int, int]], cuts: list[int]
) -> None:
    messages = [bytes([number]) * size + b"!%d" % number for number, (size, _) in enumerate(sends)]
    sent: list[bytes] = []
    received: list[bytes] = []

    async def send(pair: Pair) -> None:
        for message, (_, steps) in zip(messages, sends, strict=True):
            if await cut_off(steps, lambda: pair.first.send(message)):  # noqa: B023
                sent.append(message)
        await pair.first.send(b"end")

    async def receive(pair: Pair) -> None:
        async def once() -> None:
            received.append(await pair.second.receive())

        for steps in cuts:
            await cut_off(steps, once)
            if received[-1:] == [b"end"]:
                return
        while received[-1:] != [b"end"]:
            await once()

    async with opener() as pair, anyio.create_task_group() as group:
        group.start_soon(send, pair)
        group.start_soon(receive, pair)
    arrived = received[:-1]
    assert arrived == [message for message in messages if message in arrived]
    assert set(sent) <= set(arrived)


@pytest.mark.parametrize("kind", [BytePipe, MessagePipe])
@pytest.mark.parametrize("side", ["host", "guest"])
@some
@given(payloads=st.lists(st.binary(max_size=40), min_size=1, max_size=10))
async def test_any_payload_is_data_or_a_broken_pipe(
    kind: type[BytePipe | MessagePipe], side: str, payloads: list[bytes]
) -> None:
    pipe_type = PipeType.BYTE if kind is BytePipe else PipeType.MESSAGE
    async with open_ends(pipe_type=pipe_type) as ends:
        pipe, peer = (kind(ends.host), ends.guest) if side == "host" else (kind(ends.guest), ends.host)
        await peer.send_batch(payloads)
        await peer.send(b"\0" * 8)  # of type 0: the end, whatever came before
        with pytest.raises((anyio.BrokenResourceError, anyio.EndOfStream)):
            await receive_on_and_on(pipe)
        await pipe.aclose()
