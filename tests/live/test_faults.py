"""Faults on request: each scenario, with each fault, ends in the state that the fault promises, the same on both loops."""

from __future__ import annotations

from collections.abc import Awaitable

import anyio
import msgspec
import pytest

from broker import (
    OPENVMM,
    TLFS,
    HvStatus,
    Partition,
    PartitionConfig,
    Profile,
    Trace,
    VirtualProcessor,
    Vtl,
    receive_messages,
)
from broker.errors import ChannelClosed, ConfigurationError
from broker.hvdef import Msr, SintRegister
from broker.run import Report, find_scenario, play
from broker.trace import AnyEvent, Control, encode_event
from channels.faults import FAULTS, Fault, Faults, GuestSynicWrapper, parse_fault
from channels.faults.guest import LateEom, MaskedSint
from channels.scenarios import Scenario, ScenarioFailed, Settings, Stage

from .test_scenarios import NAMES

SETTINGS = Settings(packets=100, rounds=2)
MILLISECOND = 10_000

REPORTS: dict[tuple[str, str], bytes] = {}
"""What a scenario with a fault ended with, on whichever loop came first."""


async def run(name: str, fault: str, seed: int | None = 1, profile: Profile = OPENVMM) -> Report:
    scenario = find_scenario(f"channels.scenarios:{name}")
    return await play(scenario, SETTINGS, profile, "emulated", seed, faults=[parse_fault(fault)])


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", NAMES)
async def test_each_scenario_with_each_fault_ends_as_promised_and_the_same_on_both_loops(name: str, fault: str) -> None:
    report = await run(name, fault)
    if FAULTS[fault].is_survived:
        assert report.failure is None
    elif report.failure is not None:
        assert report.faults[fault], "it fails without having been disturbed"
        assert len(report.failure.splitlines()) == 1
    document = msgspec.json.encode(report)
    assert REPORTS.setdefault((name, fault), document) == document


@pytest.mark.parametrize("fault", [name for name, kind in FAULTS.items() if kind.is_survived])
async def test_what_is_survived_is_survived_live_too(fault: str) -> None:
    report = await run("echo", fault, seed=None)
    assert report.failure is None
    assert report.counts["packets echoed"] == SETTINGS.packets
    assert report.faults[fault] > 0


@pytest.mark.parametrize(
    ("name", "fault", "reason"),
    [
        ("echo", "corrupt-ring:1", "somebody still waits"),
        ("echo", "rescind-during-open", "was not opened"),
        ("echo", "crashing-handler:1", "OPERATION_FAILED"),
        ("echo", "refused-posts:1", "the VMBus server is gone or does not keep up"),
        ("starved_guest", "refused-posts:1", "somebody still waits"),
    ],
)
async def test_what_is_not_survived_says_what_became_of_it(name: str, fault: str, reason: str) -> None:
    report = await run(name, fault)
    assert report.failure is not None
    assert reason in report.failure


@pytest.mark.parametrize(
    ("name", "seed", "texts"),
    [("hvsock", 21, ["corrupt-ring"]), ("subchannels", 35, ["corrupt-ring:2", "masked-sint:2"])],
    ids=["fails", "ends"],
)
def test_blocks_that_end_while_others_wait_end_the_same_way_on_both_loops(
    name: str, seed: int, texts: list[str]
) -> None:
    async def trace() -> list[bytes]:
        events: list[AnyEvent] = []
        scenario, faults = find_scenario(f"channels.scenarios:{name}"), [parse_fault(text) for text in texts]
        settings = Settings(packets=40, rounds=2)
        report = await play(scenario, settings, TLFS, "emulated", seed, Trace(events.append), faults=faults)
        assert sum(report.faults.values()) == len(faults)
        return [encode_event(event) for event in events]

    assert anyio.run(trace, backend="asyncio") == anyio.run(trace, backend="trio")


async def test_a_forgotten_eom_is_made_good_by_the_next_exit_only_where_the_profile_says_so() -> None:
    assert (await run("starved_guest", "missing-eom:1")).failure is None
    strict = await run("starved_guest", "missing-eom:1", profile=TLFS)
    assert strict.failure is not None
    assert "somebody still waits" in strict.failure


@pytest.mark.parametrize("fault", ["busy-slot:7", "late-eom:7", "slow-handler:7", "masked-sint:7"])
async def test_the_number_says_how_long_it_takes(fault: str) -> None:
    report = await run("hello", fault)
    assert report.ticks is not None
    whole = report.faults[fault.partition(":")[0]] - (
        fault == "busy-slot:7"
    )  # the last wait for a message was cancelled
    assert report.ticks >= 7 * MILLISECOND * whole > 0


async def test_a_masked_sint_loses_what_comes_meanwhile_and_takes_messages_again_after_it() -> None:
    async with Partition(PartitionConfig(seed=3, virtual_time=True)) as partition:
        faults = Faults([Fault("masked-sint", 10)], seed=3)
        synic = faults.guest(partition.vp(0).guest_synic())
        port = await partition.synic().new_guest_message_port(synic.vtl, 0, 2)
        taken = []
        async with synic.messages(2) as messages:
            for number in range(20):
                await port.post_message(1, bytes([number]))
                timer = partition.turns.schedule(
                    partition.clock.now() + MILLISECOND,
                    ("late", number),
                    lambda: port.try_post_message(1, b"meanwhile"),
                )
                taken.append((await anext(messages)).payload)
                timer.cancel()
        assert taken == [bytes([number]) for number in range(20)]
        assert faults.struck["masked-sint"] == 1


async def test_a_crashing_handler_gets_the_guest_operation_failed_and_the_port_lives() -> None:
    async with Partition() as partition:
        faults = Faults([Fault("crashing-handler", 2)])
        async with receive_messages(faults.access(partition.synic()), 1, depth=100) as inbox:
            statuses = [await partition.vp(0).post_message(1, 1, b"x") for _ in range(50)]
            taken = await inbox.receive_batch()
    assert set(statuses) == {HvStatus.SUCCESS, HvStatus.OPERATION_FAILED}
    assert statuses.count(HvStatus.OPERATION_FAILED) == faults.struck["crashing-handler"]
    assert len(taken) == statuses.count(HvStatus.SUCCESS)


async def test_refused_posts_are_a_share_that_the_seed_decides() -> None:
    async def statuses(seed: int) -> list[HvStatus]:
        async with Partition() as partition:
            access = Faults([Fault("refused-posts", 3)], seed).access(partition.synic())
            async with receive_messages(access, 1, depth=100):
                return [await partition.vp(0).post_message(1, 1, b"x") for _ in range(60)]

    first = await statuses(1)
    assert first == await statuses(1) != await statuses(2)
    assert 5 < first.count(HvStatus.INSUFFICIENT_BUFFERS) < 40


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("late-eom", Fault("late-eom", 5)),
        ("late-eom:12", Fault("late-eom", 12)),
        ("corrupt-ring:1", Fault("corrupt-ring", 1)),
    ],
)
def test_a_fault_is_a_name_and_a_number(text: str, fault: Fault) -> None:
    assert parse_fault(text) == fault


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("lateeom", "there is no fault lateeom; there are busy-slot, "),
        ("", "there is no fault ;"),
        ("late-eom:", "takes a number from 1 on"),
        ("late-eom:0", "takes a number from 1 on"),
        ("late-eom:-1", "takes a number from 1 on"),
        ("late-eom:1e3", "takes a number from 1 on"),
        ("late-eom:²", "takes a number from 1 on"),
        ("late-eom:99999999999", "takes a number from 1 on"),
    ],
)
def test_any_other_text_is_refused_with_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence.replace("(", "\\(")):
        parse_fault(text)


class CountingEoms(GuestSynicWrapper):
    """Counts the EOMs that a guest writes."""

    eoms = 0

    async def end_of_message(self) -> None:
        self.eoms += 1
        await super().end_of_message()


async def give_up_after(partition: Partition, ticks: int, wait: Awaitable[object]) -> bool:
    with anyio.CancelScope() as scope:
        partition.turns.schedule(partition.clock.now() + ticks, ("give up", 0), scope.cancel)
        await wait
    return scope.cancelled_caught


@pytest.mark.parametrize("ticks", [(None, MILLISECOND), (MILLISECOND, None)], ids=["late outside", "missing outside"])
async def test_a_forgotten_eom_stays_forgotten_whichever_fault_is_named_first(ticks: tuple[int | None, ...]) -> None:
    async with Partition(PartitionConfig(seed=3, virtual_time=True)) as partition:
        counting = CountingEoms(partition.vp(0).guest_synic())
        synic = LateEom(LateEom(counting, ticks[0], lambda: True), ticks[1], lambda: True)
        port = await partition.synic().new_guest_message_port(synic.vtl, 0, 2)
        async with synic.messages(2) as messages:
            await port.post_message(1, b"one")
            assert (await anext(messages)).payload == b"one"
        assert counting.eoms == 0


async def test_a_late_eom_is_written_when_the_guest_is_cancelled_before_it() -> None:
    async with Partition(PartitionConfig(seed=3, virtual_time=True)) as partition:
        counting = CountingEoms(partition.vp(0).guest_synic())
        port = await partition.synic().new_guest_message_port(counting.vtl, 0, 2)
        async with LateEom(counting, 10 * MILLISECOND, lambda: True).messages(2) as messages:
            await port.post_message(1, b"one")
            assert await give_up_after(partition, MILLISECOND, anext(messages))
        assert counting.eoms == 1


async def test_a_guest_that_gives_up_while_its_sint_is_masked_hears_what_comes_later() -> None:
    async with Partition(PartitionConfig(seed=3, virtual_time=True)) as partition:
        strikes = iter([True])
        synic = MaskedSint(partition.vp(0).guest_synic(), 10 * MILLISECOND, lambda: next(strikes, False))
        port = await partition.synic().new_guest_message_port(synic.vtl, 0, 2)
        async with synic.messages(2) as messages:
            await port.post_message(1, b"lost")
            assert await give_up_after(partition, MILLISECOND, anext(messages))
            await port.post_message(1, b"next")
            assert (await anext(messages)).payload == b"next"


async def test_a_reset_while_the_sint_is_masked_leaves_it_masked_and_the_processor_usable() -> None:
    async with Partition(PartitionConfig(seed=3, virtual_time=True)) as partition:
        port = await partition.synic().new_guest_message_port(Vtl.VTL0, 0, 2)

        async def masks(vp: VirtualProcessor) -> None:
            synic = MaskedSint(vp.guest_synic(), 10 * MILLISECOND, lambda: True)
            async with synic.messages(2) as messages, synic.events(2):
                await anext(messages)

        partition.start(0, masks)
        await partition.settled()
        await port.post_message(1, b"lost")
        await partition.settled()
        await partition.reset()
        assert SintRegister(await partition.vp(0).read_msr(Msr.sint(2))).masked
        async with partition.vp(0).guest_synic().messages(2) as messages:
            port = await partition.synic().new_guest_message_port(Vtl.VTL0, 0, 2)
            await port.post_message(1, b"next")
            assert (await anext(messages)).payload == b"next"


async def test_the_teardown_of_a_gpadl_is_posted_again_until_it_is_taken() -> None:
    for seed in range(5):
        scenario = find_scenario("channels.scenarios:echo")
        faults = [parse_fault("gpadl-torn-down"), parse_fault("refused-posts:2")]
        events: list[AnyEvent] = []
        report = await play(scenario, SETTINGS, OPENVMM, "emulated", seed, Trace(events.append), faults=faults)
        assert report.failure is None
        names = [event.name for event in events if isinstance(event, Control) and event.side == "host"]
        assert names.count("GPADL_TEARDOWN") == 2, "the fault's own, and the client's, which comes too late"


async def test_a_message_that_is_not_whole_passes_as_it_is() -> None:
    async with Partition() as partition, receive_messages(partition.synic(), 1, depth=9) as inbox:
        synic = Faults([Fault("corrupt-ring", 1), Fault("gpadl-torn-down", 1)]).guest(partition.vp(0).guest_synic())
        junk = [kind.to_bytes(4, "little") + bytes(5) for kind in (5, 8)]
        for data in junk:
            assert await synic.post_message(1, 1, data) is HvStatus.SUCCESS
        assert [message.payload for message in await inbox.receive_batch()] == junk


@pytest.mark.parametrize("faults", [[], ["late-eom"]], ids=["without", "with"])
async def test_a_mistake_of_a_scenario_is_raised_and_no_failure_of_its_faults(faults: list[str]) -> None:
    async def both(stage: Stage) -> None:
        raise ExceptionGroup("", [ChannelClosed("the host has gone"), ExceptionGroup("", [KeyError("a mistake")])])

    scenario = Scenario(about="mistaken", play=both)
    with pytest.raises(KeyError if faults else ChannelClosed):
        await play(scenario, SETTINGS, OPENVMM, "emulated", 1, faults=[parse_fault(text) for text in faults])


async def test_what_a_scenario_says_counts_more_than_what_went_with_it() -> None:
    async def saying(stage: Stage) -> None:
        raise ExceptionGroup("", [ChannelClosed("the host has gone"), ScenarioFailed("two and two are five")])

    report = await play(Scenario(about="says", play=saying), SETTINGS, OPENVMM, "emulated", None)
    assert report.failure == "two and two are five"
