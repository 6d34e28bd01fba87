"""`VmbusRelay`: the devices of an outer host for the guest of a paravisor (OpenVMM `vmbus_relay`; reference, 6.9).

    async with (
        VmbusServer(partition.synic(), partition.memory) as inner,
        VmbusClient(partition.vp(0).guest_synic(Vtl.VTL2), redirect=True, monitor=True) as outer,
        VmbusRelay(outer, inner),
    ):
        ...

Paravisor and inner guest are one partition, as they are under a hypervisor: the paravisor runs in VTL 2 and has the
outer host's control messages (a server that `redirects_messages`), the guest in VTL 0 has the inner server's. Memory and
connection IDs are the same, so rings, GPADLs and monitor pages pass by page number, and from version 2.4 on the guest and the
outer host signal each other without the relay. For channel-bitmap guests (below 2.4) the outer host signals the relay, and the
relay signals for both. A guest gets no redirected interrupts: they would come to the paravisor itself.

It will: offer what the outer host offers, in its order, with channel IDs of the inner server; rescind what it rescinds, and
everything when the outer connection is lost; pass on what the inner guest asks for; let the paravisor have the offers on
`intercept`. It will not: touch ring data, restore (a restored inner server offers relayed channels anew), or outlive a
reset of the whole partition: the paravisor is reset as well, so run it as guest code of a processor.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Self
from uuid import UUID

import anyio
import structlog

from broker.errors import ConfigurationError, ConnectionFailed, HostError, OfferRefused

from ..client import VmbusClient
from ..protocol.offer import OfferChannel
from ..protocol.versions import FeatureFlags
from ..server import VmbusServer
from .channel import RelayedChannel
from .outer_host import RelayedConnection
from .tasks import RelayTasks

REQUIRED_FEATURES = (
    FeatureFlags.GUEST_SPECIFIED_SIGNAL_PARAMETERS
    | FeatureFlags.CHANNEL_INTERRUPT_REDIRECTION
    | FeatureFlags.MODIFY_CONNECTION
)
"""What the outer host must have agreed on."""

_log = structlog.get_logger("channels")


class VmbusRelay(anyio.AsyncContextManagerMixin):
    """See the module. `outer` and `inner` are open and stay their owner's.

    `intercept`: interfaces and instances that the paravisor keeps for itself; it opens them with the client, as
    `intercepted` names them. A client with `monitor=True` lets the outer host name monitor IDs, which the inner guest gets.
    Devices that the paravisor offers on the inner server itself get none while it relays: the pages are the outer host's.

    `ConfigurationError` when the outer host has not agreed on `REQUIRED_FEATURES`, or is the inner server itself.
    """

    def __init__(self, outer: VmbusClient, inner: VmbusServer, *, intercept: Collection[UUID] = ()) -> None:
        self.outer = outer
        self.inner = inner
        self._intercept = frozenset(intercept)
        self._taken: dict[int, tuple[OfferChannel, RelayedChannel | None]] = {}
        """By outer channel ID, in the order in which they came; without a channel where the inner server refused."""
        self._tasks: RelayTasks
        self._was_opened = False

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncIterator[Self]:
        if self._was_opened:
            raise HostError("a relay is used once; make a new one for the next block")
        missing = REQUIRED_FEATURES & ~self.outer.features
        if missing:
            raise ConfigurationError(
                f"a relay needs features {int(REQUIRED_FEATURES):#x} of the outer host, which speaks version"
                f" {self.outer.version.label} and has agreed on {int(self.outer.features):#x}; {int(missing):#x} are missing"
            )
        if self.outer.connection_id in self.inner.config.connections:
            raise ConfigurationError(
                f"the relay's client is connected to the inner server (connection {self.outer.connection_id:#x}); give it"
                " VTL 2, redirect=True and an outer server that redirects_messages"
            )
        self._was_opened = True
        errors: list[BaseException] = []
        await self.inner.relay_for(RelayedConnection(self.outer, self._intercept))
        try:
            async with anyio.create_task_group() as group:
                self._tasks = RelayTasks(self.inner.turns, group, errors)
                try:
                    await self._compare()
                    self._tasks.start(self._follow)
                    yield self
                except anyio.get_cancelled_exc_class():
                    raise
                except BaseException as error:  # not from within the group, which would wrap it
                    errors.insert(0, error)
                finally:
                    self._revoke_all()
                    group.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await self.inner.relay_for(None)
        if errors:
            raise errors[0]

    def intercepted(self) -> list[OfferChannel]:
        """The outer offers that are the paravisor's own, oldest first; `VmbusClient.open` opens them."""
        return [offer for offer in self.outer.offers.values() if self._is_intercepted(offer)]

    def relayed(self) -> list[OfferChannel]:
        """The outer offers that the inner server offers again, oldest first."""
        return [offer for offer, channel in self._taken.values() if channel is not None]

    async def _follow(self) -> None:
        """Offers come and go, until the outer connection ends."""
        seen = 0
        try:
            while True:
                seen = await self.outer.wait_change(seen)
                await self._compare()
        except ConnectionFailed as error:
            _log.warning("relay_outer_lost", reason=str(error))
            self._revoke_all()

    async def _compare(self) -> None:
        """Take back what is gone, sub-channels before what they belong to; offer what is new."""
        offers = self.outer.offers
        for channel_id, (offer, _) in reversed(list(self._taken.items())):
            if offers.get(channel_id) is not offer:
                self._revoke(channel_id)
        for channel_id, offer in list(offers.items()):
            if channel_id not in self._taken and not self._is_intercepted(offer):
                await self._relay(offer)

    async def _relay(self, offer: OfferChannel) -> None:
        channel = RelayedChannel(self.outer, offer, self._tasks)
        try:
            await channel.begin(self.inner)
        except OfferRefused as error:
            _log.warning("offer_not_relayed", channel_id=offer.channel_id, reason=str(error))
            self._taken[offer.channel_id] = (offer, None)
        else:
            self._taken[offer.channel_id] = (offer, channel)

    def _revoke(self, channel_id: int) -> None:
        _, channel = self._taken.pop(channel_id)
        if channel is not None:
            channel.revoke()

    def _revoke_all(self) -> None:
        for channel_id in reversed(list(self._taken)):
            self._revoke(channel_id)

    def _is_intercepted(self, offer: OfferChannel) -> bool:
        return not self._intercept.isdisjoint((offer.interface_id, offer.instance_id))
