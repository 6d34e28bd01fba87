"""Wire values: packing and unpacking lose nothing, what does not fit is refused, numbers are those of the reference."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.hvdef import (
    PROFILES,
    CallCode,
    HvRegister,
    HvStatus,
    HypercallControl,
    HypercallResult,
    MessageType,
    Msr,
    PageRegister,
    PostMessageDirectInput,
    PostMessageInput,
    Privilege,
    SignalEventDirectInput,
    SignalEventInput,
    SintRegister,
    SynicMessage,
    SyntheticControl,
    TimerConfig,
    TimerMessage,
    VsmVina,
    Vtl,
)
from broker.hvdef.bits import Register
from broker.hvdef.registers import SINT_RESET, SVERSION_VALUE, msr_number, register_name

u8, u16, u32, u64 = (st.integers(0, (1 << bits) - 1) for bits in (8, 16, 32, 64))
payloads = st.binary(max_size=240)

REGISTERS = (
    SyntheticControl,
    PageRegister,
    SintRegister,
    TimerConfig,
    VsmVina,
    HypercallControl,
    HypercallResult,
)

STATUSES = {
    0x00: "SUCCESS",
    0x02: "INVALID_HYPERCALL_CODE",
    0x03: "INVALID_HYPERCALL_INPUT",
    0x04: "INVALID_ALIGNMENT",
    0x05: "INVALID_PARAMETER",
    0x06: "ACCESS_DENIED",
    0x07: "INVALID_PARTITION_STATE",
    0x08: "OPERATION_DENIED",
    0x0B: "INSUFFICIENT_MEMORY",
    0x0D: "INVALID_PARTITION_ID",
    0x0E: "INVALID_VP_INDEX",
    0x11: "INVALID_PORT_ID",
    0x12: "INVALID_CONNECTION_ID",
    0x13: "INSUFFICIENT_BUFFERS",
    0x18: "INVALID_SYNIC_STATE",
    0x19: "OBJECT_IN_USE",
    0x1D: "NO_RESOURCES",
    0x33: "INSUFFICIENT_BUFFER",
    0x50: "INVALID_REGISTER_VALUE",
    0x51: "INVALID_VTL_STATE",
    0x71: "OPERATION_FAILED",
    0x78: "TIMEOUT",
    0x87: "UNKNOWN_REGISTER_NAME",
}

MSR_AND_NAME = {
    0x4000_0000: 0x0009_0002,  # GUEST_OS_ID
    0x4000_0001: 0x0009_0001,  # HYPERCALL
    0x4000_0002: 0x0009_0003,  # VP_INDEX
    0x4000_0020: 0x0009_0004,  # TIME_REF_COUNT
    0x4000_0080: 0x000A_0010,  # SCONTROL
    0x4000_0081: 0x000A_0011,  # SVERSION
    0x4000_0082: 0x000A_0012,  # SIEFP
    0x4000_0083: 0x000A_0013,  # SIMP
    0x4000_0084: 0x000A_0014,  # EOM
    **{0x4000_0090 + n: 0x000A_0000 + n for n in range(16)},
    **{0x4000_00B0 + 2 * n: 0x000B_0000 + 2 * n for n in range(4)},
    **{0x4000_00B1 + 2 * n: 0x000B_0001 + 2 * n for n in range(4)},
}

MESSAGE_TYPES = {
    MessageType.NONE: 0x0000_0000,
    MessageType.CHANNEL: 0x0000_0001,
    MessageType.UNMAPPED_GPA: 0x8000_0000,
    MessageType.GPA_INTERCEPT: 0x8000_0001,
    MessageType.UNACCEPTED_GPA: 0x8000_0003,
    MessageType.GPA_ATTRIBUTE_INTERCEPT: 0x8000_0004,
    MessageType.TIMER_EXPIRED: 0x8000_0010,
    MessageType.INVALID_VP_REGISTER_VALUE: 0x8000_0020,
    MessageType.UNRECOVERABLE_EXCEPTION: 0x8000_0021,
    MessageType.UNSUPPORTED_FEATURE: 0x8000_0022,
    MessageType.OPAQUE_INTERCEPT: 0x8000_003F,
    MessageType.EVENT_LOG_BUFFER_COMPLETE: 0x8000_0040,
    MessageType.HYPERCALL_INTERCEPT: 0x8000_0050,
    MessageType.SYNIC_EVENT_INTERCEPT: 0x8000_0060,
    MessageType.SYNIC_SINT_INTERCEPT: 0x8000_0061,
    MessageType.SYNIC_SINT_DELIVERABLE: 0x8000_0062,
    MessageType.ASYNC_CALL_COMPLETION: 0x8000_0070,
    MessageType.X64_IO_PORT_INTERCEPT: 0x8001_0000,
    MessageType.X64_MSR_INTERCEPT: 0x8001_0001,
    MessageType.X64_CPUID_INTERCEPT: 0x8001_0002,
    MessageType.X64_EXCEPTION_INTERCEPT: 0x8001_0003,
    MessageType.X64_APIC_EOI: 0x8001_0004,
    MessageType.X64_LEGACY_FP_ERROR: 0x8001_0005,
    MessageType.X64_REGISTER_INTERCEPT: 0x8001_0006,
    MessageType.X64_HALT: 0x8001_0007,
    MessageType.X64_INTERRUPTION_DELIVERABLE: 0x8001_0008,
    MessageType.X64_SIPI_INTERCEPT: 0x8001_0009,
}


# numbers


@pytest.mark.parametrize(("value", "name"), STATUSES.items())
def test_a_status_has_the_reference_s_value(value: int, name: str) -> None:
    assert HvStatus(value).name == name


def test_the_two_buffer_statuses_differ() -> None:
    assert HvStatus.INSUFFICIENT_BUFFERS != HvStatus.INSUFFICIENT_BUFFER


def test_message_types_have_the_reference_s_values() -> None:
    assert {kind: int(kind) for kind in MessageType} == MESSAGE_TYPES


def test_call_codes_privileges_and_levels_have_the_reference_s_values() -> None:
    assert {code.name: int(code) for code in CallCode} == {
        "POST_MESSAGE": 0x5C,
        "SIGNAL_EVENT": 0x5D,
        "SIGNAL_EVENT_DIRECT": 0xC0,
        "POST_MESSAGE_DIRECT": 0xC1,
    }
    assert (Privilege.POST_MESSAGES, Privilege.SIGNAL_EVENTS) == (1 << 36, 1 << 37)
    assert [int(vtl) for vtl in Vtl] == [0, 1, 2]


def test_the_reset_values_are_the_reference_s() -> None:
    assert SINT_RESET == 0x10000
    assert SVERSION_VALUE == 1
    assert {name: profile.scontrol_reset for name, profile in PROFILES.items()} == {"openvmm": 1, "tlfs": 0}


# registers by number and by name


@pytest.mark.parametrize(("msr", "name"), MSR_AND_NAME.items())
def test_an_msr_and_its_register_name_lead_to_each_other(msr: int, name: int) -> None:
    assert register_name(msr) == name
    assert msr_number(name) == msr


@given(u32)
def test_no_other_msr_has_a_register_name(msr: int) -> None:
    assert register_name(msr) == MSR_AND_NAME.get(msr)


@pytest.mark.parametrize("gap", [*range(0x4000_0085, 0x4000_0090), *range(0x4000_00A0, 0x4000_00B0), 0x4000_00B8])
def test_the_gaps_between_the_registers_have_no_name(gap: int) -> None:
    assert register_name(gap) is None


def test_vina_has_a_name_and_no_msr() -> None:
    assert HvRegister.VSM_VINA == 0x000D_0005
    assert msr_number(HvRegister.VSM_VINA) is None


def test_numbered_registers_are_found_by_index() -> None:
    assert [Msr.sint(n) for n in range(16)] == list(range(0x4000_0090, 0x4000_00A0))
    assert [Msr.stimer_config(n) for n in range(4)] == [0x4000_00B0, 0x4000_00B2, 0x4000_00B4, 0x4000_00B6]
    assert [Msr.stimer_count(n) for n in range(4)] == [0x4000_00B1, 0x4000_00B3, 0x4000_00B5, 0x4000_00B7]


@pytest.mark.parametrize("find", [Msr.sint, Msr.stimer_config, Msr.stimer_count])
@pytest.mark.parametrize("index", [-1, 16])
def test_an_index_out_of_range_names_no_register(find: Callable[[int], int], index: int) -> None:
    with pytest.raises(ValueError, match=str(index)):
        find(index)


def test_apic_registers_have_the_reference_s_numbers() -> None:
    assert (Msr.EOI, Msr.TPR, Msr.HYPERCALL) == (0x4000_0070, 0x4000_0072, 0x4000_0001)


# bit fields


@pytest.mark.parametrize("register", REGISTERS)
@given(value=u64, data=st.data())
def test_replacing_a_field_changes_its_bits_alone(register: type[Register], value: int, data: st.DataObject) -> None:
    name, field = data.draw(st.sampled_from(sorted(register.fields().items(), key=lambda item: item[0])))
    new = data.draw(st.integers(0, field.mask))
    changed = register(value).replace(**{name: new})
    assert type(changed) is register
    assert getattr(changed, name) == new
    assert changed & ~(field.mask << field.low) == value & ~(field.mask << field.low)


@pytest.mark.parametrize("register", REGISTERS)
@given(value=u64)
def test_the_fields_of_a_register_make_it_again(register: type[Register], value: int) -> None:
    fields = register.fields()
    known = sum(field.mask << field.low for field in fields.values())
    values = {name: getattr(register(value), name) for name in fields}
    assert register.make(**values) == value & known


@pytest.mark.parametrize("register", REGISTERS)
def test_a_value_too_large_for_its_field_is_refused(register: type[Register]) -> None:
    for name, field in register.fields().items():
        with pytest.raises(ValueError, match=rf"{register.__name__}\.{name} holds {field.width} bits"):
            register.make(**{name: field.mask + 1})
        with pytest.raises(ValueError, match="does not fit"):
            register.make(**{name: -1})


def test_a_page_register_gives_the_page_s_address() -> None:
    assert PageRegister(0x1234_5001).gpa == 0x1234_5000
    assert PageRegister(0x1234_5FFF).gpn == 0x1_2345


def test_the_control_word_has_the_reference_s_fields() -> None:
    bits = {name: (field.low, field.width) for name, field in HypercallControl.fields().items()}
    assert bits == {
        "code": (0, 16),
        "fast": (16, 1),
        "variable_header_size": (17, 10),
        "reserved0": (27, 4),
        "nested": (31, 1),
        "rep_count": (32, 12),
        "reserved1": (44, 4),
        "rep_start": (48, 12),
        "reserved2": (60, 4),
    }


def test_the_result_and_vina_have_the_reference_s_fields() -> None:
    assert HypercallResult.make(status=0x87, reps_completed=3) == 0x3_0000_0087
    assert VsmVina.make(vector=0x31, enabled=True, auto_reset=True, auto_eoi=True) == 0x731
    assert VsmVina(1 << 11).reserved == VsmVina(1 << 63).reserved >> 52 == 1


# messages


@given(u32, payloads, u8, u64)
def test_a_message_survives_its_slot(message_type: int, payload: bytes, flags: int, origination_id: int) -> None:
    message = SynicMessage(message_type, payload, flags, origination_id)
    slot = message.pack()
    assert len(slot) == 256
    assert SynicMessage.unpack(slot) == message
    assert SynicMessage.unpack(memoryview(bytearray(slot))) == message
    assert message.message_pending is bool(flags & 1)


def test_a_message_lies_in_its_slot_as_the_reference_says() -> None:
    slot = SynicMessage(0x0403_0201, b"abc", 1, 0x0807_0605_0403_0201).pack()
    assert slot[:24].hex(" ") == "01 02 03 04 03 01 00 00 01 02 03 04 05 06 07 08 61 62 63 00 00 00 00 00"
    assert not any(slot[24:])


@given(st.binary(min_size=256, max_size=256))
def test_any_slot_can_be_read(slot: bytes) -> None:
    message = SynicMessage.unpack(slot)
    assert len(message.payload) == min(slot[4], 240)
    assert message.payload == slot[16 : 16 + len(message.payload)]


def test_a_message_of_241_bytes_is_refused() -> None:
    assert len(SynicMessage(1, bytes(240)).pack()) == 256
    with pytest.raises(ValueError, match="241 do not fit"):
        SynicMessage(1, bytes(241)).pack()


@pytest.mark.parametrize("size", [0, 255, 257])
def test_a_slot_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"256 bytes, got {size}"):
        SynicMessage.unpack(bytes(size))


@given(u32, u64, u64)
def test_a_timer_payload_survives(index: int, expiration: int, delivery: int) -> None:
    timer = TimerMessage(index, expiration, delivery)
    assert len(timer.pack()) == 24
    assert TimerMessage.unpack(timer.pack()) == timer


def test_a_short_timer_payload_is_refused() -> None:
    with pytest.raises(ValueError, match="24 bytes, got 23"):
        TimerMessage.unpack(bytes(23))


# hypercall inputs


@given(u32, u32, payloads)
def test_a_post_survives_its_parameter_block(connection_id: int, message_type: int, payload: bytes) -> None:
    block = PostMessageInput(connection_id, message_type, payload).pack()
    assert len(block) == 256
    assert PostMessageInput.unpack(block) == PostMessageInput(connection_id, message_type, payload, len(payload))


@given(st.binary(min_size=256, max_size=256))
def test_a_post_s_stated_size_is_kept_and_its_payload_bounded(block: bytes) -> None:
    post = PostMessageInput.unpack(block)
    assert post.payload_size == int.from_bytes(block[12:16], "little")
    assert post.payload == block[16:][: post.payload_size]


def test_a_post_that_lies_about_its_size_can_be_written() -> None:
    block = PostMessageInput(1, 2, b"abc", payload_size=241).pack()
    assert block[:20].hex(" ") == "01 00 00 00 00 00 00 00 02 00 00 00 f1 00 00 00 61 62 63 00"
    assert len(PostMessageInput(1, 2, bytes(300)).pack()) == 256


@given(u32, u16)
def test_a_signal_is_the_same_in_memory_and_in_a_register(connection_id: int, flag: int) -> None:
    signal = SignalEventInput(connection_id, flag)
    assert signal.pack() == signal.fast.to_bytes(8, "little")
    assert SignalEventInput.unpack(signal.pack()) == SignalEventInput.from_fast(signal.fast) == signal


@given(u64)
def test_a_signal_s_reserved_bits_are_ignored(value: int) -> None:
    signal = SignalEventInput.from_fast(value)
    assert signal == SignalEventInput.unpack(value.to_bytes(8, "little"))
    assert signal.fast == value & 0xFFFF_FFFF_FFFF


@given(u64, u32, u8, u8, u16)
def test_a_direct_signal_survives(partition_id: int, vp_index: int, vtl: int, sint: int, flag: int) -> None:
    call = SignalEventDirectInput(partition_id, vp_index, vtl, sint, flag)
    block = call.pack()
    assert len(block) == 16
    assert (block[:8], block[8:12]) == (partition_id.to_bytes(8, "little"), vp_index.to_bytes(4, "little"))
    assert (block[12], block[13], block[14:]) == (vtl, sint, flag.to_bytes(2, "little"))
    assert SignalEventDirectInput.unpack(block) == call


@given(u64, u32, u8, u8, st.binary(min_size=256, max_size=256))
def test_a_direct_post_survives(partition_id: int, vp_index: int, vtl: int, sint: int, message: bytes) -> None:
    call = PostMessageDirectInput(partition_id, vp_index, vtl, sint, message)
    block = call.pack()
    assert len(block) == 280
    assert (block[:8], block[8:12]) == (partition_id.to_bytes(8, "little"), vp_index.to_bytes(4, "little"))
    assert (block[12], block[16], block[20:276]) == (vtl, sint, message)
    assert not any(block[13:16] + block[17:20] + block[276:])
    assert PostMessageDirectInput.unpack(block) == call
