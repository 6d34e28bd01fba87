"""Messages about offers: what the host has, what it takes back, what the guest lets go of."""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import Annotated, ClassVar
from uuid import UUID

from .ids import NO_MONITOR
from .message import ChannelMessage, MessageType
from .wire import NO_GUID, At

USER_AREA = 120
"""Bytes of an offer's user-defined area, and of an open's user data."""
NO_USER_AREA = bytes(USER_AREA)

PIPE_AREA = struct.Struct("<I112sI")
"""The user area of a pipe: its type, 112 bytes for the device, flags."""
HVSOCK_AREA = struct.Struct("<IBBI16s2x")
"""The user area of an hvsock channel, then zeros: pipe type 0, for guest accept, for guest container, version, silo ID."""


class OfferFlags(IntFlag):
    """What kind of channel an offer is. Unknown bits are kept."""

    ENUMERATE_DEVICE_INTERFACE = 0x0001
    CONFIDENTIAL_RING = 0x0002
    """The ring is in encrypted memory; only with feature 0x10."""
    CONFIDENTIAL_EXTERNAL_MEMORY = 0x0004
    """So is external memory; only with feature 0x10."""
    PINNED_EXTERNAL_MEMORY = 0x0008
    """External memory must be pinned; only with feature 0x80."""
    NAMED_PIPE_MODE = 0x0010
    """Data is framed by pipe headers, the user area starts with the pipe type."""
    TLNPI_PROVIDER = 0x2000
    """An hvsock channel."""


class PipeType(IntEnum):
    """How the bytes of a pipe are to be read."""

    BYTE = 0
    MESSAGE = 4


class OfferChannel(ChannelMessage, frozen=True):
    """OFFER_CHANNEL, 196 bytes: a device that the guest may open."""

    TYPE: ClassVar[MessageType] = MessageType.OFFER_CHANNEL

    interface_id: Annotated[UUID, At(8, "guid", "class of the device")]
    instance_id: Annotated[UUID, At(24, "guid", "this device")]
    flags: Annotated[int, At(56, "H", "offer flags")] = 0
    mmio_megabytes: Annotated[int, At(58, "H", "MMIO space that the guest must give")] = 0
    user_defined: Annotated[bytes, At(60, "120s", "pipe type, or what the device likes")] = NO_USER_AREA
    subchannel_index: Annotated[int, At(180, "H", "0: primary channel")] = 0
    mmio_megabytes_optional: Annotated[int, At(182, "H", "MMIO space that would be nice")] = 0
    channel_id: Annotated[int, At(184, "I", "the channel's number (relid)")] = 0
    monitor_id: Annotated[int, At(188, "B", "0xFF: none")] = NO_MONITOR
    monitor_allocated: Annotated[int, At(189, "B", "1: signal by the monitor page")] = 0
    is_dedicated: Annotated[int, At(190, "H", "1: the channel has its own connection")] = 1
    connection_id: Annotated[int, At(192, "I", "connection that the guest signals")] = 0


class RescindChannelOffer(ChannelMessage, frozen=True):
    """RESCIND_CHANNEL_OFFER, 12 bytes: the device is gone."""

    TYPE: ClassVar[MessageType] = MessageType.RESCIND_CHANNEL_OFFER

    channel_id: Annotated[int, At(8, "I", "the channel")]


class RequestOffers(ChannelMessage, frozen=True):
    """REQUEST_OFFERS, 8 bytes: what do you have?"""

    TYPE: ClassVar[MessageType] = MessageType.REQUEST_OFFERS


class AllOffersDelivered(ChannelMessage, frozen=True):
    """ALL_OFFERS_DELIVERED, 8 bytes: that was all; what comes later is new."""

    TYPE: ClassVar[MessageType] = MessageType.ALL_OFFERS_DELIVERED


class RelidReleased(ChannelMessage, frozen=True):
    """RELID_RELEASED, 12 bytes: the guest no longer uses this channel ID."""

    TYPE: ClassVar[MessageType] = MessageType.RELID_RELEASED

    channel_id: Annotated[int, At(8, "I", "the channel")]


def pipe_area(pipe_type: PipeType, user: bytes = b"", *, gpa_direct: bool = False) -> bytes:
    """The user area of a pipe. `ValueError` for more than 112 bytes for the device."""
    if len(user) > PIPE_AREA.size - 8:
        raise ValueError(f"a pipe's user area holds {PIPE_AREA.size - 8} bytes, {len(user)} do not fit")
    return PIPE_AREA.pack(pipe_type, user, gpa_direct)


def hvsock_area(*, guest_accepts: bool, for_container: bool = False, silo_id: UUID = NO_GUID) -> bytes:
    """The user area of an hvsock channel (version 1). `guest_accepts`: the host connects to a listener in the guest."""
    version = 1
    area = HVSOCK_AREA.pack(PipeType.BYTE, guest_accepts, for_container, version, silo_id.bytes_le)
    return area.ljust(USER_AREA, b"\0")
