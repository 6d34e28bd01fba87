"""The saved state of a client, format 1: one versioned document, as `broker.state` writes those of partitions.

The document is msgpack: {format, version, crc32, body}; the body is encoded on its own, so that the checksum covers it.
It holds the connection, its channels and GPADLs, and the messages that wait for the host to listen again.
"""

from __future__ import annotations

import msgspec

from broker.errors import DamagedDocument, ProtocolError

from ...protocol.ids import MAX_CHANNELS
from ...protocol.message import ChannelMessage
from ...protocol.offer import OfferChannel
from ...protocol.parse import Agreed, Sender, parse_message
from ...protocol.versions import FeatureFlags, Version, find_version
from ..documents import DocumentFormat
from ..effects import MonitorPages
from .states import USES_FLAG, ChannelState, ClientChannel, GpadlState

FORMAT = DocumentFormat("vmbus-broker client", 1, "saved VMBus client")


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
    return FORMAT.encode(ClientDocument(connection))


def decode(document: bytes) -> RestoredConnection | None:
    """Read a document. `DamagedDocument` or `UnsupportedVersion` with a sentence."""
    body = FORMAT.decode(document, ClientDocument)
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
