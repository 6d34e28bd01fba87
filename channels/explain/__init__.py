"""What bytes mean: `explain` turns any input into a table of its fields, and says what is wrong with it.

    >>> explain(bytes.fromhex("0300000000000000")).title
    'REQUEST_OFFERS, 8 bytes: what do you have? Sent by the guest.'

Pure. It knows one message, page or packet at a time: what depends on earlier ones (the agreed version, the size of a
ring) is not checked. The layouts are those of `channels.protocol` and `broker.hvdef`; `vmbus explain` prints the result.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from broker.hvdef.hypercall import (
    POST_MESSAGE_DIRECT_SIZE,
    POST_MESSAGE_SIZE,
    SIGNAL_EVENT,
    SIGNAL_EVENT_DIRECT,
)
from broker.hvdef.message import MESSAGE_SIZE
from broker.hvdef.registers import PAGE_SIZE
from channels.protocol.ids import MAX_MESSAGE
from channels.protocol.message import HEADER
from channels.protocol.packet import DESCRIPTOR_SIZE, FOOTER_SIZE, MAX_LENGTH8

from .messages import explain_message
from .ring import CONTROL_LEAST, explain_control, explain_packet, explain_pipe_packet
from .synic import (
    explain_flags,
    explain_monitors,
    explain_post,
    explain_post_direct,
    explain_signal,
    explain_signal_direct,
    explain_slot,
)
from .table import Explain, Row, Table

__all__ = ["KINDS", "Explanation", "Kind", "Row", "explain"]


class Explanation(msgspec.Struct, frozen=True):
    """What some bytes mean. The rows cover the input exactly, in order."""

    kind: str
    title: str
    guessed: bool
    rows: list[Row]
    problems: list[str]
    """What is wrong, a sentence each: what, offset, expected, got."""


class Kind(NamedTuple):
    """One kind of bytes."""

    about: str
    explain: Explain
    guess_at: range
    """Sizes at which a guess considers it, in bytes."""
    first: int = 0
    """Bytes at the beginning of something longer at which a guess looks, 0 where nearly anything could be this."""


def _only(size: int) -> range:
    return range(size, size + 1)


_ANY_SIZE = 1 << 62
_LONGEST_PACKET = 8 * MAX_LENGTH8 + FOOTER_SIZE

KINDS: dict[str, Kind] = {
    "ring-packet": Kind(
        "packet of a ring, with or without footer", explain_packet, range(DESCRIPTOR_SIZE, _ANY_SIZE), _LONGEST_PACKET
    ),
    "post-message": Kind(
        "input of HvCallPostMessage, 256 bytes", explain_post, _only(POST_MESSAGE_SIZE), POST_MESSAGE_SIZE
    ),
    "synic-message": Kind("slot of the SIM page, 256 bytes", explain_slot, _only(MESSAGE_SIZE), MESSAGE_SIZE),
    "channel-message": Kind(
        "VMBus channel message, 8 to 240 bytes", explain_message, range(HEADER.size, _ANY_SIZE), MAX_MESSAGE
    ),
    "pipe-packet": Kind("packet of a ring whose channel is a pipe", explain_pipe_packet, range(0)),
    "ring-control": Kind(
        "control page of a ring, 68 to 4096 bytes", explain_control, range(CONTROL_LEAST, PAGE_SIZE + 1), PAGE_SIZE
    ),
    "monitor-page": Kind("monitor page, 4096 bytes", explain_monitors, _only(PAGE_SIZE), PAGE_SIZE),
    "flags-page": Kind("event flags of all SINTs (SIEF page), 4096 bytes", explain_flags, range(0)),
    "signal-event": Kind("input of HvCallSignalEvent, 8 bytes", explain_signal, _only(SIGNAL_EVENT.size)),
    "signal-event-direct": Kind(
        "input of HvCallSignalEventDirect, 16 bytes", explain_signal_direct, _only(SIGNAL_EVENT_DIRECT.size)
    ),
    "post-message-direct": Kind(
        "input of HvCallPostMessageDirect, 280 bytes",
        explain_post_direct,
        _only(POST_MESSAGE_DIRECT_SIZE),
        POST_MESSAGE_DIRECT_SIZE,
    ),
}
"""All kinds by name, in the order in which a guess prefers them."""


def explain(data: bytes, kind: str | None = None, *, goes_on: bool = False) -> Explanation:
    """Explain these bytes as `kind`, or as the kind that fits them best: that is a guess, and says so.

    A guess takes, of the kinds that come in this size, the one against which the least speaks. It never takes
    "pipe-packet" and "flags-page": any bytes could be the latter, and a packet that looks like a pipe's is read as one
    anyway. `goes_on`: other things follow what the bytes begin with, so that their number says nothing; then it never
    takes the two signal inputs either.

    `ValueError` for a kind that does not exist; no bytes raise anything.
    """
    if kind is not None:
        if kind not in KINDS:
            raise ValueError(f"no kind is called {kind!r}, there are {', '.join(KINDS)}")
        return _explanation(kind, False, _read(data, kind))
    best = _guess(data, goes_on)
    return _explanation(best, True, _read(data, best))


def _guess(data: bytes, goes_on: bool) -> str:
    misfits = {}
    for name, row in KINDS.items():
        if goes_on and row.first:
            misfits[name] = _read(data[: row.first], name).misfit
        elif not goes_on and len(data) in row.guess_at:
            misfits[name] = _read(data, name).misfit
    return min(misfits, key=misfits.__getitem__, default="channel-message")


def _read(data: bytes, kind: str) -> Table:
    table = Table(data)
    table.within(len(data), KINDS[kind].explain)
    return table


def _explanation(kind: str, guessed: bool, table: Table) -> Explanation:
    return Explanation(kind, table.title, guessed, table.rows, table.problems)
