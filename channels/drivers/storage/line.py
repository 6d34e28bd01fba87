"""`Line`: tasks that wait for something scarce, served in the order in which they came."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TypeVar

from broker.access import Turns, Wakeup
from broker.errors import BrokerError

T = TypeVar("T")


class Line:
    """See the module. Whoever gives something back calls `changed`."""

    def __init__(self, turns: Turns, number: int) -> None:
        self._turns = turns
        self._key = ("storage-line", number)
        self._waiting: deque[Wakeup] = deque()
        """One for each task: only the first has a reason to look."""
        self._error: BrokerError | None = None

    @property
    def is_empty(self) -> bool:
        """Nobody waits."""
        return not self._waiting

    async def wait_for(self, attempt: Callable[[], T | None]) -> T:
        """What `attempt` returns, once it is not None. What `end` was given is raised."""
        if self._error is None and not self._waiting:
            found = attempt()
            if found is not None:
                return found
        ticket = self._turns.wakeup(self._key)
        self._waiting.append(ticket)
        try:
            while True:
                if self._error is not None:
                    raise self._error
                if self._waiting[0] is ticket:
                    found = attempt()
                    if found is not None:
                        return found
                await ticket.wait()
        finally:
            self._waiting.remove(ticket)
            self.changed()

    def changed(self) -> None:
        """There may be something now."""
        if self._waiting:
            self._waiting[0].notify()

    def end(self, error: BrokerError) -> None:
        """There will be nothing any more: all who wait, and who come, get this error."""
        self._error = error
        for ticket in self._waiting:
            ticket.notify()
