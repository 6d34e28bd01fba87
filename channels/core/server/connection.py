"""The server's connection: contact and version, monitor pages, unload, reset, pause (reference: OpenVMM, `channels.rs`).

    Disconnected -> Connecting -> Connected -> Disconnecting -> Disconnected -> what is next

The backend is asked before a guest is answered (`ModifyConnection`), and again when nothing is left of a guest. It will
answer nothing before its devices have let go. A newer request of the guest replaces what was to be next.
"""

from __future__ import annotations

from collections.abc import Callable

from broker.errors import ProtocolError
from broker.hvdef import PAGE_SIZE

from ...protocol.connect import (
    InitiateContact,
    InitiateContact2,
    ModifyConnectionResponse,
    PauseResponse,
    UnloadComplete,
    VersionResponse,
    VersionResponse2,
    VersionResponse3,
    version_field,
)
from ...protocol.connect import ModifyConnection as ModifyConnectionMessage
from ...protocol.ids import VMBUS_SINT
from ...protocol.message import ConnectionState
from ...protocol.versions import NO_FEATURES, FeatureFlags, Version, find_version
from ...protocol.wire import NO_GUID
from .effects import DropMessages, ForwardContact, ModifyConnection, MonitorPages, ResetDone, Target, UnloadDone
from .state import Connection, ConnectionPhase, ContactRequest, NextAction, ServerState
from .table import ChannelState

_P = ConnectionPhase
_UNKNOWN_FAILURE = ConnectionState.FAILED_UNKNOWN_FAILURE


class ConnectionMachine:
    """See the module. `release_channels` lets go of every channel for the guest; True includes the reserved ones."""

    def __init__(self, state: ServerState, release_channels: Callable[[bool], None]) -> None:
        self._state = state
        self._release_channels = release_channels

    # from the guest

    def initiate_contact(self, message: InitiateContact, trusted: bool, multiclient: bool) -> None:
        """INITIATE_CONTACT, legal at any time: whatever there was is let go of without a word."""
        state, config = self._state, self._state.config
        version = find_version(message.version_requested)
        since = version or Version.V1
        target_vp = message.target_message_vp if since >= Version.WIN8_1 else 0
        if multiclient and since >= Version.WIN10_RS3_1 and message.sint != VMBUS_SINT:
            state.send(VersionResponse(), Target(target_vp, message.sint))
            return
        if multiclient and since >= Version.WIN10_RS4 and message.vtl != config.vtl:
            state.emit(ForwardContact(message, message.vtl, trusted))
            return
        contact = ContactRequest(
            message.version_requested,
            target_vp,
            message.feature_flags if since >= Version.COPPER else NO_FEATURES,
            message.interrupt_page_or_target_info if since.has_interrupt_page else 0,
            message.parent_to_child_monitor_page_gpa,
            message.child_to_parent_monitor_page_gpa,
            message.client_id if isinstance(message, InitiateContact2) else NO_GUID,
            trusted,
        )
        connection = state.connection
        connection.paused = False  # what waits for the old connection is not for the new one, but was said before it
        self._send_held()
        if connection.phase is _P.DISCONNECTED:
            self._connect(contact)
        else:
            self._disconnect(NextAction("reconnect", contact))

    def unload(self) -> None:
        """UNLOAD: UNLOAD_COMPLETE follows when the last device has let go."""
        self._resume()
        self._state.had_unload = True
        self._disconnect(NextAction("unload"))

    def modify_connection(self, message: ModifyConnectionMessage) -> None:
        """MODIFY_CONNECTION: other monitor pages, unless a channel uses the ones there are."""
        state, connection = self._state, self._state.connection
        in_use = any(
            channel.open is not None and channel.open.monitor_id is not None
            for channel in state.channels.by_offer.values()
        )
        try:
            pages = _pages(message.parent_to_child_monitor_page_gpa, message.child_to_parent_monitor_page_gpa)
            if connection.modifying or connection.host_owns_monitor_pages or in_use:
                raise ProtocolError("MODIFY_CONNECTION", 8, "monitor pages that may change", "pages in use")
            if pages is not None and state.config.must_allocate_monitor_pages:
                raise ProtocolError(
                    "MODIFY_CONNECTION", 8, "none, since the host must allocate them", "the guest's own"
                )
        except ProtocolError as error:
            state.complain("connection_not_modified", str(error), "MODIFY_CONNECTION")
            state.send(ModifyConnectionResponse(_UNKNOWN_FAILURE))
            return
        connection.modifying = True
        connection.old_monitor_pages, connection.monitor_pages = connection.monitor_pages, pages
        self._ask_backend("modify", connection)

    def pause(self) -> None:
        """PAUSE: PAUSE_RESPONSE is the last that is sent until RESUME, UNLOAD or another INITIATE_CONTACT."""
        self._state.send(PauseResponse())
        self._state.connection.paused = True

    def resume(self) -> None:
        """RESUME: send what was held, in order."""
        self._resume()

    # from the host

    def modified(
        self,
        status: ConnectionState,
        host_pages: MonitorPages | None,
        *,
        supported: bool,
        features: FeatureFlags | None = None,
    ) -> None:
        """The backend has done, or refused, what `ModifyConnection` asked for."""
        state, connection = self._state, self._state.connection
        if not state.backend:
            state.complain("backend_answer_unexpected", "the backend answered what it was not asked")
            return
        purpose = state.backend.popleft()
        if purpose == "connect":
            if features is not None:
                connection.features &= features
            self._connected(status, host_pages, supported)
        elif purpose == "modify":
            if connection.is_connected and connection.modifying:
                connection.modifying = False
                if status is not ConnectionState.SUCCESSFUL:
                    connection.monitor_pages = connection.old_monitor_pages
                connection.old_monitor_pages = None
                state.send(ModifyConnectionResponse(status))
        elif purpose == "reset" and connection.phase is _P.DISCONNECTING:
            self._disconnected()

    def reset(self) -> None:
        """The VM is reset: let go of everything, reserved channels too, and forget what was to be sent."""
        state, connection = self._state, self._state.connection
        state.held.clear()
        connection.paused = False
        if connection.phase is _P.DISCONNECTED:
            self._release_channels(True)
            if self._is_clean(True):
                self._end_reset()
                return
            connection.phase = _P.DISCONNECTING
            connection.next = NextAction("reset")
            return
        self._disconnect(NextAction("reset"))

    def check_disconnected(self) -> None:
        """A device has let go of something: if that was the last of it, the connection is gone."""
        connection = self._state.connection
        if (
            connection.phase is _P.DISCONNECTING
            and not connection.reset_sent
            and self._is_clean(connection.is_resetting)
        ):
            connection.reset_sent = True
            self._state.backend.append("reset")
            vp = 0 if connection.is_resetting else None
            self._state.emit(ModifyConnection(None, target_vp=vp))

    def ask_again(self) -> None:
        """After a restore: ask the backend for what the saved connection uses or was asking for."""
        connection = self._state.connection
        if connection.phase is _P.CONNECTING:
            self._ask_backend("connect", connection)
        elif connection.phase is _P.CONNECTED:
            self._ask_backend("modify" if connection.modifying else "restore", connection)
        elif connection.phase is _P.DISCONNECTING:
            connection.reset_sent = False

    # within

    def _connect(self, contact: ContactRequest) -> None:
        state, config = self._state, self._state.config
        version = find_version(contact.version_requested)
        if version is None or version > self._max_version():
            state.send(VersionResponse())
            return
        features = contact.features & state.supported_features(trusted=contact.trusted)
        try:
            pages = _pages(contact.parent_to_child, contact.child_to_parent)
            if contact.interrupt_page % PAGE_SIZE:
                got = f"{contact.interrupt_page:#x}"
                raise ProtocolError("INITIATE_CONTACT", 16, "a page-aligned interrupt page", got)
        except ProtocolError as error:
            state.complain("contact_refused", str(error), "INITIATE_CONTACT")
            self._send_failure(version, features & ~FeatureFlags.SERVER_SPECIFIED_MONITOR_PAGES, _UNKNOWN_FAILURE)
            return
        connection = state.connection = Connection()
        connection.phase = _P.CONNECTING
        connection.version, connection.features = version, features
        connection.trusted, connection.client_id = contact.trusted, contact.client_id
        connection.target_vp = contact.target_vp
        connection.interrupt_page = contact.interrupt_page or None
        connection.monitor_pages = None if config.must_allocate_monitor_pages else pages
        self._ask_backend("connect", connection)

    def _ask_backend(self, purpose: str, connection: Connection) -> None:
        """Until the backend has answered a contact, feature 0x40 is what the guest asked for."""
        allocate = purpose == "connect" and bool(connection.features & FeatureFlags.SERVER_SPECIFIED_MONITOR_PAGES)
        self._state.backend.append(purpose)
        self._state.emit(
            ModifyConnection(
                connection.version,
                connection.features,
                connection.target_vp,
                connection.interrupt_page,
                connection.monitor_pages,
                allocate,
            )
        )

    def _connected(self, status: ConnectionState, host_pages: MonitorPages | None, supported: bool) -> None:
        state, connection = self._state, self._state.connection
        version, next_action = connection.version, connection.next
        connection.next = None
        if not supported or status is not ConnectionState.SUCCESSFUL:
            features = connection.features & ~FeatureFlags.SERVER_SPECIFIED_MONITOR_PAGES
            state.connection = Connection()
            state.connection.target_vp = connection.target_vp
            if next_action is not None and next_action.kind == "reset":
                self.reset()  # there is no connection, but reserved channels may be open
                return
            if supported:
                self._send_failure(version, features, status)
            else:
                state.send(VersionResponse())
            self._run(next_action)
            return
        connection.phase = _P.CONNECTED
        connection.features &= ~FeatureFlags.SERVER_SPECIFIED_MONITOR_PAGES
        if host_pages is not None:
            connection.features |= FeatureFlags.SERVER_SPECIFIED_MONITOR_PAGES
            connection.monitor_pages, connection.host_owns_monitor_pages = host_pages, True
        if next_action is None or next_action.kind != "reset":  # a guest that was reset has asked for nothing
            state.send(self._success(connection))
        if next_action is not None:
            self._disconnect(next_action)

    def _success(self, connection: Connection) -> VersionResponse:
        field = version_field(connection.version, self._state.config.named_connection)
        if connection.version < Version.COPPER:
            return VersionResponse(1, ConnectionState.SUCCESSFUL, field)
        features = int(connection.features)
        pages = connection.monitor_pages
        if connection.host_owns_monitor_pages and pages is not None:
            return VersionResponse3(
                1, ConnectionState.SUCCESSFUL, field, features, pages.parent_to_child, pages.child_to_parent
            )
        return VersionResponse2(1, ConnectionState.SUCCESSFUL, field, features)

    def _send_failure(self, version: Version, features: FeatureFlags, status: ConnectionState) -> None:
        field = version_field(version, self._state.config.named_connection)
        if version < Version.WIN8:
            self._state.send(VersionResponse())
        elif version < Version.COPPER:
            self._state.send(VersionResponse(1, status, field))
        else:
            self._state.send(VersionResponse2(1, status, field, int(features)))

    def _disconnect(self, next_action: NextAction) -> None:
        """Let go of the guest, then do this; where that is under way, this replaces what was to be next."""
        connection = self._state.connection
        connection.next = next_action
        if connection.phase is _P.CONNECTING:
            return
        if connection.phase is _P.CONNECTED:
            connection.phase = _P.DISCONNECTING
            connection.reset_sent = False
        self._release_channels(next_action.kind == "reset")
        self.check_disconnected()

    def _disconnected(self) -> None:
        state = self._state
        next_action = state.connection.next
        if next_action is not None and next_action.kind == "reset" and not self._is_clean(True):
            state.connection.reset_sent = False  # it became a reset after the backend was asked
            return
        target_vp = state.connection.target_vp
        state.connection = Connection()
        state.connection.target_vp = target_vp
        self._run(next_action)

    def _run(self, next_action: NextAction | None) -> None:
        if next_action is None:
            return
        if next_action.kind == "reset":
            self._end_reset()
        elif next_action.kind == "unload":
            self._state.emit(UnloadDone())
            self._state.send(UnloadComplete())
        elif next_action.contact is not None:
            self._connect(next_action.contact)

    def _end_reset(self) -> None:
        self._state.connection = Connection()
        self._state.had_unload = False
        self._state.emit(DropMessages())
        self._state.emit(ResetDone())

    def _is_clean(self, reserved_too: bool) -> bool:
        """Every channel is the device's alone, and no GPADL of it is left."""
        for channel in self._state.channels.by_offer.values():
            if channel.is_reserved and not reserved_too:
                continue
            if channel.state is not ChannelState.CLIENT_RELEASED or channel.gpadls:
                return False
        return True

    def _max_version(self) -> Version:
        config = self._state.config
        if self._state.had_unload and config.max_version_after_unload is not None:
            return min(config.max_version, config.max_version_after_unload)
        return config.max_version

    def _resume(self) -> None:
        self._state.connection.paused = False
        self._send_held()

    def _send_held(self) -> None:
        held = self._state.held
        while held:
            self._state.send(held.popleft())


def _pages(parent_to_child: int, child_to_parent: int) -> MonitorPages | None:
    """Both pages, None where there is none. `ProtocolError` for one page alone, or one that is not page-aligned."""
    if not parent_to_child and not child_to_parent:
        return None
    if not parent_to_child or not child_to_parent or parent_to_child % PAGE_SIZE or child_to_parent % PAGE_SIZE:
        got = f"{parent_to_child:#x} and {child_to_parent:#x}"
        raise ProtocolError("monitor pages", 0, "two page-aligned GPAs or none", got)
    return MonitorPages(parent_to_child, child_to_parent)
