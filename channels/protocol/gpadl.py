"""Messages about GPADLs: guest memory that the guest lets the host use, as lists of page numbers."""

from __future__ import annotations

from typing import Annotated, ClassVar

from .ids import MAX_MESSAGE
from .message import ChannelMessage, MessageType
from .wire import At


class GpadlHeader(ChannelMessage, frozen=True):
    """GPADL_HEADER, 20 + 8n bytes: the beginning of a range buffer, at most 27 words of it.

    A range is a u64 (byte count, byte offset << 32) and then the numbers of its pages.
    """

    TYPE: ClassVar[MessageType] = MessageType.GPADL_HEADER

    channel_id: Annotated[int, At(8, "I", "the channel")]
    gpadl_id: Annotated[int, At(12, "I", "the guest's number for it")] = 0
    range_buffer_length: Annotated[int, At(16, "H", "bytes of the whole range buffer")] = 0
    range_count: Annotated[int, At(18, "H", "ranges in it")] = 0
    data: Annotated[bytes, At(20, "*", "words of the range buffer")] = b""


class GpadlBody(ChannelMessage, frozen=True):
    """GPADL_BODY, 16 + 8n bytes: more of a range buffer, at most 28 words of it."""

    TYPE: ClassVar[MessageType] = MessageType.GPADL_BODY

    reserved: Annotated[int, At(8, "I", "written 0, ignored")] = 0
    gpadl_id: Annotated[int, At(12, "I", "the guest's number for it")] = 0
    data: Annotated[bytes, At(16, "*", "words of the range buffer")] = b""


HEADER_DATA = (MAX_MESSAGE - GpadlHeader.layout().size) // 8 * 8
"""Bytes of range buffer that a GPADL_HEADER holds: 27 words."""
BODY_DATA = (MAX_MESSAGE - GpadlBody.layout().size) // 8 * 8
"""Bytes of range buffer that a GPADL_BODY holds: 28 words."""


class GpadlCreated(ChannelMessage, frozen=True):
    """GPADL_CREATED, 20 bytes."""

    TYPE: ClassVar[MessageType] = MessageType.GPADL_CREATED

    channel_id: Annotated[int, At(8, "I", "the channel")]
    gpadl_id: Annotated[int, At(12, "I", "the GPADL")] = 0
    status: Annotated[int, At(16, "I", "0: the host uses it now")] = 0


class GpadlTeardown(ChannelMessage, frozen=True):
    """GPADL_TEARDOWN, 16 bytes: the guest wants its memory back."""

    TYPE: ClassVar[MessageType] = MessageType.GPADL_TEARDOWN

    channel_id: Annotated[int, At(8, "I", "the channel")]
    gpadl_id: Annotated[int, At(12, "I", "the GPADL")] = 0


class GpadlTorndown(ChannelMessage, frozen=True):
    """GPADL_TORNDOWN, 12 bytes: the host has let go of it."""

    TYPE: ClassVar[MessageType] = MessageType.GPADL_TORNDOWN

    gpadl_id: Annotated[int, At(8, "I", "the GPADL")]


def gpadl_messages(channel_id: int, gpadl_id: int, range_count: int, buffer: bytes) -> list[ChannelMessage]:
    """The messages that carry a range buffer: a header, and bodies for what does not fit into it.

    `ValueError` for a buffer that is no whole number of words or longer than 65,528 bytes.
    """
    if len(buffer) % 8 or len(buffer) > 0xFFF8:
        raise ValueError(f"a range buffer is a multiple of 8 bytes up to 65528, not {len(buffer)}")
    first = GpadlHeader(channel_id, gpadl_id, len(buffer), range_count, buffer[:HEADER_DATA])
    rest = range(HEADER_DATA, len(buffer), BODY_DATA)
    return [first, *(GpadlBody(0, gpadl_id, buffer[start : start + BODY_DATA]) for start in rest)]
