"""What the benchmarks share: interleaved rounds, ratios with their range, goals, and the machine they ran on.

A machine that others use drifts by tens of per cent within seconds, so a ratio compares times of the same round: every
round times all contenders, in a shuffled order. The whole is repeated `REPETITIONS` times and the best of the medians
counts; the range is where 80 % of that repetition's rounds lie.
"""

from __future__ import annotations

import gc
import os
import platform
import random
import statistics
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime
from textwrap import indent
from time import perf_counter_ns
from typing import Any

import anyio
import click
import msgspec

REPETITIONS = 3
BACKENDS = ("asyncio", "trio")

Timed = Callable[[int], Awaitable[float]]
"""Makes this many calls and says how many nanoseconds one took."""
Round = dict[str, float]
"""Nanoseconds a call, by contender."""

_TIMED = """
async def timed(_calls, {names}):
    _start = _clock()
    for _ in range(_calls // {per}):
{statement}
    return (_clock() - _start) / _calls
"""


def timed(statement: str, names: dict[str, object], per: int = 1) -> Timed:
    """A contender that runs `statement`, which makes `per` calls, in a loop of its own; `names` are its local variables.

    Compiled from text, as `timeit` does, so that every contender has the same loop and no call around it.
    """
    namespace: dict[str, Any] = {**names, "_clock": perf_counter_ns}
    defaults = ", ".join(f"{name}={name}" for name in namespace)
    exec(_TIMED.format(names=defaults, per=per, statement=indent(statement, " " * 8)), namespace)
    contender: Timed = namespace["timed"]
    return contender


async def interleave(contenders: dict[str, Timed], rounds: int, calls: int) -> list[list[Round]]:
    """`REPETITIONS` times this many rounds of all contenders, after one round that does not count."""
    order = list(contenders)
    shuffled = random.Random(0)

    async def one_round() -> Round:
        shuffled.shuffle(order)
        return {name: await contenders[name](calls) for name in order}

    await one_round()
    return [[await one_round() for _ in range(rounds)] for _ in range(REPETITIONS)]


class Goal(msgspec.Struct, frozen=True):
    """A promise in numbers: `at_most` or `at_least` this much; with neither, only a figure for the reader."""

    number: str
    what: str
    at_most: float | None = None
    at_least: float | None = None
    unit: str = "x"

    @property
    def limit(self) -> str:
        """The limit in words."""
        if self.at_most is not None:
            return f"<= {self.at_most:.3g}"
        return "-" if self.at_least is None else f">= {self.at_least:.3g}"


class Result(msgspec.Struct, frozen=True):
    """What was measured against a goal: the best of the medians, and the range of that repetition."""

    loop: str
    goal: Goal
    measured: float
    low: float
    high: float
    met: bool | None

    @classmethod
    def best_of(cls, loop: str, goal: Goal, repetitions: Iterable[list[float]]) -> Result:
        """The best repetition; best is what the goal wants, the smallest where it wants nothing."""
        best = max if goal.at_least is not None else min
        values = sorted(best(repetitions, key=statistics.median))
        measured = statistics.median(values)
        margin = len(values) // 10
        low, high = values[margin], values[-1 - margin]
        met = None
        if goal.at_most is not None:
            met = measured <= goal.at_most
        if goal.at_least is not None:
            met = measured >= goal.at_least
        return cls(loop, goal, measured, low, high, met)


class Machine(msgspec.Struct, frozen=True):
    """Where figures come from; they mean nothing without it."""

    date: str
    processors: int
    load: float
    """Average of the last minute, before the run."""
    architecture: str
    system: str
    python: str
    optimize: int
    """The interpreter's -O."""
    gc: bool
    versions: dict[str, str]

    @classmethod
    def this(cls, *packages: str) -> Machine:
        """This machine and interpreter, now."""
        from importlib.metadata import version

        return cls(
            date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            processors=len(os.sched_getaffinity(0)),
            load=os.getloadavg()[0],
            architecture=platform.machine(),
            system=platform.system(),
            python=f"{platform.python_implementation()} {platform.python_version()}",
            optimize=sys.flags.optimize,
            gc=gc.isenabled(),
            versions={package: version(package) for package in packages},
        )

    def __str__(self) -> str:
        packages = ", ".join(f"{package} {version}" for package, version in self.versions.items())
        return (
            f"{self.date}: {self.processors} processors ({self.architecture}, {self.system}), load {self.load:.1f} before"
            f" the run; {self.python} (no debug mode, -O level {self.optimize}, gc {'on' if self.gc else 'off'}); {packages}"
        )


def expect(holds: bool, promise: str) -> None:
    """End the benchmark where it measures something else than it says."""
    if not holds:
        raise AssertionError(f"the figures would mean nothing, because this does not hold: {promise}")


def refuse_debug_modes() -> None:
    """End the program, with one sentence, where the interpreter or the event loop checks itself while it runs."""
    watched = "a trace or profile function" if sys.gettrace() or sys.getprofile() else None
    if not sys.flags.ignore_environment and os.environ.get("PYTHONASYNCIODEBUG"):
        watched = "PYTHONASYNCIODEBUG"
    if sys.flags.dev_mode:
        watched = "development mode (-X dev or PYTHONDEVMODE)"
    if watched is not None:
        raise click.ClickException(f"no figures: the interpreter runs under {watched}, which changes every ratio here.")


def render(results: list[Result]) -> str:
    """One table for people."""
    header = ("goal", "loop", "what", "measured", "range", "limit", "met")
    rows = [
        (
            result.goal.number,
            result.loop,
            result.goal.what,
            f"{_figure(result.measured)} {result.goal.unit}",
            f"{_figure(result.low)} - {_figure(result.high)}",
            result.goal.limit,
            {True: "yes", False: "NO", None: "-"}[result.met],
        )
        for result in results
    ]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = tuple("-" * width for width in widths)
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (header, rule, *rows)
    )
    return "\n".join(line.rstrip() for line in lines)


def _figure(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"


def program(
    measure: Callable[[str, int], Awaitable[list[Result]]],
    about: str,
    how: str,
    *,
    rounds: int,
    calls: int,
    packages: Sequence[str],
    loop: str = "both",
) -> click.Command:
    """The command line of a benchmark: `measure(loop, rounds)` on one loop or both, a table or JSON, missed goals.

    `how` says above the table what was done; `{}` in it stands for the number of rounds.
    """

    @click.command(help=about)
    @click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
    @click.option("--loop", "chosen", type=click.Choice((*BACKENDS, "both")), default=loop, show_default=True)
    @click.option("--rounds", "number", type=click.IntRange(1), default=rounds, show_default=True, help="Three times.")
    def main(as_json: bool, chosen: str, number: int) -> None:
        refuse_debug_modes()
        machine = Machine.this(*packages)
        loops = BACKENDS if chosen == "both" else (chosen,)
        results = [result for name in loops for result in anyio.run(measure, name, number, backend=name)]
        missed = sum(result.met is False for result in results)
        if as_json:
            document = {"machine": machine, "rounds": number, "calls": calls, "results": results, "missed": missed}
            click.echo(msgspec.json.format(msgspec.json.encode(document)))
        else:
            click.echo(f"{machine}\n{how.format(number)}\n\n{render(results)}\n\n{missed} goals missed")
        sys.exit(1 if missed else 0)

    return main
