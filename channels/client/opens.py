"""A VMBus client's open channels: rings in guest pages, doorbells, signals, and the way back.

It will: close what it cannot finish opening, and take the rings back before their pages are used for something else. It
will not: read or write rings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from broker.errors import BrokerError, ChannelClosed, HostError

from ..channel import Channel
from ..core.client.channels import OpenRequest
from ..core.client.effects import OpenEnded
from ..core.client.states import USES_FLAG, ChannelState, ClientChannel
from ..doorbell import Doorbell
from ..pages import GuestPages
from ..protocol.ids import NO_INTERRUPTS
from ..protocol.message import STATUS_SUCCESS
from ..protocol.offer import OfferChannel
from ..ring import RingMemory
from ..ring.control import FEATURE_BITS, PENDING_SEND_SIZE_SUPPORTED
from .answers import Answer
from .connection import ClientConnection
from .gpadls import ClientGpadls, GuestGpadl, whole_pages


class OpenRefused(ChannelClosed):
    """The host did not open the channel, or it was rescinded while it opened."""

    def __init__(self, channel_id: int, status: int) -> None:
        super().__init__(f"channel {channel_id:#x} was not opened: status {status:#010x}")
        self.status = status


class GuestChannel(Channel):
    """A channel as a driver sees it: `Channel`, and where its rings lie."""

    __slots__ = ("_has_interrupts", "_of_machine", "_signals", "gpadl_id", "gpns", "offer", "upstream_pages")

    def __init__(
        self,
        link: ClientConnection,
        channel: ClientChannel,
        gpadl: GuestGpadl,
        upstream_pages: int,
        *,
        has_interrupts: bool,
    ) -> None:
        """`RingCorrupt` when the host has spoilt the rings before the channel is open."""
        synic = link.synic
        self.offer = channel.offer
        self.gpadl_id = gpadl.gpadl_id
        self.gpns = gpadl.gpns
        """Pages of both rings, the guest-to-host one first."""
        self.upstream_pages = upstream_pages
        """Pages of the guest-to-host ring, control page included."""
        self._of_machine = channel
        self._signals = link.signals
        self._has_interrupts = has_interrupts
        pages = (gpadl.gpns[:upstream_pages], gpadl.gpns[upstream_pages:])
        upstream, downstream = (RingMemory.of_pages(synic.memory, gpns) for gpns in pages)
        super().__init__(
            gpadl.channel_id,
            synic.memory,
            (upstream, downstream),
            Doorbell(synic.turns.wakeup(("vmbus-channel", gpadl.channel_id))),
            synic.turns,
            is_host=False,
            trace=synic.trace,
        )

    async def signal(self) -> None:
        """See `Channel.signal`."""
        if self.doorbell.ended is None:
            await self._signals.signal(self._of_machine, self._has_interrupts)


class ClientOpens:
    """See the module."""

    def __init__(self, link: ClientConnection, gpadls: ClientGpadls, pages: GuestPages) -> None:
        self.by_channel: dict[int, GuestChannel] = {}
        self._link = link
        self._machine = link.machine
        self._gpadls = gpadls
        self._pages = pages

    async def open(
        self, offer: OfferChannel, ring_pages: tuple[int, int], target: int, user_data: bytes, redirect: bool
    ) -> GuestChannel:
        """See `VmbusClient.open`. `RingCorrupt` when the host spoils the rings before the channel is open."""
        if min(ring_pages) < 2:
            raise ValueError(f"a ring has a control page and at least one of data, so not {ring_pages} pages")
        gpns = self._pages.allocate(sum(ring_pages))
        for ring in (gpns[: ring_pages[0]], gpns[ring_pages[0] :]):  # zeroed by now; feature bits in both, as in Linux
            control = RingMemory.of_pages(self._link.synic.memory, ring)
            control.words[FEATURE_BITS] = PENDING_SEND_SIZE_SUPPORTED
        gpadl = await self._gpadls.create(offer.channel_id, whole_pages(gpns), is_allocated=True)
        request = OpenRequest(gpadl.gpadl_id, ring_pages[0], target, user_data, redirect)
        try:
            return await self._open_over(gpadl, request)
        except (BrokerError, ValueError):
            await self._gpadls.take_back(gpadl)
            raise

    async def close(self, opened: GuestChannel) -> None:
        """See `VmbusClient.close`."""
        channel_id = opened.channel_id
        if self.by_channel.get(channel_id) is not opened:
            return
        del self.by_channel[channel_id]
        self._link.signals.forget(channel_id, f"channel {channel_id:#x} was closed")
        opened.let_go(f"channel {channel_id:#x} was closed")
        try:
            if self._machine.is_connected:
                self._link.do(self._machine.close(channel_id))
                await self._gpadls.take_back(self._gpadls.by_id[opened.gpadl_id])
        finally:
            self._link.unuse(channel_id)

    def forget_all(self, reason: str) -> None:
        """The connection has ended, and with it every channel: their pages may be used for something else."""
        for opened in self.by_channel.values():
            opened.let_go(reason)
        self.by_channel.clear()

    def claim(self, offer: OfferChannel, gpadl_id: int, gpns: Sequence[int], upstream_pages: int) -> GuestChannel:
        """See `VmbusClient.claim`."""
        channel = self._machine.channel(offer.channel_id)
        if channel is None or channel.state is not ChannelState.RESTORED or gpadl_id not in channel.gpadls:
            raise HostError(f"channel {offer.channel_id:#x} was not open over GPADL {gpadl_id:#010x} when it was saved")
        gpadl = GuestGpadl(offer.channel_id, gpadl_id, tuple(gpns), is_allocated=True)
        opened = GuestChannel(self._link, channel, gpadl, upstream_pages, has_interrupts=True)
        self._pages.take(gpns)
        self._link.do(self._machine.claim(offer.channel_id))
        self._gpadls.add(gpadl)
        self._link.use(offer.channel_id)
        _listen(self._link, channel, opened.doorbell)
        self.by_channel[offer.channel_id] = opened
        return opened

    async def _open_over(self, gpadl: GuestGpadl, request: OpenRequest) -> GuestChannel:
        channel_id = gpadl.channel_id
        channel = self._machine.channel(channel_id)
        if channel is None:
            raise ChannelClosed(f"channel {channel_id:#x} was released")
        has_interrupts = request.target_vp != NO_INTERRUPTS
        opened = GuestChannel(self._link, channel, gpadl, request.upstream_pages, has_interrupts=has_interrupts)
        opened.initialize()
        later = self._gpadls.take_back_later
        await ask_open(self._link, channel, request, opened.doorbell, lambda answer: later(gpadl, opened=answer))
        self.by_channel[channel_id] = opened
        return opened


async def ask_open(
    link: ClientConnection,
    channel: ClientChannel,
    request: OpenRequest,
    doorbell: Doorbell | None,
    given_up: Callable[[Answer[OpenEnded]], None] | None = None,
) -> None:
    """Open, and wait for the answer; `doorbell` is rung from the start. The channel is in use from then on.

    `OpenRefused`. When the wait is cancelled the channel is closed, at the latest once it is open, and `given_up` is
    called with the answer that is still due.
    """
    channel_id, machine = channel.offer.channel_id, link.machine
    answer = link.ask(OpenEnded, channel_id, partial(machine.open, channel_id, request))
    if doorbell is not None:
        _listen(link, channel, doorbell)
    link.use(channel_id)
    try:
        ended = await answer.wait()
        if ended.status != STATUS_SUCCESS:
            raise OpenRefused(channel_id, ended.status)
    except HostError:
        link.unuse(channel_id)
        raise
    except BaseException:
        link.signals.forget(channel_id, f"channel {channel_id:#x} was closed")
        if machine.is_connected:
            link.do(machine.close(channel_id))
            if given_up is not None:
                given_up(answer)
        link.unuse(channel_id)
        raise


def _listen(link: ClientConnection, channel: ClientChannel, doorbell: Doorbell) -> None:
    """Ring this doorbell when the host signals the channel, before the host can know of the open."""
    if channel.state in USES_FLAG:
        link.signals.listen(channel.offer.channel_id, channel.event_flag, doorbell)
    else:
        doorbell.close(f"channel {channel.offer.channel_id:#x} was rescinded")
