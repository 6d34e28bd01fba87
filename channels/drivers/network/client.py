"""`NetworkClient`: a guest's network adapter, as Linux's `hv_netvsc` drives it.

    async with NetworkClient.open(client) as nic:
        await nic.send(Frame(ethernet))
        for frame in await nic.receive_batch():
            ...

It will: negotiate, pack several small frames into one packet, wait while the host has not completed what was sent before,
and spread flows over sub-channels. It will not: compute checksums, or speak IP.

Errors of all waits: `ChannelClosed` once the adapter is gone, `ProtocolError` when the host has broken a rule; both stay.
Frames that came before may still be received.
"""

from __future__ import annotations

import contextlib
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Self
from uuid import UUID

import anyio
import anyio.abc

from broker.access import Wakeup
from broker.errors import BrokerError, ChannelClosed, ConnectionFailed, ProtocolError
from broker.hvdef import PAGE_SIZE

from ...client import VmbusClient
from ...client.gpadls import GuestGpadl
from ...client.opens import GuestChannel
from ...protocol.ids import NETWORK
from ...protocol.network import nvsp, rndis
from ...protocol.network.frames import ADDRESS_SIZE, ETHERNET_HEADER, USUAL_MTU, Frame, flow_hash
from ...protocol.network.nvsp import NvspMessage, NvspStatus, NvspVersion
from ...protocol.network.oids import USUAL_FILTER, Oid, PacketFilter, parse_rss_capabilities
from ...protocol.network.rndis import RndisMessage, RndisStatus
from ...protocol.packet import Packet
from .control import RndisControl
from .lane import GuestLane
from .negotiate import Agreement, ask, negotiate, pages_buffer, revoke
from .sender import FrameSender
from .slots import PageSlots, Sections

NEWEST_FIRST = tuple(sorted(NvspVersion, reverse=True))
RING_PAGES = (17, 17)
RECEIVE_PAGES = 512
SEND_PAGES = 256
LARGE_SLOTS = 64
"""Packets with data outside of the send buffer that may be on their way."""
_HEADROOM = 256
"""Bytes of a packet beside the frame."""
_U32 = struct.Struct("<I")


class NetworkClient:
    """See the module; made by `open`."""

    def __init__(
        self,
        client: VmbusClient,
        channel: GuestChannel,
        agreement: Agreement,
        group: anyio.abc.TaskGroup,
        own_pages: list[int],
    ) -> None:
        """`own_pages`: gets the pages that were allocated, for whoever frees them."""
        self._client = client
        self._agreement = agreement
        self._group = group
        self.turns = channel.turns
        """Where tasks that use this adapter wait."""
        self._lanes: dict[int, GuestLane] = {}
        self._pages = own_pages
        self._pages += client.pages.allocate(1)
        self._control = RndisControl(channel, self._pages[0], agreement.version, group)
        self._sender: FrameSender | None = None
        """None before the adapter has said how it takes frames."""
        self._arrived: deque[tuple[GuestLane, Packet, list[Frame]]] = deque()
        self._taken: deque[Frame] = deque()
        """Frames whose packets are completed already."""
        self._failure: BrokerError | None = None
        self._changed: Wakeup = channel.turns.wakeup(("network-client", channel.channel_id))
        """For frames, the link, the table."""
        self.address = b""
        """The adapter's MAC address, 6 bytes."""
        self.mtu = agreement.mtu
        """Bytes of the largest frame, without its header."""
        self.link_up = False
        self.link_speed = 0
        """Bits per second."""
        self.indirection_table: tuple[int, ...] = ()
        """The channel for each hash of a flow, as the host would like it; empty where it has not said so."""
        self.vf_serial: int | None = None
        """The serial number of the virtual function beside this adapter, None without one."""
        self.refused = 0
        """Packets that the host did not take."""

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        client: VmbusClient,
        instance_id: UUID | None = None,
        *,
        channels: int = 0,
        versions: Sequence[NvspVersion] = NEWEST_FIRST,
        mtu: int = USUAL_MTU,
        packet_filter: PacketFilter = USUAL_FILTER,
        ring_pages: tuple[int, int] = RING_PAGES,
        receive_pages: int = RECEIVE_PAGES,
        send_pages: int = SEND_PAGES,
    ) -> AsyncIterator[Self]:
        """Wait for the adapter (any, unless told which), open it, negotiate, and close it when the block ends.

        `channels`: sub-channels, at most; there are as many as the host grants. `packet_filter`: which frames come.
        `send_pages`: 0 for no send buffer. `ConnectionFailed` when host and guest find no version, and errors as in the
        module. When the block is cancelled, the channel stays open until the VMBus client ends.
        """
        offer = await client.wait_offer(NETWORK, instance_id)
        channel = await client.open(offer, ring_pages=ring_pages)
        errors: list[BaseException] = []
        gpadls: list[GuestGpadl] = []
        own_pages: list[int] = []
        try:
            agreement = await negotiate(client, channel, versions, mtu, receive_pages, send_pages, gpadls)
            async with anyio.create_task_group() as group:
                try:
                    nic = cls(client, channel, agreement, group, own_pages)
                    await nic._begin(channel, channels, packet_filter)
                    yield nic
                    await nic._end()
                except anyio.get_cancelled_exc_class():
                    raise
                except BaseException as error:  # not from within the group, which would wrap it
                    errors.append(error)
                group.cancel_scope.cancel()
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:
            errors.append(error)
        with contextlib.suppress(BrokerError):
            await client.close(channel)
            for gpadl in gpadls:
                await client.teardown_gpadl(gpadl)
        client.pages.free(own_pages)
        if errors:
            raise errors[0]

    # what there is

    @property
    def version(self) -> NvspVersion:
        """The version of NVSP that was agreed on."""
        return self._agreement.version

    @property
    def channel_count(self) -> int:
        """Open channels: the primary one and sub-channels."""
        return len(self._lanes)

    async def query(self, oid: int, information: bytes = b"") -> bytes | None:
        """The value of an OID, None where the adapter has none."""
        status, value = await self._control.query(oid, information)
        return value if status == RndisStatus.SUCCESS else None

    async def set(self, oid: int, information: bytes) -> int:
        """Set an OID: the RNDIS status."""
        return await self._control.set(oid, information)

    async def set_packet_filter(self, packet_filter: PacketFilter) -> None:
        """Say which frames are to come. `ProtocolError` when the adapter refuses."""
        status = await self.set(Oid.PACKET_FILTER, _U32.pack(packet_filter))
        if status != RndisStatus.SUCCESS:
            raise ProtocolError("SET_COMPLETE", 12, "status 0 for the packet filter", f"{status:#x}")

    async def keep_alive(self) -> None:
        """Ask whether the adapter is there, and wait for its answer."""
        await self._control.keep_alive()

    async def reset(self) -> None:
        """Let the adapter forget its packet filter and multicast list; no frames come until one is set."""
        await self._control.reset()

    async def wait_link(self, up: bool) -> None:
        """Wait until the link is up, or down."""
        await self._wait(lambda: self.link_up == up)

    async def wait_indirection_table(self) -> tuple[int, ...]:
        """Wait until the host has sent a table, which it does once all sub-channels are open."""
        await self._wait(lambda: bool(self.indirection_table))
        return self.indirection_table

    # frames

    async def send(self, frame: Frame) -> None:
        """Send one frame. See `send_batch`."""
        await self.send_batch((frame,))

    async def send_batch(self, frames: Sequence[Frame]) -> None:
        """Send frames, in order within each flow: as few packets, stores and signals as there is room for.

        Returns when they are on their way. `ValueError` for a frame below 14 bytes or beyond the MTU (4 bytes more with a
        VLAN tag), before any is sent, and for one whose information does not fit beside it.
        """
        for frame in frames:
            if not ETHERNET_HEADER <= len(frame.data) <= self.mtu + ETHERNET_HEADER + 4:
                raise ValueError(f"a frame has {ETHERNET_HEADER} bytes and up to {self.mtu}, not {len(frame.data)}")
        assert self._sender is not None, "the block has been entered"
        if len(self._lanes) == 1:
            await self._sender.send(self._lanes[0], frames)
            return
        by_lane: dict[int, list[Frame]] = {}
        for frame in frames:
            by_lane.setdefault(self._lane_of(frame), []).append(frame)
        for index, part in by_lane.items():
            lane = self._lanes.get(index, self._lanes[0])
            try:
                await self._sender.send(lane, part)
            except ChannelClosed:
                if not lane.index:
                    raise
                lane.give_back()  # the sub-channel went meanwhile, and its frames with it, as on any network

    async def receive(self) -> Frame:
        """The next frame."""
        await self._take()
        return self._taken.popleft()

    async def receive_batch(self) -> Sequence[Frame]:
        """All frames that are there, at least one. The cheapest way to read."""
        await self._take()
        frames, self._taken = self._taken, deque()
        return tuple(frames)

    # beginning and end

    async def _begin(self, channel: GuestChannel, channels: int, packet_filter: PacketFilter) -> None:
        self._add_lane(channel, 0)
        told = await self._control.initialize()
        self.address = await self._must_query(Oid.PERMANENT_ADDRESS, ADDRESS_SIZE)
        self.mtu = min(self.mtu, await self._number(Oid.MAXIMUM_FRAME_SIZE))
        self._sender = self._new_sender(channel, told)
        self.link_speed = await self._number(Oid.LINK_SPEED) * 100
        self.link_up = await self._number(Oid.MEDIA_CONNECT_STATUS) == 0
        if channels and self.version >= NvspVersion.V5:
            await self._open_subchannels(channel, channels)
        await self.set_packet_filter(packet_filter)

    def _new_sender(self, channel: GuestChannel, told: rndis.InitializeComplete) -> FrameSender:
        agreement = self._agreement
        size = -(-(self.mtu + ETHERNET_HEADER + _HEADROOM) // PAGE_SIZE) * PAGE_SIZE
        pages = self._client.pages.allocate(LARGE_SLOTS * size // PAGE_SIZE)
        self._pages += pages
        return FrameSender(
            Sections(agreement.send, agreement.section_size, agreement.version),
            PageSlots(pages_buffer(channel, pages), pages, size, agreement.version),
            told.max_packets,
            told.alignment_shift,
            self.turns.wakeup(("network-slots", channel.channel_id)),
        )

    async def _open_subchannels(self, channel: GuestChannel, wanted: int) -> None:
        capabilities = await self.query(Oid.RECEIVE_SCALE_CAPABILITIES)
        count = min(wanted, 0 if capabilities is None else parse_rss_capabilities(capabilities) - 1)
        if count < 1:
            return
        granted = await ask(channel, self.version, nvsp.Subchannels(1, count), nvsp.SubchannelsComplete)
        if granted.status != NvspStatus.SUCCESS:
            return
        if granted.count > count:
            raise ProtocolError("SUBCHANNELS", 8, f"at most {count} sub-channels", f"{granted.count}")
        offer = channel.offer
        ring_pages = (channel.upstream_pages, len(channel.gpns) - channel.upstream_pages)
        for index in range(1, granted.count + 1):
            found = await self._client.wait_offer(offer.interface_id, offer.instance_id, index)
            self._add_lane(await self._client.open(found, ring_pages=ring_pages), index)

    async def _end(self) -> None:
        """Let go, as far as the adapter is there: sub-channels first."""
        primary = self._lanes[0].channel
        with contextlib.suppress(BrokerError):
            for lane in [lane for lane in self._lanes.values() if lane.index]:
                await self._client.close(lane.channel)
            await self._control.halt()
            await revoke(primary, self._agreement)

    async def _number(self, oid: Oid) -> int:
        number: int = _U32.unpack(await self._must_query(oid, _U32.size))[0]
        return number

    async def _must_query(self, oid: Oid, size: int) -> bytes:
        value = await self.query(oid)
        if value is None or len(value) != size:
            raise ProtocolError("QUERY_COMPLETE", 24, f"{size} bytes of {oid.name}", f"{value!r}")
        return value

    # lanes

    def _add_lane(self, channel: GuestChannel, index: int) -> None:
        lane = GuestLane(channel, index, self._agreement, self)
        self._lanes[index] = lane
        begin = self.turns.expect(("network-lane", channel.channel_id))

        async def read() -> None:
            try:
                await begin()
                await lane.read()
            except (ChannelClosed, ProtocolError, ConnectionFailed) as error:
                self._lane_ended(lane, error)
            finally:
                self.turns.leave()

        self._group.start_soon(read)

    def _lane_ended(self, lane: GuestLane, error: BrokerError) -> None:
        """A sub-channel that was closed is done without; everything else ends the adapter."""
        if lane.index and isinstance(error, ChannelClosed):
            self._lanes.pop(lane.index, None)
            lane.give_back()
            if self._sender is not None:
                self._sender.slots_came_back()
            return
        self._failure = self._failure or error
        self._control.fail(error)
        self._changed.notify()
        if self._sender is not None:
            self._sender.fail(error)

    def _lane_of(self, frame: Frame) -> int:
        number, table = flow_hash(frame.data), self.indirection_table
        index = table[number % len(table)] if table else number % len(self._lanes)
        return index if index in self._lanes else 0

    # what lanes read

    def frames_came(self, lane: GuestLane, packet: Packet, frames: list[Frame]) -> None:
        """See `Arrival`."""
        self._arrived.append((lane, packet, frames))
        self._changed.notify()

    def control_came(self, message: RndisMessage) -> None:
        """See `Arrival`."""
        if not isinstance(message, rndis.IndicateStatus):
            self._control.take(message)
        elif message.status in (RndisStatus.MEDIA_CONNECT, RndisStatus.MEDIA_DISCONNECT):
            self.link_up = message.status == RndisStatus.MEDIA_CONNECT
            self._changed.notify()

    def notice_came(self, message: NvspMessage) -> None:
        """See `Arrival`."""
        if isinstance(message, nvsp.IndirectionTable):
            self.indirection_table = message.entries()
            self._changed.notify()
        elif isinstance(message, nvsp.VfAssociation):
            self.vf_serial = message.serial if message.allocated else None
        else:
            raise ProtocolError("NVSP message", 0, "a notice", message.TYPE.name)

    def sends_ended(self, count: int, failed: int) -> None:
        """See `Arrival`."""
        self.refused += failed
        if self._sender is not None:
            self._sender.slots_came_back()

    # within

    async def _take(self) -> None:
        """Wait until frames are taken."""
        while not self._taken:
            await self._wait(lambda: bool(self._arrived) or bool(self._taken))
            by_lane: dict[GuestLane, list[Packet]] = {}
            while self._arrived:
                lane, packet, frames = self._arrived.popleft()
                self._taken += frames
                by_lane.setdefault(lane, []).append(packet)
            for lane, packets in by_lane.items():
                with contextlib.suppress(ChannelClosed):
                    await lane.complete(packets)

    async def _wait(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            if self._failure is not None:
                raise self._failure
            await self._changed.wait()
