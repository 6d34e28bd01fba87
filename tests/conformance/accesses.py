"""The implementations of `SynicPortAccess` that the suite in `test_port_access.py` runs over.

To have the suite run over another one, add an `Implementation` to `IMPLEMENTATIONS`. Its `open` gives an `Environment`
with two processors, all that a test may use; what differs between implementations is read from the `backend` row.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace

import pytest

from broker import (
    BACKENDS,
    Backend,
    GuestMessagePort,
    HvStatus,
    Partition,
    PartitionConfig,
    SynicPortAccess,
    VirtualProcessor,
    Vtl,
)
from channels.faults import RefusingAccess

PATIENCE = 40
"""Tries against a share of refusals: a quarter to the power of 40 is never."""


@dataclass(frozen=True)
class Environment:
    """One implementation at work."""

    access: SynicPortAccess
    backend: Backend
    """What it can do."""
    vp: Callable[[int], VirtualProcessor]
    """Processors 0 and 1, for guest calls."""
    reset: Callable[[], Awaitable[None]]
    tries: int = 1
    """How often guest and host try before they take no for an answer; 1 where nothing is refused without a reason."""

    async def post(
        self, connection_id: int, payload: bytes = b"", *, vp: int = 0, vtl: Vtl = Vtl.VTL0, trusted: bool = False
    ) -> HvStatus:
        """A guest's post; it tries again while there are no buffers."""
        for _ in range(self.tries):
            status = await self.vp(vp).post_message(connection_id, 1, payload, vtl=vtl, trusted=trusted)
            if status is not HvStatus.INSUFFICIENT_BUFFERS:
                break
        return status

    async def signal(self, connection_id: int, flag: int = 0, *, vp: int = 0, vtl: Vtl = Vtl.VTL0) -> HvStatus:
        """A guest's signal."""
        return await self.vp(vp).signal_event(connection_id, flag, vtl=vtl)

    def try_post(self, port: GuestMessagePort, payload: bytes, message_type: int = 1) -> bool:
        """A host's post that does not wait; it tries again while it is refused."""
        return any(port.try_post_message(message_type, payload) for _ in range(self.tries))


@dataclass(frozen=True)
class Implementation:
    """A way to get an `Environment`."""

    name: str
    backend: Backend
    open: Callable[[], AbstractAsyncContextManager[Environment]]


def in_one_process(backend: Backend, note: str = "", **settings: bool) -> Implementation:
    """A partition of this program, with every VTL that the backend has."""

    @asynccontextmanager
    async def start() -> AsyncIterator[Environment]:
        config = PartitionConfig(backend=backend.name, vp_count=2, memory_size=1 << 20, vtls=backend.vtls, **settings)
        async with Partition(config) as partition:
            yield Environment(partition.synic(), backend, partition.vp, partition.reset)

    return Implementation(backend.name + note, backend, start)


def refusing(inner: Implementation) -> Implementation:
    """The same behind a wrapper that refuses a quarter of all posts, so that guest and host have to try again."""

    @asynccontextmanager
    async def start() -> AsyncIterator[Environment]:
        async with inner.open() as environment:
            yield replace(environment, access=RefusingAccess(environment.access, 1), tries=PATIENCE)

    return Implementation(f"{inner.name}-refusing", inner.backend, start)


IMPLEMENTATIONS = [
    *(in_one_process(backend) for backend in BACKENDS.values() if backend.synic != "none"),
    in_one_process(BACKENDS["emulated"], "-taking-turns", virtual_time=True),
    in_one_process(BACKENDS["offloaded"], "-taking-turns", virtual_time=True),
]


def over(
    implementations: list[Implementation], can: Callable[[Backend], bool] = lambda backend: True
) -> pytest.MarkDecorator:
    """Run a test over those of these implementations whose backend can do something."""
    chosen = [implementation for implementation in implementations if can(implementation.backend)]
    names = [implementation.name for implementation in chosen]
    return pytest.mark.parametrize("implementation", chosen, ids=names, indirect=True)
