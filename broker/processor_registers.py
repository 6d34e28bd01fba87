"""A processor's registers as guest code reaches them, by MSR number or by name: which register lies where.

The SynIC's and the timers' are the machine's, TPR and EOI the interrupt sink's, GUEST_OS_ID and HYPERCALL the
partition's, VP_INDEX and TIME_REF_COUNT are read-only. Not here: ICR and the VP assist page (MSRs 0x40000071, 73), SIRBP and
DeliverabilityNotifications (names 0x000A0015, 0x00010006).
"""

from __future__ import annotations

from . import trace as events
from .clock import MAX_TICK
from .hvdef import HvRegister, HvStatus, Msr
from .hvdef.registers import msr_number, register_name
from .parts import PartitionParts
from .processor_vtl import ProcessorVtl


class ProcessorRegisters:
    """The registers of processor `index`."""

    def __init__(self, index: int, parts: PartitionParts) -> None:
        self._index = index
        self._parts = parts

    def read_msr(self, own: ProcessorVtl, msr: int) -> int | None:
        """RDMSR; None for a register that does not exist or is write-only."""
        match msr:
            case Msr.VP_INDEX:
                return self._index
            case Msr.TIME_REF_COUNT:
                return self._parts.clock.now() & MAX_TICK
            case Msr.TPR:
                return own.apic.tpr
            case Msr.GUEST_OS_ID | Msr.HYPERCALL:
                return self._parts.hypercall_page.read(msr)
        name = register_name(msr)
        return None if name is None else own.machine.read_register(name)

    def write_msr(self, own: ProcessorVtl, msr: int, value: int) -> bool:
        """WRMSR; False, and no change, for what does not exist, is read-only or does not take this value."""
        self._tell_write(own, msr, value)
        match msr:
            case Msr.EOI:
                own.apic.eoi()
                own.rescan()
                return True
            case Msr.TPR:
                own.apic.set_tpr(value)
                return True
            case Msr.GUEST_OS_ID | Msr.HYPERCALL:
                return self._parts.hypercall_page.write(msr, value)
        name = register_name(msr)
        return name is not None and own.write_register(name, value) is HvStatus.SUCCESS

    def get(self, own: ProcessorVtl, name: int) -> int | None:
        """A register by its `HvRegister` name; None for one that does not exist."""
        msr = msr_number(name)
        return own.machine.read_register(name) if msr is None else self.read_msr(own, msr)

    def set(self, own: ProcessorVtl, name: int, value: int) -> HvStatus:
        """Write a register by its name; INVALID_PARAMETER for a read-only or a locked one."""
        match name:
            case HvRegister.GUEST_OS_ID:
                self._parts.hypercall_page.write(Msr.GUEST_OS_ID, value)
                return HvStatus.SUCCESS
            case HvRegister.HYPERCALL:
                is_written = self._parts.hypercall_page.write(Msr.HYPERCALL, value)
                return HvStatus.SUCCESS if is_written else HvStatus.INVALID_PARAMETER
            case HvRegister.VP_INDEX | HvRegister.TIME_REF_COUNT:
                return HvStatus.INVALID_PARAMETER
        return own.write_register(name, value)

    def _tell_write(self, own: ProcessorVtl, msr: int, value: int) -> None:
        trace, vtl = self._parts.trace, int(own.vtl)
        if trace is None:
            return
        if msr == Msr.EOM:
            trace.emit(events.Eom, vp=self._index, vtl=vtl)
        elif msr == Msr.EOI:
            trace.emit(events.Eoi, vp=self._index, vtl=vtl)
        else:
            trace.emit(events.Write, vp=self._index, vtl=vtl, msr=msr, value=value)
