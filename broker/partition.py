"""The partition: structured root of memory, processors, clock, port map and trace.

    async with Partition(PartitionConfig(vp_count=2)) as partition:
        access = partition.synic()
        run = partition.start(0, guest)

Consumers get `synic()`, guests their processor. All objects belong to one event loop. Leaving the block stops the
processors (a handler in flight finishes), closes every port and ends every wait; an exception that leaves it cancels.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Self

import anyio
import anyio.abc
import msgspec

from . import state as saved
from .access import SynicPortAccess
from .clock import MAX_TICK, Clock, VirtualClock
from .core import HypercallPage, ProcessorSynic
from .errors import ConfigurationError, HostError, PartitionClosed, SynicUnsupported, UnknownProcessor
from .hvdef import ALL_PRIVILEGES, OPENVMM, PAGE_SIZE, Profile, Vtl
from .memory import GuestMemory
from .processor import VirtualProcessor
from .runs import GuestCode, ProcessorRun, child_tasks
from .seeded_turns import SeededTurns
from .synic import (
    EmulatedSynic,
    HostPosts,
    HostSynic,
    Monitor,
    OffloadedSynic,
    SynicPortMap,
    SynicPorts,
    find_backend,
)
from .trace import Reset, Trace
from .turns import LiveTurns, Turns

Reflection = Callable[[int, int], Awaitable[bool]]
"""(processor, connection ID) of a call by VTL 0 to an unknown connection; True when VTL 2 saw to it."""


class PartitionConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a partition is made of. `ConfigurationError` from `Partition` for what cannot be."""

    vp_count: int = 1
    memory_size: int = 16 << 20
    """Bytes of guest RAM, a multiple of 4096; not looked at when `memory` is given."""
    memory: GuestMemory | None = None
    """Guest memory to use; it stays the caller's to close."""
    backend: str = "emulated"
    """A name from `broker.BACKENDS`."""
    profile: Profile = OPENVMM
    vtls: tuple[Vtl, ...] = (Vtl.VTL0,)
    quantum: int = 32
    """Exits after which a processor lets others have their turn."""
    message_queue_depth: int = 16
    """Messages that may wait for one SINT of one processor and VTL."""
    seed: int | None = None
    """Take turns, one task at a time, in an order drawn from this seed; None leaves it to the event loop. Processors and
    `serve_messages` have their places by themselves; tasks of your own that start together call `take_turn` first."""
    virtual_time: bool = False
    """Time stands still while anybody can go on, then jumps to the next timer. Takes turns (seed 0 where none is given)."""
    trace: Trace | None = None
    privileges: int = ALL_PRIVILEGES
    """The privilege mask that the TLFS profile checks (`Privilege`)."""
    host_synic: HostSynic | None = None
    """Where messages and events of proxied SINTs go, on a backend that has them."""


class Partition(anyio.AsyncContextManagerMixin):
    """See the module."""

    def __init__(self, config: PartitionConfig | None = None) -> None:
        self.config = config = config or PartitionConfig()
        self.backend = backend = find_backend(config.backend)
        _check(config)
        unknown = [int(vtl) for vtl in config.vtls if vtl not in backend.vtls]
        if unknown:
            allowed = ", ".join(str(int(vtl)) for vtl in backend.vtls)
            raise ConfigurationError(f"backend {backend.name} has VTL {allowed}; vtls asks for {unknown[0]} as well")
        self.vtls = config.vtls
        self.quantum = config.quantum
        self.queue_depth = config.message_queue_depth
        self.profile = (
            config.profile
            if backend.delivery is None
            else msgspec.structs.replace(config.profile, delivery=backend.delivery)
        )
        self.trace = config.trace
        self.trusts_posts = backend.trusted_posts
        self.host_synic = config.host_synic if backend.proxied_sints else None
        self.hypercall_page = HypercallPage()
        self.privileges = config.privileges
        self.memory: GuestMemory
        self.clock: Clock
        self.turns: Turns
        self.synic_backend: EmulatedSynic
        self._is_open = False
        self._was_opened = False
        self._runs: dict[int, ProcessorRun] = {}
        self._reflection: Reflection | None = None

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncIterator[Self]:
        if self._was_opened:
            raise HostError("a partition is used once; make a new one for the next block")
        self._was_opened = True
        errors: list[BaseException] = []
        self.memory = self.config.memory or GuestMemory(self.config.memory_size)
        try:
            async with anyio.create_task_group() as group:
                try:
                    self._open(group)
                    yield self
                    await self._stop_processors(self._end_waits)
                    await self.synic_backend.finish_handlers()
                except anyio.get_cancelled_exc_class():
                    raise
                except BaseException as error:  # not from within the group, which would wrap it
                    errors.append(error)
                finally:
                    group.cancel_scope.cancel()  # first, so that guest code ends by it and not by what closing raises
                    if self._is_open:
                        self._close()
        finally:
            if self.config.memory is None:
                self.memory.close()
        errors += filter(None, (run.unseen_error() for run in self._runs.values()))
        if errors:
            raise errors[0]

    def _open(self, group: anyio.abc.TaskGroup) -> None:
        config, backend = self.config, self.backend
        self._group = group
        self.clock = VirtualClock() if config.virtual_time else Clock(time.monotonic_ns)
        takes_turns = config.virtual_time or config.seed is not None
        self.turns = SeededTurns(self.clock, config.seed or 0) if takes_turns else LiveTurns(self.clock)
        if self.trace is not None:
            self.trace.bind(self.clock.now)
        self.port_map = SynicPortMap(self.turns, self.profile.wrong_kind, self.trace)
        self.monitor = None if backend.monitor == "none" else Monitor(self.memory, backend.monitor == "allocate")
        parts = (backend, self.port_map, self._locate, self.monitor, self.host_synic)
        self.synic_backend = OffloadedSynic(*parts, group) if backend.synic == "offloaded" else EmulatedSynic(*parts)
        self._access = SynicPorts(self.synic_backend)
        self._processors = [VirtualProcessor(index, self) for index in range(config.vp_count)]
        self._is_open = True
        group.start_soon(self.turns.run, name="turns")

    def _close(self) -> None:
        self._end_waits()
        self._is_open = False
        self.synic_backend.close()
        for processor in self._processors:
            processor.close()

    def _end_waits(self) -> None:
        """The partition is ending: no wait of a host's task or a handler may keep it from that."""
        self.turns.close()
        self.synic_backend.end_waits()
        for processor in self._processors:
            processor.end_posts()

    # what is handed out

    def synic(self) -> SynicPortAccess:
        """The one `SynicPortAccess`. `SynicUnsupported` if this backend has none."""
        if self.backend.synic == "none":
            raise SynicUnsupported(self.backend.refusal)
        self._check_open()
        return self._access

    def vp(self, vp_index: int) -> VirtualProcessor:
        """A processor. `UnknownProcessor` unless 0 <= vp_index < vp_count."""
        self._check_open()
        if not 0 <= vp_index < len(self._processors):
            raise UnknownProcessor(vp_index, len(self._processors))
        return self._processors[vp_index]

    def start(self, vp_index: int, guest: GuestCode) -> ProcessorRun:
        """Run `await guest(vp)` as that processor's task. `HostError` while it runs something else already; what its
        last guest code raised, if nobody has seen that yet."""
        processor = self.vp(vp_index)
        earlier = self._runs.get(vp_index)
        if earlier is not None and not earlier.is_over:
            raise HostError(f"processor {vp_index} runs guest code already; stop that run or wait for its end first")
        if earlier is not None and (error := earlier.unseen_error()) is not None:
            earlier.error_was_seen = True
            raise error
        run = self._runs[vp_index] = ProcessorRun(processor, guest, self.turns, self._group)
        self._group.start_soon(run.run, name=f"VP {vp_index}")
        return run

    # life

    async def reset(self) -> None:
        """Stop the processors and set the SynIC back to its first state. Ports stay registered.

        Whoever waits in `wait_reset` goes on before this returns.
        """
        self._check_open()
        task = anyio.get_current_task().id
        if any(run.is_task(task) for run in self._runs.values()):
            raise HostError(
                "guest code, or a handler in its exit, cannot reset its own partition; do it from another task"
            )
        await self._stop_processors(self._reset_waits)
        self.hypercall_page = HypercallPage()
        if self.trace is not None:
            self.trace.emit(Reset, cause=0, flow=0)
        for processor in self._processors:
            processor.reset()
        if self.monitor is not None:
            self.monitor.page.set_gpa(None)
        self.synic_backend.reset()
        await self.synic_backend.reset_heard()

    def save(self) -> bytes:
        """The whole SynIC state as a document, see `broker.state`. Call it while no processor runs guest code."""
        self._check_open()
        now = self.clock.now() & MAX_TICK
        return saved.encode(
            saved.PartitionState(
                profile=self.profile.name,
                memory_size=self.memory.size,
                queue_depth=self.queue_depth,
                now=now,
                hypercall_page=self.hypercall_page.save(),
                processors=[processor.save(now) for processor in self._processors],
                trace=None if self.trace is None else self.trace.save(),
                random=self.turns.save(),
            )
        )

    def restore(self, document: bytes) -> None:
        """Take over a saved state; what waited in its queues is delivered at once.

        `DamagedDocument`, `UnsupportedVersion`, or `ConfigurationError` when this partition is of another shape (number
        of processors, VTLs, memory, profile). Then nothing has changed. The monitor page stays as the consumer set it.
        """
        self._check_open()
        state = saved.decode(document)
        _check_shape(self, state)
        if state.random is not None:
            self.turns.restore(state.random)
        self.turns.set_clock(state.now)
        self.hypercall_page.restore(state.hypercall_page)
        for processor, processor_state in zip(self._processors, state.processors, strict=True):
            processor.restore(processor_state, state.now)
        if self.trace is not None and state.trace is not None:
            self.trace.restore(state.trace)
        self.synic_backend.reset()
        for processor in self._processors:
            processor.restored()

    async def sleep(self, ticks: int) -> None:
        """Wait for this many ticks of 100 ns of the reference counter."""
        await self.turns.sleep_until(self.clock.now() + ticks, ("sleep", 0))

    async def take_turn(self, number: int) -> None:
        """With a seed: take a place in the order under this number, and go on when chosen.

        Tasks that a task group starts at once arrive in an order that the event loop chooses; each gives its own number
        here first, and the seed decides from then on. Without a seed it lets others go on once.
        """
        await self.turns.expect(("task", number))()

    async def settled(self) -> None:
        """Wait until nobody can go on without time passing or an input from outside."""
        await self.turns.settled()

    def intercept_unknown_connections(self, reflection: Reflection | None) -> None:
        """Let VTL 2 see the calls of VTL 0 to unknown connections; the guest executes such a call again where
        `reflection` answers True. `SynicUnsupported` where the backend cannot."""
        if not self.backend.intercepts_unknown_connections:
            raise SynicUnsupported(f"backend {self.backend.name} has no intercept for unknown connections")
        self._reflection = reflection
        for processor in self._processors:
            processor.slow_down()

    # what processors ask for

    def machines(self, vp_index: int) -> Callable[[Vtl], ProcessorSynic | None] | None:
        """The SynICs of a processor by VTL, None where there is no such processor."""
        processor = self._processor(vp_index)
        return None if processor is None else processor.machine

    @property
    def intercepts_unknown(self) -> bool:
        """True while VTL 2 sees the calls of VTL 0 to unknown connections."""
        return self._reflection is not None

    async def reflect(self, vp_index: int, connection_id: int) -> bool:
        """Ask VTL 2 about a call to an unknown connection."""
        return self._reflection is not None and await self._reflection(vp_index, connection_id)

    def _locate(self, vp_index: int, vtl: int) -> HostPosts | None:
        processor = self._processor(vp_index)
        return None if processor is None else processor.posts(Vtl(vtl))

    def _processor(self, vp_index: int) -> VirtualProcessor | None:
        return self._processors[vp_index] if 0 <= vp_index < len(self._processors) else None

    def _reset_waits(self) -> None:
        """The partition is being reset: what waits for it to be, or to post into it, goes on."""
        self.synic_backend.reset()
        for processor in self._processors:
            processor.drop_waiting_posts()

    async def _stop_processors(self, wake: Callable[[], None]) -> None:
        """Stop all runs; a handler in flight finishes, and `wake` sees to it that it does not wait for this very stop."""
        runs = [self._runs[index] for index in sorted(self._runs) if not self._runs[index].is_over]
        children = child_tasks() if runs else {}
        for run in runs:
            run.stop(None if self.turns.one_at_a_time else children)
            if self.turns.one_at_a_time and not run.waits_for_handlers:
                await run.wait_over()
        wake()
        for run in runs:
            await run.wait_over()

    def _check_open(self) -> None:
        if not self._is_open:
            raise PartitionClosed("the partition is not open; use it within its `async with` block")


def _check(config: PartitionConfig) -> None:
    for name, value in (
        ("vp_count", config.vp_count),
        ("quantum", config.quantum),
        ("message_queue_depth", config.message_queue_depth),
    ):
        if value < 1:
            raise ConfigurationError(f"{name} is {value}; it has to be at least 1")
    if config.memory is None and (config.memory_size <= 0 or config.memory_size % PAGE_SIZE):
        raise ConfigurationError(
            f"memory_size is {config.memory_size}; it has to be a positive multiple of {PAGE_SIZE}"
        )
    if len(set(config.vtls)) < len(config.vtls):
        raise ConfigurationError("vtls names a VTL twice")
    if Vtl.VTL0 not in config.vtls:
        raise ConfigurationError("vtls has to name VTL 0")


def _check_shape(partition: Partition, state: saved.PartitionState) -> None:
    ours = (
        ("profile", partition.profile.name, state.profile),
        ("memory_size", partition.memory.size, state.memory_size),
        ("message_queue_depth", partition.queue_depth, state.queue_depth),
        ("vp_count", partition.config.vp_count, len(state.processors)),
        *(
            ("vtls", [int(vtl) for vtl in partition.vtls], [of_vtl.vtl for of_vtl in processor.vtls])
            for processor in state.processors
        ),
    )
    for name, here, there in ours:
        if here != there:
            raise ConfigurationError(f"the saved state is of a partition with {name} {there}; this one has {here}")
