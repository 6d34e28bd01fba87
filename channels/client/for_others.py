"""What a `VmbusClient` does on behalf of somebody else, as a paravisor does for the guest that it relays to.

It will: pass on guest memory by its page numbers, open channels over it with somebody else's event flag and connection,
close them, move their interrupts. It will not: look into rings, or free pages: both are the other's. Whoever uses this ends
what he began (`close`, `teardown_gpadl`); a rescinded channel is released once nothing of it is left.

Errors are those of `VmbusClient`; `ChannelClosed` also for an offer that is gone, be there another of the same ID.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from broker.errors import ChannelClosed

from ..core.client import effects as done
from ..core.client.channels import OpenRequest
from ..core.client.states import ClientChannel
from ..doorbell import Doorbell
from ..protocol.gparange import GpaRange
from ..protocol.ids import NO_INTERRUPTS
from ..protocol.offer import OfferChannel
from .connection import ClientConnection
from .gpadls import ClientGpadls, GuestGpadl
from .opens import ask_open


class ForeignChannel:
    """A channel that is open for somebody else; see `ForOthers.open`."""

    __slots__ = ("_channel", "_has_interrupts", "_link", "is_open", "offer")

    def __init__(self, link: ClientConnection, channel: ClientChannel, *, has_interrupts: bool) -> None:
        self.offer = channel.offer
        self.is_open = True
        """False once it was closed here; a host that rescinds it leaves it as it is."""
        self._link = link
        self._channel = channel
        self._has_interrupts = has_interrupts

    async def signal(self) -> None:
        """Signal the host's end, for the other. Nothing once the channel is closed or rescinded."""
        if self.is_open and self._channel.connection_id:
            await self._link.signals.signal(self._channel, self._has_interrupts)


class ForOthers:
    """See the module. It is `VmbusClient.for_others`."""

    def __init__(self, link: ClientConnection, gpadls: ClientGpadls) -> None:
        self._link = link
        self._machine = link.machine
        self._gpadls = gpadls

    async def create_gpadl(self, offer: OfferChannel, ranges: Sequence[GpaRange]) -> GuestGpadl:
        """Let the host use this memory, under a GPADL ID of the client's. Also after a rescind, while something is in use.

        `ValueError` for ranges of more than 64 KiB in all as the message has them.
        """
        await self._link.posts.wait_room()
        self._channel(offer)
        return await self._gpadls.create(offer.channel_id, ranges, is_allocated=False)

    async def teardown_gpadl(self, gpadl: GuestGpadl) -> None:
        """Take memory back, and wait until the host has let go. Idempotent."""
        await self._link.posts.wait_room()
        await self._gpadls.take_back(gpadl)

    def teardown_gpadl_later(self, gpadl: GuestGpadl) -> None:
        """Take memory back in the background."""
        self._gpadls.take_back_later(gpadl)

    async def open(self, offer: OfferChannel, request: OpenRequest, doorbell: Doorbell | None = None) -> ForeignChannel:
        """Open over a GPADL that was created here. `doorbell`: rung when the host signals this client; none where it
        signals somebody else (`OpenRequest.is_direct`).

        `OpenRefused`, with the host's status; `HostError` unless the channel is closed; `ValueError` for what does not fit.
        """
        await self._link.posts.wait_room()
        channel = self._channel(offer)
        await ask_open(self._link, channel, request, doorbell)
        return ForeignChannel(self._link, channel, has_interrupts=request.target_vp != NO_INTERRUPTS)

    def close(self, opened: ForeignChannel) -> None:
        """Close it: the host hears of it before all that is asked after. Its GPADL is a matter of its own. Idempotent."""
        if not opened.is_open:
            return
        opened.is_open = False
        channel_id = opened.offer.channel_id
        if self._machine.is_connected and self._is_there(opened.offer):
            self._link.signals.forget(channel_id, f"channel {channel_id:#x} was closed")
            self._link.do(self._machine.close(channel_id))
            self._link.unuse(channel_id)

    async def modify(self, opened: ForeignChannel, vp: int) -> int:
        """Let the interrupts go to this processor; the status that the host answers with."""
        await self._link.posts.wait_room()
        self._channel(opened.offer)
        if not opened.is_open:
            raise ChannelClosed(f"channel {opened.offer.channel_id:#x} was closed")
        channel_id = opened.offer.channel_id
        ask = partial(self._machine.modify_channel, channel_id, vp)
        ended = await self._link.request(done.ModifyEnded, channel_id, ask)
        return ended.status

    def _is_there(self, offer: OfferChannel) -> bool:
        channel = self._machine.channel(offer.channel_id)
        return channel is not None and channel.offer is offer

    def _channel(self, offer: OfferChannel) -> ClientChannel:
        channel = self._machine.channel(offer.channel_id)
        if channel is None or channel.offer is not offer:
            raise ChannelClosed(f"channel {offer.channel_id:#x} is not on offer; it was rescinded or released")
        return channel
