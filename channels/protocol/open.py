"""Messages about opening and closing channels, reserved ones included, and about moving their interrupts."""

from __future__ import annotations

from enum import IntFlag
from typing import Annotated, ClassVar

from .message import ChannelMessage, MessageType
from .offer import NO_USER_AREA
from .wire import At


class OpenFlags(IntFlag):
    """What the guest wants of an open. Other bits are junk and masked off by the host."""

    REDIRECT_INTERRUPT = 0x0001
    """Interrupts go to the server's redirect VTL and SINT (feature 0x2)."""


class OpenChannel(ChannelMessage, frozen=True):
    """OPEN_CHANNEL, 148 bytes: the guest opens a channel over rings in a GPADL."""

    TYPE: ClassVar[MessageType] = MessageType.OPEN_CHANNEL

    channel_id: Annotated[int, At(8, "I", "the channel")]
    open_id: Annotated[int, At(12, "I", "comes back in the result")] = 0
    ring_buffer_gpadl_id: Annotated[int, At(16, "I", "the GPADL that both rings lie in")] = 0
    target_vp: Annotated[int, At(20, "I", "processor of the interrupts; 0xFFFFFFFF: none")] = 0
    downstream_ring_buffer_page_offset: Annotated[int, At(24, "I", "pages of the guest-to-host ring")] = 0
    user_data: Annotated[bytes, At(28, "120s", "for the device")] = NO_USER_AREA


class OpenChannel2(OpenChannel, frozen=True):
    """OPEN_CHANNEL, 156 bytes: with feature 0x1 or 0x2."""

    connection_id: Annotated[int, At(148, "I", "connection that the guest will signal (feature 0x1)")] = 0
    event_flag: Annotated[int, At(152, "H", "event flag that the host sets (feature 0x1)")] = 0
    flags: Annotated[int, At(154, "H", "bit 0: redirect the interrupt (feature 0x2)")] = 0


class OpenResult(ChannelMessage, frozen=True):
    """OPEN_CHANNEL_RESULT, 20 bytes."""

    TYPE: ClassVar[MessageType] = MessageType.OPEN_CHANNEL_RESULT

    channel_id: Annotated[int, At(8, "I", "the channel")]
    open_id: Annotated[int, At(12, "I", "as in the open")] = 0
    status: Annotated[int, At(16, "I", "0: open")] = 0


class CloseChannel(ChannelMessage, frozen=True):
    """CLOSE_CHANNEL, 12 bytes; there is no answer."""

    TYPE: ClassVar[MessageType] = MessageType.CLOSE_CHANNEL

    channel_id: Annotated[int, At(8, "I", "the channel")]


class OpenReservedChannel(ChannelMessage, frozen=True):
    """OPEN_RESERVED_CHANNEL, 28 bytes: for crash dumps and hibernation; the answer goes to the SINT given here."""

    TYPE: ClassVar[MessageType] = MessageType.OPEN_RESERVED_CHANNEL

    channel_id: Annotated[int, At(8, "I", "the channel")]
    target_vp: Annotated[int, At(12, "I", "processor of the answer")] = 0
    target_sint: Annotated[int, At(16, "I", "SINT of the answer, low 8 bits")] = 0
    ring_buffer_gpadl_id: Annotated[int, At(20, "I", "the GPADL that both rings lie in")] = 0
    downstream_ring_buffer_page_offset: Annotated[int, At(24, "I", "pages of the guest-to-host ring")] = 0


class CloseReservedChannel(ChannelMessage, frozen=True):
    """CLOSE_RESERVED_CHANNEL, 20 bytes: also without a connection."""

    TYPE: ClassVar[MessageType] = MessageType.CLOSE_RESERVED_CHANNEL

    channel_id: Annotated[int, At(8, "I", "the channel")]
    target_vp: Annotated[int, At(12, "I", "processor of the answer")] = 0
    target_sint: Annotated[int, At(16, "I", "SINT of the answer, low 8 bits")] = 0


class CloseReservedChannelResponse(ChannelMessage, frozen=True):
    """CLOSE_RESERVED_CHANNEL_RESPONSE, 12 bytes."""

    TYPE: ClassVar[MessageType] = MessageType.CLOSE_RESERVED_CHANNEL_RESPONSE

    channel_id: Annotated[int, At(8, "I", "the channel")]


class ModifyChannel(ChannelMessage, frozen=True):
    """MODIFY_CHANNEL, 16 bytes: interrupts go to another processor from now on."""

    TYPE: ClassVar[MessageType] = MessageType.MODIFY_CHANNEL

    channel_id: Annotated[int, At(8, "I", "the channel")]
    target_vp: Annotated[int, At(12, "I", "processor of the interrupts")] = 0


class ModifyChannelResponse(ChannelMessage, frozen=True):
    """MODIFY_CHANNEL_RESPONSE, 16 bytes: from 5.3 on."""

    TYPE: ClassVar[MessageType] = MessageType.MODIFY_CHANNEL_RESPONSE

    channel_id: Annotated[int, At(8, "I", "the channel")]
    status: Annotated[int, At(12, "I", "0: done")] = 0
