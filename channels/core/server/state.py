"""What the parts of the server's machine share: its configuration, its connection, its channels, and the effects so far."""

from __future__ import annotations

from collections import Counter, deque
from enum import Enum
from typing import Literal, NamedTuple
from uuid import UUID

import msgspec

from broker.hvdef import Vtl

from ...protocol.hvsock import TlConnectRequest
from ...protocol.ids import (
    MESSAGE_CONNECTION,
    MULTICLIENT_CONNECTION,
    REDIRECT_SINT,
    VMBUS_SINT,
    message_connection,
)
from ...protocol.message import ChannelMessage
from ...protocol.parse import Agreed
from ...protocol.versions import ALWAYS_SUPPORTED, NO_FEATURES, FeatureFlags, Version
from ...protocol.wire import NO_GUID
from .effects import ChannelChanged, Complaint, Effect, GpadlChanged, MonitorPages, SendMessage, Target
from .gpadl import Gpadl, GpadlState
from .table import Channel, ChannelState, ChannelTable

GPADL_WORDS = 1 << 20


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How a server is set up."""

    vtl: Vtl = Vtl.VTL0
    """The VTL that contacts mean this server by, and that channel interrupts go to (SINT 2)."""
    redirect_vtl: Vtl = Vtl.VTL2
    redirect_sint: int = REDIRECT_SINT
    """Where interrupts go that a guest asks to be redirected."""
    redirects_messages: bool = False
    """The guest is a paravisor: it posts to the redirect VTL's connection, and gets messages at the redirect SINT."""
    message_connection_id: int | None = None
    """What VERSION_RESPONSE names from version 5.0 on; the newest of `connections` unless given."""
    max_version: Version = Version.COPPER
    max_version_after_unload: Version | None = None
    """A cap that starts with the first UNLOAD, for firmware that may speak newer than the system it boots."""
    features: FeatureFlags = ALWAYS_SUPPORTED | FeatureFlags.CONFIDENTIAL_CHANNELS | FeatureFlags.GPA_PINNING
    """The most that is agreed on."""
    gpa_pinning: bool = False
    must_allocate_monitor_pages: bool = False
    """Monitor pages of the guest are not used."""
    first_channel_id: int = 1
    """1025 for a paravisor's server beside the host's."""
    absolute_order: bool = False
    """The order that devices ask for counts before their interface."""
    gpadl_words: int = GPADL_WORDS
    """64-bit words that all GPADLs of a guest may hold, each counted with 16 more."""

    @property
    def connections(self) -> dict[int, bool]:
        """The connection IDs that guests post to, oldest first, and whether several servers share each."""
        if self.vtl is Vtl.VTL0 and not self.redirects_messages:
            return {MESSAGE_CONNECTION: False, MULTICLIENT_CONNECTION: True}
        return {message_connection(self.message_sint, 0, self.message_vtl): True}

    @property
    def message_vtl(self) -> Vtl:
        """The VTL that control messages come from and go to."""
        return self.redirect_vtl if self.redirects_messages else self.vtl

    @property
    def message_sint(self) -> int:
        """The SINT that control messages go to."""
        return self.redirect_sint if self.redirects_messages else VMBUS_SINT

    @property
    def named_connection(self) -> int:
        """What VERSION_RESPONSE names."""
        return list(self.connections)[-1] if self.message_connection_id is None else self.message_connection_id


class ConnectionPhase(Enum):
    """Where the connection is."""

    DISCONNECTED = "disconnected"
    CONNECTING = "connecting"
    CONNECTED = "connected"
    DISCONNECTING = "disconnecting"


class ContactRequest(msgspec.Struct, frozen=True):
    """An INITIATE_CONTACT as it is to be understood."""

    version_requested: int
    target_vp: int
    features: FeatureFlags
    interrupt_page: int
    parent_to_child: int
    child_to_parent: int
    client_id: UUID
    trusted: bool


class NextAction(msgspec.Struct, frozen=True):
    """What follows once the connection is gone."""

    kind: Literal["reset", "unload", "reconnect", "nothing"]
    contact: ContactRequest | None = None


class Connection:
    """The connection to the guest, or what is left of it."""

    def __init__(self) -> None:
        self.phase = ConnectionPhase.DISCONNECTED
        self.next: NextAction | None = None
        self.version = Version.V1
        self.features = NO_FEATURES
        self.trusted = False
        self.client_id = NO_GUID
        self.interrupt_page: int | None = None
        self.monitor_pages: MonitorPages | None = None
        self.host_owns_monitor_pages = False
        self.target_vp = 0
        self.offers_sent = False
        self.modifying = False
        """A MODIFY_CONNECTION is under way."""
        self.old_monitor_pages: MonitorPages | None = None
        """While it is: the pages to go back to should it fail."""
        self.paused = False
        self.reset_sent = False
        """While disconnecting: nothing is left of the guest, and the backend has been told."""

    @property
    def is_connected(self) -> bool:
        """A version is agreed on and the guest may talk."""
        return self.phase is ConnectionPhase.CONNECTED

    @property
    def is_trusted(self) -> bool:
        """It was made, or is being made, with a trusted message: no other may end or replace it."""
        return self.trusted and self.phase in (ConnectionPhase.CONNECTING, ConnectionPhase.CONNECTED)

    @property
    def agreed(self) -> Agreed:
        """What the guest may send."""
        return Agreed(self.version, self.features) if self.is_connected else Agreed()

    @property
    def is_resetting(self) -> bool:
        """The VM is being reset: guest messages are not looked at."""
        return self.next is not None and self.next.kind == "reset"


class HvsockConnect(NamedTuple):
    """A guest's connect; nobody but the connection that it came over hears how it ended."""

    request: TlConnectRequest
    connection: Connection


class ServerState:
    """See the module."""

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.connection = Connection()
        self.channels = ChannelTable(config.first_channel_id, absolute_order=config.absolute_order)
        self.gpadls_in_progress: dict[int, Channel] = {}
        """By GPADL ID: bodies do not name their channel."""
        self.gpadl_words = 0
        self.backend: deque[str] = deque()
        """What the requests that the backend has not answered are for, in order."""
        self.hvsock: deque[HvsockConnect] = deque()
        """Connects that the host's listeners have not answered."""
        self.had_unload = False
        self.unmatched: set[int] = set()
        """Offers of a restored state whose devices have not come back."""
        self.held: deque[ChannelMessage] = deque()
        """Messages that wait for RESUME."""
        self.complaints: Counter[str] = Counter()
        self._effects: list[Effect] = []

    def of_offer(self, offer_id: int) -> Channel | None:
        """The channel of a device's offer, None once the device is gone."""
        channel = self.channels.by_offer.get(offer_id)
        return None if channel is None or channel.state is ChannelState.REVOKED else channel

    def emit(self, effect: Effect) -> None:
        """Ask the shell for something."""
        self._effects.append(effect)

    def take_effects(self) -> list[Effect]:
        """What was asked for since the last time, in order."""
        effects, self._effects = self._effects, []
        return effects

    def send(self, message: ChannelMessage, target: Target | None = None) -> None:
        """Send to the guest; while it has paused us, messages to its own target wait."""
        if target is None and self.connection.paused:
            self.held.append(message)
        else:
            self.emit(SendMessage(message, target))

    def complain(self, event: str, reason: str, name: str = "") -> None:
        """Count and report something that should not have been."""
        self.complaints[event] += 1
        self.emit(Complaint(event, reason, name))

    def set_channel(self, channel: Channel, state: ChannelState) -> None:
        """The channel goes over to another state."""
        if channel.state is not state:
            self.emit(ChannelChanged(channel.channel_id or 0, channel.state.value, state.value))
            channel.state = state

    def set_gpadl(self, channel: Channel, gpadl: Gpadl, state: GpadlState) -> None:
        """The GPADL goes over to another state."""
        self.emit(GpadlChanged(channel.channel_id or 0, gpadl.gpadl_id, gpadl.state.value, state.value))
        gpadl.state = state

    def supported_features(self, *, trusted: bool) -> FeatureFlags:
        """What may be agreed on with such a guest."""
        features = self.config.features
        if not trusted:
            features &= ~FeatureFlags.CONFIDENTIAL_CHANNELS
        if not self.config.gpa_pinning:
            features &= ~FeatureFlags.GPA_PINNING
        return features

    def has(self, feature: FeatureFlags) -> bool:
        """Was this feature agreed on?"""
        return bool(self.connection.features & feature)
