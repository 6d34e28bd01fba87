"""`RequestQueue`: the packets of one storage channel that are under way, and a task that takes their answers.

It will: match answers by transaction ID, hand the buffer of a request that was given up back once the host has answered it,
and take notices of the host. It will not: send more than the ring has room for (`is_full` says so), or go on with a host that
answers what nobody asked: then the channel ends, and every request with it.
"""

from __future__ import annotations

from collections.abc import Callable

from broker.access import Wakeup
from broker.errors import BrokerError, ChannelClosed, PeerError, ProtocolError
from broker.hvdef import PAGE_SIZE

from ...client import GuestChannel
from ...protocol.packet import Packet, PacketType, pack_gpa_direct, pack_in_band
from ...protocol.storage import MAX_TRANSFER, Operation, VstorPacket
from ...protocol.storage.vstor import PACKET_SIZE
from ...ring import footprint
from .buffers import Buffer, BufferPool

LARGEST = footprint(PACKET_SIZE) + 16 + 8 * (MAX_TRANSFER // PAGE_SIZE)
"""Bytes of the ring that a request takes at most: extended header, one range, its page numbers."""


class Request:
    """One packet under way."""

    __slots__ = ("answer", "buffer", "error", "is_given_up", "size", "wakeup")

    def __init__(self, wakeup: Wakeup, buffer: Buffer | None, size: int) -> None:
        self.wakeup = wakeup
        self.buffer = buffer
        self.size = size
        """Bytes of the buffer that the host may use."""
        self.answer: VstorPacket | None = None
        self.error: BrokerError | None = None
        self.is_given_up = False

    async def wait(self) -> VstorPacket:
        """The answer. What ended the channel before it came is raised."""
        while self.answer is None:
            if self.error is not None:
                raise self.error
            await self.wakeup.wait()
        return self.answer


class RequestQueue:
    """See the module. `answered` is called after each answer, `notice` with each notice of the host."""

    def __init__(
        self,
        channel: GuestChannel,
        pool: BufferPool,
        answered: Callable[[], None],
        notice: Callable[[VstorPacket], None],
    ) -> None:
        self.channel = channel
        self.depth = ((channel.upstream_pages - 1) * PAGE_SIZE - 8) // LARGEST
        """Requests that may be under way."""
        self._pool = pool
        self._answered = answered
        self._notice = notice
        self._under_way: dict[int, Request] = {}
        self._next_id = 1

    @property
    def load(self) -> int:
        """Requests under way."""
        return len(self._under_way)

    @property
    def is_full(self) -> bool:
        """No more can be sent before an answer has come."""
        return len(self._under_way) >= self.depth

    async def send(self, packet: bytes, buffer: Buffer | None = None, size: int = 0) -> Request:
        """Send a packet, with so many bytes of a buffer. When this raises, the buffer is not the caller's any more."""
        number, self._next_id = self._next_id, self._next_id + 1
        request = Request(self.channel.turns.wakeup(("storage-request", number)), buffer, size)
        self._under_way[number] = request
        if buffer is None:
            whole = pack_in_band(packet, number, True)
        else:
            whole = pack_gpa_direct((buffer.range(size),), packet, number, True)
        try:
            await self.channel.send_packet(whole)
        except BaseException:
            request.is_given_up = True
            raise
        return request

    def give_up(self, request: Request) -> None:
        """Nobody waits for this one any more: its buffer goes back now, or once the host has answered."""
        request.is_given_up = True
        if request.answer is not None:
            self._recover(request)

    async def run(self) -> BrokerError:
        """Take answers and notices until the channel ends: why it did."""
        try:
            while True:
                for packet in await self.channel.receive_batch():
                    self._take(packet)
        except PeerError as error:
            self.channel.end(str(error))
            return error
        except ChannelClosed as error:
            return error

    def end(self, error: BrokerError) -> None:
        """Whoever waits gets this error. The buffers stay taken: the host may still use them."""
        for request in self._under_way.values():
            request.error = error
            request.wakeup.notify()

    def recover_all(self) -> None:
        """The host has let go of the channel: no buffer is in use any more."""
        for request in self._under_way.values():
            self._recover(request)
        self._under_way.clear()

    def _take(self, packet: Packet) -> None:
        if packet.packet_type is not PacketType.COMPLETION:
            self._notice(VstorPacket.unpack(packet.payload))
            return
        request = self._under_way.get(packet.transaction_id)
        if request is None:
            raise ProtocolError("storage answer", 8, "the transaction ID of a request", f"{packet.transaction_id:#x}")
        answer = VstorPacket.unpack(packet.payload)
        if answer.operation != Operation.COMPLETE_IO:
            raise ProtocolError("storage answer", 0, f"operation {Operation.COMPLETE_IO}", f"{answer.operation}")
        del self._under_way[packet.transaction_id]
        request.answer = answer
        self._answered()
        if request.is_given_up:
            self._recover(request)
        else:
            request.wakeup.notify()

    def _recover(self, request: Request) -> None:
        buffer, request.buffer = request.buffer, None
        if buffer is not None:
            self._pool.give(buffer)
