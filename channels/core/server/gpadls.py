"""The server's GPADLs: assembly from messages, acceptance by the device, tear-down (OpenVMM, `channels.rs`).

    header .. bodies -> Offered -> Accepted -> TearingDown -> gone

A header that cannot be taken is answered GPADL_CREATED with a failure; a body that belongs to nothing has no answer. What
a device was told about is gone only when the device says so, whatever becomes of the guest.
"""

from __future__ import annotations

from broker.errors import ProtocolError

from ...protocol.gpadl import GpadlBody, GpadlCreated, GpadlHeader, GpadlTeardown, GpadlTorndown
from ...protocol.message import STATUS_SUCCESS, STATUS_UNSUCCESSFUL
from .effects import CreateGpadl, GpadlChanged, ResumeGpadl, TeardownGpadl
from .gpadl import GPADL_COST, WORD, Gpadl, GpadlState
from .state import ServerState
from .table import Channel, ChannelState

_G = GpadlState
_WITHOUT_DEVICE = (ChannelState.REVOKED, ChannelState.REOFFERED)
"""The device that a GPADL of such a channel was for is gone."""


class GpadlMachine:
    """See the module."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    # from the guest

    def header(self, message: GpadlHeader) -> None:
        """GPADL_HEADER."""
        channel = self._state.channels.by_channel_id.get(message.channel_id)
        refusal = self._refusal(channel, message)
        if channel is None or refusal is not None:
            self._fail(message.channel_id, message.gpadl_id, refusal or "there is no such channel")
            return
        gpadl = Gpadl(message.gpadl_id, message.range_count, message.range_buffer_length)
        self._state.gpadl_words += gpadl.cost
        channel.gpadls[gpadl.gpadl_id] = gpadl
        self._state.emit(GpadlChanged(message.channel_id, gpadl.gpadl_id, "", gpadl.state.value))
        if gpadl.append(message.data):
            self._complete(channel, gpadl)
        else:
            self._state.gpadls_in_progress[gpadl.gpadl_id] = channel

    def body(self, message: GpadlBody) -> None:
        """GPADL_BODY, for the one GPADL with this ID that is not whole yet."""
        channel = self._state.gpadls_in_progress.get(message.gpadl_id)
        if channel is None:
            reason = f"no GPADL {message.gpadl_id:#x} is waiting for more"
            self._state.complain("unknown_gpadl", reason, "GPADL_BODY")
            return
        gpadl = channel.gpadls[message.gpadl_id]
        if gpadl.append(message.data):
            del self._state.gpadls_in_progress[message.gpadl_id]
            self._complete(channel, gpadl)

    def teardown(self, message: GpadlTeardown) -> None:
        """GPADL_TEARDOWN; the channel need not be closed before, the device says when it has let go."""
        state, name = self._state, "GPADL_TEARDOWN"
        channel = state.channels.by_channel_id.get(message.channel_id)
        gpadl = None if channel is None else channel.gpadls.get(message.gpadl_id)
        if channel is None or gpadl is None:
            state.complain("unknown_gpadl", f"channel {message.channel_id:#x} has no GPADL {message.gpadl_id:#x}", name)
        elif channel.is_reserved:
            state.complain("invalid_channel_state", f"channel {message.channel_id} is open as a reserved channel", name)
        elif gpadl.state is not _G.ACCEPTED:
            state.complain("invalid_gpadl_state", f"GPADL {message.gpadl_id:#x} is {gpadl.state.value}", name)
        elif channel.state in _WITHOUT_DEVICE:
            self._remove(channel, gpadl)
            state.send(GpadlTorndown(gpadl.gpadl_id))
        else:
            self._teardown_device(channel, gpadl)

    # from the device

    def created(self, offer_id: int, gpadl_id: int, *, accepted: bool) -> None:
        """The device uses the GPADL, or refuses it."""
        state = self._state
        channel, gpadl = self._find(offer_id, gpadl_id)
        if channel is None or gpadl is None or gpadl.state not in (_G.OFFERED, _G.OFFERED_TEARING_DOWN):
            self._unexpected("creation", gpadl_id)
        elif gpadl.state is _G.OFFERED_TEARING_DOWN:
            if accepted:
                self._teardown_device(channel, gpadl)
            else:
                self._remove(channel, gpadl)
        elif accepted:
            state.set_gpadl(channel, gpadl, _G.ACCEPTED)
            state.send(GpadlCreated(channel.channel_id or 0, gpadl_id, STATUS_SUCCESS))
        else:
            self._remove(channel, gpadl)
            state.send(GpadlCreated(channel.channel_id or 0, gpadl_id, STATUS_UNSUCCESSFUL))

    def torn_down(self, offer_id: int, gpadl_id: int) -> None:
        """The device has dropped every mapping."""
        channel, gpadl = self._find(offer_id, gpadl_id)
        if channel is None or gpadl is None or gpadl.state is not _G.TEARING_DOWN:
            self._unexpected("tear-down", gpadl_id)
            return
        self._remove(channel, gpadl)
        if not gpadl.is_released:
            self._state.send(GpadlTorndown(gpadl_id))

    # with the channel

    def release(self, channel: Channel) -> None:
        """The guest lets go of the channel: no more answers; the device lets go of what it uses."""
        has_device = channel.state not in _WITHOUT_DEVICE
        for gpadl in list(channel.gpadls.values()):
            gpadl.is_released = True
            if gpadl.state is _G.IN_PROGRESS or not has_device:
                self._remove(channel, gpadl)
            elif gpadl.state is _G.OFFERED:
                self._state.set_gpadl(channel, gpadl, _G.OFFERED_TEARING_DOWN)
            elif gpadl.state is _G.ACCEPTED:
                self._teardown_device(channel, gpadl)

    def revoke(self, channel: Channel) -> None:
        """The device is gone while the guest holds the channel: what it was to answer is answered for it."""
        for gpadl in list(channel.gpadls.values()):
            if gpadl.state is _G.OFFERED:
                self._remove(channel, gpadl)
                self._state.send(GpadlCreated(channel.channel_id or 0, gpadl.gpadl_id, STATUS_UNSUCCESSFUL))
            elif gpadl.state is _G.TEARING_DOWN:
                self._remove(channel, gpadl)
                if not gpadl.is_released:
                    self._state.send(GpadlTorndown(gpadl.gpadl_id))
            elif gpadl.state is _G.OFFERED_TEARING_DOWN:
                self._remove(channel, gpadl)

    def drop(self, channel: Channel) -> None:
        """Device and guest have both let go of the channel."""
        for gpadl in list(channel.gpadls.values()):
            self._remove(channel, gpadl)

    # after a restore

    def resume(self, channel: Channel, gpadl: Gpadl) -> None:
        """The device of a restored channel is there: it learns of its GPADLs, and is asked again what it had not answered."""
        if gpadl.state is _G.OFFERED:
            self.ask_create(channel, gpadl)
        elif gpadl.state in (_G.ACCEPTED, _G.TEARING_DOWN):
            self._state.emit(ResumeGpadl(channel.offer_id, gpadl.gpadl_id, gpadl.range_count, gpadl.buffer))
            if gpadl.state is _G.TEARING_DOWN:
                self._state.emit(TeardownGpadl(channel.offer_id, gpadl.gpadl_id))

    # within

    def _refusal(self, channel: Channel | None, message: GpadlHeader) -> str | None:
        state = self._state
        gpadl_id = message.gpadl_id
        words = message.range_buffer_length // WORD
        if channel is None:
            return f"there is no channel {message.channel_id:#x}"
        if channel.is_reserved:
            return f"channel {message.channel_id} is open as a reserved channel"
        if gpadl_id in channel.gpadls:
            return f"channel {message.channel_id} has a GPADL {gpadl_id:#x} already"
        if len(message.data) // WORD < words and gpadl_id in state.gpadls_in_progress:
            return f"another GPADL {gpadl_id:#x} is not whole yet"
        if state.gpadl_words + words + GPADL_COST > state.config.gpadl_words:
            return f"the guest's GPADLs would hold more than {state.config.gpadl_words} words"
        return None

    def _complete(self, channel: Channel, gpadl: Gpadl) -> None:
        try:
            gpadl.validate()
        except ProtocolError as error:
            self._remove(channel, gpadl)
            self._fail(channel.channel_id or 0, gpadl.gpadl_id, str(error))
            return
        if channel.state in _WITHOUT_DEVICE:
            self._state.set_gpadl(channel, gpadl, _G.ACCEPTED)
            self._state.send(GpadlCreated(channel.channel_id or 0, gpadl.gpadl_id, STATUS_SUCCESS))
            return
        self._state.set_gpadl(channel, gpadl, _G.OFFERED)
        self.ask_create(channel, gpadl)

    def ask_create(self, channel: Channel, gpadl: Gpadl) -> None:
        """Tell the device."""
        self._state.emit(CreateGpadl(channel.offer_id, gpadl.gpadl_id, gpadl.range_count, gpadl.buffer))

    def _teardown_device(self, channel: Channel, gpadl: Gpadl) -> None:
        self._state.set_gpadl(channel, gpadl, _G.TEARING_DOWN)
        self._state.emit(TeardownGpadl(channel.offer_id, gpadl.gpadl_id))

    def _remove(self, channel: Channel, gpadl: Gpadl) -> None:
        del channel.gpadls[gpadl.gpadl_id]
        if self._state.gpadls_in_progress.get(gpadl.gpadl_id) is channel and gpadl.state is _G.IN_PROGRESS:
            del self._state.gpadls_in_progress[gpadl.gpadl_id]
        self._state.gpadl_words -= gpadl.cost
        self._state.emit(GpadlChanged(channel.channel_id or 0, gpadl.gpadl_id, gpadl.state.value, ""))

    def _find(self, offer_id: int, gpadl_id: int) -> tuple[Channel | None, Gpadl | None]:
        channel = self._state.channels.by_offer.get(offer_id)
        return channel, None if channel is None else channel.gpadls.get(gpadl_id)

    def _fail(self, channel_id: int, gpadl_id: int, reason: str) -> None:
        self._state.complain("gpadl_refused", f"GPADL {gpadl_id:#x}: {reason}", "GPADL_HEADER")
        self._state.send(GpadlCreated(channel_id, gpadl_id, STATUS_UNSUCCESSFUL))

    def _unexpected(self, what: str, gpadl_id: int) -> None:
        self._state.complain("device_answer_unexpected", f"a device ended the {what} of GPADL {gpadl_id:#x}")
