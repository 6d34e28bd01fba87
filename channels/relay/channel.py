"""One channel of a relay: a client's offer outside, a server's offer inside, and everything asked inside passed on outside.

It will: pass on GPADLs by page number, opens with the inner guest's event flag and connection, closes, processors; say what
the outer host says; carry the signals of a channel whose ends cannot signal each other. It will not: look into rings, or wait
within a request: what needs an answer of the outer host has a task.
"""

from __future__ import annotations

import contextlib
from functools import partial

import anyio
import msgspec

from broker.access import Interrupt, Wakeup
from broker.errors import ChannelClosed, HostError
from broker.hvdef import MONITOR_COUNT

from ..bus import Bus, Offer, OfferParams, OpenParams
from ..client import ForeignChannel, GuestGpadl, OpenRefused, VmbusClient
from ..core.client.channels import OpenRequest
from ..doorbell import Doorbell
from ..protocol.gparange import GpaRange
from ..protocol.ids import MAX_CHANNELS, NO_INTERRUPTS
from ..protocol.message import STATUS_SUCCESS, STATUS_UNSUCCESSFUL
from ..protocol.offer import OfferChannel, OfferFlags
from .tasks import RelayTasks


def relayed_params(offer: OfferChannel) -> OfferParams:
    """An outer offer as it is offered again: the same device, in the order of the outer channel IDs."""
    is_monitored = offer.monitor_allocated & 1 and offer.monitor_id < MONITOR_COUNT
    return OfferParams(
        interface_id=offer.interface_id,
        instance_id=offer.instance_id,
        subchannel_index=offer.subchannel_index,
        flags=OfferFlags(offer.flags),
        user_defined=offer.user_defined,
        mmio_megabytes=offer.mmio_megabytes,
        mmio_megabytes_optional=offer.mmio_megabytes_optional,
        order=offer.channel_id,
        monitor_id=offer.monitor_id if is_monitored else None,
        relayed=True,
    )


class RelayedChannel:
    """See the module; the inner server's `ChannelRequests`."""

    def __init__(self, outer: VmbusClient, offer: OfferChannel, tasks: RelayTasks) -> None:
        self.outer_offer = offer
        self._client = outer
        self._outer = outer.for_others
        self._tasks = tasks
        self._inner: Offer
        self._gpadls: dict[int, GuestGpadl] = {}
        """By the inner guest's GPADL ID, which is its channel's alone: on the outer connection it is another."""
        self._opened: ForeignChannel | None = None
        self._passing: anyio.CancelScope | None = None
        """The task that passes on the inner guest's signals."""
        self._open_count = 0
        """Of opens that were begun or dropped: one whose number it is not any more was let go of."""
        self._is_opening = False
        self._creating: set[int] = set()
        """GPADLs that the outer host has not answered yet, by the inner guest's ID."""
        self._changed = tasks.turns.wakeup(("vmbus-relay-open", offer.channel_id))
        """An open waits for the one before it, and for its GPADL."""
        self._is_gone = False
        """The inner server asks for what was under way then all the same, and answers its guest itself."""

    async def begin(self, bus: Bus) -> None:
        """Offer it inside. `OfferRefused`."""
        self._inner = await bus.offer(relayed_params(self.outer_offer), self)

    def revoke(self) -> None:
        """The outer offer is gone, or the relay ends: take it back inside, and let go of everything outside. Idempotent."""
        self._let_go()
        self._inner.revoke()

    # requests of the inner guest

    def open_channel(self, channel_id: int, params: OpenParams, interrupt: Interrupt, doorbell: Doorbell) -> None:
        """Open outside, over the GPADL of the same memory."""
        if self._is_gone:
            return
        self._open_count += 1
        self._tasks.start(partial(self._open, self._open_count, params, interrupt, doorbell))

    def drop_open(self) -> None:
        """The inner guest is reset: what opens is closed again as soon as it is open."""
        self._open_count += 1
        self._changed.notify()

    def close_channel(self) -> None:
        """Close outside. There is no answer to that: whether the rings are free, the teardown of their GPADL tells."""
        self._close_outside()
        self._inner.close_ended()

    def create_gpadl(self, gpadl_id: int, ranges: tuple[GpaRange, ...]) -> None:
        """Give the same memory to the outer host."""
        if self._is_gone:
            return
        self._creating.add(gpadl_id)
        self._tasks.start(partial(self._create_gpadl, gpadl_id, ranges))

    def teardown_gpadl(self, gpadl_id: int) -> None:
        """Take it back there."""
        gpadl = self._gpadls.pop(gpadl_id, None)
        if gpadl is None:
            self._inner.gpadl_torn_down(gpadl_id)
        else:
            self._tasks.start(partial(self._teardown_gpadl, gpadl_id, gpadl))

    def modify_channel(self, target_vp: int) -> None:
        """Interrupts that the outer host delivers go elsewhere; those that pass through are the inner server's."""
        opened = self._opened
        if opened is None or self._passing is not None:
            self._inner.modify_ended()
        else:
            self._tasks.start(partial(self._modify, opened, target_vp))

    def resume_gpadl(self, gpadl_id: int, ranges: tuple[GpaRange, ...]) -> None:
        """Not asked of a relay, which does not restore: a restored server rescinds its channels and offers them again."""

    def resume_channel(self, channel_id: int, params: OpenParams, interrupt: Interrupt, doorbell: Doorbell) -> None:
        """Not asked either."""

    def removed(self) -> None:
        """The inner offer is gone."""
        self._let_go()

    # tasks

    async def _open(self, number: int, params: OpenParams, interrupt: Interrupt, doorbell: Doorbell) -> None:
        # A guest may open before it hears of its GPADL, or be reset while it opens and back before the outer host answers.
        while number == self._open_count and (self._is_opening or params.gpadl_id in self._creating):
            await self._changed.wait()
        if number != self._open_count:
            return
        self._is_opening = True
        opened, status = None, STATUS_UNSUCCESSFUL
        try:
            opened = await self._open_outside(params, interrupt)
            status = STATUS_SUCCESS
        except OpenRefused as error:
            status = error.status
        except (HostError, ValueError):  # gone meanwhile, or numbers that fit no message
            pass
        finally:
            self._is_opening = False
            self._changed.notify()
        if number != self._open_count:
            if opened is not None:
                self._outer.close(opened)
            return
        self._opened = opened
        if opened is not None and not params.is_direct:
            self._passing = self._tasks.start(partial(self._pass_signals, opened, doorbell))
        self._inner.open_ended(status)

    async def _open_outside(self, params: OpenParams, interrupt: Interrupt) -> ForeignChannel:
        """`HostError`, `ValueError`."""
        if params.redirect:
            raise ChannelClosed("interrupts that the inner guest wants redirected would come to the relay itself")
        gpadl = self._gpadls.get(params.gpadl_id)
        if gpadl is None:
            raise ChannelClosed(f"the inner guest has no GPADL {params.gpadl_id:#x} for its rings")
        target_vp = NO_INTERRUPTS if params.target_vp is None else params.target_vp
        request = OpenRequest(gpadl.gpadl_id, params.page_offset, target_vp, params.user_data)
        if params.is_direct:
            if params.connection_id & ~MAX_CHANNELS == self.outer_offer.connection_id & ~MAX_CHANNELS:
                raise ChannelClosed(
                    "a connection ID that the outer host names is the paravisor's, for another channel maybe"
                )
            signals = {"event_flag": params.event_flag, "connection_id": params.connection_id, "is_direct": True}
            return await self._outer.open(self.outer_offer, msgspec.structs.replace(request, **signals))
        synic = self._client.guest_synic
        if params.target_vp is not None:
            request = msgspec.structs.replace(request, target_vp=synic.vp_index, redirect=self._client.redirects)
        wakeup = synic.turns.wakeup(("vmbus-relayed", self.outer_offer.channel_id))
        return await self._outer.open(self.outer_offer, request, _PassedOn(wakeup, interrupt))

    async def _pass_signals(self, opened: ForeignChannel, doorbell: Doorbell) -> None:
        """From the inner guest to the outer host, until the channel is closed."""
        seen = 0
        while True:
            try:
                seen = await doorbell.wait(seen)
            except ChannelClosed:
                return
            await opened.signal()

    async def _create_gpadl(self, gpadl_id: int, ranges: tuple[GpaRange, ...]) -> None:
        gpadl: GuestGpadl | None = None
        with contextlib.suppress(HostError, ValueError):
            gpadl = await self._outer.create_gpadl(self.outer_offer, ranges)
        self._creating.discard(gpadl_id)
        self._changed.notify()
        if gpadl is None:
            self._inner.gpadl_created(gpadl_id, accepted=False)
        elif self._is_gone:
            self._outer.teardown_gpadl_later(gpadl)
        else:
            self._gpadls[gpadl_id] = gpadl
            self._inner.gpadl_created(gpadl_id)

    async def _teardown_gpadl(self, gpadl_id: int, gpadl: GuestGpadl) -> None:
        with contextlib.suppress(HostError):  # without a connection nobody uses it any more
            await self._outer.teardown_gpadl(gpadl)
        self._inner.gpadl_torn_down(gpadl_id)

    async def _modify(self, opened: ForeignChannel, target_vp: int) -> None:
        try:
            status = await self._outer.modify(opened, target_vp)
        except (HostError, ValueError):
            status = STATUS_UNSUCCESSFUL
        if self._opened is opened:
            self._inner.modify_ended(status)

    # within

    def _close_outside(self) -> None:
        opened, self._opened = self._opened, None
        passing, self._passing = self._passing, None
        if passing is not None:
            passing.cancel()
        if opened is not None:
            self._outer.close(opened)

    def _let_go(self) -> None:
        self._is_gone = True
        self._open_count += 1
        self._changed.notify()
        self._close_outside()
        gpadls, self._gpadls = self._gpadls, {}
        for gpadl in gpadls.values():
            self._outer.teardown_gpadl_later(gpadl)


class _PassedOn(Doorbell):
    """Where the outer host signals the relay, and at once the inner guest is signalled."""

    __slots__ = ("_interrupt",)

    def __init__(self, wakeup: Wakeup, interrupt: Interrupt) -> None:
        super().__init__(wakeup)
        self._interrupt = interrupt

    def ring(self) -> None:
        """The outer host signals."""
        super().ring()
        self._interrupt.deliver()
