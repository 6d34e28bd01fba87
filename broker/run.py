"""Plays a scenario (`channels.scenarios`) on a partition of its own and counts what happens."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import anyio

from channels.bus import Bus
from channels.faults import Fault, Faults
from channels.scenarios import GuestRun, Scenario, ScenarioFailed, Settings
from channels.scenarios.stage import GuestCode

from .access import SynicPortAccess, Turns
from .clock import TICKS_PER_SECOND
from .errors import BrokerError, ConfigurationError
from .hvdef import Profile
from .memory import GuestMemory
from .meter import ChannelTraffic, Meter
from .partition import Partition, PartitionConfig
from .processor import VirtualProcessor
from .runs import ProcessorRun
from .trace import Trace

PATIENCE = 60 * TICKS_PER_SECOND
"""How long a scenario may take that faults disturb."""
VIRTUAL_PATIENCE = 24 * 3600 * TICKS_PER_SECOND
"""How long one may take in virtual time: time jumps there at once when nobody can go on."""


@dataclass
class Report:
    """What has happened so far."""

    said: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    """How often each fault struck that was asked for."""
    channels: list[ChannelTraffic] = field(default_factory=list)
    """What went over each channel."""
    seconds: float | None = None
    """Of real time, where that is what counts."""
    ticks: int | None = None
    """Of virtual time, where there is some: the same on both loops."""
    failure: str | None = None
    """Why the scenario failed, None when it did not."""


class PartitionStage:
    """A `Stage` on a partition. `tell` is called after each change of the report."""

    def __init__(
        self,
        partition: Partition,
        settings: Settings,
        faults: Faults,
        meter: Meter,
        report: Report,
        tell: Callable[[Report], None],
    ) -> None:
        self.settings = settings
        self.access: SynicPortAccess = faults.access(partition.synic())
        self._partition = partition
        self._faults = faults
        self._meter = meter
        self._report = report
        self._tell = tell

    @property
    def memory(self) -> GuestMemory:
        """Guest memory."""
        return self._partition.memory

    def bus(self, server: Bus) -> Bus:
        """What devices are offered on."""
        return self._meter.bus(self._faults.bus(server))

    def start(self, vp_index: int, guest: GuestCode) -> GuestRun:
        """Run guest code on a processor."""

        async def on_processor(vp: VirtualProcessor) -> None:
            await guest(self._faults.guest(vp.guest_synic()))

        return _Run(self._partition.start(vp_index, on_processor))

    async def reset(self) -> None:
        """Reset the VM."""
        await self._partition.reset()

    def say(self, sentence: str) -> None:
        """Tell what has happened."""
        self._report.said.append(sentence)
        self._tell(self._report)

    def count(self, what: str, number: int = 1) -> None:
        """Add to a number of the summary."""
        counts = self._report.counts
        counts[what] = counts.get(what, 0) + number
        self._tell(self._report)


class _Run:
    def __init__(self, run: ProcessorRun) -> None:
        self._run = run

    async def wait(self) -> None:
        end = await self._run.wait()
        if end.fault is not None:
            raise end.fault


def find_scenario(name: str) -> Scenario:
    """The scenario that `module:name` names. `ConfigurationError` with a sentence when there is none."""
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ConfigurationError(f"{name} names no scenario; say module:name, as in channels.scenarios:echo")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the module does when it is imported
        reason = error if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        raise ConfigurationError(f"module {module_name} cannot be imported: {reason}") from error
    scenario = getattr(module, attribute, None)
    if not isinstance(scenario, Scenario):
        there = sorted(key for key, value in vars(module).items() if isinstance(value, Scenario))
        raise ConfigurationError(f"{module_name} has no scenario {attribute}; it has {', '.join(there) or 'none'}")
    return scenario


async def play(
    scenario: Scenario,
    settings: Settings,
    profile: Profile,
    backend: str,
    seed: int | None,
    trace: Trace | None = None,
    tell: Callable[[Report], None] = lambda report: None,
    faults: Sequence[Fault] = (),
) -> Report:
    """Play it once. With a seed: turn by turn and in virtual time, the same on both loops; without: live.

    In virtual time it has `VIRTUAL_PATIENCE`, with faults `PATIENCE`: that it does not end is the report's failure, and with
    faults so is what it ends with.
    """
    report = Report()
    config = PartitionConfig(
        vp_count=scenario.vp_count,
        memory_size=scenario.memory_size,
        profile=profile,
        backend=backend,
        seed=seed,
        virtual_time=seed is not None,
        trace=trace,
    )
    in_place, meter = Faults(faults, seed or 0), Meter()
    begin = time.perf_counter()
    try:
        async with Partition(config) as partition:
            report.channels = meter.channels
            stage = PartitionStage(partition, settings, in_place, meter, report, tell)
            patience = PATIENCE if faults else VIRTUAL_PATIENCE if seed is not None else None
            unit = "s" if seed is None else "s of virtual time"
            await _play_patiently(scenario, stage, partition.turns, patience, unit, report)
            if seed is not None:
                report.ticks = partition.clock.now()
    except Exception as error:
        leaves = list(_leaves(error))
        expected = (ScenarioFailed, BrokerError, OSError, *_STREAM_ERRORS) if faults else (ScenarioFailed,)
        says = next((leaf for leaf in leaves if isinstance(leaf, ScenarioFailed)), leaves[0])
        foreign = next((leaf for leaf in leaves if not isinstance(leaf, expected)), None) if faults else None
        if foreign is not None or not isinstance(says, expected):
            first = foreign or leaves[0]
            raise first from first.__cause__
        report.failure = str(says) or str(says.__cause__ or type(says).__name__)
    report.faults = {fault.name: in_place.struck[fault.name] for fault in faults}
    if seed is None:
        report.seconds = time.perf_counter() - begin
    return report


async def _play_patiently(
    scenario: Scenario, stage: PartitionStage, turns: Turns, patience: int | None, unit: str, report: Report
) -> None:
    if patience is None:
        await scenario.play(stage)
        return
    with anyio.CancelScope() as scope:
        limit = turns.schedule(turns.clock.now() + patience, ("patience", 0), scope.cancel)
        try:
            await scenario.play(stage)
        finally:
            limit.cancel()
    if scope.cancelled_caught:
        report.failure = f"after {patience // TICKS_PER_SECOND} {unit} somebody still waits for what does not come"


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """The exception that this is, or those that task groups of a scenario wrapped."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


_STREAM_ERRORS = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream)
