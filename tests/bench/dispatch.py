"""Goals P1 to P4 on this machine: what dispatch costs, as ratios to a bare await of the same handler.

    python -m tests.bench.dispatch [--json] [--loop asyncio|trio|both] [--rounds N]

P1  Calls through the map and through a processor. The handler returns a module constant; statuses are looked up outside
    the loops. 150 interleaved rounds of 2,000 calls in shuffled order, three times, best of the medians. Before and
    after, every path is watched once: accepted calls enter the handler, refused ones do not, and nothing on the way
    suspends but for the quantum.
P2  One idle hook and one counter. The loop's own time is taken off these and off the bare await they are compared with.
P3  The mailbox. "Its own" cost is what pushing and draining add to the await of an async method that does nothing, the
    same that "map + 1.5" allows it. End to end, two tasks move messages through room for 1,024.
P4  See `tests.bench.scale`.

The exit status is 1 when a goal is missed. Under a debug mode there are no figures.
"""

from __future__ import annotations

import asyncio  # noqa: TID251 - asyncio.Queue is what the mailbox is measured against
import gc
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, contextmanager
from time import perf_counter_ns
from types import CodeType, FrameType

import anyio
import anyio.lowlevel
import click
import msgspec
import structlog

from broker import HvStatus, MessageInbox, Partition, PartitionConfig, SynicPortAccess, Vtl, receive_messages

from .measure import (
    BACKENDS,
    Goal,
    Machine,
    Result,
    Round,
    Timed,
    expect,
    interleave,
    refuse_debug_modes,
    render,
    timed,
)

_ANSWER = HvStatus.SUCCESS
_PAYLOAD = bytes(240)

CALLS = 2_000
ROUNDS = 150
HUGE_QUANTUM = 1 << 29
QUANTUM = 32
PROOF_CALLS = 10 * QUANTUM
BATCH = 16
"""Messages that the mailbox takes before it is drained: its default depth, and a divisor of CALLS."""
ROOM = 1_024
MESSAGES = 20_000
"""Moved between two tasks in one round."""

MESSAGE_PORT, EVENT_PORT, GUARDED_PORT, FULL_PORT, INBOX_PORT, NOBODY = range(1, 7)

MAP = Goal("P1", "map.handle_post_message", at_most=3.4)
MAP_EVENT = Goal("P1", "map.handle_signal_event", at_most=3.8)


class _Port:
    async def handle_message(self, message: bytes, trusted: bool) -> HvStatus:
        return _ANSWER

    async def handle_event(self, flag: int) -> None:
        return None


class _Slots:
    __slots__ = ("count", "trace")

    def __init__(self) -> None:
        self.count = 0
        self.trace = None


class Path(msgspec.Struct, frozen=True):
    """A way into a handler: the expression that takes it, and what has to come of it."""

    expression: str
    status: HvStatus | None = HvStatus.SUCCESS
    enters: CodeType | None = _Port.handle_message.__code__
    pauses: int = 0
    """Suspensions in PROOF_CALLS calls."""


_POST = "await port_map.handle_post_message(vtl, {}, False, payload)"
_EVENT = _Port.handle_event.__code__
_INBOX = MessageInbox.handle_message.__code__

PATHS = {
    "bare": Path("await port.handle_message(payload, False)"),
    "bare event": Path("await port.handle_event(0)", None, _EVENT),
    "map": Path(_POST.format(MESSAGE_PORT)),
    "map event": Path(f"await port_map.handle_signal_event(vtl, {EVENT_PORT}, 0)", enters=_EVENT),
    "vp": Path(f"await vp.post_message({MESSAGE_PORT}, 1, payload)"),
    "vp event": Path(f"await vp.signal_event({EVENT_PORT})", enters=_EVENT),
    "vp 32": Path(f"await vp_32.post_message({MESSAGE_PORT}, 1, payload)", pauses=PROOF_CALLS // QUANTUM),
    "vp 32 event": Path(f"await vp_32.signal_event({EVENT_PORT})", enters=_EVENT, pauses=PROOF_CALLS // QUANTUM),
    "unknown": Path(_POST.format(NOBODY), HvStatus.INVALID_CONNECTION_ID, None),
    "denied": Path(_POST.format(GUARDED_PORT), HvStatus.OPERATION_DENIED, None),
    "full": Path(_POST.format(FULL_PORT), HvStatus.INSUFFICIENT_BUFFERS, _INBOX),
}


@asynccontextmanager
async def _everything() -> AsyncIterator[dict[str, object]]:
    """The names that the expressions use: two partitions with the same ports, of a huge quantum and of 32."""
    port = _Port()
    async with (
        Partition(PartitionConfig(quantum=HUGE_QUANTUM)) as partition,
        Partition(PartitionConfig(quantum=QUANTUM)) as partition_32,
    ):
        for access in (partition.synic(), partition_32.synic()):
            await access.add_message_port(MESSAGE_PORT, Vtl.VTL0, port)
            await access.add_event_port(EVENT_PORT, Vtl.VTL0, port)
        await partition.synic().add_message_port(GUARDED_PORT, Vtl.VTL1, port)
        async with (
            receive_messages(partition.synic(), FULL_PORT, 1) as full,
            receive_messages(partition.synic(), INBOX_PORT, BATCH) as inbox,
        ):
            await full.handle_message(_PAYLOAD, False)
            yield {
                "access": partition.synic(),
                "batch": range(BATCH),
                "inbox": inbox,
                "payload": _PAYLOAD,
                "port": port,
                "port_map": partition.port_map,
                "slots": _Slots(),
                "vp": partition.vp(0),
                "vp_32": partition_32.vp(0),
                "vtl": Vtl.VTL0,
            }
