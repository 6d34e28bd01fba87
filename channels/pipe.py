"""Pipes: streams that anyio knows, over an open channel whose packets have pipe headers (vmbus.md 4.7).

    async with BytePipe(channel, close=lambda: client.close(channel)) as pipe:
        await pipe.send(b"hello")
        await pipe.send_eof()

`MessagePipe` keeps messages apart (pipe type 4), `BytePipe` does not (pipe type 0). Each packet is in-band and carries an
8-byte header, u32 type and u32 length; a message is one packet, a byte pipe's zero-length packet says that no more will
come. Nothing is queued on the way out: a full ring makes the sender wait. On the way in, a receiver that finds nothing takes
all that is in the ring, and the ring fills again only as far as it goes: a slow reader stops the other end.

Errors are anyio's. `ClosedResourceError`: this end was closed, also while it waited. `BrokenResourceError`: the channel has
ended, or the other end broke a rule of the pipe, which ends the channel; its cause is the `ChannelClosed` or
`ProtocolError`. `EndOfStream`: the other end has said that no more will come. `BusyResourceError`: another task sends, or
receives. `PartitionClosed` comes as it is.

Will not: rewrite the header of a packet that was read in part, as OpenVMM does to leave the rest in the ring (what is left
is kept here); it reads such packets of others.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from anyio import (
    BrokenResourceError,
    CancelScope,
    ClosedResourceError,
    EndOfStream,
    ResourceGuard,
    TypedAttributeSet,
    typed_attribute,
)
from anyio.abc import ByteStream, ObjectStream
from anyio.lowlevel import checkpoint_if_cancelled

from broker.clock import TICKS_PER_SECOND
from broker.errors import ChannelClosed, PeerError, ProtocolError

from .channel import Channel
from .protocol.packet import PIPE_HEADER_SIZE, Packet, PacketType, PipePacketType, pack_pipes, parse_pipe
from .ring import footprint

MAX_DATA = 16384
"""Bytes of data in one packet."""
LINGER = 8 * TICKS_PER_SECOND
"""How long a byte pipe that closes waits for the other end to say that it is done, too (Linux)."""
QUANTUM = 32
"""Sends, or receives, that did not wait, before others get their turn."""

_OVERHEAD = footprint(0) + PIPE_HEADER_SIZE


class PipeAttribute(TypedAttributeSet):
    """Typed attributes of pipes."""

    channel: Channel = typed_attribute()
    """The channel underneath."""
    channel_id: int = typed_attribute()
    """Its ID."""


class _Pipe(ABC):
    """What both kinds share: guards, the errors' words, the end."""

    def __init__(self, channel: Channel, *, close: Callable[[], Awaitable[None]] | None = None) -> None:
        """`close` is awaited once this end has closed: a driver gives the channel back. It is cancelled after `LINGER`, and
        when `aclose` is: then it has to have begun, as `VmbusClient.close` has, before it waits for the first time.
        """
        self.channel = channel
        self._close = close
        self._is_closed = False
        self._is_sending = False
        self._receiving: CancelScope | None = None
        """Of the task that waits for packets, for `aclose` to call it back."""
        self._sends = ResourceGuard("sending to")
        self._receives = ResourceGuard("receiving from")
        self._error: ProtocolError | None = None
        """What the other end did to the pipe; what came before is received first."""
        self._quick = 0

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """See `PipeAttribute`."""
        return {PipeAttribute.channel: lambda: self.channel, PipeAttribute.channel_id: lambda: self.channel.channel_id}

    async def aclose(self) -> None:
        """Close this end; idempotent. Whoever waits on it gets `ClosedResourceError`.

        A byte pipe says that no more will come and waits until the other end has said the same, at most `LINGER`, so that
        the other end can take what is on its way; what still comes from there is dropped. Not so while a task sends, or
        when this is cancelled: then the channel ends at once.
        """
        if self._is_closed:
            await checkpoint_if_cancelled()
            return
        self._shut()
        await self._wind_up()

    def _shut(self) -> None:
        """From now on nobody sends and receives here."""
        self._is_closed = True
        if self._receiving is not None:
            self._receiving.cancel()

    async def _wind_up(self) -> None:
        """What is left to do once this end is shut, however it goes."""
        try:
            if not self._is_sending:
                await self._say_goodbye()
        finally:
            self.channel.end("this end of the pipe was closed")
            if self._close is not None:
                await self._linger(self._close)

    async def _say_goodbye(self) -> None:
        with suppress(ClosedResourceError, BrokenResourceError, ChannelClosed, PeerError):
            await self._linger(self._finish)  # the other end may not have waited for this

    async def _linger(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do this, and give up after `LINGER`."""
        turns, key = self.channel.turns, ("pipe-linger", self.channel.channel_id)
        with CancelScope() as scope:
            timer = turns.schedule(turns.clock.now() + LINGER, key, scope.cancel)
            try:
                await work()
            finally:
                timer.cancel()
        if scope.cancelled_caught:
            await self._take_turn(key)

    async def _take_turn(self, key: tuple[str, int]) -> None:
        """Whoever was called back from a wait goes on in its turn."""
        with CancelScope(shield=True):
            await self.channel.turns.expect(key)()

    @abstractmethod
    async def _finish(self) -> None:
        """Tell the other end, and wait for it; cancelled when that takes too long."""

    @abstractmethod
    def _check(self, kind: PipePacketType, data: bytes) -> None:
        """`ProtocolError` for what may not come now."""

    async def _begin(self) -> None:
        """Before each send and receive: a cancellation comes through, and others get their turn now and then."""
        if self._is_closed:
            raise ClosedResourceError
        self._quick += 1
        if self._quick < QUANTUM:
            await checkpoint_if_cancelled()
        else:
            self._quick = 0
            await self.channel.turns.pause()
            if self._is_closed:  # meanwhile
                raise ClosedResourceError

    async def _send(self, payloads: Sequence[bytes]) -> None:
        self._is_sending = True
        try:
            await self.channel.send_batch(payloads)
        except (ChannelClosed, PeerError) as error:
            raise self._broken() from error
        finally:
            self._is_sending = False

    async def _receive(self) -> list[bytes]:
        """What all packets carry that are there, at least one."""
        if self._error is not None:
            raise BrokenResourceError from self._error
        packets: Sequence[Packet] = ()
        with CancelScope() as scope:
            self._receiving = scope
            try:
                packets = await self.channel.receive_batch()
            except (ChannelClosed, ProtocolError) as error:
                self._error = error if isinstance(error, ProtocolError) else None
                raise self._broken() from error
            finally:
                self._receiving = None
        if self._is_closed:
            if scope.cancelled_caught:
                await self._take_turn(("pipe-closed", self.channel.channel_id))
            else:
                self.channel.give_back(packets)  # the end may be among them, and `aclose` waits for that
            raise ClosedResourceError
        return self._unpack(packets)

    def _unpack(self, packets: Sequence[Packet]) -> list[bytes]:
        found = []
        header, size, end = b"", -1, 0  # of the last packet of data; none has this size
        try:
            for packet in packets:
                payload = packet.payload
                if packet.packet_type is not PacketType.IN_BAND:
                    raise ProtocolError("pipe", 0, "a packet of plain data", f"one of type {packet.packet_type:#x}")
                if len(payload) == size and payload[:PIPE_HEADER_SIZE] == header:  # one more of the same kind
                    found.append(payload[PIPE_HEADER_SIZE:end])
                    continue
                kind, data = parse_pipe(payload)
                self._check(kind, data)
                found.append(data)
                size = -1  # nothing follows the end unchecked
                if kind is PipePacketType.DATA and data:
                    header, size, end = payload[:PIPE_HEADER_SIZE], len(payload), PIPE_HEADER_SIZE + len(data)
        except ProtocolError as error:
            self._error = error
            self.channel.let_go(str(error))
            if not found:
                raise BrokenResourceError from error
        return found

    def _broken(self) -> ClosedResourceError | BrokenResourceError:
        return ClosedResourceError() if self._is_closed else BrokenResourceError()


class MessagePipe(_Pipe, ObjectStream[bytes]):
    """Messages of 0 to `max_size` bytes, each as it was sent. There is no half-close, `send_eof` is not to be had.

    So closing waits for nobody: what the other end has not taken by then is lost.
    """

    def __init__(self, channel: Channel, *, close: Callable[[], Awaitable[None]] | None = None) -> None:
        super().__init__(channel, close=close)
        self._messages: deque[bytes] = deque()

    @property
    def max_size(self) -> int:
        """Bytes of the largest message that this end may send."""
        return min(MAX_DATA, self.channel.outgoing.largest_packet - _OVERHEAD)

    async def send(self, item: bytes) -> None:
        """Send one message, waiting for room. `ValueError` for more than `max_size` bytes."""
        await self.send_batch((item,))

    async def send_batch(self, items: Sequence[bytes]) -> None:
        """Send messages, with one signal for as many as there is room for. `ValueError` for a large one; none is sent then."""
        largest = max(map(len, items), default=0)
        if largest > self.max_size:
            raise ValueError(f"a message has at most {self.max_size} bytes in this pipe, not {largest}")
        with self._sends:
            await self._begin()
            await self._send(pack_pipes(items))

    async def receive(self) -> bytes:
        """The next message."""
        with self._receives:
            await self._begin()
            if not self._messages:
                self._messages.extend(await self._receive())
            return self._messages.popleft()

    async def receive_batch(self) -> Sequence[bytes]:
        """All messages that are there, at least one."""
        with self._receives:
            await self._begin()
            if not self._messages:
                return await self._receive()
            found = list(self._messages)
            self._messages.clear()
            return found

    async def send_eof(self) -> None:
        """`NotImplementedError`: a message pipe has no way to say so."""
        raise NotImplementedError("a message pipe cannot be closed for one direction alone")

    async def _finish(self) -> None:
        await checkpoint_if_cancelled()

    def _check(self, kind: PipePacketType, data: bytes) -> None:
        if kind is not PipePacketType.DATA:
            raise ProtocolError("message pipe", 0, "a packet of type 1", f"type {kind:d}")
        if len(data) > MAX_DATA:
            raise ProtocolError("message pipe", 4, f"up to {MAX_DATA} bytes", f"{len(data)}, too large")


class BytePipe(_Pipe, ByteStream):
    """Bytes in order, with half-close. `send` cuts them into packets, none of which fills more than half of the ring."""

    def __init__(self, channel: Channel, *, close: Callable[[], Awaitable[None]] | None = None) -> None:
        super().__init__(channel, close=close)
        room = channel.outgoing.largest_packet
        packets = max(2, -(-room // (MAX_DATA + _OVERHEAD)))
        self._chunk = (room // packets - _OVERHEAD) & ~7
        """Bytes of data in a packet: two or more packets fill the ring, and leave no room unused."""
        self._unread: bytes | memoryview = b""
        self._has_sent_eof = False
        self._has_eof = False

    async def send(self, item: bytes) -> None:
        """Send all of it, waiting for room. What was sent when this is cancelled stays sent."""
        with self._sends:
            await self._begin()
            if self._has_sent_eof:
                raise ClosedResourceError
            view, chunk = memoryview(item), self._chunk
            await self._send(pack_pipes([view[start : start + chunk] for start in range(0, len(view), chunk)]))

    async def send_eof(self) -> None:
        """Say that no more will come; idempotent."""
        with self._sends:
            await self._begin()
            if not self._has_sent_eof:
                await self._send_eof()

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """What is there, at least one byte and at most `max_bytes`."""
        if max_bytes < 1:
            raise ValueError(f"max_bytes is at least 1, not {max_bytes}")
        with self._receives:
            await self._begin()
            unread = self._unread
            while not unread:
                if self._has_eof:
                    raise EndOfStream from ChannelClosed("the other end of the pipe has said that no more will come")
                unread = b"".join(await self._receive())
                if len(unread) > max_bytes:
                    unread = memoryview(unread)  # so that what is left is not copied each time
            self._unread = unread[max_bytes:]
            return bytes(unread[:max_bytes])

    async def _finish(self) -> None:
        if not self._has_sent_eof:
            await self._send_eof()
        while not self._has_eof and self._error is None:
            self._unpack(await self.channel.receive_batch())

    async def _send_eof(self) -> None:
        place = self.channel.outgoing.indices[0]
        try:
            await self._send(pack_pipes((b"",)))
        finally:  # a send that is cancelled while it signals has sent it, too
            self._has_sent_eof = self.channel.outgoing.indices[0] != place

    def _check(self, kind: PipePacketType, data: bytes) -> None:
        if kind not in (PipePacketType.DATA, PipePacketType.PARTIAL):
            raise ProtocolError("byte pipe", 0, "a packet of type 1 or 2", f"type {kind:d}")
        if self._has_eof:
            raise ProtocolError("byte pipe", 0, "nothing after a packet without data", f"{len(data)} bytes")
        self._has_eof = not data
