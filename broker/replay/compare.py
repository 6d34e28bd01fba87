"""Compares what the server answered with what was recorded: which reply is which, and each byte that differs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from channels.protocol.message import HEADER
from channels.protocol.parse import Sender, parse_message

from ..errors import ProtocolError
from .conversation import Conversation, HostMessage
from .summary import name_of

MOST_PAIRS = 1 << 20
"""Where replies differ: more possible pairs than these, and replies are taken in order, one by one."""

Verdict = Literal["identical", "differs", "missing", "surplus", "early", "not compared"]


class Answer(msgspec.Struct, frozen=True):
    """A message that the server has sent."""

    after: int
    """The step that came before it."""
    payload: bytes


class Difference(msgspec.Struct, frozen=True):
    """One byte that differs; None where the message has ended."""

    offset: int
    field: str
    recorded: int | None
    own: int | None


class Reply(msgspec.Struct, frozen=True):
    """A message of the server, beside the one that was recorded."""

    step: int | None
    """Where it is recorded, None where it is not."""
    after: int | None
    """The step that the server answered with it, None where it did not."""
    name: str
    payload: bytes
    """The server's own; what was recorded, where the server said nothing."""
    identical: bool | None
    """None: there is nothing to compare with."""
    verdict: Verdict
    """"early": it was recorded before what the server answers with it."""
    differences: list[Difference]


def compare(conversation: Conversation, answers: Sequence[Answer]) -> list[Reply]:
    """Every reply, recorded or not, in order."""
    recorded = [(n, step.payload) for n, step in conversation.steps.items() if isinstance(step, HostMessage)]
    payloads = [payload for _, payload in recorded]
    replies = []
    for there, here in _pairs(payloads, [answer.payload for answer in answers]):
        if there is None and here is not None:
            replies.append(_alone(None, answers[here].after, answers[here].payload, "surplus"))
        elif here is None and there is not None:
            replies.append(_alone(recorded[there][0], None, recorded[there][1], "missing"))
        elif there is not None and here is not None:
            replies.append(_both(*recorded[there], answers[here]))
    return replies


def uncompared(answers: Sequence[Answer]) -> list[Reply]:
    """Replies where none were recorded."""
    return [
        Reply(None, answer.after, name_of(answer.payload), answer.payload, None, "not compared", [])
        for answer in answers
    ]


def differences(recorded: bytes, own: bytes) -> list[Difference]:
    """Every byte that differs."""
    found = []
    for offset in range(max(len(recorded), len(own))):
        there = recorded[offset] if offset < len(recorded) else None
        here = own[offset] if offset < len(own) else None
        if there != here:
            found.append(Difference(offset, _field_at(own, offset), there, here))
    return found


def _alone(step: int | None, after: int | None, payload: bytes, verdict: Verdict) -> Reply:
    return Reply(step, after, name_of(payload), payload, False, verdict, [])


def _both(step: int, recorded: bytes, answer: Answer) -> Reply:
    found = differences(recorded, answer.payload)
    verdict: Verdict = "differs" if found else "early" if answer.after > step else "identical"
    return Reply(step, answer.after, name_of(answer.payload), answer.payload, verdict == "identical", verdict, found)


def _field_at(message: bytes, offset: int) -> str:
    try:
        layout = parse_message(message, Sender.HOST).layout()
    except ProtocolError:
        return ""
    if offset < HEADER.size:
        return "type" if offset < HEADER.size // 2 else "padding"
    named = (field.name for field in layout.fields if field.offset <= offset < field.offset + field.size)
    return next(named, "reserved" if offset < layout.size else "beyond the message")


def _pairs(there: list[bytes], here: list[bytes]) -> list[tuple[int | None, int | None]]:
    """Which goes with which: in order, and so that as little as possible is missing, surplus or different."""
    start = 0
    while start < min(len(there), len(here)) and there[start] == here[start]:
        start += 1
    end = 0
    while end < min(len(there), len(here)) - start and there[-1 - end] == here[-1 - end]:
        end += 1
    middle = _align(there[start : len(there) - end], here[start : len(here) - end])
    return [
        *((n, n) for n in range(start)),
        *((None if i is None else i + start, None if j is None else j + start) for i, j in middle),
        *((len(there) - n, len(here) - n) for n in range(end, 0, -1)),
    ]


def _align(there: list[bytes], here: list[bytes]) -> list[tuple[int | None, int | None]]:
    rows, columns = len(there), len(here)
    if rows * columns > MOST_PAIRS:
        both = min(rows, columns)
        rest = max(rows, columns)
        return [
            *((n, n) for n in range(both)),
            *((n, None) if n < rows else (None, n) for n in range(both, rest)),
        ]
    costs = [[float(i + j) for j in range(columns + 1)] for i in range(rows + 1)]
    for i in range(rows):
        for j in range(columns):
            paired = costs[i][j] + _cost(there[i], here[j])
            costs[i + 1][j + 1] = min(paired, costs[i][j + 1] + 1, costs[i + 1][j] + 1)
    found: list[tuple[int | None, int | None]] = []
    i, j = rows, columns
    while i or j:
        if i and j and costs[i][j] == costs[i - 1][j - 1] + _cost(there[i - 1], here[j - 1]):
            i, j = i - 1, j - 1
            found.append((i, j))
        elif i and costs[i][j] == costs[i - 1][j] + 1:
            i -= 1
            found.append((i, None))
        else:
            j -= 1
            found.append((None, j))
    return found[::-1]


def _cost(there: bytes, here: bytes) -> float:
    """0 for the same, up to 1.5 for nothing in common: less than one missing and one surplus."""
    if there == here:
        return 0
    differing = sum(a != b for a, b in zip(there, here, strict=False)) + abs(len(there) - len(here))
    return 0.5 + differing / max(len(there), len(here))
