"""The command line, `vmbus`. Exit status: 0 done, 1 something was refused, 2 wrong use or a file that cannot be read.

Errors are one sentence on standard error. Only this module configures logging. Each command has a file of its own and is
imported when it is called: most of what one needs, others do not.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import MutableMapping
from typing import Any

import click

from ..errors import BrokerError
from .common import REFUSED

USAGE_ERROR = 2
INTERRUPTED = 130

COMMANDS = ("backends", "demo", "explain", "replay", "run")


class _Commands(click.Group):
    """The commands by their files."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(f".{cmd_name}", __name__), cmd_name)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vmbus-broker", prog_name="vmbus")
def vmbus() -> None:
    """A byte-exact, runnable model of Hyper-V's synthetic interrupt controller (SynIC) and of VMBus on top of it."""


def main() -> None:
    """The console script."""
    _configure_logging()
    try:
        result = vmbus.main(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(INTERRUPTED)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(USAGE_ERROR)
    except click.ClickException as error:
        _fail(error.format_message())
    except (BrokerError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            sys.stderr.close()
            sys.exit(REFUSED)
        names_file = isinstance(error, OSError) and error.filename is not None
        _fail(f"{error.filename}: {error.strerror}" if names_file else str(error))  # type: ignore[union-attr]
    sys.exit(result if isinstance(result, int) else 0)


def _fail(message: str) -> None:
    first_line = " ".join(message.split())
    click.echo(f"vmbus: {first_line}", err=True)
    sys.exit(USAGE_ERROR)


def _configure_logging() -> None:
    import structlog

    structlog.configure(
        processors=[
            _say_reason,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(30),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def _say_reason(logger: object, name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """What this package raises on purpose is a sentence; tracebacks are for mistakes in code."""
    error = event.get("exc_info")
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, BrokerError | OSError):
        del event["exc_info"]
        event["reason"] = str(error)
    return event
