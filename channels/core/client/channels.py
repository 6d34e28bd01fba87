"""The client's channels and GPADLs: a part of `ClientMachine`, which says when there is a connection.

It will: keep each channel in one of the states of `client_states`; release a channel's ID exactly when the channel is
rescinded, the user has let go of it, and no answer about it is due; choose event flags; end an open that the host
rescinds or the user closes. It will not: check that a ring's GPADL exists (the host fails the open), tear down GPADLs by
itself (but see `claim_ended`), or look at versions beyond what a message's form depends on.

GPADL IDs are unique over the whole connection: GPADL_BODY and GPADL_TORNDOWN name no channel.
"""

from __future__ import annotations

import msgspec

from broker.errors import ChannelClosed, HostError

from ...protocol.gpadl import GpadlCreated, GpadlTeardown, GpadlTorndown, gpadl_messages
from ...protocol.ids import MAX_CHANNELS
from ...protocol.message import STATUS_SUCCESS, STATUS_UNSUCCESSFUL
from ...protocol.offer import USER_AREA, OfferChannel, RelidReleased, RescindChannelOffer
from ...protocol.open import CloseChannel, ModifyChannel, ModifyChannelResponse, OpenChannel, OpenChannel2, OpenFlags
from ...protocol.open import OpenResult as OpenResultMessage
from ...protocol.parse import Agreed
from ...protocol.versions import OPEN2_FEATURES, FeatureFlags, Version
from .effects import (
    GpadlCreateEnded,
    GpadlTornDown,
    ModifyEnded,
    OfferAdded,
    OfferRescinded,
    OpenEnded,
    Released,
)
from .outbox import Outbox
from .states import CHANNEL_STEPS, USES_FLAG, ChannelState, ClientChannel, EventFlags, GpadlState, Step


class OpenRequest(msgspec.Struct, frozen=True):
    """How a channel is to be opened; the rings lie in a GPADL, the guest-to-host one first."""

    gpadl_id: int
    upstream_pages: int
    """Pages of the guest-to-host ring."""
    target_vp: int = 0
    """Processor of the interrupts (from 2.4), `NO_INTERRUPTS` for none."""
    user_data: bytes = b""
    """Up to 120 bytes for the device."""
    redirect: bool = False
    """Interrupts go to the server's redirect VTL and SINT (feature 0x2)."""
    event_flag: int | None = None
    """What the host is to set (feature 0x1). None: with the feature the lowest free flag, else the channel ID."""
    connection_id: int | None = None
    """What the guest will signal (feature 0x1). None: the connection that the offer names, unique as it is."""
    is_direct: bool = False
    """Event flag and connection ID, both given, are somebody else's, as of a guest that is relayed to: the flag is none of
    this client's, and not looked at here."""


class ClientChannels:
    """See the module."""

    def __init__(self, outbox: Outbox) -> None:
        self.channels: dict[int, ClientChannel] = {}
        """By channel ID, in the order in which they were offered."""
        self.flags = EventFlags()
        self._out = outbox
        self._owners: dict[int, int] = {}
        """GPADL ID -> channel ID."""

    # what the host says

    def offered(self, offer: OfferChannel) -> bool:
        """A new channel; False, and a complaint, when there can be none."""
        channel_id = offer.channel_id
        if not 1 <= channel_id <= MAX_CHANNELS:
            self._refuse(f"channel IDs are 1 to {MAX_CHANNELS}, the offer says {channel_id:#x}", "OFFER_CHANNEL")
            return False
        if channel_id in self.channels:
            self._refuse(f"channel {channel_id:#x} is offered while it is in use", "OFFER_CHANNEL")
            return False
        self.channels[channel_id] = ClientChannel(offer)
        self._out.channel_changed(channel_id, "", ChannelState.OFFERED.value)
        return True

    def rescinded(self, message: RescindChannelOffer) -> None:
        """The device is gone."""
        channel = self.channels.get(message.channel_id)
        if channel is None or channel.state is ChannelState.REVOKED:
            what = "nobody knows it" if channel is None else "it was rescinded before"
            self._refuse(f"channel {message.channel_id:#x} is rescinded, but {what}", "RESCIND_CHANNEL_OFFER")
            return
        was_opening = channel.state is ChannelState.OPENING
        self._step(channel, Step.RESCIND)
        self._out.say(OfferRescinded(message.channel_id))
        if was_opening:
            self._out.say(OpenEnded(message.channel_id, STATUS_UNSUCCESSFUL))
        self._release_if_idle(channel)

    def open_ended(self, message: OpenResultMessage) -> None:
        """An open succeeded or failed."""
        channel = self.channels.get(message.channel_id)
        if channel is None or channel.state is not ChannelState.OPENING or message.open_id != message.channel_id:
            self._refuse(
                f"nobody waits for open {message.open_id:#x} of channel {message.channel_id:#x}", "OPEN_CHANNEL_RESULT"
            )
            return
        status, closes = message.status, channel.closes
        channel.closes = False
        self._step(channel, Step.OPENED if status == STATUS_SUCCESS else Step.OPEN_FAILED)
        if closes and status == STATUS_SUCCESS:
            self._close(channel)
            status = STATUS_UNSUCCESSFUL
        self._out.say(OpenEnded(message.channel_id, status))

    def gpadl_created(self, message: GpadlCreated) -> None:
        """The host took a GPADL or did not."""
        channel = self._with_gpadl(message.gpadl_id, GpadlState.CREATING, "GPADL_CREATED", message.channel_id)
        if channel is None:
            return
        is_created = message.status == STATUS_SUCCESS
        self._set_gpadl(channel, message.gpadl_id, GpadlState.CREATED if is_created else None)
        self._out.say(GpadlCreateEnded(message.channel_id, message.gpadl_id, message.status))
        self._release_if_idle(channel)

    def gpadl_torn_down(self, message: GpadlTorndown) -> None:
        """The host let go of a GPADL."""
        channel = self._with_gpadl(message.gpadl_id, GpadlState.TEARING_DOWN, "GPADL_TORNDOWN")
        if channel is None:
            return
        self._set_gpadl(channel, message.gpadl_id, None)
        self._out.say(GpadlTornDown(channel.offer.channel_id, message.gpadl_id))
        self._release_if_idle(channel)

    def modify_ended(self, message: ModifyChannelResponse) -> None:
        """The interrupts have moved or not."""
        channel = self.channels.get(message.channel_id)
        if channel is None or not channel.is_modifying:
            self._refuse(f"nobody changes channel {message.channel_id:#x}", "MODIFY_CHANNEL_RESPONSE")
            return
        channel.is_modifying = False
        self._out.say(ModifyEnded(message.channel_id, message.status))
        self._release_if_idle(channel)

    # what the user asks for

    def open(self, channel_id: int, request: OpenRequest, features: FeatureFlags) -> None:
        """See `ClientMachine.open`."""
        channel = self.held(channel_id)
        if channel.state is ChannelState.REVOKED:
            self._out.say(OpenEnded(channel_id, STATUS_UNSUCCESSFUL))
            return
        if channel.state is not ChannelState.OFFERED:
            raise HostError(f"channel {channel_id:#x} is {channel.state.value}; close it before it is opened again")
        chooses = features & FeatureFlags.GUEST_SPECIFIED_SIGNAL_PARAMETERS
        flag = self._choose_flag(channel, request, features)
        signals = request.connection_id if request.connection_id is not None else channel.offer.connection_id
        self._out.send(_open_message(channel_id, request, features, flag, signals))
        channel.has_own_flag = bool(chooses) and not request.is_direct
        channel.event_flag, channel.connection_id = channel_id if request.is_direct else flag, signals
        if channel.has_own_flag:
            self.flags.take(flag)
        self._step(channel, Step.OPEN)

    def close(self, channel_id: int) -> None:
        """See `ClientMachine.close`."""
        channel = self.held(channel_id)
        if channel.state is ChannelState.OFFERED or channel.closes:
            raise HostError(f"channel {channel_id:#x} is not open")
        self._close(channel)

    def release(self, channel_id: int) -> None:
        """See `ClientMachine.release`."""
        channel = self.held(channel_id)
        channel.is_held = False
        self._close(channel)
        self._release_if_idle(channel)

    def claim(self, channel_id: int) -> ClientChannel:
        """See `ClientMachine.claim`."""
        channel = self.held(channel_id)
        if channel.state is not ChannelState.RESTORED:
            raise HostError(f"channel {channel_id:#x} is {channel.state.value}; only a restored one can be claimed")
        self._step(channel, Step.CLAIM)
        return channel

    def claim_ended(self) -> None:
        """Close what was restored and is not claimed, and tear down its GPADLs."""
        for channel_id, channel in self.channels.items():
            if channel.state is ChannelState.RESTORED:
                self._close(channel)
                for gpadl_id, state in list(channel.gpadls.items()):
                    if state is GpadlState.CREATED:
                        self.teardown_gpadl(channel_id, gpadl_id)

    def create_gpadl(self, channel_id: int, gpadl_id: int, range_count: int, buffer: bytes) -> None:
        """See `ClientMachine.create_gpadl`."""
        channel = self.held(channel_id)
        if gpadl_id in self._owners:
            raise HostError(f"GPADL {gpadl_id:#010x} is in use; choose another ID or tear it down first")
        self._out.send(*gpadl_messages(channel_id, gpadl_id, range_count, buffer))
        self._set_gpadl(channel, gpadl_id, GpadlState.CREATING)

    def teardown_gpadl(self, channel_id: int, gpadl_id: int) -> None:
        """See `ClientMachine.teardown_gpadl`."""
        channel = self.channels.get(channel_id)
        state = None if channel is None else channel.gpadls.get(gpadl_id)
        if channel is None or state is not GpadlState.CREATED:
            what = "not there" if state is None else state.value
            raise HostError(f"GPADL {gpadl_id:#010x} of channel {channel_id:#x} is {what}; it cannot be torn down")
        self._out.send(GpadlTeardown(channel_id, gpadl_id))
        self._set_gpadl(channel, gpadl_id, GpadlState.TEARING_DOWN)

    def modify(self, channel_id: int, target_vp: int, version: Version) -> None:
        """See `ClientMachine.modify_channel`."""
        channel = self.held(channel_id)
        if version < Version.WIN10_RS3_0:
            self._out.say(ModifyEnded(channel_id, STATUS_UNSUCCESSFUL))
            return
        if channel.is_modifying:
            raise HostError(f"channel {channel_id:#x} is moving to another processor already; wait for that to end")
        self._out.send(ModifyChannel(channel_id, target_vp))
        if version < Version.IRON:
            self._out.say(ModifyEnded(channel_id, STATUS_SUCCESS))
        else:
            channel.is_modifying = True

    def has_gpadl(self, gpadl_id: int) -> bool:
        """See `ClientMachine.has_gpadl`."""
        return gpadl_id in self._owners

    def held(self, channel_id: int) -> ClientChannel:
        """A channel that the user has not released. `ChannelClosed` when there is none."""
        channel = self.channels.get(channel_id)
        if channel is None or not channel.is_held:
            raise ChannelClosed(f"channel {channel_id:#x} is not there any more: it was released, or never offered")
        return channel

    # both

    def restore(self, channel: ClientChannel) -> None:
        """Take over a channel of a saved state; it is consistent."""
        channel_id = channel.offer.channel_id
        self.channels[channel_id] = channel
        self._out.channel_changed(channel_id, "", channel.state.value)
        if channel.has_own_flag:
            self.flags.take(channel.event_flag)
        for gpadl_id, state in channel.gpadls.items():
            self._owners[gpadl_id] = channel_id
            self._out.gpadl_changed(channel_id, gpadl_id, "", state.value)
        self._out.say(OfferAdded(channel.offer))

    def clear(self) -> None:
        """The connection is gone, and all that there was in it."""
        for channel in list(self.channels.values()):
            self._remove(channel)

    @property
    def is_unsaved(self) -> bool:
        """Something is due that a saved state does not hold."""
        return any(channel.is_unsaved for channel in self.channels.values())

    @property
    def delays_pause(self) -> bool:
        """The host should not be asked to be quiet yet."""
        return any(channel.delays_pause for channel in self.channels.values())

    def check(self, agreed: Agreed) -> None:
        """Every invariant of channels and GPADLs; `AssertionError` for one that is broken."""
        owners = {gpadl_id: number for number, channel in self.channels.items() for gpadl_id in channel.gpadls}
        assert owners == self._owners, "each GPADL has one channel"
        flags = [channel.event_flag for channel in self.channels.values() if channel.has_own_flag]
        assert sorted(flags) == list(self.flags), "each flag that is taken belongs to one channel"
        assert not flags or agreed.features & FeatureFlags.GUEST_SPECIFIED_SIGNAL_PARAMETERS
        for channel_id, channel in self.channels.items():
            assert channel.offer.channel_id == channel_id
            assert 1 <= channel_id <= MAX_CHANNELS
            uses_flag = channel.state in USES_FLAG
            assert bool(channel.event_flag) == uses_flag, "a channel has a flag while it may be signalled"
            assert uses_flag or not (channel.connection_id or channel.has_own_flag), "and signals only then"
            assert not channel.closes or channel.state is ChannelState.OPENING
            may_be_there = channel.state is not ChannelState.REVOKED or channel.is_held or channel.is_busy
            assert may_be_there, "a revoked channel that nobody needs is released"
            is_let_go = channel.state in (ChannelState.OFFERED, ChannelState.REVOKED) or channel.closes
            assert channel.is_held or is_let_go, "what the user released is closed"
            assert not channel.is_modifying or (agreed.version or Version.V1) >= Version.IRON

    def _choose_flag(self, channel: ClientChannel, request: OpenRequest, features: FeatureFlags) -> int:
        chooses = features & FeatureFlags.GUEST_SPECIFIED_SIGNAL_PARAMETERS
        if not chooses and (request.event_flag is not None or request.connection_id is not None):
            raise ValueError("event flag and connection ID are the guest's to choose with feature 0x1 only")
        if request.redirect and not features & FeatureFlags.CHANNEL_INTERRUPT_REDIRECTION:
            raise ValueError("interrupts can be redirected with feature 0x2 only")
        if not chooses:
            return channel.offer.channel_id
        if request.event_flag is None:
            return self.flags.lowest_free()
        if request.is_direct:
            return request.event_flag
        if not 1 <= request.event_flag <= MAX_CHANNELS or request.event_flag in self.flags:
            raise ValueError(f"event flag {request.event_flag} is none of the free ones from 1 to {MAX_CHANNELS}")
        return request.event_flag

    def _close(self, channel: ClientChannel) -> None:
        """Close the channel, at once or as soon as it is open; nothing when there is nothing to close."""
        if channel.state is ChannelState.OPENING:
            channel.closes = True
        elif channel.state in USES_FLAG:
            self._out.send(CloseChannel(channel.offer.channel_id))
            self._step(channel, Step.CLOSE)

    def _step(self, channel: ClientChannel, step: Step) -> None:
        before, channel.state = channel.state, CHANNEL_STEPS[channel.state, step]
        self._out.channel_changed(channel.offer.channel_id, before.value, channel.state.value)
        if channel.state not in USES_FLAG:
            self._free_flag(channel)

    def _free_flag(self, channel: ClientChannel) -> None:
        if channel.has_own_flag:
            self.flags.free(channel.event_flag)
        channel.event_flag = channel.connection_id = 0
        channel.has_own_flag = channel.closes = False

    def _with_gpadl(
        self, gpadl_id: int, state: GpadlState, name: str, channel_id: int | None = None
    ) -> ClientChannel | None:
        """The channel whose GPADL is in this state; None, and a complaint, when there is none."""
        owner = self._owners.get(gpadl_id)
        channel = None if owner is None else self.channels[owner]
        if channel is None or channel_id not in (None, owner) or channel.gpadls[gpadl_id] is not state:
            self._refuse(f"no GPADL {gpadl_id:#010x} is {state.value} there", name)
            return None
        return channel

    def _set_gpadl(self, channel: ClientChannel, gpadl_id: int, after: GpadlState | None) -> None:
        channel_id, before = channel.offer.channel_id, channel.gpadls.get(gpadl_id)
        if after is None:
            del channel.gpadls[gpadl_id], self._owners[gpadl_id]
        else:
            channel.gpadls[gpadl_id], self._owners[gpadl_id] = after, channel_id
        self._out.gpadl_changed(channel_id, gpadl_id, _name(before), _name(after))

    def _release_if_idle(self, channel: ClientChannel) -> None:
        if channel.state is ChannelState.REVOKED and not channel.is_held and not channel.is_busy:
            self._out.send(RelidReleased(channel.offer.channel_id))
            self._remove(channel)
            self._out.say(Released(channel.offer.channel_id))

    def _remove(self, channel: ClientChannel) -> None:
        for gpadl_id in list(channel.gpadls):
            self._set_gpadl(channel, gpadl_id, None)
        self._free_flag(channel)
        del self.channels[channel.offer.channel_id]
        self._out.channel_changed(channel.offer.channel_id, channel.state.value, "")

    def _refuse(self, reason: str, name: str) -> None:
        self._out.complain("host_message_unexpected", reason, name)


def _open_message(
    channel_id: int, request: OpenRequest, features: FeatureFlags, flag: int, signals: int
) -> OpenChannel:
    if len(request.user_data) > USER_AREA:
        raise ValueError(f"user data of an open is at most {USER_AREA} bytes, not {len(request.user_data)}")
    common = (
        channel_id,
        channel_id,  # the open ID, as Linux chooses it; the host gives it back
        request.gpadl_id,
        request.target_vp,
        request.upstream_pages,
        request.user_data.ljust(USER_AREA, b"\0"),
    )
    if not features & OPEN2_FEATURES:
        return OpenChannel(*common)
    return OpenChannel2(*common, signals, flag, OpenFlags.REDIRECT_INTERRUPT if request.redirect else 0)


def _name(state: GpadlState | None) -> str:
    return "" if state is None else state.value
