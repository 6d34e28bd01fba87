"""The saved state of a client, format 1: one versioned document, as `broker.state` writes those of partitions.

The document is msgpack: {format, version, crc32, body}; the body is encoded on its own, so that the checksum covers it.
It holds the connection, its channels and GPADLs, and the messages that wait for the host to listen again.
"""

from __future__ import annotations

import zlib
from typing import Any

import msgspec

from broker.errors import DamagedDocument, ProtocolError, UnsupportedVersion

from ..protocol.ids import MAX_CHANNELS
from ..protocol.message import ChannelMessage
from ..protocol.offer import OfferChannel
from ..protocol.parse import Agreed, Sender, parse_message
from ..protocol.versions import FeatureFlags, Version, find_version
from .client_states import USES_FLAG, ChannelState, ClientChannel, GpadlState
from .effects import MonitorPages

FORMAT = "vmbus-broker client"
VERSION = 1


class SavedChannel(msgspec.Struct, frozen=True):
    """One channel: its offer as it came, where it is, how it is signalled, its GPADLs by ID."""

    offer: bytes
    state: ChannelState
    is_held: bool
    event_flag: int
    has_own_flag: bool
    connection_id: int
    gpadls: dict[int, GpadlState]


class SavedConnection(msgspec.Struct, frozen=True):
    """What was agreed on, and what there is."""

    version: int
    features: int
    connection_id: int
    interrupt_page: int
    monitor_pages: MonitorPages | None
    channels: list[SavedChannel]
    held: list[bytes]
    """Messages that are to be posted once the host listens again, oldest first."""


class ClientDocument(msgspec.Struct, frozen=True):
    """The body; no connection when the client had none."""

    connection: SavedConnection | None


class Envelope(msgspec.Struct, frozen=True):
    """The document."""

    format: str
    version: int
    crc32: int
    body: bytes


class RestoredConnection(msgspec.Struct, frozen=True):
    """A `SavedConnection` that was read and found consistent."""

    agreed: Agreed
    connection_id: int
    interrupt_page: int
    monitor_pages: MonitorPages | None
    channels: list[ClientChannel]
    held: list[ChannelMessage]


def save_channel(channel: ClientChannel) -> SavedChannel:
    """One channel for the document."""
    return SavedChannel(
        channel.offer.pack(),
        channel.state,
        channel.is_held,
        channel.event_flag,
        channel.has_own_flag,
        channel.connection_id,
        dict(channel.gpadls),
    )


def encode(connection: SavedConnection | None) -> bytes:
    """The document."""
    body = msgspec.msgpack.encode(ClientDocument(connection))
    return msgspec.msgpack.encode(Envelope(FORMAT, VERSION, zlib.crc32(body), body))


def decode(document: bytes) -> RestoredConnection | None:
    """Read a document. `DamagedDocument` or `UnsupportedVersion` with a sentence."""
    envelope: Envelope = _decode(document, Envelope, "a saved client")
    if envelope.format != FORMAT:
        raise DamagedDocument(f"this is a document of format {envelope.format!r}, not a saved VMBus client")
    if envelope.version < 1:
        raise DamagedDocument(f"the saved client says that its version is {envelope.version}; versions count from 1")
    if envelope.version > VERSION:
        raise UnsupportedVersion(
            f"the saved client is of version {envelope.version}; this program reads up to version {VERSION}"
        )
    if zlib.crc32(envelope.body) != envelope.crc32:
        raise DamagedDocument("the saved client is damaged: its checksum does not fit")
    body: ClientDocument = _decode(envelope.body, ClientDocument, "the body of the saved client")
    return None if body.connection is None else _restored(body.connection)


def _restored(saved: SavedConnection) -> RestoredConnection:
    version = find_version(saved.version)
    if version is None or saved.features >> 32 or (saved.features and version < Version.COPPER):
        raise DamagedDocument(f"the saved client's version {saved.version:#x} and features do not go together")
    agreed = Agreed(version, FeatureFlags(saved.features))
    try:
        held = [parse_message(data, Sender.GUEST, agreed) for data in saved.held]
        channels = [_restored_channel(channel, agreed) for channel in saved.channels]
    except ProtocolError as error:
        raise DamagedDocument(f"the saved client holds a message that is none: {error}") from error
    _check_unique("channel ID", [channel.offer.channel_id for channel in channels])
    _check_unique("event flag", [channel.event_flag for channel in channels if channel.has_own_flag])
    _check_unique("GPADL ID", [gpadl_id for channel in channels for gpadl_id in channel.gpadls])
    gpas = [saved.interrupt_page]
    if saved.monitor_pages is not None:
        gpas += [saved.monitor_pages.parent_to_child, saved.monitor_pages.child_to_parent]
    if saved.connection_id >> 32 or any(gpa >> 64 for gpa in gpas):
        raise DamagedDocument("the saved client's connection ID or pages have too many bits")
    pages = saved.monitor_pages
    return RestoredConnection(agreed, saved.connection_id, saved.interrupt_page, pages, channels, held)


def _restored_channel(saved: SavedChannel, agreed: Agreed) -> ClientChannel:
    offer = parse_message(saved.offer, Sender.HOST)
    is_open = saved.state in USES_FLAG
    may_choose = agreed.features & FeatureFlags.GUEST_SPECIFIED_SIGNAL_PARAMETERS
    fits = (
        isinstance(offer, OfferChannel)
        and 1 <= offer.channel_id <= MAX_CHANNELS
        and saved.state in (ChannelState.OFFERED, ChannelState.OPEN, ChannelState.RESTORED)
        and (is_open or not (saved.event_flag or saved.has_own_flag or saved.connection_id))
        and (not is_open or 1 <= saved.event_flag <= MAX_CHANNELS)
        and (may_choose or not saved.has_own_flag)
        and (saved.is_held or not is_open)
        and 0 <= saved.connection_id < 1 << 32
        and all(0 <= gpadl_id < 1 << 32 for gpadl_id in saved.gpadls)
        and GpadlState.CREATING not in saved.gpadls.values()
    )
    if not fits or not isinstance(offer, OfferChannel):
        raise DamagedDocument("the saved client's channels contradict themselves")
    return ClientChannel(
        offer,
        ChannelState.RESTORED if is_open else ChannelState.OFFERED,
        saved.is_held,
        event_flag=saved.event_flag,
        has_own_flag=saved.has_own_flag,
        connection_id=saved.connection_id,
        gpadls=dict(saved.gpadls),
    )


def _check_unique(what: str, values: list[int]) -> None:
    if len(set(values)) != len(values):
        raise DamagedDocument(f"the saved client uses one {what} twice")


def _decode(data: bytes, kind: Any, what: str) -> Any:
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
        raise DamagedDocument(f"{what} cannot be read: {error}") from error
