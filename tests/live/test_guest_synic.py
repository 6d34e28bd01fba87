"""`GuestSynic`: a guest-side driver programs the SynIC as Linux does and takes messages and flags in order."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest

from broker import (
    OPENVMM,
    TLFS,
    ConfigurationError,
    GuestMessagePort,
    HvStatus,
    Msr,
    Partition,
    PartitionConfig,
    Profile,
    Trace,
    Vtl,
    receive_messages,
)
from broker.trace import AnyEvent, Eom, Pending, Write

SINT = 2
OTHER_SINT = 5
MASKED = 1 << 16
PROFILES = pytest.mark.parametrize("profile", [OPENVMM, TLFS], ids=lambda profile: profile.name)


def config(profile: Profile = OPENVMM, **settings: object) -> PartitionConfig:
    return PartitionConfig(profile=profile, virtual_time=True, **settings)  # type: ignore[arg-type]


async def post_all(port: GuestMessagePort, payloads: list[bytes]) -> None:
    for payload in payloads:
        await port.post_message(1, payload)


def numbered(count: int) -> list[bytes]:
    return [b"%03d" % n for n in range(count)]


@PROFILES
async def test_many_messages_arrive_in_order_with_an_eom_exactly_where_one_is_pending(profile: Profile) -> None:
    events: list[AnyEvent] = []
    payloads = numbered(50)
    trace = Trace(events.append)
    async with Partition(config(profile, trace=trace)) as partition, anyio.create_task_group() as group:
        port = await partition.synic().new_guest_message_port(Vtl.VTL0, 0, SINT)
        async with partition.vp(0).guest_synic().messages(SINT) as messages:
            group.start_soon(post_all, port, payloads)
            taken = [await anext(messages) for _ in payloads]
            await port.post_message(7, b"alone")
            alone = await anext(messages)
    assert [message.payload for message in taken] == payloads
    assert (alone.message_type, alone.payload, alone.flags) == (7, b"alone", 0)
    pending = [event for event in events if isinstance(event, Pending)]
    eoms = [event for event in events if isinstance(event, Eom)]
    assert 0 < len(pending) == len(eoms)
    assert sum(message.message_pending for message in taken) <= len(eoms)
    assert not alone.message_pending


@PROFILES
async def test_no_eom_is_written_while_nothing_is_pending(profile: Profile) -> None:
    events: list[AnyEvent] = []
    async with Partition(config(profile, trace=Trace(events.append))) as partition:
        port = await partition.synic().new_guest_message_port(Vtl.VTL0, 0, SINT)
        async with partition.vp(0).guest_synic().messages(SINT) as messages:
            for payload in numbered(5):
                await port.post_message(1, payload)
                assert (await anext(messages)).payload == payload
    assert not [event for event in events if isinstance(event, (Eom, Pending))]


@PROFILES
async def test_a_slot_is_left_empty_with_its_type_cleared_first(profile: Profile) -> None:
    async with Partition(config(profile)) as partition:
        port = await partition.synic().new_guest_message_port(Vtl.VTL0, 0, SINT)
        async with partition.vp(0).guest_synic().messages(SINT) as messages:
            await port.post_message(1, b"x")
            await anext(messages)
            simp = await partition.vp(0).read_msr(Msr.SIMP)
            assert partition.memory.read((simp & ~0xFFF) + 256 * SINT, 4) == bytes(4)


@PROFILES
async def test_two_iterators_serve_different_sints_of_one_processor_at_once(profile: Profile) -> None:
    payloads = {SINT: numbered(20), OTHER_SINT: [b"other " + payload for payload in numbered(20)]}
    taken: dict[int, list[bytes]] = {sint: [] for sint in payloads}

    async def drive(sint: int) -> None:
        async with partition.vp(0).guest_synic().messages(sint) as messages:
            ready[sint].set()
            async for message in messages:
                taken[sint].append(message.payload)
                if len(taken[sint]) == len(payloads[sint]):
                    return

    async with Partition(config(profile)) as partition, anyio.create_task_group() as group:
        ready = {sint: anyio.Event() for sint in payloads}
        for sint in payloads:
            group.start_soon(drive, sint)
        for sint, wanted in payloads.items():
            await ready[sint].wait()
            port = await partition.synic().new_guest_message_port(Vtl.VTL0, 0, sint)
            group.start_soon(post_all, port, wanted)
    assert taken == payloads


async def test_messages_and_events_of_one_processor_are_served_at_once() -> None:
    async with Partition(config()) as partition:
        access = partition.synic()
        guest = partition.vp(0).guest_synic()
        port = await access.new_guest_message_port(Vtl.VTL0, 0, SINT)
        event = await access.new_guest_event_port(1, Vtl.VTL0, 0, OTHER_SINT, 9)
        async with (
            guest.messages(SINT) as messages,
            guest.events(OTHER_SINT) as flags,
            anyio.create_task_group() as group,
        ):

            async def answer() -> None:
                assert await anext(flags) == {9}
                await port.post_message(1, b"seen")

            group.start_soon(answer)
            await partition.settled()
            event.interrupt().deliver()
            assert (await anext(messages)).payload == b"seen"


@PROFILES
async def test_flags_are_tested_and_cleared_and_none_is_lost(profile: Profile) -> None:
    async with Partition(config(profile)) as partition:
        access, guest = partition.synic(), partition.vp(0).guest_synic()
        async with guest.events(SINT) as flags:
            for wanted in ({0}, {7, 8, 2047}, {8}):
                for flag in wanted:
                    port = await access.new_guest_event_port(1, Vtl.VTL0, 0, SINT, flag)
                    port.interrupt().deliver()
                    port.interrupt().deliver()
                assert await anext(flags) == wanted
            siefp = await partition.vp(0).read_msr(Msr.SIEFP)
            assert partition.memory.read(siefp & ~0xFFF, 4096) == bytes(4096)


@pytest.mark.parametrize("what", ["messages", "events"])
async def test_leaving_the_block_masks_the_sint_and_keeps_the_rest(what: str) -> None:
    async with Partition(config()) as partition:
        vp = partition.vp(0)
        guest = vp.guest_synic()
        before = await vp.read_msr(Msr.sint(SINT))
        async with guest.messages(SINT) if what == "messages" else guest.events(SINT):
            inside = await vp.read_msr(Msr.sint(SINT))
            assert not inside & MASKED
            pages = [await vp.read_msr(msr) for msr in (Msr.SIMP, Msr.SIEFP)]
            assert [page & 1 for page in pages] == [1, 1]
        assert before & MASKED
        assert await vp.read_msr(Msr.sint(SINT)) == inside | MASKED
        assert [await vp.read_msr(msr) for msr in (Msr.SIMP, Msr.SIEFP)] == pages


async def test_an_exception_in_the_block_masks_the_sint_too() -> None:
    async with Partition(config()) as partition:
        with pytest.raises(LookupError):
            async with partition.vp(0).guest_synic().messages(SINT):
                raise LookupError
        assert await partition.vp(0).read_msr(Msr.sint(SINT)) & MASKED


@PROFILES
async def test_a_page_that_the_guest_enabled_itself_is_used_as_it_is(profile: Profile) -> None:
    async with Partition(config(profile)) as partition:
        vp = partition.vp(0)
        await vp.write_msr(Msr.SIMP, 0x7FF1 & ~0xFFF | 0x101)
        port = await partition.synic().new_guest_message_port(Vtl.VTL0, 0, SINT)
        async with vp.guest_synic().messages(SINT) as messages:
            assert await vp.read_msr(Msr.SIMP) == 0x7101
            await port.post_message(1, b"there")
            assert (await anext(messages)).payload == b"there"


@PROFILES
async def test_cancelled_while_it_waits_an_iterator_loses_nothing_and_masks(profile: Profile) -> None:
    async with Partition(config(profile)) as partition:
        vp = partition.vp(0)
        port = await partition.synic().new_guest_message_port(Vtl.VTL0, 0, SINT)

        async def take_one() -> None:
            with scope:
                async with vp.guest_synic().messages(SINT) as messages:
                    await anext(messages)

        scope = anyio.CancelScope()
        async with anyio.create_task_group() as group:
            group.start_soon(take_one)
            await partition.settled()
            scope.cancel()
        assert await vp.read_msr(Msr.sint(SINT)) & MASKED
        async with vp.guest_synic().messages(SINT) as messages:
            await port.post_message(1, b"later")
            assert (await anext(messages)).payload == b"later"


@pytest.mark.parametrize("exits", range(8))
@PROFILES
async def test_wherever_a_cancellation_meets_an_iterator_no_message_is_lost(profile: Profile, exits: int) -> None:
    """Each exit is a checkpoint here; the cancellation comes in each of those that taking a message makes."""
    payloads = numbered(4)
    taken: list[bytes] = []
    async with Partition(PartitionConfig(profile=profile, quantum=1)) as partition:
        port = await partition.synic().new_guest_message_port(Vtl.VTL0, 0, SINT)
        async with partition.vp(0).guest_synic().messages(SINT) as messages:
            for payload in payloads:
                assert port.try_post_message(1, payload)

            async def take_until_cancelled() -> None:
                with scope:
                    while True:
                        taken.append((await anext(messages)).payload)

            scope = anyio.CancelScope()
            async with anyio.create_task_group() as group:
                group.start_soon(take_until_cancelled)
                for _ in range(exits):
                    await anyio.lowlevel.checkpoint()
                scope.cancel()
            while len(taken) < len(payloads):
                taken.append((await anext(messages)).payload)
    assert taken == payloads


@pytest.mark.parametrize("exits", range(1, 8))
async def test_cancelled_while_it_programs_the_synic_it_leaves_the_sint_masked(exits: int) -> None:
    async with Partition(PartitionConfig(quantum=1)) as partition:
        vp = partition.vp(0)
        scope = anyio.CancelScope()

        async def enter() -> None:
            with scope:
                async with vp.guest_synic().messages(SINT):
                    await anyio.sleep_forever()

        async with anyio.create_task_group() as group:
            group.start_soon(enter)
            for _ in range(exits):
                await anyio.lowlevel.checkpoint()
            scope.cancel()
        assert await vp.read_msr(Msr.sint(SINT)) & MASKED


@pytest.mark.parametrize("vtl", list(Vtl))
@PROFILES
async def test_every_vtl_has_its_own_synic(profile: Profile, vtl: Vtl) -> None:
    async with Partition(config(profile, vtls=tuple(Vtl), vp_count=2)) as partition:
        access, guest = partition.synic(), partition.vp(1).guest_synic(vtl)
        assert (guest.vp_index, guest.vtl) == (1, vtl)
        port = await access.new_guest_message_port(vtl, 1, SINT)
        event = await access.new_guest_event_port(1, vtl, 1, SINT, 3)
        async with guest.messages(SINT) as messages, guest.events(OTHER_SINT):
            for payload in numbered(3):
                assert port.try_post_message(1, payload)
            assert [(await anext(messages)).payload for _ in range(3)] == numbered(3)
            for other in set(Vtl) - {vtl}:
                assert await partition.vp(1).read_msr(Msr.sint(SINT), vtl=other) == MASKED
                assert await partition.vp(1).read_msr(Msr.SIMP, vtl=other) == 0
        async with guest.events(SINT) as flags:
            event.interrupt().deliver()
            assert await anext(flags) == {3}


async def test_the_pages_of_all_processors_and_vtls_are_different() -> None:
    async with Partition(config(vtls=tuple(Vtl), vp_count=3)) as partition:
        pages = []
        for index in range(3):
            for vtl in Vtl:
                async with partition.vp(index).guest_synic(vtl).messages(SINT):
                    pages += [await partition.vp(index).read_msr(msr, vtl=vtl) for msr in (Msr.SIMP, Msr.SIEFP)]
    assert len(set(pages)) == len(pages) == 18


@pytest.mark.parametrize(("pages", "vp", "fits"), [(1, 0, False), (2, 0, True), (6, 1, False), (8, 1, True)])
async def test_too_small_a_memory_is_refused_in_a_sentence(pages: int, vp: int, fits: bool) -> None:
    async with Partition(config(memory_size=4096 * pages, vp_count=2)) as partition:
        block = partition.vp(vp).guest_synic().messages(SINT)
        if fits:
            async with block:
                return
        with pytest.raises(ConfigurationError, match=rf"^guest RAM of {4096 * pages} bytes .* processor {vp}; .*"):
            await block.__aenter__()
        assert await partition.vp(vp).read_msr(Msr.sint(SINT)) == MASKED


async def test_calls_leave_through_the_drivers_own_vtl() -> None:
    async with (
        Partition(config(vtls=(Vtl.VTL0, Vtl.VTL1))) as partition,
        receive_messages(partition.synic(), 1, minimum_vtl=Vtl.VTL1) as inbox,
    ):
        vp = partition.vp(0)
        assert await vp.guest_synic(Vtl.VTL0).post_message(1, 1, b"low") is HvStatus.OPERATION_DENIED
        assert await vp.guest_synic(Vtl.VTL1).post_message(1, 1, b"high") is HvStatus.SUCCESS
        assert (await inbox.receive()).payload == b"high"
        assert await vp.guest_synic(Vtl.VTL1).signal_event(99) is HvStatus.INVALID_CONNECTION_ID


async def test_the_registers_are_programmed_in_linux_order() -> None:
    events: list[AnyEvent] = []
    trace = Trace(events.append)
    async with Partition(config(trace=trace)) as partition, partition.vp(0).guest_synic().messages(SINT):
        writes = [event.msr for event in events if isinstance(event, Write)]
    assert writes == [Msr.SIMP, Msr.SIEFP, Msr.sint(SINT), Msr.SCONTROL]


async def test_a_sint_is_masked_when_the_last_block_that_uses_it_is_left() -> None:
    async with Partition(config()) as partition:
        vp = partition.vp(0)
        async with vp.guest_synic().events(SINT):
            async with vp.guest_synic().messages(SINT):
                pass
            assert not await vp.read_msr(Msr.sint(SINT)) & MASKED
        assert await vp.read_msr(Msr.sint(SINT)) & MASKED


async def test_interrupts_that_other_guest_code_asked_for_are_left_to_it() -> None:
    """A timer in direct mode interrupts with a vector of its own, above those of the driver."""
    vector = 0xF5
    async with Partition(config()) as partition:
        vp = partition.vp(0)
        port = await partition.synic().new_guest_message_port(Vtl.VTL0, 0, SINT)
        async with vp.guest_synic().messages(SINT) as messages:
            await vp.write_msr(Msr.stimer_count(0), 1)
            await vp.write_msr(Msr.stimer_config(0), 1 | vector << 4 | 1 << 12)
            await partition.sleep(10)
            for text in (b"one", b"two"):
                await port.post_message(1, text)
                assert (await anext(messages)).payload == text
            assert await vp.wait_for_interrupt() == vector
