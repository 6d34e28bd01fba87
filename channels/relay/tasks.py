"""The tasks of a relay: one for each answer of the outer host that is due, and one for each channel whose signals pass.

There are as many as the inner guest has channels and GPADLs under way, and those its server bounds.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
import anyio.abc
import structlog

from broker.access import Turns
from broker.errors import PartitionClosed

_log = structlog.get_logger("channels")


class RelayTasks:
    """See the module. Whatever one of them raises ends the relay's block with it, unwrapped: it is a fault of the relay."""

    def __init__(self, turns: Turns, group: anyio.abc.TaskGroup, errors: list[BaseException]) -> None:
        self.turns = turns
        self._group = group
        self._errors = errors
        self._count = 0

    def start(self, work: Callable[[], Awaitable[None]]) -> anyio.CancelScope:
        """Do this in a task; the scope cancels it."""
        self._count += 1
        scope = anyio.CancelScope()
        self._group.start_soon(self._run, self.turns.expect(("vmbus-relay", self._count)), work, scope)
        return scope

    async def _run(
        self, begin: Callable[[], Awaitable[None]], work: Callable[[], Awaitable[None]], scope: anyio.CancelScope
    ) -> None:
        try:
            with scope:
                await begin()
                await work()
        except PartitionClosed:
            return  # there is nobody left to relay for
        except Exception as error:
            _log.error("relay_failed", exc_info=error)
            self._errors.append(error)
            self._group.cancel_scope.cancel()
        finally:
            self.turns.leave()
