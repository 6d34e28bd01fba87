"""The server's machine: everything that a VMBus host does, without waiting, clocks or I/O.

Inputs are messages of the guest (`receive`), calls of devices (`offer`, `revoke`, `open_ended`, ...) and answers of the
backend (`connection_modified`). Each returns the effects that its shell carries out in order, and may be called with
whatever a guest sends: what is wrong becomes a `Complaint`, an answer where the protocol has one, and nothing else.

Will: all message types of all versions, reserved channels, hvsock, monitor IDs, reset, save and restore.
Will not: move data, keep ports, know a SynIC. The rings and the SynIC are the shell's and the devices'.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from broker.errors import ProtocolError

from ...protocol.connect import InitiateContact, ModifyConnection, Pause, Resume, Unload
from ...protocol.gpadl import GpadlBody, GpadlHeader, GpadlTeardown
from ...protocol.hvsock import TlConnectRequest, TlConnectRequest2, TlConnectResult
from ...protocol.message import STATUS_CONNECTION_REFUSED, STATUS_SUCCESS, ChannelMessage, ConnectionState
from ...protocol.offer import RelidReleased, RequestOffers
from ...protocol.open import CloseChannel, CloseReservedChannel, ModifyChannel, OpenChannel, OpenReservedChannel
from ...protocol.parse import Sender, parse_message
from ...protocol.versions import FeatureFlags, Version
from ...protocol.wire import NO_GUID
from . import saved
from .channels import ChannelMachine
from .connection import ConnectionMachine
from .effects import ConnectHvsock, Effect, MonitorPages, SendSaved
from .gpadl import GpadlState
from .gpadls import GpadlMachine
from .offer_params import OfferParams
from .offering import OfferMachine
from .restoring import RestoreMachine
from .state import ConnectionPhase, HvsockConnect, ServerConfig, ServerState
from .table import BUSY, ChannelState

MAX_HVSOCK_CONNECTS = 16
"""Connects that may wait for the host's listeners; the shell takes no message while there are as many."""

_WHILE_PAUSED = (Resume, Unload, InitiateContact)


class ServerMachine:
    """See the module."""

    def __init__(self, config: ServerConfig | None = None) -> None:
        self.state = ServerState(config or ServerConfig())
        self._gpadls = GpadlMachine(self.state)
        self._offers = OfferMachine(self.state, self._gpadls)
        self._channels = ChannelMachine(self.state, self._gpadls, self._offers)
        self._restoring = RestoreMachine(self.state, self._gpadls, self._offers, self._channels)
        self._connection = ConnectionMachine(self.state, self._channels.release_all)

    @property
    def may_receive(self) -> bool:
        """The shell may hand in another message of the guest."""
        return not self.state.connection.is_resetting and len(self.state.hvsock) < MAX_HVSOCK_CONNECTS

    # from the guest

    def receive(self, data: bytes, *, trusted: bool = False, multiclient: bool = True) -> list[Effect]:
        """A message of the guest. `multiclient`: it came over a connection that several servers share.

        While `may_receive` is False it is better kept: during a reset it would be refused.
        """
        connection = self.state.connection
        try:
            if connection.is_resetting:
                raise ProtocolError("channel message", 0, "none while the VM is being reset", "one")
            if connection.is_trusted and not trusted:
                raise ProtocolError("channel message", 0, "a trusted message", "one that the host could have changed")
            message = parse_message(data, Sender.GUEST, connection.agreed)
            if connection.paused and not isinstance(message, _WHILE_PAUSED):
                raise ProtocolError(
                    "channel message", 0, "RESUME, UNLOAD or INITIATE_CONTACT after PAUSE", message.TYPE.name
                )
        except ProtocolError as error:
            self.state.complain("message_refused", str(error))
        else:
            self._dispatch(message, trusted, multiclient)
        return self._take()

    def _dispatch(self, message: ChannelMessage, trusted: bool, multiclient: bool) -> None:
        match message:
            case InitiateContact():
                self._connection.initiate_contact(message, trusted, multiclient)
            case Unload():
                self._connection.unload()
            case ModifyConnection():
                self._connection.modify_connection(message)
            case Pause():
                self._connection.pause()
            case Resume():
                self._connection.resume()
            case RequestOffers():
                self._offers.request_offers()
            case OpenChannel():
                self._channels.open(message)
            case OpenReservedChannel():
                self._channels.open_reserved(message)
            case CloseChannel():
                self._channels.close(message)
            case CloseReservedChannel():
                self._channels.close_reserved(message)
            case RelidReleased():
                self._channels.release(message)
            case ModifyChannel():
                self._channels.modify(message)
            case GpadlHeader():
                self._gpadls.header(message)
            case GpadlBody():
                self._gpadls.body(message)
            case GpadlTeardown():
                self._gpadls.teardown(message)
            case TlConnectRequest():
                silo_id = message.silo_id if isinstance(message, TlConnectRequest2) else NO_GUID
                self.state.hvsock.append(HvsockConnect(message, self.state.connection))
                self.state.emit(ConnectHvsock(message, silo_id))

    # from devices

    def offer(self, params: OfferParams) -> tuple[int, list[Effect]]:
        """A device offers: the number of its offer, and the effects. `OfferRefused`: one like it, or no ID is left."""
        return self._offers.offer(params), self._take()

    def revoke(self, offer_id: int) -> list[Effect]:
        """The device is gone. Revoking what is gone does nothing."""
        self._offers.revoke(offer_id)
        return self._take()

    def open_ended(self, offer_id: int, status: int = STATUS_SUCCESS) -> tuple[bool, list[Effect]]:
        """The device has opened, or not; the status goes to the guest. True when the channel is open now."""
        return self._channels.open_ended(offer_id, status), self._take()

    def close_ended(self, offer_id: int) -> list[Effect]:
        """The device has closed."""
        self._channels.close_ended(offer_id)
        return self._take()

    def modify_ended(self, offer_id: int, status: int = STATUS_SUCCESS) -> list[Effect]:
        """The device knows of its new processor."""
        self._channels.modify_ended(offer_id, status)
        return self._take()

    def gpadl_created(self, offer_id: int, gpadl_id: int, *, accepted: bool = True) -> list[Effect]:
        """The device uses the guest memory, or refuses to."""
        self._gpadls.created(offer_id, gpadl_id, accepted=accepted)
        return self._take()

    def gpadl_torn_down(self, offer_id: int, gpadl_id: int) -> list[Effect]:
        """The device has let go of the guest memory."""
        self._gpadls.torn_down(offer_id, gpadl_id)
        return self._take()

    def hvsock_connected(self, request: TlConnectRequest, *, accepted: bool) -> list[Effect]:
        """A listener took the connection, and offers it, or nobody did: TL_CONNECT_RESULT, from 4.1 on."""
        state = self.state
        connect = next((connect for connect in state.hvsock if connect.request == request), None)
        if connect is not None:
            state.hvsock.remove(connect)
            if not accepted and self._may_tell(connect):
                state.send(TlConnectResult(request.endpoint_id, request.service_id, STATUS_CONNECTION_REFUSED))
        return self._take()

    # from the backend and the VM

    def connection_modified(
        self,
        status: ConnectionState = ConnectionState.SUCCESSFUL,
        host_pages: MonitorPages | None = None,
        *,
        supported: bool = True,
        features: FeatureFlags | None = None,
    ) -> list[Effect]:
        """The answer to the oldest `ModifyConnection`. `host_pages`: monitor pages that the host has allocated.
        `features`: the most that a connection which begins may agree on, where a relay's outer host has a say in it."""
        self._connection.modified(status, host_pages, supported=supported, features=features)
        return self._take()

    def reset(self) -> list[Effect]:
        """The VM is reset; `ResetDone` follows when every device has let go."""
        self.state.hvsock.clear()
        self._connection.reset()
        return self._take()

    # save and restore

    def save(self, messages: Sequence[bytes] = ()) -> bytes:
        """Everything that a guest relies on, as a document; `messages` are those that the shell has not posted yet.

        Connects that a listener has not answered are refused in it.

        `HostError` while monitor pages are the host's own.
        """
        state = self.state
        unanswered = [
            TlConnectResult(connect.request.endpoint_id, connect.request.service_id, STATUS_CONNECTION_REFUSED)
            for connect in state.hvsock
            if self._may_tell(connect)
        ]
        return saved.encode(state, messages, unanswered)

    def restore(self, document: bytes) -> None:
        """Take over a saved state, before there is a guest; devices may offer before and after.

        `DamagedDocument`, `UnsupportedVersion`; `ConfigurationError` when this server does not allow what the saved one
        had agreed on, `HostError` when it has been used. Then nothing has changed. Then each device says how it stands
        (`restore_channel`), and `start` comes last; no messages of the guest before.
        """
        document_body = saved.decode(document)
        saved.load(self.state, document_body)
        for data in document_body.messages:  # before all that comes of the restore
            self.state.emit(SendSaved(data))
        self.state.held.extend(parse_message(data) for data in document_body.held)

    def saved_state(self, offer_id: int) -> ChannelState | None:
        """What the saved state says of a device's channel, None where it says nothing or the device has spoken."""
        channel = self.state.channels.by_offer.get(offer_id)
        return None if channel is None or channel.restored else channel.state

    def restore_channel(self, offer_id: int, *, is_open: bool) -> list[Effect]:
        """A device says whether its channel is open. `HostError` when that cannot be."""
        self._restoring.restore(offer_id, is_open)
        return self.state.take_effects()

    def start(self) -> list[Effect]:
        """All devices that came back have spoken: go on. Those that have not are rescinded, new ones are offered."""
        self._connection.ask_again()
        self._restoring.start()
        return self._take()

    # about it

    def channel_state(self, offer_id: int) -> ChannelState | None:
        """Where a device's channel is, None once the offer is gone."""
        channel = self.state.channels.by_offer.get(offer_id)
        return None if channel is None else channel.state

    def open_offers(self) -> list[int]:
        """The offers whose channels are open."""
        return [n for n, channel in self.state.channels.by_offer.items() if channel.state is ChannelState.OPEN]

    def find_offer(self, interface_id: UUID, instance_id: UUID, subchannel_index: int = 0) -> int | None:
        """The offer with this key, None when there is none."""
        for offer_id, channel in self.state.channels.by_offer.items():
            key = channel.params.key
            if (key.interface_id, key.instance_id, key.subchannel_index) == (
                interface_id,
                instance_id,
                subchannel_index,
            ):
                return offer_id
        return None

    def check(self) -> None:
        """Every invariant; tests call it after each step."""
        state, connection = self.state, self.state.connection
        state.channels.check()
        words = 0
        for channel in state.channels.by_offer.values():
            for gpadl_id, gpadl in channel.gpadls.items():
                assert gpadl.gpadl_id == gpadl_id
                is_partial = gpadl.state is GpadlState.IN_PROGRESS
                assert is_partial == (state.gpadls_in_progress.get(gpadl_id) is channel) or not is_partial
                words += gpadl.cost
            assert (channel.open is not None) == (channel.state in BUSY), channel.state
            assert (channel.reopen is not None) == (channel.state is ChannelState.CLOSING_REOPEN)
            assert not channel.modifying or channel.state is ChannelState.OPEN
            assert channel.next_vp is None or channel.modifying
            if not connection.is_connected:
                assert channel.is_released or channel.is_reserved or channel.state is ChannelState.REVOKED
        assert words == state.gpadl_words <= state.config.gpadl_words
        assert all(channel.gpadls[n].state is GpadlState.IN_PROGRESS for n, channel in state.gpadls_in_progress.items())
        assert (connection.next is not None) <= (
            connection.phase in (ConnectionPhase.CONNECTING, ConnectionPhase.DISCONNECTING)
        )
        assert (connection.phase is ConnectionPhase.DISCONNECTING) <= (connection.next is not None)
        assert not state.held or connection.paused

    def _may_tell(self, connect: HvsockConnect) -> bool:
        """The guest may hear that nobody listens: the connection is the one that it asked over, and new enough."""
        connection = self.state.connection
        return (
            connect.connection is connection and connection.is_connected and connection.version >= Version.WIN10_RS3_0
        )

    def _take(self) -> list[Effect]:
        """The effects of one input. A device may have been the last to let go."""
        self._connection.check_disconnected()
        return self.state.take_effects()
