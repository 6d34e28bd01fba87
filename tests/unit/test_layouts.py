"""The wire values of `broker.hvdef` lie where a compiler put them: sizes, offsets and bits against tests/vectors/layouts.json.

Each field is compared as the set of bits that it occupies in its structure: the vector says which, and packing the
field with other values shows which bits the code touches.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from broker.hvdef import (
    EVENT_FLAG_BYTES,
    EVENT_FLAGS_PER_SINT,
    MAX_PAYLOAD,
    MESSAGE_PENDING,
    MESSAGE_SIZE,
    MONITOR_COUNT,
    PAGE_SIZE,
    SINT_COUNT,
    MessageType,
    PageRegister,
    PostMessageInput,
    SignalEventInput,
    SintRegister,
    SynicMessage,
    SyntheticControl,
    TimerConfig,
    TimerMessage,
)
from broker.hvdef.bits import Register
from broker.hvdef.message import (
    FLAGS_OFFSET,
    MESSAGE_HEADER,
    MESSAGE_TYPE,
    PAYLOAD_OFFSET,
    TIMER_PAYLOAD,
    flag_location,
    slot_offset,
)
from broker.hvdef.monitor import (
    GROUP_COUNT,
    GROUP_OFFSET,
    GROUP_SIZE,
    GROUPS_END,
    LATENCY_OFFSET,
    MONITORS_PER_GROUP,
    NEXT_CHECK_TIME_OFFSET,
    PARAMETER_OFFSET,
    PARAMETER_SIZE,
    pending_location,
)

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors" / "layouts.json").read_text())
STRUCTS: dict[str, Any] = VECTORS["structs"]

U32, U64 = 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF
ONES = b"\xff" * MAX_PAYLOAD
ZEROS = bytes(MAX_PAYLOAD)


def _vector_bits(structure: str, field: str) -> int:
    """The bits of a field, as a mask over the whole structure read as one little-endian number."""
    (entry,) = [entry for entry in STRUCTS[structure]["fields"] if entry["name"] == field]
    if "bit_size" in entry:
        return ((1 << entry["bit_size"]) - 1) << 8 * entry["offset"] + entry["bit_offset"]
    return ((1 << 8 * entry["size"]) - 1) << 8 * entry["offset"]


def _touched(*packed: bytes) -> int:
    """The bits in which any of these differs from the first."""
    first, *others = (int.from_bytes(data, "little") for data in packed)
    touched = 0
    for other in others:
        touched |= first ^ other
    return touched


def _register_bits(register: type[Register]) -> dict[str, int]:
    return {name: int(register.make(**{name: field.mask})) for name, field in register.fields().items()}


def _message(**fields: Any) -> bytes:
    return SynicMessage(**{"message_type": 0, "payload": b"", **fields}).pack()


def _post(**fields: Any) -> bytes:
    return PostMessageInput(
        **{"connection_id": 0, "message_type": 0, "payload": b"", "payload_size": 0, **fields}
    ).pack()


def _timer(index: int = 0, expiration: int = 0, delivery: int = 0) -> bytes:
    return TimerMessage(index, expiration, delivery).pack()


MESSAGE_BITS = {
    "message_type": _touched(_message(), _message(message_type=U32)),
    "payload_size": _touched(_message(), _message(payload=ZEROS), _message(payload=ZEROS[:15])),
    "message_flags": _touched(_message(), _message(flags=0xFF)),
    "message_flags.msg_pending": _touched(_message(), _message(flags=MESSAGE_PENDING)),
    "sender": _touched(_message(), _message(origination_id=U64)),
}
SIMP_BITS, SINT_BITS = _register_bits(PageRegister), _register_bits(SintRegister)

SIZES: dict[str, int] = {
    "struct hv_message": len(_message()),
    "struct hv_message_header": MESSAGE_HEADER.size,
    "struct hv_message_page": slot_offset(SINT_COUNT),
    "struct hv_timer_message_payload": len(_timer()),
    "struct hv_input_post_message": len(_post()),
    "union hv_synic_event_flags": EVENT_FLAG_BYTES,
    "struct hv_monitor_page": PAGE_SIZE,
    "struct hv_monitor_parameter": PARAMETER_SIZE,
    "union hv_monitor_trigger_group": GROUP_SIZE,
}
"""Registers have no size of their own here: each is one 64-bit value, which `FIELDS` holds them to."""

FIELDS: dict[str, dict[str, int]] = {
    "struct hv_message": {
        **{f"header.{name}": bits for name, bits in MESSAGE_BITS.items()},
        "u.payload": _touched(_message(payload=ZEROS), _message(payload=ONES)),
    },
    "struct hv_message_header": MESSAGE_BITS,
    "union hv_message_flags": {"msg_pending": MESSAGE_PENDING},
    "struct hv_timer_message_payload": {
        "timer_index": _touched(_timer(), _timer(index=U32)),
        "expiration_time": _touched(_timer(), _timer(expiration=U64)),
        "delivery_time": _touched(_timer(), _timer(delivery=U64)),
    },
    "struct hv_input_post_message": {
        "connectionid": _touched(_post(), _post(connection_id=U32)),
        "message_type": _touched(_post(), _post(message_type=U32)),
        "payload_size": _touched(_post(), _post(payload_size=U32)),
        "payload": _touched(_post(), _post(payload=ONES)),
    },
    "union hv_synic_scontrol": {"enable": _register_bits(SyntheticControl)["enable"]},
    "union hv_synic_sint": {name: SINT_BITS[name] for name in ("vector", "masked", "auto_eoi", "polling")},
    "union hv_synic_simp": {
        "simp_enabled": SIMP_BITS["enable"],
        "preserved": SIMP_BITS["preserved"],
        "base_simp_gpa": SIMP_BITS["gpn"],
    },
    "union hv_synic_siefp": {
        "siefp_enabled": SIMP_BITS["enable"],
        "preserved": SIMP_BITS["preserved"],
        "base_siefp_gpa": SIMP_BITS["gpn"],
    },
    "union hv_stimer_config": _register_bits(TimerConfig),
    "union hv_connection_id": {
        "asu32": _touched(SignalEventInput(0).pack(), SignalEventInput(U32).pack()),
    },
}

PLACES: dict[str, dict[str, int]] = {
    "struct hv_message": {"u.payload": PAYLOAD_OFFSET, "header.message_flags": FLAGS_OFFSET},
    "struct hv_monitor_page": {
        "trigger_group": GROUP_OFFSET,
        "rsvdz2": GROUPS_END,
        "next_checktime": NEXT_CHECK_TIME_OFFSET,
        "latency": LATENCY_OFFSET,
        "parameter": PARAMETER_OFFSET,
    },
}
"""Offsets that the code states as such."""

BY_FUNCTION = {
    "struct hv_message_page": "test_message_slots_fill_the_page",
    "union hv_synic_event_flags": "test_event_flags_lie_in_bit_order",
    "union hv_monitor_trigger_group": "test_each_monitor_has_its_pending_bit",
}

WITHOUT_COUNTERPART = {
    "union hv_port_id": "24 bits of an origination ID, which the model carries as one u64 (its place is checked as sender)",
    "union hv_monitor_trigger_state": "group_enable: the model ignores it (the groups behind it are checked)",
    "struct hv_ring_buffer": "VMBus, not SynIC",
    "struct hv_page_buffer": "VMBus, not SynIC",
    "struct hv_multipage_buffer": "VMBus, not SynIC",
    "struct hv_mpb_array": "VMBus, not SynIC",
}

MESSAGE_TYPES = {
    "HVMSG_NONE": MessageType.NONE,
    "HVMSG_UNMAPPED_GPA": MessageType.UNMAPPED_GPA,
    "HVMSG_GPA_INTERCEPT": MessageType.GPA_INTERCEPT,
    "HVMSG_TIMER_EXPIRED": MessageType.TIMER_EXPIRED,
    "HVMSG_INVALID_VP_REGISTER_VALUE": MessageType.INVALID_VP_REGISTER_VALUE,
    "HVMSG_UNRECOVERABLE_EXCEPTION": MessageType.UNRECOVERABLE_EXCEPTION,
    "HVMSG_UNSUPPORTED_FEATURE": MessageType.UNSUPPORTED_FEATURE,
    "HVMSG_EVENTLOG_BUFFERCOMPLETE": MessageType.EVENT_LOG_BUFFER_COMPLETE,
    "HVMSG_X64_IOPORT_INTERCEPT": MessageType.X64_IO_PORT_INTERCEPT,
    "HVMSG_X64_MSR_INTERCEPT": MessageType.X64_MSR_INTERCEPT,
    "HVMSG_X64_CPUID_INTERCEPT": MessageType.X64_CPUID_INTERCEPT,
    "HVMSG_X64_EXCEPTION_INTERCEPT": MessageType.X64_EXCEPTION_INTERCEPT,
    "HVMSG_X64_APIC_EOI": MessageType.X64_APIC_EOI,
    "HVMSG_X64_LEGACY_FP_ERROR": MessageType.X64_LEGACY_FP_ERROR,
}


def test_every_structure_of_the_hypervisor_is_covered_or_has_its_reason() -> None:
    covered = {*SIZES, *FIELDS, *PLACES, *BY_FUNCTION}
    assert not covered & WITHOUT_COUNTERPART.keys()
    assert covered | WITHOUT_COUNTERPART.keys() == {name for name in STRUCTS if name.split()[1].startswith("hv_")}
    assert set(BY_FUNCTION.values()) <= globals().keys()


@pytest.mark.parametrize("structure", SIZES)
def test_a_structure_has_the_compiler_s_size(structure: str) -> None:
    assert SIZES[structure] == STRUCTS[structure]["size"]


@pytest.mark.parametrize(("structure", "field"), [(name, field) for name in FIELDS for field in FIELDS[name]])
def test_a_field_occupies_the_compiler_s_bits(structure: str, field: str) -> None:
    assert hex(FIELDS[structure][field]) == hex(_vector_bits(structure, field))


@pytest.mark.parametrize(("structure", "field"), [(name, field) for name in PLACES for field in PLACES[name]])
def test_a_stated_offset_is_the_compiler_s(structure: str, field: str) -> None:
    (entry,) = [entry for entry in STRUCTS[structure]["fields"] if entry["name"] == field]
    assert PLACES[structure][field] == entry["offset"]


@pytest.mark.parametrize(
    ("structure", "covered"),
    [
        ("struct hv_message_header", {"reserved", "port"}),
        ("struct hv_timer_message_payload", {"reserved"}),
        ("struct hv_input_post_message", {"reserved"}),
        ("union hv_synic_scontrol", {"as_uint64", "reserved"}),
        ("union hv_synic_sint", {"as_uint64", "reserved1", "reserved2"}),
        ("union hv_synic_simp", {"as_uint64"}),
        ("union hv_synic_siefp", {"as_uint64"}),
        ("union hv_stimer_config", {"as_uint64"}),
    ],
)
def test_no_field_but_reserved_ones_and_other_views_is_left_out(structure: str, covered: set[str]) -> None:
    top_level = {field["name"] for field in STRUCTS[structure]["fields"] if "." not in field["name"]}
    assert top_level - FIELDS[structure].keys() == covered


@pytest.mark.parametrize("register", [SyntheticControl, PageRegister, SintRegister, TimerConfig])
def test_a_register_is_one_64_bit_value(register: type[Register]) -> None:
    bits = _register_bits(register).values()
    assert sum(bits) < 1 << 64
    assert sum(mask.bit_count() for mask in bits) == sum(bits).bit_count()


def test_bits_that_linux_reserves_in_a_sint_are_where_its_newer_headers_and_openvmm_use_them() -> None:
    reserved = _vector_bits("union hv_synic_sint", "reserved2")
    assert (SINT_BITS["as_intercept"], SINT_BITS["proxy"]) == (1 << 19, 1 << 20)
    assert (SINT_BITS["as_intercept"] | SINT_BITS["proxy"]) & ~reserved == 0


def test_the_reserved_bytes_of_packed_structures_are_zero() -> None:
    message = int.from_bytes(_message(message_type=U32, payload=ONES, flags=0xFF, origination_id=U64), "little")
    post = int.from_bytes(_post(connection_id=U32, message_type=U32, payload=ONES, payload_size=U32), "little")
    timer = int.from_bytes(_timer(U32, U64, U64), "little")
    assert message & _vector_bits("struct hv_message", "header.reserved") == 0
    assert post & _vector_bits("struct hv_input_post_message", "reserved") == 0
    assert timer & _vector_bits("struct hv_timer_message_payload", "reserved") == 0


def test_struct_formats_have_the_sizes_of_what_they_pack() -> None:
    assert TIMER_PAYLOAD.size == STRUCTS["struct hv_timer_message_payload"]["size"]
    assert 8 * MESSAGE_TYPE.size == _vector_bits("struct hv_message_header", "message_type").bit_length()
    assert STRUCTS["struct hv_message"]["size"] == MESSAGE_SIZE
    assert _vector_bits("struct hv_message", "u.payload").bit_count() // 8 == MAX_PAYLOAD


def test_message_slots_fill_the_page() -> None:
    slot = STRUCTS["struct hv_message"]["size"]
    assert [slot_offset(sint) for sint in range(SINT_COUNT)] == list(range(0, PAGE_SIZE, slot))
    assert SINT_COUNT * slot == STRUCTS["struct hv_message_page"]["size"] == PAGE_SIZE


def test_event_flags_lie_in_bit_order() -> None:
    size = STRUCTS["union hv_synic_event_flags"]["size"]
    assert 8 * size == EVENT_FLAGS_PER_SINT
    for sint in range(SINT_COUNT):
        for flag in range(EVENT_FLAGS_PER_SINT):
            offset, mask = flag_location(sint, flag)
            array = mask << 8 * (offset - sint * size)  # the array as Linux tests it: one long bitmap
            assert array == 1 << flag


def test_each_monitor_has_its_pending_bit() -> None:
    (groups,) = [field for field in STRUCTS["struct hv_monitor_page"]["fields"] if field["name"] == "trigger_group"]
    size = STRUCTS["union hv_monitor_trigger_group"]["size"]
    pending = _vector_bits("union hv_monitor_trigger_group", "pending")
    assert (groups["size"] // size, pending.bit_length()) == (GROUP_COUNT, MONITORS_PER_GROUP)
    for monitor_id in range(MONITOR_COUNT):
        offset, mask = pending_location(monitor_id)
        group, bit = monitor_id // 32, monitor_id % 32
        assert offset == groups["offset"] + size * group
        assert mask == 1 << bit
        assert mask & pending


def test_there_is_a_parameter_and_a_latency_for_each_monitor() -> None:
    sizes = {field["name"]: field["size"] for field in STRUCTS["struct hv_monitor_page"]["fields"] if "size" in field}
    assert sizes["parameter"] == MONITOR_COUNT * PARAMETER_SIZE
    assert sizes["latency"] == MONITOR_COUNT * 2
    assert sizes["next_checktime"] == MONITOR_COUNT * 4


@pytest.mark.parametrize("name", VECTORS["enums"]["hv_message_type"])
def test_a_message_type_has_the_compiler_s_value(name: str) -> None:
    assert MESSAGE_TYPES[name] == VECTORS["enums"]["hv_message_type"][name]


@pytest.mark.parametrize("pack", [_message, _post, _timer])
def test_all_zero_fields_pack_to_zero_bytes(pack: Callable[[], bytes]) -> None:
    assert not any(pack())
