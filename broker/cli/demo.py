"""`vmbus demo`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..hvdef import PROFILES
from .common import check_trace, console, open_trace, print_json_lines, run_on, scene_options

if TYPE_CHECKING:
    from rich.text import Text

    from ..demo import SlotPicture, Step

INDENT = "    "


@click.command()
@scene_options
def demo(as_json: bool, loop: str, seed: int, profile: str, backend: str, trace_file: Path | None) -> None:
    """Play a short scene: what a SynIC does, step by step."""
    from ..demo import play

    with ExitStack() as stack:
        trace = open_trace(stack, trace_file)
        steps = run_on(loop, lambda: play(PROFILES[profile], backend, seed, trace))
        check_trace(trace)
    if as_json:
        print_json_lines(steps)
    else:
        _print_scene(steps, f"profile {profile}, backend {backend}, seed {seed}")


def _print_scene(steps: list[Step], settings: str) -> None:
    import textwrap

    from rich.text import Text

    from ..demo import tell

    out = console()
    out.print(Text(f"The SynIC in {len(steps)} steps ({settings})", style="bold"))
    shown: list[SlotPicture] = []
    mailbox = 0
    for step in steps:
        out.print(Text(f"\n{step.number:2}  {step.title}", style="bold cyan"))
        story = "; ".join(filter(None, (tell(step.events), step.host)))
        told = textwrap.fill(f"{story}.", out.width - 1, initial_indent=INDENT, subsequent_indent=INDENT)
        out.print(Text(told))
        for picture in step.processors:
            if picture not in shown:
                out.print(_picture(picture))
        if step.mailbox != mailbox:
            out.print(Text(f"{INDENT}mailbox {'▣' * step.mailbox}{'□' * (2 - step.mailbox)}", style="dim"))
        shown, mailbox = step.processors, step.mailbox


def _picture(picture: SlotPicture) -> Text:
    from rich.text import Text

    from ..demo import printable

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
