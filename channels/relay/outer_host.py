"""What the inner guest's connection becomes on the outer one: version, monitor pages, hvsock connects (reference, 6.9)."""

from __future__ import annotations

from uuid import UUID

import anyio

from broker.access import MonitorPageGpas
from broker.clock import TICKS_PER_SECOND
from broker.errors import HostError

from ..client import VmbusClient
from ..core.effects import MonitorPages
from ..protocol.versions import FeatureFlags, Version

HVSOCK_PATIENCE = 5 * TICKS_PER_SECOND
"""For an outer host that does not answer a connect, as one of 4.0 that refuses it."""

_LOCAL_FEATURES = FeatureFlags.CLIENT_ID | FeatureFlags.CONFIDENTIAL_CHANNELS | FeatureFlags.GPA_PINNING


class RelayedConnection:
    """The outer host as the inner server sees it (`server.OuterHost`).

    Monitor pages of the inner guest become those of the outer connection, by MODIFY_CONNECTION; none when it has none or is
    gone. The outer host refuses while an open channel uses the pages there are: then the inner guest is refused as well.
    """

    def __init__(self, outer: VmbusClient, intercept: frozenset[UUID]) -> None:
        self._outer = outer
        self._intercept = intercept

    def supports(self, version: Version) -> bool:
        """The inner guest may speak what the outer host speaks, and anything older."""
        return version <= self._outer.version

    @property
    def features(self) -> FeatureFlags:
        """What the outer host agreed on and what the inner server does by itself; but no redirection of interrupts (0x2):
        they would come to the paravisor, whose place for redirected interrupts is the same."""
        return (self._outer.features | _LOCAL_FEATURES) & ~FeatureFlags.CHANNEL_INTERRUPT_REDIRECTION

    async def set_monitor_pages(self, pages: MonitorPages | None) -> None:
        """See the class."""
        if pages != self._outer.monitor_pages:
            gpas = None if pages is None else MonitorPageGpas(pages.parent_to_child, pages.child_to_parent)
            await self._outer.modify_connection(gpas)

    async def connect_hvsock(self, service_id: UUID, endpoint_id: UUID, silo_id: UUID) -> bool:
        """Ask the outer host; its offer, which the relay passes on like any other, is the success. False after
        `HVSOCK_PATIENCE` without an answer: the inner server takes no messages while too many connects are under way."""
        if not self._intercept.isdisjoint((service_id, endpoint_id)):
            return False
        turns = self._outer.guest_synic.turns
        with anyio.CancelScope() as scope:
            limit = turns.schedule(turns.clock.now() + HVSOCK_PATIENCE, ("vmbus-relay-hvsock", 0), scope.cancel)
            try:
                await self._outer.connect_hvsock(service_id, endpoint_id, silo_id)
            except HostError:
                return False
            finally:
                limit.cancel()
            return True
        return False
