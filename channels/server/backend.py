"""What a server sets up for a guest's connection, and what a relay's outer host sets up instead.

It will: aim control messages, use the channel bitmap, see to the monitor pages. It will not: decide when; that is the
machine's `ModifyConnection`.
"""

from __future__ import annotations

from typing import Protocol
from uuid import UUID

import structlog

from broker.access import MonitorPageGpas, SynicPortAccess
from broker.errors import HostError, MemoryAccessError, PartitionClosed
from broker.hvdef import PAGE_SIZE
from broker.memory import GuestMemory

from ..core.server import ServerConfig
from ..core.server import effects as do
from ..protocol.message import ConnectionState
from ..protocol.versions import FeatureFlags, Version
from .ports import ServerPorts
from .posts import ServerPosts

_log = structlog.get_logger("channels")


class OuterHost(Protocol):
    """The host that a paravisor's server relays for (reference, 6.9)."""

    def supports(self, version: Version) -> bool:
        """May a guest speak this version? One that may not is told that it is unsupported."""
        ...

    @property
    def features(self) -> FeatureFlags:
        """The most that a guest may agree on with the server."""
        ...

    async def set_monitor_pages(self, pages: do.MonitorPages | None) -> None:
        """Watch these pages, or none, for the guest. `HostError` when that cannot be: the guest is refused."""
        ...

    async def connect_hvsock(self, service_id: UUID, endpoint_id: UUID, silo_id: UUID) -> bool:
        """A guest's hvsock connect; True when somebody listens and offers the channel."""
        ...


class ConnectionBackend:
    """See the module. `outer`: a relay's host, None where this server is the host itself."""

    def __init__(
        self,
        access: SynicPortAccess,
        config: ServerConfig,
        memory: GuestMemory,
        posts: ServerPosts,
        ports: ServerPorts,
    ) -> None:
        self._access = access
        self._config = config
        self._memory = memory
        self._posts = posts
        self._ports = ports

    async def modify(
        self, effect: do.ModifyConnection, outer: OuterHost | None
    ) -> tuple[ConnectionState, do.MonitorPages | None]:
        """Set up what a connection uses, or take it back (version None). Returns the state and pages of the host's own."""
        await self._posts.aim(effect.target_vp)
        try:
            self._ports.drop_bitmap()
            if effect.interrupt_page is not None:
                await self._ports.use_bitmap(self._memory.view(effect.interrupt_page, PAGE_SIZE))
            if outer is not None:
                await outer.set_monitor_pages(effect.monitor_pages)
                return ConnectionState.SUCCESSFUL, None
            return ConnectionState.SUCCESSFUL, await self._set_monitor_pages(effect)
        except (MemoryAccessError, HostError, ValueError) as error:
            if isinstance(error, PartitionClosed):
                raise
            _log.info("connection_refused", reason=str(error))
            return ConnectionState.FAILED_UNKNOWN_FAILURE, None

    async def _set_monitor_pages(self, effect: do.ModifyConnection) -> do.MonitorPages | None:
        monitor = self._access.monitor_support
        if monitor is None:
            return None
        if effect.allocate:
            own = await monitor.allocate_monitor_page(self._config.vtl)
            if own is not None:
                return do.MonitorPages(own.parent_to_child, own.child_to_parent)
        pages = effect.monitor_pages
        given = None if pages is None else MonitorPageGpas(pages.parent_to_child, pages.child_to_parent)
        await monitor.set_monitor_page(self._config.vtl, given)
        return None
