"""Messages about hvsock: a guest connects to a listener on the host; success is an offer."""

from __future__ import annotations

from typing import Annotated, ClassVar
from uuid import UUID

from .message import ChannelMessage, MessageType
from .wire import NO_GUID, At


class TlConnectRequest(ChannelMessage, frozen=True):
    """TL_CONNECT_REQUEST, 40 bytes."""

    TYPE: ClassVar[MessageType] = MessageType.TL_CONNECT_REQUEST

    endpoint_id: Annotated[UUID, At(8, "guid", "this connection; instance of the offer")]
    service_id: Annotated[UUID, At(24, "guid", "the listener; interface of the offer")]


class TlConnectRequest2(TlConnectRequest, frozen=True):
    """TL_CONNECT_REQUEST, 56 bytes: from 5.2 on, with a silo."""

    silo_id: Annotated[UUID, At(40, "guid", "the container that the guest's end is in")] = NO_GUID


class TlConnectResult(ChannelMessage, frozen=True):
    """TL_CONNECT_RESULT, 44 bytes: sent for a failure only, from 4.1 on."""

    TYPE: ClassVar[MessageType] = MessageType.TL_CONNECT_RESULT

    endpoint_id: Annotated[UUID, At(8, "guid", "this connection")]
    service_id: Annotated[UUID, At(24, "guid", "the listener")]
    status: Annotated[int, At(40, "I", "0xC0000236: refused")] = 0
