"""Both ends of a ring: every position, the conformance items, refusals, hostile peers. Random runs are in test_ring_model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import GuestMemory
from broker.errors import HostError, MemoryAccessError, MessageTooLarge, ProtocolError, RingCorrupt
from channels.protocol.gparange import GpaRange, TransferRange
from channels.protocol.packet import (
    FOOTER_SIZE,
    Packet,
    PacketDescriptor,
    PacketType,
    pack_in_band,
)
from channels.ring import IncomingRing, OutgoingRing, RingMemory, footprint
from channels.ring.control import CONTROL_PAGE_SIZE
from channels.ring.outgoing import _form

from .rings import GUARD, MEMORIES, SharedRing, one_view, scattered_pages

SIZE = 4096
RANGES = [GpaRange(0x1000, 0x14, (0x1000, 0x2000)), GpaRange(0x20, 0, (7,))]
PARTS = [TransferRange(0x10, 0x20), TransferRange(0, 0)]

Put = Callable[[OutgoingRing, bytes], bool]
KINDS: dict[str, Put] = {
    "in-band": lambda ring, payload: ring.try_put(payload, 5, 1),
    "completion": lambda ring, payload: ring.try_put_completion(6, payload),
    "GPA-direct": lambda ring, payload: ring.try_put_gpa_direct(RANGES, payload, 7),
    "transfer pages": lambda ring, payload: ring.try_put_transfer_pages(0xCAFE, PARTS, payload, 8),
}

over_all_memories = pytest.mark.parametrize("memory", MEMORIES, ids=lambda memory: memory.__name__)


def _ends(ring: SharedRing, start: int = 0) -> tuple[OutgoingRing, IncomingRing]:
    """A producer, and a consumer that waits for signals."""
    ring.set_words(write_index=start, read_index=start)
    producer, consumer = OutgoingRing(ring.memory), IncomingRing(ring.memory)
    producer.initialize()
    consumer.initialize()
    assert not consumer.unmask()
    return producer, consumer


@over_all_memories
@pytest.mark.parametrize("kind", KINDS)
def test_a_packet_survives_every_position_in_the_ring(kind: str, memory: Callable[[int], SharedRing]) -> None:
    ring = memory(SIZE)
    payload = bytes(range(1, 65))
    for start in range(0, SIZE, 8):
        producer, consumer = _ends(ring, start)
        assert KINDS[kind](producer, payload)
        assert producer.publish()
        packet = consumer.read()
        assert packet is not None
        assert packet.payload == payload
        if kind == "GPA-direct":
            assert packet.gpa_ranges() == tuple(RANGES)
        if kind == "transfer pages":
            assert packet.transfer_ranges() == tuple(PARTS)
        consumer.commit()
        end = ring.word("write_index")
        assert ring.word("read_index") == end == (start + footprint(len(payload), len(packet.header))) % SIZE
        circle = 2 * ring.data()
        assert circle[end + SIZE - FOOTER_SIZE : end + SIZE] == (start << 32).to_bytes(8, "little")
        assert consumer.read() is None
    assert ring.outside() == GUARD * (len(ring.outside()) // len(GUARD))


@over_all_memories
def test_a_batch_survives_every_position_in_the_ring(memory: Callable[[int], SharedRing]) -> None:
    ring = memory(SIZE)
    payloads = [bytes([index]) * 40 for index in range(20)]
    for start in range(0, SIZE, 8):
        producer, consumer = _ends(ring, start)
        assert producer.put_many(payloads, range(20)) == 20
        assert producer.publish()
        packets = consumer.read_batch()
        assert packets == [Packet(PacketType.IN_BAND, 0, index, payload) for index, payload in enumerate(payloads)]
        consumer.commit()
        circle = 2 * ring.data()
        for index in range(20):
            position = (start + index * 64) % SIZE
            assert circle[position + 56 : position + 64] == (position << 32).to_bytes(8, "little")


def test_a_batch_leaves_the_same_bytes_as_packet_by_packet() -> None:
    for payloads in ([bytes([index]) * 13 for index in range(9)], [bytes(8 * index) for index in range(9)], []):
        first, second = one_view(SIZE), one_view(SIZE)
        producer, _ = _ends(first, 3800)
        assert producer.put_many(payloads, range(9), 1, PacketType.IN_BAND) == len(payloads)
        producer.publish()
        producer, _ = _ends(second, 3800)
        for index, payload in enumerate(payloads):
            assert producer.try_put(payload, index, 1)
        producer.publish()
        assert (first.control(), first.data()) == (second.control(), second.data())


def test_a_batch_takes_what_fits() -> None:
    ring = one_view(SIZE)
    producer, consumer = _ends(ring)
    payloads = [bytes([index]) * 240 for index in range(20)]
    assert producer.put_many(payloads) == 15
    assert producer.put_many(payloads[15:]) == 0
    producer.publish()
    assert producer.put_many(payloads[15:]) == 0
    assert [packet.payload for packet in consumer.read_batch()] == payloads[:15]
    assert producer.put_many(payloads[15:]) == 0
    consumer.commit()
    assert producer.put_many(payloads[15:]) == 5
    mixed = [bytes(240), bytes(1000), bytes(1000), bytes(1000)]
    assert producer.put_many(mixed) == 3
    producer.publish()
    assert len(consumer.read_batch()) == 8


def test_a_batch_ends_where_its_transaction_ids_do() -> None:
    for payloads in ([b"a", b"b", b"c"], [b"a", b"bbbbbbbbbbb", b"c"]):
        producer, consumer = _ends(one_view(SIZE))
        assert producer.put_many(payloads, [8, 9]) == 2
        assert producer.try_put(b"d", 10)
        producer.publish()
        assert [packet.transaction_id for packet in consumer.read_batch()] == [8, 9, 10]


def test_opening_takes_the_indices_as_found_and_sets_the_words_of_each_end() -> None:
    ring = one_view(SIZE)
    ring.set_words(write_index=0x48, read_index=0x48, pending_send_size=99, feature_bits=0)
    producer, consumer = OutgoingRing(ring.memory), IncomingRing(ring.memory)
    assert (ring.word("pending_send_size"), ring.word("interrupt_mask")) == (99, 0)
    producer.initialize()
    consumer.initialize()
    assert {name: ring.word(name) for name in ("write_index", "read_index", "interrupt_mask")} == {
        "write_index": 0x48,
        "read_index": 0x48,
        "interrupt_mask": 1,
    }
    assert (ring.word("pending_send_size"), ring.word("feature_bits")) == (0, 1)


@pytest.mark.vmbus_item(90)
def test_a_write_into_an_empty_unmasked_ring_signals_and_reading_it_does_not() -> None:
    producer, consumer = _ends(one_view(16384))
    assert producer.try_put(bytes(8))
    assert producer.publish()
    assert consumer.read() is not None
    assert not consumer.commit()


@pytest.mark.vmbus_item(91)
def test_a_write_into_a_masked_ring_does_not_signal_until_it_is_unmasked() -> None:
    producer, consumer = _ends(one_view(16384))
    consumer.mask()
    assert producer.try_put(bytes(8))
    assert not producer.publish()
    assert consumer.read() is not None
    consumer.commit()
    assert not consumer.unmask()
    assert producer.try_put(bytes(8))
    assert producer.publish()


@pytest.mark.vmbus_item(92)
@pytest.mark.parametrize(("pending", "signals"), [(0, [False] * 4), (8048, [False, True, False, False])])
def test_a_full_ring_signals_its_producer_when_as_much_as_it_waits_for_is_free(
    pending: int, signals: list[bool]
) -> None:
    ring = one_view(16384)
    producer, consumer = _ends(ring)
    for _ in range(4):
        assert producer.try_put(bytes(4000))
        producer.publish()
    assert footprint(4000) == 4024
    assert not producer.try_put(bytes(4000))
    ring.set_words(pending_send_size=pending)
    answers = []
    for _ in range(4):
        consumer.read()
        answers.append(consumer.commit())
    assert answers == signals


@pytest.mark.vmbus_item(93)
@pytest.mark.parametrize("kind", [PacketType.GPA_DIRECT, PacketType.TRANSFER_PAGES])
def test_a_packet_whose_extended_header_has_no_room_is_corrupt(kind: PacketType) -> None:
    with pytest.raises(RingCorrupt, match="after the extended header"):
        _read(PacketDescriptor(kind, 2, 8, 1, 0).pack() + bytes(56))


@pytest.mark.vmbus_item(94, 99)
@pytest.mark.parametrize(
    ("gpa_range", "expected"),
    [(TransferRange(0, 0), "byte count over 0"), (TransferRange(1, 0x1000), "too large")],
)
def test_ranges_that_break_a_rule_are_delivered_and_fail_when_read(gpa_range: TransferRange, expected: str) -> None:
    header = bytes.fromhex("0000000001000000") + gpa_range.pack()
    packet = _read(PacketDescriptor(PacketType.GPA_DIRECT, 4, 5, 1, 7).pack() + header + b"8 bytes." + bytes(8))
    assert packet.payload == b"8 bytes."
    with pytest.raises(ProtocolError, match=expected):
        packet.gpa_ranges()


@pytest.mark.vmbus_item(98)
def test_gpa_direct_packets_keep_their_ranges_and_payload() -> None:
    producer, consumer = _ends(one_view(SIZE))
    ranges = (GpaRange(0x1000, 0x14, (0x1000, 0x2000)), GpaRange(0x34, 0xFF0, (0x1 << 40, 5)))
    assert producer.try_put_gpa_direct(ranges, bytes(range(24)), 0x99)
    producer.publish()
    packet = consumer.read()
    assert packet is not None
    assert (packet.gpa_ranges(), packet.payload, packet.reply_id) == (ranges, bytes(range(24)), 0x99)


@pytest.mark.vmbus_item(100)
def test_transfer_pages_keep_their_set_and_ranges() -> None:
    producer, consumer = _ends(one_view(SIZE))
    ranges = (TransferRange(0x10, 0x10), TransferRange(0x10, 0xFFF), TransferRange(0x10, 0x1000))
    assert producer.try_put_transfer_pages(3, ranges, b"", 4)
    producer.publish()
    packet = consumer.read()
    assert packet is not None
    assert (packet.transfer_page_set_id, packet.transfer_ranges(), packet.reply_id) == (3, ranges, 4)


@pytest.mark.vmbus_item(101)
def test_a_write_that_was_refused_succeeds_after_the_peer_has_read_and_signalled() -> None:
    ring = one_view(SIZE)
    producer, consumer = _ends(ring)
    while producer.try_put(bytes(240)):
        producer.publish()
    assert not producer.request_room(footprint(240))
    assert ring.word("pending_send_size") == (SIZE - 8) // 4 + 2 == 1024
    reads = 0
    signals = 0
    while not signals:
        reads += 1
        assert consumer.read() is not None
        signals += consumer.commit()
    assert reads == 4  # 128 + 4 * 264 is the first to reach 1024
    assert producer.try_put(bytes(240))
    assert ring.word("pending_send_size") == 0


def test_a_request_for_room_is_withdrawn_when_there_is_enough_already() -> None:
    ring = one_view(SIZE)
    producer, consumer = _ends(ring)
    assert producer.put_many([bytes(240)] * 15) == 15
    with pytest.raises(HostError, match="15 packets are staged"):
        producer.request_room(64)
    producer.publish()
    assert not producer.request_room(3000)
    assert ring.word("pending_send_size") == 3000
    consumer.read()
    assert not consumer.commit()
    assert producer.request_room(392)
    assert ring.word("pending_send_size") == 0
    assert producer.put_many([bytes(240)] * 2) == 1


def test_a_smaller_packet_ends_the_wait_of_a_larger_one() -> None:
    ring = one_view(SIZE)
    producer, _ = _ends(ring)
    assert producer.put_many([bytes(240)] * 15) == 15
    producer.publish()
    assert not producer.request_room(2000)
    assert producer.try_put(bytes(8))
    assert ring.word("pending_send_size") == 0


def test_an_empty_publish_and_an_empty_commit_do_nothing() -> None:
    ring = one_view(SIZE)
    producer, consumer = _ends(ring)
    ring.set_words(pending_send_size=64)
    before = ring.control()
    assert not producer.publish()
    assert not consumer.commit()
    assert ring.control() == before


def test_a_batch_signals_at_most_once() -> None:
    producer, consumer = _ends(one_view(SIZE))
    assert producer.put_many([bytes(8)] * 4) == 4
    assert producer.publish()
    assert producer.put_many([bytes(8)] * 4) == 4
    assert not producer.publish()
    assert len(consumer.read_batch()) == 8


def test_the_largest_packet_is_one_word_below_the_largest_room() -> None:
    producer, consumer = _ends(one_view(SIZE))
    assert producer.largest_packet == SIZE - 16
    payload = SIZE - 16 - footprint(0)
    for put in (producer.try_put, lambda payload: producer.put_many([payload, payload])):
        with pytest.raises(MessageTooLarge, match="4088 bytes of the ring, which takes at most 4080"):
            put(bytes(payload + 1))
    with pytest.raises(MessageTooLarge):
        producer.try_put_packet(pack_in_band(bytes(payload + 8)))
    with pytest.raises(MessageTooLarge):
        producer.request_room(SIZE - 8)
    assert producer.try_put(bytes(payload))
    assert producer.publish()
    packet = consumer.read()
    assert packet is not None
    assert len(packet.payload) == payload


def test_a_large_ring_takes_no_packet_over_the_length_field() -> None:
    producer, _ = _ends(one_view(1 << 20))
    assert producer.largest_packet == 8 * 0xFFFF + 8
    with pytest.raises(MessageTooLarge):
        producer.try_put(bytes(8 * 0xFFFF - 15))
    assert producer.try_put(bytes(8 * 0xFFFF - 16))


def test_a_reader_accepts_a_packet_that_fills_the_ring() -> None:
    ring = one_view(SIZE)
    packet = pack_in_band(bytes(SIZE - 32), start=0)
    assert len(packet) == SIZE - 8
    ring.memory.store(0, packet)
    ring.set_words(write_index=SIZE - 8)
    assert len(IncomingRing(ring.memory).read_batch()) == 1


def test_values_that_do_not_fit_their_fields_stage_nothing() -> None:
    producer, consumer = _ends(one_view(SIZE))
    for wrong in (-1, 1 << 64):
        with pytest.raises(ValueError, match="fit"):
            producer.try_put(b"", wrong)
        with pytest.raises(ValueError, match="fit"):
            producer.put_many([b"", b""], [0, wrong])
    assert not producer.publish()
    assert consumer.read() is None


def test_many_payload_sizes_do_not_pile_up() -> None:
    producer, consumer = _ends(one_view(65536))
    for size in range(2000):
        assert producer.try_put(bytes(size))
        producer.publish()
        assert len(consumer.read_batch()) == 1
        consumer.commit()
    kept = _form.cache_info()
    assert kept.currsize <= (kept.maxsize or 0) == 256


def test_reading_packet_by_packet_commits_packet_by_packet() -> None:
    ring = one_view(SIZE)
    producer, consumer = _ends(ring)
    producer.put_many([bytes([index]) * 8 for index in range(5)])
    producer.publish()
    ring.memory.store(0, bytes(SIZE))  # the copy is taken at the first read; here it has not been
    producer, consumer = _ends(ring)
    producer.put_many([bytes([index]) * 8 for index in range(5)])
    producer.publish()
    assert [packet.payload[0] for packet in consumer.read_batch(2)] == [0, 1]
    ring.memory.store(0, b"\xff" * SIZE)  # too late
    consumer.commit()
    assert ring.word("read_index") == 2 * 32
    packet = consumer.read()
    assert packet is not None
    assert packet.payload[0] == 2
    assert ring.word("read_index") == 2 * 32
    assert [packet.payload[0] for packet in consumer.read_batch()] == [3, 4]
    consumer.commit()
    assert ring.word("read_index") == 5 * 32


def test_an_end_takes_over_where_another_stopped() -> None:
    ring = one_view(SIZE)
    producer, consumer = _ends(ring, 4000)
    producer.put_many([b"1" * 8, b"2" * 8, b"3" * 8])
    producer.publish()
    consumer.read()
    consumer.commit()
    producer, consumer = OutgoingRing(ring.memory), IncomingRing(ring.memory)
    assert producer.try_put(b"4" * 8)
    assert not producer.publish()
    assert [packet.payload for packet in consumer.read_batch()] == [b"2" * 8, b"3" * 8, b"4" * 8]


def test_an_end_that_takes_over_ends_the_wait_of_the_earlier_one_with_its_first_packet() -> None:
    ring = one_view(SIZE)
    producer, _ = _ends(ring)
    ring.set_words(pending_send_size=2000)
    producer = OutgoingRing(ring.memory)
    assert ring.word("pending_send_size") == 2000
    assert producer.try_put(b"")
    assert ring.word("pending_send_size") == 0


def test_unmasking_finds_what_came_meanwhile_and_what_is_left() -> None:
    producer, consumer = _ends(one_view(SIZE))
    consumer.mask()
    producer.put_many([b"12345678"] * 3)
    assert not producer.publish()
    assert consumer.unmask()
    assert consumer.read() is not None
    with pytest.raises(HostError, match="commit before"):
        consumer.unmask()
    consumer.commit()
    assert consumer.unmask()
    assert len(consumer.read_batch()) == 2
    consumer.commit()
    assert not consumer.unmask()


def test_a_mask_set_by_somebody_else_is_an_error_while_waiting() -> None:
    ring = one_view(SIZE)
    _, consumer = _ends(ring)
    consumer.check_unmasked()
    ring.set_words(interrupt_mask=2)
    with pytest.raises(RingCorrupt, match="masked externally"):
        consumer.check_unmasked()


def test_each_end_says_whether_its_peer_should_be_signalled_again() -> None:
    ring = one_view(SIZE)
    producer, consumer = _ends(ring)
    assert not producer.reader_needs_signal
    producer.put_many([bytes(240)] * 15)
    producer.publish()
    assert producer.reader_needs_signal
    consumer.mask()
    assert not producer.reader_needs_signal
    assert not consumer.writer_needs_signal
    ring.set_words(pending_send_size=128)
    assert consumer.writer_needs_signal
    ring.set_words(pending_send_size=144)
    assert not consumer.writer_needs_signal
    ring.set_words(pending_send_size=SIZE - 1)
    consumer.read_batch()
    consumer.commit()
    assert consumer.writer_needs_signal
    ring.set_words(write_index=7)
    assert not consumer.writer_needs_signal


@pytest.mark.parametrize("index", [4, SIZE, SIZE + 8, 0xFFFF_FFF8, 0xFFFF_FFFF])
def test_an_invalid_index_is_corrupt_wherever_it_is_loaded(index: int) -> None:
    for name, end in (("write_index", OutgoingRing), ("read_index", OutgoingRing), ("write_index", IncomingRing)):
        ring = one_view(SIZE)
        ring.set_words(**{name: index})
        with pytest.raises(RingCorrupt, match="ring pointer"):
            end(ring.memory)
    ring = one_view(SIZE)
    producer, consumer = _ends(ring)
    producer.put_many([bytes(2000)] * 2)
    ring.set_words(read_index=index)
    with pytest.raises(RingCorrupt, match="ring pointer out"):
        producer.publish()
    assert ring.word("write_index") == 4048
    with pytest.raises(RingCorrupt, match="ring pointer out"):
        producer.try_put(bytes(3000))
    with pytest.raises(RingCorrupt, match="ring pointer out"):
        producer.request_room(3000)
    with pytest.raises(RingCorrupt, match="ring pointer out"):
        producer.reader_needs_signal
    ring.set_words(write_index=index)
    with pytest.raises(RingCorrupt, match="ring pointer in") as caught:
        consumer.read()
    assert (caught.value.offset, caught.value.got) == (0, f"{index:#x}")
    with pytest.raises(RingCorrupt, match="ring pointer in"):
        consumer.unmask()


def test_an_invalid_in_at_a_commit_means_no_signal() -> None:
    ring = one_view(SIZE)
    producer, consumer = _ends(ring)
    producer.put_many([bytes(240)] * 15)
    producer.publish()
    assert len(consumer.read_batch()) == 15
    ring.set_words(pending_send_size=1024, write_index=3)
    assert not consumer.commit()


def test_in_may_not_pass_out() -> None:
    ring = one_view(SIZE)
    producer, consumer = _ends(ring)
    producer.put_many([bytes(240)] * 10)
    producer.publish()
    consumer.read_batch()
    for index in (0, 8):
        ring.set_words(write_index=index)
        with pytest.raises(RingCorrupt, match="no write past out"):
            consumer.read()


def test_an_out_that_has_passed_in_makes_no_room() -> None:
    ring = one_view(SIZE)
    producer, _ = _ends(ring)
    assert producer.put_many([bytes(240)] * 2) == 2
    ring.set_words(read_index=8)
    assert producer.put_many([bytes(240)] * 20) == 0
    assert not producer.try_put(bytes(240))


@pytest.mark.parametrize("count", [2, 4, 9])
def test_the_last_of_many_equal_packets_must_be_all_there(count: int) -> None:
    ring = one_view(SIZE)
    producer, consumer = _ends(ring)
    producer.put_many([bytes(40)] * count)
    producer.publish()
    ring.set_words(write_index=64 * count - 8)
    assert len(consumer.read_batch()) == count - 1
    for read in (consumer.read_batch, consumer.read):
        with pytest.raises(RingCorrupt, match="at most 48 bytes"):
            read()
    consumer.commit()
    assert ring.word("read_index") == 64 * (count - 1)


@pytest.mark.parametrize("limit", [0, 1, 3, 4, 5, 30, 64, 65])
def test_a_batch_keeps_to_its_limit(limit: int) -> None:
    producer, consumer = _ends(one_view(16384))
    assert producer.put_many([bytes(40)] * 200, range(200)) == 200
    producer.publish()
    packets = consumer.read_batch(limit)
    assert [packet.transaction_id for packet in packets] == list(range(limit))
    packets += consumer.read_batch()
    assert [packet.transaction_id for packet in packets] == list(range(200))


def _read(data: bytes, strict: bool = True, end: int | None = None) -> Packet:
    ring = one_view(SIZE)
    ring.memory.store(0, data)
    ring.set_words(write_index=len(data) if end is None else end)
    packet = IncomingRing(ring.memory, strict).read()
    assert packet is not None
    return packet


CORRUPT = {
    "less than a descriptor": (bytes(8), 0, "16 bytes"),
    "payload inside the descriptor": (PacketDescriptor(6, 1, 3, 0, 0).pack() + bytes(16), 2, "byte 16"),
    "end before payload": (PacketDescriptor(6, 3, 2, 0, 0).pack() + bytes(16), 4, "byte 24"),
    "packet beyond in": (PacketDescriptor(6, 2, 5, 0, 0).pack() + bytes(16), 4, "at most 24 bytes"),
    "footer beyond in": (PacketDescriptor(6, 2, 4, 0, 0).pack() + bytes(16), 4, "at most 24 bytes"),
    "no room for a footer": (PacketDescriptor(6, 2, 2, 0, 0).pack(), 4, "at most 8 bytes"),
    "unknown flag": (PacketDescriptor(6, 2, 3, 4, 0).pack() + bytes(16), 6, "no flag but bit 0"),
    "unknown type": (PacketDescriptor(10, 2, 3, 0, 0).pack() + bytes(16), 0, "packet type"),
    "GPA-direct without ranges": (PacketDescriptor(9, 3, 3, 0, 0).pack() + bytes(16), 20, "one range or more"),
}


@pytest.mark.parametrize("name", CORRUPT)
def test_a_bad_packet_is_corrupt_with_what_where_expected_and_got(name: str) -> None:
    data, offset, expected = CORRUPT[name]
    with pytest.raises(RingCorrupt, match=expected) as caught:
        _read(data)
    assert caught.value.offset == offset


@pytest.mark.parametrize("name", CORRUPT)
@pytest.mark.parametrize("before", [1, 2, 9])
def test_packets_before_a_bad_one_are_handed_out_and_then_the_error_stays(name: str, before: int) -> None:
    data, _, expected = CORRUPT[name]
    ring = one_view(SIZE)
    good = b"".join(pack_in_band(b"12345678", start=32 * index) for index in range(before))
    ring.memory.store(0, good + data)
    ring.set_words(write_index=len(good + data))
    consumer = IncomingRing(ring.memory)
    assert len(consumer.read_batch()) == before
    for _ in range(2):
        with pytest.raises(RingCorrupt, match=expected):
            consumer.read_batch()
    consumer.commit()
    assert ring.word("read_index") == len(good)


def test_a_guest_ignores_unknown_flags_and_a_host_does_not() -> None:
    data = PacketDescriptor(6, 2, 3, 0x8001, 4).pack() + bytes(16)
    assert _read(data, strict=False).reply_id == 4
    with pytest.raises(RingCorrupt, match="0x8001"):
        _read(data)


def test_each_gpa_direct_packet_is_checked_for_ranges() -> None:
    good = PacketDescriptor(9, 3, 3, 1, 0).pack() + bytes.fromhex("0000000001000000") + bytes(8)
    bad = PacketDescriptor(9, 3, 3, 1, 0).pack() + bytes.fromhex("0100000000000000") + bytes(8)
    ring = one_view(SIZE)
    ring.memory.store(0, good * 6 + bad)
    ring.set_words(write_index=32 * 7)
    consumer = IncomingRing(ring.memory)
    assert len(consumer.read_batch()) == 6
    with pytest.raises(RingCorrupt, match="one range or more"):
        consumer.read_batch()


def test_data_between_descriptor_and_payload_of_plain_data_is_kept() -> None:
    packet = _read(PacketDescriptor(6, 3, 4, 0, 0).pack() + b"between." + b"payload." + bytes(8))
    assert (packet.header, packet.payload) == (b"between.", b"payload.")


def test_ring_memory_refuses_what_cannot_hold_a_ring() -> None:
    for control, data in (
        (bytearray(CONTROL_PAGE_SIZE), None),
        (bytearray(CONTROL_PAGE_SIZE + 8), None),
        (bytearray(128), bytearray(SIZE)),
        (memoryview(bytes(2 * SIZE)), None),
    ):
        with pytest.raises(ValueError, match="ring"):
            RingMemory(control, data)
    with GuestMemory(4 * SIZE) as memory:
        for gpns in ([], [1]):
            with pytest.raises(ValueError, match="ring"):
                RingMemory.of_pages(memory, gpns)
        for gpns in ([4, 1], [1, 2, 3, 4], [0, 1 << 60], [-1, 0]):
            with pytest.raises(MemoryAccessError):
                RingMemory.of_pages(memory, gpns)


@over_all_memories
@given(st.integers(0, 3 * SIZE - 1), st.binary(max_size=3 * SIZE), st.data())
def test_loads_and_stores_wrap(
    memory: Callable[[int], SharedRing], offset: int, piece: bytes, data: st.DataObject
) -> None:
    size = data.draw(st.integers(len(piece), 3 * SIZE))
    ring = memory(3 * SIZE)
    expected = bytearray(3 * SIZE)
    for index, byte in enumerate(piece):
        expected[(offset + index) % len(expected)] = byte
    ring.memory.store(offset, piece)
    assert ring.data() == expected
    assert ring.memory.load(offset, size) == (2 * expected)[offset : offset + size]
    assert ring.outside() == GUARD * (len(ring.outside()) // len(GUARD))


WORD = st.one_of(
    st.integers(0, SIZE // 8 - 1).map(lambda index: 8 * index),
    st.sampled_from([0, 1, 8, SIZE - 8, SIZE, 0xFFFF_FFF8]),
    st.integers(0, 0xFFFF_FFFF),
)
CHANGES = st.dictionaries(
    st.sampled_from(["write_index", "read_index", "interrupt_mask", "pending_send_size", "feature_bits"]),
    WORD,
    max_size=3,
)
PACKETS = st.lists(
    st.builds(
        lambda kind, extra, size, flags, bend: (
            PacketDescriptor(kind, 2 + extra, (2 + extra + size + bend) % 0xFFFF, flags, 1).pack()
            + bytes.fromhex("0000000001000000") * (extra + size + 1)
        ),
        st.sampled_from([6, 6, 6, 7, 9, 11, 12]),
        st.integers(0, 4),
        st.integers(0, 9),
        st.sampled_from([0, 0, 1, 1, 2]),
        st.sampled_from([0, 0, 0, 0, 0, 0, 1, -3, 500]),
    ),
    max_size=40,
).map(b"".join)


@pytest.mark.parametrize("memory", [one_view, scattered_pages], ids=lambda memory: memory.__name__)
@given(
    st.one_of(PACKETS, st.binary(max_size=SIZE)),
    st.lists(st.tuples(CHANGES, st.sampled_from([1, 3, None])), min_size=1, max_size=12),
    st.integers(0, SIZE // 8 - 1).map(lambda index: 8 * index),
    st.booleans(),
)
def test_a_hostile_producer_can_only_corrupt_its_own_channel(
    memory: Callable[[int], SharedRing],
    content: bytes,
    steps: list[tuple[dict[str, int], int | None]],
    start: int,
    strict: bool,
) -> None:
    ring = memory(SIZE)
    ring.memory.store(start, content[:SIZE])
    ring.set_words(write_index=start, read_index=start)
    consumer = IncomingRing(ring.memory, strict)
    ring.set_words(write_index=(start + len(content[: SIZE - 8]) // 8 * 8) % SIZE)
    circle = 2 * ring.data()
    out = position = start
    seen = 0
    for changes, limit in steps:
        index = ring.word("write_index")
        try:
            packets = consumer.read_batch(limit)
            if index % 8 == 0 and index < SIZE:
                seen = max(seen, (index - out) % SIZE)
            for packet in packets:
                end = position + 16 + len(packet.header) + len(packet.payload)
                assert circle[position + 16 : end] == packet.header + packet.payload
                position = (end + 8) % SIZE
            assert limit is None or len(packets) <= limit
            consumer.commit()
            assert (position - out) % SIZE <= seen
            assert ring.word("read_index") == position
            out, seen = position, seen - (position - out) % SIZE
            consumer.writer_needs_signal
            consumer.unmask()
            consumer.check_unmasked()
        except RingCorrupt:
            pass
        ring.set_words(**{name: value for name, value in changes.items() if name != "read_index"})
    assert ring.outside() == GUARD * (len(ring.outside()) // len(GUARD))


@pytest.mark.parametrize("memory", [one_view, scattered_pages], ids=lambda memory: memory.__name__)
@given(
    st.lists(
        st.tuples(CHANGES, st.lists(st.integers(0, 1200), max_size=4), st.sampled_from(["each", "many", "room"])),
        max_size=12,
    ),
    st.integers(0, SIZE // 8 - 1).map(lambda index: 8 * index),
)
def test_a_hostile_consumer_can_only_corrupt_its_own_channel(
    memory: Callable[[int], SharedRing], steps: list[tuple[dict[str, int], list[int], str]], start: int
) -> None:
    ring = memory(SIZE)
    producer, _ = _ends(ring, start)
    expected = start
    for changes, sizes, way in steps:
        ring.set_words(**changes)
        staged = 0
        try:
            if way == "many" and sizes:
                staged = producer.put_many([bytes(sizes[0])] * len(sizes)) * footprint(sizes[0])
            for size in sizes if way == "each" else []:
                staged += producer.try_put(bytes(size)) * footprint(size)
            assert staged <= SIZE - 8
            if way == "room":
                producer.request_room(footprint(sizes[0] if sizes else 0))
        except RingCorrupt:
            pass
        try:
            producer.publish()
            producer.reader_needs_signal
        except RingCorrupt:
            pass
        expected = (expected + staged) % SIZE
        if staged:
            assert ring.word("write_index") == expected
    assert ring.outside() == GUARD * (len(ring.outside()) // len(GUARD))
