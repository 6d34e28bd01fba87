"""`vmbus explain`."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .common import REFUSED, console, print_json_lines

if TYPE_CHECKING:
    from channels.explain import Explanation

NUMBER = "0[xX][0-9a-fA-F]{1,15}|[0-9]{1,15}"
PLACE = re.compile(f"(?P<file>.+?):(?P<offset>{NUMBER})(?::(?P<length>{NUMBER}))?", re.DOTALL)
"""A piece of a file, as INPUT names it."""
SHOWN_WORD = 40
MOST_BYTES = 1 << 20
"""What is read of a file: the longest packet is half as long."""


@click.command()
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
        print_json_lines([explanation])
    else:
        _print_explanation(explanation)
    if explanation.problems:
        sys.exit(REFUSED)


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

    out = console()
    kind = f"a guess: {explanation.kind} (--as KIND if it is another)" if explanation.guessed else explanation.kind
    out.print(Text(kind, style="bold"))
    out.print(Text(f"{explanation.title}\n"))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("offset", "size", "field", "value", "meaning"):
        table.add_column(title, justify="right" if title in ("offset", "size") else "left", overflow="fold")
    for row in explanation.rows:
        value = row.value if isinstance(row.value, str) else f"{row.value:#x}"
        table.add_row(*map(Text, (str(row.offset), str(row.size), row.field, value, row.meaning)))
    out.print(table)
    if explanation.problems:
        out.print()
    for problem in explanation.problems:
        out.print(Text(f"wrong: {problem}", style="red"))
