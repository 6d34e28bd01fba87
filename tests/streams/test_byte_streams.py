"""What anyio expects of byte streams, asked of both ends of byte pipes and hvsock connections, and of anyio's own sockets."""

from __future__ import annotations

import anyio
import pytest

from broker.clock import TICKS_PER_SECOND
from channels.pipe import LINGER, BytePipe, PipeAttribute

from .pairs import ALL_BYTES, OWN_BYTES, open_ends, read_exactly, read_to_end

every = pytest.mark.parametrize("opener", ALL_BYTES.values(), ids=ALL_BYTES)
own = pytest.mark.parametrize("opener", OWN_BYTES.values(), ids=OWN_BYTES)

LARGE = bytes(range(256)) * 8192
"""2 MiB: more than any ring or socket buffer here takes."""


# sending and receiving


@every
async def test_bytes_arrive_in_order_both_ways(opener) -> None:
    async with opener() as pair:
        for near, far in ((pair.first, pair.second), (pair.second, pair.first)):
            await near.send(b"one")
            await near.send(b"two")
            assert await read_exactly(far, 6) == b"onetwo"


@every
async def test_what_one_receive_leaves_comes_with_the_next(opener) -> None:
    async with opener() as pair:
        await pair.first.send(b"abcdefgh")
        assert await pair.second.receive(3) == b"abc"
        assert await pair.second.receive(1) == b"d"
        assert await pair.second.receive() == b"efgh"


@every
@pytest.mark.parametrize("most", [0, -1])
async def test_max_bytes_below_one_is_refused(opener, most: int) -> None:
    async with opener() as pair:
        await pair.first.send(b"abc")
        with pytest.raises(ValueError, match="max_bytes"):
            await pair.second.receive(most)
        assert await pair.second.receive() == b"abc"


@every
async def test_sending_nothing_sends_nothing(opener) -> None:
    async with opener() as pair:
        await pair.first.send(b"")
        await pair.first.send(b"abc")
        await pair.first.send(b"")
        assert await pair.second.receive() == b"abc"
        await pair.first.send_eof()
        with pytest.raises(anyio.EndOfStream):
            await pair.second.receive()


@every
async def test_bytes_like_objects_may_be_sent_and_changed_afterwards(opener) -> None:
    async with opener() as pair:
        data = bytearray(b"abc")
        await pair.first.send(data)
        data[:] = b"xyz"
        assert await pair.second.receive() == b"abc"
        await pair.first.send(memoryview(b"abcdef")[2:4])
        received = await pair.second.receive()
        assert received == b"cd"
        assert type(received) is bytes


@every
async def test_a_large_send_waits_for_the_reader_and_arrives_whole(opener) -> None:
    async with opener() as pair, anyio.create_task_group() as group:
        sent = anyio.Event()

        async def send() -> None:
            await pair.first.send(LARGE)
            sent.set()
            await pair.first.send_eof()

        group.start_soon(send)
        await anyio.wait_all_tasks_blocked()
        assert not sent.is_set()
        assert await read_to_end(pair.second) == LARGE
        assert sent.is_set()


@every
async def test_both_directions_may_be_full_at_once(opener) -> None:
    async with opener() as pair, anyio.create_task_group() as group:
        for stream in (pair.first, pair.second):
            group.start_soon(stream.send, LARGE)
        await anyio.wait_all_tasks_blocked()
        for stream in (pair.first, pair.second):
            assert await read_exactly(stream, len(LARGE)) == LARGE


@every
async def test_a_receiver_that_waits_gets_what_is_sent_later(opener) -> None:
    async with opener() as pair, anyio.create_task_group() as group:
        received = []

        async def receive() -> None:
            received.append(await pair.second.receive())

        group.start_soon(receive)
        await anyio.wait_all_tasks_blocked()
        assert not received
        await pair.first.send(b"abc")
        while not received:
            await anyio.lowlevel.checkpoint()
        assert received == [b"abc"]


# half-close


@every
async def test_the_end_comes_after_the_last_byte_and_again_each_time(opener) -> None:
    async with opener() as pair:
        await pair.first.send(b"last")
        await pair.first.send_eof()
        assert await pair.second.receive() == b"last"
        for _ in range(3):
            with pytest.raises(anyio.EndOfStream):
                await pair.second.receive()


@every
async def test_the_other_direction_goes_on_after_a_half_close(opener) -> None:
    async with opener() as pair:
        await pair.first.send_eof()
        with pytest.raises(anyio.EndOfStream):
            await pair.second.receive()
        await pair.second.send(b"still here")
        assert await pair.first.receive() == b"still here"
        await pair.second.send_eof()
        with pytest.raises(anyio.EndOfStream):
            await pair.first.receive()


@every
async def test_the_end_may_be_said_twice(opener) -> None:
    async with opener() as pair:
        await pair.first.send_eof()
        await pair.first.send_eof()
        with pytest.raises(anyio.EndOfStream):
            await pair.second.receive()


@own
async def test_a_send_after_the_end_was_said_is_refused(opener) -> None:
    """anyio's sockets have no word of their own for it; its memory streams and trio's say this."""
    async with opener() as pair:
        await pair.first.send_eof()
        with pytest.raises(anyio.ClosedResourceError):
            await pair.first.send(b"more")
        with pytest.raises(anyio.EndOfStream):
            await pair.second.receive()


@every
async def test_iterating_stops_at_the_end(opener) -> None:
    async with opener() as pair:
        await pair.first.send(b"abc")
        await pair.first.send_eof()
        assert [data async for data in pair.second] == [b"abc"]
        assert [data async for data in pair.second] == []


# closing


@every
async def test_what_was_sent_before_a_close_arrives_and_then_the_end(opener) -> None:
    async with opener() as pair, anyio.create_task_group() as group:
        await pair.first.send(b"goodbye")
        group.start_soon(pair.first.aclose)
        assert await pair.second.receive() == b"goodbye"
        for _ in range(2):
            with pytest.raises(anyio.EndOfStream):
                await pair.second.receive()
        await pair.second.aclose()


@every
async def test_a_closed_stream_says_so(opener) -> None:
    async with opener() as pair:
        await pair.close()
        for stream in (pair.first, pair.second):
            with pytest.raises(anyio.ClosedResourceError):
                await stream.receive()
            with pytest.raises(anyio.ClosedResourceError):
                await stream.send(b"abc")


@every
async def test_closing_twice_is_fine(opener) -> None:
    async with opener() as pair:
        for _ in range(2):
            await pair.first.aclose()


@pytest.mark.parametrize(
    "opener",
    # A device that closes its end of a pipe has no way to close the guest's channel.
    [opener for name, opener in ALL_BYTES.items() if name != "byte pipe, guest"],
    ids=[name for name in ALL_BYTES if name != "byte pipe, guest"],
)
async def test_sending_to_a_closed_stream_breaks(opener) -> None:
    async with opener() as pair:
        await pair.second.aclose()
        await pair.later()

        async def send_again_and_again() -> None:
            for _ in range(100):
                await pair.first.send(b"abc")
                await anyio.lowlevel.checkpoint()

        with pytest.raises(anyio.BrokenResourceError):
            await send_again_and_again()


@every
async def test_closing_calls_a_waiting_receiver_back(opener) -> None:
    async with opener() as pair:
        failed = []

        async def receive() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await pair.first.receive()
            failed.append(True)

        async with anyio.create_task_group() as group:
            group.start_soon(receive)
            await anyio.wait_all_tasks_blocked()
            await pair.first.aclose()
        assert failed


@every
async def test_closing_calls_a_waiting_sender_back(opener) -> None:
    async with opener() as pair:
        failed = []

        async def send() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await pair.first.send(LARGE)
            failed.append(True)

        async with anyio.create_task_group() as group:
            group.start_soon(send)
            await anyio.wait_all_tasks_blocked()
            await pair.first.aclose()
        assert failed


@every
async def test_a_cancelled_close_closes_all_the_same(opener) -> None:
    async with opener() as pair:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await pair.first.aclose()
        with pytest.raises(anyio.ClosedResourceError):
            await pair.first.send(b"abc")
        with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
            await pair.second.receive()


@every
async def test_leaving_the_block_closes(opener) -> None:
    async with opener() as pair:
        async with pair.first:
            pass
        with pytest.raises(anyio.ClosedResourceError):
            await pair.first.receive()


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_a_driver_that_does_not_get_its_channel_back_closes_all_the_same(is_cancelled: bool) -> None:
    async with open_ends() as ends:
        began = []

        async def close() -> None:
            began.append(ends.turns.clock.now())
            await ends.turns.wakeup(("never", 0)).wait()

        pipe = BytePipe(ends.guest, close=close)
        await BytePipe(ends.host).send_eof()
        with pytest.raises(anyio.EndOfStream):
            await pipe.receive()
        with anyio.CancelScope() as scope:
            if is_cancelled:
                scope.cancel()
            await pipe.aclose()
        waited = ends.turns.clock.now() - began[0]
        assert waited < TICKS_PER_SECOND if is_cancelled else LINGER <= waited < LINGER + TICKS_PER_SECOND
        with pytest.raises(anyio.ClosedResourceError):
            await pipe.send(b"abc")


# two at once


@every
async def test_two_receivers_are_one_too_many(opener) -> None:
    async with opener() as pair, anyio.create_task_group() as group:
        group.start_soon(pair.first.receive)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(anyio.BusyResourceError):
            await pair.first.receive()
        await pair.second.send(b"for the first")


@every
async def test_two_senders_are_one_too_many(opener) -> None:
    async with opener() as pair, anyio.create_task_group() as group:
        group.start_soon(pair.first.send, LARGE)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(anyio.BusyResourceError):
            await pair.first.send(b"second")
        assert await read_exactly(pair.second, len(LARGE)) == LARGE


@every
async def test_one_may_send_while_another_receives(opener) -> None:
    async with opener() as pair, anyio.create_task_group() as group:
        group.start_soon(pair.first.receive)
        await anyio.wait_all_tasks_blocked()
        await pair.first.send(b"there")
        assert await pair.second.receive() == b"there"
        await pair.second.send(b"and back")


# cancellation


@every
async def test_a_cancelled_receive_loses_nothing(opener) -> None:
    async with opener() as pair:
        async with anyio.create_task_group() as group:
            group.start_soon(pair.second.receive)
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        await pair.first.send(b"abc")
        assert await pair.second.receive() == b"abc"


@every
async def test_a_receive_that_is_cancelled_before_it_begins_takes_nothing(opener) -> None:
    async with opener() as pair:
        await pair.first.send(b"abc")
        with anyio.CancelScope() as scope:
            scope.cancel()
            await pair.second.receive()
        assert scope.cancelled_caught
        assert await pair.second.receive() == b"abc"


@every
async def test_a_cancelled_send_has_sent_a_beginning_and_the_stream_goes_on(opener) -> None:
    async with opener() as pair:
        async with anyio.create_task_group() as group:
            group.start_soon(pair.first.send, LARGE)
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()

        async def go_on() -> None:
            await pair.first.send(b"the end")
            await pair.first.send_eof()

        async with anyio.create_task_group() as group:
            group.start_soon(go_on)
            received = await read_to_end(pair.second)
        assert received.endswith(b"the end")
        assert LARGE.startswith(received[:-7])
        assert received[:-7]


# the address and the kind


@own
async def test_the_channel_is_a_typed_attribute(opener) -> None:
    async with opener() as pair:
        for stream in (pair.first, pair.second):
            assert stream.extra(PipeAttribute.channel) is stream.channel
            assert stream.extra(PipeAttribute.channel_id) == stream.channel.channel_id
        assert pair.first.channel.channel_id == pair.second.channel.channel_id
