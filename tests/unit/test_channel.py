"""`Channel`: two ends over rings in guest memory that ring each other's doorbell, no partition between them."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Awaitable, Callable
from functools import partial

import anyio
import anyio.lowlevel
import pytest

from broker import GuestMemory, Trace
from broker.clock import Clock
from broker.errors import ChannelClosed, MessageTooLarge, ProtocolError, RingCorrupt
from broker.trace import AnyEvent, Ring
from broker.turns import LiveTurns, Turns
from channels import channel as module
from channels.channel import FIRST_REQUEST_ID, Channel
from channels.doorbell import Doorbell
from channels.protocol.gparange import GpaRange, TransferRange, resolve_transfer_range
from channels.protocol.packet import EXTENDED_HEADER_SIZE, Packet, PacketType, pack_in_band, pack_packet
from channels.ring import split_rings
from channels.ring.control import IN, INTERRUPT_MASK, OUT, PENDING_SEND_SIZE

PAGE = 4096
GPNS = (8, 9, 3, 4)
"""Two rings of one page of data each: 4088 bytes of room."""
item = pytest.mark.vmbus_item


class End(Channel):
    """One end. A signal takes `pauses` checkpoints before it rings the other end, as a hypercall may."""

    __slots__ = ("pauses", "peer", "signals")

    peer: End

    def __init__(self, memory: GuestMemory, turns: Turns, is_host: bool, trace: Trace | None = None) -> None:
        rings = split_rings(memory, [GpaRange(len(GPNS) * PAGE, 0, GPNS)], 2)
        doorbell = Doorbell(turns.wakeup(("test", 0)))
        super().__init__(7, memory, rings, doorbell, turns, is_host=is_host, trace=trace)
        self.pauses = self.signals = 0
        self.initialize()

    async def signal(self) -> None:
        for _ in range(self.pauses):
            await anyio.lowlevel.checkpoint()
        self.signals += 1
        self.peer.doorbell.ring()


def pair(trace: Trace | None = None) -> tuple[End, End]:
    """Guest and host."""
    memory = GuestMemory(64 * PAGE)
    turns = LiveTurns(Clock(lambda: 0))
    guest, host = End(memory, turns, False, trace), End(memory, turns, True, trace)
    guest.peer, host.peer = host, guest
    return guest, host


Pair = Callable[[], tuple[End, End]]


@pytest.fixture(params=["guest", "host"])
def ends(request: pytest.FixtureRequest) -> Pair:
    """The end under test, either one, and the other."""
    return pair if request.param == "guest" else lambda: pair()[::-1]


def words(end: End) -> memoryview:
    """The control page of the ring that this end sends on."""
    return end.outgoing._words


def is_at_rest(end: End) -> bool:
    """Nobody waits at this end, and both control pages say so."""
    return (
        not (end._reading or end._sending or end._completions or end.outgoing.staged)
        and not words(end)[PENDING_SEND_SIZE]
        and bool(words(end.peer)[INTERRUPT_MASK])
    )


async def settled() -> None:
    await anyio.wait_all_tasks_blocked()


def numbered(count: int, size: int = 8) -> list[bytes]:
    return [struct.pack("<Q", number).ljust(size, b"\0") for number in range(count)]


async def take(end: End, count: int) -> list[bytes]:
    """The payloads of so many packets, in batches."""
    taken: list[bytes] = []
    while len(taken) < count:
        taken += [packet.payload for packet in await end.receive_batch()]
    return taken


async def fill(end: End, payload: bytes = bytes(488)) -> int:
    """Send until there is no room; how many there were."""
    count = 0
    while end.outgoing.try_put(payload):
        await end._publish(1)
        count += 1
    return count


async def outcome(call: Callable[[], Awaitable[object]], into: list[object]) -> None:
    """What a call returned, or the exception that it raised."""
    try:
        into.append(await call())
    except Exception as error:
        into.append(error)


# order and room


@pytest.mark.parametrize("size", [8, 240, 1000, 4056])
async def test_packets_arrive_as_they_were_sent_through_full_rings_both_ways(size: int) -> None:
    guest, host = pair()
    payloads = numbered(150, size)
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(guest.send_batch, payloads)
            group.start_soon(host.send_batch, payloads)
            await settled()
            assert guest._sending == host._sending == 1
            taken: list[object] = []
            group.start_soon(outcome, partial(take, host, 150), taken)
            assert await take(guest, 150) == payloads
    assert taken == [payloads]
    assert is_at_rest(guest)
    assert is_at_rest(host)


async def test_an_echo_with_full_rings_goes_on(ends: Pair) -> None:
    near, far = ends()

    async def echo() -> None:
        left = 500
        while left:
            batch = await far.receive_batch()
            await far.send_batch([packet.payload for packet in batch])
            left -= len(batch)

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(echo)
            group.start_soon(near.send_batch, numbered(500, 104))
            assert await take(near, 500) == numbered(500, 104)


async def test_receive_and_iteration_give_single_packets_in_order(ends: Pair) -> None:
    near, far = ends()
    await near.send_batch(numbered(100))
    assert [(await far.receive()).payload for _ in range(100)] == numbered(100)
    await near.send(b"a")
    await near.send(b"b", 5, completion=True)
    packets = [await anext(far), await anext(far)]
    assert [(packet.payload[:1], packet.reply_id) for packet in packets] == [(b"a", None), (b"b", 5)]


async def test_a_batch_that_mixes_sizes_keeps_its_order(ends: Pair) -> None:
    near, far = ends()
    payloads = [struct.pack("<Q", number).ljust(8 * (1 + number % 90), b"\0") for number in range(300)]
    async with anyio.create_task_group() as group:
        group.start_soon(near.send_batch, payloads)
        assert await take(far, 300) == payloads


async def test_several_senders_wait_for_room_and_each_keeps_its_order(ends: Pair) -> None:
    near, far = ends()

    async def sender(number: int) -> None:
        for index in range(60):
            await near.send(bytes([number, index]).ljust(40 + 400 * number, b"\0"))

    taken: list[bytes] = []
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            for number in range(5):
                group.start_soon(sender, number)
            while len(taken) < 300:
                await settled()  # all of them wait before anything is read
                taken += [packet.payload for packet in await far.receive_batch()]
    for number in range(5):
        assert [payload[1] for payload in taken if payload[0] == number] == list(range(60))
    assert is_at_rest(near)


async def test_several_receivers_lose_no_packet_and_none_waits_for_ever(ends: Pair) -> None:
    near, far = ends()
    taken: list[int] = []

    async def receiver(count: int) -> None:
        for _ in range(count):
            taken.append((await far.receive()).payload[0])

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(receiver, 25)
            for number in range(200):
                await near.send(bytes([number]))
                if number % 7 == 0:
                    await settled()
    assert taken == list(range(200))
    assert is_at_rest(far)


async def test_a_waiting_end_is_signalled_once_and_a_busy_one_not_at_all(ends: Pair) -> None:
    near, far = ends()
    async with anyio.create_task_group() as group:
        group.start_soon(take, far, 64)
        await settled()
        await near.send_batch(numbered(32))
        await near.send_batch(numbered(32))
        assert near.signals == 1
    await near.send_batch(numbered(32))
    assert near.signals == 1
    assert not near.peer_waits
    assert not far.signals


# what cannot be sent


async def test_a_packet_that_can_never_fit_is_refused_and_those_before_it_are_sent(ends: Pair) -> None:
    near, far = ends()
    with pytest.raises(MessageTooLarge):
        await near.send(bytes(4096))
    with pytest.raises(MessageTooLarge):
        await near.send_packet(pack_in_band(bytes(4096)))
    with pytest.raises(MessageTooLarge):
        await near.send_batch([b"one", b"two".ljust(80), bytes(4096), b"four"])
    assert is_at_rest(near)
    with pytest.raises(ValueError, match="does not fit its field"):
        await near.send(b"", -1)
    assert is_at_rest(near)
    await near.send(b"five")
    assert [payload[:3] for payload in await take(far, 3)] == [b"one", b"two", b"fiv"]


async def test_a_refused_packet_does_not_take_the_request_for_room_of_another(ends: Pair) -> None:
    near, far = ends()
    await fill(near)
    far.incoming.read_batch(2)
    far.incoming.commit()
    async with anyio.create_task_group() as group:
        group.start_soon(near.send, bytes(2000))
        await settled()
        with pytest.raises(ValueError, match="does not fit its field"):
            await near.send(b"", -1)
        await settled()
        assert words(near)[PENDING_SEND_SIZE]
        with anyio.fail_after(10):
            assert len(await take(far, 6)) == 6


# completions


async def test_completions_find_their_requests_in_any_order(ends: Pair) -> None:
    near, far = ends()
    answers: list[object] = []

    async def ask(number: int) -> None:
        answers.append((number, (await near.request(bytes([number]))).payload[0]))

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            for number in range(40):
                group.start_soon(ask, number)
            asked = [await far.receive() for _ in range(40)]
            assert len({packet.transaction_id for packet in asked}) == 40
            for packet in reversed(asked):
                assert packet.completion_requested
                await far.complete(packet, packet.payload)
                await settled()
    answered = [packet.payload[0] for packet in reversed(asked)]
    assert answers == [(number, number) for number in answered]
    assert is_at_rest(near)


async def test_both_ends_may_ask_at_the_same_time() -> None:
    guest, host = pair()

    async def serve(end: End) -> None:
        async for packet in end:
            await end.complete(packet, packet.payload)

    async def ask(end: End) -> None:
        for payload in numbered(50, 696):
            assert (await end.request(payload)).payload == payload

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            async with anyio.create_task_group() as askers:
                for end in (guest, host):
                    group.start_soon(serve, end)
                    for _ in range(3):
                        askers.start_soon(ask, end)
            group.cancel_scope.cancel()
    assert is_at_rest(guest)
    assert is_at_rest(host)


async def test_what_is_no_answer_waits_for_receive(ends: Pair) -> None:
    near, far = ends()
    answers: list[object] = []
    async with anyio.create_task_group() as group:
        group.start_soon(outcome, partial(near.request, b"?"), answers)
        asked = await far.receive()
        await far.send(b"one")
        await far.send_packet(pack_packet(PacketType.COMPLETION, b"two", 5))  # of a packet that was sent with `send`
        await far.complete(asked, b"answer")
        await far.send(b"three")
    assert [packet.payload[:6] for packet in answers if isinstance(packet, Packet)] == [b"answer"]
    assert [payload[:5].rstrip(b"\0") for payload in await take(near, 3)] == [b"one", b"two", b"three"]


async def test_a_receiver_gets_what_a_request_has_read_and_the_other_way_round(ends: Pair) -> None:
    """Whoever reads wakes up the one whose packet it was."""
    for request_first in (True, False):
        near, far = ends()
        results: list[object] = []
        calls: list[Callable[[], Awaitable[object]]] = [partial(near.request, b"?"), near.receive]
        async with anyio.create_task_group() as group:
            for call in calls if request_first else reversed(calls):
                group.start_soon(outcome, call, results)
                await settled()
            asked = await far.receive()
            await far.send(b"plain")
            await settled()
            assert [result.packet_type for result in results if isinstance(result, Packet)] == [PacketType.IN_BAND]
            await far.complete(asked)
        assert len(results) == 2
        assert is_at_rest(near)


async def test_nobody_is_answered_who_did_not_ask(ends: Pair) -> None:
    near, far = ends()
    await near.send(b"no")
    packet = await far.receive()
    await far.complete(packet)
    assert far.outgoing.indices == (0, 0)


async def test_requests_set_apart_a_bounded_number_and_go_on_once_some_are_taken(
    ends: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_SET_APART", 8)
    near, far = ends()
    answers: list[object] = []
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(outcome, partial(near.request, b"?"), answers)
            asked = await far.receive()
            await far.send_batch(numbered(20))
            await far.complete(asked)
            await settled()
            assert len(near._packets) == 8
            near.doorbell.ring()
            await settled()
            assert len(near._packets) == 8
            assert not answers
            assert await near.receive_batch()  # nobody receives again until the next eight are read
            await settled()
            assert len(near._packets) == 8
            for number in range(8, 13):
                assert (await near.receive()).payload == numbered(20)[number]
                await settled()
    assert len(answers) == 1
    assert isinstance(answers[0], Packet)
    assert await take(near, 7) == numbered(20)[13:]
    assert is_at_rest(near)


async def test_request_ids_start_anew_and_pass_over_those_in_use(ends: Pair) -> None:
    near, far = ends()
    near._next_id = (1 << 64) - 1
    async with anyio.create_task_group() as group:
        near._completions[FIRST_REQUEST_ID] = None
        for _ in range(2):
            group.start_soon(near.request, b"?")
        asked = [await far.receive(), await far.receive()]
        assert [packet.transaction_id for packet in asked] == [(1 << 64) - 1, FIRST_REQUEST_ID + 1]
        del near._completions[FIRST_REQUEST_ID]
        group.cancel_scope.cancel()


# cancellation


async def test_a_cancelled_receive_leaves_the_ring_masked_and_loses_nothing(ends: Pair) -> None:
    near, far = ends()
    for wait in (far.receive, far.receive_batch, partial(far.request, b"?")):
        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await settled()
            assert not words(near)[INTERRUPT_MASK]
            group.cancel_scope.cancel()
        assert is_at_rest(far)
    await near.send_batch(numbered(10))
    assert await take(far, 10) == numbered(10)


async def test_one_of_several_receivers_that_is_cancelled_does_not_mask_the_others(ends: Pair) -> None:
    near, far = ends()
    results: list[object] = []
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(outcome, far.receive, results)
            async with anyio.create_task_group() as cancelled:
                cancelled.start_soon(far.receive)
                await settled()
                cancelled.cancel_scope.cancel()
            assert not words(near)[INTERRUPT_MASK]
            await near.send(b"x")
    assert len(results) == 1


async def test_a_receiver_cancelled_as_its_packet_comes_leaves_it_to_the_next(ends: Pair) -> None:
    near, far = ends()
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            results: list[object] = []
            async with anyio.create_task_group() as cancelled:
                cancelled.start_soon(outcome, far.receive_batch, results)
                await settled()
                await near.send_batch(numbered(3))
                cancelled.cancel_scope.cancel()
            if not results:  # it was cancelled before it could look
                group.start_soon(outcome, far.receive_batch, results)
    (batch,) = results
    assert isinstance(batch, list)
    assert [packet.payload for packet in batch] == numbered(3)


@pytest.mark.parametrize("form", ["send", "batch", "packet", "request"])
async def test_a_send_cancelled_while_it_waits_for_room_is_as_if_it_had_not_been(ends: Pair, form: str) -> None:
    near, far = ends()
    count = await fill(near)
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "send": partial(near.send, bytes(1000)),
        "batch": partial(near.send_batch, [bytes(1000)] * 3),
        "packet": partial(near.send_packet, pack_in_band(bytes(1000))),
        "request": partial(near.request, bytes(1000)),
    }
    async with anyio.create_task_group() as group:
        group.start_soon(calls[form])
        await settled()
        assert words(near)[PENDING_SEND_SIZE] == 1024  # the packet's bytes are more than a quarter of the ring
        group.cancel_scope.cancel()
    assert is_at_rest(near)
    assert len(await take(far, count)) == count
    assert not far.signals
    await near.send(b"next")
    assert (await far.receive()).payload[:4] == b"next"


async def test_one_of_several_senders_that_is_cancelled_does_not_withdraw_the_others_request(ends: Pair) -> None:
    near, far = ends()
    count = await fill(near)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(near.send, bytes(1000))
            async with anyio.create_task_group() as cancelled:
                cancelled.start_soon(near.send, bytes(2000))
                await settled()
                cancelled.cancel_scope.cancel()
            assert words(near)[PENDING_SEND_SIZE]
            assert len(await take(far, count + 1)) == count + 1
    assert is_at_rest(near)


async def test_the_late_answer_to_a_cancelled_request_is_for_nobody(ends: Pair) -> None:
    near, far = ends()
    async with anyio.create_task_group() as group:
        group.start_soon(near.request, b"?")
        asked = await far.receive()
        group.cancel_scope.cancel()
    assert is_at_rest(near)
    await far.complete(asked, b"late")
    await far.send(b"plain")
    assert (await near.receive()).payload[:5] == b"plain"
    answers: list[object] = []
    async with anyio.create_task_group() as group:
        group.start_soon(outcome, partial(near.request, b"?"), answers)
        again = await far.receive()
        assert again.transaction_id != asked.transaction_id
        await far.complete(asked, b"late")
        await far.complete(again, b"in time")
    assert [packet.payload[:7] for packet in answers if isinstance(packet, Packet)] == [b"in time"]


@pytest.mark.parametrize("form", ["send", "batch", "packet", "request", "complete"])
@pytest.mark.parametrize("pauses", [1, 2, 3])
async def test_a_task_that_is_cancelled_on_the_way_to_its_signal_still_gives_it(
    ends: Pair, form: str, pauses: int
) -> None:
    """The packet is published: the other end would wait for ever."""
    near, far = ends()
    results: list[object] = []
    await far.send(b"", 1, completion=True)
    asked = await near.receive()
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "send": partial(near.send, b"x"),
        "batch": partial(near.send_batch, [b"x", b"y"]),
        "packet": partial(near.send_packet, pack_in_band(b"x")),
        "request": partial(near.request, b"x"),
        "complete": partial(near.complete, asked),
    }
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(outcome, far.receive, results)
            await settled()
            near.pauses = pauses
            with anyio.CancelScope() as scope:
                scope.cancel()
                await calls[form]()
            assert scope.cancelled_caught
            await settled()
            assert near.signals
    assert len(results) == 1
    assert is_at_rest(near)


async def test_a_reader_that_is_cancelled_on_the_way_to_its_signal_still_gives_it(ends: Pair) -> None:
    near, far = ends()
    count = await fill(near)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(near.send, bytes(1000))
            await settled()
            far.pauses = 1
            with anyio.CancelScope() as scope:
                scope.cancel()
                await far.receive_batch()
            assert scope.cancelled_caught
    assert far.signals
    assert len(await take(far, count + 1)) == count + 1  # what it had read is still there


async def test_nothing_is_lost_while_tasks_come_and_go(ends: Pair) -> None:
    """Senders and receivers that are cancelled at every step, over signals that take their time."""
    near, far = ends()
    near.pauses, far.pauses = 2, 1
    sent: list[bytes] = []
    taken: list[bytes] = []

    async def cancelled_after(steps: int, call: Callable[[], Awaitable[object]]) -> object:
        results: list[object] = []
        async with anyio.create_task_group() as group:
            group.start_soon(outcome, call, results)
            for _ in range(steps):
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        return results[0] if results else None

    async def produce() -> None:
        for number in range(300):
            payload = struct.pack("<Q", number).ljust(120, b"\0")
            before = near.outgoing.indices[0]
            await cancelled_after(number % 4, partial(near.send, payload))
            if near.outgoing.indices[0] != before:
                sent.append(payload)
        sent.append(b"the end!")
        await near.send(sent[-1])

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(produce)
            for steps in itertools.cycle(range(6)):
                batch = await cancelled_after(steps, far.receive_batch)
                if isinstance(batch, list):
                    taken += [packet.payload for packet in batch]
                if b"the end!" in taken:
                    break
    assert len(sent) > 100
    assert taken == sent
    assert is_at_rest(near)
    assert is_at_rest(far)


# the end


async def test_the_end_wakes_everybody_with_the_first_reason(ends: Pair) -> None:
    near, _ = ends()
    await fill(near)
    results: list[object] = []
    async with anyio.create_task_group() as group:
        for call in (
            near.receive,
            near.receive_batch,
            partial(near.send, bytes(500)),
            partial(near.request, bytes(500)),
        ):
            group.start_soon(outcome, call, results)
        await settled()
        near.end("the offer was revoked")
        near.end("something else")
    assert [type(result) for result in results] == [ChannelClosed] * 4
    assert {str(result) for result in results} == {"the offer was revoked"}


async def test_after_the_end_nothing_is_sent_and_what_had_come_can_be_received(ends: Pair) -> None:
    near, far = ends()
    await far.send_batch(numbered(2))
    near.end("rescinded")
    before = near.outgoing.indices
    for call in (near.send(b"x"), near.send_batch([b"x"]), near.send_packet(pack_in_band(b"x")), near.request(b"x")):
        with pytest.raises(ChannelClosed, match="rescinded"):
            await call
    assert near.outgoing.indices == before
    assert [packet.payload async for packet in near] == numbered(2)
    with pytest.raises(ChannelClosed, match="rescinded"):
        await near.receive_batch()


async def test_a_channel_that_was_let_go_does_not_look_at_its_rings_again(ends: Pair) -> None:
    near, far = ends()
    results: list[object] = []
    await far.send_batch(numbered(3))
    assert await take(near, 3) == numbered(3)
    await fill(near)
    async with anyio.create_task_group() as group:
        for call in (near.receive, partial(near.send, bytes(600)), partial(near.send_batch, [bytes(600)])):
            group.start_soon(outcome, call, results)
        await settled()
        near.let_go("closed")
        near.memory.write(0, b"\xaa" * near.memory.size)  # somebody else's now
        with pytest.raises(ChannelClosed, match="closed"):
            await near.send(b"x")
        with pytest.raises(ChannelClosed, match="closed"):
            await near.receive()
    assert [str(result) for result in results] == ["closed"] * 3
    assert near.memory.read(0, near.memory.size) == b"\xaa" * near.memory.size


@pytest.mark.parametrize("waits", [True, False])
async def test_a_corrupt_index_ends_the_channel_for_everybody(ends: Pair, waits: bool) -> None:
    """Whoever finds it gets `RingCorrupt`, all others and later calls `ChannelClosed` with the same sentence."""
    near, far = ends()
    results: list[object] = []
    await fill(near)
    async with anyio.create_task_group() as group:
        if waits:
            for call in (near.receive, partial(near.send, bytes(600)), partial(near.request, bytes(600))):
                group.start_soon(outcome, call, results)
            await settled()
        words(far)[IN] = 4095
        near.doorbell.ring()
        if not waits:
            group.start_soon(outcome, near.receive_batch, results)
    kinds = [type(result) for result in results]
    assert kinds.count(RingCorrupt) == 1
    assert set(kinds) <= {RingCorrupt, ChannelClosed}
    assert len({str(result) for result in results}) == 1
    for call in (near.receive, near.receive_batch, partial(near.send, b"x"), partial(near.request, b"x")):
        with pytest.raises(ChannelClosed, match="ring pointer in"):
            await call()


@pytest.mark.parametrize("form", ["send", "batch", "packet"])
@pytest.mark.parametrize("is_full", [True, False])
async def test_a_corrupt_read_index_ends_the_channel_of_a_sender(ends: Pair, form: str, is_full: bool) -> None:
    near, _ = ends()
    results: list[object] = []
    if is_full:
        await fill(near)
    else:
        words(near)[INTERRUPT_MASK] = 0
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "send": partial(near.send, bytes(600)),
        "batch": partial(near.send_batch, [bytes(600)] * 2),
        "packet": partial(near.send_packet, pack_in_band(bytes(600))),
    }
    async with anyio.create_task_group() as group:
        group.start_soon(outcome, near.receive, results)
        await settled()
        words(near)[OUT] = 13
        with pytest.raises(RingCorrupt, match="ring pointer out"):
            await calls[form]()
    assert [type(result) for result in results] == [ChannelClosed]
    with pytest.raises(ChannelClosed, match="ring pointer out"):
        await near.send(b"x")


async def test_packets_before_a_corrupt_one_are_delivered_first(ends: Pair) -> None:
    near, far = ends()
    await far.send_batch(numbered(2))
    start = far.outgoing.indices[0]
    await far.send(b"bad")
    far.memory.write((GPNS[1] if far._side == "guest" else GPNS[3]) * PAGE + start, b"\xff\xff")
    assert await take(near, 2) == numbered(2)
    with pytest.raises(RingCorrupt, match="packet descriptor"):
        await near.receive()
    with pytest.raises(ChannelClosed, match="packet descriptor"):
        await near.receive()


@pytest.mark.parametrize("is_host", [True, False])
async def test_only_a_host_takes_it_amiss_when_somebody_else_masks_what_it_waits_for(is_host: bool) -> None:
    guest, host = pair()
    near, far = (host, guest) if is_host else (guest, host)
    results: list[object] = []
    async with anyio.create_task_group() as group:
        group.start_soon(outcome, near.receive, results)
        await settled()
        words(far)[INTERRUPT_MASK] = 1
        near.doorbell.ring()
        await settled()
        group.cancel_scope.cancel()
    assert [type(result) for result in results] == ([RingCorrupt] if is_host else [])


async def test_it_says_whether_the_other_end_waits(ends: Pair) -> None:
    near, far = ends()
    assert not near.peer_waits
    words(near)[INTERRUPT_MASK] = 0
    assert not near.peer_waits
    near.outgoing.try_put(b"x")
    near.outgoing.publish()
    assert near.peer_waits
    words(near)[INTERRUPT_MASK] = 1
    assert not near.peer_waits
    words(far)[PENDING_SEND_SIZE] = 1000
    assert near.peer_waits
    words(near)[INTERRUPT_MASK] = 0
    words(near)[OUT] = 1
    with pytest.raises(RingCorrupt):
        near.peer_waits


# guest memory


@item(98)
async def test_a_gpa_direct_packet_brings_its_ranges_and_its_payload() -> None:
    guest, host = pair()
    ranges = (GpaRange(5000, 0x123, (20, 22)), GpaRange(40, 0xFF0, (30, 31)))
    data = bytes(index % 251 for index in range(5040))
    guest.write_ranges(ranges, data)
    await guest.send_gpa_direct(ranges, bytes(range(24)), 77)
    packet = await host.receive()
    assert (packet.packet_type, packet.reply_id, packet.payload) == (PacketType.GPA_DIRECT, 77, bytes(range(24)))
    assert packet.gpa_ranges() == ranges
    assert host.read_ranges(packet.gpa_ranges()) == data
    assert guest.memory.read(20 * PAGE + 0x123, 3) == data[:3]
    assert guest.memory.read(22 * PAGE, 3) == data[PAGE - 0x123 : PAGE - 0x123 + 3]


async def test_a_request_may_name_guest_memory() -> None:
    guest, host = pair()
    ranges = (GpaRange(16, 8, (20,)),)
    answers: list[object] = []
    async with anyio.create_task_group() as group:
        group.start_soon(outcome, partial(guest.request, b"fill it", ranges), answers)
        packet = await host.receive()
        host.write_ranges(packet.gpa_ranges(), b"filled")
        await host.complete(packet, b"done")
    assert [packet.payload[:4] for packet in answers if isinstance(packet, Packet)] == [b"done"]
    assert guest.read_ranges(ranges) == b"filled".ljust(16, b"\0")


@item(99)
async def test_a_gpa_direct_packet_with_an_empty_range_is_delivered_and_its_ranges_are_refused() -> None:
    guest, host = pair()
    header = struct.pack("<HHI", 0, 0, 1) + struct.pack("<II", 0, 0)
    assert len(header) > EXTENDED_HEADER_SIZE
    await guest.send_packet(pack_packet(PacketType.GPA_DIRECT, b"", 1, 1, header))
    packet = await host.receive()
    with pytest.raises(ProtocolError, match="a byte count over 0"):
        packet.gpa_ranges()


@item(100)
async def test_transfer_pages_lie_where_the_buffer_says() -> None:
    guest, host = pair()
    buffer = GpaRange(3 * PAGE, 0, (40, 50, 60))
    ranges = (TransferRange(0x10, 0x10), TransferRange(0x10, 0xFFF), TransferRange(0x10, 0x1000))
    await host.send_transfer_pages(0xAB, ranges, b"header!!", 9)
    packet = await guest.receive()
    assert (packet.transfer_page_set_id, packet.reply_id, packet.payload) == (0xAB, 9, b"header!!")
    assert packet.transfer_ranges() == ranges
    resolved = [resolve_transfer_range(part, buffer) for part in packet.transfer_ranges()]
    assert resolved == [GpaRange(16, 16, (40,)), GpaRange(16, 0xFFF, (40, 50)), GpaRange(16, 0, (50,))]


async def test_guest_memory_is_written_within_its_ranges_or_not_at_all() -> None:
    guest, _ = pair()
    ranges = (GpaRange(8, 0xFFC, (20, 21)), GpaRange(4, 0, (30,)))
    guest.write_ranges(ranges, b"0123456789")
    assert guest.read_ranges(ranges) == b"0123456789\0\0"
    guest.write_ranges(ranges, b"")
    with pytest.raises(ProtocolError, match="room for 13 bytes, got 12"):
        guest.write_ranges(ranges, b"x" * 13)
    outside = (*ranges, GpaRange(4, 0, (64,)))
    with pytest.raises(ProtocolError, match="pages of guest memory"):
        guest.write_ranges(outside, b"y" * 4)
    with pytest.raises(ProtocolError, match="pages of guest memory"):
        guest.read_ranges(outside)
    assert guest.read_ranges(ranges) == b"0123456789\0\0"


async def test_a_guest_that_names_one_page_a_thousand_times_is_not_copied_without_end() -> None:
    _, host = pair()
    ranges = [GpaRange(1 << 20, 0, (1,) * 256)] * 17
    with pytest.raises(ProtocolError, match="at most 16777216 bytes, got 17825792"):
        host.read_ranges(ranges)
    with pytest.raises(ProtocolError, match="at most 4096 bytes"):
        host.read_ranges(ranges[:1], most=4096)
    assert len(host.read_ranges(ranges[:1])) == 1 << 20


@pytest.mark.parametrize(
    ("ranges", "page_offset"),
    [
        ((), 2),
        ((GpaRange(4 * PAGE, 0, (1, 2, 3, 4)), GpaRange(PAGE, 0, (5,))), 2),
        ((GpaRange(4 * PAGE - 8, 8, (1, 2, 3, 4)),), 2),
        ((GpaRange(4 * PAGE - 8, 0, (1, 2, 3, 4)),), 2),
        ((GpaRange(4 * PAGE, 0, (1, 2, 3, 4)),), 0),
        ((GpaRange(4 * PAGE, 0, (1, 2, 3, 4)),), 1),
        ((GpaRange(4 * PAGE, 0, (1, 2, 3, 4)),), 3),
        ((GpaRange(4 * PAGE, 0, (1, 2, 3, 4)),), 4),
        ((GpaRange(4 * PAGE, 0, (1, 2, 3, 4)),), 0xFFFF_FFFF),
        ((GpaRange(3 * PAGE, 0, (1, 2, 3)),), 2),
        ((GpaRange(4 * PAGE, 0, (1, 2, 3, 64)),), 2),
        ((GpaRange(4 * PAGE, 0, (1 << 52, 2, 3, 4)),), 2),
    ],
)
def test_rings_are_one_range_of_whole_pages_with_two_or_more_for_each(
    ranges: tuple[GpaRange, ...], page_offset: int
) -> None:
    """`vmbus.md` 3.4."""
    with GuestMemory(64 * PAGE) as memory, pytest.raises(ProtocolError, match="ring GPADL"):
        split_rings(memory, ranges, page_offset)


def test_rings_are_split_where_the_guest_says() -> None:
    memory = GuestMemory(64 * PAGE)
    upstream, downstream = split_rings(memory, [GpaRange(7 * PAGE, 0, (1, 2, 3, 9, 5, 7, 6))], 4)
    assert (upstream.size, downstream.size) == (3 * PAGE, 2 * PAGE)
    upstream.store(2 * PAGE - 4, b"upstream")
    downstream.store(PAGE - 4, b"downstre")
    downstream.words[IN] = 8
    assert memory.read(4 * PAGE - 4, 4) + memory.read(9 * PAGE, 4) == b"upstream"
    assert memory.read(8 * PAGE - 4, 4) + memory.read(6 * PAGE, 4) == b"downstre"
    assert memory.read(5 * PAGE, 4) == struct.pack("<I", 8)


# the trace


async def test_the_trace_tells_what_went_through_the_rings() -> None:
    seen: list[AnyEvent] = []
    guest, host = pair(Trace(seen.append))
    async with anyio.create_task_group() as group:
        group.start_soon(host.receive_batch)
        await settled()
        await guest.send_batch(numbered(3, 240))
    told = [
        (
            event.side,
            event.channel_id,
            event.action,
            event.packets,
            event.write_index,
            event.read_index,
            event.signalled,
        )
        for event in seen
        if isinstance(event, Ring)
    ]
    assert told == [("guest", 7, "write", 3, 792, 0, True), ("host", 7, "read", 3, 792, 792, False)]
