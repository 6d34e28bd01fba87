"""What the commands share: options, event loops, traces, and how things are printed."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..hvdef import PROFILES
from ..synic import BACKENDS

if TYPE_CHECKING:
    from rich.console import Console

    from ..trace import Trace

T = TypeVar("T")
Command = TypeVar("Command", bound=Callable[..., Any])

REFUSED = 1
PLAIN_WIDTH = 140
"""Columns of a table that does not go to a terminal."""


def scene_options(command: Command) -> Command:
    """The options of commands that play something on a partition."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print JSON lines instead of text."),
        click.option("--loop", type=click.Choice(["asyncio", "trio"]), default="asyncio", help="The event loop."),
        click.option("--seed", type=int, default=0, show_default=True, help="Decides the order where the rules leave it open."),
        click.option("--profile", type=click.Choice(list(PROFILES)), default="openvmm", show_default=True,
                     help="Whose rules apply where OpenVMM and the TLFS differ."),
        click.option("--backend", type=click.Choice(list(BACKENDS)), default="emulated", show_default=True,
                     help="The SynIC backend, see `vmbus backends`."),
        click.option("--trace", "trace_file", type=click.Path(path_type=Path, dir_okay=False), help="Record the trace here."),
    ):  # fmt: skip
        command = option(command)
    return command


def run_on(loop: str, main: Callable[[], Awaitable[T]]) -> T:
    """Run it on this event loop. Ctrl-C cancels `main`, on trio as well, and is raised as itself."""
    import anyio

    options = {"restrict_keyboard_interrupt_to_checkpoints": True} if loop == "trio" else {}
    try:
        return anyio.run(main, backend=loop, backend_options=options)
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt) is None:
            raise
        raise KeyboardInterrupt from None


def open_trace(stack: ExitStack, path: Path | None) -> Trace:
    """A trace, recorded to a file where one is named."""
    from ..trace import Trace, TraceRecorder

    return Trace() if path is None else Trace(stack.enter_context(TraceRecorder(path)))


def check_trace(trace: Trace | None) -> None:
    """Raise what the recorder could not write."""
    for error in trace.errors if trace is not None else ():
        raise error


def print_json_lines(values: list[Any]) -> None:
    """One line each."""
    import msgspec

    for value in values:
        click.echo(msgspec.json.encode(value))


def console() -> Console:
    """Standard output, as wide as the terminal."""
    from rich.console import Console

    is_terminal = sys.stdout is not None and sys.stdout.isatty()  # None where it was closed before we began
    return Console(highlight=False, width=None if is_terminal else PLAIN_WIDTH)
