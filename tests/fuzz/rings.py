"""Targets for both ends of a ring, with a peer that changes any word and any byte between two calls.

The ring's memory lies between pages that cannot be accessed, and says what was loaded and stored: never anything but what
the producer has published, or what it may write. Packets must be those that `parse_packet` finds there.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from contextlib import suppress
from functools import cache

from broker import GuestMemory
from broker.errors import HostError, MemoryAccessError, MessageTooLarge, ProtocolError, RingCorrupt
from channels.protocol.gparange import GpaRange, TransferRange
from channels.protocol.packet import (
    DESCRIPTOR_SIZE,
    FOOTER_SIZE,
    Packet,
    PacketType,
    pack_gpa_direct,
    pack_packet,
    pack_transfer_pages,
    parse_packet,
    round_up_8,
)
from channels.ring import IncomingRing, OutgoingRing, RingMemory, footprint
from channels.ring.control import CONTROL_WORDS, IN, INTERRUPT_MASK, OUT, PENDING_SEND_SIZE, UNUSABLE

from . import vectors
from .decoders import check_ranges
from .script import Script, text

PAGE = 4096
DATA = PAGE
"""Bytes of data of the rings."""
SCATTERED_DATA = 4 * PAGE

_WORDS = (IN, OUT, INTERRUPT_MASK, PENDING_SEND_SIZE)
_TYPES = (PacketType.IN_BAND, PacketType.COMPLETION, PacketType.GPA_DIRECT, PacketType.TRANSFER_PAGES, PacketType.GPADL)


def incoming_strict(data: bytes) -> None:
    """A host's consumer."""
    play_incoming(Script(data), flat_ring(DATA), strict=True)


def incoming_lenient(data: bytes) -> None:
    """A guest's consumer."""
    play_incoming(Script(data), flat_ring(DATA), strict=False)


def outgoing(data: bytes) -> None:
    """A producer."""
    play_outgoing(Script(data), flat_ring(DATA))


def scattered(data: bytes) -> None:
    """Byte 0: which end. A ring over scattered pages does exactly what one over one buffer does."""
    script = Script(data)
    end, content = script.pick((play_incoming, play_outgoing)), script.rest()
    rings = flat_ring(SCATTERED_DATA), scattered_ring()
    logs = [end(Script(content), ring) for ring in rings]
    assert logs[0] == logs[1], "the order of the pages makes no difference"
    assert rings[0].load_all() == rings[1].load_all()


def pages(data: bytes) -> None:
    """A ring over pages that a guest names: any numbers, one of them twice, its control page among its data."""
    script = Script(data)
    gpns = [script.value(64) for _ in range(script.number() % 8)]
    with GuestMemory(16 * PAGE) as memory:
        memory.write(0, script.take(64).ljust(64, b"\0"))
        try:
            ring = RingMemory.of_pages(memory, gpns)
        except (MemoryAccessError, ValueError):
            return
        try:
            producer, consumer = OutgoingRing(ring), IncomingRing(ring)
            for _ in range(script.number() % 4):
                producer.try_put(script.text())
                producer.publish()
                consumer.read_batch()
                consumer.commit()
        except RingCorrupt:
            return


class WatchedRing(RingMemory):
    """A ring's memory that says what was loaded and stored. Made by `watched`."""

    __slots__ = ("loaded", "stored")

    loaded: list[tuple[int, bytes]]
    stored: list[tuple[int, bytes]]

    def load(self, offset: int, size: int) -> bytes:
        """As in `RingMemory`."""
        assert 0 <= offset < self.size
        assert 0 < size <= self.size - UNUSABLE
        assert (offset + size) % self.size == self.words[IN], "no more is read than the producer says is there"
        data = super().load(offset, size)
        self.loaded.append((offset, data))
        return data

    def store(self, offset: int, data: bytes) -> None:
        """As in `RingMemory`."""
        assert 0 <= offset < self.size
        assert 0 < len(data) <= self.size - UNUSABLE, "a producer never fills a ring"
        super().store(offset, data)
        self.stored.append((offset, data))

    def load_all(self) -> bytes:
        """All data, for the test."""
        return super().load(0, self.size)

    def put(self, offset: int, data: bytes) -> None:
        """The peer writes, wherever it likes."""
        super().store(offset % self.size, data[: self.size])

    def forget(self) -> None:
        """The ring as new."""
        self.loaded, self.stored = [], []
        self.words[:] = memoryview(bytes(4 * CONTROL_WORDS)).cast("I")
        super().store(0, bytes(self.size))


class ConsumerModel:
    """What a consumer must find, from what was loaded. Bytes of the copy are read once and in order."""

    def __init__(self, ring: WatchedRing, strict: bool) -> None:
        self.out = self._position = ring.words[OUT]
        """What was committed, and what comes next."""
        self._ring = ring
        self._strict = strict
        self._loads = len(ring.loaded)
        self._copy = b""
        self._at = 0

    def took(self, packets: list[Packet], *, failed: bool) -> None:
        """The consumer has returned these, or failed after them."""
        for offset, data in self._ring.loaded[self._loads :]:
            assert self._at == len(self._copy), "nothing is loaded before everything was handed out"
            assert offset == self._position
            self._copy, self._at = data, 0
        fresh = len(self._ring.loaded) > self._loads
        self._loads = len(self._ring.loaded)
        for packet in packets:
            assert packet == parse_packet(self._copy[self._at : -FOOTER_SIZE], self._strict)
            size = DESCRIPTOR_SIZE + len(packet.header) + len(packet.payload) + FOOTER_SIZE
            self._at += size
            assert self._at <= len(self._copy), "a packet ends within what was loaded"
            self._position = (self._position + size) % self._ring.size
            check_ranges(packet)
        if failed and self._at < len(self._copy) and (fresh or not packets):
            try:
                parse_packet(self._copy[self._at : -FOOTER_SIZE], self._strict)
            except ProtocolError:
                return
            raise AssertionError("the consumer refuses a packet that is one")

    def committed(self, ring: IncomingRing) -> None:
        """The consumer has given back what it handed out, and nothing else."""
        assert self._position in (self.out, self._ring.words[OUT])
        self.out = self._position
        assert ring.indices[1] == self.out


def play_incoming(script: Script, memory: WatchedRing, *, strict: bool = True) -> list[object]:
    """A consumer and its peer; what came of each call."""
    log: list[object] = []
    start = 8 * script.number(2) % memory.size
    memory.words[IN] = memory.words[OUT] = start
    if script.flag():
        _set_word(script, memory)
    try:
        ring = IncomingRing(memory, strict)
    except RingCorrupt as error:
        return [str(error)]
    model = ConsumerModel(memory, strict)
    ring.initialize()

    def read(how: Callable[[], list[Packet]]) -> list[Packet] | str:
        try:
            packets = how()
        except RingCorrupt as error:
            model.took([], failed=True)
            return str(error)
        model.took(packets, failed=False)
        return packets

    def read_one() -> list[Packet]:
        packet = ring.read()
        return [] if packet is None else [packet]

    def read_some() -> list[Packet]:
        limit = script.number()
        packets = ring.read_batch(limit or None)
        assert not limit or len(packets) <= limit
        return packets

    def commit() -> bool:
        signal = ring.commit()
        model.committed(ring)
        return signal

    steps: tuple[Callable[[], object], ...] = (
        lambda: _set_word(script, memory),
        lambda: memory.put(script.number(2), script.text()),
        lambda: _produce(script, memory),
        lambda: read(read_one),
        lambda: read(read_some),
        commit,
        ring.mask,
        ring.unmask,
        ring.check_unmasked,
        lambda: ring.writer_needs_signal,
    )
    while script:
        log.append(_outcome(script.pick(steps), RingCorrupt, HostError))
        assert ring.indices[1] == model.out, "out is the consumer's own number"
    return log


def play_outgoing(script: Script, memory: WatchedRing) -> list[object]:
    """A producer and its peer; what came of each call."""
    log: list[object] = []
    start = 8 * script.number(2) % memory.size
    memory.words[IN] = memory.words[OUT] = start
    if script.flag():
        _set_word(script, memory)
    try:
        ring = OutgoingRing(memory)
    except RingCorrupt as error:
        return [str(error)]
    ring.initialize()
    position = published = ring.indices[0]
    staged: list[bytes] = []

    def put_one() -> bool:
        nonlocal position
        payload, number, flags = _payload(script), script.value(64), script.number() & 1
        kind = script.pick((PacketType.IN_BAND, PacketType.COMPLETION))
        taken = ring.try_put(payload, number, flags, kind)
        if taken:
            staged.append(pack_packet(kind, payload, number, flags, start=position))
            position = (position + footprint(len(payload))) % memory.size
        return taken

    def put_extended() -> bool:
        nonlocal position
        payload, number, many = _payload(script), script.value(64), script.number() % 4 + 1
        if script.flag():
            ranges = [GpaRange(8, index, (index,)) for index in range(many)]
            packet = pack_gpa_direct(ranges, payload, number)
            taken = ring.try_put_gpa_direct(ranges, payload, number)
        else:
            parts = [TransferRange(8, index) for index in range(many)]
            packet = pack_transfer_pages(many, parts, payload, number)
            taken = ring.try_put_transfer_pages(many, parts, payload, number)
        if taken:
            staged.append(packet + bytes(4) + position.to_bytes(4, "little"))
            position = (position + len(staged[-1])) % memory.size
        return taken

    def put_many() -> int:
        nonlocal position
        payload, many = _payload(script), script.number() % 40
        payloads = [payload] * many + [b"another size"] * (script.number() % 2)
        try:
            count = ring.put_many(payloads)
        except (RingCorrupt, MessageTooLarge):
            publish_some()
            raise
        for taken in payloads[:count]:
            staged.append(pack_packet(PacketType.IN_BAND, taken, start=position))
            position = (position + footprint(len(taken))) % memory.size
        return count

    def publish() -> bool:
        nonlocal published
        memory.stored.clear()
        expected = b"".join(staged)
        staged.clear()
        try:
            return ring.publish()
        finally:
            assert memory.stored == ([(published, expected)] if expected else [])
            published = position
            assert not expected or memory.words[IN] == published

    def publish_some() -> None:
        """Packets before a bad one may be staged: publish those, and go on from there."""
        nonlocal published, position
        memory.stored.clear()
        with suppress(RingCorrupt):
            ring.publish()
        for start, data in memory.stored:
            assert start == published
            assert data.startswith(b"".join(staged))
            published = position = (start + len(data)) % memory.size
        staged.clear()

    steps: tuple[Callable[[], object], ...] = (
        lambda: _set_word(script, memory),
        put_one,
        put_extended,
        put_many,
        publish,
        lambda: ring.request_room(footprint(script.value(13))),
        lambda: ring.reader_needs_signal,
        lambda: _consume(memory, published),
    )
    while script:
        log.append(_outcome(script.pick(steps), RingCorrupt, MessageTooLarge, HostError))
        assert ring.indices[0] == published, "in is the producer's own number"
    return log


def incoming_seeds() -> list[bytes]:
    """Rings of the vectors, read in each way; and honest packets of each kind."""
    return [b"".join((start, *_stores(pieces), *then)) for start, pieces, then in _reads()] + [_HONEST]


def outgoing_seeds() -> list[bytes]:
    """Packets of each kind, until the ring is full, published and consumed."""
    put, extended, many, publish = b"\1\x40\5\1\0", b"\2\x40\5\2\0", b"\3\x40\x10\1", b"\4"
    room, signal, consume = b"\5\x80", b"\6", b"\7"
    parts = (put, extended, many, publish, room, consume, signal)
    return [bytes(3) + part + publish + consume for part in parts] + [bytes(3) + b"".join(parts) * 8]


def scattered_seeds() -> list[bytes]:
    """Those of both ends."""
    return [b"\0" + seed for seed in incoming_seeds()] + [b"\1" + seed for seed in outgoing_seeds()]


def pages_seeds() -> list[bytes]:
    """Three pages, and one page three times."""
    return [bytes((3, 1, 3, 2)) + bytes(64) + b"\2" + text(b"hello"), bytes((3, 1, 1, 1)) + bytes(64) + b"\2\0\0"]


def flat_ring(size: int) -> WatchedRing:
    """A ring in one buffer, between two pages that nobody can access; the same each time, as new."""
    ring = _flat_ring(size)
    ring.forget()
    return ring


def scattered_ring() -> WatchedRing:
    """A ring over descending pages, and two neighbours, with pages between them that nobody can access."""
    ring = _scattered_ring()
    ring.forget()
    return ring


@cache
def _flat_ring(size: int) -> WatchedRing:
    memory = mmap.mmap(-1, size + 3 * PAGE)
    _close_off(memory, (0, size // PAGE + 2))
    return WatchedRing(memoryview(memory)[PAGE : size + 2 * PAGE])


@cache
def _scattered_ring() -> WatchedRing:
    memory = GuestMemory(16 * PAGE)
    gpns = (10, 8, 5, 6, 2)
    _close_off(memory.view(0, memory.size), tuple(gpn for gpn in range(16) if gpn not in gpns))
    return WatchedRing.of_pages(memory, gpns)


def _close_off(memory: mmap.mmap | memoryview, numbers: tuple[int, ...]) -> None:
    """Any access to these pages ends the process."""
    if mmap.PAGESIZE != PAGE:
        return
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    for number in numbers:
        if protect(ctypes.c_void_p(start + PAGE * number), ctypes.c_size_t(PAGE), 0):
            raise OSError(ctypes.get_errno(), "mprotect")


def _outcome(call: Callable[[], object], *errors: type[Exception]) -> object:
    try:
        return call()
    except errors as error:
        return str(error)


def _set_word(script: Script, memory: WatchedRing) -> None:
    """The peer writes a word of the control page: an index, or anything."""
    word = script.pick(_WORDS)
    value = 8 * script.number(2) % memory.size if script.flag() else script.value(32)
    memory.words[word] = value


def _produce(script: Script, memory: WatchedRing) -> None:
    """The peer writes a packet and publishes it, whether there is room or not."""
    kind, payload, header = script.pick(_TYPES), script.text(), script.text()
    packet = pack_packet(kind, payload, script.value(64), script.number() & 1, header, start=0)
    start = memory.words[IN]
    memory.put(start, packet)
    memory.words[IN] = (start + len(packet)) % memory.size


def _consume(memory: WatchedRing, published: int) -> None:
    """The peer reads everything."""
    memory.words[OUT] = published


def _payload(script: Script) -> bytes:
    """So many equal bytes: now and then more than a ring takes."""
    size = script.number()
    return bytes([size]) * (size if size < 0xF0 else round_up_8(size) * (size & 0xF) * 2)


_NUMBER = {name: bytes([index]) for index, name in enumerate(("word", "put", "produce", "read", "batch", "commit"))}
_HONEST = bytes(3) + b"".join(
    _NUMBER["produce"] + bytes([kind]) + text(b"payload") + text(header) + b"\5\1"
    for kind, header in enumerate((b"", b"", b"\0\0\0\0\1\0\0\0" + bytes(24), bytes(16), b""))
)
_HONEST += _NUMBER["batch"] + b"\2" + _NUMBER["commit"] + (_NUMBER["read"] + _NUMBER["commit"]) * 4 + b"\7"


def _reads() -> list[tuple[bytes, tuple[tuple[int, bytes], ...], tuple[bytes, ...]]]:
    found: list[tuple[bytes, tuple[tuple[int, bytes], ...], tuple[bytes, ...]]] = []
    for before, after, pieces in vectors.ring_writes():
        word = _NUMBER["word"] + b"\0\1" + (after // 8).to_bytes(2, "little")
        one, batch = _NUMBER["read"] + _NUMBER["commit"], _NUMBER["batch"] + b"\0" + _NUMBER["commit"]
        start = (before // 8).to_bytes(2, "little") + b"\0"
        found.append((start, pieces, (word, one * 3, batch)))
    return found


def _stores(pieces: tuple[tuple[int, bytes], ...]) -> list[bytes]:
    return [
        _NUMBER["put"] + (offset + at).to_bytes(2, "little") + text(piece[at : at + 240])
        for offset, piece in pieces
        for at in range(0, len(piece), 240)
    ]
