"""What all integration devices share: negotiation, one request after the other, guests that lie, callers that go."""

from __future__ import annotations

import contextlib
import struct
from typing import ClassVar
from uuid import UUID

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from broker import Partition, PartitionConfig
from broker.errors import ChannelClosed, ConfigurationError, HostError
from channels.client import VmbusClient
from channels.devices import EchoDevice, serve_devices
from channels.devices.integration.component import IntegrationDevice
from channels.devices.integration.heartbeat import HeartbeatDevice
from channels.drivers.integration.component import IntegrationDriver, Request
from channels.protocol.integration.common import (
    FRAMEWORK_1,
    FRAMEWORK_3,
    FRAMEWORKS,
    IcMessageType,
    IcStatus,
    IcVersion,
)
from channels.protocol.offer import OfferFlags
from channels.scenarios.stage import Flag
from channels.server import VmbusServer

from .integration_pair import LIVE, SEEDED, VIRTUAL, Raw, chosen, hosting, ic, in_turn, paired, raw_guest

GOLDEN_NEGOTIATE = bytes.fromhex(
    "00000000 00000000 00001800 00000000 00030000  02000200 00000000 01000000 03000000 01000000 03000000"
)
CONFIGS = pytest.mark.parametrize("config", [LIVE, VIRTUAL, SEEDED], ids=["live", "virtual", "seeded"])


class Asker(IntegrationDevice):
    """Asks what it is told to ask."""

    interface_id: ClassVar[UUID] = UUID(int=0x1C)
    well_known_id: ClassVar[UUID] = UUID(int=0x1D)
    message_type = IcMessageType.VM_SESSION
    message_versions = (FRAMEWORK_1, FRAMEWORK_3)


class Answerer(IntegrationDriver):
    """Answers with the same, backwards; silent for b"silence"."""

    interface_id: UUID = UUID(int=0x1C)
    message_type = IcMessageType.VM_SESSION
    message_versions = (FRAMEWORK_3, FRAMEWORK_1)

    async def answer(self, request: Request) -> tuple[int, bytes] | None:
        if request.body == b"silence":
            return None
        return IcStatus.SUCCESS, request.body[::-1]


@CONFIGS
async def test_requests_are_answered_in_order_from_any_task(config: PartitionConfig) -> None:
    device = Asker()
    answers: list[tuple[int, bytes]] = []
    async with paired([device], [Answerer()], config) as partition, anyio.create_task_group() as group:

        async def ask(number: int) -> None:
            await begins[number]()
            status, body = await device.call(b"%d!" % number)
            assert status is IcStatus.SUCCESS
            answers.append((number, body))
            partition.turns.leave()

        begins = [partition.turns.expect(("asker", number)) for number in range(20)]
        for number in range(20):
            group.start_soon(ask, number)
    assert sorted(answers) == [(number, (b"%d!" % number)[::-1]) for number in range(20)]
    assert device.strays == 0


async def test_its_offer_is_a_message_pipe_with_flags_0x11() -> None:
    offer = Asker().offer
    assert offer.flags == OfferFlags(0x11)
    assert offer.user_defined == struct.pack("<I116x", 4)
    assert (offer.interface_id, offer.instance_id) == (UUID(int=0x1C), UUID(int=0x1D))
    assert Asker(instance_id=UUID(int=5)).offer.instance_id == UUID(int=5)


async def test_a_device_that_is_not_served_says_so() -> None:
    with pytest.raises(HostError, match="nobody serves this Asker"):
        await Asker().call(b"")
    with pytest.raises(HostError, match="Answerer does not run yet"):
        Answerer().turns.pause()


@pytest.mark.parametrize("versions", [(), (IcVersion(9, 9),), (FRAMEWORK_1, IcVersion(9, 9))])
def test_versions_are_narrowed_to_known_ones_only(versions: tuple[IcVersion, ...]) -> None:
    with pytest.raises(ConfigurationError, match=r"message versions are 1\.0, 3\.0, not"):
        Asker(versions=versions)
    with pytest.raises(ConfigurationError, match=r"framework versions are 1\.0, 3\.0, not"):
        Asker(frameworks=versions)


# negotiation


@pytest.mark.vmbus_item(106)
@CONFIGS
async def test_a_negotiation_is_the_golden_one_and_its_answer_is_taken(config: PartitionConfig) -> None:
    device = Asker()

    async def guest(client: VmbusClient) -> None:
        raw = await raw_guest(client, device)
        asked = await raw.hear()
        assert asked == GOLDEN_NEGOTIATE
        await raw.say(chosen((3, 0), (1, 0)))
        await device.wait_ready()
        assert (device.framework, device.version) == (FRAMEWORK_3, FRAMEWORK_1)

    async with hosting(device, config=config, guest=guest):
        pass
    assert device.version is None


@pytest.mark.vmbus_item(107)
async def test_stale_messages_are_dropped_while_negotiating() -> None:
    device = Asker()

    async def guest(client: VmbusClient) -> None:
        raw = await raw_guest(client, device)
        await raw.hear()
        await raw.say(ic(8, b"old news"), ic(1, b"a heartbeat", flags=0), ic(0x77), chosen())
        await device.wait_ready()
        assert device.strays == 3

    async with hosting(device, guest=guest):
        pass


BAD_ANSWERS: dict[str, bytes] = {
    "no transaction flag": chosen(flags=4),
    "no response flag": chosen(flags=1),
    "a request": chosen(flags=3),
    "a transaction ID": chosen(transaction_id=1),
    "a size beyond the packet": chosen(size=17),
    "an end within the header": chosen()[:19],
    "no body": ic(0),
    "no versions": ic(0, struct.pack("<HHI", 1, 1, 0)),
    "a list of 101": ic(0, struct.pack("<HHI", 1, 100, 0) + bytes(404)),
    "two frameworks": ic(0, struct.pack("<HHI", 2, 1, 0) + bytes(12)),
    "no message version": ic(0, struct.pack("<HHIHH", 1, 0, 0, 3, 0)),
    "a framework that was not offered": chosen((2, 0)),
    "a version that was not offered": chosen((3, 0), (4, 0)),
}


@pytest.mark.vmbus_item(107)
@pytest.mark.parametrize("what", BAD_ANSWERS)
async def test_a_malformed_answer_ends_the_channel_until_it_is_opened_again(what: str) -> None:
    device = Asker()

    async def guest(client: VmbusClient) -> None:
        raw = await raw_guest(client, device)
        await raw.hear()
        await raw.say(BAD_ANSWERS[what])
        await client.close(raw.channel)  # type: ignore[arg-type]
        assert device.version is None
        raw = await raw_guest(client, device)
        assert await raw.hear() == GOLDEN_NEGOTIATE
        await raw.say(chosen())
        await device.wait_ready()

    with capture_logs() as logs:
        async with hosting(device, guest=guest):
            pass
    assert [log["event"] for log in logs if log["log_level"] == "error"] == []


PAIRS = [
    (host_frameworks, host_versions, guest_frameworks, guest_versions)
    for host_frameworks in (FRAMEWORKS, (FRAMEWORK_1,), (FRAMEWORK_3,))
    for host_versions in (FRAMEWORKS, (FRAMEWORK_1,), (FRAMEWORK_3,))
    for guest_frameworks in (FRAMEWORKS[::-1], FRAMEWORKS, (FRAMEWORK_1,), (FRAMEWORK_3,))
    for guest_versions in (FRAMEWORKS[::-1], FRAMEWORKS, (FRAMEWORK_1,), (FRAMEWORK_3,))
]
Versions = tuple[IcVersion, ...]


@pytest.mark.parametrize(("host_frameworks", "host_versions", "guest_frameworks", "guest_versions"), PAIRS)
async def test_the_guest_chooses_what_it_likes_best_of_what_the_host_has(
    host_frameworks: Versions, host_versions: Versions, guest_frameworks: Versions, guest_versions: Versions
) -> None:
    device = Asker(versions=host_versions, frameworks=host_frameworks)
    driver = Answerer(framework_versions=guest_frameworks, message_versions=guest_versions)
    framework = next((version for version in guest_frameworks if version in host_frameworks), None)
    version = next((version for version in guest_versions if version in host_versions), None)
    async with paired([device], [driver]) as partition:
        if framework is not None and version is not None:
            assert await device.call(b"abc") == (IcStatus.SUCCESS, b"cba")
            assert (device.framework, device.version) == (framework, version)
            assert (driver.framework, driver.version) == (framework, version)
        else:
            await partition.settled()
            with pytest.raises(ChannelClosed, match="the guest supports no version of VM_SESSION"):
                await device.wait_ready()
            with pytest.raises(ChannelClosed, match="the guest supports no version of VM_SESSION"):
                await device.call(b"abc")
            assert device.version is driver.version is None


async def test_a_guest_without_a_common_version_is_told_of_once_and_may_come_back() -> None:
    device = Asker()

    async def guest(client: VmbusClient) -> None:
        raw = await raw_guest(client, device)
        asked = await raw.hear()
        leftovers = bytes(8) + asked[28:] + bytes(100)
        await raw.say(ic(0, leftovers, framework=(0, 0), version=(0, 0), size=24))
        with pytest.raises(ChannelClosed):
            await device.wait_ready()
        assert device.refused == "the guest supports no version of VM_SESSION; the host has 1.0, 3.0"
        await raw.say(ic(8, b"nobody listens"))
        await client.close(raw.channel)  # type: ignore[arg-type]
        assert device.refused == ""
        raw = await raw_guest(client, device)
        await raw.hear()
        await raw.say(chosen())
        await device.wait_ready()

    with capture_logs() as logs:
        async with hosting(device, guest=guest):
            pass
    refusals = [log for log in logs if log["event"] == "integration_refused"]
    assert [log["reason"] for log in refusals] == ["the guest supports no version of VM_SESSION; the host has 1.0, 3.0"]


# requests


async def open_and_agree(client: VmbusClient, device: IntegrationDevice) -> Raw:
    raw = await raw_guest(client, device)
    await raw.hear()
    await raw.say(chosen())
    return raw


async def test_answers_never_asked_for_are_dropped() -> None:
    device = Asker()

    async def guest(client: VmbusClient) -> None:
        raw = await open_and_agree(client, device)
        await raw.say(ic(8, b"unasked"), ic(8, b"unasked", transaction_id=1, flags=2))
        asked = await raw.hear()
        assert asked == ic(8, b"question", transaction_id=asked[16], flags=3)
        await raw.say(
            ic(8, b"another's", transaction_id=asked[16] ^ 1),
            ic(1, b"another kind", transaction_id=asked[16]),
            ic(8, b"no response", transaction_id=asked[16], flags=1),
            ic(8, b"answer", transaction_id=asked[16], status=0x8007_0070),
        )

    async with hosting(device, guest=guest):
        assert await device.call(b"question") == (IcStatus.DISK_FULL, b"answer")
    assert device.strays == 5


async def test_one_request_at_a_time() -> None:
    device, asked = Asker(), []

    async def guest(client: VmbusClient) -> None:
        raw = await open_and_agree(client, device)
        for _ in range(2):
            asked.append(await raw.hear())
            await client.guest_synic.turns.sleep_until(client.guest_synic.turns.clock.now() + 1_000_000, ("test", 0))
            assert raw.channel.incoming.indices[0] == raw.channel.incoming.indices[1]
            await raw.say(ic(8, b"yes", transaction_id=asked[-1][16]))

    async with hosting(device, guest=guest) as partition, anyio.create_task_group() as group:

        async def ask(number: int) -> None:
            await begins[number]()
            assert await device.call(b"%d" % number) == (IcStatus.SUCCESS, b"yes")
            partition.turns.leave()

        begins = [partition.turns.expect(("asker", number)) for number in range(2)]
        for number in range(2):
            group.start_soon(ask, number)
    assert sorted(message[20:] for message in asked) == [b"0", b"1"]


@CONFIGS
async def test_the_answer_to_a_cancelled_request_is_waited_for_and_dropped(config: PartitionConfig) -> None:
    device = Asker()
    flags: list[Flag] = []

    async def guest(client: VmbusClient) -> None:
        raw = await open_and_agree(client, device)
        first = await raw.hear()
        assert first[20:] == b"given up"
        flags[0].set()
        await flags[1].wait()
        await raw.say(ic(8, b"late", transaction_id=first[16]))
        second = await raw.hear()
        assert second[20:] == b"second"
        await raw.say(ic(8, b"in time", transaction_id=second[16]))

    async with hosting(device, config=config, guest=guest) as partition, anyio.create_task_group() as group:
        flags += [Flag(partition.turns, number) for number in range(2)]
        scope = anyio.CancelScope()

        async def give_up() -> None:
            await begin()
            with scope:
                await device.call(b"given up")
            partition.turns.leave()

        begin = partition.turns.expect(("asker", 0))
        group.start_soon(give_up)
        await flags[0].wait()
        scope.cancel()
        await partition.turns.pause()
        flags[1].set()
        assert await device.call(b"second") == (IcStatus.SUCCESS, b"in time")
    assert device.strays == 0


async def test_a_request_that_was_given_up_before_its_turn_is_not_sent() -> None:
    device, heard = Asker(), []

    async def guest(client: VmbusClient) -> None:
        raw = await open_and_agree(client, device)
        heard.append(await raw.hear())
        await flag.wait()
        await raw.say(ic(8, b"", transaction_id=heard[0][16]))
        heard.append(await raw.hear())
        await raw.say(ic(8, b"", transaction_id=heard[1][16]))

    async with hosting(device, guest=guest) as partition, anyio.create_task_group() as group:
        flag = Flag(partition.turns, 0)
        scope = anyio.CancelScope()

        async def ask(number: int) -> None:
            await begins[number]()
            with scope if number == 1 else anyio.CancelScope():
                await device.call(b"%d" % number)
            partition.turns.leave()

        begins = [partition.turns.expect(("asker", number)) for number in range(3)]
        group.start_soon(ask, 0)
        await partition.settled()
        group.start_soon(ask, 1)
        await partition.settled()
        group.start_soon(ask, 2)
        await partition.settled()
        scope.cancel()
        flag.set()
    assert [message[20:] for message in heard] == [b"0", b"2"]


async def test_a_guest_that_closes_ends_the_calls_that_wait_and_the_next_guest_answers() -> None:
    device = Asker()

    async def guest(client: VmbusClient) -> None:
        raw = await open_and_agree(client, device)
        await raw.hear()
        await client.close(raw.channel)  # type: ignore[arg-type]
        await flag.wait()
        raw = await open_and_agree(client, device)
        asked = await raw.hear()
        await raw.say(ic(8, b"here", transaction_id=asked[16]))

    async with hosting(device, guest=guest) as partition:
        flag = Flag(partition.turns, 0)
        with pytest.raises(ChannelClosed, match="no longer has the channel of Asker open"):
            await device.call(b"hello?")
        assert device.version is device.framework is None
        flag.set()
        assert await device.call(b"hello?") == (IcStatus.SUCCESS, b"here")


@CONFIGS
async def test_an_answer_counts_though_the_guest_closes_right_after_it(config: PartitionConfig) -> None:
    for _ in range(5):
        device = Asker()

        async def guest(client: VmbusClient, device: Asker = device) -> None:
            raw = await open_and_agree(client, device)
            asked = await raw.hear()
            await raw.say(ic(8, b"yes", transaction_id=asked[16]))
            await client.close(raw.channel)  # type: ignore[arg-type]

        async with hosting(device, config=config, guest=guest):
            assert await device.call(b"go") == (IcStatus.SUCCESS, b"yes")


async def test_a_guest_that_talks_on_while_its_channel_goes_does_not_hold_it_up() -> None:
    device = Asker()
    said = 0

    async def guest(client: VmbusClient) -> None:
        nonlocal said
        raw = await open_and_agree(client, device)
        await raw.hear()
        with contextlib.suppress(ChannelClosed):
            while True:
                await raw.say(*[ic(8, b"babble", transaction_id=99)] * 8)
                said += 8

    async with Partition(VIRTUAL) as partition, VmbusServer(partition.synic(), partition.memory) as server:

        async def run(vp: object) -> None:
            async with VmbusClient(partition.vp(0).guest_synic()) as client:
                await guest(client)

        async def call() -> None:
            with pytest.raises(ChannelClosed):
                await device.call(b"question")

        async with anyio.create_task_group() as group, serve_devices(server, device):
            running = partition.start(0, run)
            group.start_soon(in_turn, partition.turns, call)
            while device.strays < 1000:
                await partition.turns.pause()
        await running.wait()
    assert said >= 1000


async def test_a_body_that_is_too_large_is_the_callers_mistake() -> None:
    device = Asker()
    async with paired([device], [Answerer()]):
        with pytest.raises(ValueError, match="13293 do not fit"):
            await device.call(bytes(13293))
        assert await device.call(b"ab") == (IcStatus.SUCCESS, b"ba")


async def test_a_ring_that_is_too_small_for_a_request_is_the_guests_mistake() -> None:
    device, echo = Asker(), EchoDevice(UUID(int=9))

    async def guest(client: VmbusClient) -> None:
        offer = await client.wait_offer(device.interface_id)
        raw = Raw(await client.open(offer, ring_pages=(2, 2)))
        await raw.hear()
        await raw.say(chosen())
        channel = await client.open(await client.wait_offer(instance_id=UUID(int=9)))
        await done.wait()
        assert (await channel.request(b"alive...")).payload == b"alive..."

    async with hosting(device, echo, guest=guest) as partition:
        done = Flag(partition.turns, 0)
        with pytest.raises(ChannelClosed, match="room for a message of 8020 bytes"):
            await device.call(bytes(8000))
        done.set()


@pytest.mark.parametrize(
    "lie",
    [b"", b"short", ic(8, b"x", size=500), ic(8, size=0xFFFF)],
    ids=["nothing", "short", "a long size", "the longest size"],
)
async def test_a_message_that_breaks_a_rule_costs_the_guest_this_channel_alone(lie: bytes) -> None:
    device, other = Asker(), HeartbeatDevice()

    async def guest(client: VmbusClient) -> None:
        raw = await open_and_agree(client, device)
        pulse = await open_and_agree(client, other)
        await raw.hear()
        await raw.say(lie)
        await done.wait()
        asked = await pulse.hear()
        await pulse.say(ic(1, struct.pack("<QI28x", 1, 1), transaction_id=asked[16]))
        await other.wait_beat()

    async with hosting(device, other, guest=guest) as partition:
        done = Flag(partition.turns, 0)
        with pytest.raises(ChannelClosed, match=r"integration message|IcHeader"):
            await device.call(b"question")
        done.set()
    assert other.beats == 1


async def test_a_packet_that_is_no_pipe_message_costs_the_guest_this_channel_alone() -> None:
    device = Asker()

    async def guest(client: VmbusClient) -> None:
        raw = await open_and_agree(client, device)
        await raw.hear()
        await raw.channel.send(struct.pack("<II", 2, 4) + b"part")
        await done.wait()

    async with hosting(device, guest=guest) as partition:
        done = Flag(partition.turns, 0)
        with pytest.raises(ChannelClosed, match="expected a packet of type 1, got type 2"):
            await device.call(b"question")
        done.set()


answers = st.one_of(
    st.binary(max_size=60),
    st.builds(
        lambda kind, body, size, transaction_id, flags: ic(
            kind, body, size=size, transaction_id=transaction_id, flags=flags
        ),
        st.integers(0, 9),
        st.binary(max_size=40),
        st.one_of(st.none(), st.integers(0, 0xFFFF)),
        st.integers(0, 255),
        st.integers(0, 255),
    ),
    st.just(chosen()),
)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@settings(max_examples=40)
@given(before=st.lists(answers, max_size=3), after=st.lists(answers, max_size=6))
def test_whatever_a_guest_answers_other_devices_live(backend: str, before: list[bytes], after: list[bytes]) -> None:
    async def play() -> None:
        device, other = Asker(), HeartbeatDevice()

        async def guest(client: VmbusClient) -> None:
            raw = await raw_guest(client, device)
            await raw.hear()
            await raw.say(*before, chosen(), *after)
            pulse = await open_and_agree(client, other)
            asked = await pulse.hear()
            await pulse.say(ic(1, struct.pack("<QI28x", 1, 1), transaction_id=asked[16]))
            await other.wait_beat()
            await client.close(raw.channel)  # type: ignore[arg-type]

        async def ask() -> None:
            with contextlib.suppress(HostError):  # the channel is closed, and nobody serves the device any more
                status, body = await device.call(b"question")
                assert 0 <= status < 1 << 32
                assert isinstance(body, bytes)

        async with anyio.create_task_group() as group:
            async with hosting(device, other, guest=guest) as partition:
                group.start_soon(in_turn, partition.turns, ask)
            group.cancel_scope.cancel()  # the guest may have gone before there was anything to ask
        assert other.beats == 1

    anyio.run(play, backend=backend)
