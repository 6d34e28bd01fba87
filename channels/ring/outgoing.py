"""The producer's end of a ring: it stages packets and publishes them with one store of `in`.

It will stage whole packets, tell when there is no room, publish what is staged, and decide whether the consumer must be
signalled. It will not wait, signal, or believe the peer: `out` is checked each time it is loaded, and `in` is its own
number, whatever the control page says later. It never reads the data.

Order matters, and a ring between processes needs a full fence at each line that says so:

1. the data is stored, then `in` (the consumer must not see the index first)
2. `in` is stored, then - fence - the interrupt mask is loaded, then `out`
3. the pending send size is stored, then - fence - `out` is loaded

Pad bytes are zero, as Linux, DPDK and mu_msvm write them; OpenVMM leaves old bytes there.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain, repeat

from broker.errors import HostError, MessageTooLarge

from ..protocol.gparange import GpaRange, TransferRange
from ..protocol.packet import (
    DESCRIPTOR_SIZE,
    FLAGS_SHIFT,
    FOOTER,
    FOOTER_SHIFT,
    FOOTER_SIZE,
    MAX_LENGTH8,
    PacketType,
    descriptor_word,
    pack_gpa_direct,
    pack_transfer_pages,
    round_up_8,
)
from .control import (
    FEATURE_BITS,
    IN,
    INTERRUPT_MASK,
    OUT,
    PENDING_SEND_SIZE,
    PENDING_SEND_SIZE_SUPPORTED,
    UNUSABLE,
    check_index,
)
from .memory import RingMemory

_FORMS = 256
"""Payload sizes whose compiled packing is kept, for all rings together."""


def footprint(payload_size: int, header_size: int = 0) -> int:
    """Bytes that a packet takes in the ring: descriptor, extended header, payload, padding, footer."""
    return DESCRIPTOR_SIZE + round_up_8(header_size) + round_up_8(payload_size) + FOOTER_SIZE


@lru_cache(maxsize=_FORMS)
def _form(size: int) -> tuple[Callable[..., bytes], int, int]:
    """(pack, first word without type and flags, bytes in the ring) of packets with this size of payload.

    `pack` takes the first word, the transaction ID, the payload and the footer.
    """
    padded = round_up_8(size)
    word = descriptor_word(0, DESCRIPTOR_SIZE, DESCRIPTOR_SIZE + padded, 0)
    return struct.Struct(f"<QQ{padded}sQ").pack, word, footprint(size)


class OutgoingRing:
    """The producer of one ring. The indices are taken as they are found; `RingCorrupt` when one is none.

    `initialize` is for a channel that opens; without it this end goes on where an earlier one stopped.
    """

    __slots__ = ("_in", "_memory", "_next", "_pending", "_room", "_size", "_staged", "_words")

    def __init__(self, memory: RingMemory) -> None:
        self._memory = memory
        self._words = memory.words
        self._size = memory.size
        self._staged: list[bytes] = []
        self._in = self._next = check_index(IN, self._words[IN], self._size)
        self._pending = self._words[PENDING_SEND_SIZE]
        """Whether this end waits; an earlier one may have left that behind."""
        self._room = 0
        self._load_room()
        if self._pending:
            self._room = 0

    def initialize(self) -> None:
        """Announce that this producer uses the pending send size, and that it does not wait now."""
        self._words[FEATURE_BITS] = PENDING_SEND_SIZE_SUPPORTED
        self._words[PENDING_SEND_SIZE] = self._pending = 0

    @property
    def size(self) -> int:
        """Bytes of data that the ring has."""
        return self._size

    @property
    def indices(self) -> tuple[int, int]:
        """Write index, and read index as it is now and unchecked."""
        return self._in, self._words[OUT]

    @property
    def staged(self) -> int:
        """Packets that the next `publish` hands over."""
        return len(self._staged)

    @property
    def largest_packet(self) -> int:
        """Bytes, footer included, of the largest packet that this ring takes."""
        return min(self._size - UNUSABLE - 8, 8 * MAX_LENGTH8 + FOOTER_SIZE)

    @property
    def reader_needs_signal(self) -> bool:
        """True when the consumer has something to read and has not masked signals. `RingCorrupt` when `out` is no index."""
        return not self._words[INTERRUPT_MASK] and check_index(OUT, self._words[OUT], self._size) != self._in

    def try_put(
        self, payload: bytes, transaction_id: int = 0, flags: int = 0, packet_type: PacketType = PacketType.IN_BAND
    ) -> bool:
        """Stage a packet without extended header, plain data if nothing else is said. False: the ring is full.

        `MessageTooLarge` when it can never fit, `RingCorrupt` when `out` is no index, `ValueError` when a value does
        not fit its field.
        """
        size = len(payload)
        pack, word, total = _form(size)
        if total > self._room and not self._find_room(total):
            return False
        position = self._next
        try:
            packet = pack(word | packet_type | flags << FLAGS_SHIFT, transaction_id, payload, position << FOOTER_SHIFT)
        except struct.error as error:
            raise ValueError(f"packet: a value does not fit its field ({error})") from None
        self._staged.append(packet)
        position += total
        self._next = position if position < self._size else position - self._size
        self._room -= total
        return True

    def try_put_completion(self, transaction_id: int, payload: bytes = b"") -> bool:
        """Stage the answer to a packet. False and errors as in `try_put`."""
        return self.try_put(payload, transaction_id, 0, PacketType.COMPLETION)

    def try_put_gpa_direct(
        self, ranges: Iterable[GpaRange], payload: bytes, transaction_id: int, completion: bool = True
    ) -> bool:
        """Stage a packet whose data lies in guest memory. False and errors as in `try_put`."""
        return self.try_put_packet(pack_gpa_direct(ranges, payload, transaction_id, completion))

    def try_put_transfer_pages(
        self,
        set_id: int,
        ranges: Iterable[TransferRange],
        payload: bytes,
        transaction_id: int,
        completion: bool = True,
    ) -> bool:
        """Stage a packet whose data lies in a buffer both sides know. False and errors as in `try_put`."""
        return self.try_put_packet(pack_transfer_pages(set_id, ranges, payload, transaction_id, completion))

    def try_put_packet(self, packet: bytes) -> bool:
        """Stage a packet made by one of the `pack_` functions, without its footer. False and errors as in `try_put`."""
        total = len(packet) + FOOTER_SIZE
        self._check_size(total)
        if total > self._room and not self._find_room(total):
            return False
        self._staged.append(packet + FOOTER.pack(self._next << FOOTER_SHIFT))
        self._next = (self._next + total) % self._size
        self._room -= total
        return True

    def put_many(
        self,
        payloads: Sequence[bytes],
        transaction_ids: Iterable[int] | None = None,
        flags: int = 0,
        packet_type: PacketType = PacketType.IN_BAND,
    ) -> int:
        """Stage as many of these as fit, in order, and say how many: packets without extended header, as in `try_put`.

        Transaction IDs are 0 unless given; where they end, the packets do. Cheapest when all payloads have one size.
        Errors as in `try_put`; packets before a bad one may be staged.
        """
        sizes = set(map(len, payloads))
        ids: Iterator[int] = repeat(0) if transaction_ids is None else iter(transaction_ids)
        if len(sizes) != 1:
            return self._put_each(payloads, ids, flags, packet_type)
        size = sizes.pop()
        pack, word, total = _form(size)
        count = len(payloads)
        if count * total > self._room:
            self._find_room(total)
            count = min(count, self._room // total)
            payloads = payloads[:count]
        word |= packet_type | flags << FLAGS_SHIFT
        try:
            packets = list(map(pack, repeat(word), ids, payloads, self._footers(count, total)))
        except struct.error as error:
            raise ValueError(f"packet: a value does not fit its field ({error})") from None
        self._staged += packets
        count = len(packets)
        self._next = (self._next + count * total) % self._size
        self._room -= count * total
        return count

    def publish(self) -> bool:
        """Hand the staged packets to the consumer. True: signal it, because it found the ring empty and may wait.

        `RingCorrupt` when `out` is no index; the packets are published all the same.
        """
        staged = self._staged
        if not staged:
            return False
        words, before = self._words, self._in
        self._memory.store(before, staged[0] if len(staged) == 1 else b"".join(staged))
        staged.clear()
        words[IN] = self._in = self._next
        # A full fence belongs here; the mask goes first: a consumer clears it, then looks at `in` once more.
        if words[INTERRUPT_MASK]:
            return False
        out = words[OUT]
        return out == before or check_index(OUT, out, self._size) == before

    def request_room(self, total: int) -> bool:
        """Ask the consumer for a signal when `total` bytes fit, see `footprint`.

        True: there is room now, go on. False: wait for a signal, then ask again. At least a quarter of the ring is
        asked for, so that a slow consumer does not wake the producer for every packet. The request ends when this or a
        `try_put` finds room. `HostError` while packets are staged: `publish` first, since the consumer makes room only
        by reading what it has; `MessageTooLarge` and `RingCorrupt` as in `try_put`.
        """
        if self._staged:
            raise HostError(f"{len(self._staged)} packets are staged; publish them before waiting for room")
        self._check_size(total)
        if self._find_room(total):
            return True
        wanted = max(total, (self._size - UNUSABLE) // 4)
        self._words[PENDING_SEND_SIZE] = self._pending = round_up_8(wanted)
        # A full fence belongs here: the consumer stores `out`, then looks at the pending send size.
        return self._find_room(total)

    def withdraw_request(self) -> None:
        """Nobody waits for room any more: no signal is wanted."""
        if self._pending:
            self._words[PENDING_SEND_SIZE] = self._pending = 0
            self._room = 0

    def _find_room(self, total: int) -> bool:
        """Load `out`; True when `total` bytes fit, and then this producer waits no more."""
        self._load_room()
        if total > self._room:
            self._check_size(total)
            if self._pending:
                self._room = 0  # so that the next packet comes by here and clears the pending send size
            return False
        if self._pending:
            self._words[PENDING_SEND_SIZE] = self._pending = 0
        return True

    def _load_room(self) -> None:
        size, before = self._size, self._in
        out = check_index(OUT, self._words[OUT], size)
        # An `out` that has passed `in` is believed as far as it goes: it can only make room smaller. An empty ring has 8
        # bytes more than its largest packet takes, so that this one number says what fits and what never will.
        room = size - UNUSABLE - (before - out) % size - (self._next - before) % size
        self._room = max(0, min(room, self.largest_packet))

    def _check_size(self, total: int) -> None:
        if total > self.largest_packet:
            raise MessageTooLarge(total, self.largest_packet)

    def _footers(self, count: int, total: int) -> Iterable[int]:
        """The footers of so many packets of one size."""
        start, size = self._next, self._size
        end = start + count * total
        if end <= size:
            return range(start << FOOTER_SHIFT, end << FOOTER_SHIFT, total << FOOTER_SHIFT)
        wrapped = start + (size - start + total - 1) // total * total
        return (
            position << FOOTER_SHIFT
            for position in chain(range(start, size, total), range(wrapped - size, end - size, total))
        )

    def _put_each(self, payloads: Sequence[bytes], ids: Iterator[int], flags: int, packet_type: PacketType) -> int:
        count = 0
        for payload, transaction_id in zip(payloads, ids, strict=False):
            if not self.try_put(payload, transaction_id, flags, packet_type):
                break
            count += 1
        return count
