"""One end of an open channel: packets in and out, waits, signals, completions. The same for devices and for drivers.

    async for packet in channel:
        await channel.complete(packet, b"done")

Packets come in the order in which they were sent. What arrives is copied out of the ring at once, so the other end may do
to the ring what it likes. Nothing is queued on the way out: a full ring makes the sender wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Self

import anyio

from broker.access import Turns
from broker.errors import ChannelClosed, MessageTooLarge, RingCorrupt
from broker.memory import GuestMemory
from broker.trace import Ring, Trace

from .buffer import MOST_RANGE_BYTES, read_ranges, write_ranges
from .doorbell import Doorbell
from .protocol.gparange import GpaRange, TransferRange
from .protocol.packet import (
    COMPLETION_REQUESTED,
    FOOTER_SIZE,
    Packet,
    PacketType,
    pack_gpa_direct,
    pack_transfer_pages,
)
from .ring import IncomingRing, OutgoingRing, RingMemory, footprint

MAX_SET_APART = 1024
"""Packets that wait for `receive` while others wait for completions; no more are read before some are taken."""
READ_AHEAD = 64
"""Packets that `receive` takes from the ring at once."""
MOST_AT_ONCE = 1024
"""Packets of a batch that are looked at together: those for which there is no room are looked at again."""
FIRST_REQUEST_ID = 1 << 63
"""Transaction IDs that `request` draws: the upper half of the 64 bits."""


class Channel:
    """See the module. Made by `VmbusClient.open`, and by `serve_devices` for a device.

    Errors of all waits: `ChannelClosed` once the channel has ended, `RingCorrupt` when the other end has spoilt a ring (which
    ends the channel, too).
    """

    __slots__ = (
        "_completions",
        "_has_rings",
        "_is_sorting",
        "_next_id",
        "_packets",
        "_reading",
        "_sending",
        "_side",
        "channel_id",
        "doorbell",
        "incoming",
        "memory",
        "outgoing",
        "trace",
        "turns",
    )

    def __init__(
        self,
        channel_id: int,
        memory: GuestMemory,
        rings: tuple[RingMemory, RingMemory],
        doorbell: Doorbell,
        turns: Turns,
        *,
        is_host: bool,
        trace: Trace | None = None,
    ) -> None:
        """`rings`: guest to host, host to guest."""
        upstream, downstream = rings
        self.channel_id = channel_id
        self.memory = memory
        self.doorbell = doorbell
        self.trace = trace
        self.turns = turns
        """Where tasks wait that use this channel."""
        self.incoming = IncomingRing(upstream if is_host else downstream, strict=is_host)
        self.outgoing = OutgoingRing(downstream if is_host else upstream)
        self._side = "host" if is_host else "guest"
        self._packets: list[Packet] = []
        """Read, and not yet taken by `receive`."""
        self._completions: dict[int, Packet | None] = {}
        """By transaction ID, for `request`: None while it waits."""
        self._is_sorting = False
        """A request was given up: its completion may come yet, and is for nobody."""
        self._next_id = FIRST_REQUEST_ID
        self._reading = 0
        """Tasks that wait for packets; the interrupt mask is theirs."""
        self._sending = 0
        """Tasks that wait for room; the pending send size is theirs."""
        self._has_rings = True

    async def signal(self) -> None:
        """Tell the other end to look at both rings. Nothing once the channel has ended."""
        raise NotImplementedError

    def initialize(self) -> None:
        """Set up both rings as an end does that opens the channel."""
        self.incoming.initialize()
        self.outgoing.initialize()

    # in

    async def receive(self) -> Packet:
        """The next packet that no `request` waits for."""
        while not self._packets:
            await self._read(READ_AHEAD)
        packet = self._packets.pop(0)
        self._taken(1)
        return packet

    async def receive_batch(self) -> Sequence[Packet]:
        """All packets that are there, at least one. The cheapest way to read: the ring is looked at once."""
        while not self._packets:
            await self._read(None)
        batch, self._packets = self._packets, []
        self._taken(len(batch))
        return batch

    def give_back(self, packets: Sequence[Packet]) -> None:
        """These were taken and not used: they come again, before all others."""
        self._packets[:0] = packets
        self.doorbell.ring()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Packet:
        try:
            return await self.receive()
        except ChannelClosed:
            raise StopAsyncIteration from None

    # out

    async def send(self, payload: bytes, transaction_id: int = 0, *, completion: bool = False) -> None:
        """Send one packet, waiting for room. `MessageTooLarge` when it can never fit."""
        flags = COMPLETION_REQUESTED if completion else 0
        await self._send(self.outgoing.try_put, footprint(len(payload)), payload, transaction_id, flags)

    async def send_batch(self, payloads: Sequence[bytes]) -> None:
        """Send packets, up to 1024 at once as there is room: one store and at most one signal for each such run.

        `MessageTooLarge` as in `send`; those before the one that can never fit may have been sent.
        """
        put_many = self.outgoing.put_many
        await self._send_run(
            len(payloads),
            lambda sent: put_many(payloads[sent : sent + MOST_AT_ONCE]),
            lambda sent: footprint(len(payloads[sent])),
        )

    async def send_packets(self, packets: Sequence[bytes]) -> None:
        """Send what the `pack_` functions made, without footers, as `send_batch` does."""
        await self._send_run(
            len(packets),
            lambda sent: self._stage_packets(packets, sent),
            lambda sent: len(packets[sent]) + FOOTER_SIZE,
        )

    async def complete(self, packet: Packet, payload: bytes = b"") -> None:
        """Answer a packet that asked for it; nothing happens for one that did not."""
        if packet.flags & COMPLETION_REQUESTED:
            total = footprint(len(payload))
            await self._send(self.outgoing.try_put, total, payload, packet.transaction_id, 0, PacketType.COMPLETION)

    async def complete_batch(self, answers: Sequence[tuple[Packet, bytes]]) -> None:
        """Answer packets that asked for it, in this order and as `send_batch` sends; those that did not are passed over."""
        asked = [answer for answer in answers if answer[0].flags & COMPLETION_REQUESTED]
        ids = [packet.transaction_id for packet, _ in asked]
        payloads = [payload for _, payload in asked]
        put_many = self.outgoing.put_many
        await self._send_run(
            len(asked),
            lambda sent: put_many(
                payloads[sent : sent + MOST_AT_ONCE], ids[sent : sent + MOST_AT_ONCE], 0, PacketType.COMPLETION
            ),
            lambda sent: footprint(len(payloads[sent])),
        )

    async def request(self, payload: bytes, ranges: Iterable[GpaRange] = ()) -> Packet:
        """Send a packet, with guest memory where `ranges` are given, and wait for its completion, matched by transaction ID.

        Others may send, request and receive meanwhile; packets that are no completion wait for `receive`. The completion
        of a request that was cancelled is dropped.
        """
        transaction_id = self._new_id()
        ranges = tuple(ranges)
        self._completions[transaction_id] = None
        try:
            if ranges:
                await self.send_gpa_direct(ranges, payload, transaction_id)
            else:
                await self.send(payload, transaction_id, completion=True)
            while (completion := self._completions[transaction_id]) is None:
                await self._read(max(MAX_SET_APART - len(self._packets), 0))
        except BaseException:
            self._is_sorting = True
            raise
        finally:
            del self._completions[transaction_id]
        return completion

    async def send_gpa_direct(
        self, ranges: Iterable[GpaRange], payload: bytes, transaction_id: int, *, completion: bool = True
    ) -> None:
        """Send a packet whose data lies in guest memory. A driver does; hosts do not."""
        await self.send_packet(pack_gpa_direct(ranges, payload, transaction_id, completion))

    async def send_transfer_pages(
        self, set_id: int, ranges: Iterable[TransferRange], payload: bytes, transaction_id: int
    ) -> None:
        """Send a packet whose data lies in a buffer that both ends know. A device does; drivers do not."""
        await self.send_packet(pack_transfer_pages(set_id, ranges, payload, transaction_id, True))

    async def send_packet(self, packet: bytes) -> None:
        """Send what one of the `pack_` functions made, without its footer."""
        await self._send(self.outgoing.try_put_packet, len(packet) + FOOTER_SIZE, packet)

    # guest memory that packets name

    def read_ranges(self, ranges: Iterable[GpaRange], most: int = MOST_RANGE_BYTES) -> bytes:
        """What lies in these ranges, at most so many bytes in all.

        `ProtocolError` for more, and for pages outside guest memory: a guest has named them, the same one a thousand
        times if it likes.
        """
        return read_ranges(self.memory, ranges, most)

    def write_ranges(self, ranges: Iterable[GpaRange], data: bytes) -> None:
        """Store `data` into these ranges, which it need not fill.

        `ProtocolError` as in `read_ranges`, and when it does not fit; then nothing is stored.
        """
        write_ranges(self.memory, ranges, data)

    # signals and the end

    @property
    def peer_waits(self) -> bool:
        """The rings say that the other end waits for a signal: it may have missed one. `RingCorrupt`."""
        return self.outgoing.reader_needs_signal or self.incoming.writer_needs_signal

    def end(self, reason: str) -> None:
        """The channel has ended: whoever waits, and whoever sends, gets `ChannelClosed` with this sentence.

        What the other end had sent before may still be received.
        """
        self.doorbell.close(reason)

    async def take_in(self) -> None:
        """Take what is in the ring now, for `receive` to hand out also once the rings are gone. `RingCorrupt`."""
        if self._has_rings:
            await self._fill(None)

    def let_go(self, reason: str) -> None:
        """End, and never look at the rings again: they are corrupt, or their memory will be used for something else."""
        self.end(reason)
        self._has_rings = False

    # within

    async def _read(self, limit: int | None) -> None:
        """Read what is there, at most `limit` packets, or wait once: always where `limit` is 0.

        Who waits has cleared the mask and found nothing, in one step. So the first packet that comes brings a signal,
        which wakes everybody: whoever reads it then, all the others look again, and find what was theirs.
        """
        doorbell = self.doorbell
        if limit != 0 and self._has_rings and await self._fill(limit):
            return
        doorbell.check()
        self._reading += 1
        try:
            if limit == 0:
                await doorbell.next_ring()  # until some are taken
            elif not self.incoming.unmask():
                await doorbell.next_ring()
                if self._side == "host" and doorbell.ended is None:
                    self.incoming.check_unmasked()
        except RingCorrupt as error:
            self.let_go(str(error))
            raise
        finally:
            self._reading -= 1
            if not self._reading and doorbell.ended is None:
                self.incoming.mask()

    async def _fill(self, limit: int | None) -> bool:
        """Take what is in the ring. True when there was something."""
        try:
            packets = self.incoming.read_batch(limit)
        except RingCorrupt as error:
            self.let_go(str(error))
            raise
        if not packets:
            return False
        before = self.incoming.indices[1] if self.trace is not None else 0
        must_signal = self.incoming.commit()
        if self.trace is not None:
            byte_count = (self.incoming.indices[1] - before) % self.incoming.size
            self._tell("read", len(packets), byte_count, self.incoming, must_signal)
        if self._completions or self._is_sorting:
            self._sort(packets)
        else:
            self._packets += packets
        if must_signal:
            await self._signal()
        return True

    def _sort(self, packets: list[Packet]) -> None:
        """Completions go to the requests that wait for them."""
        for packet in packets:
            number = packet.transaction_id
            if packet.packet_type is not PacketType.COMPLETION or not FIRST_REQUEST_ID <= number < self._next_id:
                self._packets.append(packet)
            elif number in self._completions:
                self._completions[number] = packet

    def _taken(self, count: int) -> None:
        """So many packets were taken. Requests that may read no more until then go on."""
        if self._reading and len(self._packets) < MAX_SET_APART <= len(self._packets) + count:
            self.doorbell.ring()

    async def _send(self, put: Callable[..., bool], total: int, *packet: object) -> None:
        """Stage one packet, which takes `total` bytes of the ring, waiting for room, and hand it over."""
        self.doorbell.check()
        try:
            while not put(*packet):
                await self._wait_for_room(total)
                self.doorbell.check()
        except RingCorrupt as error:
            self.let_go(str(error))
            raise
        except ValueError:
            await self._publish(0)
            raise
        await self._publish(1)

    async def _send_run(self, count: int, stage: Callable[[int], int], total_of: Callable[[int], int]) -> None:
        """Send `count` packets. `stage` stages those from a number on that fit, and says how many; `total_of` one takes
        so many bytes of the ring."""
        self.doorbell.check()
        sent = 0
        try:
            while sent < count:
                staged = stage(sent)
                if staged:
                    sent += staged
                    await self._publish(staged)
                else:
                    await self._wait_for_room(total_of(sent))
                    self.doorbell.check()
        except RingCorrupt as error:
            self.let_go(str(error))
            raise
        except (MessageTooLarge, ValueError):
            await self._publish(self.outgoing.staged)
            raise

    def _stage_packets(self, packets: Sequence[bytes], start: int) -> int:
        put = self.outgoing.try_put_packet
        for index in range(start, len(packets)):
            if not put(packets[index]):
                return index - start
        return len(packets) - start

    async def _wait_for_room(self, total: int) -> None:
        doorbell = self.doorbell
        self._sending += 1
        try:
            if not self.outgoing.request_room(total):
                await doorbell.next_ring()
        finally:
            self._sending -= 1
            if not self._sending and doorbell.ended is None:
                self.outgoing.withdraw_request()

    async def _publish(self, count: int) -> None:
        """Hand over the packets that are staged: so many."""
        before = self.outgoing.indices[0] if self.trace is not None else 0
        try:
            must_signal = self.outgoing.publish()
        except RingCorrupt as error:
            self.let_go(str(error))
            raise
        if self._sending:
            self.doorbell.ring()  # another sender's request for room went with this one's
        if self.trace is not None and count:
            byte_count = (self.outgoing.indices[0] - before) % self.outgoing.size
            self._tell("write", count, byte_count, self.outgoing, must_signal)
        if must_signal:
            await self._signal()

    async def _signal(self) -> None:
        """Signal the other end, which may wait for nothing else: also when the task is cancelled on the way."""
        try:
            await self.signal()
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await self.signal()
            raise

    def _new_id(self) -> int:
        while self._next_id in self._completions:
            self._next_id += 1
        transaction_id, self._next_id = self._next_id, self._next_id + 1
        if self._next_id >> 64:
            self._next_id = FIRST_REQUEST_ID
        return transaction_id

    def _tell(
        self, action: str, packets: int, byte_count: int, ring: IncomingRing | OutgoingRing, signalled: bool
    ) -> None:
        assert self.trace is not None
        write_index, read_index = ring.indices
        event = self.trace.emit(
            Ring,
            side=self._side,
            channel_id=self.channel_id,
            action=action,
            packets=packets,
            byte_count=byte_count,
            write_index=write_index,
            read_index=read_index,
            signalled=signalled,
        )
        self.trace.work_on((event, self.trace.context()[1]))
