"""The host's posts to one processor and VTL: the queues' front door, first come first served."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable

from ..core import ProcessorSynic, QueuedMessage
from ..errors import PortClosed
from ..turns import Turns, Wakeup

POSTS_PER_TURN = 32
"""Posts that found room, after which the poster lets others have their turn."""


class WaitingPost:
    """A message that waits for room in a queue."""

    __slots__ = ("_wakeup", "failure", "message", "taken")

    def __init__(self, message: QueuedMessage, wakeup: Wakeup) -> None:
        self.message = message
        self.taken = False
        self.failure: str | None = None
        self._wakeup = wakeup

    def take(self) -> None:
        """It is on its way."""
        self.taken = True
        self._wakeup.notify()

    def fail(self, reason: str) -> None:
        """It will not be posted; whoever waits gets `PortClosed`."""
        self.failure = reason
        self._wakeup.notify()

    async def wait(self) -> None:
        """Return once it is on its way."""
        while not self.taken:
            if self.failure is not None:
                raise PortClosed(self.failure)
            await self._wakeup.wait()


class HostPosts:
    """Feeds one processor's machine. `rescan` makes the processor look at its queues now."""

    def __init__(self, vp_index: int, turns: Turns, machine: ProcessorSynic, rescan: Callable[[], None]) -> None:
        self.machine = machine
        self._key = ("post", vp_index)
        self._turns = turns
        self._rescan = rescan
        self._unpaused = 0
        self._waiting: defaultdict[int, deque[WaitingPost]] = defaultdict(deque)

    def try_post(self, sint: int, message: QueuedMessage) -> bool:
        """Queue it if there is room and nobody waits for room."""
        if self._waiting.get(sint) or not self.machine.queues.has_room(sint):
            return False
        if self.machine.enqueue(sint, message) or not self.machine.rules.rescan_every_exit:
            self._rescan()
        return True

    async def post(self, sint: int, message: QueuedMessage, owned: set[WaitingPost]) -> None:
        """Queue it as soon as there is room; `owned` holds it meanwhile, so that its owner may let it fail."""
        if self.try_post(sint, message):
            self._unpaused += 1
            if self._unpaused >= POSTS_PER_TURN:  # a guest that drops everything must not keep the host's loop busy
                self._unpaused = 0
                await self._turns.pause()
            return
        waiting = WaitingPost(message, self._turns.wakeup(self._key))
        queue = self._waiting[sint]
        queue.append(waiting)
        owned.add(waiting)
        try:
            await waiting.wait()
        finally:
            owned.discard(waiting)
            if waiting in queue:
                queue.remove(waiting)

    def fill(self, sint: int) -> None:
        """There is room in this SINT's queue: let those in who wait."""
        queue = self._waiting.get(sint)
        while queue and self.machine.queues.has_room(sint):
            waiting = queue.popleft()
            if waiting.failure is None:
                self.machine.enqueue(sint, waiting.message)
                waiting.take()

    def reset(self) -> None:
        """Drop what waits, as what is queued is dropped."""
        for sint, queue in sorted(self._waiting.items()):
            while queue:
                waiting = queue.popleft()
                self.machine.drop(sint, waiting.message, "reset")
                waiting.take()

    def close(self) -> None:
        """The partition ends: whoever waits gets `PortClosed`."""
        for queue in self._waiting.values():
            while queue:
                queue.popleft().fail("the partition has ended")
