"""`ClientMachine`: the guest end of VMBus, without a loop (OpenVMM `vmbus_client`, Linux `drivers/hv`).

Inputs are calls, outputs the list of effects that each call returns (`effects`), to be done in order.

It will: fall back through versions; keep offers, channels, GPADLs and hvsock requests; end every request that it took;
say what is wrong with a host's message as a `Complaint` and otherwise ignore it. `receive` raises nothing whatever the
bytes are. It will not: wait, give up on a host that does not answer, retry posts, touch guest memory, or open reserved
channels.

Every request takes the exceptions of its connection: `ConnectionFailed` without one, and `HostError` for new requests
while paused. `ValueError` where a number does not fit its field; after an exception nothing has changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

from broker.errors import ConnectionFailed, HostError, ProtocolError

from ...protocol.connect import ModifyConnection, ModifyConnectionResponse, Pause, Resume, Unload, VersionResponse
from ...protocol.message import ConnectionState, MessageType
from ...protocol.offer import OfferChannel, RelidReleased, RequestOffers
from ...protocol.parse import Agreed, Sender, message_type_of, parse_message
from ...protocol.versions import FeatureFlags, Version
from ...protocol.wire import NO_GUID
from ..effects import Effect, MonitorPages
from .channels import ClientChannels, OpenRequest
from .contact import ConnectRequest, Negotiation, contact
from .effects import Connected, ConnectFailed, ModifyConnectionEnded, OfferAdded, Paused, UnloadEnded
from .hvsock import HvsockRequests
from .outbox import Outbox
from .saved import SavedConnection, decode, encode, save_channel
from .states import ACCEPTED, ChannelState, ClientChannel, ClientState, PauseState

_S = ClientState


class ClientMachine:
    """See the module."""

    def __init__(self) -> None:
        self.state = _S.DISCONNECTED
        self.pause_state = PauseState.RUNNING
        self.agreed = Agreed()
        """Version and features, once there is a connection."""
        self.monitor_pages: MonitorPages | None = None
        """Those in use."""
        self.interrupt_page = 0
        """GPA of the channel bitmap, 0 where the version has none."""
        self._out = Outbox()
        self._channels = ClientChannels(self._out)
        self._negotiation = Negotiation()
        self._new_pages: list[MonitorPages | None] = []
        """The monitor pages of a MODIFY_CONNECTION that is due an answer."""
        self._hvsocks = HvsockRequests(self._out)
        self._handlers: dict[MessageType, Callable[[Any], None]] = {
            MessageType.VERSION_RESPONSE: self._version_response,
            MessageType.OFFER_CHANNEL: self._offer,
            MessageType.RESCIND_CHANNEL_OFFER: self._channels.rescinded,
            MessageType.ALL_OFFERS_DELIVERED: self._all_offers_delivered,
            MessageType.OPEN_CHANNEL_RESULT: self._channels.open_ended,
            MessageType.GPADL_CREATED: self._channels.gpadl_created,
            MessageType.GPADL_TORNDOWN: self._channels.gpadl_torn_down,
            MessageType.MODIFY_CHANNEL_RESPONSE: self._channels.modify_ended,
            MessageType.MODIFY_CONNECTION_RESPONSE: self._modify_connection_response,
            MessageType.TL_CONNECT_RESULT: self._hvsocks.failed,
            MessageType.PAUSE_RESPONSE: self._pause_response,
            MessageType.UNLOAD_COMPLETE: self._unload_complete,
        }

    @property
    def is_connected(self) -> bool:
        """Version and features are agreed on, and the client is not on its way out."""
        return self.state in (_S.REQUESTING_OFFERS, _S.CONNECTED)

    def channel(self, channel_id: int) -> ClientChannel | None:
        """A channel to look at, None when there is none."""
        return self._channels.channels.get(channel_id)

    def has_gpadl(self, gpadl_id: int) -> bool:
        """True while this ID is in use on whichever channel."""
        return self._channels.has_gpadl(gpadl_id)

    # connection

    def connect(self, request: ConnectRequest) -> list[Effect]:
        """Ask for a connection; ends with `Connected` or `ConnectFailed`.

        `ConnectionFailed` unless disconnected, `ConfigurationError` without a version to ask for.
        """
        if self.state is not _S.DISCONNECTED:
            raise ConnectionFailed(f"this client is {self.state.value}; it connects when it is disconnected only")
        self._negotiation.begin(request)
        self.state = _S.CONNECTING
        self._send_contact()
        return self._out.take()

    def contact_refused(self) -> list[Effect]:
        """The connection that the last contact was posted to does not exist: try the next. Nothing unless connecting."""
        if self.state is _S.CONNECTING:
            self._negotiation.next_connection()
            self._send_contact()
        return self._out.take()

    def connection_lost(self) -> list[Effect]:
        """Posts do not reach the host any more, or the partition was reset: nothing of the connection is left."""
        self._disconnect()
        return self._out.take()

    def unload(self) -> list[Effect]:
        """Let go of everything; ends with `UnloadEnded`. Other requests that are outstanding end without a word.

        With every version: Linux does not before 3.0, but a server answers always. `ConnectionFailed` unless connected.
        """
        self._check_connected()
        self._out.held.clear()
        self._out.is_holding = False
        self.pause_state = PauseState.RUNNING
        self.state = _S.DISCONNECTING
        self._out.send(Unload())
        return self._out.take()

    def modify_connection(self, pages: MonitorPages | None) -> list[Effect]:
        """Use other monitor pages, or none; ends with `ModifyConnectionEnded`.

        That fails at once without feature 0x4, and while an earlier one is not answered.
        """
        self._check_running()
        if self._new_pages or not self.agreed.features & FeatureFlags.MODIFY_CONNECTION:
            failed = ModifyConnectionEnded(ConnectionState.FAILED_UNKNOWN_FAILURE, self.monitor_pages)
            self._out.say(failed)
        else:
            told = pages or MonitorPages(0, 0)
            self._out.send(ModifyConnection(told.parent_to_child, told.child_to_parent))
            self._new_pages = [pages]
        return self._out.take()

    # channels

    def open(self, channel_id: int, request: OpenRequest) -> list[Effect]:
        """Open a channel; ends with `OpenEnded`, at once and with a failure when the channel is rescinded.

        `ChannelClosed` for a channel that is not there or released, `HostError` for one that is not just offered,
        `ValueError` for what is asked without its feature.
        """
        self._check_running()
        self._channels.open(channel_id, request, self.agreed.features)
        return self._out.take()

    def close(self, channel_id: int) -> list[Effect]:
        """Close a channel that is open, or opening: then as soon as it is open. Nothing when it is rescinded.

        `ChannelClosed` for a channel that is not there or released, `HostError` for one that is not open.
        """
        self._check_connected()
        self._channels.close(channel_id)
        return self._out.take()

    def release(self, channel_id: int) -> list[Effect]:
        """The user does not need this channel any more: close it, and give its ID back once the host has rescinded it.

        `ChannelClosed` for a channel that is not there or released.
        """
        self._check_connected()
        self._channels.release(channel_id)
        return self._out.take()

    def create_gpadl(self, channel_id: int, gpadl_id: int, range_count: int, buffer: bytes) -> list[Effect]:
        """Let the host use memory; ends with `GpadlCreateEnded`. Also when the channel is rescinded: the host answers.

        `buffer`: the range buffer. `ChannelClosed` for a channel that is not there or released, `HostError` for an ID
        that is in use, `ValueError` for a buffer that is none.
        """
        self._check_running()
        self._channels.create_gpadl(channel_id, gpadl_id, range_count, buffer)
        return self._out.take()

    def teardown_gpadl(self, channel_id: int, gpadl_id: int) -> list[Effect]:
        """Take memory back; ends with `GpadlTornDown`. `HostError` for a GPADL that is not created."""
        self._check_connected()
        self._channels.teardown_gpadl(channel_id, gpadl_id)
        return self._out.take()

    def modify_channel(self, channel_id: int, target_vp: int) -> list[Effect]:
        """Let the interrupts go to another processor; ends with `ModifyEnded`, at once and with a failure before 4.1.

        `ChannelClosed` for a channel that is not there or released, `HostError` while one is under way already.
        """
        self._check_running()
        assert self.agreed.version is not None
        self._channels.modify(channel_id, target_vp, self.agreed.version)
        return self._out.take()

    # hvsock

    def connect_hvsock(self, service_id: UUID, endpoint_id: UUID, silo_id: UUID = NO_GUID) -> list[Effect]:
        """Connect to a listener on the host; ends with `HvsockEnded`, at once and without an offer before 4.0.

        At 4.0 a refusal is not told: `forget_hvsock` ends the wait. `HostError` when the same is asked twice.
        """
        self._check_running()
        assert self.agreed.version is not None
        self._hvsocks.connect(service_id, endpoint_id, silo_id, self.agreed.version)
        return self._out.take()

    def forget_hvsock(self, service_id: UUID, endpoint_id: UUID) -> list[Effect]:
        """Nobody waits for this connection any more: should it come, it is an offer like any other. Idempotent."""
        self._hvsocks.waiting.discard((service_id, endpoint_id))
        return self._out.take()

    # pause, save, restore

    def pause(self) -> list[Effect]:
        """Ask the host to be quiet; ends with `Paused`, once no answer is due that a saved state would not hold.

        Without feature 0x20 the host is not asked: what it says while paused must be received all the same.
        Close, release, teardown and unload stay possible; other requests do not. `HostError` when paused already.
        """
        self._check_connected()
        if self.pause_state is not PauseState.RUNNING or self.state is not _S.CONNECTED:
            raise HostError(f"this client is {self.state.value} and {self.pause_state.value}; it cannot pause")
        self.pause_state = PauseState.WAITING
        self._go_on_pausing()
        return self._out.take()

    def resume(self) -> list[Effect]:
        """Let the host go on, then post what was held back. `HostError` unless paused."""
        self._check_connected()
        if self.pause_state is not PauseState.PAUSED:
            raise HostError(f"this client is {self.pause_state.value}, not paused; there is nothing to resume")
        self.pause_state = PauseState.RUNNING
        if self.agreed.features & FeatureFlags.PAUSE_RESUME:
            self._out.held.insert(0, Resume())
        self._out.release()
        return self._out.take()

    def save(self) -> bytes:
        """The state as a document. `HostError` unless paused or disconnected.

        hvsock requests are not in it; revoked channels are as the RELID_RELEASED that is posted for each after a resume.
        """
        if self.state is _S.DISCONNECTED:
            return encode(None)
        if self.pause_state is not PauseState.PAUSED or self.agreed.version is None:
            raise HostError(f"this client is {self.state.value} and {self.pause_state.value}; pause it before a save")
        channels = self._channels.channels.values()
        released = [
            RelidReleased(channel.offer.channel_id) for channel in channels if channel.state is ChannelState.REVOKED
        ]
        return encode(
            SavedConnection(
                int(self.agreed.version),
                int(self.agreed.features),
                self._out.connection_id,
                self.interrupt_page,
                self.monitor_pages,
                [save_channel(channel) for channel in channels if channel.state is not ChannelState.REVOKED],
                [message.pack() for message in [*self._out.held, *released]],
            )
        )

    def restore(self, document: bytes) -> list[Effect]:
        """Take over what `save` returned, paused: an `OfferAdded` for each channel, then `Connected` if it was.

        Then `claim` channels that were open, `end_claims`, `resume`. `HostError` unless disconnected; `DamagedDocument`,
        `UnsupportedVersion`.
        """
        if self.state is not _S.DISCONNECTED:
            raise HostError(f"this client is {self.state.value}; a saved state is restored into a disconnected one")
        saved = decode(document)
        if saved is not None:
            self.state = _S.CONNECTED
            self.pause_state = PauseState.PAUSED
            self.agreed, self.interrupt_page, self.monitor_pages = (
                saved.agreed,
                saved.interrupt_page,
                saved.monitor_pages,
            )
            self._out.connection_id = saved.connection_id
            self._out.is_holding, self._out.held = True, list(saved.held)
            for channel in saved.channels:
                self._channels.restore(channel)
            self._say_connected()
        return self._out.take()

    def claim(self, channel_id: int) -> list[Effect]:
        """The user goes on with a channel that was open in the saved state. `ChannelClosed`, `HostError`."""
        self._check_connected()
        self._channels.claim(channel_id)
        return self._out.take()

    def end_claims(self) -> list[Effect]:
        """Channels that nobody has claimed are closed, and their GPADLs torn down."""
        self._check_connected()
        self._channels.claim_ended()
        return self._out.take()

    # what the host says

    def receive(self, data: bytes) -> list[Effect]:
        """Take one message of the host."""
        try:
            agreed = Agreed() if self.state is _S.DISCONNECTING else self.agreed
            message = parse_message(data, Sender.HOST, agreed)
        except ProtocolError as error:
            self._out.complain("host_message_invalid", str(error), _name(data))
            return self._out.take()
        if self.state in ACCEPTED.get(message.TYPE, ()):
            self._handlers[message.TYPE](message)
            self._go_on_pausing()
        elif self.state is not _S.DISCONNECTING:
            reason = f"{message.TYPE.name} does not belong here, the client is {self.state.value}"
            self._out.complain("host_message_unexpected", reason, message.TYPE.name)
        return self._out.take()

    def check(self) -> None:
        """Every invariant; `AssertionError` for one that is broken."""
        assert not self._out.effects, "each call hands out its effects"
        assert bool(self._negotiation.attempts) == (self.state is _S.CONNECTING)
        assert (self.agreed.version is None) == (self.state in (_S.DISCONNECTED, _S.CONNECTING))
        is_copper = self.agreed.version is not None and self.agreed.version >= Version.COPPER
        assert is_copper or not self.agreed.features, "features belong to 6.0"
        if self.state in (_S.DISCONNECTED, _S.CONNECTING):
            left = (self._channels.channels, self._hvsocks.waiting, self._new_pages, self._out.held, self.monitor_pages)
            assert not any(left), "without a connection there is nothing"
        assert self.pause_state is PauseState.RUNNING or self.state is _S.CONNECTED
        is_quiet = self.pause_state in (PauseState.ASKED, PauseState.PAUSED)
        assert self._out.is_holding == is_quiet, "while the host is quiet nothing is posted to it"
        assert is_quiet or not self._out.held
        if is_quiet:
            is_unsaved = bool(self._new_pages) or self._channels.is_unsaved
            assert not is_unsaved, "nothing is due that a saved state does not hold"
        self._channels.check(self.agreed)

    def _version_response(self, response: VersionResponse) -> None:
        if not response.version_supported:
            self._negotiation.next_version()
            self._send_contact()
            return
        if response.connection_state != ConnectionState.SUCCESSFUL:
            version = self._negotiation.attempts[0].version
            self._fail(f"the host refused version {version.label} with state {response.connection_state}")
            return
        agreement = self._negotiation.agree(response)
        if agreement.surplus:
            reason = f"the host names features {int(agreement.surplus):#x}, which nobody asked for"
            self._out.complain("host_message_unexpected", reason, response.TYPE.name)
        self._negotiation.attempts = []
        self.agreed, self.monitor_pages = agreement.agreed, agreement.monitor_pages
        self.interrupt_page = agreement.interrupt_page
        self._out.connection_id = agreement.connection_id
        self.state = _S.REQUESTING_OFFERS
        self._out.send(RequestOffers())

    def _offer(self, offer: OfferChannel) -> None:
        if self._channels.offered(offer) and not self._hvsocks.takes(offer):
            self._out.say(OfferAdded(offer))

    def _all_offers_delivered(self, _: object) -> None:
        self.state = _S.CONNECTED
        self._say_connected()

    def _say_connected(self) -> None:
        version, features = self.agreed
        assert version is not None
        self._out.say(Connected(version, features, self._out.connection_id, self.monitor_pages))

    def _modify_connection_response(self, message: ModifyConnectionResponse) -> None:
        if not self._new_pages:
            reason = "nobody changes the monitor pages"
            self._out.complain("host_message_unexpected", reason, "MODIFY_CONNECTION_RESPONSE")
            return
        pages = self._new_pages.pop()
        if message.connection_state == ConnectionState.SUCCESSFUL:
            self.monitor_pages = pages
        self._out.say(ModifyConnectionEnded(message.connection_state, self.monitor_pages))

    def _pause_response(self, _: object) -> None:
        if self.pause_state is not PauseState.ASKED:
            self._out.complain("host_message_unexpected", "nobody asked the host to pause", "PAUSE_RESPONSE")
            return
        self.pause_state = PauseState.PAUSED
        self._out.say(Paused())

    def _unload_complete(self, _: object) -> None:
        self._disconnect()
        self._out.say(UnloadEnded())

    def _send_contact(self) -> None:
        """Try the first of the attempts that are left, or give up."""
        if not self._negotiation.attempts:
            self._fail(f"no server takes one of the versions {self._negotiation.tried()}")
            return
        attempt = self._negotiation.attempts[0]
        self._out.connection_id = attempt.connection_id
        self._out.send(contact(self._negotiation.request, attempt.version))

    def _fail(self, reason: str) -> None:
        self._disconnect()
        self._out.say(ConnectFailed(reason))

    def _disconnect(self) -> None:
        self._channels.clear()
        self._hvsocks.waiting.clear()
        self._out.held.clear()
        self._out.is_holding = False
        self._negotiation.attempts, self._new_pages, self.monitor_pages = [], [], None
        self.agreed, self.interrupt_page = Agreed(), 0
        self.pause_state = PauseState.RUNNING
        self.state = _S.DISCONNECTED

    def _go_on_pausing(self) -> None:
        if self.pause_state is not PauseState.WAITING or self._new_pages or self._channels.delays_pause:
            return
        self.pause_state = PauseState.PAUSED
        if self.agreed.features & FeatureFlags.PAUSE_RESUME:
            self._out.send(Pause())
            self.pause_state = PauseState.ASKED
        else:
            self._out.say(Paused())
        self._out.is_holding = True

    def _check_connected(self) -> None:
        if not self.is_connected:
            raise ConnectionFailed(f"this client is {self.state.value}; it has no connection to ask over")

    def _check_running(self) -> None:
        self._check_connected()
        if self.pause_state is not PauseState.RUNNING:
            raise HostError(f"this client is {self.pause_state.value}; resume it before it asks for more")


def _name(data: bytes) -> str:
    try:
        return message_type_of(data).name
    except ProtocolError:
        return ""
