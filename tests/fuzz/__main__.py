"""Fuzzes decoders, machines and rings, and prints what it did; exit status 1 when anything was found.

    python -m tests.fuzz [--seconds 60] [--target NAME ...] [--seed N] [--json] [--corpus DIR] [--engine auto|atheris|plain]
    python -m tests.fuzz --target NAME --replay FILE

The seconds are shared: with two processors and some forty targets, 60 seconds are a good three for each, start included.
Failing inputs are kept in a folder of the system's temporary directory; without any, nothing is left behind.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from time import monotonic

import click
import msgspec

from .child import ATHERIS, PLAIN, Task, best_engine
from .failures import Failure, read_failures
from .targets import TARGETS, find_target

ROOT = Path(__file__).parents[2]
SECONDS = 60.0
PATIENCE = 120
"""Seconds that a child may take beyond its own, to start and to stop."""
_LOG = "log"
_EXECUTIONS = re.compile(r"^stat::number_of_executed_units: (\d+)", re.MULTILINE)
_COVERAGE = re.compile(r"\bcov: (\d+)")
_CORPUS = re.compile(r"\bcorp: (\d+)")


class Report(msgspec.Struct, frozen=True):
    """What became of one target. `coverage`: edges of the instrumented code, None for an engine that does not look."""

    target: str
    engine: str
    executions: int
    per_second: float
    coverage: int | None
    corpus: int
    failures: list[Failure]


def run_child(engine: str, seconds: float, seed: int, folder: Path, corpus: Path | None, name: str) -> Report:
    """Fuzz one target in a process of its own, with what it writes in a folder of its own."""
    own = folder / name.replace(":", "-")
    kept = own / "corpus" if corpus is None else corpus.resolve() / own.name
    own.mkdir()
    kept.mkdir(parents=True, exist_ok=True)
    task = Task(name, engine, seconds, seed, str(own), str(kept))
    command = [sys.executable, "-m", "tests.fuzz.child", msgspec.json.encode(task).decode()]
    began = monotonic()
    with (own / _LOG).open("wb") as log:
        try:
            status = subprocess.run(
                command, cwd=ROOT, stdout=log, stderr=log, timeout=seconds + PATIENCE, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            status = None
    return read_report(name, engine, own, status, monotonic() - began)


def read_report(name: str, engine: str, own: Path, status: int | None, took: float) -> Report:
    """What a child has left behind. One that was ended by anything but its time is a failure by itself."""
    log = (own / _LOG).read_text(errors="replace")
    failures = read_failures(own)
    counted, coverage, corpus = _EXECUTIONS.findall(log), _COVERAGE.findall(log), _CORPUS.findall(log)
    if status != 0 or not counted:
        inputs = [str(file) for file in own.iterdir() if file.name.startswith(("crash-", "timeout-", "oom-", "slow-"))]
        ending = f"did not end within {took:.0f} s" if status is None else f"ended with status {status}"
        failures.append(Failure(f"the process {ending}; its last words are in {own / _LOG}", next(iter(inputs), "")))
    executions = int(counted[-1]) if counted else 0
    return Report(
        name,
        engine,
        executions,
        executions / took,
        int(coverage[-1]) if coverage else None,
        int(corpus[-1]) if corpus else 0,
        failures,
    )


def render(reports: list[Report]) -> str:
    """One table for people."""
    header = ("target", "engine", "executions", "per second", "coverage", "corpus", "failures")
    rows = [
        (
            report.target,
            report.engine,
            str(report.executions),
            f"{report.per_second:.0f}",
            "-" if report.coverage is None else str(report.coverage),
            str(report.corpus),
            str(len(report.failures)),
        )
        for report in reports
    ]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = tuple("-" * width for width in widths)
    lines = []
    for row in (header, rule, *rows):
        left = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join((*left, *right)))
    return "\n".join(lines)


def reproduction(report: Report, failure: Failure) -> str:
    """The command that shows it again."""
    return f"python -m tests.fuzz --target {report.target} --replay {failure.file}"


def replay(name: str, file: Path) -> None:
    """Run one input; what it raises goes to the user."""
    find_target(name).run(file.read_bytes())
    click.echo(f"{name} takes {file}: nothing is raised")


@click.command()
@click.option("--seconds", type=click.FloatRange(0.1), default=SECONDS, show_default=True, help="For all targets.")
@click.option("--target", "names", multiple=True, metavar="NAME", help="One of these only; may be repeated.")
@click.option("--seed", type=click.IntRange(1), help="Of the random choices; drawn and printed if not given.")
@click.option("--engine", type=click.Choice(("auto", ATHERIS, PLAIN)), default="auto", show_default=True)
@click.option("--corpus", type=click.Path(file_okay=False, path_type=Path), help="Inputs to go on from, and to add to.")
@click.option("--replay", "replayed", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--verbose", is_flag=True, help="Print what each engine says, too.")
def main(
    seconds: float,
    names: tuple[str, ...],
    seed: int | None,
    engine: str,
    corpus: Path | None,
    replayed: Path | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Fuzz decoders, machines and rings."""
    if not __debug__:
        raise click.ClickException("targets are made of assertions, which -O takes away; run it without")
    try:
        chosen = [find_target(name).name for name in names] or list(TARGETS)
    except LookupError as error:
        raise click.UsageError(str(error.args[0])) from None
    if replayed is not None:
        if len(chosen) != 1 or not names:
            raise click.UsageError("--replay takes one --target")
        replay(chosen[0], replayed)
        return
    engine = best_engine() if engine == "auto" else engine
    if engine == ATHERIS and best_engine() != ATHERIS:
        raise click.UsageError("atheris is not installed here")
    seed = random.randrange(1, 1 << 31) if seed is None else seed
    jobs = min(len(os.sched_getaffinity(0)), len(chosen))
    folder = Path(tempfile.mkdtemp(prefix="vmbus-fuzz-"))
    with ThreadPoolExecutor(jobs) as pool:
        child = partial(run_child, engine, seconds * jobs / len(chosen), seed, folder, corpus)
        reports = list(pool.map(child, chosen))
    failed = any(report.failures for report in reports)
    if verbose:
        for log in sorted(folder.glob(f"*/{_LOG}")):
            click.echo(f"{log.parent.name}:\n{log.read_text(errors='replace')}", err=True)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode({"seed": seed, "seconds": seconds, "reports": reports})))
    else:
        click.echo(f"{len(chosen)} targets, {seconds:g} s on {jobs} processors, seed {seed}\n\n{render(reports)}\n")
        if engine == PLAIN:
            click.echo("plain: atheris is not used, so inputs are changed at random, without regard to coverage")
        for report in reports:
            for failure in report.failures:
                click.echo(f"\n{report.target}: {failure.exception}\n  {failure.file or 'no input was kept'}")
                click.echo(f"  {reproduction(report, failure)}" if failure.file else "")
        click.echo(f"{sum(len(report.failures) for report in reports)} failures")
    if failed:
        sys.exit(1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
