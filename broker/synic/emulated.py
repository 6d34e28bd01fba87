"""The emulated backend: a user-mode SynIC in this program. Every guest call enters the port map, every host post and
signal goes straight to the processor's machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import structlog

from ..core import QueuedMessage, Signaled
from ..errors import PartitionClosed
from ..hvdef import Vtl
from ..interrupt import Interrupt
from ..trace import Drop
from .backend import Backend, GuestEventTarget, HostEventPort, HostSynic, SignalHandler
from .host_posts import HostPosts, WaitingPost
from .monitor import Monitor
from .port_map import RegisteredPort, SynicPortMap

_log = structlog.get_logger("broker")


class EmulatedSynic:
    """`locate(vp, vtl)` gives a processor's front door, None where there is none."""

    def __init__(
        self,
        backend: Backend,
        port_map: SynicPortMap,
        locate: Callable[[int, int], HostPosts | None],
        monitor: Monitor | None,
        host: HostSynic | None = None,
    ) -> None:
        self.backend = backend
        self.port_map = port_map
        self.monitor = monitor
        self.undeliverable = 0
        """Messages for processors or VTLs that do not exist, dropped."""
        self.handle_signal_event: SignalHandler = port_map.handle_signal_event
        """A guest's signal goes to the port map, without a step in between."""
        self._locate = locate
        self._host = host
        self._generation = 0
        self._is_open = True
        self._changed = port_map.turns.wakeup(("reset", 0))
        self._waiting: Counter[int] = Counter()
        """Who waits for a reset, by the generation in which the wait began."""
        self._heard = port_map.turns.wakeup(("reset heard", 0))

    @property
    def prefer_os_events(self) -> bool:
        """True: consumers had better hand in eventfds."""
        return self.backend.prefer_os_events

    def new_host_event_port(self, port: RegisteredPort, os_event: int | None) -> HostEventPort | None:
        """No eventfds here: every event port is dispatched."""
        return None

    def try_post(self, vtl: Vtl, vp: int, sint: int, message: QueuedMessage) -> bool:
        """Queue a message; False when there is no room. One for an unknown processor is dropped and counted."""
        posts = self._posts(vtl, vp, sint, message)
        return posts is None or posts.try_post(sint, message)

    async def post(self, vtl: Vtl, vp: int, sint: int, message: QueuedMessage, owned: set[WaitingPost]) -> None:
        """The same, waiting for room."""
        posts = self._posts(vtl, vp, sint, message)
        if posts is not None:
            await posts.post(sint, message, owned)

    def new_guest_event(self, target: GuestEventTarget) -> Interrupt:
        """Backed by a function that sets the flag."""
        return Interrupt.from_function(_Delivery(self, target))

    def signal(self, target: GuestEventTarget) -> None:
        """Set the flag that the target points at now. Nothing happens for what does not exist or is closed."""
        posts = self._locate(target.vp, target.vtl) if target.is_open and self._is_open else None
        if posts is None:
            return
        if posts.machine.signal_event(target.sint, target.flag) is Signaled.PROXIED and self._host is not None:
            try:
                self._host.signal_event(target.vtl, target.vp, target.sint, target.flag)
            except Exception as error:
                _log.error("host_synic_failed", vp=target.vp, sint=target.sint, exc_info=error)

    async def wait_reset(self) -> None:
        """Return when the partition is reset, gets new memory, or ends."""
        generation = self._generation
        if not self._is_open:
            await self.port_map.turns.pause()  # a consumer that does not look why it returned must not spin
        self._waiting[generation] += 1
        try:
            while self._is_open and self._generation == generation:
                await self._changed.wait()
        finally:
            self._waiting[generation] -= 1
            self._heard.notify()

    async def reset_heard(self) -> None:
        """Wait until everybody who waited for a reset goes on: what guests do after it comes later."""
        while any(count for generation, count in self._waiting.items() if generation != self._generation):
            await self._heard.wait()
        self._waiting = +self._waiting

    def reset(self) -> None:
        """The partition was reset."""
        self._generation += 1
        self._changed.notify()

    async def finish_handlers(self) -> None:
        """Wait until no handler runs but in the exits of processors: none does here."""

    def end_waits(self) -> None:
        """The partition is ending: registrations and posts raise `PartitionClosed`, signals do nothing."""
        self._is_open = False
        self._changed.notify()

    def close(self) -> None:
        """The partition has ended: ports close."""
        self.end_waits()
        self.port_map.close()

    def check_open(self) -> None:
        """`PartitionClosed` once the partition ends."""
        if not self._is_open:
            raise PartitionClosed("the partition has ended; register and post while its block runs")

    def _posts(self, vtl: Vtl, vp: int, sint: int, message: QueuedMessage) -> HostPosts | None:
        self.check_open()
        posts = self._locate(vp, vtl)
        if posts is None:
            self.undeliverable += 1
            trace = self.port_map.trace
            if trace is not None:
                trace.emit(
                    Drop,
                    flow=message.flow,
                    vp=vp,
                    vtl=int(vtl),
                    sint=sint,
                    message_type=message.message_type,
                    reason="no such processor",
                )
        return posts


class _Delivery:
    """Signals one target. There is one for each open channel, and a closure weighs six times as much."""

    __slots__ = ("_synic", "_target")

    def __init__(self, synic: EmulatedSynic, target: GuestEventTarget) -> None:
        self._synic = synic
        self._target = target

    def __call__(self) -> None:
        self._synic.signal(self._target)
