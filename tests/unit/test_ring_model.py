"""A producer and a consumer in random order against a list of packets: nothing is lost, and no wake-up either.

The model knows only the rules of the reference: what was published and not committed takes room; a waiting consumer is
signalled by the publish that ends its ring's emptiness; a waiting producer by the commit that reaches what it waits for.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from broker.errors import HostError
from channels.protocol.gparange import GpaRange
from channels.protocol.packet import Packet, PacketType, round_up_8
from channels.ring import IncomingRing, OutgoingRing, footprint

from .rings import MEMORIES, SharedRing

SIZE = 4096
USABLE = SIZE - 8
SIZES = st.one_of(st.integers(0, 300), st.integers(0, USABLE - 8 - footprint(0)))
RANGES = (GpaRange(4, 4092, (9,)),)


class RingModel(RuleBasedStateMachine):
    """One ring, both of its ends, and what should be in it."""

    ring: SharedRing
    producer: OutgoingRing
    consumer: IncomingRing

    @initialize(memory=st.sampled_from(MEMORIES), start=st.integers(0, SIZE // 8 - 1).map(lambda index: 8 * index))
    def open(self, memory: Callable[[int], SharedRing], start: int) -> None:
        self.ring = memory(SIZE)
        self.ring.set_words(write_index=start, read_index=start)
        self.producer, self.consumer = OutgoingRing(self.ring.memory), IncomingRing(self.ring.memory)
        self.producer.initialize()
        self.consumer.initialize()
        self.start = start
        self.staged: list[Packet] = []
        self.published: list[Packet] = []  # and not handed out
        self.read: list[Packet] = []  # and not committed
        self.masked = True
        self.consumer_waits = False
        self.consumer_signals = 0
        self.producer_waits_for = 0
        self.producer_signals = 0
        self.number = 0
        self.written = self.committed = 0

    # what the model says

    @property
    def free(self) -> int:
        """Room as the consumer's stores show it to anybody."""
        return USABLE - _total(self.published) - _total(self.read)

    def _packet(self, size: int, completion: bool) -> tuple[bytes, Packet]:
        self.number += 1
        payload = (self.number % 255 + 1).to_bytes(1, "little") * size
        return payload, Packet(PacketType.IN_BAND, int(completion), self.number, payload.ljust(round_up_8(size), b"\0"))

    def _put(self, took: bool, packet: Packet) -> None:
        assert took == (_total([*self.staged, packet]) <= self.free)
        if took:
            self.staged.append(packet)
            self.producer_waits_for = 0

    # the producer

    @rule(size=SIZES, completion=st.booleans())
    def put(self, size: int, completion: bool) -> None:
        payload, packet = self._packet(size, completion)
        self._put(self.producer.try_put(payload, self.number, int(completion)), packet)

    @rule(size=st.integers(0, 400))
    def put_gpa_direct(self, size: int) -> None:
        payload, packet = self._packet(size, True)
        header = b"\0\0\0\0\1\0\0\0" + RANGES[0].pack()
        packet = Packet(PacketType.GPA_DIRECT, 1, self.number, packet.payload, header)
        self._put(self.producer.try_put_gpa_direct(RANGES, payload, self.number), packet)

    @rule(
        sizes=st.one_of(st.lists(SIZES, max_size=4), st.tuples(SIZES, st.integers(1, 40)).map(lambda x: [x[0]] * x[1]))
    )
    def put_many(self, sizes: list[int]) -> None:
        pairs = [self._packet(size, True) for size in sizes]
        ids = [packet.transaction_id for _, packet in pairs]
        count = self.producer.put_many([payload for payload, _ in pairs], ids, 1)
        for index, (_, packet) in enumerate(pairs[: count + 1]):
            self._put(index < count, packet)

    @rule()
    def publish(self) -> None:
        was_empty = not self.published and not self.read
        signal = self.producer.publish()
        assert signal == (was_empty and not self.masked and bool(self.staged))
        self.written += _total(self.staged)
        self.published += self.staged
        self.staged = []
        self.consumer_signals += signal

    @precondition(lambda self: not self.staged)
    @rule(size=SIZES)
    def wait_for_room(self, size: int) -> None:
        total = footprint(size)
        there_is = self.producer.request_room(total)
        assert there_is == (total <= self.free)
        self.producer_signals = 0
        self.producer_waits_for = 0 if there_is else max(total, USABLE // 4 + 7 & ~7)

    @precondition(lambda self: self.staged)
    @rule()
    def wait_too_early(self) -> None:
        with pytest.raises(HostError):
            self.producer.request_room(64)

    # the consumer

    @rule(limit=st.one_of(st.none(), st.integers(1, 8)))
    def read_packets(self, limit: int | None) -> None:
        packets = self.consumer.read_batch(limit)
        assert packets == self.published[: len(packets)]
        assert limit is None or len(packets) <= limit
        assert packets or not self.published
        del self.published[: len(packets)]
        self.read += packets
        self.consumer_waits = False

    @rule()
    def read_packet(self) -> None:
        packet = self.consumer.read()
        assert packet == (self.published[0] if self.published else None)
        self.read += self.published[:1]
        del self.published[:1]
        self.consumer_waits = False

    @rule()
    def commit(self) -> None:
        before = self.free
        signal = self.consumer.commit()
        self.committed += _total(self.read)
        self.read = []
        assert signal == (before < self.producer_waits_for <= self.free)
        self.producer_signals += signal

    @rule()
    def mask(self) -> None:
        self.consumer.mask()
        self.masked = True
        self.consumer_waits = False

    @rule()
    def wait_for_packets(self) -> None:
        if self.read:
            with pytest.raises(HostError):
                self.consumer.unmask()
            return
        something = self.consumer.unmask()
        assert something == bool(self.published)
        self.masked = False
        self.consumer_waits = not something
        self.consumer_signals = 0

    # what holds after each step

    @invariant()
    def a_waiting_consumer_is_signalled_once_as_soon_as_there_is_something(self) -> None:
        if self.consumer_waits:
            assert self.consumer_signals == bool(self.published)
            self.consumer.check_unmasked()

    @invariant()
    def a_waiting_producer_is_signalled_once_as_soon_as_there_is_room(self) -> None:
        if self.producer_waits_for:
            assert self.producer_signals == (self.free >= self.producer_waits_for)

    @invariant()
    def the_control_page_says_what_the_model_says(self) -> None:
        ring = self.ring
        assert ring.word("write_index") == (self.start + self.written) % SIZE
        assert ring.word("read_index") == (self.start + self.committed) % SIZE
        assert ring.word("pending_send_size") == self.producer_waits_for
        assert ring.word("interrupt_mask") == self.masked
        assert self.producer.reader_needs_signal == (not self.masked and bool(self.published or self.read))
        assert self.consumer.writer_needs_signal == (0 < self.producer_waits_for <= self.free)


def _total(packets: list[Packet]) -> int:
    return sum(footprint(len(packet.payload), len(packet.header)) for packet in packets)


TestRingModel = RingModel.TestCase
TestRingModel.settings = settings(deadline=None, max_examples=150, stateful_step_count=60)
