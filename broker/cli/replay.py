"""`vmbus replay`: both sides of the conversation decoded, a line for each message, and all that differs."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..hvdef import PROFILES
from ..replay import DeviceAction, Difference, Offered, PostedMessage, Replay, Reply, Revoked, offer_summary, summary
from .common import REFUSED, check_trace, console, open_trace, print_json_lines, run_on, scene_options

SHOWN_TOGETHER = 16
"""Bytes that differ, side by side, in one line."""
VERDICTS = {"early": "too early", "not compared": ""}
"""What the table says instead."""


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--without-recorded-replies", is_flag=True, help="Play the guest and the devices alone, compare nothing.")
@scene_options
def replay(
    file: Path,
    without_recorded_replies: bool,
    as_json: bool,
    loop: str,
    seed: int,
    profile: str,
    backend: str,
    trace_file: Path | None,
) -> None:
    """Play the guest of a recorded conversation FILE against this VMBus server, and compare every reply byte.

    The guest's messages are posted through HvCallPostMessage, the host's devices do what the file says they did. The
    exit status is 1 when a reply differs or a post is refused.
    """
    from .. import replay as replaying

    conversation = replaying.read_conversation(file)
    compares = not without_recorded_replies
    with ExitStack() as stack:
        trace = open_trace(stack, trace_file) if trace_file else None
        result = run_on(
            loop,
            lambda: replaying.replay(conversation, PROFILES[profile], backend, seed, trace, compares=compares),
        )
        check_trace(trace)
    if as_json:
        print_json_lines([step for step in result.steps if not isinstance(step, replaying.DeviceAction)])
    else:
        _print_replay(console(), result)
    if not result.is_right:
        sys.exit(REFUSED)


def _print_replay(console: Console, replay: Replay) -> None:
    """Print it all."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("step", "direction", "message", "bytes", "says", "result"):
        table.add_column(
            title,
            justify="right" if title in ("step", "bytes") else "left",
            no_wrap=title != "says",
            overflow="fold",
        )
    for step in replay.steps:
        table.add_row(*map(Text, _row(step)), style="red" if _is_wrong(step) else "")
    console.print(table)
    notes = [note for step in replay.steps for note in _notes(step)]
    if notes:
        console.print()
    for note in notes:
        console.print(Text(note), soft_wrap=True)
    console.print()
    console.print(_posts(replay.posted))
    console.print(_comparison(replay.replies))


def _row(step: PostedMessage | DeviceAction | Reply) -> tuple[str, ...]:
    number = "" if step.step is None else str(step.step)
    match step:
        case PostedMessage():
            status = f"{step.status.name} ({step.status:#04x})" if step.status else step.status.name
            result = ", ".join([status, *step.complaints])
            return number, "guest -> host", step.name, str(len(step.payload)), summary(step.payload), result
        case Reply():
            result = VERDICTS.get(step.verdict, step.verdict)
            return number, "host -> guest", step.name, str(len(step.payload)), summary(step.payload), result
        case DeviceAction(did=Offered(name, params)):
            return number, "host's device", f"offers {name}", "", offer_summary(params), ""
        case DeviceAction(did=Revoked(name)):
            return number, "host's device", f"revokes {name}", "", "", ""
        case _:
            return number, "host's device", "refuses", "", "by itself: nobody listens", ""


def _is_wrong(step: PostedMessage | DeviceAction | Reply) -> bool:
    if isinstance(step, PostedMessage):
        return bool(step.status)
    return isinstance(step, Reply) and step.identical is False


def _notes(step: PostedMessage | DeviceAction | Reply) -> Iterator[str]:
    match step:
        case DeviceAction(did=Offered(name, unchecked=(_, *_) as fields)):
            yield (
                f"step {step.step}: only the recorded offer says what {name} is, so these fields of it cannot differ:"
                f" {', '.join(fields)}"
            )
        case DeviceAction(did=Offered(name, source="nothing")):
            yield f"step {step.step}: nothing says what {name} is, so it is offered as a plain device"
        case Reply(verdict="missing"):
            yield f"step {step.step}: {step.name} is recorded, and this server did not send it"
        case Reply(verdict="surplus"):
            yield f"after step {step.after}: this server sent {step.name}, which is not recorded"
        case Reply(verdict="early"):
            yield f"step {step.step}: {step.name} is recorded before step {step.after}, which it answers"
        case Reply():
            for run in _runs(step.differences):
                yield f"step {step.step}, {_place(run)}: recorded {_values(run, 'recorded')}, own {_values(run, 'own')}"


def _runs(differences: Sequence[Difference]) -> Iterator[list[Difference]]:
    """Neighbours of one field, a line's worth of them at a time."""
    run: list[Difference] = []
    for difference in differences:
        if run and (
            len(run) == SHOWN_TOGETHER or difference.offset != run[-1].offset + 1 or _kind(difference) != _kind(run[-1])
        ):
            yield run
            run = []
        run.append(difference)
    if run:
        yield run


def _kind(difference: Difference) -> tuple[str, bool, bool]:
    return difference.field, difference.recorded is None, difference.own is None


def _place(run: list[Difference]) -> str:
    first, last = run[0].offset, run[-1].offset
    offsets = f"offset {first}" if first == last else f"offsets {first} to {last}"
    return f"{offsets} ({run[0].field})" if run[0].field else offsets


def _values(run: list[Difference], side: str) -> str:
    values = [getattr(difference, side) for difference in run]
    return "nothing" if values[0] is None else " ".join(f"{value:#04x}" for value in values)


def _posts(posted: list[PostedMessage]) -> str:
    statuses = Counter(message.status.name for message in posted)
    counts = ", ".join(f"{count} {name}" for name, count in statuses.items())
    return f"{len(posted)} messages posted: {counts or 'none'}"


def _comparison(replies: list[Reply]) -> str:
    verdicts = Counter(reply.verdict for reply in replies)
    if verdicts["not compared"]:
        return f"{len(replies)} replies, compared with nothing"
    recorded = len(replies) - verdicts["surplus"]
    parts = [f"{verdicts['identical']} of {recorded} replies identical"]
    for verdict in ("differs", "early", "missing", "surplus"):
        if count := verdicts[verdict]:
            word = "differ" if verdict == "differs" and count > 1 else VERDICTS.get(verdict, verdict)
            parts.append(f"{count} {word}")
    hint = "" if recorded or not replies else "; --without-recorded-replies plays a guest alone"
    return ", ".join(parts) + hint
