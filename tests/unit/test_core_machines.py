"""The machines of the SynIC core on their own: limits, traces, counts and invariants, with no partition around them."""

from __future__ import annotations

from typing import Any

import pytest

from broker import OPENVMM, TLFS, GuestMemory, HvStatus, InvariantError, MonitorIdInUse, Msr, Profile, Trace
from broker.core import (
    HypercallPage,
    LocalApic,
    MessageQueues,
    MonitorPage,
    ProcessorSynic,
    QueuedMessage,
    Requested,
    SyntheticTimers,
)
from broker.hvdef import HvRegister, PageRegister, SintRegister, SynicMessage, TimerConfig, TimerMessage
from broker.trace import AnyEvent

SINT, VECTOR, PAGE = 2, 0x52, 4096
VP, VTL = 5, 1


class Machine:
    """A traced `ProcessorSynic` of processor 5, VTL 1, switched on, SINT 2 at vector 0x52."""

    def __init__(self, profile: Profile = OPENVMM, depth: int = 4, **sint: bool) -> None:
        self.events: list[AnyEvent] = []
        self.trace = Trace(self.events.append)
        self.memory = GuestMemory(16 * PAGE)
        self.apic = LocalApic(lambda: None)
        self.synic = ProcessorSynic(VP, VTL, profile, self.apic, self.memory.page, depth, self.trace)
        for name, value in (
            (HvRegister.SIPP, PageRegister.make(enable=True, gpn=1)),
            (HvRegister.SIFP, PageRegister.make(enable=True, gpn=2)),
            (HvRegister.SINT0 + SINT, SintRegister.make(vector=VECTOR, **sint)),
            (HvRegister.SCONTROL, 1),
        ):
            assert self.synic.write_register(name, value, 0) is HvStatus.SUCCESS

    def timer(self, config: TimerConfig, count: int, now: int = 0) -> None:
        """Program timer 1: count, then configuration."""
        self.synic.write_register(HvRegister.STIMER0_CONFIG + 3, count, now)
        self.synic.write_register(HvRegister.STIMER0_CONFIG + 2, config, now)

    @property
    def slot(self) -> SynicMessage:
        """SINT 2's slot."""
        return SynicMessage.unpack(self.memory.read(PAGE + 256 * SINT, 256))

    def set_type(self, message_type: int) -> None:
        """The guest writes the slot's type."""
        self.memory.write(PAGE + 256 * SINT, message_type.to_bytes(4, "little"))

    def told(self) -> list[tuple[Any, ...]]:
        """Kind, cause, flow and what is particular to each event, but where it happened, which is checked."""
        story = []
        for event in self.events:
            fields = {name: getattr(event, name) for name in event.__struct_fields__}
            assert (fields.pop("vp"), fields.pop("vtl")) == (VP, VTL)
            fields.pop("time")
            story.append((type(event).__name__, *fields.values()))
        return story


def message(number: int = 1) -> QueuedMessage:
    return QueuedMessage(number, bytes([number]), flow=70 + number)


def test_the_trace_of_a_queue_says_depth_slot_pending_and_interrupt() -> None:
    machine = Machine()
    for number in (1, 2):
        machine.synic.enqueue(SINT, message(number))
        machine.synic.rescan(0)
    assert machine.told() == [
        ("Queue", 1, 0, 71, SINT, 1, b"\x01", 1),
        ("Deliver", 2, 1, 71, SINT, 1, b"\x01"),
        ("Interrupt", 3, 2, 71, VECTOR, "raised"),
        ("Queue", 4, 0, 72, SINT, 2, b"\x02", 1),
        ("Pending", 5, 4, 72, SINT),
    ]
    machine.synic.enqueue(SINT, message(3))
    assert machine.told()[-1] == ("Queue", 6, 0, 73, SINT, 3, b"\x03", 2)


@pytest.mark.parametrize(
    ("sint", "reason"), [({"masked": True}, "masked"), ({"proxy": True}, "proxied"), ({}, "INVALID_SYNIC_STATE")]
)
def test_a_drop_is_counted_and_traced_with_its_sint_and_reason(sint: dict[str, bool], reason: str) -> None:
    machine = Machine(**sint)
    if not sint:
        machine.synic.rules = type(machine.synic.rules)(
            **{name: getattr(machine.synic.rules, name) for name in machine.synic.rules.__struct_fields__}
            | {"message_page_off": "drop"}
        )
        machine.synic.write_register(HvRegister.SIPP, 0, 0)
    machine.synic.enqueue(SINT, message())
    machine.synic.rescan(0)
    assert machine.synic.dropped == 1
    assert machine.told()[-1] == ("Drop", 2, 1, 71, SINT, 1, reason)


def test_a_reset_drops_what_waits_and_forgets_all_else() -> None:
    machine = Machine()
    for number in (1, 2, 3):
        machine.synic.enqueue(SINT, message(number))
        machine.synic.rescan(0)
    machine.synic.request_readiness(1 << 7)
    machine.synic.reset()
    assert machine.synic.dropped == 2
    assert [event[0] for event in machine.told()[-2:]] == ["Drop", "Drop"]
    assert {event[-1] for event in machine.told()[-2:]} == {"reset"}
    assert [event[4] for event in machine.told()[-2:]] == [SINT, SINT]
    state = machine.synic.save(0)
    assert (state.ready, state.requested) == (0, 0)
    assert (
        state.registers
        == ProcessorSynic(0, 0, OPENVMM, LocalApic(lambda: None), machine.memory.page, 4).save(0).registers
    )


@pytest.mark.parametrize("direct", [False, True])
def test_the_trace_of_a_timer_says_which_when_and_how(direct: bool) -> None:
    machine = Machine()
    machine.timer(TimerConfig.make(enable=True, direct_mode=direct, apic_vector=0x44, sintx=SINT), 100)
    machine.synic.rescan(99)
    assert machine.told() == []
    machine.synic.rescan(130)
    story = machine.told()
    flow = story[0][3]
    assert flow
    if direct:
        assert story == [("Timer", 1, 0, flow, 1, 100, "direct"), ("Interrupt", 2, 1, flow, 0x44, "raised")]
        assert machine.apic.acknowledge() == 0x44
        assert machine.apic.in_service(0x44)  # no auto-EOI in direct mode
        return
    payload = TimerMessage(1, 100, 130).pack()
    assert story == [
        ("Timer", 1, 0, flow, 1, 100, "message"),
        ("Deliver", 2, 1, flow, SINT, 0x8000_0010, payload),
        ("Interrupt", 3, 2, flow, VECTOR, "raised"),
    ]
    assert (machine.slot.payload, machine.slot.message_type) == (payload, 0x8000_0010)


@pytest.mark.parametrize("sint", [{"masked": True}, {"proxy": True}])
def test_a_timer_on_a_sint_that_takes_no_message_waits_and_keeps_its_due_time(sint: dict[str, bool]) -> None:
    machine = Machine(**sint)
    machine.timer(TimerConfig.make(enable=True, sintx=SINT), 100)
    machine.synic.rescan(500)
    assert machine.told() == []
    assert machine.synic.timers.due(1) == 100
    machine.synic.write_register(HvRegister.SINT0 + SINT, SintRegister.make(vector=VECTOR), 600)
    assert TimerMessage.unpack(machine.slot.payload) == TimerMessage(1, 100, 600)


def test_a_periodic_timer_drifts_with_the_scan_that_finds_it_due() -> None:
    machine = Machine()
    machine.timer(TimerConfig.make(enable=True, periodic=True, sintx=SINT), 100)
    assert machine.synic.timers.due(1) == 100
    machine.synic.rescan(110)
    assert machine.synic.timers.due(1) == 210
    machine.synic.rescan(460)  # the slot is full
    assert machine.synic.timers.due(1) == 210
    assert machine.slot.message_pending
    machine.set_type(0)
    machine.synic.rescan(470)
    assert machine.synic.timers.due(1) == 570


def test_a_slot_once_found_free_is_filled_even_if_the_guest_wrote_a_type_since() -> None:
    machine = Machine()
    machine.synic.request_readiness(1 << SINT)
    assert machine.synic.scan(0) == 1 << SINT
    machine.set_type(9)
    assert machine.synic.post_message(SINT, message(4)) is HvStatus.SUCCESS
    assert machine.slot.message_type == 4
    assert machine.synic.post_message(SINT, message(5)) is HvStatus.OBJECT_IN_USE


def test_message_pending_leaves_the_other_flag_bits_alone() -> None:
    machine = Machine()
    machine.memory.write(PAGE + 256 * SINT, bytes([9, 0, 0, 0, 0, 0xA0]))
    machine.synic.enqueue(SINT, message())
    machine.synic.rescan(0)
    assert machine.slot.flags == 0xA1


def test_a_proxied_sint_is_proxied_even_where_the_synic_is_off_or_the_sint_masked() -> None:
    machine = Machine(proxy=True, masked=True)
    machine.synic.write_register(HvRegister.SCONTROL, 0, 0)
    assert machine.synic.signal_event(SINT, 1).value == "proxied"
    assert machine.synic.proxied_sints() == 1 << SINT


def test_a_host_that_posts_back_from_within_a_delivery_disturbs_no_order() -> None:
    seen: list[int] = []
    apic, memory = LocalApic(lambda: None), GuestMemory(16 * PAGE)

    def proxied(sint: int, taken: QueuedMessage) -> None:
        seen.append(taken.message_type)
        synic.enqueue(3, message(100 + taken.message_type))
        synic.rescan(0)

    synic = ProcessorSynic(0, 0, OPENVMM, apic, memory.page, 16, proxied=proxied)
    synic.write_register(HvRegister.SINT0 + 3, SintRegister.make(vector=0x53), 0)
    for number in (1, 2, 3):
        synic.enqueue(SINT, message(number))
    synic.write_register(HvRegister.SINT0 + SINT, SintRegister.make(vector=VECTOR, proxy=True), 0)
    assert seen == [1, 2, 3]
    assert [waiting.message_type for waiting in synic.queues.save()[3]] == [102, 103]
    synic.check()
    memory.close()


# timers


@pytest.mark.parametrize(("profile", "enabled"), [(OPENVMM, True), (TLFS, False)])
def test_a_zero_count_stops_a_timer_and_disables_it_in_the_strict_profile(profile: Profile, enabled: bool) -> None:
    timers = SyntheticTimers(profile)
    timers.write_count(0, 50, 0)
    timers.write_config(0, TimerConfig.make(enable=True, sintx=SINT), 0)
    assert timers.due(0) == 50
    timers.write_count(0, 0, 0)
    assert (timers.due(0), timers.config(0).enable) == (None, enabled)


@pytest.mark.parametrize(("profile", "is_due"), [(OPENVMM, True), (TLFS, False)])
@pytest.mark.parametrize("count", [1 << 63, (1 << 64) - 1])
def test_a_one_shot_beyond_half_the_counter_is_past_in_openvmm_and_far_in_the_tlfs(
    profile: Profile, is_due: bool, count: int
) -> None:
    timers = SyntheticTimers(profile)
    timers.write_count(0, count, 0)
    timers.write_config(0, TimerConfig.make(enable=True, sintx=SINT), 0)
    assert timers.has_overdue(0) is is_due
    assert timers.next_due(0) == (None if is_due else count)
    fired: list[int] = []
    timers.expire(0, lambda index, config, due: bool(fired.append(index)) or True)
    assert fired == ([0] if is_due else [])


def test_a_periodic_timer_of_the_strict_profile_never_fires_early_at_the_counters_end() -> None:
    timers = SyntheticTimers(TLFS)
    timers.write_config(0, TimerConfig.make(enable=True, periodic=True, direct_mode=True, apic_vector=0x40), 10)
    timers.write_count(0, (1 << 64) - 1, 10)
    assert not timers.has_overdue(10)
    assert timers.due(0) == (1 << 64) + 9


def test_due_times_compare_at_their_exact_tick() -> None:
    timers = SyntheticTimers(OPENVMM)
    for index, count in enumerate((40, 30, 20)):
        timers.write_count(index, count, 0)
        timers.write_config(index, TimerConfig.make(enable=True, sintx=SINT), 0)
    assert (timers.next_due(19), timers.has_overdue(19)) == (20, False)
    assert (timers.next_due(20), timers.has_overdue(20)) == (30, True)
    states = timers.save(25)
    assert [state.remaining for state in states] == [15, 5, -5, None]
    other = SyntheticTimers(OPENVMM)
    other.restore(states, 1_025)
    assert [other.due(index) for index in range(4)] == [1_040, 1_030, 1_020, None]
    assert [other.count(index) for index in range(4)] == [40, 30, 20, 0]


# the rest


def test_the_hypercall_page_needs_an_os_id_and_can_be_locked() -> None:
    page = HypercallPage()
    assert (page.read(Msr.GUEST_OS_ID), page.read(Msr.HYPERCALL), page.read(Msr.SIMP)) == (0, 0, None)
    assert page.write(Msr.HYPERCALL, 0x5001)
    assert page.read(Msr.HYPERCALL) == 0x5000
    assert page.write(Msr.GUEST_OS_ID, 0x8100)
    assert page.read(Msr.HYPERCALL) == 0x5000
    assert page.write(Msr.HYPERCALL, 0x5001)
    assert (page.read(Msr.GUEST_OS_ID), page.read(Msr.HYPERCALL)) == (0x8100, 0x5001)
    assert page.save() == (0x8100, 0x5001)
    assert page.write(Msr.GUEST_OS_ID, 0)
    assert page.read(Msr.HYPERCALL) == 0x5000
    other = HypercallPage()
    other.restore((0x8100, 0x7003))
    assert not other.write(Msr.HYPERCALL, 0x9001)
    assert (other.read(Msr.HYPERCALL), other.read(Msr.GUEST_OS_ID)) == (0x7003, 0x8100)
    assert not other.write(Msr.SIMP, 1)


def test_all_128_monitors_and_nothing_else_are_triggers() -> None:
    page = MonitorPage()
    for monitor_id in range(128):
        page.register(monitor_id, 1000 + monitor_id)
    triggers = [64 + 64 * group + bit for group in range(4) for bit in range(32)]
    assert [page.write_bit(bit) for bit in triggers] == list(range(1000, 1128))
    others = sorted(set(range(8 * 4096)) - set(triggers))
    assert {page.write_bit(bit) for bit in others} == {None}
    assert page.unclaimed == 0
    page.unregister(0)
    page.unregister(0)
    for _ in range(2):
        assert page.write_bit(64) is None
    assert page.unclaimed == 2
    with pytest.raises(MonitorIdInUse, match="monitor 127 "):
        page.register(127, 5)


@pytest.mark.parametrize("monitor_id", [-1, 128])
def test_a_monitor_that_does_not_exist_is_refused_in_a_sentence(monitor_id: int) -> None:
    with pytest.raises(
        ValueError, match=f"^monitor {monitor_id} does not exist, a monitor page has monitors 0 to 127$"
    ):
        MonitorPage().register(monitor_id, 1)


def test_a_monitor_page_covers_its_4096_bytes_exactly() -> None:
    page = MonitorPage()
    assert (page.check_write(0, b"x"), page.check_read(0, 4)) == (None, None)
    page.set_gpa(2 * PAGE)
    for gpa, inside in ((2 * PAGE - 1, False), (2 * PAGE, True), (3 * PAGE - 1, True), (3 * PAGE, False)):
        assert (page.check_write(gpa, b"\0") is not None) is inside
        assert page.check_read(gpa, 3) == (bytes(3) if inside else None)
    assert page.check_write(2 * PAGE + 36, bytes(4)) == []
    page.register(96, 7)
    assert page.check_write(2 * PAGE + 32, b"\x01") == [7]
    assert page.check_write(2 * PAGE + 32, b"\x01" + bytes(8)) == []


@pytest.mark.parametrize("tpr", [0x00, 0x0F, 0x10, 0x4F, 0x50, 0x5F, 0xFF])
def test_a_vector_is_deliverable_above_the_class_of_the_task_priority(tpr: int) -> None:
    apic = LocalApic(lambda: None)
    assert apic.deliverable() is None
    apic.request(VECTOR)
    apic.set_tpr(tpr)
    assert apic.deliverable() == (VECTOR if tpr < 0x50 else None)
    assert (apic.eoi(), apic.is_pending(VECTOR), apic.in_service(VECTOR)) == (None, True, False)


def test_the_lowest_legal_vector_is_taken_and_the_one_below_lost() -> None:
    apic = LocalApic(lambda: None)
    assert apic.request(15) is Requested.LOST
    assert apic.request(16) is Requested.LATCHED
    assert apic.request(16, auto_eoi=True) is Requested.MERGED
    assert apic.acknowledge() == 16
    assert not apic.in_service(16)
    apic.check()


@pytest.mark.parametrize("state", [(1 << 15, 0, 0, 0), (0, 1 << 15, 0, 0), (1 << 256, 0, 0, 0), (0, 1 << 256, 0, 0)])
def test_an_interrupt_sink_with_an_impossible_vector_breaks_an_invariant(state: tuple[int, ...]) -> None:
    apic = LocalApic(lambda: None)
    apic.restore(state)
    with pytest.raises(InvariantError, match="outside 16 to 255"):
        apic.check()


def test_the_highest_and_lowest_vectors_break_none() -> None:
    apic = LocalApic(lambda: None)
    apic.restore((1 << 16 | 1 << 255, 1 << 16 | 1 << 255, 0, 0))
    apic.check()


def test_queues_know_their_bound_their_heads_and_their_bitmap() -> None:
    queues = MessageQueues(2)
    assert (queues.head(3), queues.count(3), queues.has_room(3), queues.pending) == (None, 0, True, 0)
    assert queues.enqueue(3, message(1))
    assert not queues.enqueue(3, message(2))
    assert (queues.head(3), queues.count(3), queues.has_room(3), queues.pending) == (message(1), 2, False, 1 << 3)
    assert queues.has_room(4)
    with pytest.raises(InvariantError, match="SINT 3 is full"):
        queues.enqueue(3, message(3))
    queues.check()
    queues.pending = 0
    with pytest.raises(InvariantError, match="bitmap"):
        queues.check()
    queues.restore([[], [message(1)] * 3, *[[]] * 14])
    assert queues.pending == 1 << 1
    with pytest.raises(InvariantError, match="more than its bound"):
        queues.check()
    assert queues.clear() == [(1, message(1))] * 3
    queues.check()


def test_registers_that_contradict_their_pages_break_an_invariant() -> None:
    machine = Machine()
    machine.synic.check()
    machine.synic.registers.simp = PageRegister.make(enable=True, gpn=3)
    with pytest.raises(InvariantError, match="0x3001 and its page is at 1"):
        machine.synic.check()
    machine = Machine()
    machine.synic.registers.siefp = PageRegister(0)
    with pytest.raises(InvariantError, match="its page is at 2"):
        machine.synic.check()


def test_a_restored_synic_is_the_saved_one() -> None:
    machine = Machine(polling=True)
    machine.timer(TimerConfig.make(enable=True, sintx=3), 400)
    machine.synic.write_register(HvRegister.VSM_VINA, 0x1F0, 0)
    for number in (1, 2):
        machine.synic.enqueue(SINT, message(number))
    machine.synic.rescan(5)
    machine.synic.request_readiness(1 << 9)
    machine.synic.signal_event(SINT, 77)
    state = machine.synic.save(10)
    other = Machine()
    other.synic.restore(state, 10)
    assert other.synic.save(10) == state
    assert other.synic.sint(SINT).polling
    assert (other.synic.vina.vector, other.synic.vina.enabled) == (0xF0, True)
    other.synic.check()
