"""After a restore: each device that came back says how its channel stands, and the server goes on from there.

What nobody has come back for is rescinded, what is new is offered (OpenVMM, `saved_state.rs`).
"""

from __future__ import annotations

from broker.errors import HostError

from ...protocol.message import STATUS_SUCCESS
from ...protocol.offer import RescindChannelOffer
from .channels import ChannelMachine
from .effects import CloseDevice, ModifyDevice
from .gpadls import GpadlMachine
from .offering import OfferMachine
from .state import ServerState
from .table import Channel, ChannelState

_S = ChannelState

RESTORE_TABLE = {
    _S.CLOSED: (False,),
    _S.OPENING: (False, True),
    _S.OPEN: (True,),
    _S.CLOSING: (False, True),
    _S.CLOSING_REOPEN: (False, True),
    _S.REOFFERED: (False,),
}
"""Saved state -> how the device may stand after a restore: closed, open."""


class RestoreMachine:
    """See the module."""

    def __init__(
        self, state: ServerState, gpadls: GpadlMachine, offers: OfferMachine, channels: ChannelMachine
    ) -> None:
        self._state = state
        self._gpadls = gpadls
        self._offers = offers
        self._channels = channels

    def restore(self, offer_id: int, is_open: bool) -> None:
        """The device of a restored channel says how it stands, and goes on from there. `HostError` when it cannot be so."""
        channel = self._state.of_offer(offer_id)
        if channel is None:
            raise HostError("this offer is gone; its channel cannot be restored")
        if channel.restored:
            if is_open:
                raise HostError("the saved state has no open channel for this offer; restore it closed")
            return
        assigned = None if channel.owns_monitor else channel.monitor_id
        if channel.state is not _S.REOFFERED and channel.params.monitor_id != assigned:
            raise HostError(
                f"the saved channel {channel.channel_id} has monitor ID {assigned}, its device was given"
                f" {channel.params.monitor_id}; offer it with the same"
            )
        allowed = RESTORE_TABLE[channel.state]
        if is_open not in allowed:
            stands = "open" if is_open else "closed"
            raise HostError(
                f"the saved channel {channel.channel_id} is {channel.state.value}; its device cannot be {stands}"
            )
        channel.restored = True
        if channel.state is not _S.REOFFERED:  # its GPADLs were of the device that was revoked
            for gpadl in channel.gpadls.values():
                self._gpadls.resume(channel, gpadl)
        opened = channel.open
        if channel.state is _S.OPENING and opened is not None:
            self._channels.ask_open(channel, opened, resume=is_open)
            if is_open:
                self._channels.open_ended(offer_id, STATUS_SUCCESS)
        elif channel.state is _S.OPEN and opened is not None:
            self._channels.ask_open(channel, opened, resume=True)
            if channel.modifying and opened.target_vp is not None:
                self._state.emit(ModifyDevice(offer_id, opened.target_vp))
        elif channel.state in (_S.CLOSING, _S.CLOSING_REOPEN):
            if is_open:
                self._state.emit(CloseDevice(offer_id))
            else:
                self._channels.close_ended(offer_id)

    def start(self) -> None:
        """Every device that is there has said how it stands: rescind the others, offer what is new."""
        state = self._state
        for channel in list(state.channels.by_channel_id.values()):
            if channel.restored:
                continue
            is_new = channel.state is _S.REOFFERED
            channel.restored = True
            if channel.offer_id in state.unmatched:
                state.unmatched.discard(channel.offer_id)
                self._offers.revoke(channel.offer_id)
            elif not state.connection.is_connected:
                self._forget(channel)
            elif not is_new:
                self._gpadls.revoke(channel)
                self._offers.fail_modification(channel)
                channel.open = channel.reopen = channel.reserve = None
                state.set_channel(channel, _S.REOFFERED)
                state.send(RescindChannelOffer(channel.channel_id or 0))
        connection = state.connection
        if connection.is_connected and connection.offers_sent:
            waiting = [channel for channel in state.channels.by_offer.values() if channel.state is _S.CLIENT_RELEASED]
            for channel in state.channels.sorted(waiting):
                self._offers.offer_to_guest(channel)

    def _forget(self, channel: Channel) -> None:
        """A reserved channel that its device does not go on with, and no guest to tell: it is the device's alone again."""
        self._gpadls.drop(channel)
        channel.open = channel.reopen = channel.reserve = None
        self._state.set_channel(channel, _S.CLIENT_RELEASED)
        self._state.channels.free_id(channel)
