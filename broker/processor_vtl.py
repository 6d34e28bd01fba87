"""One VTL of a virtual processor: its SynIC machine, its interrupt sink, the host's posts to it and its timer.

The thin shell around the pure machines: gives them the time, arms the timer that they ask for, wakes who waits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import structlog

from . import trace as events
from .clock import MAX_TICK
from .core import LocalApic, ProcessorSynic, QueuedMessage
from .errors import PartitionClosed
from .hvdef import HvStatus, Vtl
from .parts import VtlParts
from .state import VtlState
from .synic import HostPosts, HostSynic
from .turns import Timer

_log = structlog.get_logger("broker")


class ProcessorVtl:
    """See the module. `on_interrupt` is called when one gets deliverable and none was, `on_work` when something waits for the
    guest to empty a slot."""

    __slots__ = (
        "_armed",
        "_clock",
        "_interrupts",
        "_is_closed",
        "_is_waiting",
        "_on_interrupt",
        "_on_work",
        "_rescans",
        "_timer",
        "_trace",
        "_turns",
        "_vp_index",
        "_wakeup",
        "_was_deliverable",
        "apic",
        "machine",
        "posts",
        "sint_users",
        "vtl",
    )

    def __init__(
        self,
        vp_index: int,
        vtl: Vtl,
        parts: VtlParts,
        on_interrupt: Callable[[Vtl], None],
        on_work: Callable[[], None],
    ) -> None:
        self.vtl = vtl
        self._vp_index = vp_index
        self._clock = parts.clock
        self._turns = parts.turns
        self._trace = parts.trace
        self._rescans = parts.profile.delivery.rescan_every_exit
        self._on_interrupt = on_interrupt
        self._on_work = on_work
        self._wakeup = parts.turns.wakeup(("vp", vp_index))
        self._interrupts = 0
        self._is_waiting = False
        self._is_closed = False
        self._was_deliverable = False
        self._timer: Timer | None = None
        self._armed: int | None = None
        self.sint_users: Counter[int] = Counter()
        """How many blocks of guest-side drivers use each SINT."""
        self.apic = LocalApic(self._interrupted)
        self.machine = ProcessorSynic(
            vp_index,
            int(vtl),
            parts.profile,
            self.apic,
            parts.memory.page,
            parts.queue_depth,
            parts.trace,
            room=self._room,
            proxied=None if parts.host_synic is None else self._to_host(parts.host_synic),
        )
        self.posts = HostPosts(vp_index, parts.turns, self.machine, self.rescan)

    @property
    def interrupts(self) -> int:
        """Counts up whenever an interrupt may have become deliverable."""
        return self._interrupts

    def rescan(self) -> None:
        """Deliver what can be delivered, and arm the timer anew."""
        now = self._now()
        self.machine.rescan(now)
        self._after_scan(now)

    def rescan_if_waiting(self) -> bool:
        """The rescan that every exit makes (OPENVMM); True while something still waits for the guest."""
        if self._is_waiting and self._rescans:
            self.rescan()
        return self._is_waiting and self._rescans

    def write_register(self, name: int, value: int) -> HvStatus:
        """See `ProcessorSynic.write_register`."""
        now = self._now()
        status = self.machine.write_register(name, value, now)
        self._after_scan(now)
        return status

    def take_interrupt(self) -> int | None:
        """Acknowledge the highest deliverable vector; the current task now works on what caused it."""
        vector = self.apic.acknowledge()
        self._was_deliverable = self.apic.deliverable() is not None
        if vector is not None and self._trace is not None:
            cause, flow = self.machine.teller.interrupts.get(vector, events.NO_CONTEXT)
            taken = self._trace.emit(
                events.Acknowledge, cause=cause, flow=flow, vp=self._vp_index, vtl=int(self.vtl), vector=vector
            )
            self._trace.work_on((taken, flow))
        return vector

    async def wait_interrupted(self, since: int) -> None:
        """Wait until `interrupts` is no longer `since`. `PartitionClosed` when the partition ends before."""
        while self._interrupts == since:
            if self._is_closed:
                raise PartitionClosed("the partition ended before an interrupt came")
            await self._wakeup.wait()

    def reset(self) -> None:
        """As a new processor."""
        self.machine.reset()
        self.posts.reset()
        self.apic.reset()
        self._after_scan(self._now())

    def close(self) -> None:
        """The partition ends: whoever waits gets `PartitionClosed`, or `PortClosed` for a post."""
        self._is_closed = True
        self._wakeup.notify()
        self.posts.close()
        if self._timer is not None:
            self._timer.cancel()

    def save(self, now: int) -> VtlState:
        """Everything of this VTL."""
        return VtlState(int(self.vtl), self.machine.save(now), [hex(value) for value in self.apic.save()])

    def restore(self, state: VtlState, now: int) -> None:
        """Take over what `save` returned; call `restored` when all processors have theirs."""
        self.apic.restore(tuple(int(value, 16) for value in state.interrupts))
        self.machine.restore(state.synic, now)
        self.posts.reset()
        if self._timer is not None:  # armed by the old clock
            self._timer.cancel()
        self._armed = self._timer = None

    def restored(self) -> None:
        """Deliver what waited in the saved state, arm the timer, tell who waits for an interrupt."""
        self._was_deliverable = self.apic.deliverable() is not None
        self.rescan()
        self._interrupted()

    def _now(self) -> int:
        return self._clock.now() & MAX_TICK

    def _interrupted(self) -> None:
        self._interrupts += 1
        self._wakeup.notify()
        is_deliverable = self.apic.deliverable() is not None
        if is_deliverable and not self._was_deliverable:
            self._on_interrupt(self.vtl)
        self._was_deliverable = is_deliverable

    def _room(self, sint: int) -> None:
        self.posts.fill(sint)

    def _to_host(self, host: HostSynic) -> Callable[[int, QueuedMessage], None]:
        def post(sint: int, message: QueuedMessage) -> None:
            try:
                host.post_message(self.vtl, self._vp_index, sint, message.message_type, message.payload)
            except Exception as error:
                _log.error("host_synic_failed", vp=self._vp_index, sint=sint, exc_info=error)
                self.machine.drop(sint, message, "the host's SynIC failed")

        return post

    def _after_scan(self, now: int) -> None:
        self._is_waiting = self.machine.has_work(now)
        if self._is_waiting and self._rescans:
            self._on_work()
        due = self.machine.timers.next_due(now)
        if due == self._armed:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._armed = due
        self._timer = None
        if due is not None:
            tick = self._clock.now() + ((due - now) & MAX_TICK)
            self._timer = self._turns.schedule(tick, ("timer", self._vp_index), self._timer_due)

    def _timer_due(self) -> None:
        self._armed = self._timer = None
        self.rescan()
