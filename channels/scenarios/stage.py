"""What a scenario is, and what it gets to play on.

A scenario is host devices and guest code under one name. It knows the SynIC through `SynicPortAccess` and `GuestSynic`
alone, so the same one runs live, under load, in lessons and in tests; whoever has a partition makes the `Stage`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol

import msgspec
from anyio.abc import TaskGroup

from broker.access import GuestSynic, SynicPortAccess, Turns
from broker.memory import GuestMemory

from ..bus import Bus
from ..devices import Device, serve_devices
from ..protocol.versions import Version
from ..server import VmbusServer

GuestCode = Callable[[GuestSynic], Awaitable[None]]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What may be asked of a scenario. `ValueError` for numbers below 1."""

    version: Version | None = None
    """The version that the guest asks for; all, newest first, where none is given."""
    packets: int = 1000
    payload: int = 240
    """Bytes of data in a packet."""
    channels: int = 3
    """Sub-channels, or devices, where the scenario has several."""
    rounds: int = 10

    def __post_init__(self) -> None:
        for name in ("packets", "payload", "channels", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1, not {getattr(self, name)}")


class GuestRun(Protocol):
    """Guest code on its way."""

    async def wait(self) -> None:
        """Wait until it has ended. What it raised is raised here; nothing when it was stopped by a reset."""
        ...


class Stage(Protocol):
    """A partition that is ready, and somebody who listens."""

    @property
    def settings(self) -> Settings:
        """What is asked for."""
        ...

    @property
    def access(self) -> SynicPortAccess:
        """For the host's side."""
        ...

    @property
    def memory(self) -> GuestMemory:
        """Guest memory."""
        ...

    def bus(self, server: Bus) -> Bus:
        """What devices are offered on: the server, and whoever looks, or disturbs, in between. See `serve`."""
        ...

    def start(self, vp_index: int, guest: GuestCode) -> GuestRun:
        """Run guest code on a processor."""
        ...

    async def reset(self) -> None:
        """Reset the VM: guest code is stopped, the SynIC is as new."""
        ...

    def say(self, sentence: str) -> None:
        """Tell what has happened."""
        ...

    def count(self, what: str, number: int = 1) -> None:
        """Add to a number of the summary."""
        ...


@asynccontextmanager
async def serve(stage: Stage, *devices: Device, **options: Any) -> AsyncIterator[VmbusServer]:
    """A VMBus server, made with these options, with these devices, while the block lasts."""
    async with (
        VmbusServer(stage.access, stage.memory, **options) as server,
        serve_devices(stage.bus(server), *devices),
    ):
        yield server


def start_task(group: TaskGroup, turns: Turns, number: int, work: Callable[[], Awaitable[None]]) -> None:
    """Start a task that takes its turns with all others of the partition; `number` tells those apart that start together."""
    begin = turns.expect(("scenario", number))

    async def run() -> None:
        try:
            await begin()
            await work()
        finally:
            turns.leave()

    group.start_soon(run)


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """A scenario: `play` goes through it once, and raises when something is not as it has to be."""

    about: str
    """One sentence."""
    play: Callable[[Stage], Awaitable[None]]
    vp_count: int = 1
    memory_size: int = 16 << 20


class Flag:
    """Something that happens once, for tasks of one partition to wait for."""

    def __init__(self, turns: Turns, number: int) -> None:
        self._wakeup = turns.wakeup(("flag", number))
        self._is_set = False

    def set(self) -> None:
        """It has happened."""
        self._is_set = True
        self._wakeup.notify()

    async def wait(self) -> None:
        """Wait until it has."""
        while not self._is_set:
            await self._wakeup.wait()


class ScenarioFailed(Exception):
    """Something was not as it has to be; the sentence says what."""


def expect(is_so: bool, sentence: str) -> None:
    """`ScenarioFailed` with this sentence unless it is so."""
    if not is_so:
        raise ScenarioFailed(sentence)
