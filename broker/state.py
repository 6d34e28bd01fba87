"""Saved state, format 1: the whole SynIC of a partition as one versioned document.

The document is msgpack: {format, version, crc32, body}; the body is the `PartitionState`, encoded on its own so that
the checksum covers it. It holds registers, SynIC pages, queues, timers, pending interrupts, the reference counter, and
the trace's counters. It does not hold guest RAM beyond the SynIC pages, nor ports, which are the host's to register.
"""

from __future__ import annotations

import re
import zlib
from typing import Any

import msgspec

from .core import SynicState
from .errors import DamagedDocument, UnsupportedVersion
from .hvdef import MAX_PAYLOAD, PAGE_SIZE, SINT_COUNT, TIMER_COUNT

FORMAT = "vmbus-broker state"
VERSION = 1

_HEX = re.compile("0x[0-9a-f]{1,64}")


class VtlState(msgspec.Struct, frozen=True):
    """One VTL of a processor: its SynIC and its interrupt sink (IRR, ISR, auto-EOI, TPR in hexadecimal)."""

    vtl: int
    synic: SynicState
    interrupts: list[str]


class ProcessorState(msgspec.Struct, frozen=True):
    """One processor; `exits_left` of its quantum."""

    index: int
    exits_left: int
    vtls: list[VtlState]


class PartitionState(msgspec.Struct, frozen=True):
    """The body."""

    profile: str
    memory_size: int
    queue_depth: int
    now: int
    hypercall_page: tuple[int, int]
    processors: list[ProcessorState]
    trace: tuple[int, int] | None
    random: bytes | None


class Envelope(msgspec.Struct, frozen=True):
    """The document."""

    format: str
    version: int
    crc32: int
    body: bytes


def encode(state: PartitionState) -> bytes:
    """The document of a state."""
    body = msgspec.msgpack.encode(state)
    return msgspec.msgpack.encode(Envelope(FORMAT, VERSION, zlib.crc32(body), body))


def decode(document: bytes) -> PartitionState:
    """Read a document. `DamagedDocument` or `UnsupportedVersion` with a sentence."""
    envelope = _decode(document, Envelope, "a saved state")
    if envelope.format != FORMAT:
        raise DamagedDocument(f"this is a document of format {envelope.format!r}, not a saved state of vmbus-broker")
    if envelope.version > VERSION:
        raise UnsupportedVersion(
            f"the saved state is of version {envelope.version}; this program reads up to version {VERSION}"
        )
    if zlib.crc32(envelope.body) != envelope.crc32:
        raise DamagedDocument("the saved state is damaged: its checksum does not fit")
    state: PartitionState = _decode(envelope.body, PartitionState, "the body of the saved state")
    _check(state)
    return state


def _check(state: PartitionState) -> None:
    pages = state.memory_size // PAGE_SIZE
    for processor in state.processors:
        for of_vtl in processor.vtls:
            synic = of_vtl.synic
            well_formed = (
                len(synic.registers.sints) == SINT_COUNT
                and len(synic.queues) == SINT_COUNT
                and len(synic.timers) == TIMER_COUNT
                and len(of_vtl.interrupts) == 4
                and all(_HEX.fullmatch(value) for value in of_vtl.interrupts)
                and all(len(queue) <= state.queue_depth for queue in synic.queues)
                and all(len(message.payload) <= MAX_PAYLOAD for queue in synic.queues for message in queue)
                and all(
                    len(page.contents) == PAGE_SIZE and (page.gpn is None or 0 <= page.gpn < pages)
                    for page in (synic.registers.sim_page, synic.registers.sief_page)
                )
            )
            if not well_formed:
                raise DamagedDocument(f"the saved state of processor {processor.index} contradicts itself")


def _decode(data: bytes, kind: Any, what: str) -> Any:
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise DamagedDocument(f"{what} cannot be read: {error}") from error
