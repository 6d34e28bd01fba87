"""Both ends of a ring against tests/vectors/ring.json: what four independent implementations left in memory, and signalled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from channels.protocol.gparange import GpaRange, TransferRange
from channels.protocol.packet import PacketType, round_up_8
from channels.ring import IncomingRing, OutgoingRing, footprint

from .rings import MEMORIES, SharedRing

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors" / "ring.json").read_text())
CASES = {case["id"]: case for case in VECTORS["cases"]}
READ_CASES = VECTORS["read_signal_cases"]
KEEPS_OLD_BYTES = "openvmm"
"""The producer that does not write pad bytes. Data comes from the first of `produced_by`."""

over_all_memories = pytest.mark.parametrize("memory", MEMORIES, ids=lambda memory: memory.__name__)


def _start(case: dict[str, Any], memory: Callable[[int], SharedRing]) -> SharedRing:
    ring = memory(case["data_size"])
    ring.memory.store(0, bytes([VECTORS["fill"]]) * case["data_size"])
    ring.set_words(**case["start"])
    return ring


def _ranges(write: dict[str, Any]) -> list[GpaRange]:
    if write["op"] == "send_gpa_one_range":
        return [GpaRange(write["byte_count"], write["byte_offset"], tuple(write["pfns"]))]
    return [GpaRange(size, offset, (gpn,)) for size, offset, gpn in write["ranges"]]


def _write(ring: OutgoingRing, write: dict[str, Any]) -> bool:
    payload, transaction_id, wanted = bytes.fromhex(write["payload"]), write["xid"], bool(write["flags"] & 1)
    assert len(payload) == write["payload_len"]
    if write["op"] == "send":
        return ring.try_put(payload, transaction_id, write["flags"], PacketType(write["type"]))
    if write["op"] == "send_xfer":
        ranges = [TransferRange(size, offset) for size, offset in write["ranges"]]
        return ring.try_put_transfer_pages(write["set_id"], ranges, payload, transaction_id, wanted)
    return ring.try_put_gpa_direct(_ranges(write), payload, transaction_id, wanted)


def _expected_data(case: dict[str, Any]) -> bytes:
    data = bytearray([VECTORS["fill"]]) * case["data_size"]
    for offset, text in case["data_written"]:
        written = bytes.fromhex(text)
        data[offset : offset + len(written)] = written
    assert hashlib.sha256(data).hexdigest() == case["data_sha256"]
    return bytes(data)


def test_all_cases_are_here() -> None:
    assert (len(CASES), len(READ_CASES)) == (34, 28)


@over_all_memories
@pytest.mark.parametrize("name", CASES)
def test_a_write_leaves_the_bytes_and_the_signal_of_other_producers(
    name: str, memory: Callable[[int], SharedRing]
) -> None:
    case = CASES[name]
    ring = _start(case, memory)
    producer = OutgoingRing(ring.memory)
    producer.initialize()
    for write, result in zip(case["writes"], case["results"], strict=True):
        assert _write(producer, write) == (result["ret"] == 0)
        assert producer.publish() == result["signal"]

    data, expected = bytearray(ring.data()), bytearray(_expected_data(case))
    if case["produced_by"][0] == KEEPS_OLD_BYTES:
        for offset in case["pad_byte_offsets"]:
            assert data[offset] == 0
            data[offset] = expected[offset]
    assert data == expected
    assert hashlib.sha256(data).hexdigest() == case["data_sha256"]
    assert ring.control()[:68].hex() == case["control_page_first_68"]
    assert {name: ring.word(name) for name in case["final"]} == case["final"]
    assert not any(ring.control()[68:])


@over_all_memories
@pytest.mark.parametrize("name", CASES)
def test_what_other_producers_wrote_reads_back(name: str, memory: Callable[[int], SharedRing]) -> None:
    case = CASES[name]
    ring = _start(case, memory)
    ring.memory.store(0, _expected_data(case))
    ring.set_words(**case["final"] | {"read_index": case["start"]["write_index"]})  # what lay there before is only fill
    consumer = IncomingRing(ring.memory)
    written = [write for write, result in zip(case["writes"], case["results"], strict=True) if result["ret"] == 0]
    packets = consumer.read_batch()
    for packet, write in zip(packets, written, strict=True):
        payload = bytes.fromhex(write["payload"])
        assert (packet.packet_type, packet.flags, packet.transaction_id) == (
            write["type"],
            write["flags"],
            write["xid"],
        )
        assert packet.payload[: len(payload)] == payload
        assert len(packet.payload) == round_up_8(len(payload))
        if packet.packet_type == PacketType.GPA_DIRECT:
            assert packet.gpa_ranges() == tuple(_ranges(write))
        if packet.packet_type == PacketType.TRANSFER_PAGES:
            assert packet.transfer_page_set_id == write["set_id"]
            assert packet.transfer_ranges() == tuple(TransferRange(*range_) for range_ in write["ranges"])
    assert consumer.commit() is False
    assert ring.word("read_index") == case["final"]["write_index"]


@over_all_memories
@pytest.mark.parametrize("case", READ_CASES, ids=lambda case: f"{case['start_index']}-{case['pending_send_size']}")
def test_a_waiting_producer_is_signalled_after_the_read_that_openvmm_chooses(
    case: dict[str, Any], memory: Callable[[int], SharedRing]
) -> None:
    ring = memory(case["data_size"])
    ring.set_words(write_index=case["start_index"], read_index=case["start_index"])
    producer, consumer = OutgoingRing(ring.memory), IncomingRing(ring.memory)
    payloads = [bytes(case["payload_len"])] * (case["packets"] + 1)
    assert footprint(case["payload_len"]) == case["bytes_per_packet"]
    assert producer.put_many(payloads) == case["packets"]
    producer.publish()
    ring.set_words(pending_send_size=case["pending_send_size"], feature_bits=case["feature_bits"])
    signalled = []
    for number in range(1, case["packets"] + 1):
        assert consumer.read() is not None
        if consumer.commit():
            signalled.append(number)
    assert signalled == case["signalled_after_packet"]["openvmm"]
    assert consumer.read() is None
