"""The command line, `vmbus`. Exit status: 0 done, 1 something was refused, 2 wrong use or a file that cannot be read.

Errors are one sentence on standard error. Only this module configures logging.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .errors import BrokerError
from .hvdef import PROFILES, HvStatus
from .synic import BACKENDS

if TYPE_CHECKING:
    from rich.text import Text

    from channels.explain import Explanation

    from .demo import SlotPicture, Step
    from .replay import PostedMessage
    from .trace import Trace

T = TypeVar("T")
Command = TypeVar("Command", bound=Callable[..., Any])

USAGE_ERROR = 2
REFUSED = 1
INTERRUPTED = 130
INDENT = "    "
PLAIN_WIDTH = 140
"""Columns of a table that does not go to a terminal."""
NUMBER = "0[xX][0-9a-fA-F]{1,15}|[0-9]{1,15}"
PLACE = re.compile(f"(?P<file>.+?):(?P<offset>{NUMBER})(?::(?P<length>{NUMBER}))?", re.DOTALL)
"""A piece of a file, as INPUT names it."""
SHOWN_WORD = 40
MOST_BYTES = 1 << 20
"""What is read of a file: the longest packet is half as long."""


def _scene_options(command: Command) -> Command:
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


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vmbus-broker", prog_name="vmbus")
def vmbus() -> None:
    """A byte-exact, runnable model of Hyper-V's synthetic interrupt controller (SynIC)."""


@vmbus.command()
@_scene_options
def demo(as_json: bool, loop: str, seed: int, profile: str, backend: str, trace_file: Path | None) -> None:
    """Play a short scene: what a SynIC does, step by step."""
    from .demo import play

    with ExitStack() as stack:
        trace = _open_trace(stack, trace_file)
        steps = _run(loop, lambda: play(PROFILES[profile], backend, seed, trace))
        _check_trace(trace)
    if as_json:
        _print_json_lines(steps)
    else:
        _print_scene(steps, f"profile {profile}, backend {backend}, seed {seed}")


@vmbus.command()
@click.argument("file", type=click.Path(path_type=Path))
@_scene_options
def replay(
    file: Path, as_json: bool, loop: str, seed: int, profile: str, backend: str, trace_file: Path | None
) -> None:
    """Post the guest's messages of a recorded conversation FILE through HvCallPostMessage, and list what arrived."""
    from . import replay as replaying

    messages = replaying.read_guest_messages(file)
    with ExitStack() as stack:
        trace = _open_trace(stack, trace_file) if trace_file else None
        posted = _run(loop, lambda: replaying.replay(messages, PROFILES[profile], backend, seed, trace))
        _check_trace(trace)
    if as_json:
        _print_json_lines(posted)
    else:
        _print_posted(posted)
    if any(message.status is not HvStatus.SUCCESS or not message.arrived for message in posted):
        sys.exit(REFUSED)


@vmbus.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines instead of a table.")
def backends(as_json: bool) -> None:
    """List the SynIC backends and what each does and refuses."""
    if as_json:
        _print_json_lines(list(BACKENDS.values()))
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, collapse_padding=True, header_style="bold")
    for title in (
        "backend",
        "SynIC",
        "VTLs",
        "event\nports",
        "guest\nevents",
        "OS\nevents",
        "monitor\npages",
        "trusted\nposts",
        "proxied\nSINTs",
    ):
        table.add_column(title, no_wrap=True)
    for row in BACKENDS.values():
        features = (
            ",".join(str(int(vtl)) for vtl in row.vtls),
            {"none": "dispatch", "given": "given fd", "always": "eventfd"}[row.host_event_ports],
            row.guest_events,
            "prefer" if row.prefer_os_events else "-",
            {"none": "-", "yes": "yes", "allocate": "allocate"}[row.monitor],
            "yes" if row.trusted_posts else "-",
            "to host" if row.proxied_sints else "dropped",
        )
        table.add_row(row.name, row.synic, *(features if row.synic != "none" else ["-"] * len(features)))
    console = _console()
    console.print(table)
    console.print()
    for row in BACKENDS.values():
        console.print(f"{row.name:10} {row.about}")


@vmbus.command()
@click.argument("input_words", metavar="INPUT...", nargs=-1, required=True)
@click.option("--as", "kind", metavar="KIND", help="What the bytes are; without it, that is guessed.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line instead of a table.")
def explain(input_words: tuple[str, ...], kind: str | None, as_json: bool) -> None:
    """Explain bytes field by field, and say what is wrong with them; then the exit status is 1.

    INPUT is hexadecimal (spaces, commas and 0x are fine), FILE:OFFSET or FILE:OFFSET:LENGTH for a piece of a binary
    file, or - for hexadecimal on standard input. Any vmbus channel message, SynIC message, hypercall input, ring control
    page or packet.

    \b
    KIND is one of
      channel-message, synic-message,
      post-message, signal-event, post-message-direct, signal-event-direct,
      ring-packet, pipe-packet, ring-control, monitor-page, flags-page
    """
    from channels import explain as explaining

    if kind is not None and kind not in explaining.KINDS:
        raise click.UsageError(f"no KIND is called {kind!r}, there are {', '.join(explaining.KINDS)}")
    data, goes_on = _input_bytes(" ".join(input_words))
    explanation = explaining.explain(data, kind, goes_on=goes_on)
    if as_json:
        _print_json_lines([explanation])
    else:
        _print_explanation(explanation)
    if explanation.problems:
        sys.exit(REFUSED)


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
        _fail(f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error))
    sys.exit(result if isinstance(result, int) else 0)


def _fail(message: str) -> None:
    first_line = " ".join(message.split())
    click.echo(f"vmbus: {first_line}", err=True)
    sys.exit(USAGE_ERROR)


def _configure_logging() -> None:
    import structlog

    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(30),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def _run(loop: str, main: Callable[[], Awaitable[T]]) -> T:
    import anyio

    return anyio.run(main, backend=loop)


def _open_trace(stack: ExitStack, path: Path | None) -> Trace:
    from .trace import Trace, TraceRecorder

    return Trace() if path is None else Trace(stack.enter_context(TraceRecorder(path)))


def _check_trace(trace: Trace | None) -> None:
    for error in trace.errors if trace is not None else ():
        raise error


def _input_bytes(text: str) -> tuple[bytes, bool]:
    """The bytes that INPUT names, and whether they go on behind what is meant. `UsageError` when it names none."""
    place = PLACE.fullmatch(text)
    length = None if place is None else place["length"]
    if place is not None:
        data = _piece(Path(place["file"]), _number(place["offset"]), MOST_BYTES if length is None else _number(length))
    else:
        data = _from_hex(sys.stdin.buffer.read().decode(errors="replace") if text == "-" else text)
    if not data:
        raise click.UsageError("INPUT has no bytes")
    return data, place is not None and length is None


def _number(text: str) -> int:
    return int(text, 16 if text[:2] in ("0x", "0X") else 10)


def _piece(file: Path, offset: int, length: int) -> bytes:
    with file.open("rb") as stream:
        if not stream.seekable():
            raise click.UsageError(f"{file} has no offsets; give its bytes in hexadecimal to -")
        size = stream.seek(0, 2)
        if offset >= size:
            raise click.UsageError(f"{file} has {size} bytes, there is none at offset {offset}")
        stream.seek(offset)
        return stream.read(min(length, MOST_BYTES))


def _from_hex(text: str) -> bytes:
    digits = []
    for word in text.replace(",", " ").split():
        digits.append(word[2:].rjust(2, "0") if re.match("0[xX].", word) else word)
        try:
            bytes.fromhex(digits[-1])
        except ValueError:
            hint = f"; for a file say {word}:0" if os.path.isfile(word) else ", two digits for each byte"
            shown = word if len(word) <= SHOWN_WORD else f"{word[:SHOWN_WORD]}..."
            raise click.UsageError(f"{shown!r} is not hexadecimal{hint}") from None
    return bytes.fromhex("".join(digits))


def _print_explanation(explanation: Explanation) -> None:
    from rich.table import Table
    from rich.text import Text

    console = _console()
    kind = f"a guess: {explanation.kind} (--as KIND if it is another)" if explanation.guessed else explanation.kind
    console.print(Text(kind, style="bold"))
    console.print(Text(f"{explanation.title}\n"))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("offset", "size", "field", "value", "meaning"):
        table.add_column(title, justify="right" if title in ("offset", "size") else "left", overflow="fold")
    for row in explanation.rows:
        value = row.value if isinstance(row.value, str) else f"{row.value:#x}"
        table.add_row(*map(Text, (str(row.offset), str(row.size), row.field, value, row.meaning)))
    console.print(table)
    if explanation.problems:
        console.print()
    for problem in explanation.problems:
        console.print(Text(f"wrong: {problem}", style="red"))


def _print_json_lines(values: list[Any]) -> None:
    import msgspec

    for value in values:
        click.echo(msgspec.json.encode(value))


def _console() -> Any:
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)


def _print_scene(steps: list[Step], settings: str) -> None:
    import textwrap

    from rich.text import Text

    from .demo import tell

    console = _console()
    console.print(Text(f"The SynIC in {len(steps)} steps ({settings})", style="bold"))
    shown: list[SlotPicture] = []
    mailbox = 0
    for step in steps:
        console.print(Text(f"\n{step.number:2}  {step.title}", style="bold cyan"))
        story = "; ".join(filter(None, (tell(step.events), step.host)))
        told = textwrap.fill(f"{story}.", console.width - 1, initial_indent=INDENT, subsequent_indent=INDENT)
        console.print(Text(told))
        for picture in step.processors:
            if picture not in shown:
                console.print(_picture(picture))
        if step.mailbox != mailbox:
            console.print(Text(f"{INDENT}mailbox {'▣' * step.mailbox}{'□' * (2 - step.mailbox)}", style="dim"))
        shown, mailbox = step.processors, step.mailbox


def _picture(picture: SlotPicture) -> Text:
    from rich.text import Text

    from .demo import printable

    text = Text(f"{INDENT}VP {picture.vp} SINT 2 ", style="dim")
    if picture.message_type:
        content = printable(picture.payload) or picture.payload[:8].hex(" ")
        pending = " · pending" if picture.message_pending else ""
        slot = f"[type {picture.message_type:#x} · {len(picture.payload)} B · {content}{pending}]"
        text.append(slot, style="green")
    else:
        text.append("[empty slot]")
    if picture.queued:
        text.append(f"  queue {'■' * picture.queued}", style="yellow")
    text.append(f"  flags {{{', '.join(map(str, picture.flags))}}}")
    if picture.masked:
        text.append("  masked", style="red")
    if picture.interrupt_pending:
        text.append("  interrupt", style="magenta")
    if picture.dropped:
        text.append(f"  dropped {picture.dropped}", style="red")
    return text


def _print_posted(posted: list[PostedMessage]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("step", "connection", "type", "bytes", "status", "arrived", "begins with"):
        table.add_column(title, justify="right" if title in ("step", "bytes") else "left", no_wrap=True)
    for message in posted:
        table.add_row(
            str(message.step),
            f"{message.connection_id:#010x}",
            f"{message.message_type:#x}",
            str(len(message.payload)),
            f"{message.status.name} ({message.status:#04x})",
            "yes" if message.arrived else "no",
            message.payload[:16].hex(" ", 4),
        )
    console = _console()
    console.print(table)
    statuses = Counter(message.status.name for message in posted)
    counts = ", ".join(f"{count} {name}" for name, count in statuses.items())
    arrived = sum(message.arrived for message in posted)
    console.print(f"{len(posted)} messages posted: {counts or 'none'}; {arrived} arrived as posted")
