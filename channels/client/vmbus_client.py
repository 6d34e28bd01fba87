"""`VmbusClient`: the guest end of VMBus for guest code, over a `GuestSynic` and guest memory.

    async with VmbusClient(partition.vp(0).guest_synic()) as client:
        offer = await client.wait_offer(interface_id=HEARTBEAT)
        channel = await client.open(offer, ring_pages=(4, 4))

It will: connect with the newest version that both sides know, take control messages and event flags of SINT 2, post in
order and again while the host has no room, keep `offers` as they come and go, give a rescinded channel's ID back once
nothing of it is in use, and unload when its block is left normally. It will not: wait for ever for room
(`ConnectionFailed` after about 11 s), give up on a host that does not answer (cancel the wait: what was begun is then
taken back in the background), unload when an exception or a cancellation ends its block (the next contact of the guest
replaces the connection), or open a channel whose interrupts go to a processor that it was not given.

Errors of all requests: `ConnectionFailed` without a connection, `ChannelClosed` for channels that are gone and for what
the host refuses, `HostError` while paused or when no pages are left. What goes wrong in the client's own tasks ends its
block, unwrapped.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Self
from uuid import UUID

import anyio
import msgspec

from broker.access import GuestSynic, MonitorPageGpas
from broker.errors import ChannelClosed, ConfigurationError, ConnectionFailed, HostError
from broker.hvdef.registers import PAGE_SHIFT

from ..core.client import effects as done
from ..core.client.contact import ALL_VERSIONS, ConnectRequest
from ..core.effects import MonitorPages
from ..pages import GuestPages
from ..protocol.ids import NO_INTERRUPTS
from ..protocol.message import STATUS_SUCCESS, ConnectionState
from ..protocol.offer import OfferChannel
from ..protocol.versions import CLIENT_FEATURES, FeatureFlags, Version, find_version, version_label
from ..protocol.wire import NO_GUID
from .connection import ClientConnection, NewOffers
from .for_others import ForOthers
from .gpadls import ClientGpadls, GuestGpadl, whole_pages
from .opens import ClientOpens, GuestChannel

CLIENT_ID = UUID("8d6f0c5e-3b1a-4c52-9c0e-2f7a5d1b6e90")
"""Who this client is, unless told."""
OWN_VP = -1
"""As a target processor: the one that the client runs on."""
RING_PAGES = (4, 4)


class VmbusClient(anyio.AsyncContextManagerMixin):
    """See the module.

    `pages`: where rings and buffers come from; `GuestPages` of the synic's memory unless given. `version`: one or several
    to ask for, newest first; all unless given. `monitor`: with monitor pages, so that monitored channels are signalled
    by them. `processors`: further processors whose channel interrupts are taken. `redirect`: this guest is a paravisor;
    look for a server that redirects its messages first. `document`: go on from a saved state instead of connecting, see `save`.

    Below 3.0 the host talks to processor 0 only: a client elsewhere does not ask for such a version.
    `ConfigurationError` when no version is left.
    """

    def __init__(
        self,
        guest_synic: GuestSynic,
        *,
        pages: GuestPages | None = None,
        version: int | Iterable[int] | None = None,
        client_id: UUID | None = None,
        monitor: bool = False,
        features: FeatureFlags = CLIENT_FEATURES,
        processors: Sequence[GuestSynic] = (),
        redirect: bool = False,
        document: bytes | None = None,
    ) -> None:
        self.guest_synic = guest_synic
        self.pages = GuestPages(guest_synic.memory) if pages is None else pages
        self._wanted = ConnectRequest(
            _versions(version, guest_synic.vp_index),
            CLIENT_ID if client_id is None else client_id,
            guest_synic.vp_index,
            features=features,
            vtl=0 if redirect else int(guest_synic.vtl),
            tries_redirect=redirect,
        )
        self._wants_monitor = monitor
        self._document = document
        self._redirects = redirect
        self._link = ClientConnection([guest_synic, *processors], redirect=redirect)
        self._machine = self._link.machine
        self._processors = {synic.vp_index for synic in (guest_synic, *processors)}
        self._was_opened = False
        self._own_pages: list[int] = []
        """Interrupt page and monitor pages."""
        self._gpadls = ClientGpadls(self._link, self.pages)
        self._opens = ClientOpens(self._link, self._gpadls, self.pages)
        self.for_others = ForOthers(self._link, self._gpadls)
        """Channels that are opened on behalf of somebody else, as a relay does."""

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncIterator[Self]:
        if self._was_opened:
            raise HostError("a VMBus client is used once; make a new one for the next block")
        self._was_opened = True
        try:
            async with self._link.run():
                await self._connect()
                yield self
                await self.unload()
        finally:
            self._opens.forget_all("this client has ended")

    # what there is

    @property
    def version(self) -> Version:
        """The version that was agreed on. `ConnectionFailed` before the block is entered."""
        return self._agreed().version

    @property
    def features(self) -> FeatureFlags:
        """The features that were agreed on."""
        return self._agreed().features

    @property
    def connection_id(self) -> int:
        """The connection that its messages go to."""
        return self._agreed().connection_id

    @property
    def redirects(self) -> bool:
        """Interrupts of channels that it opens go to the server's redirect SINT unless told, as a paravisor's do."""
        return self._redirects and bool(self.features & FeatureFlags.CHANNEL_INTERRUPT_REDIRECTION)

    @property
    def monitor_pages(self) -> MonitorPages | None:
        """The monitor pages that the host uses for this connection."""
        return self._machine.monitor_pages

    @property
    def offers(self) -> dict[int, OfferChannel]:
        """What the host offers now, by channel ID, oldest first. Look only; it changes as offers come and go."""
        return self._link.offers

    @property
    def complaints(self) -> dict[str, int]:
        """What the host did that it should not, and how often; the log has the sentences."""
        return dict(self._link.complaints)

    @property
    def post_retries(self) -> int:
        """Posts that had to be tried again."""
        return self._link.posts.retries

    async def wait_offer(
        self, interface_id: UUID | None = None, instance_id: UUID | None = None, subchannel: int = 0
    ) -> OfferChannel:
        """The first offer of this interface and instance, whichever where none is named, now or later."""
        async for offer in self.new_offers():
            is_meant = interface_id in (None, offer.interface_id) and instance_id in (None, offer.instance_id)
            if is_meant and offer.subchannel_index == subchannel:
                return offer
        raise AssertionError("offers do not end")

    def new_offers(self) -> AsyncIterator[OfferChannel]:
        """Each offer that is there, then each that comes; those that are rescinded meanwhile are left out."""
        return NewOffers(self._link)

    async def wait_change(self, seen: int) -> int:
        """Wait until `offers` have changed since change number `seen`, and return the last number; they count from 0.

        `ConnectionFailed` when the connection ends.
        """
        return await self._link.next_change(seen)

    # channels

    async def open(
        self,
        offer: OfferChannel,
        *,
        ring_pages: tuple[int, int] = RING_PAGES,
        target_vp: int | None = OWN_VP,
        user_data: bytes = b"",
        redirect: bool | None = None,
    ) -> GuestChannel:
        """Open a channel over two rings of so many pages, their control pages included: guest to host, host to guest.

        `target_vp`: processor of its interrupts (from 2.4, processor 0 before), None for none. `redirect`: they go to the
        server's redirect SINT (feature 0x2); a client that redirects does so unless told. `ValueError` for a ring of less
        than two pages, a processor that the client was not given, or more than 120 bytes of user data.
        """
        target = self._target(target_vp)
        await self._link.posts.wait_room()
        self._check_offered(offer)
        wanted = self.redirects if redirect is None else redirect
        return await self._opens.open(offer, ring_pages, target, user_data, wanted)

    async def close(self, channel: GuestChannel) -> None:
        """Close the channel and wait until the host has let go of its rings. Idempotent.

        The offer stays, and may be opened again. A rescinded channel's rings are taken back as well, and then its ID.
        """
        await self._opens.close(channel)

    async def release(self, offer: OfferChannel) -> None:
        """The guest does not want this channel: close it, and give its ID back once the host has rescinded it.

        Needed for an offer that the host keeps; a rescinded one is released by itself once nothing of it is in use.
        """
        self._check_offered(offer)
        opened = self._opens.by_channel.get(offer.channel_id)
        if opened is not None:
            await self.close(opened)
        if self.offers.pop(offer.channel_id, None) is not None:
            self._link.do(self._machine.release(offer.channel_id))

    async def modify_channel(self, channel: GuestChannel | OfferChannel, vp: int) -> None:
        """Let the channel's interrupts go to this processor (from 4.1; the host says whether it works from 5.3 on)."""
        target, channel_id = self._target(vp), channel.channel_id
        await self._link.posts.wait_room()
        ask = partial(self._machine.modify_channel, channel_id, target)
        ended = await self._link.request(done.ModifyEnded, channel_id, ask)
        if ended.status != STATUS_SUCCESS:
            raise ChannelClosed(f"channel {channel_id:#x} does not move to processor {vp}: status {ended.status:#010x}")

    # guest memory

    async def create_gpadl(self, channel: GuestChannel | OfferChannel, pages: int | Sequence[int]) -> GuestGpadl:
        """Let the host use memory: these page numbers, or so many new pages, zeroed. At most 8190 pages."""
        await self._link.posts.wait_room()
        if isinstance(pages, int):
            new = whole_pages(self.pages.allocate(pages))
            return await self._gpadls.create(channel.channel_id, new, is_allocated=True)
        return await self._gpadls.create(channel.channel_id, whole_pages(pages), is_allocated=False)

    async def teardown_gpadl(self, gpadl: GuestGpadl) -> None:
        """Take memory back; pages that `create_gpadl` allocated are freed. Idempotent."""
        await self._link.posts.wait_room()
        await self._gpadls.take_back(gpadl)

    # connection

    async def modify_connection(self, pages: MonitorPageGpas | None) -> None:
        """Use other monitor pages, or none (feature 0x4). `HostError` when the host refuses or one is under way."""
        told = None if pages is None else MonitorPages(pages.parent_to_child, pages.child_to_parent)
        await self._link.posts.wait_room()
        ask = partial(self._machine.modify_connection, told)
        ended = await self._link.request(done.ModifyConnectionEnded, None, ask)
        if ended.connection_state != ConnectionState.SUCCESSFUL:
            raise HostError(f"the monitor pages stay as they were: state {ended.connection_state}")

    async def connect_hvsock(self, service_id: UUID, endpoint_id: UUID, silo_id: UUID = NO_GUID) -> OfferChannel:
        """Connect to a listener on the host (from 4.0); the offer is to be opened within 5 s.

        `ChannelClosed` when it is refused, which a host of 4.0 does not say: put a limit on the wait.
        """
        await self._link.posts.wait_room()
        about = (service_id, endpoint_id)
        ask = partial(self._machine.connect_hvsock, service_id, endpoint_id, silo_id)
        answer = self._link.ask(done.HvsockEnded, about, ask)
        try:
            ended = await answer.wait()
        except anyio.get_cancelled_exc_class():
            self._link.answers.forget(done.HvsockEnded, about)
            self._link.do(self._machine.forget_hvsock(service_id, endpoint_id))
            raise
        if ended.offer is None:
            raise ChannelClosed(f"nobody on the host takes the connection to service {service_id}")
        return ended.offer

    async def unload(self) -> None:
        """Let go of everything and wait until the host has, too; nothing where there is no connection."""
        if not self._machine.is_connected:
            return
        effects = self._machine.unload()
        self._link.forget("the client has unloaded")
        await self._link.request(done.UnloadEnded, None, lambda: effects)
        self._opens.forget_all("the client has unloaded")
        self._gpadls.forget_all()
        self._free_own_pages()

    # save and restore

    async def pause(self) -> None:
        """Wait until nothing is under way, then ask the host to be quiet (feature 0x20); `save` and `resume` may follow.

        Closes and teardowns that are asked for meanwhile end after the resume; other requests are refused.
        """
        await self._link.request(done.Paused, None, self._machine.pause)

    async def resume(self) -> None:
        """Go on. Channels of a restored client that nobody has claimed are closed, and their GPADLs torn down."""
        self._link.do(self._machine.end_claims())
        self._link.do(self._machine.resume())

    def save(self) -> bytes:
        """The client as a document, while it is paused; guest memory is not in it.

        A client made with it starts paused and with the same offers: it claims what it goes on with, then resumes.
        """
        return self._machine.save()

    def claim(self, offer: OfferChannel, gpadl_id: int, gpns: Sequence[int], upstream_pages: int) -> GuestChannel:
        """Go on with a channel that was open in the saved state, over these rings, whose pages are taken.

        `ChannelClosed` for one that is gone, `HostError` for one that was not open, or pages that are not free.
        """
        self._check_offered(offer)
        return self._opens.claim(offer, gpadl_id, gpns, upstream_pages)

    # within

    async def _connect(self) -> None:
        signals = self._link.signals
        if self._document is not None:
            self._link.do(self._machine.restore(self._document))
            if self._machine.is_connected:
                self._take_own_pages()
                signals.interrupt_page = self._machine.interrupt_page
                return
        wanted, interrupt_page, pages = self._wanted, 0, None
        if any(version.has_interrupt_page for version in wanted.versions):
            interrupt_page = self._allocate_own(1)[0]
        if self._wants_monitor:
            pages = MonitorPages(*self._allocate_own(2))
        request = msgspec.structs.replace(wanted, interrupt_page=interrupt_page, monitor_pages=pages)
        try:
            await self._link.request(done.Connected, None, partial(self._machine.connect, request))
        except ConnectionFailed:
            self._free_own_pages()
            raise
        signals.interrupt_page = self._machine.interrupt_page

    def _agreed(self) -> done.Connected:
        if self._link.agreed is None:
            raise ConnectionFailed("this client has not connected yet; use it within its block")
        return self._link.agreed

    def _target(self, vp: int | None) -> int:
        """The processor to name in a message."""
        if vp is None:
            return NO_INTERRUPTS
        target = self.guest_synic.vp_index if vp == OWN_VP else vp
        if target not in self._processors:
            raise ValueError(f"nobody takes the events of processor {target}; name it in the client's processors")
        return target

    def _check_offered(self, offer: OfferChannel) -> None:
        if self.offers.get(offer.channel_id) != offer:
            raise ChannelClosed(f"channel {offer.channel_id:#x} is not on offer; it was rescinded or released")

    def _allocate_own(self, count: int) -> list[int]:
        """GPAs of pages for the connection itself."""
        gpns = self.pages.allocate(count)
        self._own_pages += gpns
        return [gpn << PAGE_SHIFT for gpn in gpns]

    def _take_own_pages(self) -> None:
        """The pages that a restored connection uses, where they are this client's to take."""
        monitor = self._machine.monitor_pages or MonitorPages(0, 0)
        gpas = (self._machine.interrupt_page, monitor.parent_to_child, monitor.child_to_parent)
        self._own_pages = [gpa >> PAGE_SHIFT for gpa in gpas if gpa and self.pages.is_free(gpa >> PAGE_SHIFT)]
        self.pages.take(self._own_pages)

    def _free_own_pages(self) -> None:
        self.pages.free(self._own_pages)
        self._own_pages = []


def _versions(asked: int | Iterable[int] | None, vp_index: int) -> tuple[Version, ...]:
    """Those to ask for, newest first."""
    if asked is None:
        wanted = ALL_VERSIONS
    else:
        numbers = [asked] if isinstance(asked, int) else list(asked)
        found = [find_version(number) for number in numbers]
        if None in found:
            names = ", ".join(version_label(number) for number in numbers)
            raise ConfigurationError(f"{names} are not all versions of VMBus; `Version` has those there are")
        wanted = tuple(sorted({version for version in found if version is not None}, reverse=True))
    versions = tuple(version for version in wanted if version >= Version.WIN8_1 or not vp_index)
    if not versions:
        raise ConfigurationError(
            f"a client on processor {vp_index} needs a version from 3.0 on; the host talks to 0 before"
        )
    return versions
