"""Conformance, the hypercall envelope (items 114 to 123, 125, 126, 128) and the parameter block of a post (93 to 97).

Control words and parameter blocks are built here as the reference prints them (`reference/synic.md` 2.2 and 2.5).
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from broker import OPENVMM, TLFS, HvStatus, Message, MessageInbox, Partition, Profile, Vtl, receive_messages

from .support import FAST, INPUT_GPA, PAGE, POST_MESSAGE, SIGNAL_EVENT, partition
from .test_ports import EventRecorder

MESSAGES = 1
EVENTS = 2
UNKNOWN = 0x1234
MESSAGE_TYPE = 1

INVALID_HYPERCALL_CODE = 0x02
INVALID_HYPERCALL_INPUT = 0x03
INVALID_ALIGNMENT = 0x04
INVALID_PARAMETER = 0x05
ACCESS_DENIED = 0x06
INVALID_CONNECTION_ID = 0x12

ONE_HEADER_QWORD = 1 << 17
REP_COUNT_3 = 3 << 32
REP_START_1 = 1 << 48
RESERVED_BITS = [*range(27, 31), *range(44, 48), *range(60, 64)]
POST_MESSAGES_PRIVILEGE = 1 << 36
SIGNAL_EVENTS_PRIVILEGE = 1 << 37

BOTH_CALLS = pytest.mark.parametrize("code", [POST_MESSAGE, SIGNAL_EVENT])
BOTH_PROFILES = pytest.mark.parametrize("profile", [OPENVMM, TLFS])


def post_block(
    connection_id: int = MESSAGES, payload: bytes = b"", size: int | None = None, message_type: int = MESSAGE_TYPE
) -> bytes:
    """The 256 bytes of HvCallPostMessage's input; `size` is what it claims of its payload."""
    size = len(payload) if size is None else size
    return struct.pack("<IIII240s", connection_id, 0, message_type, size, payload)


def signal_block(connection_id: int = EVENTS, flag: int = 0) -> bytes:
    """The 8 bytes of HvCallSignalEvent's input."""
    return struct.pack("<IHH", connection_id, flag, 0)


class Calls:
    """A guest that makes hypercalls to one message port and one event port."""

    def __init__(self, opened: Partition, inbox: MessageInbox, events: EventRecorder) -> None:
        self.opened = opened
        self.vp = opened.vp(0)
        self.inbox = inbox
        self.events = events

    async def execute(self, control: int, block: bytes, gpa: int = INPUT_GPA) -> int:
        """Put the block into guest memory and make the call; the 64-bit result."""
        self.opened.memory.write(gpa, block)
        return await self.vp.hypercall(control, gpa)

    async def make(self, code: int, *, bits: int = 0) -> int:
        """A call that would succeed, were it not for these bits of its control word."""
        return await self.execute(code | bits, post_block() if code == POST_MESSAGE else signal_block())

    def reached(self) -> int:
        """How many calls came through to a port."""
        return len(self.inbox) + len(self.events.flags)


@asynccontextmanager
async def calls(**config: object) -> AsyncIterator[Calls]:
    async with partition(**config) as opened, receive_messages(opened.synic(), MESSAGES, depth=64) as inbox:
        events = EventRecorder()
        await opened.synic().add_event_port(EVENTS, Vtl.VTL0, events)
        yield Calls(opened, inbox, events)


# the parameter block of a post


@pytest.mark.item(93)
@pytest.mark.parametrize("size", [0, 1, 8, 239])
async def test_the_handler_sees_exactly_the_bytes_that_the_payload_size_counts(size: int) -> None:
    async with calls() as guest:
        payload = bytes(range(240))
        assert await guest.execute(POST_MESSAGE, post_block(payload=payload, size=size)) == 0
        assert await guest.inbox.receive_batch() == [Message(payload[:size], False)]


@pytest.mark.item(94)
@BOTH_PROFILES
@pytest.mark.parametrize("connection_id", [MESSAGES, EVENTS, UNKNOWN])
async def test_a_payload_of_241_bytes_is_refused_before_the_connection_is_looked_up(
    profile: Profile, connection_id: int
) -> None:
    async with calls(profile=profile) as guest:
        assert await guest.execute(POST_MESSAGE, post_block(connection_id, size=241)) == INVALID_PARAMETER
        assert guest.reached() == 0
        statistics = guest.opened.port_map.statistics()
        assert (statistics.unknown, statistics.wrong_kind) == (0, 0)


@pytest.mark.item(95)
@BOTH_PROFILES
async def test_a_payload_of_240_bytes_is_delivered_whole(profile: Profile) -> None:
    async with calls(profile=profile) as guest:
        payload = bytes(range(240))
        assert await guest.execute(POST_MESSAGE, post_block(payload=payload)) == 0
        assert await guest.inbox.receive_batch() == [Message(payload, False)]


@pytest.mark.item(96)
@BOTH_PROFILES
@pytest.mark.parametrize("size", [0x100, 0x1_00F0, 0x8000_0000, 0xFFFF_FFFF])
async def test_a_huge_payload_size_is_refused_and_does_not_wrap(profile: Profile, size: int) -> None:
    async with calls(profile=profile) as guest:
        assert await guest.execute(POST_MESSAGE, post_block(size=size)) == INVALID_PARAMETER
        assert guest.reached() == 0


@pytest.mark.item(97)
@pytest.mark.parametrize("message_type", [0, 0x8000_0000, 0xFFFF_FFFF])
async def test_a_message_type_that_is_not_for_guests_is_refused_by_the_tlfs_profile_only(message_type: int) -> None:
    block = post_block(message_type=message_type)
    async with calls(profile=TLFS) as guest:
        assert await guest.execute(POST_MESSAGE, block) == INVALID_PARAMETER
        assert await guest.vp.post_message(MESSAGES, message_type, b"") == INVALID_PARAMETER
        assert guest.reached() == 0
    async with calls() as guest:
        assert await guest.execute(POST_MESSAGE, block) == 0
        assert await guest.vp.post_message(MESSAGES, message_type, b"") == 0
        assert guest.reached() == 2


# the control word


@pytest.mark.item(114, 115, 116)
@BOTH_CALLS
@BOTH_PROFILES
@pytest.mark.parametrize("bits", [REP_COUNT_3, REP_START_1, ONE_HEADER_QWORD])
async def test_a_simple_call_with_reps_or_a_variable_header_is_refused(code: int, profile: Profile, bits: int) -> None:
    async with calls(profile=profile) as guest:
        assert await guest.make(code, bits=bits) == INVALID_HYPERCALL_INPUT
        assert guest.reached() == 0
        assert await guest.make(code) == 0


@pytest.mark.item(117)
@BOTH_CALLS
@pytest.mark.parametrize("bit", RESERVED_BITS)
async def test_reserved_control_bits_are_refused_by_the_tlfs_profile_only(code: int, bit: int) -> None:
    async with calls(profile=TLFS) as guest:
        assert await guest.make(code, bits=1 << bit) == INVALID_HYPERCALL_INPUT
        assert guest.reached() == 0
    async with calls() as guest:
        assert await guest.make(code, bits=1 << bit) == 0
        assert guest.reached() == 1


@pytest.mark.item(118)
@BOTH_PROFILES
@pytest.mark.parametrize("code", [0x0000, 0x005B, 0x005E, 0xFFFF])
@pytest.mark.parametrize("bits", [0, FAST, REP_COUNT_3])
async def test_an_unknown_call_code_is_told_as_such(profile: Profile, code: int, bits: int) -> None:
    async with calls(profile=profile) as guest:
        assert await guest.make(code, bits=bits) == INVALID_HYPERCALL_CODE


# where the parameter block lies


@pytest.mark.item(119)
@BOTH_CALLS
@BOTH_PROFILES
@pytest.mark.parametrize("offset", [4, 1, 7])
async def test_a_misaligned_parameter_block_is_refused(code: int, profile: Profile, offset: int) -> None:
    async with calls(profile=profile) as guest:
        block = post_block() if code == POST_MESSAGE else signal_block()
        assert await guest.execute(code, block, INPUT_GPA + offset) == INVALID_ALIGNMENT
        assert guest.reached() == 0


@pytest.mark.item(120)
@pytest.mark.parametrize(("profile", "status"), [(OPENVMM, INVALID_HYPERCALL_INPUT), (TLFS, INVALID_ALIGNMENT)])
async def test_a_parameter_block_that_crosses_a_page_is_refused(profile: Profile, status: int) -> None:
    """The last place that fits, and one of 8 bytes, which fits in the page's last 8, are taken."""
    page_end = INPUT_GPA + PAGE
    async with calls(profile=profile) as guest:
        assert await guest.execute(POST_MESSAGE, post_block(), page_end - 8) == status
        assert await guest.execute(POST_MESSAGE, post_block(), page_end - 248) == status
        assert guest.reached() == 0
        assert await guest.execute(POST_MESSAGE, post_block(), page_end - 256) == 0
        assert await guest.execute(SIGNAL_EVENT, signal_block(), page_end - 8) == 0
        assert guest.reached() == 2


@pytest.mark.item(120)
async def test_the_openvmm_profile_tells_the_crossed_page_before_the_misalignment() -> None:
    """Reference 7.1, row 6."""
    async with calls() as guest:
        result = await guest.execute(POST_MESSAGE, post_block(), INPUT_GPA + PAGE - 252)
        assert result == INVALID_HYPERCALL_INPUT


# fast and memory form


@pytest.mark.item(121)
@BOTH_PROFILES
async def test_a_fast_post_is_refused(profile: Profile) -> None:
    """The TLFS profile gives OpenVMM's status too: the TLFS has no fast form of this call and names no status for it."""
    async with calls(profile=profile) as guest:
        assert await guest.make(POST_MESSAGE, bits=FAST) == INVALID_HYPERCALL_INPUT
        assert guest.reached() == 0


@pytest.mark.item(122, 123)
@BOTH_PROFILES
@pytest.mark.parametrize(
    ("connection_id", "flag", "openvmm", "tlfs"),
    [(EVENTS, 0, 0, 0), (EVENTS, 0x123, 0, 0), (MESSAGES, 5, 0x12, 0x11), (UNKNOWN, 0, 0x12, 0x12)],
)
async def test_the_fast_and_the_memory_form_of_a_signal_do_the_same(
    profile: Profile, connection_id: int, flag: int, openvmm: int, tlfs: int
) -> None:
    expected = tlfs if profile is TLFS else openvmm
    flags = [flag] if expected == 0 else []
    async with calls(profile=profile) as guest:
        assert await guest.vp.hypercall(SIGNAL_EVENT | FAST, connection_id | flag << 32) == expected
        assert guest.events.flags == flags
        assert await guest.execute(SIGNAL_EVENT, signal_block(connection_id, flag)) == expected
        assert guest.events.flags == flags * 2


@pytest.mark.item(122)
async def test_the_second_register_of_a_fast_signal_is_ignored() -> None:
    async with calls() as guest:
        assert await guest.vp.hypercall(SIGNAL_EVENT | FAST, EVENTS | 7 << 32, 0xFFFF_FFFF_FFFF_FFFF) == 0
        assert guest.events.flags == [7]


# the result


@pytest.mark.item(125)
@BOTH_CALLS
@BOTH_PROFILES
async def test_the_result_of_a_success_is_all_zero(code: int, profile: Profile) -> None:
    async with calls(profile=profile) as guest:
        assert await guest.make(code) == 0
        assert guest.reached() == 1


class HesitantPort:
    """A message port that wants a call executed again before it takes the message."""

    def __init__(self, opened: Partition) -> None:
        self.seen: list[bytes] = []
        self._memory = opened.memory

    async def handle_message(self, message: bytes, trusted: bool) -> HvStatus:
        """The first time it changes the parameter block, which shows whether that is read again."""
        self.seen.append(message)
        if len(self.seen) > 1:
            return HvStatus.SUCCESS
        self._memory.write(INPUT_GPA, post_block(UNKNOWN + 1, b"again"))
        return HvStatus.TIMEOUT


@pytest.mark.item(126)
async def test_an_internal_timeout_executes_the_call_again_and_is_never_a_result() -> None:
    """The instruction pointer stays, so the guest's whole call runs again, its parameters read anew; the caller gets
    the result of the run that ended, as if nothing had been."""
    async with calls() as guest:
        port = HesitantPort(guest.opened)
        for connection_id in (UNKNOWN, UNKNOWN + 1):
            await guest.opened.synic().add_message_port(connection_id, Vtl.VTL0, port)
        assert await guest.execute(POST_MESSAGE, post_block(UNKNOWN, b"once")) == 0
        assert port.seen == [b"once", b"again"]


# privileges


@pytest.mark.item(128)
@pytest.mark.parametrize(
    ("code", "privileges"), [(POST_MESSAGE, SIGNAL_EVENTS_PRIVILEGE), (SIGNAL_EVENT, POST_MESSAGES_PRIVILEGE)]
)
async def test_a_missing_privilege_is_told_before_anything_else_is_looked_at(code: int, privileges: int) -> None:
    async with calls(profile=TLFS, privileges=privileges) as guest:
        assert await guest.make(code) == ACCESS_DENIED
        for bits in (REP_COUNT_3, REP_START_1, ONE_HEADER_QWORD, FAST, 1 << 27):
            assert await guest.make(code, bits=bits) == ACCESS_DENIED
        assert await guest.vp.hypercall(code, INPUT_GPA + 4) == ACCESS_DENIED
        assert await guest.vp.hypercall(code, guest.opened.memory.size) == ACCESS_DENIED
        assert await guest.execute(code, post_block(UNKNOWN, size=241)) == ACCESS_DENIED
        assert guest.reached() == 0


@pytest.mark.item(128)
@BOTH_CALLS
async def test_each_call_needs_its_own_privilege_and_the_openvmm_profile_none(code: int) -> None:
    own = {POST_MESSAGE: POST_MESSAGES_PRIVILEGE, SIGNAL_EVENT: SIGNAL_EVENTS_PRIVILEGE}[code]
    async with calls(profile=TLFS, privileges=own) as guest:
        assert await guest.make(code) == 0
    async with calls(privileges=0) as guest:
        assert await guest.make(code) == 0
