"""The server's channels: open, close, release, modify, for guests and for devices (OpenVMM, `channels.rs`).

What a guest may ask for in which state stands in `transitions`. What it may not is reported as a complaint and has no
answer, except where the message has a failure reply.
"""

from __future__ import annotations

import msgspec

from ...protocol.ids import NO_INTERRUPTS, event_connection
from ...protocol.message import STATUS_UNSUCCESSFUL
from ...protocol.offer import OfferFlags, RelidReleased
from ...protocol.open import (
    CloseChannel,
    CloseReservedChannel,
    CloseReservedChannelResponse,
    ModifyChannel,
    OpenChannel,
    OpenChannel2,
    OpenFlags,
    OpenReservedChannel,
    OpenResult,
)
from ...protocol.versions import FeatureFlags, Version
from .effects import (
    CloseDevice,
    CreatePorts,
    DestroyPorts,
    DropOpen,
    ModifyDevice,
    OpenDevice,
    OpenParams,
    ResumeDevice,
    Target,
)
from .gpadls import GpadlMachine
from .offering import OfferMachine
from .state import ServerState
from .table import Channel, ChannelState
from .transitions import CLOSE_TABLE, CONNECTION_LOST, OPEN_RESERVED_TABLE, OPEN_TABLE, RELEASE_TABLE

_S = ChannelState


class ChannelMachine:
    """See the module."""

    def __init__(self, state: ServerState, gpadls: GpadlMachine, offers: OfferMachine) -> None:
        self._state = state
        self._gpadls = gpadls
        self._offers = offers

    # from the guest

    def open(self, message: OpenChannel) -> None:
        """OPEN_CHANNEL."""
        channel = self._addressed(message.channel_id, "OPEN_CHANNEL")
        if channel is None:
            return
        state = self._state
        has_parameters = state.has(FeatureFlags.GUEST_SPECIFIED_SIGNAL_PARAMETERS)
        long = message if isinstance(message, OpenChannel2) else None
        offered = self._offered_connection(message.channel_id)
        target_vp = message.target_vp if state.connection.version >= Version.WIN8 else 0
        redirects = long is not None and state.has(FeatureFlags.CHANNEL_INTERRUPT_REDIRECTION)
        params = self._params(
            channel,
            open_id=message.open_id,
            gpadl_id=message.ring_buffer_gpadl_id,
            target_vp=None if target_vp == NO_INTERRUPTS else target_vp,
            page_offset=message.downstream_ring_buffer_page_offset,
            user_data=message.user_data,
            connection_id=long.connection_id if long is not None and has_parameters else offered,
            event_flag=long.event_flag if long is not None and has_parameters else message.channel_id & 0xFFFF,
            redirect=redirects and long is not None and bool(long.flags & OpenFlags.REDIRECT_INTERRUPT),
        )
        self._open(channel, params, OPEN_TABLE[channel.state], "OPEN_CHANNEL")

    def open_reserved(self, message: OpenReservedChannel) -> None:
        """OPEN_RESERVED_CHANNEL: without interrupts; answered at the SINT that it names."""
        channel = self._addressed(message.channel_id, "OPEN_RESERVED_CHANNEL")
        if channel is None:
            return
        params = self._params(
            channel,
            open_id=0,
            gpadl_id=message.ring_buffer_gpadl_id,
            target_vp=None,
            page_offset=message.downstream_ring_buffer_page_offset,
            user_data=bytes(120),
            connection_id=self._offered_connection(message.channel_id),
            event_flag=message.channel_id & 0xFFFF,
            reserved=Target(message.target_vp, message.target_sint & 0xFF),
        )
        if channel.state is _S.CLOSED:
            channel.reserve = self._state.connection.agreed
        self._open(channel, params, OPEN_RESERVED_TABLE[channel.state], "OPEN_RESERVED_CHANNEL")

    def close(self, message: CloseChannel) -> None:
        """CLOSE_CHANNEL."""
        channel = self._addressed(message.channel_id, "CLOSE_CHANNEL")
        if channel is None:
            return
        if channel.state is _S.OPEN and channel.is_reserved:
            self._refuse(channel, "it is open as a reserved channel", "CLOSE_CHANNEL")
        elif self._goes(channel, CLOSE_TABLE[channel.state], "CLOSE_CHANNEL"):
            self._offers.fail_modification(channel)
            self._close_device(channel, _S.CLOSING)

    def close_reserved(self, message: CloseReservedChannel) -> None:
        """CLOSE_RESERVED_CHANNEL, also without a connection."""
        name = "CLOSE_RESERVED_CHANNEL"
        channel = self._addressed(message.channel_id, name)
        if channel is None:
            return
        if channel.state is _S.OPEN and not channel.is_reserved:
            self._refuse(channel, "it is not open as a reserved channel", name)
        elif self._goes(channel, CLOSE_TABLE[channel.state], name) and channel.open is not None:
            target = Target(message.target_vp, message.target_sint & 0xFF)
            channel.open = msgspec.structs.replace(channel.open, reserved=target)
            self._close_device(channel, _S.CLOSING)

    def release(self, message: RelidReleased) -> None:
        """RELID_RELEASED: the ID is free. A device that came back is offered again under the same ID."""
        channel = self._addressed(message.channel_id, "RELID_RELEASED")
        if channel is None:
            return
        before = channel.state
        if not self._goes(channel, RELEASE_TABLE[before], "RELID_RELEASED"):
            return
        if before is _S.REOFFERED:
            self._gpadls.release(channel)
            self._state.channels.assign_monitor(channel)  # what it had was its predecessor's
            self._state.set_channel(channel, _S.CLOSED)
            self._offers.send_offer(channel)
        else:
            self._release(channel, at_once=False)

    def modify(self, message: ModifyChannel) -> None:
        """MODIFY_CHANNEL: another processor for the interrupts of an open channel."""
        state, vp = self._state, message.target_vp
        channel = self._addressed(message.channel_id, "MODIFY_CHANNEL")
        opened = None if channel is None else channel.open
        is_open = channel is not None and channel.state is _S.OPEN
        if channel is None or opened is None or not is_open or opened.target_vp is None or vp == NO_INTERRUPTS:
            if channel is not None:
                self._refuse(channel, "it is not open for interrupts, or would not be any more", "MODIFY_CHANNEL")
            self._offers.send_modified(message.channel_id, STATUS_UNSUCCESSFUL)
        elif not channel.modifying:
            self._modify_device(channel, opened, vp)
        elif state.connection.version >= Version.IRON:
            self._refuse(channel, "it is being modified already", "MODIFY_CHANNEL")
        else:
            channel.next_vp = vp

    # from the device

    def open_ended(self, offer_id: int, status: int) -> bool:
        """The device has opened (status 0) or has not; True when the channel is open now."""
        channel = self._state.of_offer(offer_id)
        if channel is None or channel.state not in (_S.OPENING, _S.OPENING_CLIENT_RELEASE) or not channel.restored:
            self._unexpected("open", channel)
            return False
        is_open = _is_success(status)
        if channel.state is _S.OPENING_CLIENT_RELEASE:
            self._end_released_open(channel, is_open)
            return False
        opened = channel.open
        assert opened is not None
        if not is_open:
            self._state.emit(DestroyPorts(offer_id))
            channel.open = channel.reserve = None
        self._state.set_channel(channel, _S.OPEN if is_open else _S.CLOSED)
        self._state.send(OpenResult(channel.channel_id or 0, opened.open_id, status), opened.reserved)
        if not is_open and opened.reserved is not None:
            self._end_reserved(channel)
        return is_open

    def close_ended(self, offer_id: int) -> None:
        """The device has closed."""
        state = self._state
        channel = self._state.of_offer(offer_id)
        if channel is None or not channel.restored:
            self._unexpected("close", channel)
        elif channel.state is _S.CLOSING:
            opened, channel.open, channel.reserve = channel.open, None, None
            state.set_channel(channel, _S.CLOSED)
            if opened is not None and opened.reserved is not None:
                state.send(CloseReservedChannelResponse(channel.channel_id or 0), opened.reserved)
                self._end_reserved(channel)
        elif channel.state is _S.CLOSING_REOPEN:
            opened, reopen = channel.open, channel.reopen
            channel.reopen = channel.reserve = None
            assert reopen is not None
            if opened is not None and opened.reserved is not None:
                state.send(CloseReservedChannelResponse(channel.channel_id or 0), opened.reserved)
            self._begin_open(channel, reopen)
        elif channel.state is _S.CLOSING_CLIENT_RELEASE:
            state.set_channel(channel, _S.CLIENT_RELEASED)
        else:
            self._unexpected("close", channel)

    def modify_ended(self, offer_id: int, status: int) -> None:
        """The device knows of its new processor."""
        channel = self._state.of_offer(offer_id)
        if channel is None or not channel.modifying or channel.state is not _S.OPEN:
            self._unexpected("modification", channel)
            return
        channel.modifying = False
        self._offers.send_modified(channel.channel_id or 0, status)
        next_vp, channel.next_vp = channel.next_vp, None
        if next_vp is not None and channel.open is not None:
            self._modify_device(channel, channel.open, next_vp)

    # the connection is lost

    def release_all(self, is_reset: bool) -> None:
        """The guest is gone, and nobody answers it. Reserved channels stay, unless the VM is reset."""
        for channel in list(self._state.channels.by_offer.values()):
            if is_reset or not channel.is_reserved:
                self._release(channel, at_once=is_reset)
            elif channel.reopen is not None:  # that was for the connection
                channel.reopen = None
                self._state.set_channel(channel, _S.CLOSING)

    # within

    def _offered_connection(self, channel_id: int) -> int:
        config = self._state.config
        return event_connection(channel_id, config.message_sint, config.message_vtl)

    def _addressed(self, channel_id: int, name: str) -> Channel | None:
        channel = self._state.channels.by_channel_id.get(channel_id)
        if channel is None:
            self._state.complain("unknown_channel_id", f"there is no channel {channel_id:#x}", name)
        return channel

    def _goes(self, channel: Channel, entry: ChannelState | str, name: str) -> bool:
        if isinstance(entry, ChannelState):
            return True
        if entry:
            self._refuse(channel, entry, name)
        return False

    def _refuse(self, channel: Channel, reason: str, name: str) -> None:
        self._state.complain("invalid_channel_state", f"{name} of channel {channel.channel_id}: {reason}", name)

    def _unexpected(self, what: str, channel: Channel | None) -> None:
        where = "an offer that is gone" if channel is None else f"channel {channel.channel_id}, {channel.state.value}"
        self._state.complain("device_answer_unexpected", f"a device ended the {what} of {where}")

    def _params(self, channel: Channel, **values: object) -> OpenParams:
        connection, offered = self._state.connection, channel.params
        has_monitor = values["target_vp"] is not None and connection.monitor_pages is not None
        is_relayed = offered.relayed
        flags = self._offers.offered_flags(offered)
        return OpenParams(
            monitor_id=channel.monitor_id if has_monitor and not is_relayed else None,
            monitor_latency=offered.monitor_latency or 0,
            is_direct=is_relayed and connection.version >= Version.WIN8 and not values.get("redirect"),
            confidential_ring=bool(flags & OfferFlags.CONFIDENTIAL_RING),
            confidential_external_memory=bool(flags & OfferFlags.CONFIDENTIAL_EXTERNAL_MEMORY),
            **values,  # type: ignore[arg-type]
        )

    def _open(self, channel: Channel, params: OpenParams, entry: ChannelState | str, name: str) -> None:
        if not self._goes(channel, entry, name):
            return
        if entry is _S.CLOSING_REOPEN:
            channel.reopen = params
            self._state.set_channel(channel, _S.CLOSING_REOPEN)
        else:
            self._begin_open(channel, params)

    def _begin_open(self, channel: Channel, params: OpenParams) -> None:
        channel.open = params
        self._state.set_channel(channel, _S.OPENING)
        self.ask_open(channel, params)

    def ask_open(self, channel: Channel, params: OpenParams, *, resume: bool = False) -> None:
        """The event ports first: the guest may signal before the device's answer reaches it."""
        self._state.emit(CreatePorts(channel.offer_id, channel.channel_id or 0, params))
        self._state.emit(ResumeDevice(channel.offer_id, params) if resume else OpenDevice(channel.offer_id, params))

    def _close_device(self, channel: Channel, after: ChannelState) -> None:
        channel.modifying, channel.next_vp = False, None
        self._state.set_channel(channel, after)
        self._state.emit(CloseDevice(channel.offer_id))
        self._state.emit(DestroyPorts(channel.offer_id))

    def _modify_device(self, channel: Channel, opened: OpenParams, vp: int) -> None:
        channel.modifying = True
        channel.open = msgspec.structs.replace(opened, target_vp=vp)
        self._state.emit(ModifyDevice(channel.offer_id, vp))

    def _end_released_open(self, channel: Channel, is_open: bool) -> None:
        if is_open:
            self._close_device(channel, _S.CLOSING_CLIENT_RELEASE)
            return
        self._state.emit(DestroyPorts(channel.offer_id))
        self._state.set_channel(channel, _S.CLIENT_RELEASED)

    def _end_reserved(self, channel: Channel) -> None:
        """A reserved channel is closed: where the guest has not been offered it on this connection, it is released too."""
        connection = self._state.connection
        if not (connection.is_connected and connection.offers_sent):
            self._release(channel, at_once=False)

    def _release(self, channel: Channel, *, at_once: bool) -> None:
        """The guest does not hold it any more. `at_once`: an open that is under way is not waited for."""
        state, before = self._state, channel.state
        after = CONNECTION_LOST[before]
        if before in (_S.OPENING, _S.OPENING_CLIENT_RELEASE) and at_once:
            after = _S.CLIENT_RELEASED
            state.emit(DropOpen(channel.offer_id))
            state.emit(DestroyPorts(channel.offer_id))
        if channel.is_released and after is before:
            return
        self._gpadls.release(channel)
        channel.reopen = channel.next_vp = None
        channel.modifying = False
        if before is _S.OPEN:
            self._close_device(channel, after)
        else:
            state.set_channel(channel, after)
        channel.open = channel.reserve = None
        channel.restored = True
        state.channels.free_id(channel)
        if before is _S.REVOKED:
            state.channels.remove(channel)


def _is_success(status: int) -> bool:
    """A status is 32 bits, signed on the host's side: negative ones are failures."""
    return not status & 0x8000_0000
