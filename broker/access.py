"""THE CONTRACT: all that a consumer of the SynIC ever sees of a partition.

A consumer (a VMBus server, a device, any port handler) holds a `SynicPortAccess` and nothing else. It registers ports,
which guests post and signal to, and makes guest ports, through which it posts and signals to guests. The same consumer
runs over a user-mode SynIC, an offloaded one, another process, or another machine.

Statuses are what the guest sees; exceptions are what the host's code did wrong. Connection IDs are 32 bits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Protocol, Self

import msgspec

from .hvdef import MONITOR_COUNT, HvStatus, SynicMessage, Vtl
from .interrupt import Interrupt
from .memory import GuestMemory
from .trace import Trace
from .turns import Turns, Wakeup

__all__ = [
    "EventPort",
    "GuestEventPort",
    "GuestMessagePort",
    "GuestSynic",
    "Interrupt",
    "MessagePort",
    "MonitorInfo",
    "MonitorPageGpas",
    "PortHandle",
    "SynicMonitorAccess",
    "SynicPortAccess",
    "Turns",
    "Wakeup",
]


class MessagePort(Protocol):
    """What a consumer implements to receive messages."""

    async def handle_message(self, message: bytes, trusted: bool) -> HvStatus:
        """Take one message of 0 to 240 bytes; the answer is the status of the guest's hypercall.

        Runs in the posting processor's exit. SUCCESS: the message is taken. INSUFFICIENT_BUFFERS: nothing was kept and
        the guest may try again. Any other `HvStatus` passes through. An exception is logged, counted and answered
        OPERATION_FAILED, and so is an answer that is no `HvStatus`. May be entered again by another processor while
        an earlier call is suspended. `trusted`: the message came over a path that the host cannot see or change.
        """
        ...


class EventPort(Protocol):
    """What a consumer implements to receive events."""

    async def handle_event(self, flag: int) -> None:
        """Note that a flag was signalled. The guest's status is SUCCESS whatever happens to it here, but for an
        exception: that is logged, counted and answered OPERATION_FAILED."""
        ...


class PortHandle(ABC):
    """A registered port: it lives until it is closed or the partition ends. Leaving a `with` block closes it, leaving
    an `async with` block also waits for its handlers."""

    __slots__ = ()

    @abstractmethod
    def close(self) -> None:
        """Unregister at once and drop what is undelivered; idempotent. A handler that runs goes on."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close, then wait until no handler of this port runs any more.

        `CalledFromOwnHandler` from within its own handler (not from a task that the handler waits for: that would wait
        for ever); the port is unregistered all the same, also when the wait is cancelled.
        """

    @abstractmethod
    def on_close(self, step: Callable[[], None]) -> None:
        """Call `step` when the port closes, after the steps given later."""

    @property
    @abstractmethod
    def turns(self) -> Turns:
        """Where tasks that serve this port wait."""

    @property
    @abstractmethod
    def trace(self) -> Trace | None:
        """The trace that this port's messages carry their flow in, None when off."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


class GuestMessagePort(Protocol):
    """The host's handle towards one SINT of one processor, for messages. Order is kept per (VP, VTL, SINT)."""

    def try_post_message(self, message_type: int, payload: bytes) -> bool:
        """Queue a message. False when the queue is full or somebody waits in `post_message`.

        `ValueError` for a payload over 240 bytes or message type 0; `PortClosed` after `close`. A message that the
        rules then drop (masked SINT, no such processor, reset) counts as posted; the loss is counted and traced.
        """
        ...

    async def post_message(self, message_type: int, payload: bytes) -> None:
        """Queue a message, waiting for room. Errors as above; `PortClosed` also when closed while waiting."""
        ...

    async def set_target_vp(self, vp: int) -> None:
        """Later posts go to this processor; those that wait already do not move. The index is not checked here."""
        ...

    def close(self) -> None:
        """No more posts; what is queued is still delivered. Idempotent."""
        ...


class GuestEventPort(Protocol):
    """The host's handle towards one event flag of one processor."""

    def interrupt(self) -> Interrupt:
        """What sets the flag now when delivered, and never waits. It follows `set_target_vp`."""
        ...

    async def set_target_vp(self, vp: int) -> None:
        """Signals go to this processor from now on. An index that does not exist is not signalled."""
        ...

    def close(self) -> None:
        """Signals have no effect any more. Idempotent."""
        ...


class MonitorInfo(msgspec.Struct, frozen=True):
    """A monitored notification for an event port: its monitor, and how late it may be noticed, in ticks of 100 ns.

    `ValueError` for a monitor outside 0 to 127.
    """

    monitor_id: int
    latency_ticks: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.monitor_id < MONITOR_COUNT:
            raise ValueError(f"monitor {self.monitor_id} does not exist, monitors are 0 to {MONITOR_COUNT - 1}")


class MonitorPageGpas(msgspec.Struct, frozen=True):
    """Where the two monitor pages are, GPAs in bytes; 0 where there is none."""

    parent_to_child: int
    child_to_parent: int


class SynicMonitorAccess(Protocol):
    """Monitored notifications, where the backend has them."""

    async def set_monitor_page(self, vtl: Vtl, pages: MonitorPageGpas | None) -> None:
        """Watch this child-to-parent page (page-aligned, else `ValueError`), or none."""
        ...

    async def allocate_monitor_page(self, vtl: Vtl) -> MonitorPageGpas | None:
        """A page of the partition's own, watched from now on, where the backend can (parent_to_child is 0), else None."""
        ...


class SynicPortAccess(Protocol):
    """What a consumer holds. Registration is async because the partition may live elsewhere; in-process it does not wait."""

    @property
    def prefer_os_events(self) -> bool:
        """True: hand in an eventfd as `os_event` where you can."""
        ...

    @property
    def monitor_support(self) -> SynicMonitorAccess | None:
        """Monitored notifications, None where the backend has none."""
        ...

    async def add_message_port(self, connection_id: int, minimum_vtl: Vtl, port: MessagePort) -> PortHandle:
        """Register a message port. `ConnectionIdInUse` when the ID has a port of either kind; that one is untouched."""
        ...

    async def add_event_port(
        self,
        connection_id: int,
        minimum_vtl: Vtl,
        port: EventPort,
        monitor_info: MonitorInfo | None = None,
        *,
        os_event: int | None = None,
    ) -> PortHandle:
        """Register an event port, all of it or nothing.

        `os_event`: an eventfd that the backend may signal instead of calling the port, for flag 0; it stays the
        caller's. `monitor_info` is ignored where there is no monitor support. `ConnectionIdInUse`, `MonitorIdInUse`,
        `ValueError` when `os_event` is no eventfd.
        """
        ...

    async def new_guest_message_port(self, vtl: Vtl, vp: int, sint: int) -> GuestMessagePort:
        """A way to post messages. `ValueError` unless 0 <= sint <= 15; SINT 0 is the hypervisor's by convention only."""
        ...

    async def new_guest_event_port(
        self, port_id: int, vtl: Vtl, vp: int, sint: int, flag: int, monitor_info: MonitorInfo | None = None
    ) -> GuestEventPort:
        """A way to set an event flag. `ValueError` unless 0 <= sint <= 15 and 0 <= flag <= 2047."""
        ...

    async def wait_reset(self) -> None:
        """Return when the partition is reset, gets new memory, or ends."""
        ...


class GuestSynic(Protocol):
    """What a guest-side driver holds: one processor and VTL, local or attached from another process."""

    @property
    def memory(self) -> GuestMemory:
        """Guest memory."""
        ...

    @property
    def vp_index(self) -> int:
        """The processor."""
        ...

    @property
    def vtl(self) -> Vtl:
        """The virtual trust level."""
        ...

    @property
    def turns(self) -> Turns:
        """Where guest-side tasks of this processor wait."""
        ...

    @property
    def trace(self) -> Trace | None:
        """The trace that guest-side events join, None when off."""
        ...

    async def write_memory(self, gpa: int, data: bytes) -> None:
        """A store by guest code that a monitor page notices; other stores may go to `memory` directly.

        `GuestFault` for addresses outside guest memory.
        """
        ...

    async def post_message(self, connection_id: int, message_type: int, payload: bytes) -> HvStatus:
        """HvCallPostMessage."""
        ...

    async def signal_event(self, connection_id: int, flag_number: int = 0) -> HvStatus:
        """HvCallSignalEvent."""
        ...

    def messages(self, sint: int, *, eom: bool = True) -> AbstractAsyncContextManager[AsyncIterator[SynicMessage]]:
        """Program the SynIC for this SINT, then iterate its messages: copy, clear the type, EOM if pending, as Linux does.

        Without `eom` that is left to the caller. Leaving the last block of a SINT masks it again.
        """
        ...

    async def end_of_message(self) -> None:
        """EOM: what waits for a slot is looked at again."""
        ...

    def events(self, sint: int) -> AbstractAsyncContextManager[AsyncIterator[set[int]]]:
        """The same for event flags: each step is the set of flags that were signalled, tested and cleared."""
        ...
