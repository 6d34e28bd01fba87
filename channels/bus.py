"""What a device sees of a VMBus server, and a server of a device. Both sides are small enough to be carried over a socket.

A device offers (`Bus.offer`) and hands in its `ChannelRequests`. The server calls those, one at a time and without
waiting; the device answers through its `Offer`, at once or later. There is one answer to each request.
"""

from __future__ import annotations

from typing import Protocol

from broker.access import Interrupt, Turns
from broker.memory import GuestMemory
from broker.trace import Trace

from .core.server.effects import OpenParams
from .core.server.offer_params import OfferParams
from .core.server.table import ChannelState
from .doorbell import Doorbell
from .protocol.gparange import GpaRange

__all__ = ["Bus", "ChannelRequests", "ChannelState", "Offer", "OfferParams", "OpenParams"]


class ChannelRequests(Protocol):
    """What a device implements. None of it may wait or raise; work is done in tasks of the device's own."""

    def open_channel(self, channel_id: int, params: OpenParams, interrupt: Interrupt, doorbell: Doorbell) -> None:
        """Open over the rings in GPADL `params.gpadl_id`. Answer: `Offer.open_ended`.

        `interrupt` tells the guest to look at the rings, `doorbell` is rung when the guest says so; both are live.
        """
        ...

    def drop_open(self) -> None:
        """The VM is reset while the channel opens: stop. There is no answer, and none to the open any more."""
        ...

    def close_channel(self) -> None:
        """The guest has closed, or is gone. Answer: `Offer.close_ended`, once nothing uses the rings."""
        ...

    def create_gpadl(self, gpadl_id: int, ranges: tuple[GpaRange, ...]) -> None:
        """Guest memory that may be used until it is torn down; also while the channel is closed. Answer: `gpadl_created`."""
        ...

    def teardown_gpadl(self, gpadl_id: int) -> None:
        """The guest wants its memory back. Answer: `gpadl_torn_down`, once nothing uses it."""
        ...

    def modify_channel(self, target_vp: int) -> None:
        """Interrupts go to another processor from now on, by themselves. Answer: `modify_ended`."""
        ...

    def resume_gpadl(self, gpadl_id: int, ranges: tuple[GpaRange, ...]) -> None:
        """After a restore: guest memory that is in use already. There is no answer."""
        ...

    def resume_channel(self, channel_id: int, params: OpenParams, interrupt: Interrupt, doorbell: Doorbell) -> None:
        """After a restore: the channel is open, its rings are as they were. There is no answer."""
        ...

    def removed(self) -> None:
        """The offer is gone (revoked, or the server has ended): no requests follow, and no answers are wanted."""
        ...


class Offer(Protocol):
    """A device's offer. Statuses are NTSTATUS values, 0 for success; an answer to what was not asked is logged and ignored."""

    @property
    def params(self) -> OfferParams:
        """What was offered."""
        ...

    def open_ended(self, status: int = 0) -> bool:
        """The channel is open, or cannot be. False when the guest has let go meanwhile: a close follows, or nothing."""
        ...

    def close_ended(self) -> None:
        """Nothing uses the rings any more."""
        ...

    def modify_ended(self, status: int = 0) -> None:
        """The new processor is known."""
        ...

    def gpadl_created(self, gpadl_id: int, *, accepted: bool = True) -> None:
        """The guest's memory is taken note of, or not wanted."""
        ...

    def gpadl_torn_down(self, gpadl_id: int) -> None:
        """Nothing uses this guest memory any more."""
        ...

    @property
    def saved_state(self) -> ChannelState | None:
        """What a restored server knows of this channel; None when it knows nothing, or `restore` has been called."""
        ...

    def restore(self, *, is_open: bool) -> None:
        """Say how the device stands after a restore; requests follow. `HostError` when the channel cannot be so."""
        ...

    def revoke(self) -> None:
        """The device is gone: the guest gets a rescind. Idempotent."""
        ...


class Bus(Protocol):
    """A VMBus server, as a device sees it."""

    @property
    def memory(self) -> GuestMemory:
        """Guest memory, where rings and buffers lie."""
        ...

    @property
    def turns(self) -> Turns:
        """Where tasks of devices wait."""
        ...

    @property
    def trace(self) -> Trace | None:
        """The trace that channels join, None when off."""
        ...

    async def offer(self, params: OfferParams, requests: ChannelRequests) -> Offer:
        """Offer a device; requests may come from now on. `OfferRefused` when there is one like it or no room."""
        ...
