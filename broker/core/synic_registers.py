"""The SynIC registers of one processor and VTL, and the two pages that SIMP and SIEFP place.

Will: keep what is written, reserved bits included; place the pages; refuse what the profile refuses.
Will not: deliver anything. Timers have registers of their own, see `timers`.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from ..errors import InvariantError, MemoryAccessError
from ..hvdef.profile import Profile
from ..hvdef.registers import (
    SINT_COUNT,
    SINT_RESET,
    SVERSION_VALUE,
    HvRegister,
    PageRegister,
    SintRegister,
    SyntheticControl,
    VsmVina,
)
from ..hvdef.status import HvStatus
from .local_apic import LOWEST_VECTOR
from .overlay import OverlayPage


class OverlayState(msgspec.Struct, frozen=True):
    """An overlay page as saved: where it is mapped (None: hidden) and its 4096 bytes."""

    gpn: int | None
    contents: bytes


class RegisterState(msgspec.Struct, frozen=True):
    """The registers and pages as saved."""

    scontrol: int
    siefp: int
    simp: int
    sints: list[int]
    vina: int
    sim_page: OverlayState
    sief_page: OverlayState


class SynicRegisters:
    """See the module. `lock_page` gives a writable view of a guest page or raises `MemoryAccessError`."""

    def __init__(self, profile: Profile, lock_page: Callable[[int], memoryview]) -> None:
        self._profile = profile
        self.sim = OverlayPage(lock_page)
        self.sief = OverlayPage(lock_page)
        self.reset()

    def reset(self) -> None:
        """As a new processor has them: SINTs masked, pages hidden and zero."""
        self.scontrol = SyntheticControl(self._profile.scontrol_reset)
        self.siefp = PageRegister(0)
        self.simp = PageRegister(0)
        self.sints = [SintRegister(SINT_RESET)] * SINT_COUNT
        self.vina = VsmVina(0)
        self.sim.reset()
        self.sief.reset()

    def read(self, name: int) -> int | None:
        """A register by its `HvRegister` name; None for a name that is not here."""
        if HvRegister.SINT0 <= name <= HvRegister.SINT15:
            return int(self.sints[name - HvRegister.SINT0])
        match name:
            case HvRegister.SCONTROL:
                return int(self.scontrol)
            case HvRegister.SVERSION:
                return SVERSION_VALUE
            case HvRegister.SIFP:
                return int(self.siefp)
            case HvRegister.SIPP:
                return int(self.simp)
            case HvRegister.EOM:
                return 0
            case HvRegister.VSM_VINA:
                return int(self.vina)
        return None

    def write(self, name: int, value: int) -> HvStatus:
        """Write a register; the statuses of `ProcessorSynic.write_register`. Writing EOM changes nothing here."""
        if HvRegister.SINT0 <= name <= HvRegister.SINT15:
            return self._write_sint(name - HvRegister.SINT0, SintRegister(value))
        match name:
            case HvRegister.SCONTROL:
                self.scontrol = SyntheticControl(value)
            case HvRegister.SIPP:
                if not _place(self.sim, PageRegister(value)):
                    return HvStatus.INVALID_REGISTER_VALUE
                self.simp = PageRegister(value)
            case HvRegister.SIFP:
                if not _place(self.sief, PageRegister(value)):
                    return HvStatus.INVALID_REGISTER_VALUE
                self.siefp = PageRegister(value)
            case HvRegister.VSM_VINA:
                if VsmVina(value).reserved:
                    return HvStatus.INVALID_PARAMETER
                self.vina = VsmVina(value)
            case HvRegister.EOM:
                pass
            case HvRegister.SVERSION:
                return HvStatus.INVALID_PARAMETER
            case _:
                return HvStatus.UNKNOWN_REGISTER_NAME
        return HvStatus.SUCCESS

    def save(self) -> RegisterState:
        """Everything, pages included."""
        return RegisterState(
            scontrol=int(self.scontrol),
            siefp=int(self.siefp),
            simp=int(self.simp),
            sints=[int(sint) for sint in self.sints],
            vina=int(self.vina),
            sim_page=OverlayState(self.sim.gpn, bytes(self.sim.data)),
            sief_page=OverlayState(self.sief.gpn, bytes(self.sief.data)),
        )

    def restore(self, state: RegisterState) -> None:
        """Take over what `save` returned. `MemoryAccessError` when a page does not fit this partition's memory."""
        self.sim.restore(state.sim_page.gpn, state.sim_page.contents)
        self.sief.restore(state.sief_page.gpn, state.sief_page.contents)
        self.scontrol = SyntheticControl(state.scontrol)
        self.siefp = PageRegister(state.siefp)
        self.simp = PageRegister(state.simp)
        self.sints = [SintRegister(sint) for sint in state.sints]
        self.vina = VsmVina(state.vina)

    def check(self) -> None:
        """Every invariant. `InvariantError` when one is broken."""
        for register, page in ((self.simp, self.sim), (self.siefp, self.sief)):
            if page.gpn != (register.gpn if register.enable else None):
                raise InvariantError(f"a page register says {register:#x} and its page is at {page.gpn}")

    def _write_sint(self, sint: int, register: SintRegister) -> HvStatus:
        if self._profile.checks_vector and not register.masked and register.vector < LOWEST_VECTOR:
            return HvStatus.INVALID_REGISTER_VALUE
        self.sints[sint] = register
        return HvStatus.SUCCESS


def _place(page: OverlayPage, register: PageRegister) -> bool:
    if not register.enable:
        page.unmap()
        return True
    try:
        page.map(register.gpn)
    except MemoryAccessError:
        return False
    return True
