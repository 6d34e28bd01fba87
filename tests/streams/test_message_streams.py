"""What anyio expects of object streams, asked of both ends of a message pipe, and of anyio's own memory streams."""

from __future__ import annotations

import anyio
import pytest

from channels.pipe import MAX_DATA, MessagePipe
from channels.protocol.offer import PipeType

from .pairs import ALL_OBJECTS, OWN_OBJECTS, message_pipe, message_pipe_of_host, open_ends

every = pytest.mark.parametrize("opener", ALL_OBJECTS.values(), ids=ALL_OBJECTS)
own = pytest.mark.parametrize("opener", OWN_OBJECTS.values(), ids=OWN_OBJECTS)
item = pytest.mark.vmbus_item

FULL = 4048
"""Bytes of the largest message in a ring of 4 KiB: 48 less."""


@every
async def test_messages_arrive_in_order_each_as_it_was_sent(opener) -> None:
    messages = [b"", b"a", b"seven..", b"eight...", b"", bytes(range(256)) * 8]
    async with opener() as pair:
        for near, far in ((pair.first, pair.second), (pair.second, pair.first)):
            async with anyio.create_task_group() as group:

                async def send() -> None:
                    for message in messages:
                        await near.send(message)  # noqa: B023

                group.start_soon(send)
                assert [await far.receive() for _ in messages] == messages


@every
async def test_a_sender_waits_for_the_reader(opener) -> None:
    async with opener() as pair, anyio.create_task_group() as group:
        messages = [bytes([number]) * 4000 for number in range(20)]
        sent = []

        async def send() -> None:
            for message in messages:
                await pair.first.send(message)
                sent.append(message)

        group.start_soon(send)
        await anyio.wait_all_tasks_blocked()
        assert len(sent) <= 1
        assert [await pair.second.receive() for _ in messages] == messages


@every
async def test_a_closed_stream_says_so(opener) -> None:
    async with opener() as pair:
        await pair.first.aclose()
        with pytest.raises(anyio.ClosedResourceError):
            await pair.first.receive()
        with pytest.raises(anyio.ClosedResourceError):
            await pair.first.send(b"abc")


@every
async def test_closing_twice_is_fine(opener) -> None:
    async with opener() as pair:
        await pair.first.aclose()
        await pair.first.aclose()


@every
@pytest.mark.parametrize("action", ["send", "receive"])
async def test_closing_calls_whoever_waits_back(opener, action: str) -> None:
    async with opener() as pair:
        failed = []

        async def send() -> None:
            while True:
                await pair.first.send(bytes(2000))

        async def wait() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await (send() if action == "send" else pair.first.receive())
            failed.append(True)

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            await pair.first.aclose()
        assert failed


@pytest.mark.parametrize("opener", [message_pipe_of_host, ALL_OBJECTS["anyio's memory streams"]], ids=["pipe", "anyio"])
async def test_sending_to_a_closed_stream_breaks(opener) -> None:
    async with opener() as pair:
        await pair.second.aclose()
        await pair.later()
        with pytest.raises(anyio.BrokenResourceError):
            await pair.first.send(b"abc")


@every
async def test_a_cancelled_receive_loses_nothing(opener) -> None:
    async with opener() as pair:
        async with anyio.create_task_group() as group:
            group.start_soon(pair.second.receive)
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        async with anyio.create_task_group() as group:
            group.start_soon(pair.first.send, b"abc")
            assert await pair.second.receive() == b"abc"


@every
async def test_a_cancelled_send_sends_all_of_a_message_or_nothing(opener) -> None:
    async with opener() as pair:
        messages = [bytes([number]) * 3000 for number in range(9)]
        for message in messages[:5]:
            async with anyio.create_task_group() as group:
                group.start_soon(pair.first.send, message)
                await anyio.wait_all_tasks_blocked()
                group.cancel_scope.cancel()

        async def send() -> None:
            for message in messages[5:]:
                await pair.first.send(message)

        received = []
        async with anyio.create_task_group() as group:
            group.start_soon(send)
            while not received or received[-1] != messages[-1]:
                received.append(await pair.second.receive())
        assert received[-4:] == messages[5:]
        assert received[:-4] in ([], messages[:1])


@own
async def test_two_at_once_are_one_too_many(opener) -> None:
    async with opener() as pair:
        async with anyio.create_task_group() as group:
            group.start_soon(pair.first.receive)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(anyio.BusyResourceError):
                await pair.first.receive()
            with pytest.raises(anyio.BusyResourceError):
                await pair.first.receive_batch()
            group.cancel_scope.cancel()
        async with anyio.create_task_group() as group:
            group.start_soon(pair.first.send_batch, [bytes(4000)] * 3)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(anyio.BusyResourceError):
                await pair.first.send(b"abc")
            group.cancel_scope.cancel()


@own
async def test_batches_and_single_messages_are_the_same_to_the_other_end(opener) -> None:
    messages = [b"%d" % number * (number % 5) for number in range(50)]
    async with opener() as pair:
        await pair.first.send_batch(messages)
        received = [await pair.second.receive()]
        while len(received) < len(messages):
            received += await pair.second.receive_batch()
        assert received == messages
        await pair.first.send_batch([])
        await pair.first.send(b"last")
        assert list(await pair.second.receive_batch()) == [b"last"]


@own
async def test_the_largest_message_arrives_and_a_larger_one_is_refused(opener) -> None:
    async with opener() as pair:
        assert pair.first.max_size == FULL
        with pytest.raises(ValueError, match="at most 4048 bytes in this pipe, not 4049"):
            await pair.first.send(bytes(FULL + 1))
        with pytest.raises(ValueError, match="4049"):
            await pair.first.send_batch([b"none of it", bytes(FULL + 1)])
        await pair.first.send(bytes(FULL))
        assert await pair.second.receive() == bytes(FULL)


@own
async def test_no_message_is_over_16_kib_in_a_large_ring(opener) -> None:
    async with opener(9) as pair:
        assert pair.first.max_size == MAX_DATA
        with pytest.raises(ValueError, match="at most 16384 bytes"):
            await pair.first.send(bytes(MAX_DATA + 1))
        await pair.first.send(bytes(MAX_DATA))
        assert await pair.second.receive() == bytes(MAX_DATA)


@own
async def test_messages_have_no_half_close(opener) -> None:
    async with opener() as pair:
        with pytest.raises(NotImplementedError):
            await pair.first.send_eof()


# the items of the list


@item(95)
@pytest.mark.parametrize("who", ["host", "guest"])
async def test_a_receiver_that_waits_hears_that_the_other_end_is_gone(who: str) -> None:
    from broker.errors import ChannelClosed

    async with open_ends(pipe_type=PipeType.MESSAGE) as ends:
        pipe = MessagePipe(ends.host if who == "host" else ends.guest)
        caught = []

        async def receive() -> None:
            with pytest.raises(anyio.BrokenResourceError) as broken:
                await pipe.receive()
            caught.append(broken.value.__cause__)

        async with anyio.create_task_group() as group:
            group.start_soon(receive)
            await anyio.wait_all_tasks_blocked()
            if who == "host":
                await ends.close()
            else:
                ends.revoke()
        assert [type(cause) for cause in caught] == [ChannelClosed]
        with pytest.raises(anyio.BrokenResourceError):
            await pipe.send(b"abc")


@item(96)
@pytest.mark.parametrize("opener", [message_pipe, message_pipe_of_host])
async def test_a_receiver_gets_three_bytes_and_the_second_large_write_waits_for_a_read(opener) -> None:
    async with opener() as pair:
        received = []

        async def receive() -> None:
            received.append(await pair.second.receive())

        async with anyio.create_task_group() as group:
            group.start_soon(receive)
            await anyio.wait_all_tasks_blocked()
            await pair.first.send(b"abc")
        assert received == [b"abc"]
        await pair.first.send(bytes(4000))
        async with anyio.create_task_group() as group:
            sent = anyio.Event()

            async def send() -> None:
                await pair.first.send(b"\1" * 4000)
                sent.set()

            group.start_soon(send)
            await anyio.wait_all_tasks_blocked()
            assert not sent.is_set()
            assert await pair.second.receive() == bytes(4000)
            await sent.wait()
        assert await pair.second.receive() == b"\1" * 4000


async def test_a_large_batch_is_not_looked_at_as_a_whole_for_each_run_that_fits() -> None:
    looked_at = 0

    class Counted(list[bytes]):
        def __getitem__(self, index):  # type: ignore[no-untyped-def]
            nonlocal looked_at
            found = super().__getitem__(index)
            looked_at += len(found) if isinstance(index, slice) else 0
            return found

    count = 20_000
    async with open_ends(pipe_type=PipeType.MESSAGE) as ends, anyio.create_task_group() as group:
        group.start_soon(ends.guest.send_batch, Counted([bytes(400)] * count))
        came = 0
        while came < count:
            came += len(await ends.host.receive_batch())
    runs = count // (4096 // 424)
    assert looked_at < 2 * 1024 * runs
