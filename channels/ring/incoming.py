"""The consumer's end of a ring: it copies what is there once, and reads packets from the copy.

It will load `in` when it has nothing left, copy all that is new in one go, check each descriptor in the copy, hand out
packets, store `out` when told, and decide whether a producer that waits for room must be signalled. It will not wait,
signal, or look at shared memory twice: what the peer changes afterwards changes nothing here. `out` is its own number.

Order matters, and a ring between processes needs a full fence at each line that says so:

1. `in` is loaded, then the data
2. the data is copied, then `out` is stored, then - fence - the pending send size is loaded, then `in`
3. the interrupt mask is cleared, then - fence - `in` is loaded again

The footer must lie inside what is there, and is not looked at: OpenVMM does neither, every correct producer passes.
"""

from __future__ import annotations

import struct
from functools import lru_cache

from broker.errors import HostError, RingCorrupt

from ..protocol.packet import (
    DESCRIPTOR,
    DESCRIPTOR_SIZE,
    FOOTER_SIZE,
    Packet,
    PacketShape,
    PacketType,
    check_header,
    parse_shape,
)
from .control import IN, INTERRUPT_MASK, OUT, PENDING_SEND_SIZE, UNUSABLE, check_index, is_index
from .memory import RingMemory

_ALL = 1 << 32
"""More packets than a ring holds."""
_NO_WORD = -1
_NO_SHAPE = PacketShape(PacketType.INVALID, 0, 0, 0)
RUN = 4
"""So many equal packets are read as one."""
CHUNK = 64
"""At most so many are looked ahead at, so that a peer cannot make looking the larger part of the work."""


class IncomingRing:
    """The consumer of one ring. The indices are taken as they are found; `RingCorrupt` when one is none.

    `initialize` is for a channel that opens. A guest passes `strict=False`: unknown descriptor flags do not matter to
    Linux, and are corruption to OpenVMM.
    """

    __slots__ = ("_at", "_base", "_copy", "_memory", "_out", "_shape", "_size", "_strict", "_word", "_words")

    def __init__(self, memory: RingMemory, strict: bool = True) -> None:
        self._memory = memory
        self._words = memory.words
        self._size = memory.size
        self._strict = strict
        self._out = self._base = check_index(OUT, self._words[OUT], self._size)
        check_index(IN, self._words[IN], self._size)
        self._copy = b""
        """What lay in the ring from `_base` on; handed out up to `_at`."""
        self._at = 0
        self._word = _NO_WORD
        """The first word of the last descriptor, and its shape: packets of one kind are checked once."""
        self._shape = _NO_SHAPE

    def initialize(self) -> None:
        """Mask signals: nobody waits yet."""
        self._words[INTERRUPT_MASK] = 1

    @property
    def size(self) -> int:
        """Bytes of data that the ring has."""
        return self._size

    @property
    def indices(self) -> tuple[int, int]:
        """Write index, as it is now and unchecked, and read index."""
        return self._words[IN], self._out

    @property
    def writer_needs_signal(self) -> bool:
        """True when the producer waits for room that is there. An `in` that is no index is False, as in `commit`."""
        pending = self._words[PENDING_SEND_SIZE] & ~7
        index = self._words[IN]
        if not pending or not is_index(index, self._size):
            return False
        return self._free(index, self._out) >= pending

    def read(self) -> Packet | None:
        """The next packet; None when the ring is empty. `RingCorrupt` for what no producer may leave there."""
        copy, at = self._copy, self._at
        if at == len(copy):
            if not self._refill():
                return None
            copy, at = self._copy, 0
        packet_type, flags, start, stop = self._shape
        if start == DESCRIPTOR_SIZE and at + stop + FOOTER_SIZE <= len(copy):
            word, transaction_id = DESCRIPTOR.unpack_from(copy, at)
            if word == self._word:  # one more of the same kind
                self._at = at + stop + FOOTER_SIZE
                return Packet(packet_type, flags, transaction_id, copy[at + DESCRIPTOR_SIZE : at + stop])
        packets: list[Packet] = []
        self._decode(packets, 1)
        return packets[0]

    def read_batch(self, limit: int | None = None) -> list[Packet]:
        """The next packets, at most `limit`; none when the ring is empty.

        `RingCorrupt` for what no producer may leave there, after the packets before it have been handed out.
        """
        if self._at == len(self._copy) and not self._refill():
            return []
        packets: list[Packet] = []
        try:
            self._decode(packets, _ALL if limit is None else limit)
        except RingCorrupt:
            if not packets:
                raise
        return packets

    def commit(self) -> bool:
        """Give the room of the packets handed out so far back. True: signal the producer, which waits for that much."""
        old, size = self._out, self._size
        new = self._base + self._at
        if new >= size:
            new -= size
        if new == old:
            return False
        words = self._words
        words[OUT] = self._out = new
        # A full fence belongs here: the producer stores the pending send size, then looks at `out` once more.
        pending = words[PENDING_SEND_SIZE] & ~7
        if not pending:
            return False
        index = words[IN]
        return is_index(index, size) and self._free(index, old) < pending <= self._free(index, new)

    def mask(self) -> None:
        """Tell the producer not to signal: this end looks again by itself."""
        self._words[INTERRUPT_MASK] = 1

    def unmask(self) -> bool:
        """Ask for a signal. True: there is something to read already, and no signal may come for it.

        `HostError` before a `commit`: to the producer the ring is not empty then, and it would not signal.
        """
        if (self._base + self._at) % self._size != self._out:
            raise HostError("packets were read and not committed; commit before waiting for a signal")
        if self._at == len(self._copy):  # a ring that may be idle for long keeps nothing
            self._copy, self._base, self._at = b"", self._out, 0
        self._words[INTERRUPT_MASK] = 0
        # A full fence belongs here: the producer stores `in`, then looks at the mask.
        return check_index(IN, self._words[IN], self._size) != self._out

    def check_unmasked(self) -> None:
        """`RingCorrupt` when somebody else has masked the signals that this end waits for."""
        mask = self._words[INTERRUPT_MASK]
        if mask:
            raise RingCorrupt("interrupt mask", 4 * INTERRUPT_MASK, "0 while waiting", f"{mask:#x}, masked externally")

    def _free(self, index: int, out: int) -> int:
        return self._size - UNUSABLE - (index - out) % self._size

    def _place(self, at: int) -> int:
        """Where in the ring a place in the copy is."""
        return (self._base + at) % self._size

    def _refill(self) -> bool:
        """Copy what is new. False when there is nothing."""
        size = self._size
        start = self._base + self._at
        if start >= size:
            start -= size
        index = self._words[IN]
        if index == start:
            return False
        check_index(IN, index, size)
        available = index - start if index > start else index - start + size
        if start != self._out and (start - self._out) % size + available >= size:
            raise RingCorrupt("ring pointer in", 4 * IN, f"no write past out ({self._out:#x})", f"{index:#x}")
        self._copy = self._memory.load(start, available)
        self._base, self._at = start, 0
        return True

    def _decode(self, packets: list[Packet], limit: int) -> None:
        """Read packets from the copy. `RingCorrupt` leaves those before the bad one in `packets`, and comes again."""
        copy, at, end = self._copy, self._at, len(self._copy)
        word, (packet_type, flags, start, stop) = self._word, self._shape
        unpack, append, header = DESCRIPTOR.unpack_from, packets.append, b""
        while at < end and limit > 0:
            if end - at < DESCRIPTOR_SIZE:
                raise RingCorrupt("packet descriptor", self._place(at), f"{DESCRIPTOR_SIZE} bytes", f"{end - at}")
            first, transaction_id = unpack(copy, at)
            if first != word or at + stop + FOOTER_SIZE > end:
                self._shape = parse_shape(first, end - at - FOOTER_SIZE, self._strict, self._place(at), RingCorrupt)
                packet_type, flags, start, stop = self._shape
                self._word = word = first
            size = stop + FOOTER_SIZE
            if start == DESCRIPTOR_SIZE:
                ahead = at + RUN * size
                if limit >= RUN and ahead <= end and copy[ahead - size : ahead - size + 8] == copy[at : at + 8]:
                    count = _run_length(copy, at, size, min(limit, CHUNK))
                    run = _run_of(stop - start).iter_unpack(copy[at : at + count * size])
                    packets += [Packet(packet_type, flags, number, payload) for number, payload in run]
                    at += count * size
                    limit -= count
                    self._at = at
                    continue
                header = b""
            else:
                header = copy[at + DESCRIPTOR_SIZE : at + start]
                check_header(packet_type, header, self._place(at), RingCorrupt)
            append(Packet(packet_type, flags, transaction_id, copy[at + start : at + stop], header))
            at += size
            limit -= 1
            self._at = at


def _run_length(copy: bytes, at: int, size: int, limit: int) -> int:
    """How many packets from `at` on, at most `limit`, have the same first word, and so the same size."""
    count = min(limit, (len(copy) - at) // size)
    words = memoryview(copy)[at : at + count * size].cast("Q")[:: size >> 3].tolist()
    if words.count(words[0]) == count:
        return count
    return next(index for index, word in enumerate(words) if word != words[0])


@lru_cache(maxsize=64)
def _run_of(payload_size: int) -> struct.Struct:
    """Packets of this size without extended header: transaction ID, payload."""
    return struct.Struct(f"<8xQ{payload_size}s8x")
