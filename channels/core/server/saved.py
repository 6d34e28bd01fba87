"""A server's saved state, format 1: what a guest may rely on after a restore (OpenVMM, `saved_state.rs`).

The document is msgpack: {format, version, crc32, body}, like a partition's. It holds the connection, every channel that
the guest has an ID for, its GPADLs, and messages that have not gone out. It does not hold rings, which are in guest
memory, nor what devices know. A restored channel waits until its device says how it stands (`ServerMachine.restore_channel`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar
from uuid import UUID

import msgspec

from broker.errors import ConfigurationError, DamagedDocument, HostError, ProtocolError

from ...protocol.ids import MAX_MESSAGE
from ...protocol.message import ChannelMessage
from ...protocol.offer import USER_AREA
from ...protocol.parse import Agreed, Sender, parse_message
from ...protocol.versions import NO_FEATURES, FeatureFlags, Version, find_version, version_label
from ..documents import DocumentFormat
from .effects import MonitorPages, OpenParams
from .gpadl import GPADL_COST, WORD, Gpadl, GpadlState
from .offer_params import OfferKey, OfferParams
from .state import Connection, ConnectionPhase, NextAction, ServerState
from .table import Channel, ChannelState

FORMAT = DocumentFormat("vmbus-broker server state", 1, "saved state of a VMBus server")

_S = ChannelState
_LEAST_RESERVED = Version.WIN10

T = TypeVar("T")

_SAVED_STATES = Literal["closed", "opening", "open", "closing", "closing-reopen", "revoked"]
_SAVED_GPADL_STATES = Literal["in-progress", "offered", "accepted", "tearing-down"]


class SavedGpadl(msgspec.Struct, frozen=True):
    """One GPADL; `length` is what its header announced."""

    gpadl_id: int
    range_count: int
    length: int
    buffer: bytes
    state: _SAVED_GPADL_STATES


class SavedReserve(msgspec.Struct, frozen=True):
    """What was agreed on when a reserved channel was opened."""

    version: int
    features: int


class SavedChannel(msgspec.Struct, frozen=True):
    """One channel that the guest has an ID for."""

    key: OfferKey
    channel_id: int
    monitor_id: int | None
    owns_monitor: bool
    state: _SAVED_STATES
    open: OpenParams | None
    reopen: OpenParams | None
    modifying: bool
    next_vp: int | None
    reserve: SavedReserve | None
    gpadls: list[SavedGpadl]


class SavedConnection(msgspec.Struct, frozen=True):
    """The connection, unless there is none."""

    phase: Literal["connecting", "connected", "disconnecting"]
    version: int
    features: int
    trusted: bool
    client_id: UUID
    interrupt_page: int | None
    monitor_pages: MonitorPages | None
    target_vp: int
    offers_sent: bool
    modifying: bool
    paused: bool
    next: NextAction | None
    old_monitor_pages: MonitorPages | None = None
    """What a MODIFY_CONNECTION that is under way goes back to should it fail."""


class SavedServer(msgspec.Struct, frozen=True):
    """The body."""

    connection: SavedConnection | None
    had_unload: bool
    channels: list[SavedChannel]
    messages: list[bytes]
    """What has not gone out yet, oldest first."""
    held: list[bytes]
    """What waits for RESUME."""


def encode(state: ServerState, messages: Sequence[bytes], unanswered: Sequence[ChannelMessage] = ()) -> bytes:
    """The document. `messages` have not gone out; `unanswered` come after all others, also after those that are held.

    `HostError` while monitor pages are the host's own: another host could not give the same.
    """
    connection = state.connection
    if connection.host_owns_monitor_pages:
        raise HostError("a connection whose monitor pages the host has allocated cannot be saved")
    last = [message.pack() for message in unanswered]
    saved = SavedServer(
        _save_connection(connection),
        state.had_unload,
        [_save_channel(channel) for _, channel in sorted(state.channels.by_channel_id.items())],
        [*messages, *([] if connection.paused else last)],
        [*(message.pack() for message in state.held), *(last if connection.paused else [])],
    )
    return FORMAT.encode(saved)


def decode(document: bytes) -> SavedServer:
    """Read a document. `DamagedDocument` or `UnsupportedVersion` with a sentence."""
    saved = FORMAT.decode(document, SavedServer)
    _check(saved)
    return saved


def load(state: ServerState, saved: SavedServer) -> None:
    """Take the saved state over into a server that has had no guest. `ConfigurationError` when it allows less than was
    agreed on, or has another channel space; then nothing has changed."""
    if state.channels.by_channel_id or state.connection.phase is not ConnectionPhase.DISCONNECTED or state.unmatched:
        raise HostError("a server is restored once, before it has a guest")
    _check_fits(state, saved)
    if saved.connection is not None:
        state.connection = _load_connection(saved.connection)
    state.had_unload = saved.had_unload
    for entry in saved.channels:
        channel = state.channels.by_key.get(entry.key)
        if channel is None:
            channel = Channel(state.channels.new_offer_id(), _unknown_offer(entry.key))
            state.channels.add(channel)
            state.unmatched.add(channel.offer_id)
        _load_channel(state, channel, entry)


def _save_connection(connection: Connection) -> SavedConnection | None:
    phase = connection.phase
    if phase is ConnectionPhase.DISCONNECTED:
        return None
    next_action = connection.next
    if next_action is not None and next_action.kind == "reset":
        next_action = NextAction("nothing")
    return SavedConnection(
        phase.value,
        int(connection.version),
        int(connection.features),
        connection.trusted,
        connection.client_id,
        connection.interrupt_page,
        connection.monitor_pages,
        connection.target_vp,
        connection.offers_sent,
        connection.modifying,
        connection.paused,
        next_action,
        connection.old_monitor_pages,
    )


def _load_connection(saved: SavedConnection) -> Connection:
    connection = Connection()
    connection.phase = ConnectionPhase(saved.phase)
    connection.version = Version(saved.version)
    connection.features = FeatureFlags(saved.features)
    for name in ("trusted", "client_id", "interrupt_page", "monitor_pages", "target_vp", "offers_sent", "modifying"):
        setattr(connection, name, getattr(saved, name))
    connection.paused, connection.next = saved.paused, saved.next
    connection.old_monitor_pages = saved.old_monitor_pages
    return connection


def _save_channel(channel: Channel) -> SavedChannel:
    state = _S.REVOKED if channel.state is _S.REOFFERED else channel.state
    reserve = channel.reserve
    assert channel.channel_id is not None
    return SavedChannel(
        channel.params.key,
        channel.channel_id,
        channel.monitor_id,
        channel.owns_monitor,
        state.value,
        channel.open,
        channel.reopen,
        channel.modifying,
        channel.next_vp,
        None if reserve is None else SavedReserve(int(reserve.version or 0), int(reserve.features)),
        [
            SavedGpadl(gpadl.gpadl_id, gpadl.range_count, gpadl.length, gpadl.buffer, gpadl.state.value)  # type: ignore[arg-type]
            for gpadl in channel.gpadls.values()
            if not gpadl.is_released
        ],
    )


def _load_channel(state: ServerState, channel: Channel, saved: SavedChannel) -> None:
    has_device = channel.offer_id not in state.unmatched
    channel.state = ChannelState(saved.state)
    if channel.state is _S.REVOKED and has_device:
        channel.state = _S.REOFFERED
    channel.restored = channel.state is _S.REVOKED
    if channel.restored:
        state.unmatched.discard(channel.offer_id)
    state.channels.take_id(channel, saved.channel_id)
    if saved.monitor_id is not None and saved.owns_monitor:
        state.channels.take_monitor(channel, saved.monitor_id)
    channel.monitor_id = saved.monitor_id
    channel.open, channel.reopen = saved.open, saved.reopen
    channel.modifying, channel.next_vp = saved.modifying, saved.next_vp
    if saved.reserve is not None:
        channel.reserve = Agreed(Version(saved.reserve.version), FeatureFlags(saved.reserve.features))
    for entry in saved.gpadls:
        gpadl = Gpadl(entry.gpadl_id, entry.range_count, entry.length)
        gpadl.buffer, gpadl.state = entry.buffer, GpadlState(entry.state)
        channel.gpadls[gpadl.gpadl_id] = gpadl
        state.gpadl_words += gpadl.cost
        if gpadl.state is GpadlState.IN_PROGRESS:
            state.gpadls_in_progress[gpadl.gpadl_id] = channel


def _unknown_offer(key: OfferKey) -> OfferParams:
    """Stands for a device that has not come back: it is rescinded, never offered."""
    return OfferParams(
        interface_id=key.interface_id, instance_id=key.instance_id, subchannel_index=key.subchannel_index
    )


def _check(saved: SavedServer) -> None:
    """The document does not contradict itself."""
    ids = [channel.channel_id for channel in saved.channels]
    keys = [channel.key for channel in saved.channels]
    monitors = [
        channel.monitor_id for channel in saved.channels if channel.monitor_id is not None and channel.owns_monitor
    ]
    in_progress = [g.gpadl_id for channel in saved.channels for g in channel.gpadls if g.state == "in-progress"]
    for what, values in (("channel ID", ids), ("monitor ID", monitors), ("unfinished GPADL", in_progress)):
        if len(set(values)) != len(values):
            raise DamagedDocument(f"the server's saved state has a {what} twice")
    if len(set(keys)) != len(keys):
        raise DamagedDocument("the server's saved state has an offer twice")
    for channel in saved.channels:
        _check_channel(channel, saved.connection is None or saved.connection.phase != "connected")
    if any(len(message) > MAX_MESSAGE for message in (*saved.messages, *saved.held)):
        raise DamagedDocument("the server's saved state has a message that is too long")
    connection = saved.connection
    if connection is not None and _is_torn(connection):
        raise DamagedDocument("the saved connection contradicts itself")
    if saved.held and (saved.connection is None or not saved.connection.paused):
        raise DamagedDocument("the server's saved state holds messages without a pause")
    try:
        for message in saved.held:
            parse_message(message, Sender.HOST)
    except ProtocolError as error:
        raise DamagedDocument(f"the server's saved state holds a message that is none: {error}") from error


def _is_torn(connection: SavedConnection) -> bool:
    """Only a connection that ends has something that is next, and what is under way was agreed on."""
    is_ending = connection.phase == "disconnecting"
    return (
        (connection.phase != "connecting" and is_ending != (connection.next is not None))
        or (connection.modifying and not connection.features & FeatureFlags.MODIFY_CONNECTION)
        or (connection.paused and not connection.features & FeatureFlags.PAUSE_RESUME)
        or not _fit(32, connection.target_vp)
    )


def _check_channel(channel: SavedChannel, is_disconnected: bool) -> None:
    gpadl_ids = [gpadl.gpadl_id for gpadl in channel.gpadls]
    is_busy = channel.state in ("opening", "open", "closing", "closing-reopen")
    is_reserved = channel.open is not None and channel.open.reserved is not None
    contradictions = (
        len(set(gpadl_ids)) != len(gpadl_ids),
        (channel.open is not None) != is_busy,
        (channel.reopen is not None) != (channel.state == "closing-reopen"),
        channel.modifying and channel.state != "open",
        channel.next_vp is not None and not channel.modifying,
        is_reserved != (channel.reserve is not None),
        is_disconnected and not is_reserved and channel.state != "revoked",
        any(len(g.buffer) > g.length or g.length > 0xFFFF or g.length % 8 or len(g.buffer) % 8 for g in channel.gpadls),
        channel.monitor_id is not None and not 0 <= channel.monitor_id < 128,
        not _fit(16, channel.key.subchannel_index, *(gpadl.range_count for gpadl in channel.gpadls)),
        not _fit(32, channel.next_vp, *gpadl_ids),
        not all(_can_be_told(params) for params in (channel.open, channel.reopen) if params is not None),
    )
    if any(contradictions):
        raise DamagedDocument(f"the saved state of channel {channel.channel_id} contradicts itself")
    for entry in channel.gpadls:
        if entry.state != "in-progress":
            gpadl = Gpadl(entry.gpadl_id, entry.range_count, entry.length)
            gpadl.buffer = entry.buffer
            gpadl.validate()


def _can_be_told(params: OpenParams) -> bool:
    """A guest can have said this in an open."""
    target = params.reserved
    numbers = (params.open_id, params.gpadl_id, params.target_vp, params.page_offset, params.connection_id)
    return (
        _fit(32, *numbers, None if target is None else target.vp)
        and _fit(16, params.event_flag)
        and _fit(8, None if target is None else target.sint)
        and len(params.user_data) == USER_AREA
    )


def _fit(bits: int, *values: int | None) -> bool:
    """Unsigned numbers of so many bits."""
    return all(value is None or 0 <= value < 1 << bits for value in values)


def _check_fits(state: ServerState, saved: SavedServer) -> None:
    """This server allows what the saved one had agreed on."""
    if saved.connection is not None:
        connection = saved.connection
        _check_agreed(state, connection.version, connection.features, connection.trusted, "the saved connection")
    words = 0
    for channel in saved.channels:
        if not state.channels.is_id_free(channel.channel_id):
            raise ConfigurationError(f"channel {channel.channel_id} of the saved state is none of this server's IDs")
        if channel.reserve is not None:
            what = f"reserved channel {channel.channel_id}"
            _check_agreed(state, channel.reserve.version, channel.reserve.features, True, what, _LEAST_RESERVED)
        words += sum(gpadl.length // WORD + GPADL_COST for gpadl in channel.gpadls)
    if words > state.config.gpadl_words:
        raise ConfigurationError(f"the saved GPADLs hold {words} words, this server allows {state.config.gpadl_words}")


def _check_agreed(
    state: ServerState, version: int, features: int, trusted: bool, what: str, least: Version = Version.V1
) -> None:
    found = find_version(version)
    if found is None or not least <= found <= state.config.max_version:
        cap = state.config.max_version.label
        raise ConfigurationError(f"{what} speaks version {version_label(version)}; this server goes up to {cap}")
    allowed = state.supported_features(trusted=trusted) if found >= Version.COPPER else NO_FEATURES
    if features & ~int(allowed):
        raise ConfigurationError(
            f"{what} has feature flags {features:#x}; at version {found.label} this server allows {int(allowed):#x}"
        )
