"""GUEST_OS_ID and HYPERCALL (TLFS, "Establishing the Hypercall Interface"): the partition-wide registers."""

from __future__ import annotations

from ..hvdef.bits import Field, Flag, Register
from ..hvdef.registers import Msr


class HypercallMsr(Register):
    """HYPERCALL. Bit 0 enable; 1 locked; 63:12 guest page number."""

    enable = Flag(0)
    locked = Flag(1)
    gpn = Field(12, 52)


class HypercallPage:
    """The two registers. The page cannot be enabled without an OS ID, nor changed once it is locked."""

    def __init__(self) -> None:
        self.guest_os_id = 0
        self.hypercall = HypercallMsr(0)

    def read(self, msr: int) -> int | None:
        """A register by its MSR number, None for another one."""
        match msr:
            case Msr.GUEST_OS_ID:
                return self.guest_os_id
            case Msr.HYPERCALL:
                return int(self.hypercall)
        return None

    def write(self, msr: int, value: int) -> bool:
        """Write a register; False, and no change, for another one and while the page is locked."""
        match msr:
            case Msr.GUEST_OS_ID:
                self.guest_os_id = value
                if not value:
                    self.hypercall = self.hypercall.replace(enable=False)
                return True
            case Msr.HYPERCALL if not self.hypercall.locked:
                self.hypercall = HypercallMsr(value)
                if not self.guest_os_id:
                    self.hypercall = self.hypercall.replace(enable=False)
                return True
        return False

    def save(self) -> tuple[int, int]:
        """GUEST_OS_ID and HYPERCALL."""
        return self.guest_os_id, int(self.hypercall)

    def restore(self, state: tuple[int, int]) -> None:
        """Take over what `save` returned."""
        self.guest_os_id, self.hypercall = state[0], HypercallMsr(state[1])
