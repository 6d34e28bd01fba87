"""A small local interrupt sink: IRR, ISR, TPR and EOI, as much of a local APIC as the SynIC's rules need.

Interrupts are edges: a vector that is pending already merges. Auto-EOI is latched with the request (OpenVMM): such a
vector is not put in service when it is acknowledged and expects no EOI.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from ..errors import InvariantError

LOWEST_VECTOR = 16


class Requested(Enum):
    """What became of an interrupt request."""

    LATCHED = "raised"
    MERGED = "merged"
    LOST = "lost"


class LocalApic:
    """The interrupt state of one processor and VTL. `wake` is called whenever an interrupt may have become deliverable."""

    __slots__ = ("_auto_eoi", "_irr", "_isr", "_tpr", "wake")

    def __init__(self, wake: Callable[[], None]) -> None:
        self.wake = wake
        self._irr = 0
        self._isr = 0
        self._auto_eoi = 0
        self._tpr = 0

    @property
    def tpr(self) -> int:
        """The task priority register, 0 to 255: vectors of its class (bits 7:4) and below wait."""
        return self._tpr

    def set_tpr(self, value: int) -> None:
        """Change the task priority; the low 8 bits count."""
        self._tpr = value & 0xFF
        self.wake()

    def request(self, vector: int, auto_eoi: bool = False) -> Requested:
        """Latch an interrupt. A vector below 16 is lost, one that is pending merges."""
        if vector < LOWEST_VECTOR:
            return Requested.LOST
        bit = 1 << vector
        self._auto_eoi = self._auto_eoi | bit if auto_eoi else self._auto_eoi & ~bit
        merges = bool(self._irr & bit)
        self._irr |= bit
        self.wake()
        return Requested.MERGED if merges else Requested.LATCHED

    def is_pending(self, vector: int) -> bool:
        """True while this vector is latched and not acknowledged."""
        return bool(self._irr >> vector & 1)

    def in_service(self, vector: int) -> bool:
        """True from the acknowledgement of this vector to its EOI."""
        return bool(self._isr >> vector & 1)

    def deliverable(self) -> int | None:
        """The highest pending vector, if its class is above the task priority and everything in service."""
        vector = self._irr.bit_length() - 1
        in_service = self._isr.bit_length() - 1
        if vector < 0 or vector >> 4 <= max(self._tpr, in_service, 0) >> 4:
            return None
        return vector

    def acknowledge(self) -> int | None:
        """Take the deliverable vector: IRR to ISR, or out of IRR alone when it was requested with auto-EOI."""
        vector = self.deliverable()
        if vector is not None:
            bit = 1 << vector
            self._irr &= ~bit
            if not self._auto_eoi & bit:
                self._isr |= bit
        return vector

    def eoi(self) -> int | None:
        """End the highest interrupt in service and return its vector, None when nothing was in service."""
        vector = self._isr.bit_length() - 1
        if vector < 0:
            return None
        self._isr &= ~(1 << vector)
        self.wake()
        return vector

    def reset(self) -> None:
        """Nothing pending, nothing in service, priority 0."""
        self._irr = self._isr = self._auto_eoi = self._tpr = 0

    def save(self) -> tuple[int, ...]:
        """IRR, ISR, the auto-EOI latch and TPR."""
        return (self._irr, self._isr, self._auto_eoi, self._tpr)

    def restore(self, state: tuple[int, ...]) -> None:
        """Take over what `save` returned."""
        self._irr, self._isr, self._auto_eoi, self._tpr = state

    def check(self) -> None:
        """Every invariant. `InvariantError` when one is broken."""
        if (self._irr | self._isr) & ((1 << LOWEST_VECTOR) - 1) or (self._irr | self._isr) >> 256:
            raise InvariantError("a vector outside 16 to 255 is pending or in service")
