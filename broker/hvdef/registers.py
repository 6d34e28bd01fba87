"""SynIC and timer registers: MSR numbers, register names, bit layouts (TLFS, "Virtual Interrupts" and "Timers").

All registers are 64 bits. Reserved bits are kept as written and read back, as OpenVMM and KVM do.
"""

from __future__ import annotations

from enum import IntEnum

from .bits import Field, Flag, Register

SINT_COUNT = 16
TIMER_COUNT = 4
PAGE_SIZE = 4096
PAGE_SHIFT = 12
SINT_RESET = 0x1_0000
"""Value of every SINT register at reset: masked, vector 0."""
SVERSION_VALUE = 1


class Msr(IntEnum):
    """x64 model-specific register numbers of the synthetic registers."""

    GUEST_OS_ID = 0x4000_0000
    HYPERCALL = 0x4000_0001
    VP_INDEX = 0x4000_0002
    TIME_REF_COUNT = 0x4000_0020
    EOI = 0x4000_0070
    TPR = 0x4000_0072
    SCONTROL = 0x4000_0080
    SVERSION = 0x4000_0081
    SIEFP = 0x4000_0082
    SIMP = 0x4000_0083
    EOM = 0x4000_0084
    SINT0 = 0x4000_0090
    SINT15 = 0x4000_009F
    STIMER0_CONFIG = 0x4000_00B0
    STIMER0_COUNT = 0x4000_00B1
    STIMER3_COUNT = 0x4000_00B7

    @staticmethod
    def sint(index: int) -> int:
        """The number of SINTn. `ValueError` unless 0 <= n <= 15."""
        if not 0 <= index < SINT_COUNT:
            raise ValueError(f"SINT {index} does not exist, a SynIC has SINT 0 to 15")
        return Msr.SINT0 + index

    @staticmethod
    def stimer_config(index: int) -> int:
        """The number of STIMERn_CONFIG. `ValueError` unless 0 <= n <= 3."""
        if not 0 <= index < TIMER_COUNT:
            raise ValueError(f"timer {index} does not exist, a processor has timers 0 to 3")
        return Msr.STIMER0_CONFIG + 2 * index

    @staticmethod
    def stimer_count(index: int) -> int:
        """The number of STIMERn_COUNT. `ValueError` unless 0 <= n <= 3."""
        return Msr.stimer_config(index) + 1


class HvRegister(IntEnum):
    """Register names as HvCallGetVpRegisters and HvCallSetVpRegisters take them (also the only names on ARM64)."""

    HYPERCALL = 0x0009_0001
    GUEST_OS_ID = 0x0009_0002
    VP_INDEX = 0x0009_0003
    TIME_REF_COUNT = 0x0009_0004
    SINT0 = 0x000A_0000
    SINT15 = 0x000A_000F
    SCONTROL = 0x000A_0010
    SVERSION = 0x000A_0011
    SIFP = 0x000A_0012
    SIPP = 0x000A_0013
    EOM = 0x000A_0014
    STIMER0_CONFIG = 0x000B_0000
    STIMER3_COUNT = 0x000B_0007
    VSM_VINA = 0x000D_0005


_NAME_OF_MSR: dict[int, int] = {
    Msr.GUEST_OS_ID: HvRegister.GUEST_OS_ID,
    Msr.HYPERCALL: HvRegister.HYPERCALL,
    Msr.VP_INDEX: HvRegister.VP_INDEX,
    Msr.TIME_REF_COUNT: HvRegister.TIME_REF_COUNT,
    Msr.SCONTROL: HvRegister.SCONTROL,
    Msr.SVERSION: HvRegister.SVERSION,
    Msr.SIEFP: HvRegister.SIFP,
    Msr.SIMP: HvRegister.SIPP,
    Msr.EOM: HvRegister.EOM,
    **{Msr.SINT0 + n: HvRegister.SINT0 + n for n in range(SINT_COUNT)},
    **{Msr.STIMER0_CONFIG + n: HvRegister.STIMER0_CONFIG + n for n in range(2 * TIMER_COUNT)},
}
_MSR_OF_NAME = {name: msr for msr, name in _NAME_OF_MSR.items()}


def register_name(msr: int) -> int | None:
    """The register name behind an MSR number, or None where the MSR has none."""
    return _NAME_OF_MSR.get(msr)


def msr_number(name: int) -> int | None:
    """The MSR number behind a register name, or None where the name has none (VSM_VINA, unknown names)."""
    return _MSR_OF_NAME.get(name)


class SyntheticControl(Register):
    """SCONTROL. Bit 0 enable; 63:1 preserved."""

    enable = Flag(0)


class PageRegister(Register):
    """SIMP and SIEFP. Bit 0 enable; 11:1 preserved; 63:12 guest page number."""

    enable = Flag(0)
    preserved = Field(1, 11)
    gpn = Field(12, 52)

    @property
    def gpa(self) -> int:
        """The guest physical address of the page, in bytes."""
        return self.gpn << PAGE_SHIFT


class SintRegister(Register):
    """SINTx. 7:0 vector; 16 masked; 17 auto-EOI; 18 polling; 19 as-intercept; 20 proxy; the rest preserved."""

    vector = Field(0, 8)
    masked = Flag(16)
    auto_eoi = Flag(17)
    polling = Flag(18)
    as_intercept = Flag(19)
    proxy = Flag(20)


class TimerConfig(Register):
    """STIMERn_CONFIG."""

    enable = Flag(0)
    periodic = Flag(1)
    lazy = Flag(2)
    auto_enable = Flag(3)
    apic_vector = Field(4, 8)
    direct_mode = Flag(12)
    reserved_z0 = Field(13, 3)
    sintx = Field(16, 4)
    reserved_z1 = Field(20, 44)


class VsmVina(Register):
    """VSM_VINA, the virtual interrupt notification assist. 7:0 vector; 8 enabled; 9 auto-reset; 10 auto-EOI; rest zero."""

    vector = Field(0, 8)
    enabled = Flag(8)
    auto_reset = Flag(9)
    auto_eoi = Flag(10)
    reserved = Field(11, 53)
