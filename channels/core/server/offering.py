"""The server's offers: what devices offer and take back, and what the guest is told of it (OpenVMM, `channels.rs`)."""

from __future__ import annotations

from broker.errors import HostError, OfferRefused

from ...protocol.ids import NO_MONITOR, event_connection
from ...protocol.message import STATUS_UNSUCCESSFUL
from ...protocol.offer import AllOffersDelivered, OfferChannel, OfferFlags, RescindChannelOffer
from ...protocol.open import ModifyChannelResponse
from ...protocol.versions import FeatureFlags, Version
from .effects import DestroyPorts, RemoveOffer
from .gpadls import GpadlMachine
from .offer_params import OfferParams
from .state import ServerState
from .table import Channel, ChannelState

_S = ChannelState


class OfferMachine:
    """See the module."""

    def __init__(self, state: ServerState, gpadls: GpadlMachine) -> None:
        self._state = state
        self._gpadls = gpadls

    def offer(self, params: OfferParams) -> int:
        """A device offers; the guest hears of it now if it has asked for offers. `OfferRefused`."""
        channels = self._state.channels
        existing = channels.by_key.get(params.key)
        if existing is not None and existing.offer_id in self._state.unmatched:
            self._state.unmatched.discard(existing.offer_id)
            channels.rename(existing, channels.new_offer_id(), params)
            return existing.offer_id
        if existing is not None and existing.state is not _S.REVOKED:
            raise OfferRefused(
                f"interface {params.interface_id}, instance {params.instance_id}, sub-channel {params.subchannel_index}"
                " is offered already; revoke that offer first"
            )
        offer_id = channels.new_offer_id()
        if existing is not None:
            channels.rename(existing, offer_id, params)
            self._state.set_channel(existing, _S.REOFFERED)
            return offer_id
        if len(channels) >= channels.capacity:
            raise OfferRefused(f"there are {channels.capacity} offers already, and no channel ID for one more")
        channel = Channel(offer_id, params)
        channels.add(channel)
        connection = self._state.connection
        if connection.is_connected and connection.offers_sent:
            try:
                self.offer_to_guest(channel)
            except HostError as error:
                channels.remove(channel)
                raise OfferRefused(str(error)) from None
        return offer_id

    def revoke(self, offer_id: int) -> None:
        """The device is gone: the guest gets a rescind if it holds the channel, and keeps the ID until it releases it."""
        state = self._state
        channel = self._state.of_offer(offer_id)
        if channel is None:
            return
        if channel.is_released or not state.connection.is_connected:
            self._forget(channel)
            return
        was_reoffered = channel.state is _S.REOFFERED
        self._gpadls.revoke(channel)
        self.fail_modification(channel)
        if channel.open is not None:
            state.emit(DestroyPorts(offer_id))
        channel.open = channel.reopen = channel.reserve = None
        channel.restored = True
        state.set_channel(channel, _S.REVOKED)
        state.emit(RemoveOffer(offer_id))
        if not was_reoffered:
            state.send(RescindChannelOffer(channel.channel_id or 0))

    def request_offers(self) -> None:
        """REQUEST_OFFERS: every device, sorted, then ALL_OFFERS_DELIVERED. Once per connection."""
        state = self._state
        if state.connection.offers_sent:
            state.complain("offers_sent_already", "the guest has asked for offers before", "REQUEST_OFFERS")
            return
        state.connection.offers_sent = True
        waiting = [channel for channel in state.channels.by_offer.values() if channel.state is _S.CLIENT_RELEASED]
        for channel in state.channels.sorted(waiting):
            self.offer_to_guest(channel)
        state.send(AllOffersDelivered())

    def offer_to_guest(self, channel: Channel) -> None:
        """Give it a channel ID and tell the guest. `HostError` when no ID is free."""
        self._state.channels.assign_id(channel)
        self._state.set_channel(channel, _S.CLOSED)
        self.send_offer(channel)

    def send_offer(self, channel: Channel) -> None:
        """OFFER_CHANNEL for a channel that has its ID."""
        state, params, channel_id = self._state, channel.params, channel.channel_id or 0
        has_monitor = channel.monitor_id is not None and state.connection.monitor_pages is not None
        state.send(
            OfferChannel(
                params.interface_id,
                params.instance_id,
                int(self.offered_flags(params)),
                params.mmio_megabytes,
                params.user_defined,
                params.subchannel_index,
                params.mmio_megabytes_optional,
                channel_id,
                channel.monitor_id if has_monitor and channel.monitor_id is not None else NO_MONITOR,
                int(has_monitor),
                1,
                event_connection(channel_id, state.config.message_sint, state.config.message_vtl),
            )
        )

    def fail_modification(self, channel: Channel) -> None:
        """The channel will not be open any more: a MODIFY_CHANNEL that waits for its device is answered for it."""
        if channel.modifying:
            channel.modifying, channel.next_vp = False, None
            self.send_modified(channel.channel_id or 0, STATUS_UNSUCCESSFUL)

    def send_modified(self, channel_id: int, status: int) -> None:
        """MODIFY_CHANNEL_RESPONSE, from 5.3 on."""
        if self._state.connection.version >= Version.IRON:
            self._state.send(ModifyChannelResponse(channel_id, status))

    def offered_flags(self, params: OfferParams) -> OfferFlags:
        """The flags of an offer as far as they were agreed on."""
        flags = int(params.flags)  # an inverted IntFlag would lose the bits that have no name
        confidential = int(OfferFlags.CONFIDENTIAL_RING | OfferFlags.CONFIDENTIAL_EXTERNAL_MEMORY)
        if params.relayed:
            flags &= ~confidential
        else:
            flags |= OfferFlags.CONFIDENTIAL_RING
            if params.confidential_external_memory:
                flags |= OfferFlags.CONFIDENTIAL_EXTERNAL_MEMORY
        if not self._state.has(FeatureFlags.CONFIDENTIAL_CHANNELS):
            flags &= ~confidential
        if not self._state.has(FeatureFlags.GPA_PINNING):
            flags &= ~int(OfferFlags.PINNED_EXTERNAL_MEMORY)
        return OfferFlags(flags)

    def _forget(self, channel: Channel) -> None:
        """The device is gone and there is no guest that holds it (a reserved channel may be open all the same)."""
        self._gpadls.drop(channel)
        channel.open = channel.reopen = channel.reserve = channel.next_vp = None
        if channel.state is not _S.CLIENT_RELEASED:
            self._state.emit(DestroyPorts(channel.offer_id))
        self._state.channels.free_id(channel)
        self._state.channels.remove(channel)
        self._state.emit(RemoveOffer(channel.offer_id))
