"""What all channel messages share: the 8-byte header and the numbers of their types."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import ClassVar

from .wire import Wire

HEADER = struct.Struct("<II")
"""Type, and padding that is written 0 and ignored."""


class MessageType(IntEnum):
    """The number at the start of every channel message."""

    OFFER_CHANNEL = 1
    RESCIND_CHANNEL_OFFER = 2
    REQUEST_OFFERS = 3
    ALL_OFFERS_DELIVERED = 4
    OPEN_CHANNEL = 5
    OPEN_CHANNEL_RESULT = 6
    CLOSE_CHANNEL = 7
    GPADL_HEADER = 8
    GPADL_BODY = 9
    GPADL_CREATED = 10
    GPADL_TEARDOWN = 11
    GPADL_TORNDOWN = 12
    RELID_RELEASED = 13
    INITIATE_CONTACT = 14
    VERSION_RESPONSE = 15
    UNLOAD = 16
    UNLOAD_COMPLETE = 17
    OPEN_RESERVED_CHANNEL = 18
    CLOSE_RESERVED_CHANNEL = 19
    CLOSE_RESERVED_CHANNEL_RESPONSE = 20
    TL_CONNECT_REQUEST = 21
    MODIFY_CHANNEL = 22
    TL_CONNECT_RESULT = 23
    MODIFY_CHANNEL_RESPONSE = 24
    MODIFY_CONNECTION = 25
    MODIFY_CONNECTION_RESPONSE = 26
    PAUSE = 27
    PAUSE_RESPONSE = 28
    RESUME = 29


class ChannelMessage(Wire, frozen=True):
    """A channel message; offsets count from the start of the message, header included."""

    TYPE: ClassVar[MessageType]
    LEAST_SIZE: ClassVar[int] = HEADER.size

    def pack(self) -> bytes:
        """The message with its header, exactly as long as it is. `ValueError` when a value does not fit its field."""
        data = bytearray(super().pack())
        HEADER.pack_into(data, 0, self.TYPE, 0)
        return bytes(data)


STATUS_SUCCESS = 0
STATUS_UNSUCCESSFUL = 0x8000_FFFF
"""OPEN_CHANNEL_RESULT, GPADL_CREATED, MODIFY_CHANNEL_RESPONSE: it did not work."""
STATUS_CONNECTION_REFUSED = 0xC000_0236
"""TL_CONNECT_RESULT: nobody listens."""


class ConnectionState(IntEnum):
    """How a connection attempt, or a change of monitor pages, ended."""

    SUCCESSFUL = 0
    FAILED_LOW_RESOURCES = 1
    FAILED_UNKNOWN_FAILURE = 2
