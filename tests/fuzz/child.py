"""Fuzzes one target and ends: `python -m tests.fuzz.child` with a `Task` as JSON, from `tests.fuzz` alone.

atheris ends the process by itself and counts in global state; that is why each target has a process of its own. Both
engines write to standard error what libFuzzer does: a line with cov and corp, and the number of executions.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from time import monotonic

import msgspec

INSTRUMENTED = ["channels", *(f"broker.{name}" for name in ("hvdef", "memory", "replay", "state", "trace"))]
"""Where coverage counts."""
MEMORY = 1024
"""MiB that a child may use."""
SLOW = 10
"""Seconds that one input may take."""
ATHERIS, PLAIN = "atheris", "plain"


class Task(msgspec.Struct, frozen=True):
    """What a child is to do; `seconds` include the start. `folder` is its own, `corpus` a folder that may outlive it."""

    target: str
    engine: str
    seconds: float
    seed: int
    folder: str
    corpus: str


def best_engine() -> str:
    """atheris where it is installed."""
    return ATHERIS if find_spec(ATHERIS) is not None else PLAIN


def main() -> None:
    """See the module."""
    began = monotonic()
    task = msgspec.json.decode(sys.argv[1], type=Task)
    run = _run_atheris if task.engine == ATHERIS else _run_plain
    run(task, began)


def _run_atheris(task: Task, began: float) -> None:
    import atheris  # type: ignore[import-untyped, import-not-found, unused-ignore]

    with atheris.instrument_imports(include=INSTRUMENTED):
        from .failures import Watch
        from .targets import find_target

        target = find_target(task.target)
    seeds = Path(task.folder) / "seeds"
    seeds.mkdir()
    for index, seed in enumerate(target.seeds()):
        (seeds / f"{index:04}").write_bytes(seed)
    arguments = [
        f"-max_total_time={max(1, round(task.seconds - (monotonic() - began)))}",
        f"-seed={task.seed}",
        f"-max_len={target.longest}",
        f"-rss_limit_mb={MEMORY}",
        f"-timeout={SLOW}",
        f"-artifact_prefix={task.folder}/",
        "-print_final_stats=1",
        "-reload=0",
        task.corpus,
        str(seeds),
    ]
    atheris.Setup([sys.argv[0], *arguments], Watch(target.run, Path(task.folder)))
    atheris.Fuzz()


def _run_plain(task: Task, began: float) -> None:
    from .failures import Watch
    from .plain import mutations
    from .targets import find_target

    target = find_target(task.target)
    limit = MEMORY << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.signal(signal.SIGALRM, _too_slow)
    kept = sorted(Path(task.corpus).iterdir())
    seeds = [*target.seeds(), *(file.read_bytes() for file in kept)]
    watch = Watch(target.run, Path(task.folder))
    end, count = began + task.seconds, 0
    current = Path(task.folder) / "crash-current"
    file = os.open(current, os.O_WRONLY | os.O_CREAT, 0o644)
    for data in chain(seeds, mutations(seeds, task.seed, target.longest)):
        if count >= len(seeds) and monotonic() >= end:
            break
        os.ftruncate(file, os.pwrite(file, data, 0))  # left behind should the process be ended
        signal.alarm(SLOW)
        watch(data)
        signal.alarm(0)
        count += 1
    current.unlink()
    print(f"#{count}\tDONE   corp: {len(seeds)}", file=sys.stderr)
    print(f"stat::number_of_executed_units: {count}", file=sys.stderr)


def _too_slow(*_: object) -> None:
    raise TimeoutError(f"an input takes more than {SLOW} s")


if __name__ == "__main__":
    main()
