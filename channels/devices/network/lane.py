"""One open channel of a network adapter, primary or sub-channel: three tasks, and what waits between them.

The reader takes packets from the ring and never waits for frames to go anywhere, so completions of the guest are always
noticed. The forwarder hands the guest's frames to the back end and answers their packets. The third writes frames into
suballocations of the receive buffer and sends them. Each works in batches: packets of a burst share one store and one
signal.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Awaitable, Callable

import anyio
import anyio.abc

from broker.errors import OfferRefused, ProtocolError

from ...protocol.network import nvsp
from ...protocol.network.frames import Frame, pack_frame, parse_frames
from ...protocol.network.nvsp import (
    NO_SECTION,
    RNDIS_PACKET,
    RNDIS_PACKET_COMPLETE,
    ChannelType,
    NvspStatus,
    NvspType,
    pack_receive,
    parse_from_guest,
)
from ...protocol.packet import Packet, PacketType, pack_in_band
from ..device import DeviceChannel
from .buffers import ReceiveBuffer, SendBuffer
from .session import Session

MAX_PENDING = 4096
"""Packets of the guest that wait to be forwarded; further ones are answered with status 6 and dropped."""
MAX_PACKET = 4096
"""Bytes of ranges and payload of a packet; 34 pieces of memory, which a guest is told it may name, take a quarter of it."""
MAX_MESSAGE = 1 << 17
"""Bytes of the RNDIS messages of one packet."""
FORWARDED = 64
"""Packets whose data is in memory at once."""
MAX_RANGES = 32
"""Frames in one packet to the guest."""
BURST = 8 * MAX_RANGES
"""Frames that are sent to the guest at once."""


class Lane:
    """See the module."""

    def __init__(self, session: Session, channel: DeviceChannel) -> None:
        self.frames: deque[Frame] = deque()
        """For the guest."""
        self.index = channel.subchannel_index
        self._session = session
        self._channel = channel
        self._counters = session.adapter.counters
        self._to_send = channel.turns.wakeup(("network-deliver", channel.channel_id))
        self._to_forward = channel.turns.wakeup(("network-forward", channel.channel_id))
        self._pending: deque[tuple[Packet, SendBuffer | None, int, int]] = deque()
        """Packet, the buffer that its section is in, section, bytes in it."""
        self._sent: dict[int, tuple[ReceiveBuffer, tuple[int, ...]]] = {}
        """Suballocations that the guest has, by transaction ID."""
        self._next_id = 1
        self._group: anyio.abc.TaskGroup
        self._backend_runs = False

    def wake(self) -> None:
        """There is something to send, or room for it."""
        self._to_send.notify()

    async def run(self) -> None:
        """Serve the channel until it ends."""
        self._session.add_lane(self)
        try:
            async with anyio.create_task_group() as self._group:
                self._start("network-deliver", self._deliver)
                self._start("network-forward", self._forward)
                await self._read()
        finally:
            self._session.remove_lane(self)
            self._counters.dropped_closed += len(self.frames)
            self.frames.clear()
            for buffer, numbers in self._sent.values():
                buffer.give_back(numbers)
            self._sent.clear()
            self._session.wake()
            self._session.adapter.tell_room()

    def drop_frames(self) -> None:
        """Nothing of what waits is to be delivered any more."""
        self._counters.filtered += len(self.frames)
        self.frames.clear()

    def _start(self, kind: str, work: Callable[[], Awaitable[None]]) -> None:
        begin = self._channel.turns.expect((kind, self._channel.channel_id))

        async def task() -> None:
            try:
                await begin()
                await work()
            finally:
                self._channel.turns.leave()

        self._group.start_soon(task)

    # the reader

    async def _read(self) -> None:
        pending, unpack = self._pending, RNDIS_PACKET.unpack_from
        while True:
            refused: list[tuple[Packet, bytes]] = []
            was_completed = False
            for packet in await self._channel.receive_batch():
                kind = packet.packet_type
                if kind is PacketType.COMPLETION:
                    self._complete(packet)
                    was_completed = True
                    continue
                if kind is PacketType.TRANSFER_PAGES:
                    raise ProtocolError("packet", 0, "a packet that guests send", "transfer pages")
                payload = packet.payload
                if len(payload) >= RNDIS_PACKET.size:
                    number, channel_type, section, size = unpack(payload)
                    if number == NvspType.RNDIS_PACKET and channel_type == ChannelType.DATA:
                        self._session.check_ready("RNDIS_PACKET")
                        if (total := len(payload) + len(packet.header)) > MAX_PACKET:
                            raise ProtocolError("RNDIS_PACKET", 0, f"at most {MAX_PACKET} bytes", f"{total}")
                        if len(pending) < MAX_PENDING:
                            pending.append((packet, self._buffer_of(section), section, size))
                        else:
                            refused.append((packet, self._status(NvspStatus.BUSY)))
                        continue
                await self._control(packet)
            if was_completed:
                self._session.wake()
            if pending:
                self._to_forward.notify()
            if refused:
                self._counters.dropped_busy += len(refused)
                await self._channel.complete_batch(refused)

    def _complete(self, packet: Packet) -> None:
        """The guest has done with frames that it was sent."""
        payload = packet.payload
        if len(payload) < 8 or RNDIS_PACKET_COMPLETE.unpack_from(payload)[0] != NvspType.RNDIS_PACKET_COMPLETE:
            raise ProtocolError("completion", 0, "RNDIS_PACKET_COMPLETE", f"{payload[:8].hex(' ')}")
        sent = self._sent.pop(packet.transaction_id, None)
        if sent is None:
            raise ProtocolError("completion", 8, "the ID of frames that were sent", f"{packet.transaction_id:#x}")
        buffer, numbers = sent
        buffer.give_back(numbers)

    async def _control(self, packet: Packet) -> None:
        """Anything but data, which the primary channel is for."""
        session, channel = self._session, self._channel
        message = parse_from_guest(packet.payload)
        if self.index:
            raise ProtocolError("NVSP message", 0, "data only on a sub-channel", message.TYPE.name)
        if isinstance(message, nvsp.RndisPacket):
            session.check_ready("RNDIS_PACKET")
            if message.channel_type != ChannelType.CONTROL:
                raise ProtocolError("RNDIS_PACKET", 4, "channel type 0 or 1", f"{message.channel_type}")
            section = message.section
            data = self._fetch(packet, self._buffer_of(section), section, message.section_bytes)
            status = session.answer_control(data)
            if not session.rndis.filter:
                session.drop_frames()
            await channel.complete(packet, self._status(status))
            if session.rndis.filter and not self._backend_runs:
                self._backend_runs = True
                self._start("network-backend", session.adapter.backend.run)
            self.wake()
        elif isinstance(message, nvsp.Subchannels):
            granted = session.grant_subchannels(message)
            await channel.complete(packet, granted.padded(session.version))
            with contextlib.suppress(OfferRefused):  # the server has no channel IDs left
                await channel.offer_subchannels(granted.count)
        else:
            await channel.complete(packet, session.answer(message))
            self.wake()

    # the forwarder

    async def _forward(self) -> None:
        pending, counters, adapter = self._pending, self._counters, self._session.adapter
        while True:
            while not pending:
                await self._to_forward.wait()
            frames: list[Frame] = []
            answers: list[tuple[Packet, bytes]] = []
            success, invalid = self._status(NvspStatus.SUCCESS), self._status(NvspStatus.INVALID_RNDIS)
            failure = self._status(NvspStatus.FAILURE)
            for _ in range(min(len(pending), FORWARDED)):
                packet, buffer, section, size = pending.popleft()
                if buffer is not None and not buffer.is_there:
                    counters.dropped_closed += 1
                    answers.append((packet, failure))
                    continue
                data = self._fetch(packet, buffer, section, size)
                try:
                    frames += parse_frames(data)
                    answers.append((packet, success))
                except ProtocolError:
                    counters.invalid += 1
                    answers.append((packet, invalid))
            if not adapter.link_up:
                counters.dropped_link_down += len(frames)
            elif frames:
                counters.from_guest += len(frames)
                await adapter.backend.send(frames)
            await self._channel.complete_batch(answers)

    def _buffer_of(self, section: int) -> SendBuffer | None:
        """The buffer that this section is in, now that its packet has come: it is read from later, also when revoked."""
        if section == NO_SECTION:
            return None
        buffer = self._session.send_buffer
        if buffer is None:
            raise ProtocolError("RNDIS_PACKET", 8, "no section without a send buffer", f"section {section}")
        return buffer

    def _fetch(self, packet: Packet, buffer: SendBuffer | None, section: int, size: int) -> bytes:
        """The RNDIS messages of a packet. `ProtocolError` for memory that there is not."""
        data = b"" if buffer is None else buffer.read(section, size)
        if packet.packet_type is PacketType.GPA_DIRECT:
            data += self._channel.read_ranges(packet.gpa_ranges(), MAX_MESSAGE - len(data))
        return data

    def _status(self, status: NvspStatus) -> bytes:
        return nvsp.RndisPacketComplete(status).padded(self._session.version)

    # frames for the guest

    async def _deliver(self) -> None:
        while True:
            packets = self._notices() if not self.index else []
            packets += self._packets()
            if packets:
                await self._channel.send_packets(packets)
            else:
                await self._to_send.wait()

    def _notices(self) -> list[bytes]:
        """What is no data: RNDIS answers, changes of the link, NVSP messages."""
        session = self._session
        packets = [pack_in_band(message.padded(session.version)) for message in session.notices]
        session.notices.clear()
        buffer = session.receive_buffer
        if buffer is None:
            return packets
        link = session.link_notice() if buffer.room(for_control=True) else None
        if link is not None:
            session.answers.append(link.pack())
        while session.answers and buffer.room(for_control=True):
            message = session.answers.popleft()
            number = buffer.take()
            at = number * buffer.section_size
            buffer.memory.write(at, message)
            packets.append(self._pack(buffer, [len(message), at], (number,), ChannelType.CONTROL))
        return packets

    def _packets(self) -> list[bytes]:
        """Packets with as many frames as there is room for, at most a burst."""
        frames, counters, session = self.frames, self._counters, self._session
        if not frames:
            return []
        buffer = session.receive_buffer
        if buffer is None:
            counters.dropped_closed += len(frames)
            frames.clear()
            session.adapter.tell_room()
            return []
        packets: list[bytes] = []
        ranges: list[int] = []
        numbers: list[int] = []
        section_size = buffer.section_size
        take, write = buffer.take, buffer.memory.write
        for _ in range(min(buffer.room(), BURST, len(frames))):
            data = pack_frame(frames.popleft())
            number = take()
            at = number * section_size
            write(at, data)
            ranges += (len(data), at)
            numbers.append(number)
            if len(numbers) == MAX_RANGES:
                packets.append(self._pack(buffer, ranges, tuple(numbers), ChannelType.DATA))
                ranges, numbers = [], []
        if numbers:
            packets.append(self._pack(buffer, ranges, tuple(numbers), ChannelType.DATA))
        if len(frames) <= session.adapter.queue_size // 2:
            session.adapter.tell_room()
        return packets

    def _pack(self, buffer: ReceiveBuffer, ranges: list[int], numbers: tuple[int, ...], kind: ChannelType) -> bytes:
        """A packet that lends these suballocations to the guest."""
        number, self._next_id = self._next_id, self._next_id + 1
        self._sent[number] = (buffer, numbers)
        if kind is ChannelType.DATA:
            self._counters.to_guest += len(numbers)
        payload = nvsp.RndisPacket(kind).padded(self._session.version)
        return pack_receive(buffer.buffer_id, ranges, payload, number)
