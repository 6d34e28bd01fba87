"""Conformance items 38 to 66: messages from the host into the slots of the SIM page.

Item 64 says that posting is always ready. Here queues are bounded (`design.md` 3, `try_post_message`, and decisions 5 and
12): a post is refused while its queue is full, and the one that waits gets its turn.
"""

from __future__ import annotations

import anyio
import pytest

from broker import OPENVMM, TLFS, HvStatus, Partition, Profile, Vtl
from broker.clock import VirtualClock
from broker.core import MessageQueues, QueuedMessage
from broker.processor import VirtualProcessor
from broker.synic import HostPosts
from broker.turns import LiveTurns

from .support import (
    EMPTY_SLOT,
    EOI,
    EOM,
    INVALID_SYNIC_STATE,
    PAGE,
    POST_MESSAGE,
    SCONTROL,
    SIMP,
    SINT0,
    SUCCESS,
    SVERSION,
    BareSynic,
    Guest,
    RepostingPort,
    enabled_guest,
    message_port,
    message_slot,
    partition,
    post_message_block,
    queued,
    sint_value,
    vector_of,
)

BOTH = pytest.mark.parametrize("profile", [OPENVMM, TLFS], ids=lambda profile: profile.name)
WITH_VTL2 = (Vtl.VTL0, Vtl.VTL2)
CONNECTION = 0x42
IN_SLOT_2 = [vector_of(2)]


async def repost(opened: Partition, vp: int = 0, sint: int = 2) -> None:
    """Register a port that posts a guest's message back to (vp, sint), as messages of type 1."""
    port = RepostingPort(await message_port(opened, vp, sint))
    await opened.synic().add_message_port(CONNECTION, Vtl.VTL0, port)


async def post_to_self(guest: Guest, payload: bytes) -> int:
    """HvCallPostMessage to the reposting port: the result value."""
    guest.partition.memory.write(guest.input_gpa, post_message_block(CONNECTION, 1, payload))
    return await guest.vp.hypercall(POST_MESSAGE, guest.input_gpa)


# one message, one slot


@pytest.mark.item(38)
@BOTH
async def test_a_message_fills_the_free_slot_and_interrupts_once(profile: Profile) -> None:
    async with partition(profile=profile) as opened:
        guest = await enabled_guest(opened)
        await repost(opened)
        assert await post_to_self(guest, b"hello, guest") == SUCCESS
        assert guest.sim_page() == bytes(512) + message_slot(1, b"hello, guest") + bytes(PAGE - 768)
        assert guest.take_interrupts() == IN_SLOT_2


@pytest.mark.item(39, 40, 41)
@pytest.mark.parametrize("size", [0, 1, 8, 239, 240])
@BOTH
async def test_a_payload_of_any_size_arrives_whole(profile: Profile, size: int) -> None:
    payload = bytes(0xFF - number for number in range(size))
    header = bytes([0x44, 0x33, 0x22, 0x11, size, 0, 0, 0, *bytes(8)])
    async with partition(profile=profile) as opened:
        guest = await enabled_guest(opened)
        opened.memory.write(guest.sim_gpa + 512 + 16, b"\xee" * 240)  # what an earlier message left there
        assert (await message_port(opened)).try_post_message(0x1122_3344, payload)
        assert guest.slot() == header + payload + bytes(240 - size)


@pytest.mark.item(39)
async def test_the_first_qword_of_an_8_byte_payload_is_at_byte_16() -> None:
    async with partition() as opened:
        guest = await enabled_guest(opened, sints=[15])
        assert (await message_port(opened, sint=15)).try_post_message(1, bytes.fromhex("8877665544332211"))
        assert opened.memory.read(guest.sim_gpa + 15 * 256 + 4, 1) == b"\x08"
        assert opened.memory.read(guest.sim_gpa + 15 * 256 + 16, 8) == bytes.fromhex("8877665544332211")


# a busy slot, EOM


async def busy_guest(opened: Partition) -> Guest:
    """A guest with one message in slot 2 and another one that waits for it."""
    guest = await enabled_guest(opened)
    await repost(opened)
    assert await post_to_self(guest, b"first") == SUCCESS
    assert guest.take_interrupts() == IN_SLOT_2
    assert await post_to_self(guest, b"second") == SUCCESS
    return guest


@pytest.mark.item(42)
@BOTH
async def test_a_busy_slot_keeps_its_message_and_gets_the_pending_flag(profile: Profile) -> None:
    async with partition(profile=profile) as opened:
        guest = await busy_guest(opened)
        assert guest.slot() == message_slot(1, b"first", pending=True)
        assert guest.take_interrupts() == []


@pytest.mark.item(43)
@BOTH
async def test_eom_delivers_the_message_that_waited(profile: Profile) -> None:
    async with partition(profile=profile) as opened:
        guest = await busy_guest(opened)
        guest.clear_type()
        await guest.write(EOM, 0)
        assert guest.slot() == message_slot(1, b"second")
        assert guest.take_interrupts() == IN_SLOT_2


@pytest.mark.item(43)
@BOTH
async def test_an_eoi_delivers_the_message_that_waited_too(profile: Profile) -> None:
    async with partition(profile=profile) as opened:
        guest = await busy_guest(opened)
        guest.clear_type()
        await guest.write(EOI, 0)
        assert guest.slot() == message_slot(1, b"second")
        assert guest.take_interrupts() == IN_SLOT_2


@pytest.mark.item(44)
async def test_without_eom_the_message_arrives_at_the_next_exit() -> None:
    async with partition(profile=OPENVMM) as opened:
        guest = await busy_guest(opened)
        guest.clear_type()
        await guest.read(SVERSION)
        assert guest.slot() == message_slot(1, b"second")
        assert guest.take_interrupts() == IN_SLOT_2


@pytest.mark.item(44)
@pytest.mark.parametrize("exit_name", ["hypercall", "signal", "post", "store", "register"])
async def test_every_kind_of_exit_delivers_what_waits(exit_name: str) -> None:
    async with partition(profile=OPENVMM) as opened:
        guest = await busy_guest(opened)
        guest.clear_type()
        vp = guest.vp
        match exit_name:
            case "hypercall":
                await vp.hypercall(0, 0)
            case "signal":
                await vp.signal_event(0xBAD)
            case "post":
                await vp.post_message(0xBAD, 1, b"")
            case "store":
                await vp.write_memory(0x5000, b"x")
            case "register":
                await vp.get_register(0x0009_0003)
        assert guest.slot() == message_slot(1, b"second")


@pytest.mark.item(45)
@BOTH
async def test_eom_with_nothing_queued_does_nothing(profile: Profile) -> None:
    async with partition(profile=profile) as opened:
        guest = await enabled_guest(opened)
        await guest.write(EOM, 0)
        assert guest.sim_page() == bytes(PAGE)
        assert guest.take_interrupts() == []


@pytest.mark.item(46)
@BOTH
async def test_messages_arrive_in_the_order_of_their_posts(profile: Profile) -> None:
    async with partition(profile=profile) as opened:
        guest = await enabled_guest(opened, sints=[2, 3])
        ports = {sint: await message_port(opened, sint=sint) for sint in (2, 3)}
        for number in range(17):  # one in the slot, sixteen in the queue
            for sint, port in ports.items():
                assert port.try_post_message(sint, bytes([number]))
        for number in range(17):
            for sint in ports:
                slot = await guest.take_message(sint)
                assert slot == message_slot(sint, bytes([number]), pending=number < 16)
        assert (guest.slot(2)[:4], guest.slot(3)[:4]) == (bytes(4), bytes(4))


# the queues


class OncePerSint:
    """A poster that takes one message of each SINT."""

    def __init__(self) -> None:
        self.taken: list[tuple[int, QueuedMessage]] = []

    def __call__(self, sint: int, message: QueuedMessage) -> HvStatus:
        if any(sint == other for other, _ in self.taken):
            return HvStatus.OBJECT_IN_USE
        self.taken.append((sint, message))
        return HvStatus.SUCCESS


def no_discard(sint: int, message: QueuedMessage, status: HvStatus) -> None:
    pytest.fail(f"{message} of SINT {sint} was discarded with {status!r}")


def no_matter(sint: int) -> None:
    return


@pytest.mark.item(47, 48)
def test_a_flush_offers_the_masked_sints_in_order_and_leaves_the_others_pending() -> None:
    queues = MessageQueues(16)
    for sint, name in ((4, b"4a"), (0, b"0"), (4, b"4b"), (2, b"2")):
        queues.enqueue(sint, queued(1, name))
    poster = OncePerSint()
    pending = queues.flush(~1, poster, no_discard, no_matter)
    assert poster.taken == [(2, queued(1, b"2")), (4, queued(1, b"4a"))]
    assert pending == queues.pending == 1 << 0 | 1 << 4
    assert (queues.head(0), queues.head(4)) == (queued(1, b"0"), queued(1, b"4b"))


@pytest.mark.item(47)
def test_a_busy_sint_does_not_hold_up_the_ones_after_it() -> None:
    queues = MessageQueues(16)
    for sint in (3, 3, 5, 9, 9):
        queues.enqueue(sint, queued(1))
    poster = OncePerSint()
    assert queues.flush(0xFFFF, poster, no_discard, no_matter) == 1 << 3 | 1 << 9
    assert [sint for sint, _ in poster.taken] == [3, 5, 9]


@pytest.mark.item(49)
def test_a_message_that_the_poster_refuses_for_good_is_discarded_and_the_next_one_tried() -> None:
    queues = MessageQueues(16)
    for name in (b"refused", b"accepted", b"refused", b"last"):
        queues.enqueue(3, queued(1, name))
    discarded: list[tuple[int, bytes, HvStatus]] = []
    posted: list[bytes] = []

    def post(sint: int, message: QueuedMessage) -> HvStatus:
        posted.append(message.payload)
        return HvStatus.INVALID_SYNIC_STATE if message.payload == b"refused" else HvStatus.SUCCESS

    def discard(sint: int, message: QueuedMessage, status: HvStatus) -> None:
        discarded.append((sint, message.payload, status))

    assert queues.flush(1 << 3, post, discard, no_matter) == 0
    assert posted == [b"refused", b"accepted", b"refused", b"last"]
    assert discarded == [(3, b"refused", HvStatus.INVALID_SYNIC_STATE)] * 2


@pytest.mark.item(50)
def test_restored_queues_are_pending_where_they_hold_something() -> None:
    saved = MessageQueues(16)
    for sint in (5, 2, 5):
        saved.enqueue(sint, queued(1, bytes([sint])))
    restored = MessageQueues(16)
    restored.enqueue(7, queued(1, b"forgotten"))
    restored.restore(saved.save())
    assert restored.pending == 0b100100
    assert [restored.count(sint) for sint in range(16)] == [0, 0, 1, 0, 0, 2, *[0] * 10]


@pytest.mark.item(51)
@BOTH
async def test_what_waits_in_a_restored_state_is_there_when_the_processor_first_runs(profile: Profile) -> None:
    async def first_run(vp: VirtualProcessor) -> int | None:
        return vp.try_take_interrupt()

    async with partition(profile=profile) as opened:
        guest = await busy_guest(opened)
        guest.clear_type()  # no exit since: the second message waits although its slot is free
        document = opened.save()
    async with partition(profile=profile) as opened:
        opened.restore(document)
        run = opened.start(0, first_run)
        assert (await run.wait()).result == vector_of(2)
        assert Guest(opened).slot() == message_slot(1, b"second")


@pytest.mark.item(52)
async def test_a_processor_is_woken_by_the_first_message_of_a_queue_only() -> None:
    woken = []
    with BareSynic(OPENVMM) as bare:
        posts = HostPosts(0, LiveTurns(VirtualClock()), bare.machine, lambda: woken.append(bare.machine.queues.pending))
        assert [posts.try_post(2, queued(1)) for _ in range(3)] == [True] * 3
        assert woken == [1 << 2]
        assert posts.try_post(4, queued(1))
        assert woken == [1 << 2, 1 << 2 | 1 << 4]
        assert [bare.machine.enqueue(sint, queued(1)) for sint in (2, 5, 5)] == [False, True, False]


@pytest.mark.item(64)
@pytest.mark.parametrize("depth", [1, 16])
async def test_a_post_is_refused_while_its_queue_is_full(depth: int) -> None:
    async with partition(message_queue_depth=depth) as opened:
        guest = await enabled_guest(opened, sints=[2, 3])
        port = await message_port(opened)
        posts = [port.try_post_message(1, bytes([number])) for number in range(depth + 2)]
        assert posts == [True] * (depth + 1) + [False]
        assert (await message_port(opened, sint=3)).try_post_message(1, b"another queue")
        assert await guest.take_message() == message_slot(1, b"\0", pending=True)
        assert port.try_post_message(1, b"room again")


@pytest.mark.item(64)
async def test_a_post_that_waits_for_room_keeps_its_place_before_later_ones() -> None:
    async with partition(message_queue_depth=1) as opened:
        guest = await enabled_guest(opened)
        port = await message_port(opened)
        assert port.try_post_message(1, b"slot")
        assert port.try_post_message(1, b"queue")
        async with anyio.create_task_group() as group:
            group.start_soon(port.post_message, 1, b"waits")
            await anyio.wait_all_tasks_blocked()
            assert not port.try_post_message(1, b"refused")
            taken = [await guest.take_message() for _ in range(3)]
        assert [slot[16:21] for slot in taken] == [b"slot\0", b"queue", b"waits"]
        assert port.try_post_message(1, b"last")
        assert guest.slot() == message_slot(1, b"last")


# masked SINTs


@pytest.mark.item(53)
async def test_a_masked_sint_drops_the_message_and_counts_it() -> None:
    async with partition(profile=OPENVMM) as opened:
        guest = await enabled_guest(opened, masked=True)
        assert (await message_port(opened)).try_post_message(1, b"lost")
        machine = guest.vp.machine()
        assert machine is not None
        assert machine.dropped == 1
        await guest.write(SINT0 + 2, sint_value(vector_of(2), auto_eoi=True))
        await guest.write(EOM, 0)
        assert guest.sim_page() == bytes(PAGE)
        assert guest.take_interrupts() == []


@pytest.mark.item(54)
async def test_a_masked_sint_is_filled_without_an_interrupt_in_the_strict_profile() -> None:
    async with partition(profile=TLFS) as opened:
        guest = await enabled_guest(opened, masked=True)
        port = await message_port(opened)
        for payload in (b"first", b"second", b"third"):
            assert port.try_post_message(1, payload)
        assert guest.slot() == message_slot(1, b"first", pending=True)
        for payload in (b"second", b"third"):
            guest.clear_type()
            await guest.write(EOM, 0)
            assert guest.slot()[16:] == message_slot(1, payload)[16:]
        assert guest.take_interrupts() == []


# the machine's own post, readiness


@pytest.mark.item(55)
@pytest.mark.parametrize("sint", [16, 17, 255, -1])
@BOTH
def test_a_direct_post_to_a_sint_that_does_not_exist_is_an_invalid_synic_state(profile: Profile, sint: int) -> None:
    with BareSynic(profile) as bare:
        assert bare.machine.post_message(sint, queued(1)) is HvStatus.INVALID_SYNIC_STATE
        assert bare.machine.post_if_free(sint, queued(1)) is HvStatus.INVALID_SYNIC_STATE
        assert bytes(bare.machine.sim_page) == bytes(PAGE)


@pytest.mark.item(56)
@BOTH
def test_a_direct_post_without_a_readiness_request_finds_the_empty_slot_in_use(profile: Profile) -> None:
    with BareSynic(profile) as bare:
        bare.enable()
        assert bare.machine.post_message(2, queued(1)) is HvStatus.OBJECT_IN_USE
        assert bytes(bare.machine.sim_page) == bytes(PAGE)


@pytest.mark.item(57)
@BOTH
def test_an_empty_slot_is_ready_once_for_each_request(profile: Profile) -> None:
    with BareSynic(profile) as bare:
        bare.enable([2, 9])
        for _ in range(2):
            bare.machine.request_readiness(1 << 2 | 1 << 9)
            assert bare.machine.scan(0) == 1 << 2 | 1 << 9
            assert bare.machine.scan(0) == 0
        assert bare.machine.post_message(2, queued(1, b"ready")) is HvStatus.SUCCESS
        assert bare.machine.post_message(2, queued(1, b"once")) is HvStatus.OBJECT_IN_USE
        assert bytes(bare.machine.sim_page[512:768]) == message_slot(1, b"ready")


@pytest.mark.item(57)
@BOTH
def test_a_readiness_request_replaces_the_one_before(profile: Profile) -> None:
    with BareSynic(profile) as bare:
        bare.enable([2, 9])
        bare.machine.request_readiness(1 << 2)
        bare.machine.request_readiness(1 << 9)
        assert bare.machine.scan(0) == 1 << 9


@pytest.mark.item(58)
@BOTH
def test_a_full_slot_is_not_ready_and_gets_its_pending_flag(profile: Profile) -> None:
    with BareSynic(profile) as bare:
        bare.enable([2, 3])
        bare.machine.sim_page[512:768] = message_slot(5, b"in the way", origination=0x77)
        bare.machine.request_readiness(1 << 2 | 1 << 3)
        assert bare.machine.scan(0) == 1 << 3
        assert bytes(bare.machine.sim_page[512:768]) == message_slot(5, b"in the way", pending=True, origination=0x77)
        bare.machine.sim_page[512:516] = bytes(4)
        assert bare.machine.scan(0) == 1 << 2


# the page or the SynIC off


@pytest.mark.item(59)
async def test_with_simp_off_a_message_stays_queued_in_the_strict_profile() -> None:
    async with partition(profile=TLFS, vtls=WITH_VTL2) as opened:
        guest = await enabled_guest(opened)
        await guest.write(SIMP, 0)
        caller = Guest(opened, vtl=Vtl.VTL2)
        assert await caller.post_direct(2, message_slot(1, b"direct")) == INVALID_SYNIC_STATE
        assert (await message_port(opened)).try_post_message(1, b"queued")
        assert guest.take_interrupts() == []
        await guest.write(SIMP, guest.sim_gpa | 1)
        assert guest.slot() == message_slot(1, b"queued")
        assert guest.take_interrupts() == IN_SLOT_2


@pytest.mark.item(60)
async def test_with_simp_off_a_message_appears_when_it_is_enabled_in_the_openvmm_profile() -> None:
    async with partition(profile=OPENVMM) as opened:
        guest = await enabled_guest(opened)
        await guest.write(SIMP, 0)
        assert (await message_port(opened)).try_post_message(1, b"hidden")
        assert guest.take_interrupts() == IN_SLOT_2
        assert guest.slot() == EMPTY_SLOT
        await guest.write(SIMP, guest.sim_gpa | 1)
        assert guest.sim_page() == bytes(512) + message_slot(1, b"hidden") + bytes(PAGE - 768)
        assert guest.take_interrupts() == []


@pytest.mark.item(61)
async def test_with_the_synic_off_a_post_is_an_invalid_synic_state_in_the_strict_profile() -> None:
    async with partition(profile=TLFS, vtls=WITH_VTL2) as opened:
        guest = await enabled_guest(opened)
        await guest.write(SCONTROL, 0)
        caller = Guest(opened, vtl=Vtl.VTL2)
        assert await caller.post_direct(2, message_slot(1, b"direct")) == INVALID_SYNIC_STATE
        assert guest.slot() == EMPTY_SLOT
        await guest.write(SCONTROL, 1)
        assert await caller.post_direct(2, message_slot(1, b"direct")) == SUCCESS
        assert guest.slot() == message_slot(1, b"direct")


@pytest.mark.item(61)
async def test_with_the_synic_off_a_hosts_message_waits_in_the_strict_profile() -> None:
    async with partition(profile=TLFS) as opened:
        guest = await enabled_guest(opened)
        await guest.write(SCONTROL, 0)
        assert (await message_port(opened)).try_post_message(1, b"queued")
        assert guest.slot() == EMPTY_SLOT
        await guest.write(SCONTROL, 1)
        assert guest.slot() == message_slot(1, b"queued")


# targets


@pytest.mark.item(62)
@pytest.mark.parametrize("vp", [2, 0xFFFF_FFFE, 0xFFFF_FFFF])
async def test_a_message_to_an_unknown_processor_is_dropped_without_an_error(vp: int) -> None:
    async with partition(vp_count=2) as opened:
        guests = [await enabled_guest(opened, index) for index in range(2)]
        port = await message_port(opened, vp)
        assert port.try_post_message(1, b"nobody there")
        await port.post_message(1, b"nobody there either")
        assert [guest.sim_page() for guest in guests] == [bytes(PAGE)] * 2
        assert [guest.take_interrupts() for guest in guests] == [[], []]
        assert opened.synic_backend.undeliverable == 2


@pytest.mark.item(63)
@BOTH
async def test_a_retargeted_port_posts_to_the_new_processor_and_leaves_what_is_queued(profile: Profile) -> None:
    async with partition(profile=profile, vp_count=2) as opened:
        guests = [await enabled_guest(opened, index) for index in range(2)]
        port = await message_port(opened, vp=0)
        assert port.try_post_message(1, b"in slot")
        assert port.try_post_message(1, b"queued")
        await port.set_target_vp(1)
        assert port.try_post_message(1, b"retargeted")
        assert guests[1].slot() == message_slot(1, b"retargeted")
        assert [guest.take_interrupts() for guest in guests] == [IN_SLOT_2] * 2
        assert await guests[0].take_message() == message_slot(1, b"in slot", pending=True)
        assert guests[0].slot() == message_slot(1, b"queued")


# intercepts and proxied SINTs


@pytest.mark.item(65)
@BOTH
def test_an_intercept_with_slot_0_full_is_refused_and_not_queued(profile: Profile) -> None:
    with BareSynic(profile) as bare:
        bare.enable([0])
        assert bare.machine.post_intercept_message(queued(0x8000_0001, b"first")) is HvStatus.SUCCESS
        assert bare.machine.post_intercept_message(queued(0x8000_0001, b"second")) is HvStatus.OBJECT_IN_USE
        assert bytes(bare.machine.sim_page[:256]) == message_slot(0x8000_0001, b"first", pending=True)
        assert (bare.machine.queues.pending, bare.machine.queues.count(0)) == (0, 0)
        bare.machine.sim_page[:4] = bytes(4)
        bare.machine.rescan(0)
        assert bytes(bare.machine.sim_page[:4]) == bytes(4)


class RecordingHost:
    """A host's SynIC that notes what it is given."""

    def __init__(self) -> None:
        self.messages: list[tuple[Vtl, int, int, int, bytes]] = []

    def post_message(self, vtl: Vtl, vp: int, sint: int, message_type: int, payload: bytes) -> None:
        self.messages.append((vtl, vp, sint, message_type, payload))

    def signal_event(self, vtl: Vtl, vp: int, sint: int, flag: int) -> None:
        pytest.fail("nothing was signalled")


@pytest.mark.item(66)
@pytest.mark.parametrize("backend", ["emulated", "openhcl"])
async def test_a_message_to_a_proxied_sint_goes_to_the_host_and_leaves_the_slot_alone(backend: str) -> None:
    host = RecordingHost()
    async with partition(backend=backend, host_synic=host) as opened:
        guest = await enabled_guest(opened, sints=[2], proxy=True)
        await guest.write(SINT0 + 3, sint_value(vector_of(3), auto_eoi=True))
        assert (await message_port(opened, sint=2)).try_post_message(9, b"to the host")
        assert (await message_port(opened, sint=3)).try_post_message(9, b"to the guest")
        assert host.messages == [(Vtl.VTL0, 0, 2, 9, b"to the host")]
        assert guest.sim_page() == bytes(768) + message_slot(9, b"to the guest") + bytes(PAGE - 1024)
        assert guest.take_interrupts() == [vector_of(3)]
