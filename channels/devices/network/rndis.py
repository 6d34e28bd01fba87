"""The adapter's answers to RNDIS control messages: initialize, query, set, reset, keep-alive, halt.

It will: say `NOT_SUPPORTED` for an OID that it does not know, `INVALID_LENGTH` and `INVALID_DATA` for information that is none,
and keep what the guest sets. It will not: wait, or touch memory. What is no control message, or comes before INITIALIZE, raises
`ProtocolError`, which the guest sees as NVSP status 5 of its packet.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Protocol

from broker.errors import ProtocolError

from ...protocol.network import rndis
from ...protocol.network.frames import ADDRESS_SIZE, BROADCAST, ETHERNET_HEADER
from ...protocol.network.oids import (
    Oid,
    PacketFilter,
    pack_no_offload,
    pack_rss_capabilities,
    parse_rss_table,
    parse_wants_offload,
)
from ...protocol.network.rndis import MAX_PACKETS, RndisStatus

MAX_MULTICAST = 32
"""Addresses of the multicast list."""
VENDOR = b"vmbus-broker network adapter\0"
_U32 = struct.Struct("<I")
_MAX_U32 = 0xFFFF_FFFF


class Adapter(Protocol):
    """What the answers are about."""

    @property
    def address(self) -> bytes: ...
    @property
    def link_up(self) -> bool: ...
    @property
    def link_speed(self) -> int: ...
    @property
    def max_subchannels(self) -> int: ...
    def counted(self, oid: Oid) -> int:
        """A counter of frames."""
        ...


class RndisAnswers:
    """See the module."""

    def __init__(self, adapter: Adapter, frame_size: int) -> None:
        self._adapter = adapter
        self.mtu = frame_size - ETHERNET_HEADER
        self.is_initialized = False
        self.filter = PacketFilter.NONE
        self.multicast: frozenset[bytes] = frozenset()
        self.table: tuple[int, ...] = ()
        """Channels by hash of the flow, as the guest has set them; empty where it has not."""
        self.told_link_up = True
        """What the guest knows of the link."""
        self._values = self._readable()

    def answer(self, data: bytes) -> bytes | None:
        """The completion of this control message, None where it has none. `ProtocolError`, see the module."""
        message = rndis.parse_control_from_guest(data)
        if isinstance(message, rndis.Initialize):
            return self._initialize(message)
        if not self.is_initialized:
            raise ProtocolError("RNDIS message", 0, "INITIALIZE first", f"{message.TYPE.name}")
        if isinstance(message, rndis.Set):
            return rndis.SetComplete(message.request_id, self._set(message)).pack()
        if isinstance(message, rndis.Query):
            return self._query(message)
        if isinstance(message, rndis.KeepAlive):
            return rndis.KeepAliveComplete(message.request_id).pack()
        if isinstance(message, rndis.Reset):
            self._forget()
            return rndis.ResetComplete(RndisStatus.SUCCESS).pack()
        if isinstance(message, rndis.Halt):
            self._forget()
            self.is_initialized = False
        return None

    def wants(self, destination: bytes) -> bool:
        """The guest wants frames to this address."""
        chosen = self.filter
        if chosen & PacketFilter.PROMISCUOUS:
            return True
        if not destination[0] & 1:
            return bool(chosen & PacketFilter.DIRECTED) and destination == self._adapter.address
        if destination == BROADCAST:
            return bool(chosen & PacketFilter.BROADCAST)
        if chosen & PacketFilter.ALL_MULTICAST:
            return True
        return bool(chosen & PacketFilter.MULTICAST) and destination in self.multicast

    def _initialize(self, message: rndis.Initialize) -> bytes:
        status = RndisStatus.SUCCESS if message.major == 1 else RndisStatus.NOT_SUPPORTED
        if status is RndisStatus.SUCCESS:
            self._forget()
            self.is_initialized = True
            self.told_link_up = self._adapter.link_up
        return rndis.InitializeComplete(message.request_id, status).pack()

    def _forget(self) -> None:
        self.filter = PacketFilter.NONE
        self.multicast = frozenset()

    def _query(self, message: rndis.Query) -> bytes:
        value = self._values.get(message.oid)
        if value is None:
            return rndis.QueryComplete.of(message.request_id, RndisStatus.NOT_SUPPORTED).pack()
        return rndis.QueryComplete.of(message.request_id, RndisStatus.SUCCESS, value()).pack()

    def _set(self, message: rndis.Set) -> RndisStatus:
        change = self._writable().get(message.oid)
        if change is None:
            return RndisStatus.NOT_SUPPORTED
        try:
            return change(message.information)
        except ProtocolError:
            return RndisStatus.INVALID_DATA

    # what may be set

    def _writable(self) -> dict[int, Callable[[bytes], RndisStatus]]:
        return {
            Oid.PACKET_FILTER: self._set_filter,
            Oid.MULTICAST_LIST: self._set_multicast,
            Oid.CURRENT_LOOKAHEAD: lambda data: _status(len(data) == _U32.size),
            Oid.RECEIVE_SCALE_PARAMETERS: self._set_table,
            Oid.OFFLOAD_PARAMETERS: lambda data: (
                RndisStatus.NOT_SUPPORTED if parse_wants_offload(data) else RndisStatus.SUCCESS
            ),
        }

    def _set_filter(self, data: bytes) -> RndisStatus:
        if len(data) != _U32.size:
            return RndisStatus.INVALID_LENGTH
        self.filter = PacketFilter(_U32.unpack(data)[0])
        return RndisStatus.SUCCESS

    def _set_multicast(self, data: bytes) -> RndisStatus:
        if len(data) % ADDRESS_SIZE or len(data) > MAX_MULTICAST * ADDRESS_SIZE:
            return RndisStatus.INVALID_LENGTH
        self.multicast = frozenset(data[at : at + ADDRESS_SIZE] for at in range(0, len(data), ADDRESS_SIZE))
        return RndisStatus.SUCCESS

    def _set_table(self, data: bytes) -> RndisStatus:
        table = parse_rss_table(data)
        if any(entry > self._adapter.max_subchannels for entry in table):
            return RndisStatus.INVALID_DATA
        self.table = table or self.table
        return RndisStatus.SUCCESS

    # what may be asked for

    def _readable(self) -> dict[int, Callable[[], bytes]]:
        adapter, mtu = self._adapter, self.mtu

        def fixed(number: int) -> Callable[[], bytes]:
            data = _U32.pack(number)
            return lambda: data

        def counter(oid: Oid) -> Callable[[], bytes]:
            return lambda: _U32.pack(adapter.counted(oid) & _MAX_U32)

        values: dict[int, Callable[[], bytes]] = {
            Oid.SUPPORTED_LIST: lambda: struct.pack(f"<{len(Oid)}I", *sorted(Oid)),
            Oid.HARDWARE_STATUS: fixed(0),
            Oid.MEDIA_SUPPORTED: fixed(0),
            Oid.MEDIA_IN_USE: fixed(0),
            Oid.MAXIMUM_LOOKAHEAD: fixed(mtu),
            Oid.MAXIMUM_FRAME_SIZE: fixed(mtu),
            Oid.LINK_SPEED: lambda: _U32.pack(min(adapter.link_speed // 100, _MAX_U32)),
            Oid.TRANSMIT_BLOCK_SIZE: fixed(1),
            Oid.RECEIVE_BLOCK_SIZE: fixed(1),
            Oid.VENDOR_ID: fixed(0),
            Oid.VENDOR_DESCRIPTION: lambda: VENDOR,
            Oid.PACKET_FILTER: lambda: _U32.pack(self.filter),
            Oid.CURRENT_LOOKAHEAD: fixed(mtu),
            Oid.MAXIMUM_TOTAL_SIZE: fixed(mtu + ETHERNET_HEADER),
            Oid.MAXIMUM_SEND_PACKETS: fixed(MAX_PACKETS),
            Oid.MEDIA_CONNECT_STATUS: lambda: _U32.pack(not adapter.link_up),
            Oid.RECEIVE_SCALE_CAPABILITIES: lambda: pack_rss_capabilities(adapter.max_subchannels + 1),
            Oid.PERMANENT_ADDRESS: lambda: adapter.address,
            Oid.CURRENT_ADDRESS: lambda: adapter.address,
            Oid.MULTICAST_LIST: lambda: b"".join(sorted(self.multicast)),
            Oid.MAXIMUM_LIST_SIZE: fixed(MAX_MULTICAST),
            Oid.OFFLOAD_CAPABILITIES: pack_no_offload,
        }
        counters = (
            Oid.TRANSMIT_OK,
            Oid.RECEIVE_OK,
            Oid.TRANSMIT_ERROR,
            Oid.RECEIVE_ERROR,
            Oid.RECEIVE_NO_BUFFER,
        )
        return values | {oid: counter(oid) for oid in counters}


def _status(is_right: bool) -> RndisStatus:
    return RndisStatus.SUCCESS if is_right else RndisStatus.INVALID_LENGTH
