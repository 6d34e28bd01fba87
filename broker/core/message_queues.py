"""The host-to-guest queues of one processor and VTL: one bounded FIFO per SINT and a bitmap of those not empty.

Will: keep order per SINT, refuse what does not fit, say when a queue stops being empty.
Will not: know slots, interrupts or who waits for room.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import msgspec

from ..errors import InvariantError
from ..hvdef.registers import SINT_COUNT
from ..hvdef.status import HvStatus


class QueuedMessage(msgspec.Struct, frozen=True):
    """A message on its way to a slot, with the trace ids that travel with it."""

    message_type: int
    payload: bytes
    origination_id: int = 0
    cause: int = 0
    flow: int = 0


class MessageQueues:
    """Sixteen queues of at most `depth` messages."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.pending = 0
        """Bit n is set while the queue of SINT n holds something."""
        self._queues: dict[int, deque[QueuedMessage]] = {}

    def has_room(self, sint: int) -> bool:
        """True when `enqueue` will take another message for this SINT."""
        return self.count(sint) < self.depth

    def count(self, sint: int) -> int:
        """How many messages wait for this SINT."""
        queue = self._queues.get(sint)
        return 0 if queue is None else len(queue)

    def head(self, sint: int) -> QueuedMessage | None:
        """The oldest message that waits for this SINT."""
        queue = self._queues.get(sint)
        return queue[0] if queue else None

    def enqueue(self, sint: int, message: QueuedMessage) -> bool:
        """Append; True when the queue was empty, so that the processor has to look. `InvariantError` when full."""
        if not self.has_room(sint):
            raise InvariantError(f"the queue of SINT {sint} is full; ask has_room first")
        self._queues.setdefault(sint, deque()).append(message)
        was_empty = not self.pending >> sint & 1
        self.pending |= 1 << sint
        return was_empty

    def flush(
        self,
        mask: int,
        post: Callable[[int, QueuedMessage], HvStatus],
        discard: Callable[[int, QueuedMessage, HvStatus], None],
        room: Callable[[int], None],
    ) -> int:
        """Offer the queued messages of the SINTs in `mask` to `post`, in ascending SINT order, oldest first.

        SUCCESS takes a message off; OBJECT_IN_USE keeps it and ends this SINT; any other status takes it off and hands
        it to `discard`. `room` is called after each that was taken off and may enqueue. Returns the pending bitmap.
        """
        for sint in sorted(self._queues):
            queue = self._queues[sint]
            while mask >> sint & 1 and queue:
                message = queue[0]
                status = post(sint, message)
                if status is HvStatus.OBJECT_IN_USE:
                    break
                queue.popleft()
                if not queue:
                    self.pending &= ~(1 << sint)
                if status is not HvStatus.SUCCESS:
                    discard(sint, message, status)
                room(sint)
        return self.pending

    def clear(self) -> list[tuple[int, QueuedMessage]]:
        """Empty all queues and return what they held, with the SINT of each."""
        lost = [(sint, message) for sint in sorted(self._queues) for message in self._queues[sint]]
        self._queues = {}
        self.pending = 0
        return lost

    def save(self) -> list[list[QueuedMessage]]:
        """What waits, per SINT, oldest first."""
        return [list(self._queues.get(sint, ())) for sint in range(SINT_COUNT)]

    def restore(self, queues: list[list[QueuedMessage]]) -> None:
        """Take over what `save` returned; the bitmap follows from it."""
        self._queues = {sint: deque(queue) for sint, queue in enumerate(queues) if queue}
        self.pending = self._non_empty()

    def check(self) -> None:
        """Every invariant. `InvariantError` when one is broken."""
        if self.pending != self._non_empty():
            raise InvariantError("the pending bitmap does not say which queues hold something")
        if any(len(queue) > self.depth for queue in self._queues.values()):
            raise InvariantError("a queue holds more than its bound")

    def _non_empty(self) -> int:
        return sum(1 << sint for sint, queue in self._queues.items() if queue)
