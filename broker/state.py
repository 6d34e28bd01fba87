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

from .core import OverlayState, SynicState
from .core.local_apic import LOWEST_VECTOR
from .errors import DamagedDocument, UnsupportedVersion
from .hvdef import MAX_PAYLOAD, PAGE_SIZE, SINT_COUNT, TIMER_COUNT, PageRegister

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
    if envelope.version < 1:
        raise DamagedDocument(f"the saved state says that its version is {envelope.version}; versions count from 1")
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
    if not _are_words(state.now, *state.hypercall_page):
        raise DamagedDocument("the saved state's reference counter or hypercall page is not 64 bits")
    if state.now >> 63:
        raise DamagedDocument("the saved state's reference counter is out of its range")
    for processor in state.processors:
        if processor.exits_left < 0:
            raise DamagedDocument(f"the saved state of processor {processor.index} contradicts itself")
        for of_vtl in processor.vtls:
            if not (_are_interrupts(of_vtl.interrupts) and _fits(of_vtl.synic, state)):
                raise DamagedDocument(f"the saved state of processor {processor.index} contradicts itself")


def _fits(synic: SynicState, state: PartitionState) -> bool:
    registers, pages = synic.registers, state.memory_size // PAGE_SIZE
    messages = [message for queue in synic.queues for message in queue]
    return (
        len(registers.sints) == SINT_COUNT
        and len(synic.queues) == SINT_COUNT
        and len(synic.timers) == TIMER_COUNT
        and _are_words(registers.scontrol, registers.vina, *registers.sints)
        and all(_are_words(timer.config, timer.count) for timer in synic.timers)
        and 0 <= synic.ready < 1 << SINT_COUNT
        and 0 <= synic.requested < 1 << SINT_COUNT
        and all(len(queue) <= state.queue_depth for queue in synic.queues)
        and all(len(message.payload) <= MAX_PAYLOAD for message in messages)
        and all(0 < message.message_type < 1 << 32 and _are_words(message.origination_id) for message in messages)
        and _is_placed(registers.simp, registers.sim_page, pages)
        and _is_placed(registers.siefp, registers.sief_page, pages)
    )


def _are_words(*values: int) -> bool:
    return all(0 <= value < 1 << 64 for value in values)


def _are_interrupts(saved: list[str]) -> bool:
    """IRR, ISR and auto-EOI without vectors below 16, and a TPR of 8 bits."""
    if len(saved) != 4 or not all(_HEX.fullmatch(value) for value in saved):
        return False
    *vectors, tpr = (int(value, 16) for value in saved)
    return tpr < 256 and not any(bits & (1 << LOWEST_VECTOR) - 1 for bits in vectors)


def _is_placed(register: int, page: OverlayState, pages: int) -> bool:
    """The page is where its register says, inside guest memory."""
    if not _are_words(register) or len(page.contents) != PAGE_SIZE:
        return False
    value = PageRegister(register)
    return page.gpn == (value.gpn if value.enable else None) and (page.gpn is None or page.gpn < pages)


def _decode(data: bytes, kind: Any, what: str) -> Any:
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
        raise DamagedDocument(f"{what} cannot be read: {error}") from error
