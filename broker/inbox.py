"""Ready-made ports: a bounded mailbox, a worker that serves one, and a set of signalled flags.

Each is an async context manager that registers its port on entry and quiesces it on exit. The work is done in the
caller's own task (`serve_messages` adds one of its own), so that a crash reaches its author.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Self

import anyio
import msgspec

from .access import PortHandle, SynicPortAccess
from .errors import PortClosed
from .hvdef import HvStatus, Vtl
from .trace import NO_CONTEXT, Context, Trace
from .turns import Wakeup

MAILBOX_DEPTH = 16
"""The message buffers that the TLFS gives a port."""

_SUCCESS = HvStatus.SUCCESS
_INSUFFICIENT_BUFFERS = HvStatus.INSUFFICIENT_BUFFERS


class Message(msgspec.Struct, frozen=True, gc=False):
    """What arrived: the payload, and whether it came over a trusted path."""

    payload: bytes
    trusted: bool


class MessageInbox:
    """A bounded mailbox in front of one consumer. Iterate it, or take all that waits with `receive_batch`."""

    __slots__ = ("_contexts", "_depth", "_handle", "_limit", "_messages", "_older", "_trace", "_wakeup")

    def __init__(self, depth: int) -> None:
        if depth < 1:
            raise ValueError(f"a mailbox holds at least one message, not {depth}")
        self._depth = depth
        self._messages: list[Message] = []
        self._older: deque[Message] = deque()
        """Messages that `receive` has set apart to hand out one by one; they count as waiting."""
        self._limit = depth
        """Room for `_messages`; 0 while tracing, so that each message is looked at carefully."""
        self._contexts: deque[Context] = deque()
        self._trace: Trace | None = None
        self._wakeup: Wakeup | None = None
        self._handle: PortHandle | None = None

    def attach(self, handle: PortHandle, connection_id: int) -> None:
        """Wait and trace as this port does."""
        self._handle = handle
        self._trace = handle.trace
        self._wakeup = handle.turns.wakeup(("inbox", connection_id))
        self._set_limit()
        handle.on_close(self.close)

    def expect_worker(self, connection_id: int) -> Callable[[], Awaitable[None]]:
        """Announce the task that will serve this inbox; it awaits the returned function first."""
        if self._handle is None:
            raise PortClosed("this inbox is closed; serve it within its block")
        return self._handle.turns.expect(("serve", connection_id))

    async def handle_message(self, message: bytes, trusted: bool) -> HvStatus:
        """Keep the message, or answer INSUFFICIENT_BUFFERS when `depth` of them wait."""
        messages = self._messages
        if messages:
            if len(messages) < self._limit:
                messages.append(Message(message, trusted))
                return _SUCCESS
            if self._trace is None:
                return _INSUFFICIENT_BUFFERS
        return self._keep_carefully(message, trusted)

    async def receive_batch(self) -> list[Message]:
        """All messages that wait, at least one, oldest first. `PortClosed` once closed."""
        if not self._messages and not self._older:
            await self._wait_for_message()
        batch, self._messages = self._messages, []
        if self._older:
            batch = [*self._older, *batch]
            self._older.clear()
            self._set_limit()
        if self._trace is not None:
            self._trace.work_on(self._contexts[-1])
            self._contexts.clear()
        return batch

    async def receive(self) -> Message:
        """The oldest message. `PortClosed` once closed."""
        if not self._older:
            if not self._messages:
                await self._wait_for_message()
            if not self._older:  # another receiver may have set some apart meanwhile
                self._older.extend(self._messages)
                self._messages = []
        if self._trace is not None:
            self._trace.work_on(self._contexts.popleft())
        message = self._older.popleft()
        self._set_limit()
        return message

    def close(self) -> None:
        """Drop what waits; whoever receives gets `PortClosed`, an iteration ends."""
        self._handle = None
        self._messages = []
        self._older.clear()
        self._contexts.clear()
        if self._wakeup is not None:
            self._wakeup.notify()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        try:
            return await self.receive()
        except PortClosed:
            raise StopAsyncIteration from None

    def __len__(self) -> int:
        return len(self._older) + len(self._messages)

    def _keep_carefully(self, message: bytes, trusted: bool) -> HvStatus:
        """Keep a message that may be the first to wait, which wakes the receiver, or that carries its trace along."""
        waiting = len(self)
        if waiting >= self._depth:
            return _INSUFFICIENT_BUFFERS
        if not waiting and self._wakeup is not None:
            self._wakeup.notify()
        self._messages.append(Message(message, trusted))
        if self._trace is not None:
            self._contexts.append(self._trace.context())
        return _SUCCESS

    def _set_limit(self) -> None:
        self._limit = 0 if self._trace is not None else self._depth - len(self._older)

    async def _wait_for_message(self) -> None:
        while not self._messages and not self._older:
            if self._handle is None or self._wakeup is None:
                raise PortClosed("this inbox is closed; receive within its block")
            await self._wakeup.wait()


class EventFlags:
    """The flags signalled since the last look. Each step of an iteration is a non-empty set."""

    __slots__ = ("_context", "_flags", "_handle", "_trace", "_wakeup")

    def __init__(self) -> None:
        self._flags: set[int] = set()
        self._context: Context = NO_CONTEXT
        self._trace: Trace | None = None
        self._wakeup: Wakeup | None = None
        self._handle: PortHandle | None = None

    def attach(self, handle: PortHandle, connection_id: int) -> None:
        """Wait and trace as this port does."""
        self._handle = handle
        self._trace = handle.trace
        self._wakeup = handle.turns.wakeup(("inbox", connection_id))
        handle.on_close(self.close)

    async def handle_event(self, flag: int) -> None:
        """Note the flag; one that is noted already coalesces."""
        if not self._flags and self._wakeup is not None:
            self._wakeup.notify()
        self._flags.add(flag)
        if self._trace is not None:
            self._context = self._trace.context()

    async def receive(self) -> set[int]:
        """The set of flags signalled since the last one, never empty. `PortClosed` once closed."""
        while not self._flags:
            if self._handle is None or self._wakeup is None:
                raise PortClosed("these event flags are closed; receive within their block")
            await self._wakeup.wait()
        flags, self._flags = self._flags, set()
        if self._trace is not None:
            self._trace.work_on(self._context)
        return flags

    def close(self) -> None:
        """Forget what was signalled; whoever receives gets `PortClosed`, an iteration ends."""
        self._handle = None
        self._flags.clear()
        if self._wakeup is not None:
            self._wakeup.notify()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> set[int]:
        try:
            return await self.receive()
        except PortClosed:
            raise StopAsyncIteration from None


@asynccontextmanager
async def receive_messages(
    access: SynicPortAccess, connection_id: int, depth: int = MAILBOX_DEPTH, *, minimum_vtl: Vtl = Vtl.VTL0
) -> AsyncIterator[MessageInbox]:
    """A mailbox of `depth` messages at this connection ID; a post that finds it full gets INSUFFICIENT_BUFFERS.

    `ConnectionIdInUse`, `ValueError`. Example:

        async with receive_messages(partition.synic(), 1) as inbox:
            async for message in inbox: ...
    """
    inbox = MessageInbox(depth)
    async with await access.add_message_port(connection_id, minimum_vtl, inbox) as handle:
        inbox.attach(handle, connection_id)
        yield inbox


@asynccontextmanager
async def serve_messages(
    access: SynicPortAccess,
    connection_id: int,
    handler: Callable[[Message], Awaitable[None]],
    depth: int = MAILBOX_DEPTH,
    *,
    minimum_vtl: Vtl = Vtl.VTL0,
) -> AsyncIterator[None]:
    """Call `handler(message)` for each message, in order, from a task of this block; its exception ends the block."""
    async with receive_messages(access, connection_id, depth, minimum_vtl=minimum_vtl) as inbox:
        errors: list[BaseException] = []
        async with anyio.create_task_group() as group:
            begin = inbox.expect_worker(connection_id)
            group.start_soon(_serve, begin, inbox, handler, errors, group.cancel_scope)
            try:
                yield
            except Exception as error:  # not from within the group, which would wrap it
                errors.insert(0, error)
            finally:
                group.cancel_scope.cancel()
        if errors:
            raise errors[0]


async def _serve(
    begin: Callable[[], Awaitable[None]],
    inbox: MessageInbox,
    handler: Callable[[Message], Awaitable[None]],
    errors: list[BaseException],
    scope: anyio.CancelScope,
) -> None:
    try:
        await begin()
        async for message in inbox:
            await handler(message)
    except (KeyboardInterrupt, SystemExit, GeneratorExit, anyio.get_cancelled_exc_class()):
        raise
    except BaseException as error:
        errors.append(error)
        scope.cancel()


@asynccontextmanager
async def receive_events(
    access: SynicPortAccess, connection_id: int, *, minimum_vtl: Vtl = Vtl.VTL0
) -> AsyncIterator[EventFlags]:
    """The flags signalled at this connection ID: N signals give between 1 and N steps, and the last is never lost."""
    flags = EventFlags()
    async with await access.add_event_port(connection_id, minimum_vtl, flags) as handle:
        flags.attach(handle, connection_id)
        yield flags
