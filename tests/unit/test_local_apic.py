"""The local interrupt sink: edges merge, priorities hold back, auto-EOI expects no EOI (reference, 4.5)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core import LocalApic
from broker.core.local_apic import Requested
from broker.errors import InvariantError

vectors = st.integers(16, 255)


class Wakes:
    """Counts how often the processor is woken."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


@pytest.fixture
def wakes() -> Wakes:
    return Wakes()


@pytest.fixture
def apic(wakes: Wakes) -> LocalApic:
    return LocalApic(wakes)


def test_nothing_is_deliverable_at_first(apic: LocalApic) -> None:
    assert (apic.deliverable(), apic.acknowledge(), apic.eoi(), apic.tpr) == (None, None, None, 0)


@given(st.integers(0, 255))
def test_a_vector_is_latched_unless_it_is_below_16(vector: int) -> None:
    wakes = Wakes()
    apic = LocalApic(wakes)
    outcome = apic.request(vector)
    if vector < 16:
        assert outcome is Requested.LOST
        assert (apic.deliverable(), wakes.count) == (None, 0)
    else:
        assert outcome is Requested.LATCHED
        assert (apic.deliverable(), wakes.count) == (vector, 1)
    apic.check()


def test_a_pending_vector_merges_and_is_delivered_once(apic: LocalApic) -> None:
    assert [apic.request(0x30), apic.request(0x30)] == [Requested.LATCHED, Requested.MERGED]
    assert [apic.acknowledge(), apic.eoi(), apic.acknowledge()] == [0x30, 0x30, None]


def test_acknowledging_moves_a_vector_into_service_until_its_eoi(apic: LocalApic) -> None:
    apic.request(0x30)
    assert (apic.is_pending(0x30), apic.in_service(0x30)) == (True, False)
    apic.acknowledge()
    assert (apic.is_pending(0x30), apic.in_service(0x30)) == (False, True)
    apic.eoi()
    assert (apic.is_pending(0x30), apic.in_service(0x30)) == (False, False)


def test_a_vector_in_service_can_be_latched_again_and_waits_for_the_eoi(apic: LocalApic) -> None:
    apic.request(0x30)
    apic.acknowledge()
    assert apic.request(0x30) is Requested.LATCHED
    assert apic.acknowledge() is None
    apic.eoi()
    assert apic.acknowledge() == 0x30


def test_auto_eoi_leaves_nothing_in_service(apic: LocalApic) -> None:
    apic.request(0x30, auto_eoi=True)
    assert apic.acknowledge() == 0x30
    assert not apic.in_service(0x30)
    assert apic.eoi() is None
    apic.request(0x30, auto_eoi=True)
    assert apic.acknowledge() == 0x30


@pytest.mark.parametrize("auto_eoi", [True, False])
def test_auto_eoi_is_latched_with_the_latest_request(apic: LocalApic, auto_eoi: bool) -> None:
    apic.request(0x30, not auto_eoi)
    apic.request(0x30, auto_eoi)
    apic.acknowledge()
    assert apic.in_service(0x30) is not auto_eoi


def test_the_highest_vector_goes_first(apic: LocalApic) -> None:
    for vector in (0x31, 0xE2, 0x55):
        apic.request(vector, auto_eoi=True)
    assert [apic.acknowledge() for _ in range(4)] == [0xE2, 0x55, 0x31, None]


@pytest.mark.parametrize(("second", "goes_through"), [(0x3F, False), (0x2F, False), (0x40, True)])
def test_only_a_higher_class_interrupts_what_is_in_service(apic: LocalApic, second: int, goes_through: bool) -> None:
    apic.request(0x31)
    apic.acknowledge()
    apic.request(second)
    assert apic.acknowledge() == (second if goes_through else None)


def test_eoi_ends_the_highest_in_service(apic: LocalApic) -> None:
    for vector in (0x31, 0x52):
        apic.request(vector)
        apic.acknowledge()
    assert [apic.eoi(), apic.eoi(), apic.eoi()] == [0x52, 0x31, None]


@pytest.mark.parametrize(("tpr", "goes_through"), [(0x20, True), (0x2F, True), (0x30, False), (0xFF, False)])
def test_the_task_priority_holds_its_class_and_below_back(apic: LocalApic, tpr: int, goes_through: bool) -> None:
    apic.set_tpr(tpr)
    apic.request(0x3A)
    assert apic.deliverable() == (0x3A if goes_through else None)
    apic.set_tpr(0)
    assert apic.deliverable() == 0x3A


def test_the_task_priority_has_eight_bits(apic: LocalApic) -> None:
    apic.set_tpr(0x1_23)
    assert apic.tpr == 0x23


def test_a_request_an_eoi_and_a_lower_priority_wake_the_processor(apic: LocalApic, wakes: Wakes) -> None:
    apic.request(0x30)
    apic.acknowledge()
    assert wakes.count == 1
    apic.eoi()
    assert wakes.count == 2
    apic.set_tpr(0)
    assert wakes.count == 3
    assert apic.eoi() is None
    assert wakes.count == 3


def test_reset_forgets_everything(apic: LocalApic) -> None:
    apic.request(0x30)
    apic.acknowledge()
    apic.request(0x40, auto_eoi=True)
    apic.set_tpr(0x50)
    apic.reset()
    assert apic.save() == LocalApic(Wakes()).save()


def test_a_broken_invariant_is_noticed(apic: LocalApic) -> None:
    apic.restore((1 << 15, 0, 0, 0))
    with pytest.raises(InvariantError):
        apic.check()
    apic.restore((0, 1 << 256, 0, 0))
    with pytest.raises(InvariantError):
        apic.check()


class Model:
    """The same in sets and lists, as the reference words it."""

    def __init__(self) -> None:
        self.pending: dict[int, bool] = {}
        self.in_service: set[int] = set()
        self.tpr = 0

    def acknowledge(self) -> int | None:
        held_back = max([self.tpr, *self.in_service]) // 16
        vector = max(self.pending, default=0)
        if vector // 16 <= held_back:
            return None
        if not self.pending.pop(vector):
            self.in_service.add(vector)
        return vector

    def eoi(self) -> int | None:
        vector = max(self.in_service, default=None)
        self.in_service.discard(vector or 0)
        return vector


steps = st.one_of(
    st.tuples(st.just("request"), vectors, st.booleans()),
    st.tuples(st.just("acknowledge")),
    st.tuples(st.just("eoi")),
    st.tuples(st.just("tpr"), st.integers(0, 255)),
    st.tuples(st.just("save")),
)


@given(st.lists(steps, max_size=40))
def test_any_sequence_does_what_the_model_says(sequence: list[tuple[object, ...]]) -> None:
    apic, model = LocalApic(Wakes()), Model()
    for step in sequence:
        match step:
            case ("request", int(vector), bool(auto_eoi)):
                merges = vector in model.pending
                model.pending[vector] = auto_eoi
                assert apic.request(vector, auto_eoi) is (Requested.MERGED if merges else Requested.LATCHED)
            case ("acknowledge",):
                assert apic.acknowledge() == model.acknowledge()
            case ("eoi",):
                assert apic.eoi() == model.eoi()
            case ("tpr", int(tpr)):
                model.tpr = tpr
                apic.set_tpr(tpr)
            case ("save",):
                saved = apic.save()
                apic = LocalApic(Wakes())
                apic.restore(saved)
        apic.check()
        assert {vector for vector in range(256) if apic.is_pending(vector)} == set(model.pending)
        assert {vector for vector in range(256) if apic.in_service(vector)} == model.in_service
