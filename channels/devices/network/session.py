"""One opening of a network adapter: what guest and adapter have agreed on over the primary channel (vmbus.md 8.10).

It will: check the order of NVSP messages, answer them, hold the buffers, decide which frames the guest gets and on which of
its channels. It will not: wait, or read and write rings (`lane`).

The order: INIT until a version is agreed on, NDIS configuration (from 3.2) before the receive buffer, NDIS version, buffers;
then RNDIS, sub-channels and the data path. A buffer that cannot be has a failure status; a guest that breaks the order loses
its channel.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from broker.errors import ProtocolError

from ...protocol.network import nvsp
from ...protocol.network.frames import (
    ETHERNET_HEADER,
    LARGEST_MTU,
    SMALLEST_MTU,
    USUAL_MTU,
    Frame,
    flow_hash,
    packed_size,
)
from ...protocol.network.nvsp import SECTION_SIZE, TABLE_SIZE, NvspMessage, NvspStatus, NvspVersion
from ...protocol.network.rndis import IndicateStatus, RndisStatus
from ..device import DeviceChannel
from .buffers import ReceiveBuffer, SendBuffer, suballocation_size
from .rndis import RndisAnswers

if TYPE_CHECKING:
    from .adapter import NetworkAdapter
    from .lane import Lane

USUAL_FRAME = USUAL_MTU + ETHERNET_HEADER
"""Bytes of the largest frame where the guest does not say (version 1)."""
VLAN_TAG = 4
"""Bytes by which a tagged frame may exceed the MTU."""
MAX_ANSWERS = 64
"""Control messages that wait to go to the guest; a guest that asks for more without reading loses its channel."""


class Session:
    """See the module."""

    def __init__(self, adapter: NetworkAdapter, channel: DeviceChannel) -> None:
        self.adapter = adapter
        self.channel = channel
        self.version: NvspVersion | None = None
        self.rndis = RndisAnswers(adapter, USUAL_FRAME)
        self.frame_size = USUAL_FRAME
        """Bytes of the largest frame, its header included."""
        self.lanes: dict[int, Lane] = {}
        """The open channels, by sub-channel index."""
        self.answers: deque[bytes] = deque()
        """RNDIS control messages for the guest."""
        self.notices: deque[NvspMessage] = deque()
        """NVSP messages for the guest."""
        self._has_config = False
        self._has_ndis_version = False
        self._receive: ReceiveBuffer | None = None
        self._send: SendBuffer | None = None
        self._granted = 0
        """Sub-channels that were promised."""

    # what the guest says

    def answer(self, message: NvspMessage) -> bytes:
        """The payload of the completion of any message but RNDIS packets and sub-channels. `ProtocolError`."""
        if isinstance(message, nvsp.Init):
            return self._init(message)
        if self.version is None:
            raise ProtocolError("NVSP message", 0, "INIT first", message.TYPE.name)
        reply: NvspMessage | None = None
        if isinstance(message, nvsp.NdisConfig):
            self._configure(message)
        elif isinstance(message, nvsp.NdisVersion):
            _once("NDIS version", self._has_ndis_version)
            self._has_ndis_version = True
        elif isinstance(message, nvsp.ReceiveBuffer):
            reply = self._take_receive_buffer(message)
        elif isinstance(message, nvsp.SendBuffer):
            reply = self._take_send_buffer(message)
        elif isinstance(message, nvsp.RevokeReceiveBuffer):
            _check_revoked(self._receive, message.buffer_id)
            self._receive = None
        elif isinstance(message, nvsp.RevokeSendBuffer):
            _check_revoked(self._send, message.buffer_id)
            self._send = None
        elif isinstance(message, nvsp.SwitchDataPath):
            self._switch_data_path(message)
        else:
            raise ProtocolError("NVSP message", 0, "a request", message.TYPE.name)
        return b"" if reply is None else reply.padded(self.version)

    def answer_control(self, data: bytes) -> NvspStatus:
        """Take an RNDIS control message; what it is answered waits in `answers`. `ProtocolError` when too many do."""
        if len(self.answers) >= MAX_ANSWERS:
            raise ProtocolError("RNDIS message", 0, f"at most {MAX_ANSWERS} answers that wait to be read", "more")
        try:
            answer = self.rndis.answer(data)
        except ProtocolError:
            self.adapter.counters.invalid += 1
            return NvspStatus.INVALID_RNDIS
        if answer is not None:
            self.answers.append(answer)
        return NvspStatus.SUCCESS

    def grant_subchannels(self, message: nvsp.Subchannels) -> nvsp.SubchannelsComplete:
        """Whether so many sub-channels will be offered: once, all or none."""
        self.check_ready("SUBCHANNELS")
        assert self.version is not None
        if self.version < NvspVersion.V5:
            raise ProtocolError("NVSP message", 0, "no sub-channels below version 5.0", f"{self.version:#x}")
        count = message.count
        if message.operation != 1 or self._granted or not 1 <= count <= self.adapter.max_subchannels:
            return nvsp.SubchannelsComplete(NvspStatus.FAILURE)
        self._granted = count
        return nvsp.SubchannelsComplete(NvspStatus.SUCCESS, count)

    def check_ready(self, what: str) -> None:
        """`ProtocolError` while the guest has not said all that comes before RNDIS."""
        missing = None
        if self.version is None:
            missing = "INIT"
        elif not self._has_config and self.version >= NvspVersion.V2:
            missing = "NDIS_CONFIG"
        elif not self._has_ndis_version:
            missing = "NDIS_VERSION"
        elif self.receive_buffer is None:
            missing = "RECEIVE_BUFFER"
        if missing is not None:
            raise ProtocolError("NVSP message", 0, f"{missing} first", what)

    # buffers

    @property
    def receive_buffer(self) -> ReceiveBuffer | None:
        """Where frames for the guest go, while it is there."""
        buffer = self._receive
        return buffer if buffer is not None and buffer.is_there else None

    @property
    def send_buffer(self) -> SendBuffer | None:
        """Where small frames of the guest lie, while it is there."""
        buffer = self._send
        return buffer if buffer is not None and buffer.is_there else None

    # channels

    def add_lane(self, lane: Lane) -> None:
        """A channel is open."""
        self.lanes[lane.index] = lane
        if self._granted and len(self.lanes) == self._granted + 1:
            table = [entry % len(self.lanes) for entry in range(TABLE_SIZE)]
            notice = nvsp.IndirectionTable.of(table)
            if notice not in self.notices:  # a guest that reads none of them may open its channels again and again
                self.notices.append(notice)
            self.wake()

    def remove_lane(self, lane: Lane) -> None:
        """It is closed."""
        if self.lanes.get(lane.index) is lane:
            del self.lanes[lane.index]

    def wake(self) -> None:
        """There is something to send, or room for it."""
        for lane in self.lanes.values():
            lane.wake()

    # frames and notices for the guest

    def deliver(self, frames: Sequence[Frame]) -> int:
        """See `Station.deliver`; the link is up."""
        wants, limit, counters = self.rndis.wants, self.adapter.queue_size, self.adapter.counters
        if not self.lanes:
            counters.dropped_closed += len(frames)
            return len(frames)
        only = next(iter(self.lanes.values())) if len(self.lanes) == 1 else None
        longest, most = self.frame_size + VLAN_TAG, suballocation_size(self.frame_size)
        last, is_wanted, taken = b"", False, 0
        for frame in frames:
            destination = frame.data[:6]
            if destination != last:
                last, is_wanted = destination, wants(destination)
            if not is_wanted:
                counters.filtered += 1
            elif len(frame.data) > longest or (frame.info and packed_size(frame) > most):
                counters.dropped_size += 1
            else:
                lane = only or self._lane_of(frame)
                if lane is None:
                    counters.dropped_closed += 1
                elif len(lane.frames) >= limit:
                    break
                else:
                    lane.frames.append(frame)
            taken += 1
        if taken:
            self.wake()
        return taken

    def drop_frames(self) -> None:
        """The guest wants none of those that wait any more."""
        for lane in self.lanes.values():
            lane.drop_frames()
        self.adapter.tell_room()

    def link_notice(self) -> IndicateStatus | None:
        """What has happened to the link since the guest last heard of it."""
        is_up = self.adapter.link_up
        if not self.rndis.is_initialized or self.rndis.told_link_up == is_up:
            return None
        self.rndis.told_link_up = is_up
        return IndicateStatus(RndisStatus.MEDIA_CONNECT if is_up else RndisStatus.MEDIA_DISCONNECT)

    def _lane_of(self, frame: Frame) -> Lane | None:
        """The channel of this frame's flow: by the guest's table, or else by the adapter's; the primary one if it is closed."""
        number = flow_hash(frame.data)
        table = self.rndis.table
        index = table[number % len(table)] if table else number % TABLE_SIZE % len(self.lanes)
        return self.lanes.get(index) or self.lanes.get(0)

    # within

    def _init(self, message: nvsp.Init) -> bytes:
        _once("version", self.version is not None)
        known = message.version == message.highest and message.version in self.adapter.versions
        if not known:
            return nvsp.InitComplete(0xFFFF_FFFF, nvsp.MDL_CHAIN, NvspStatus.NONE).padded(None)
        self.version = NvspVersion(message.version)
        negotiated = 2 if self.version is NvspVersion.V1 else 0xFFFF_FFFF
        if self.adapter.vf_serial is not None and self.version >= NvspVersion.V4:
            self.notices.append(nvsp.VfAssociation(1, self.adapter.vf_serial))
        return nvsp.InitComplete(negotiated, nvsp.MDL_CHAIN, NvspStatus.SUCCESS).padded(self.version)

    def _configure(self, message: nvsp.NdisConfig) -> None:
        assert self.version is not None
        _once("NDIS configuration", self._has_config or self._receive is not None)
        if self.version < NvspVersion.V2:
            raise ProtocolError("NVSP message", 0, "no NDIS configuration below version 3.2", f"{self.version:#x}")
        mtu = message.frame_size - ETHERNET_HEADER
        if not SMALLEST_MTU <= mtu <= LARGEST_MTU:
            raise ProtocolError("NDIS configuration", 4, f"an MTU of {SMALLEST_MTU} to {LARGEST_MTU}", f"{mtu}")
        self._has_config = True
        self.frame_size = message.frame_size
        self.rndis = RndisAnswers(self.adapter, message.frame_size)

    def _take_receive_buffer(self, message: nvsp.ReceiveBuffer) -> NvspMessage:
        assert self.version is not None
        if not self._has_config and self.version >= NvspVersion.V2:
            raise ProtocolError("NVSP message", 0, "NDIS_CONFIG first", "RECEIVE_BUFFER")
        _once("receive buffer", self.receive_buffer is not None)
        try:
            buffer = ReceiveBuffer(self.channel, message.gpadl_id, message.buffer_id, self.frame_size)
        except ProtocolError:
            return nvsp.ReceiveBufferComplete(NvspStatus.FAILURE)
        self._receive = buffer
        size, count = buffer.section_size, buffer.count
        return nvsp.ReceiveBufferComplete(NvspStatus.SUCCESS, 1, 0, size, count, size * count)

    def _take_send_buffer(self, message: nvsp.SendBuffer) -> NvspMessage:
        _once("send buffer", self.send_buffer is not None)
        try:
            self._send = SendBuffer(self.channel, message.gpadl_id, message.buffer_id)
        except ProtocolError:
            return nvsp.SendBufferComplete(NvspStatus.FAILURE)
        return nvsp.SendBufferComplete(NvspStatus.SUCCESS, SECTION_SIZE)

    def _switch_data_path(self, message: nvsp.SwitchDataPath) -> None:
        assert self.version is not None
        if self.version < NvspVersion.V4 or message.path > 1 or (message.path and self.adapter.vf_serial is None):
            raise ProtocolError("SWITCH_DATA_PATH", 4, "a path that there is", f"{message.path}")
        self.adapter.uses_vf = bool(message.path)


def _once(what: str, is_there: bool) -> None:
    if is_there:
        raise ProtocolError("NVSP message", 0, f"one {what}", "another")


def _check_revoked(buffer: ReceiveBuffer | SendBuffer | None, buffer_id: int) -> None:
    if buffer is None or buffer.buffer_id != buffer_id:
        raise ProtocolError("NVSP message", 4, "a buffer that there is", f"{buffer_id:#x}")
