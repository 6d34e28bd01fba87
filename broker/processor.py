"""A virtual processor: guest code runs as its task and leaves through exits (hypercalls, MSRs, waits).

Every method is one exit; any task may call one, a processor's own task usually does. A processor has a quantum: after
that many exits it lets others have their turn. The common exit (no trace, OPENVMM profile, nothing waiting in a queue)
pays for little more than a counter: whatever needs care takes the `_credit` away, and the next exit goes the careful way.
"""

from __future__ import annotations

from collections.abc import Callable

from . import trace as events
from .core import LocalApic, ProcessorSynic
from .direct import DirectCalls
from .errors import GuestFault, MemoryAccessError, PartitionClosed, SynicUnsupported
from .guest_synic import LocalGuestSynic
from .hvdef import HYPERVISOR_MESSAGE, MAX_PAYLOAD, PAGE_SIZE, HvStatus, Vtl
from .hypercall import Hypercalls
from .memory import GuestMemory
from .parts import PartitionParts
from .processor_registers import ProcessorRegisters
from .processor_vtl import ProcessorVtl
from .state import ProcessorState
from .synic import DispatchCall, HostPosts
from .trace import Trace
from .turns import Turns

_VTL0 = Vtl.VTL0
_MASK = (1 << 64) - 1


class VirtualProcessor:
    """See the module. Made by the partition: `partition.vp(index)`."""

    __slots__ = (
        "_credit",
        "_hypercalls",
        "_is_closed",
        "_is_plain",
        "_needs_care",
        "_parts",
        "_pause",
        "_port_map",
        "_quantum",
        "_registers",
        "_reserve",
        "_signals",
        "_vtls",
        "index",
        "stop_requested",
    )

    def __init__(self, index: int, parts: PartitionParts) -> None:
        self.index = index
        self.stop_requested: Callable[[], None] | None = None
        """Called at every exit while a run is being stopped; it cancels the run unless a handler is in its way."""
        self._is_closed = False
        self._parts = parts
        self._port_map = parts.port_map
        self._signals = parts.synic_backend
        self._quantum = parts.quantum
        self._credit = 0
        """Exits that may still go the short way."""
        self._reserve = parts.quantum
        """Exits left of the quantum besides these."""
        self._pause = parts.turns.pause
        self._needs_care = True
        """The next exit has more to see to than its quantum."""
        self._is_plain = parts.trace is None and not parts.profile.checks_message_type
        self._vtls = {
            vtl: ProcessorVtl(index, vtl, parts, self._tell_higher_vtls, self.slow_down) for vtl in parts.vtls
        }
        self._registers = ProcessorRegisters(index, parts)
        direct = DirectCalls(index, parts.profile, parts.machines) if Vtl.VTL2 in parts.vtls else None
        self._hypercalls = Hypercalls(
            parts.memory,
            parts.profile,
            self._post,
            self._signal,
            None if direct is None else direct.post,
            None if direct is None else direct.signal,
            parts.privileges,
        )

    # hypercalls

    def post_message(
        self, connection_id: int, message_type: int, payload: bytes, *, vtl: Vtl = _VTL0, trusted: bool = False
    ) -> DispatchCall:
        """HvCallPostMessage past the checks of its parameter block; await it for the status.

        INVALID_PARAMETER (over 240 bytes; TLFS profile: type 0 or bit 31 set), then what the port map answers. The
        payload is bytes, because the handler may keep it.
        TIMEOUT, should a handler answer that, comes back as it is; `hypercall` executes such a call again.
        `trusted` reaches the handler where the backend has trusted paths.
        """
        credit = self._credit = self._credit - 1
        if credit < 0 or vtl is not _VTL0 or trusted or len(payload) > MAX_PAYLOAD:
            return self._post_carefully(vtl, connection_id, message_type, payload, trusted)
        return self._port_map.handle_post_message(vtl, connection_id, False, payload)

    def signal_event(self, connection_id: int, flag_number: int = 0, *, vtl: Vtl = _VTL0) -> DispatchCall:
        """HvCallSignalEvent; await it for the status, see `SynicPortMap.handle_signal_event`."""
        credit = self._credit = self._credit - 1
        if credit < 0 or vtl is not _VTL0:
            return self._signal_carefully(vtl, connection_id, flag_number)
        return self._signals.handle_signal_event(vtl, connection_id, flag_number)

    async def hypercall(self, control: int, input_gpa_or_value: int, second: int = 0, *, vtl: Vtl = _VTL0) -> int:
        """Execute a hypercall with all its checks and return the 64-bit result, whose low 16 bits are the status.

        `input_gpa_or_value`: the GPA of the parameter block, or the first register of a fast call. `second`: the
        output GPA or the second register. Values are taken modulo 2 ** 64.
        """
        self._of(vtl)
        await self._begin_exit()
        control, first, second = control & _MASK, input_gpa_or_value & _MASK, second & _MASK
        while (result := await self._hypercalls.dispatch(control, first, second, vtl)) is None:
            await self._pause()
        self._end_exit()
        return result

    # registers

    async def read_msr(self, msr: int, *, vtl: Vtl = _VTL0) -> int:
        """RDMSR of a synthetic register. `GuestFault` (#GP) for one that this model does not have or that is write-only."""
        await self._begin_exit()
        value = self._registers.read_msr(self._of(vtl), msr)
        self._end_exit()
        if value is None:
            raise self._fault(vtl, f"MSR {msr:#010x} cannot be read: it does not exist or is write-only")
        return value

    async def write_msr(self, msr: int, value: int, *, vtl: Vtl = _VTL0) -> None:
        """WRMSR of a synthetic register; EOM and EOI rescan before they return.

        `GuestFault` (#GP) for a register that does not exist or is read-only, for a SIMP or SIEFP page outside guest
        memory, and (TLFS profile) for an unmasked SINT with a vector below 16. Then nothing has changed.
        """
        await self._begin_exit()
        value &= _MASK
        is_written = self._registers.write_msr(self._of(vtl), msr, value)
        self._end_exit()
        if not is_written:
            raise self._fault(vtl, f"MSR {msr:#010x} does not take {value:#x}")

    async def get_register(self, name: int, *, vtl: Vtl = _VTL0) -> int | HvStatus:
        """A register by its `HvRegister` name; UNKNOWN_REGISTER_NAME for one that does not exist."""
        await self._begin_exit()
        value = self._registers.get(self._of(vtl), name)
        self._end_exit()
        return HvStatus.UNKNOWN_REGISTER_NAME if value is None else value

    async def set_register(self, name: int, value: int, *, vtl: Vtl = _VTL0) -> HvStatus:
        """Write a register by its `HvRegister` name; the statuses of `ProcessorSynic.write_register`.

        INVALID_PARAMETER for the read-only VP_INDEX and TIME_REF_COUNT as well.
        """
        await self._begin_exit()
        status = self._registers.set(self._of(vtl), name, value & _MASK)
        self._end_exit()
        return status

    # interrupts

    async def wait_for_interrupt(self, *, vtl: Vtl = _VTL0) -> int:
        """Halt until a vector is deliverable, acknowledge it and return it."""
        await self._begin_exit()
        own = self._of(vtl)
        self._end_exit()
        while (vector := own.take_interrupt()) is None:
            await own.wait_interrupted(own.interrupts)
        return vector

    def try_take_interrupt(self, *, vtl: Vtl = _VTL0) -> int | None:
        """Acknowledge the highest deliverable vector (IRR -> ISR, unless auto-EOI), None when there is none."""
        return self._of(vtl).take_interrupt()

    # memory

    async def write_memory(self, gpa: int, data: bytes) -> None:
        """A store by guest code. A store into the monitor page signals its triggers and is not kept.

        `GuestFault` (#GP) for addresses outside guest memory.
        """
        await self._begin_exit()
        try:
            await self._store(gpa, data)
        except MemoryAccessError as error:
            raise self._fault(_VTL0, str(error)) from error
        finally:
            self._end_exit()

    # what drivers and the partition ask for

    @property
    def memory(self) -> GuestMemory:
        """Guest memory, as the processor's own loads see it."""
        return self._parts.memory

    @property
    def turns(self) -> Turns:
        """Where tasks of this partition wait."""
        return self._parts.turns

    @property
    def trace(self) -> Trace | None:
        """The partition's trace."""
        return self._parts.trace

    def guest_synic(self, vtl: Vtl = _VTL0) -> LocalGuestSynic:
        """What a guest-side driver on this processor and VTL holds."""
        return LocalGuestSynic(self, self._of(vtl), self._parts.memory)

    def apic(self, vtl: Vtl = _VTL0) -> LocalApic:
        """This VTL's interrupt sink."""
        return self._of(vtl).apic

    def machine(self, vtl: Vtl = _VTL0) -> ProcessorSynic | None:
        """This VTL's SynIC, None where the partition has no such VTL."""
        own = self._vtls.get(vtl)
        return None if own is None else own.machine

    def posts(self, vtl: Vtl) -> HostPosts | None:
        """The host's front door to this VTL, None where the partition has no such VTL."""
        own = self._vtls.get(vtl)
        return None if own is None else own.posts

    def slow_down(self) -> None:
        """Let the next exit go the careful way."""
        self._needs_care = True
        self._withdraw_credit()

    def reset(self) -> None:
        """As a new processor: registers, pages, queues, timers and pending interrupts."""
        self.slow_down()
        self._reserve = self._quantum
        for own in self._vtls.values():
            own.reset()

    def drop_waiting_posts(self) -> None:
        """The partition is being reset: posts that wait for room are dropped, as queued ones will be."""
        for own in self._vtls.values():
            own.posts.reset()

    def end_posts(self) -> None:
        """The partition is ending: posts that wait for room get `PortClosed`."""
        for own in self._vtls.values():
            own.posts.close()

    def close(self) -> None:
        """The partition has ended: no more timers, waits or exits."""
        self._is_closed = True
        self.slow_down()
        for own in self._vtls.values():
            own.close()

    def save(self, now: int) -> ProcessorState:
        """Everything of this processor but the guest code it runs."""
        self.slow_down()
        return ProcessorState(self.index, self._reserve, [own.save(now) for own in self._vtls.values()])

    def restore(self, state: ProcessorState, now: int) -> None:
        """Take over what `save` returned; call `restored` when all processors have theirs."""
        self._credit, self._reserve = 0, min(state.exits_left, self._quantum)
        for own, of_vtl in zip(self._vtls.values(), state.vtls, strict=True):
            own.restore(of_vtl, now)

    def restored(self) -> None:
        """Deliver what waited in the saved state."""
        for own in self._vtls.values():
            own.restored()

    # within

    async def _store(self, gpa: int, data: bytes) -> None:
        monitor, memory = self._parts.monitor, self._parts.memory
        signalled = None if monitor is None else monitor.page.check_write(gpa, data)
        if signalled is None:
            memory.write(gpa, data)
            return
        beyond = PAGE_SIZE - gpa % PAGE_SIZE
        if beyond < len(data):
            memory.write(gpa + beyond, data[beyond:])
        for connection_id in signalled:
            await self._signal(_VTL0, connection_id, 0)

    def _of(self, vtl: Vtl) -> ProcessorVtl:
        own = self._vtls.get(vtl)
        if own is None:
            raise SynicUnsupported(f"this partition has no VTL {int(vtl)}; name it in PartitionConfig.vtls")
        return own

    def _tell_higher_vtls(self, vtl: Vtl) -> None:
        for higher, own in self._vtls.items():
            vina = own.machine.vina
            if higher > vtl and vina.enabled:
                if vina.auto_reset:
                    own.machine.registers.vina = vina.replace(enabled=False)
                own.apic.request(vina.vector, vina.auto_eoi)

    def _withdraw_credit(self) -> None:
        if self._credit > 0:
            self._reserve += self._credit
        self._credit = 0

    async def _begin_exit(self) -> None:
        """Account for one exit: stop if asked to, end a quantum that is used up."""
        self._withdraw_credit()
        if self.stop_requested is not None:
            self.stop_requested()
            await self._pause()
        if self._is_closed:
            raise PartitionClosed("the partition has ended; its processors do nothing any more")
        if self._reserve <= 0:
            self._reserve = self._quantum
            await self._pause()
        self._reserve -= 1

    def _end_exit(self) -> None:
        """Deliver what waits, before guest code goes on; go the short way next time if nothing does any more."""
        still_waiting = [own for own in self._vtls.values() if own.rescan_if_waiting()]
        is_plain = self._is_plain and not self._parts.intercepts_unknown
        self._needs_care = not is_plain or bool(still_waiting) or self.stop_requested is not None
        if not self._needs_care:
            self._credit, self._reserve = self._reserve, 0

    async def _post_carefully(
        self, vtl: Vtl, connection_id: int, message_type: int, payload: bytes, trusted: bool
    ) -> HvStatus:
        is_plain = vtl is _VTL0 and not trusted and len(payload) <= MAX_PAYLOAD
        if is_plain and self._credit < 0 and not (self._reserve or self._needs_care):
            await self._pause()  # the quantum is used up, and that is all there is to see to
            if not self._needs_care:
                self._credit = self._quantum - 1
                return await self._port_map.handle_post_message(vtl, connection_id, False, payload)
            self._credit, self._reserve = 0, self._quantum
        self._of(vtl)
        await self._begin_exit()
        status = await self._post(vtl, connection_id, message_type, payload, trusted)
        while status is HvStatus.TIMEOUT and self._parts.intercepts_unknown:
            await self._pause()
            status = await self._post(vtl, connection_id, message_type, payload, trusted)
        self._end_exit()
        return status

    async def _signal_carefully(self, vtl: Vtl, connection_id: int, flag_number: int) -> HvStatus:
        if vtl is _VTL0 and self._credit < 0 and not (self._reserve or self._needs_care):
            await self._pause()
            if not self._needs_care:
                self._credit = self._quantum - 1
                return await self._signals.handle_signal_event(vtl, connection_id, flag_number)
            self._credit, self._reserve = 0, self._quantum
        self._of(vtl)
        await self._begin_exit()
        status = await self._signal(vtl, connection_id, flag_number)
        while status is HvStatus.TIMEOUT and self._parts.intercepts_unknown:
            await self._pause()
            status = await self._signal(vtl, connection_id, flag_number)
        self._end_exit()
        return status

    async def _post(
        self, vtl: Vtl, connection_id: int, message_type: int, payload: bytes, trusted: bool = False
    ) -> HvStatus:
        trace = self._parts.trace
        if trace is None:
            return await self._checked_post(vtl, connection_id, message_type, payload, trusted)
        flow = trace.new_flow()
        posted = trace.emit(
            events.Post,
            flow=flow,
            vp=self.index,
            vtl=int(vtl),
            connection_id=connection_id,
            message_type=message_type,
            payload=bytes(payload),
        )
        with trace.working_on((posted, flow)):
            status = await self._checked_post(vtl, connection_id, message_type, payload, trusted)
            self._tell_outcome(trace, connection_id, status)
        return status

    async def _checked_post(
        self, vtl: Vtl, connection_id: int, message_type: int, payload: bytes, trusted: bool
    ) -> HvStatus:
        if len(payload) > MAX_PAYLOAD:
            return HvStatus.INVALID_PARAMETER
        if self._parts.profile.checks_message_type and not 0 < message_type < HYPERVISOR_MESSAGE:
            return HvStatus.INVALID_PARAMETER
        trusted = trusted and self._parts.trusts_posts
        call = self._port_map.handle_post_message(vtl, connection_id, trusted, bytes(payload))
        return await self._finish(vtl, connection_id, call)

    async def _signal(self, vtl: Vtl, connection_id: int, flag_number: int) -> HvStatus:
        trace = self._parts.trace
        call = self._signals.handle_signal_event(vtl, connection_id, flag_number)
        if trace is None:
            return await self._finish(vtl, connection_id, call)
        flow = trace.new_flow()
        signalled = trace.emit(
            events.Signal, flow=flow, vp=self.index, vtl=int(vtl), connection_id=connection_id, flag=flag_number
        )
        with trace.working_on((signalled, flow)):
            status = await self._finish(vtl, connection_id, call)
            self._tell_outcome(trace, connection_id, status)
        return status

    async def _finish(self, vtl: Vtl, connection_id: int, call: DispatchCall) -> HvStatus:
        status = await call
        is_unknown = status is HvStatus.INVALID_CONNECTION_ID and vtl == _VTL0
        if is_unknown and await self._parts.reflect(self.index, connection_id):
            return HvStatus.TIMEOUT
        return status

    def _tell_outcome(self, trace: Trace, connection_id: int, status: HvStatus) -> None:
        if status is HvStatus.SUCCESS:
            trace.emit(events.Route, connection_id=connection_id)
        else:
            reason = self._port_map.explain(connection_id, status)
            trace.emit(events.Refuse, connection_id=connection_id, status=int(status), reason=reason)

    def _fault(self, vtl: Vtl, reason: str) -> GuestFault:
        trace = self._parts.trace
        if trace is not None:
            trace.emit(events.Fault, vp=self.index, vtl=int(vtl), fault="#GP", reason=reason)
        return GuestFault("#GP", reason)
