"""What targets start from: the bytes in tests/vectors."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parents[1] / "vectors"


class Step(NamedTuple):
    """A message of the Linux conversation."""

    sender: str
    data: bytes


@cache
def messages() -> tuple[bytes, ...]:
    """Channel messages."""
    return tuple(bytes.fromhex(entry["hex"]) for entry in _load("messages.json")["messages"])


@cache
def conversation() -> tuple[Step, ...]:
    """All messages of the Linux conversation, in order, of "guest" and "host"."""
    return tuple(Step(step["from"], bytes.fromhex(step["hex"])) for step in conversation_steps() if "hex" in step)


def conversation_steps() -> list[dict[str, Any]]:
    """All steps of the Linux conversation, as in the file."""
    return list(_load("linux_guest_conversation.json")["steps"])


@cache
def ring_writes() -> tuple[tuple[int, int, tuple[tuple[int, bytes], ...]], ...]:
    """(write index before, after, pieces of data by offset) of each ring of 4096 bytes."""
    cases = [case for case in _load("ring.json")["cases"] if case["data_size"] == 4096]
    return tuple(
        (
            case["start"]["write_index"],
            case["final"]["write_index"],
            tuple((offset, bytes.fromhex(data)) for offset, data in case["data_written"]),
        )
        for case in cases
    )


@cache
def packets() -> tuple[bytes, ...]:
    """Packets of rings, the shorter ones."""
    found = {piece for _, _, pieces in ring_writes() for _, piece in pieces if 16 <= len(piece) <= 512}
    return tuple(sorted(found, key=lambda packet: (len(packet), packet)))


def _load(name: str) -> Any:
    return json.loads((FOLDER / name).read_text())
