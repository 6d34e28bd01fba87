"""Offers and channel IDs: what devices offer, the order in which a guest sees it, and which numbers are taken."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from broker.errors import HostError
from broker.hvdef import MONITOR_COUNT

from ...protocol.ids import MAX_CHANNELS
from ...protocol.parse import Agreed
from .effects import OpenParams
from .gpadl import Gpadl
from .offer_params import OfferKey, OfferParams


class ChannelState(Enum):
    """Where a channel is between device and guest (OpenVMM, `channels.rs`)."""

    CLIENT_RELEASED = "client-released"
    """Offered by the device, not to the guest."""
    CLOSED = "closed"
    """Offered to the guest."""
    OPENING = "opening"
    OPEN = "open"
    CLOSING = "closing"
    CLOSING_REOPEN = "closing-reopen"
    """The guest opened again before the device had closed."""
    REVOKED = "revoked"
    """The device is gone, the guest holds the channel ID."""
    REOFFERED = "reoffered"
    """The device is back, the guest still holds the channel ID of before."""
    OPENING_CLIENT_RELEASE = "opening-client-release"
    """The guest let go while the device was opening."""
    CLOSING_CLIENT_RELEASE = "closing-client-release"
    """The guest let go; the device is closing."""


RELEASED = frozenset(
    {ChannelState.CLIENT_RELEASED, ChannelState.OPENING_CLIENT_RELEASE, ChannelState.CLOSING_CLIENT_RELEASE}
)
"""The guest has no channel ID for these."""
BUSY = frozenset({ChannelState.OPENING, ChannelState.OPEN, ChannelState.CLOSING, ChannelState.CLOSING_REOPEN})


class Channel:
    """One offer, as the server keeps it."""

    __slots__ = (
        "channel_id",
        "gpadls",
        "modifying",
        "monitor_id",
        "next_vp",
        "offer_id",
        "open",
        "owns_monitor",
        "params",
        "reopen",
        "reserve",
        "restored",
        "state",
    )

    def __init__(self, offer_id: int, params: OfferParams) -> None:
        self.offer_id = offer_id
        self.params = params
        self.state = ChannelState.CLIENT_RELEASED
        self.channel_id: int | None = None
        self.monitor_id: int | None = None
        self.owns_monitor = False
        """The monitor ID is one that this server has assigned."""
        self.open: OpenParams | None = None
        """From Opening until the device has closed."""
        self.reopen: OpenParams | None = None
        self.reserve: Agreed | None = None
        """What was agreed on when it was opened as a reserved channel."""
        self.modifying = False
        self.next_vp: int | None = None
        """A target processor that waits for the modification before it (versions below 5.3)."""
        self.gpadls: dict[int, Gpadl] = {}
        self.restored = True
        """False after a restore until the device has said how it stands."""

    @property
    def is_released(self) -> bool:
        """The guest does not hold it."""
        return self.state in RELEASED

    @property
    def is_reserved(self) -> bool:
        """It is open, or on its way, as a reserved channel: it survives the connection."""
        return self.open is not None and self.open.reserved is not None

    @property
    def has_device(self) -> bool:
        """There is a device behind it."""
        return self.state is not ChannelState.REVOKED


class ChannelTable:
    """All channels: by offer, by key, by channel ID; and the channel and monitor IDs that are taken.

    `first_id` - 1 is the offset of a paravisor's server. `absolute_order`: the device's order counts before its interface.
    """

    def __init__(self, first_id: int = 1, *, absolute_order: bool = False) -> None:
        self.by_offer: dict[int, Channel] = {}
        self.by_key: dict[OfferKey, Channel] = {}
        self.by_channel_id: dict[int, Channel] = {}
        self.monitor_ids = 0
        """Bitmap of the monitor IDs that this server has assigned."""
        self._first_id = first_id
        self._absolute_order = absolute_order
        self._ids = (1 << first_id) - 1
        self._last_offer = 0

    def __len__(self) -> int:
        return len(self.by_offer)

    @property
    def capacity(self) -> int:
        """Channels that there are IDs for."""
        return MAX_CHANNELS + 1 - self._first_id

    def new_offer_id(self) -> int:
        """A number that no offer has had."""
        self._last_offer += 1
        return self._last_offer

    def add(self, channel: Channel) -> None:
        """A new offer."""
        self.by_offer[channel.offer_id] = channel
        self.by_key[channel.params.key] = channel

    def rename(self, channel: Channel, offer_id: int, params: OfferParams) -> None:
        """The device has come back under another number."""
        self.by_offer.pop(channel.offer_id, None)
        channel.offer_id, channel.params = offer_id, params
        self.add(channel)

    def remove(self, channel: Channel) -> None:
        """Forget a channel whose ID is free."""
        self.by_offer.pop(channel.offer_id, None)
        self.by_key.pop(channel.params.key, None)

    def assign_id(self, channel: Channel) -> int:
        """Give it the lowest free channel ID, and a monitor ID if it wants one and there is one.

        `HostError` when no ID is free: IDs of rescinded channels are free once the guest has released them.
        """
        free = ~self._ids & (self._ids + 1)
        channel_id = free.bit_length() - 1
        if channel_id > MAX_CHANNELS:
            raise HostError("all channel IDs are taken until the guest releases one")
        self.take_id(channel, channel_id)
        self.assign_monitor(channel)
        return channel_id

    def assign_monitor(self, channel: Channel) -> None:
        """Give it the monitor ID that it brings, or one if it wants one and there is one; what it had before is free."""
        self._free_monitor(channel)
        if channel.params.monitor_id is not None:
            channel.monitor_id = channel.params.monitor_id
        elif channel.params.monitor_latency is not None:
            taken = self.monitor_ids | self._brought_monitors()
            lowest = (~taken & (taken + 1)).bit_length() - 1
            if lowest < MONITOR_COUNT:
                self.take_monitor(channel, lowest)

    def take_id(self, channel: Channel, channel_id: int) -> None:
        """Give it this channel ID, which is free."""
        self._ids |= 1 << channel_id
        channel.channel_id = channel_id
        self.by_channel_id[channel_id] = channel

    def take_monitor(self, channel: Channel, monitor_id: int) -> None:
        """Give it this monitor ID, which is free."""
        self.monitor_ids |= 1 << monitor_id
        channel.monitor_id, channel.owns_monitor = monitor_id, True

    def is_id_free(self, channel_id: int) -> bool:
        """A number from the ID space that nobody has."""
        return self._first_id <= channel_id <= MAX_CHANNELS and not self._ids >> channel_id & 1

    def free_id(self, channel: Channel) -> None:
        """The guest no longer holds its ID."""
        if channel.channel_id is not None:
            self._ids &= ~(1 << channel.channel_id)
            del self.by_channel_id[channel.channel_id]
            channel.channel_id = None
        self._free_monitor(channel)

    def sorted(self, channels: Iterable[Channel]) -> list[Channel]:
        """In the order in which a guest is told of them."""
        return sorted(channels, key=self._sort_key)

    def _free_monitor(self, channel: Channel) -> None:
        if channel.monitor_id is not None and channel.owns_monitor:
            self.monitor_ids &= ~(1 << channel.monitor_id)
        channel.monitor_id, channel.owns_monitor = None, False

    def _brought_monitors(self) -> int:
        """Bitmap of the monitor IDs that devices have brought along."""
        bits = 0
        for channel in self.by_channel_id.values():
            if channel.monitor_id is not None and not channel.owns_monitor:
                bits |= 1 << channel.monitor_id
        return bits

    def _sort_key(self, channel: Channel) -> tuple[object, ...]:
        params = channel.params
        order = (params.order is None, params.order or 0)
        rest = (params.instance_id.int, params.subchannel_index)
        if self._absolute_order:
            return (order, params.interface_id.int, *rest)
        return (params.interface_id.int, order, *rest)

    def check(self) -> None:
        """Every invariant of the tables."""
        ids = (1 << self._first_id) - 1
        for channel_id, channel in self.by_channel_id.items():
            assert channel.channel_id == channel_id
            assert self.by_offer[channel.offer_id] is channel
            assert self._first_id <= channel_id <= MAX_CHANNELS
            ids |= 1 << channel_id
        assert ids == self._ids
        monitors = 0
        for offer_id, channel in self.by_offer.items():
            assert channel.offer_id == offer_id
            assert self.by_key[channel.params.key] is channel
            assert (channel.channel_id is None) == channel.is_released
            assert channel.channel_id is None or self.by_channel_id[channel.channel_id] is channel
            if channel.monitor_id is not None and channel.owns_monitor:
                assert not monitors >> channel.monitor_id & 1
                monitors |= 1 << channel.monitor_id
        assert monitors == self.monitor_ids
        assert len(self.by_key) == len(self.by_offer)
