"""`Interrupt`: something that can be delivered, backed by a function, by an eventfd, or by nothing yet.

Clones share their backing. Delivering never waits and never raises for a target that is gone.
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio

EVENTFD_FLAGS = os.EFD_NONBLOCK | os.EFD_CLOEXEC


def signal_eventfd(fd: int) -> None:
    """Add one to an eventfd. A counter that is full is signalled as it is."""
    try:
        os.eventfd_write(fd, 1)
    except BlockingIOError:
        return
    except OSError as error:
        if error.errno != errno.EBADF:  # its owner has closed it: the target is gone
            raise


def drain_eventfd(fd: int) -> bool:
    """Take what an eventfd counted; False when it had not been signalled."""
    try:
        os.eventfd_read(fd)
    except BlockingIOError:
        return False
    return True


def check_eventfd(fd: int) -> None:
    """`ValueError` unless this is an open eventfd."""
    try:
        kind = os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        kind = "no open descriptor"
    if "[eventfd]" not in kind:
        raise ValueError(f"os_event takes an eventfd, descriptor {fd} is {kind}")


class Interrupt:
    """See the module. Make one with `from_function`, `from_event` or `null`."""

    __slots__ = ("_function", "_shared")

    def __init__(self, function: Callable[[], None] | None, shared: _SharedEvent | None) -> None:
        self._function = function
        self._shared = shared

    @classmethod
    def from_function(cls, function: Callable[[], None]) -> Interrupt:
        """Delivering calls `function`, once per delivery. There is no event."""
        return cls(function, None)

    @classmethod
    def from_event(cls, fd: int, close: Callable[[int], None] | None = None) -> Interrupt:
        """Delivering signals this eventfd, which stays the caller's, or is closed with `close` by `disconnect`."""
        return cls(None, _SharedEvent(fd, close))

    @classmethod
    def null(cls) -> Interrupt:
        """Delivering does nothing until somebody asks for `event()`, which makes one."""
        return cls(None, _SharedEvent(-1, os.close))

    def deliver(self) -> None:
        """Deliver once, now."""
        if self._function is not None:
            self._function()
        elif self._shared is not None:
            self._shared.signal()

    def event(self) -> int | None:
        """The eventfd behind it, always the same one; None when a function is behind it, and after `disconnect`."""
        return None if self._shared is None else self._shared.get()

    def clone(self) -> Interrupt:
        """Another handle on the same backing."""
        return Interrupt(self._function, self._shared)

    def disconnect(self) -> None:
        """Let go of the eventfd, and close it where it is ours; delivering, through clones too, has no effect any more.

        One that is backed by a function is not affected.
        """
        if self._shared is not None:
            self._shared.close()

    @asynccontextmanager
    async def event_or_proxy(self) -> AsyncIterator[int]:
        """An eventfd that delivers this interrupt when it is signalled: its own, or one that lives as long as the block."""
        own = self.event()
        if own is not None:
            yield own
            return
        fd = os.eventfd(0, EVENTFD_FLAGS)
        errors: list[Exception] = []
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._forward, fd)
                try:
                    yield fd
                except Exception as error:  # not from within the group, which would wrap it
                    errors.append(error)
                group.cancel_scope.cancel()
            if drain_eventfd(fd):  # the last signal is never lost
                self.deliver()
        finally:
            os.close(fd)
        if errors:
            raise errors[0]

    async def _forward(self, fd: int) -> None:
        while True:
            await anyio.wait_readable(fd)
            if drain_eventfd(fd):
                self.deliver()


class _SharedEvent:
    """An eventfd that clones share; one that is ours is closed with the last of them at the latest."""

    __slots__ = ("_close", "_is_closed", "fd")

    def __init__(self, fd: int, close: Callable[[int], None] | None) -> None:
        self.fd = fd
        self._close = close
        self._is_closed = False

    def get(self) -> int | None:
        if self._is_closed:
            return None
        if self.fd < 0:
            self.fd = os.eventfd(0, EVENTFD_FLAGS)
        return self.fd

    def signal(self) -> None:
        if self.fd >= 0 and not self._is_closed:
            signal_eventfd(self.fd)

    def close(self) -> None:
        self._is_closed = True
        if self.fd >= 0 and self._close is not None:
            fd, self.fd = self.fd, -1
            self._close(fd)

    def __del__(self) -> None:
        self.close()
