"""The one entry point from bytes to channel messages.

`parse_message` reads what either side sends. A side that takes messages says which (`sender`), and what was agreed on
(`version`, `features`): a type that the other side may not send, or may not send yet, is an error like any other.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from broker.errors import ProtocolError

from .connect import (
    InitiateContact,
    InitiateContact2,
    ModifyConnection,
    ModifyConnectionResponse,
    Pause,
    PauseResponse,
    Resume,
    Unload,
    UnloadComplete,
    VersionResponse,
    VersionResponse2,
    VersionResponse3,
)
from .gpadl import GpadlBody, GpadlCreated, GpadlHeader, GpadlTeardown, GpadlTorndown
from .hvsock import TlConnectRequest, TlConnectRequest2, TlConnectResult
from .message import HEADER, ChannelMessage, MessageType
from .offer import AllOffersDelivered, OfferChannel, RelidReleased, RequestOffers, RescindChannelOffer
from .open import (
    CloseChannel,
    CloseReservedChannel,
    CloseReservedChannelResponse,
    ModifyChannel,
    ModifyChannelResponse,
    OpenChannel,
    OpenChannel2,
    OpenReservedChannel,
    OpenResult,
)
from .versions import NO_FEATURES, OPEN2_FEATURES, FeatureFlags, Version


class Sender(Enum):
    """Who sends a message."""

    GUEST = "guest"
    HOST = "host"


class Rule(NamedTuple):
    """One message type: who sends it, from which version, with which feature, and its forms, shortest first."""

    sender: Sender
    since: Version
    feature: FeatureFlags
    forms: tuple[type[ChannelMessage], ...]


_G, _H, _V = Sender.GUEST, Sender.HOST, Version
_M = MessageType

RULES: dict[MessageType, Rule] = {
    _M.OFFER_CHANNEL: Rule(_H, _V.V1, NO_FEATURES, (OfferChannel,)),
    _M.RESCIND_CHANNEL_OFFER: Rule(_H, _V.V1, NO_FEATURES, (RescindChannelOffer,)),
    _M.REQUEST_OFFERS: Rule(_G, _V.V1, NO_FEATURES, (RequestOffers,)),
    _M.ALL_OFFERS_DELIVERED: Rule(_H, _V.V1, NO_FEATURES, (AllOffersDelivered,)),
    _M.OPEN_CHANNEL: Rule(_G, _V.V1, NO_FEATURES, (OpenChannel, OpenChannel2)),
    _M.OPEN_CHANNEL_RESULT: Rule(_H, _V.V1, NO_FEATURES, (OpenResult,)),
    _M.CLOSE_CHANNEL: Rule(_G, _V.V1, NO_FEATURES, (CloseChannel,)),
    _M.GPADL_HEADER: Rule(_G, _V.V1, NO_FEATURES, (GpadlHeader,)),
    _M.GPADL_BODY: Rule(_G, _V.V1, NO_FEATURES, (GpadlBody,)),
    _M.GPADL_CREATED: Rule(_H, _V.V1, NO_FEATURES, (GpadlCreated,)),
    _M.GPADL_TEARDOWN: Rule(_G, _V.V1, NO_FEATURES, (GpadlTeardown,)),
    _M.GPADL_TORNDOWN: Rule(_H, _V.V1, NO_FEATURES, (GpadlTorndown,)),
    _M.RELID_RELEASED: Rule(_G, _V.V1, NO_FEATURES, (RelidReleased,)),
    _M.INITIATE_CONTACT: Rule(_G, _V.V1, NO_FEATURES, (InitiateContact, InitiateContact2)),
    _M.VERSION_RESPONSE: Rule(_H, _V.V1, NO_FEATURES, (VersionResponse, VersionResponse2, VersionResponse3)),
    _M.UNLOAD: Rule(_G, _V.V1, NO_FEATURES, (Unload,)),
    _M.UNLOAD_COMPLETE: Rule(_H, _V.WIN7, NO_FEATURES, (UnloadComplete,)),
    _M.OPEN_RESERVED_CHANNEL: Rule(_G, _V.WIN10, NO_FEATURES, (OpenReservedChannel,)),
    _M.CLOSE_RESERVED_CHANNEL: Rule(_G, _V.V1, NO_FEATURES, (CloseReservedChannel,)),
    _M.CLOSE_RESERVED_CHANNEL_RESPONSE: Rule(_H, _V.WIN10, NO_FEATURES, (CloseReservedChannelResponse,)),
    _M.TL_CONNECT_REQUEST: Rule(_G, _V.WIN10, NO_FEATURES, (TlConnectRequest, TlConnectRequest2)),
    _M.MODIFY_CHANNEL: Rule(_G, _V.WIN10_RS3_0, NO_FEATURES, (ModifyChannel,)),
    _M.TL_CONNECT_RESULT: Rule(_H, _V.WIN10_RS3_0, NO_FEATURES, (TlConnectResult,)),
    _M.MODIFY_CHANNEL_RESPONSE: Rule(_H, _V.IRON, NO_FEATURES, (ModifyChannelResponse,)),
    _M.MODIFY_CONNECTION: Rule(_G, _V.COPPER, FeatureFlags.MODIFY_CONNECTION, (ModifyConnection,)),
    _M.MODIFY_CONNECTION_RESPONSE: Rule(_H, _V.COPPER, FeatureFlags.MODIFY_CONNECTION, (ModifyConnectionResponse,)),
    _M.PAUSE: Rule(_G, _V.COPPER, FeatureFlags.PAUSE_RESUME, (Pause,)),
    _M.PAUSE_RESPONSE: Rule(_H, _V.COPPER, FeatureFlags.PAUSE_RESUME, (PauseResponse,)),
    _M.RESUME: Rule(_G, _V.COPPER, FeatureFlags.PAUSE_RESUME, (Resume,)),
}
"""Every channel message there is. Without a connection a server takes types 14 and 19 only."""

WITHOUT_CONNECTION = frozenset({MessageType.INITIATE_CONTACT, MessageType.CLOSE_RESERVED_CHANNEL})


class Agreed(NamedTuple):
    """What host and guest agreed on; `version` None while there is no connection."""

    version: Version | None = None
    features: FeatureFlags = NO_FEATURES


def parse_message(data: bytes, sender: Sender | None = None, agreed: Agreed | None = None) -> ChannelMessage:
    """Turn bytes into the message that they are; bytes beyond its size are ignored.

    `sender`: the side that may have sent it, None for either. `agreed`: what the connection allows and which form a
    message has; None allows all, and the size decides. `ProtocolError` for a message that is too short, of an unknown
    type, of the wrong side, or not allowed.
    """
    message_type = message_type_of(data)
    rule = RULES[message_type]
    if sender is not None and rule.sender is not sender:
        raise _invalid_type(message_type, f"a message that a {sender.value} sends", f"only a {rule.sender.value} does")
    if agreed is not None and message_type not in WITHOUT_CONNECTION:
        _check_allowed(message_type, rule, agreed)
    return _form(message_type, rule, data, agreed).unpack(data)


def message_type_of(data: bytes) -> MessageType:
    """The type of a channel message. `ProtocolError` when there is no header or no such type."""
    if len(data) < HEADER.size:
        raise ProtocolError(
            "channel message", len(data), f"a header of {HEADER.size} bytes", f"an end after {len(data)}"
        )
    (number, _) = HEADER.unpack_from(data)
    if number not in RULES:
        raise ProtocolError("channel message", 0, "a message type from 1 to 29", str(number))
    return MessageType(number)


def name_of(data: bytes) -> tuple[str, int]:
    """For the trace: what a message calls itself, and the channel that it names (0 where it names none)."""
    try:
        message = parse_message(data)
    except ProtocolError:
        return "unreadable message", 0
    channel_id: int = getattr(message, "channel_id", 0)
    return message.TYPE.name, channel_id


def _check_allowed(message_type: MessageType, rule: Rule, agreed: Agreed) -> None:
    if agreed.version is None:
        if rule.sender is Sender.GUEST:
            raise _invalid_type(message_type, "type 14 or 19 without a connection", "it needs one")
        return
    if agreed.version < rule.since:
        raise _invalid_type(message_type, f"a type of version {agreed.version.label}", f"{rule.since.label} brought it")
    if rule.feature & ~agreed.features:
        raise _invalid_type(message_type, "a type that was agreed on", f"it needs feature {int(rule.feature):#x}")


def _form(message_type: MessageType, rule: Rule, data: bytes, agreed: Agreed | None) -> type[ChannelMessage]:
    """The form that these bytes have: what was agreed on decides, or else their size."""
    if message_type is MessageType.INITIATE_CONTACT and agreed is not None:
        return _contact_form(data)
    version = None if agreed is None else agreed.version
    if agreed is not None and version is not None:
        if message_type is MessageType.OPEN_CHANNEL:
            is_long = version >= Version.COPPER and agreed.features & OPEN2_FEATURES
            return OpenChannel2 if is_long else OpenChannel
        if message_type is MessageType.TL_CONNECT_REQUEST and version < Version.WIN10_RS5:
            return TlConnectRequest
    fitting = [form for form in rule.forms if len(data) >= form.layout().size]
    return fitting[-1] if fitting else rule.forms[0]


def _contact_form(data: bytes) -> type[InitiateContact]:
    """The version that a contact asks for and its feature flags say whether a client ID follows."""
    contact = InitiateContact.unpack(data)
    says_who = contact.version_requested >= Version.COPPER and contact.feature_flags & FeatureFlags.CLIENT_ID
    return InitiateContact2 if says_who else InitiateContact


def _invalid_type(message_type: MessageType, expected: str, got: str) -> ProtocolError:
    return ProtocolError("channel message", 0, expected, f"{int(message_type)} ({message_type.name}): {got}")
