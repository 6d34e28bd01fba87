"""A run: guest code as a processor's task, how it is stopped, and how it ended."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import CoroutineType
from typing import Literal

import anyio
import anyio.abc
import msgspec
import structlog

from .errors import GuestFault
from .processor import VirtualProcessor
from .synic import CalledPort, ports_in_flight, ports_on_the_stack
from .turns import Turns

GuestCode = Callable[[VirtualProcessor], Awaitable[object]]

Children = dict[int, list[anyio.TaskInfo]]
"""Tasks by the id of the task that started them."""

_log = structlog.get_logger("broker")


class RunEnd(msgspec.Struct, frozen=True):
    """How a run ended: finished (the guest code returned `result`), faulted (`fault` says why), or stopped."""

    how: Literal["finished", "faulted", "stopped"]
    result: object = None
    fault: GuestFault | None = None


def child_tasks() -> Children:
    """The tasks of this event loop by parent."""
    children: Children = {}
    for task in anyio.get_running_tasks():
        if task.parent_id is not None:
            children.setdefault(task.parent_id, []).append(task)
    return children


class ProcessorRun:
    """One run of guest code; `partition.start` makes it."""

    def __init__(self, processor: VirtualProcessor, guest: GuestCode, turns: Turns, group: anyio.abc.TaskGroup) -> None:
        self.processor = processor
        self.error: BaseException | None = None
        """What the guest code raised, unless that is a guest fault."""
        self.error_was_seen = False
        self._guest = guest
        self._turns = turns
        self._group = group
        self._scope = anyio.CancelScope()
        self._stopping = False
        self._code: Awaitable[object] | None = None
        """The guest code while it runs."""
        self._task_id: int | None = None
        self._end: RunEnd | None = None
        self._ended = turns.wakeup(("run", processor.index))
        self._begin = turns.expect(("vp", processor.index))

    @property
    def is_over(self) -> bool:
        """True once the guest code has ended."""
        return self._end is not None or self.error is not None

    def unseen_error(self) -> BaseException | None:
        """What the guest code raised and no `wait` has passed on yet."""
        return None if self.error_was_seen else self.error

    async def wait(self) -> RunEnd:
        """Wait until the guest code has ended and say how.

        An exception of the guest code that is no guest fault is a mistake of its author and is raised here; when nobody
        waits, it is raised where the partition ends.
        """
        await self.wait_over()
        if self.error is not None:
            self.error_was_seen = True
            raise self.error
        assert self._end is not None
        return self._end

    async def wait_over(self) -> None:
        """Wait until the guest code has ended, however."""
        while not self.is_over:
            await self._ended.wait()

    @property
    def waits_for_handlers(self) -> bool:
        """True while a stop waits for handlers to finish."""
        return self._stopping and not self.is_over and not self._scope.cancel_called

    def is_task(self, task_id: int) -> bool:
        """Is this the task that runs the guest code?"""
        return self._task_id == task_id

    def stop(self, children: Children | None = None) -> None:
        """End the run at its next exit or wait. Handlers that run in its exits finish first. Idempotent.

        `children`: the tasks of this event loop by parent, where the caller has looked at them already.
        """
        if self._stopping or self.is_over:
            return
        self._stopping = True
        if not self._ports_in_flight(children):
            self._scope.cancel()
            return
        self.processor.stop_requested = self._stop_at_exit
        self.processor.slow_down()
        self._group.start_soon(self._stop_after_handlers)

    async def run(self) -> None:
        """The task: runs the guest code in its scope and notes how it ended."""
        end: RunEnd | None = None
        try:
            with self._scope:
                await self._begin()
                self._task_id = anyio.get_current_task().id
                self._code = self._guest(self.processor)
                end = RunEnd("finished", await self._code)
        except (KeyboardInterrupt, SystemExit, GeneratorExit, anyio.get_cancelled_exc_class()):
            raise
        except BaseException as error:
            fault = _only_fault(error)
            if fault is not None:
                end = RunEnd("faulted", fault=fault)
                _log.info("processor_faulted", vp=self.processor.index, reason=str(fault))
            else:
                self.error = error
                _log.error("guest_code_failed", vp=self.processor.index, exc_info=error)
        finally:
            if self.error is None:
                self._end = end or RunEnd("stopped")
            self._code = self._task_id = None
            self.processor.stop_requested = None
            self._ended.notify()
            self._turns.leave()

    def _stop_at_exit(self) -> None:
        """An exit while stopping: the run's own ends it, another task's leaves the handlers in flight alone."""
        if not self._ports_in_flight():
            self._scope.cancel()

    async def _stop_after_handlers(self) -> None:
        while ports := self._ports_in_flight():
            await ports[0].wait_finished()
        self._scope.cancel()

    def _ports_in_flight(self, children: Children | None = None) -> list[CalledPort]:
        """The ports whose handlers run in exits of the guest code's task, or of tasks that it started."""
        if self._task_id is None:
            return []
        children = child_tasks() if children is None else children
        is_running = isinstance(self._code, CoroutineType) and self._code.cr_running
        ports = ports_on_the_stack() if is_running else ports_in_flight(self._code)
        family = list(children.get(self._task_id, ()))
        while family:
            task = family.pop()
            ports += ports_in_flight(task.coro)
            family += children.get(task.id, ())
        return ports


def _only_fault(error: BaseException) -> GuestFault | None:
    """The guest fault that this is, or that a task group of the guest code wrapped; None for anything else."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error if isinstance(error, GuestFault) else None
