"""What a VMBus client posts: in order, each again while the host has no room (Linux, `vmbus_post_msg`).

It will: try up to 100 times, after 1 us, 2 us, 4 us and so on up to 131 ms, about 11 s in all; report a contact whose
connection does not exist. It will not: post anything else while one is being tried, or go on after a post that failed.

The queue is bounded by its users: a request waits for `wait_room` first and adds at most the messages of one GPADL; what
the client adds by itself is one message for each channel at most.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from broker.access import GuestSynic, Wakeup
from broker.errors import ConnectionFailed
from broker.hvdef import HvStatus
from broker.trace import NO_CONTEXT, Context, Control

from ..core.client.effects import Post
from ..protocol.ids import CHANNEL_MESSAGE
from ..protocol.message import MessageType
from ..protocol.parse import name_of

MAX_TRIES = 100
FIRST_DELAY_TICKS = 10
MAX_DELAY_TICKS = FIRST_DELAY_TICKS << 17
ROOM = 64
"""Messages that may wait before requests wait as well."""

TRY_AGAIN = frozenset({HvStatus.INSUFFICIENT_BUFFERS, HvStatus.INSUFFICIENT_MEMORY, HvStatus.INVALID_CONNECTION_ID})
"""Statuses that may pass: a server that restarts has no port for a while."""


class PostQueue:
    """See the module. `run` is its task; `contact_refused` is called for a contact to a connection that does not exist."""

    def __init__(self, synic: GuestSynic, contact_refused: Callable[[], None]) -> None:
        self.retries = 0
        """Posts that had to be tried again."""
        self._synic = synic
        self._contact_refused = contact_refused
        self._queue: deque[tuple[Post, Context]] = deque()
        self._added = synic.turns.wakeup(("vmbus-post", synic.vp_index))
        self._waiting: deque[Wakeup] = deque()
        """Requests that wait for room, oldest first."""
        self._waits = 0

    def add(self, post: Post) -> None:
        """Post this after what was added before."""
        trace = self._synic.trace
        self._queue.append((post, NO_CONTEXT if trace is None else trace.context()))
        self._added.notify()

    async def wait_room(self) -> None:
        """Wait until a request may add its messages; whoever came first goes first."""
        if len(self._queue) < ROOM and not self._waiting:
            return
        self._waits += 1
        wakeup = self._synic.turns.wakeup(("vmbus-room", self._waits))
        self._waiting.append(wakeup)
        try:
            while self._waiting[0] is not wakeup or len(self._queue) >= ROOM:
                await wakeup.wait()
        finally:
            self._waiting.remove(wakeup)
            self._wake_next()

    async def run(self) -> None:
        """Post what is added. `ConnectionFailed` when the host does not take it."""
        while True:
            while not self._queue:
                await self._added.wait()
            post, context = self._queue[0]
            data = post.message.pack()
            trace = self._synic.trace
            if trace is not None:
                trace.work_on(context)
                name, channel_id = name_of(data)
                control = trace.emit(Control, side="guest", direction="out", name=name, channel_id=channel_id)
                trace.work_on((control, context[1]))
            is_taken = await self._post(post, data)
            self._queue.popleft()
            self._wake_next()
            if not is_taken:
                self._contact_refused()

    def _wake_next(self) -> None:
        if self._waiting and len(self._queue) < ROOM:
            self._waiting[0].notify()

    async def _post(self, post: Post, data: bytes) -> bool:
        """False: a contact to a connection that does not exist."""
        delay = FIRST_DELAY_TICKS
        turns, vp_index = self._synic.turns, self._synic.vp_index
        for _ in range(MAX_TRIES):
            status = await self._synic.post_message(post.connection_id, CHANNEL_MESSAGE, data)
            if status is HvStatus.SUCCESS:
                return True
            is_contact = post.message.TYPE is MessageType.INITIATE_CONTACT
            if is_contact and status is HvStatus.INVALID_CONNECTION_ID:
                return False
            if status not in TRY_AGAIN:
                break
            self.retries += 1
            await turns.sleep_until(turns.clock.now() + delay, ("vmbus-retry", vp_index))
            delay = min(2 * delay, MAX_DELAY_TICKS)
        raise ConnectionFailed(
            f"{post.message.TYPE.name} to connection {post.connection_id:#010x} was answered {status.name};"
            " the VMBus server is gone or does not keep up"
        )
