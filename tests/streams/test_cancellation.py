"""Whatever is cancelled, and at whichever of its waits: no byte is lost, sent twice or out of order, and no end said twice."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from broker import Partition
from broker.clock import TICKS_PER_SECOND
from channels.pipe import BytePipe, MessagePipe
from channels.protocol.offer import PipeType

from . import pairs
from .pairs import ALL_OBJECTS, OWN_BYTES, open_ends, read_to_end

own = pytest.mark.parametrize("opener", OWN_BYTES.values(), ids=OWN_BYTES)
objects = pytest.mark.parametrize("opener", ALL_OBJECTS.values(), ids=ALL_OBJECTS)

DATA = bytes(range(256)) * 100
"""25 KiB: more than a ring here takes."""
MOST_WAITS = 400
"""No call here waits more often."""

Call = Callable[[], Awaitable[Any]]


class _Cancelled:
    """Awaits a call, and cancels its scope as it waits for the `number`-th time."""

    def __init__(self, call: Call, scope: anyio.CancelScope, number: int) -> None:
        self._call = call
        self._scope = scope
        self._number = number

    def __await__(self) -> Generator[Any, Any, Any]:
        waiting = self._call().__await__()
        waits = 0
        step: Callable[[], Any] = lambda: next(waiting)  # noqa: E731
        while True:
            try:
                trap = step()
            except StopIteration as done:
                return done.value
            if waits == self._number:
                self._scope.cancel()
            waits += 1
            try:
                value = yield trap
            except BaseException as error:
                step = lambda error=error: waiting.throw(error)  # type: ignore[misc]  # noqa: E731
            else:
                step = lambda value=value: waiting.send(value)  # type: ignore[misc]  # noqa: E731


async def as_it_waits(call: Call, number: int) -> bool:
    """Do it, cancelled as it waits for the `number`-th time. True when it was done before."""
    with anyio.CancelScope() as scope:
        await _Cancelled(call, scope, number)
        return True
    return False


async def as_it_is_woken(call: Call, number: int) -> bool:
    """Do it, cancelled by another task after so many rounds of the loop: also while it is about to go on."""
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:

            async def count() -> None:
                for _ in range(number):
                    await checkpoint()
                scope.cancel()

            group.start_soon(count)
            await call()
            group.cancel_scope.cancel()
            return True
    return False


cancelled = pytest.mark.parametrize("cancel", [as_it_waits, as_it_is_woken])
Cancel = Callable[[Call, int], Awaitable[bool]]


@own
@cancelled
async def test_a_receive_that_is_cancelled_anywhere_loses_and_repeats_nothing(opener, cancel: Cancel) -> None:
    async with opener() as pair, anyio.create_task_group() as group:

        async def send() -> None:
            for start in range(0, len(DATA), 1000):
                await pair.first.send(DATA[start : start + 1000])
            await pair.first.send_eof()

        group.start_soon(send)
        came, number = b"", 0
        is_over = False

        async def receive() -> None:
            nonlocal came, is_over
            try:
                came += await pair.second.receive(700)
            except anyio.EndOfStream:
                is_over = True

        while not is_over:
            await cancel(receive, number % 7)
            number += 1
        assert came == DATA


@own
@cancelled
async def test_a_send_that_is_cancelled_anywhere_has_sent_a_beginning(opener, cancel: Cancel) -> None:
    for number in range(MOST_WAITS):
        async with opener() as pair, anyio.create_task_group() as group:
            came: list[bytes] = []

            async def receive(pair=pair, came=came) -> None:
                came.append(await read_to_end(pair.second))

            group.start_soon(receive)
            was_done = await cancel(lambda pair=pair: pair.first.send(DATA), number)
            await pair.first.send(b"the end")
            await pair.first.send_eof()
            while not came:
                await checkpoint()
            assert came[0].endswith(b"the end")
            assert DATA.startswith(came[0][:-7])
            assert not was_done or came[0][:-7] == DATA
        if was_done:
            return
    raise AssertionError("it waits too often")


@own
@cancelled
async def test_an_end_whose_sending_is_cancelled_anywhere_is_said_once(opener, cancel: Cancel) -> None:
    for number in range(MOST_WAITS):
        async with opener() as pair:

            async def read(pair=pair) -> None:
                assert await read_to_end(pair.second) == b""

            async with anyio.create_task_group() as group:
                group.start_soon(read)
                await anyio.wait_all_tasks_blocked()
                was_done = await cancel(pair.first.send_eof, number)
                await pair.first.send_eof()
            with pytest.raises(anyio.EndOfStream):
                await pair.second.receive()
            await pair.second.send(b"still here")
            await pair.second.send_eof()
            assert await read_to_end(pair.first) == b"still here"
        if was_done:
            return
    raise AssertionError("it waits too often")


@own
@cancelled
async def test_a_close_that_is_cancelled_anywhere_closes(opener, cancel: Cancel) -> None:
    for number in range(MOST_WAITS):
        async with opener() as pair:
            await pair.first.send(b"last")

            async def answer(pair=pair) -> None:
                assert await read_to_end(pair.second) == b"last"
                await pair.second.send_eof()

            async with anyio.create_task_group() as group:
                if number % 2:
                    group.start_soon(answer)
                was_done = await cancel(pair.first.aclose, number // 2)
                with pytest.raises(anyio.ClosedResourceError):
                    await pair.first.receive()
                with pytest.raises(anyio.ClosedResourceError):
                    await pair.first.send(b"more")
                group.cancel_scope.cancel()
        if was_done and number % 2:
            return
    raise AssertionError("it waits too often")


@objects
@cancelled
async def test_messages_are_neither_lost_nor_repeated_by_a_cancelled_receive(opener, cancel: Cancel) -> None:
    messages = [b"%d" % number * 50 for number in range(200)]
    async with opener() as pair, anyio.create_task_group() as group:

        async def send() -> None:
            for message in messages:
                await pair.first.send(message)

        group.start_soon(send)
        came: list[bytes] = []

        async def receive() -> None:
            came.append(await pair.second.receive())

        number = 0
        while len(came) < len(messages):
            await cancel(receive, number % 5)
            number += 1
        assert came == messages


# closing while others are at work


@pytest.mark.parametrize("rounds", range(3))
@pytest.mark.parametrize("opener", [opener for name, opener in OWN_BYTES.items() if name.startswith("hvsock")])
async def test_a_close_is_not_late_when_the_end_came_to_the_task_that_it_calls_back(
    opener, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The receiver is woken, and goes on after it was called back: it has the end, for which the close waits."""
    monkeypatch.setattr(pairs, "partition", Partition)  # seeded turns would not let this happen
    async with opener() as pair, anyio.create_task_group() as group:

        async def receive() -> None:
            with pytest.raises((anyio.ClosedResourceError, anyio.EndOfStream)):
                await pair.first.receive()

        group.start_soon(receive)
        await anyio.wait_all_tasks_blocked()
        await pair.second.send_eof()
        for _ in range(rounds):
            await checkpoint()
        await pair.first.aclose()
        await anyio.wait_all_tasks_blocked()
        assert pair.first.channel.doorbell.ended is not None


@pytest.mark.parametrize("kind", [BytePipe, MessagePipe])
async def test_a_close_calls_back_a_receiver_that_lets_others_have_their_turn(kind) -> None:
    """Each call in so many does, before it looks for packets."""
    async with open_ends(pipe_type=PipeType.BYTE if kind is BytePipe else PipeType.MESSAGE) as ends:
        for quick in range(40):
            pipe = kind(ends.host)
            pipe_ends = []

            async def receive(pipe=pipe, pipe_ends=pipe_ends) -> None:
                with pytest.raises(anyio.ClosedResourceError):
                    await pipe.receive()
                pipe_ends.append(ends.turns.clock.now())

            pipe._quick = quick
            async with anyio.create_task_group() as group:
                group.start_soon(receive)
                await checkpoint()
                began = ends.turns.clock.now()
                pipe._shut()
                await anyio.wait_all_tasks_blocked()
                assert pipe_ends, quick
                assert pipe_ends[0] - began < TICKS_PER_SECOND
                group.cancel_scope.cancel()
