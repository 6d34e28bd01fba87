"""The SynIC of one virtual processor and VTL (TLFS, "Synthetic Interrupt Controller"; OpenVMM, `hv1_emulator/synic.rs`).

Will: keep the registers, the SIM and SIEF pages, the message queues and the timers; fill slots, set flags, request
interrupts from the local interrupt sink it was given; tell its trace what it did.
Will not: wait, read a clock, know ports, or wake anybody (the interrupt sink does).

Delivery of a message goes through readiness, as OpenVMM's does: a SINT is asked for (`request_readiness`), a scan finds
its slot empty and remembers that it is ready, and only then a post fills the slot. `rescan` does all of it until
nothing moves. A slot's type is written last; message-pending is set by its own byte, and the type is read again after.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

import msgspec

from .. import trace as events
from ..errors import InvariantError, MemoryAccessError
from ..hvdef.message import (
    EVENT_FLAGS_PER_SINT,
    FLAGS_OFFSET,
    MESSAGE_PENDING,
    MESSAGE_SIZE,
    MESSAGE_TYPE,
    MessageType,
    SynicMessage,
    TimerMessage,
    flag_location,
    slot_offset,
)
from ..hvdef.profile import DeliveryRules, Profile
from ..hvdef.registers import (
    SINT_COUNT,
    SINT_RESET,
    SVERSION_VALUE,
    HvRegister,
    PageRegister,
    SintRegister,
    SyntheticControl,
    TimerConfig,
    VsmVina,
)
from ..hvdef.status import HvStatus
from .local_apic import LOWEST_VECTOR, LocalApic
from .message_queues import MessageQueues, QueuedMessage
from .overlay import OverlayPage
from .timers import SyntheticTimers, TimerState

_ALL_SINTS = (1 << SINT_COUNT) - 1


class Signaled(Enum):
    """What became of an event flag."""

    NEWLY = "newly-signaled"
    ALREADY = "already-set"
    REFUSED = "refused"
    """Masked, disabled or out of range: nothing happened."""
    PROXIED = "proxied"
    """The SINT belongs to the host's SynIC; the caller has to route it."""


class OverlayState(msgspec.Struct, frozen=True):
    """An overlay page as saved: where it is mapped (None: hidden) and its 4096 bytes."""

    gpn: int | None
    contents: bytes


class SynicState(msgspec.Struct, frozen=True):
    """A processor's SynIC as saved."""

    scontrol: int
    siefp: int
    simp: int
    sints: list[int]
    vina: int
    sim_page: OverlayState
    sief_page: OverlayState
    ready: int
    requested: int
    queues: list[list[QueuedMessage]]
    timers: list[TimerState]
    dropped: int


class ProcessorSynic:
    """See the module. `lock_page` gives a writable view of a guest page or raises `MemoryAccessError`.

    `room(sint)` is called after a message left that SINT's queue and may enqueue the next one. `proxied(sint, message)`
    takes the messages of proxied SINTs; without it they are dropped.
    """

    def __init__(
        self,
        vp_index: int,
        vtl: int,
        profile: Profile,
        rules: DeliveryRules,
        apic: LocalApic,
        lock_page: Callable[[int], memoryview],
        queue_depth: int,
        trace: events.Trace | None = None,
        room: Callable[[int], None] = lambda sint: None,
        proxied: Callable[[int, QueuedMessage], None] | None = None,
    ) -> None:
        self.apic = apic
        self.queues = MessageQueues(queue_depth)
        self.timers = SyntheticTimers(profile)
        self.interrupt_contexts: dict[int, events.Context] = {}
        """What each requested vector is due to, while tracing."""
        self.dropped = 0
        """Messages lost by the rules since the processor was created."""
        self._vp = vp_index
        self._vtl = vtl
        self._profile = profile
        self.rules = rules
        self._trace = trace
        self._room = room
        self._proxied = proxied
        self._sim = OverlayPage(lock_page)
        self._sief = OverlayPage(lock_page)
        self._clear_registers()

    # registers

    def read_register(self, name: int) -> int | None:
        """A register by its name (`HvRegister`); None for a name the SynIC does not have."""
        if HvRegister.SINT0 <= name <= HvRegister.SINT15:
            return int(self._sints[name - HvRegister.SINT0])
        if HvRegister.STIMER0_CONFIG <= name <= HvRegister.STIMER3_COUNT:
            index, is_count = divmod(name - HvRegister.STIMER0_CONFIG, 2)
            return self.timers.count(index) if is_count else int(self.timers.config(index))
        match name:
            case HvRegister.SCONTROL:
                return int(self._scontrol)
            case HvRegister.SVERSION:
                return SVERSION_VALUE
            case HvRegister.SIFP:
                return int(self._siefp)
            case HvRegister.SIPP:
                return int(self._simp)
            case HvRegister.EOM:
                return 0
            case HvRegister.VSM_VINA:
                return int(self._vina)
        return None

    def write_register(self, name: int, value: int, now: int) -> HvStatus:
        """Write a register by its name and rescan.

        INVALID_PARAMETER for SVERSION and for reserved VINA bits; INVALID_REGISTER_VALUE for a page that is not in guest
        memory and (strict) for an unmasked vector below 16; UNKNOWN_REGISTER_NAME. Then nothing has changed. A guest
        that used the MSR gets #GP in all four cases.
        """
        status = self._write(name, value, now)
        if status is HvStatus.SUCCESS:
            self.rescan(now)
        return status

    def sint(self, sint: int) -> SintRegister:
        """SINTn."""
        return self._sints[sint]

    @property
    def vina(self) -> VsmVina:
        """The virtual interrupt notification assist register."""
        return self._vina

    @property
    def enabled(self) -> bool:
        """SCONTROL.enable."""
        return self._scontrol.enable

    @property
    def sim_page(self) -> memoryview:
        """The SIM page's contents, mapped or hidden; valid until SIMP is written."""
        return self._sim.data

    @property
    def sief_page(self) -> memoryview:
        """The SIEF page's contents, mapped or hidden; valid until SIEFP is written."""
        return self._sief.data

    def proxied_sints(self) -> int:
        """The bitmap of SINTs with the proxy bit."""
        return sum(1 << n for n, sint in enumerate(self._sints) if sint.proxy)

    # messages to the guest

    def enqueue(self, sint: int, message: QueuedMessage) -> bool:
        """Queue a message for a SINT that has room; True when the processor has to look at this queue now."""
        if self._trace is not None:
            queued = self._trace.emit(
                events.Queue,
                flow=message.flow,
                vp=self._vp,
                vtl=self._vtl,
                sint=sint,
                message_type=message.message_type,
                payload=message.payload,
                depth=self.queues.count(sint) + 1,
            )
            message = msgspec.structs.replace(message, cause=queued)
        return self.queues.enqueue(sint, message)

    def post_message(self, sint: int, message: QueuedMessage) -> HvStatus:
        """Put a message in its slot now.

        INVALID_SYNIC_STATE for a SINT above 15, masked (OpenVMM), proxied, or switched off (strict); OBJECT_IN_USE
        unless a scan found the slot empty and nothing was posted since.
        """
        if not 0 <= sint < SINT_COUNT:
            return HvStatus.INVALID_SYNIC_STATE
        register = self._sints[sint]
        if register.proxy or (register.masked and self.rules.message_masked == "drop"):
            return HvStatus.INVALID_SYNIC_STATE
        if self._switched_off():
            return HvStatus.INVALID_SYNIC_STATE
        if not self._ready >> sint & 1:
            return HvStatus.OBJECT_IN_USE
        offset = slot_offset(sint)
        slot = SynicMessage(message.message_type, message.payload, 0, message.origination_id).pack()
        page = self._sim.data
        page[offset + MESSAGE_TYPE.size : offset + MESSAGE_SIZE] = slot[MESSAGE_TYPE.size :]
        page[offset : offset + MESSAGE_TYPE.size] = slot[: MESSAGE_TYPE.size]
        self._ready &= ~(1 << sint)
        context = self._tell_delivered(sint, message)
        if not register.polling and not register.masked:
            self._request_interrupt(register.vector, register.auto_eoi, context)
        return HvStatus.SUCCESS

    def post_if_free(self, sint: int, message: QueuedMessage) -> HvStatus:
        """Look at the slot, then post. Statuses as `post_message`; nothing is queued, a busy slot gets its pending flag."""
        if 0 <= sint < SINT_COUNT:
            self._probe(sint)
        return self.post_message(sint, message)

    def post_intercept_message(self, message: QueuedMessage) -> HvStatus:
        """Put a hypervisor message in SINT 0's slot if that is empty; statuses as `post_message`."""
        return self.post_if_free(0, message)

    def request_readiness(self, mask: int) -> None:
        """Ask to be told which of these SINTs have an empty slot; replaces what was asked before."""
        self._requested = mask & _ALL_SINTS

    def scan(self, now: int) -> int:
        """Probe the requested SINTs, expire due timers, and return those that are ready, which ends their request.

        A requested slot that is busy gets its message-pending flag.
        """
        ready = 0
        for sint in range(SINT_COUNT):
            if self._requested >> sint & 1 and self._probe(sint):
                ready |= 1 << sint
        self.timers.expire(now, lambda index, config, due: self._fire_timer(index, config, due, now))
        self._requested &= ~ready
        return ready

    def rescan(self, now: int) -> None:
        """Deliver whatever can be delivered: queued messages, then due timers, until nothing moves."""
        while True:
            self.request_readiness(self.queues.pending)
            ready = self.scan(now)
            if not ready:
                return
            self.queues.flush(ready, self._post_queued, self._discard, self._room)

    def has_work(self, now: int) -> bool:
        """True when a rescan might deliver something that waits for the guest."""
        return bool(self.queues.pending) or self.timers.has_overdue(now)

    # events to the guest

    def signal_event(self, sint: int, flag: int) -> Signaled:
        """Set an event flag and request the SINT's interrupt unless the flag was set or the SINT polls."""
        outcome = self._signal(sint, flag)
        context = None
        if self._trace is not None:
            flow = self._trace.context()[1] or self._trace.new_flow()
            raised = self._trace.emit(
                events.Raise, flow=flow, vp=self._vp, vtl=self._vtl, sint=sint, flag=flag, outcome=outcome.value
            )
            context = (raised, flow)
        if outcome is Signaled.NEWLY:
            register = self._sints[sint]
            if not register.polling and not register.masked:
                self._request_interrupt(register.vector, register.auto_eoi, context)
        return outcome

    # life

    def reset(self) -> None:
        """Registers, pages, queues and timers as a new processor has them. What was queued is dropped and counted."""
        for sint, message in self.queues.clear():
            self.drop(sint, message, "reset")
        self.timers.reset()
        self._sim.reset()
        self._sief.reset()
        self._clear_registers()

    def drop(self, sint: int, message: QueuedMessage, reason: str) -> None:
        """Count and trace a message that will not arrive."""
        self.dropped += 1
        if self._trace is not None:
            self._trace.emit(
                events.Drop,
                cause=message.cause,
                flow=message.flow,
                vp=self._vp,
                vtl=self._vtl,
                sint=sint,
                message_type=message.message_type,
                reason=reason,
            )

    def save(self, now: int) -> SynicState:
        """Everything, pages included."""
        return SynicState(
            scontrol=int(self._scontrol),
            siefp=int(self._siefp),
            simp=int(self._simp),
            sints=[int(sint) for sint in self._sints],
            vina=int(self._vina),
            sim_page=OverlayState(self._sim.gpn, bytes(self._sim.data)),
            sief_page=OverlayState(self._sief.gpn, bytes(self._sief.data)),
            ready=self._ready,
            requested=self._requested,
            queues=self.queues.save(),
            timers=self.timers.save(now),
            dropped=self.dropped,
        )

    def restore(self, state: SynicState, now: int) -> None:
        """Take over what `save` returned. `MemoryAccessError` when a page does not fit this partition's memory."""
        self._sim.restore(state.sim_page.gpn, state.sim_page.contents)
        self._sief.restore(state.sief_page.gpn, state.sief_page.contents)
        self._scontrol = SyntheticControl(state.scontrol)
        self._siefp = PageRegister(state.siefp)
        self._simp = PageRegister(state.simp)
        self._sints = [SintRegister(sint) for sint in state.sints]
        self._vina = VsmVina(state.vina)
        self._ready = state.ready
        self._requested = state.requested
        self.queues.restore(state.queues)
        self.timers.restore(state.timers, now)
        self.dropped = state.dropped

    def check(self) -> None:
        """Every invariant. `InvariantError` when one is broken."""
        self.queues.check()
        self.apic.check()
        for register, page in ((self._simp, self._sim), (self._siefp, self._sief)):
            if page.gpn != (register.gpn if register.enable else None):
                raise InvariantError(f"a page register says {register:#x} and its page is at {page.gpn}")

    # within

    def _clear_registers(self) -> None:
        self._scontrol = SyntheticControl(self._profile.scontrol_reset)
        self._siefp = PageRegister(0)
        self._simp = PageRegister(0)
        self._sints = [SintRegister(SINT_RESET)] * SINT_COUNT
        self._vina = VsmVina(0)
        self._ready = 0
        self._requested = 0

    def _write(self, name: int, value: int, now: int) -> HvStatus:
        if HvRegister.SINT0 <= name <= HvRegister.SINT15:
            return self._write_sint(name - HvRegister.SINT0, SintRegister(value))
        if HvRegister.STIMER0_CONFIG <= name <= HvRegister.STIMER3_COUNT:
            index, is_count = divmod(name - HvRegister.STIMER0_CONFIG, 2)
            (self.timers.write_count if is_count else self.timers.write_config)(index, value, now)
            return HvStatus.SUCCESS
        match name:
            case HvRegister.SCONTROL:
                self._scontrol = SyntheticControl(value)
            case HvRegister.SIPP:
                if not self._place(self._sim, PageRegister(value)):
                    return HvStatus.INVALID_REGISTER_VALUE
                self._simp = PageRegister(value)
            case HvRegister.SIFP:
                if not self._place(self._sief, PageRegister(value)):
                    return HvStatus.INVALID_REGISTER_VALUE
                self._siefp = PageRegister(value)
            case HvRegister.VSM_VINA:
                if VsmVina(value).reserved:
                    return HvStatus.INVALID_PARAMETER
                self._vina = VsmVina(value)
            case HvRegister.EOM:
                pass
            case HvRegister.SVERSION:
                return HvStatus.INVALID_PARAMETER
            case _:
                return HvStatus.UNKNOWN_REGISTER_NAME
        return HvStatus.SUCCESS

    def _write_sint(self, sint: int, register: SintRegister) -> HvStatus:
        if self._profile.checks_vector and not register.masked and register.vector < LOWEST_VECTOR:
            return HvStatus.INVALID_REGISTER_VALUE
        self._sints[sint] = register
        return HvStatus.SUCCESS

    @staticmethod
    def _place(page: OverlayPage, register: PageRegister) -> bool:
        if not register.enable:
            page.unmap()
            return True
        try:
            page.map(register.gpn)
        except MemoryAccessError:
            return False
        return True

    def _switched_off(self) -> bool:
        rules = self.rules
        return (rules.message_synic_off == "wait" and not self._scontrol.enable) or (
            rules.message_page_off == "wait" and not self._simp.enable
        )

    def _probe(self, sint: int) -> bool:
        """Is the slot free? If not, ask the guest for an EOM. A slot once found free stays so until it is filled."""
        if self._switched_off():
            return False
        bit = 1 << sint
        if self._ready & bit:
            return True
        page = self._sim.data
        offset = slot_offset(sint)
        if MESSAGE_TYPE.unpack_from(page, offset)[0]:
            if not page[offset + FLAGS_OFFSET] & MESSAGE_PENDING:
                page[offset + FLAGS_OFFSET] |= MESSAGE_PENDING
                self._tell_pending(sint)
            if MESSAGE_TYPE.unpack_from(page, offset)[0]:
                return False
        self._ready |= bit
        return True

    def _post_queued(self, sint: int, message: QueuedMessage) -> HvStatus:
        if self._proxied is not None and self._sints[sint].proxy:
            self._proxied(sint, message)
            return HvStatus.SUCCESS
        return self.post_message(sint, message)

    def _discard(self, sint: int, message: QueuedMessage, status: HvStatus) -> None:
        register = self._sints[sint]
        reason = "masked" if register.masked else "proxied" if register.proxy else status.name
        self.drop(sint, message, reason)

    def _signal(self, sint: int, flag: int) -> Signaled:
        if not 0 <= sint < SINT_COUNT or not 0 <= flag < EVENT_FLAGS_PER_SINT:
            return Signaled.REFUSED
        register = self._sints[sint]
        if register.proxy:
            return Signaled.PROXIED
        if not self._scontrol.enable or (register.masked and self.rules.event_masked == "refuse"):
            return Signaled.REFUSED
        if not self._siefp.enable and self.rules.event_page_off == "refuse":
            return Signaled.REFUSED
        offset, mask = flag_location(sint, flag)
        page = self._sief.data
        if page[offset] & mask:
            return Signaled.ALREADY
        page[offset] |= mask
        return Signaled.NEWLY

    def _fire_timer(self, index: int, config: TimerConfig, due: int, now: int) -> bool:
        if config.direct_mode:
            context = self._tell_expired(index, due, "direct")
            self._request_interrupt(config.apic_vector, False, context)
            return True
        sint = config.sintx
        register = self._sints[sint]
        if register.proxy or (register.masked and self.rules.message_masked == "drop"):
            return False
        if self._requested >> sint & 1 or not self._probe(sint):
            return False
        context = self._tell_expired(index, due, "message") or events.NO_CONTEXT
        payload = TimerMessage(index, due, now).pack()
        message = QueuedMessage(MessageType.TIMER_EXPIRED, payload, cause=context[0], flow=context[1])
        return self.post_message(sint, message) is HvStatus.SUCCESS

    def _request_interrupt(self, vector: int, auto_eoi: bool, context: events.Context | None) -> None:
        outcome = self.apic.request(vector, auto_eoi)
        if self._trace is not None and context is not None:
            requested = self._trace.emit(
                events.Interrupt,
                cause=context[0],
                flow=context[1],
                vp=self._vp,
                vtl=self._vtl,
                vector=vector,
                outcome=outcome.value,
            )
            self.interrupt_contexts[vector] = (requested, context[1])

    def _tell_pending(self, sint: int) -> None:
        if self._trace is not None:
            head = self.queues.head(sint)
            cause, flow = (None, None) if head is None else (head.cause, head.flow)
            self._trace.emit(events.Pending, cause=cause, flow=flow, vp=self._vp, vtl=self._vtl, sint=sint)

    def _tell_delivered(self, sint: int, message: QueuedMessage) -> events.Context | None:
        if self._trace is None:
            return None
        delivered = self._trace.emit(
            events.Deliver,
            cause=message.cause,
            flow=message.flow,
            vp=self._vp,
            vtl=self._vtl,
            sint=sint,
            message_type=message.message_type,
            payload=message.payload,
        )
        return delivered, message.flow

    def _tell_expired(self, index: int, due: int, mode: str) -> events.Context | None:
        if self._trace is None:
            return None
        flow = self._trace.new_flow()
        expired = self._trace.emit(
            events.Timer, cause=0, flow=flow, vp=self._vp, vtl=self._vtl, timer=index, due=due, mode=mode
        )
        return expired, flow
