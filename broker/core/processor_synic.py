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
from typing import Literal

import msgspec

from .. import trace as events
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
from ..hvdef.registers import SINT_COUNT, HvRegister, SintRegister, TimerConfig, VsmVina
from ..hvdef.status import HvStatus
from .local_apic import LocalApic
from .message_queues import MessageQueues, QueuedMessage
from .synic_registers import RegisterState, SynicRegisters
from .synic_trace import SynicTeller
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


class SynicState(msgspec.Struct, frozen=True):
    """A processor's SynIC as saved."""

    registers: RegisterState
    ready: int
    requested: int
    queues: list[list[QueuedMessage]]
    timers: list[TimerState]
    dropped: int
    interrupt_causes: dict[int, events.Context]
    """While tracing: the event and the flow that each requested vector is due to."""


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
        apic: LocalApic,
        lock_page: Callable[[int], memoryview],
        queue_depth: int,
        trace: events.Trace | None = None,
        room: Callable[[int], None] = lambda sint: None,
        proxied: Callable[[int, QueuedMessage], None] | None = None,
    ) -> None:
        self.apic = apic
        self.registers = SynicRegisters(profile, lock_page)
        self.queues = MessageQueues(queue_depth)
        self.timers = SyntheticTimers(profile)
        self.rules: DeliveryRules = profile.delivery
        self.teller = SynicTeller(vp_index, vtl, trace)
        self.dropped = 0
        """Messages lost by the rules since the processor was created."""
        self._is_scanning = False
        self._scan_again = False
        self._room = room
        self._proxied = proxied
        self._ready = 0
        self._requested = 0

    # registers

    def read_register(self, name: int) -> int | None:
        """A register by its name (`HvRegister`); None for a name the SynIC does not have."""
        if HvRegister.STIMER0_CONFIG <= name <= HvRegister.STIMER3_COUNT:
            index, is_count = divmod(name - HvRegister.STIMER0_CONFIG, 2)
            return self.timers.count(index) if is_count else int(self.timers.config(index))
        return self.registers.read(name)

    def write_register(self, name: int, value: int, now: int) -> HvStatus:
        """Write a register by its name and rescan.

        INVALID_PARAMETER for SVERSION and for reserved VINA bits; INVALID_REGISTER_VALUE for a page that is not in guest
        memory and (strict) for an unmasked vector below 16; UNKNOWN_REGISTER_NAME. Then nothing has changed. A guest
        that used the MSR gets #GP in all four cases.
        """
        if HvRegister.STIMER0_CONFIG <= name <= HvRegister.STIMER3_COUNT:
            index, is_count = divmod(name - HvRegister.STIMER0_CONFIG, 2)
            (self.timers.write_count if is_count else self.timers.write_config)(index, value, now)
        else:
            status = self.registers.write(name, value)
            if status is not HvStatus.SUCCESS:
                return status
        self.rescan(now)
        return HvStatus.SUCCESS

    def sint(self, sint: int) -> SintRegister:
        """SINTn."""
        return self.registers.sints[sint]

    @property
    def vina(self) -> VsmVina:
        """The virtual interrupt notification assist register."""
        return self.registers.vina

    @property
    def sim_page(self) -> memoryview:
        """The SIM page's contents, mapped or hidden; valid until SIMP is written."""
        return self.registers.sim.data

    @property
    def sief_page(self) -> memoryview:
        """The SIEF page's contents, mapped or hidden; valid until SIEFP is written."""
        return self.registers.sief.data

    def proxied_sints(self) -> int:
        """The bitmap of SINTs with the proxy bit."""
        return sum(1 << n for n, sint in enumerate(self.registers.sints) if sint.proxy)

    # messages to the guest

    def enqueue(self, sint: int, message: QueuedMessage) -> bool:
        """Queue a message for a SINT that has room; True when the processor has to look at this queue now."""
        queued = self.teller.queued(sint, message, self.queues.count(sint) + 1)
        if queued:
            message = msgspec.structs.replace(message, cause=queued)
        return self.queues.enqueue(sint, message)

    def post_message(self, sint: int, message: QueuedMessage, slot: bytes | None = None) -> HvStatus:
        """Put a message in its slot now; `slot` is its 256 bytes where they are not to be made from the message.

        INVALID_SYNIC_STATE for a SINT above 15, masked (OpenVMM), proxied, or switched off (strict); OBJECT_IN_USE
        unless a scan found the slot empty and nothing was posted since.
        """
        if not 0 <= sint < SINT_COUNT:
            return HvStatus.INVALID_SYNIC_STATE
        register = self.sint(sint)
        if self._takes_no_message(register) or self._is_off("wait"):
            return HvStatus.INVALID_SYNIC_STATE
        if not self._ready >> sint & 1:
            return HvStatus.OBJECT_IN_USE
        offset = slot_offset(sint)
        if slot is None:
            slot = SynicMessage(message.message_type, message.payload, 0, message.origination_id).pack()
        page = self.sim_page
        page[offset + MESSAGE_TYPE.size : offset + MESSAGE_SIZE] = slot[MESSAGE_TYPE.size :]
        page[offset : offset + MESSAGE_TYPE.size] = slot[: MESSAGE_TYPE.size]
        self._ready &= ~(1 << sint)
        self._interrupt_for(register, self.teller.delivered(sint, message))
        return HvStatus.SUCCESS

    def post_if_free(self, sint: int, message: QueuedMessage, slot: bytes | None = None) -> HvStatus:
        """Look at the slot, then post. Statuses as `post_message`; nothing is queued, a busy slot gets its pending flag."""
        if 0 <= sint < SINT_COUNT:
            self._probe(sint)
        return self.post_message(sint, message, slot)

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
        """Deliver whatever can be delivered: queued messages, then due timers, until nothing moves.

        Called again from within (a host's SynIC that posts back), it leaves the work to the call that is under way.
        """
        self._scan_again = True
        if self._is_scanning:
            return
        self._is_scanning = True
        try:
            while self._scan_again:
                self._scan_again = False
                self.request_readiness(self.queues.pending)
                ready = self.scan(now)
                if ready:
                    self.queues.flush(ready, self._post_queued, self._discard, self._room)
                    self._scan_again = True
        finally:
            self._is_scanning = False

    def has_work(self, now: int) -> bool:
        """True when a rescan might deliver something that waits for the guest."""
        return bool(self.queues.pending) or self.timers.has_overdue(now)

    # events to the guest

    def signal_event(self, sint: int, flag: int) -> Signaled:
        """Set an event flag and request the SINT's interrupt unless the flag was set or the SINT polls."""
        outcome = self._signal(sint, flag)
        context = self.teller.raised(sint, flag, outcome.value)
        if outcome is Signaled.NEWLY:
            self._interrupt_for(self.sint(sint), context)
        return outcome

    # life

    def reset(self) -> None:
        """Registers, pages, queues and timers as a new processor has them. What was queued is dropped and counted."""
        for sint, message in self.queues.clear():
            self.drop(sint, message, "reset")
        self.timers.reset()
        self.registers.reset()
        self._ready = 0
        self._requested = 0

    def drop(self, sint: int, message: QueuedMessage, reason: str) -> None:
        """Count and trace a message that will not arrive."""
        self.dropped += 1
        self.teller.dropped(sint, message, reason)

    def save(self, now: int) -> SynicState:
        """Everything, pages included."""
        return SynicState(
            registers=self.registers.save(),
            ready=self._ready,
            requested=self._requested,
            queues=self.queues.save(),
            timers=self.timers.save(now),
            dropped=self.dropped,
            interrupt_causes=dict(self.teller.interrupts),
        )

    def restore(self, state: SynicState, now: int) -> None:
        """Take over what `save` returned. `MemoryAccessError` when a page does not fit this partition's memory."""
        self.registers.restore(state.registers)
        self._ready = state.ready
        self._requested = state.requested
        self.queues.restore(state.queues)
        self.timers.restore(state.timers, now)
        self.dropped = state.dropped
        self.teller.interrupts = dict(state.interrupt_causes)

    def check(self) -> None:
        """Every invariant. `InvariantError` when one is broken."""
        self.queues.check()
        self.apic.check()
        self.registers.check()

    # within

    def _takes_no_message(self, register: SintRegister) -> bool:
        """Is a message to this SINT lost, whatever its slot holds?"""
        return register.proxy or (register.masked and self.rules.message_masked == "drop") or self._is_off("drop")

    def _is_off(self, rule: Literal["wait", "drop"]) -> bool:
        """Is something switched off, so that this rule applies?"""
        return (self.rules.message_synic_off == rule and not self.registers.scontrol.enable) or (
            self.rules.message_page_off == rule and not self.registers.simp.enable
        )

    def _probe(self, sint: int) -> bool:
        """Does a post get anywhere: is the slot free, or the message lost? If not, ask the guest for an EOM.

        A slot once found free stays so until it is filled. A masked SINT's messages wait behind a full slot, as in
        OpenVMM's loop, and are lost when it gets free.
        """
        if self.sint(sint).proxy or self._is_off("drop"):
            return True
        if self._is_off("wait"):
            return False
        bit = 1 << sint
        if self._ready & bit:
            return True
        page = self.sim_page
        offset = slot_offset(sint)
        if MESSAGE_TYPE.unpack_from(page, offset)[0]:
            if not page[offset + FLAGS_OFFSET] & MESSAGE_PENDING:
                page[offset + FLAGS_OFFSET] |= MESSAGE_PENDING
                self.teller.pending(sint, self.queues.head(sint))
            if MESSAGE_TYPE.unpack_from(page, offset)[0]:
                return False
        self._ready |= bit
        return True

    def _post_queued(self, sint: int, message: QueuedMessage) -> HvStatus:
        if self._proxied is not None and self.sint(sint).proxy:
            self._proxied(sint, message)
            return HvStatus.SUCCESS
        return self.post_message(sint, message)

    def _discard(self, sint: int, message: QueuedMessage, status: HvStatus) -> None:
        register = self.sint(sint)
        self.drop(sint, message, "masked" if register.masked else "proxied" if register.proxy else status.name)

    def _signal(self, sint: int, flag: int) -> Signaled:
        if not 0 <= sint < SINT_COUNT or not 0 <= flag < EVENT_FLAGS_PER_SINT:
            return Signaled.REFUSED
        register = self.sint(sint)
        if register.proxy:
            return Signaled.PROXIED
        if not self.registers.scontrol.enable or (register.masked and self.rules.event_masked == "refuse"):
            return Signaled.REFUSED
        if not self.registers.siefp.enable and self.rules.event_page_off == "refuse":
            return Signaled.REFUSED
        offset, mask = flag_location(sint, flag)
        page = self.sief_page
        if page[offset] & mask:
            return Signaled.ALREADY
        page[offset] |= mask
        return Signaled.NEWLY

    def _fire_timer(self, index: int, config: TimerConfig, due: int, now: int) -> bool:
        if config.direct_mode:
            self._request_interrupt(config.apic_vector, False, self.teller.expired(index, due, "direct"))
            return True
        sint = config.sintx
        if self._takes_no_message(self.sint(sint)):
            return False
        if self._requested >> sint & 1 or not self._probe(sint):
            return False
        cause, flow = self.teller.expired(index, due, "message")
        payload = TimerMessage(index, due, now).pack()
        message = QueuedMessage(MessageType.TIMER_EXPIRED, payload, cause=cause, flow=flow)
        return self.post_message(sint, message) is HvStatus.SUCCESS

    def _interrupt_for(self, register: SintRegister, context: events.Context) -> None:
        polls = register.polling and self.rules.honours_polling
        if not polls and not register.masked:
            self._request_interrupt(register.vector, register.auto_eoi, context)

    def _request_interrupt(self, vector: int, auto_eoi: bool, context: events.Context) -> None:
        outcome = self.apic.request(vector, auto_eoi)
        self.teller.interrupt(vector, outcome.value, context)
