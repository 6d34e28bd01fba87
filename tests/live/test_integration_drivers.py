"""The guest side: drivers come and go with their offers, answer as Linux does, and a host that lies gets no further."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Awaitable, Callable
from uuid import UUID

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from broker import Partition, PartitionConfig
from broker.errors import ChannelClosed, ProtocolError
from channels.client import GuestChannel, VmbusClient
from channels.devices import EchoDevice, serve_devices
from channels.drivers.framework import Driver, run_drivers
from channels.drivers.integration.component import IntegrationDriver
from channels.drivers.integration.heartbeat import HeartbeatDriver
from channels.drivers.integration.shutdown import ShutdownDriver
from channels.drivers.integration.timesync import TimeSyncDriver
from channels.protocol.integration.common import FRAMEWORK_1, FRAMEWORK_3, IcVersion
from channels.scenarios.stage import Flag
from channels.server import VmbusServer

from .integration_pair import LIVE, SEEDED, VIRTUAL, Raw, RawHost, ic, in_turn

CONFIGS = pytest.mark.parametrize("config", [LIVE, VIRTUAL, SEEDED], ids=["live", "virtual", "seeded"])
OFFERED = struct.pack("<HHI", 2, 2, 0) + struct.pack("<8H", 1, 0, 3, 0, 1, 0, 3, 0)
NEGOTIATION = ic(0, OFFERED, framework=(0, 0), version=(0, 0), flags=3)


async def against(
    driver: IntegrationDriver, script: Callable[[Raw], Awaitable[None]], config: PartitionConfig = VIRTUAL
) -> None:
    """Run the driver against this host until the script has ended. What the driver raises is raised."""
    ended: list[Flag] = []

    async def play(raw: Raw) -> None:
        try:
            await script(raw)
        finally:
            ended[0].set()

    async with Partition(config) as partition, VmbusServer(partition.synic(), partition.memory) as server:
        ended.append(Flag(partition.turns, 0))

        async def guest(vp: object) -> None:
            async with VmbusClient(partition.vp(0).guest_synic()) as client, run_drivers(client, driver):
                await ended[0].wait()

        async with serve_devices(server, RawHost(driver, play)):
            await partition.start(0, guest).wait()


# drivers and their offers


class Echoing(Driver):
    """Sends one packet to an echo device, notes what comes back, then waits for the end."""

    interface_id = EchoDevice(UUID(int=1)).offer.interface_id

    def __init__(self, instance_id: UUID | None = None) -> None:
        self.instance_id = instance_id
        self.heard: list[bytes] = []
        self.is_running = False

    async def run(self, channel: GuestChannel) -> None:
        self.is_running = True
        try:
            self.heard.append((await channel.request(b"hello...")).payload)
            await channel.receive()
        finally:
            self.is_running = False


@CONFIGS
async def test_a_driver_waits_for_its_offer_and_ends_quietly_when_it_is_rescinded(config: PartitionConfig) -> None:
    first, second = Echoing(UUID(int=1)), Echoing(UUID(int=2))

    async with Partition(config) as partition, VmbusServer(partition.synic(), partition.memory) as server:
        done = Flag(partition.turns, 0)

        async def guest(vp: object) -> None:
            async with VmbusClient(partition.vp(0).guest_synic()) as client, run_drivers(client, first, second):
                await done.wait()
                assert not first.is_running
                assert second.is_running
                assert len(client.offers) == 1

        running = partition.start(0, guest)
        async with serve_devices(server, EchoDevice(UUID(int=2))):
            async with serve_devices(server, EchoDevice(UUID(int=1))):
                while not first.heard or not second.heard:
                    await partition.turns.pause()
            while first.is_running or server.statistics().open_channels > 1:
                await partition.turns.pause()
            done.set()
            await running.wait()
        assert not second.is_running
        assert first.heard == second.heard == [b"hello..."]
        assert server.statistics().open_channels == 0


async def test_a_drivers_own_exception_ends_the_block_unwrapped_and_the_others_are_closed() -> None:
    class Broken(Echoing):
        async def run(self, channel: GuestChannel) -> None:
            await channel.request(b"hello...")
            async with anyio.create_task_group():
                raise ZeroDivisionError("broken")

    good = Echoing(UUID(int=1))
    async with Partition(VIRTUAL) as partition, VmbusServer(partition.synic(), partition.memory) as server:

        async def guest(vp: object) -> None:
            async with VmbusClient(partition.vp(0).guest_synic()) as client:
                with pytest.raises(ZeroDivisionError, match="broken"):
                    async with run_drivers(client, good, Broken(UUID(int=2))):
                        await anyio.sleep_forever()
                assert not good.is_running
                assert server.statistics().open_channels == 0
                good.heard.clear()
                async with run_drivers(client, good):
                    while not good.heard:
                        await partition.turns.pause()

        async with serve_devices(server, *(EchoDevice(UUID(int=number)) for number in (1, 2))):
            await partition.start(0, guest).wait()


async def test_an_exception_of_the_block_closes_the_channels_and_is_raised_as_it_is() -> None:
    good = Echoing(UUID(int=1))
    async with Partition(VIRTUAL) as partition, VmbusServer(partition.synic(), partition.memory) as server:

        async def guest(vp: object) -> None:
            async with VmbusClient(partition.vp(0).guest_synic()) as client:

                async def use() -> None:
                    async with run_drivers(client, good):
                        while not good.heard:
                            await partition.turns.pause()
                        raise LookupError("mine")

                with pytest.raises(LookupError, match="mine"):
                    await use()
                assert server.statistics().open_channels == 0

        async with serve_devices(server, EchoDevice(UUID(int=1))):
            await partition.start(0, guest).wait()


async def test_a_cancelled_block_ends_though_the_host_does_not_answer() -> None:
    good = Echoing(UUID(int=1))
    async with Partition(VIRTUAL) as partition, VmbusServer(partition.synic(), partition.memory) as server:

        async def guest(vp: object) -> None:
            async with VmbusClient(partition.vp(0).guest_synic()) as client:
                with anyio.CancelScope() as scope:
                    async with run_drivers(client, good):
                        while not good.heard:
                            await partition.turns.pause()
                        scope.cancel()
                        await partition.turns.pause()
                assert scope.cancelled_caught

        async with serve_devices(server, EchoDevice(UUID(int=1))):
            await partition.start(0, guest).wait()
            assert not good.is_running


async def test_a_driver_whose_offer_never_comes_hears_of_the_end() -> None:
    driver = ShutdownDriver()
    heard = []

    async with Partition(VIRTUAL) as partition, VmbusServer(partition.synic(), partition.memory):

        async def wait() -> None:
            with pytest.raises(ChannelClosed, match="the shutdown device is gone"):
                await driver.wait_shutdown()
            heard.append(True)

        async def guest(vp: object) -> None:
            async with (
                VmbusClient(partition.vp(0).guest_synic()) as client,
                anyio.create_task_group() as group,
                run_drivers(client, driver),
            ):
                group.start_soon(in_turn, partition.turns, wait)
                await partition.turns.pause()

        await partition.start(0, guest).wait()
    assert heard


# as Linux answers


@CONFIGS
async def test_a_negotiation_is_answered_in_place(config: PartitionConfig) -> None:
    heard = []

    async def host(raw: Raw) -> None:
        await raw.say(NEGOTIATION + bytes(range(10)))
        heard.append(await raw.hear())

    await against(HeartbeatDriver(), host, config)
    chosen = struct.pack("<HHIHHHH", 1, 1, 0, 3, 0, 3, 0) + OFFERED[16:] + bytes(range(10))
    assert heard == [ic(0, chosen, framework=(0, 0), version=(0, 0), size=0x10)]


NO_MATCH = {
    "other frameworks": (struct.pack("<HHI4H", 1, 1, 0, 2, 0, 3, 0), 16),
    "other versions": (struct.pack("<HHI4H", 1, 1, 0, 3, 0, 7, 0), 16),
    "no versions": (struct.pack("<HHI2H", 1, 0, 0, 3, 0), 12),
    "nothing": (bytes(8), 8),
    "no counts": (b"\1\0", 2),
    "more than there are": (struct.pack("<HHI4H", 1, 2, 0, 3, 0, 3, 0), 16),
    "a list of 101": (struct.pack("<HHI", 1, 100, 0) + struct.pack("<HH", 3, 0) * 101, 412),
}


@pytest.mark.parametrize("what", NO_MATCH)
async def test_no_common_version_is_answered_with_no_counts_and_leftovers(what: str) -> None:
    """8.12, fact 10."""
    body, size = NO_MATCH[what]
    heard: list[bytes] = []
    driver = HeartbeatDriver()

    async def host(raw: Raw) -> None:
        await raw.say(ic(0, body, framework=(0, 0), version=(0, 0), flags=3))
        heard.append(await raw.hear())
        assert driver.version is None
        await raw.say(NEGOTIATION)
        heard.append(await raw.hear())
        assert driver.version == FRAMEWORK_3

    await against(driver, host)
    left = bytes(8) + body[8:]
    assert heard[0] == ic(0, left[: max(size, 8)], framework=(0, 0), version=(0, 0), size=size)


async def test_a_list_of_100_versions_is_taken() -> None:
    async def host(raw: Raw) -> None:
        body = struct.pack("<HHI", 1, 99, 0) + struct.pack("<HH", 1, 0) * 100
        await raw.say(ic(0, body, framework=(0, 0), version=(0, 0), flags=3))
        answer = await raw.hear()
        assert struct.unpack_from("<HHIHHHH", answer, 20) == (1, 1, 0, 1, 0, 1, 0)
        assert driver.framework == driver.version == FRAMEWORK_1

    driver = HeartbeatDriver()
    await against(driver, host)


@pytest.mark.parametrize("driver", [HeartbeatDriver, ShutdownDriver, TimeSyncDriver])
async def test_other_messages_are_answered_with_fail(driver: type[IntegrationDriver]) -> None:
    """8.12, fact 5."""
    heard = []

    async def host(raw: Raw) -> None:
        await raw.say(NEGOTIATION)
        await raw.hear()
        await raw.say(ic(8, b"what is this?", transaction_id=0x5A, flags=3))
        heard.append(await raw.hear())

    await against(driver(), host)
    assert heard == [ic(8, b"what is this?", transaction_id=0x5A, status=0x8000_4005)]


async def test_a_silent_driver_does_not_answer_other_messages() -> None:
    driver = HeartbeatDriver()
    driver.answers_unknown = False

    async def host(raw: Raw) -> None:
        await raw.say(NEGOTIATION, ic(8, b"what is this?", flags=3), ic(1, struct.pack("<Q32x", 4), flags=3))
        await raw.hear()
        assert await raw.hear() == ic(1, struct.pack("<Q32x", 5))

    await against(driver, host)
    assert driver.ignored == 1


async def test_answers_keep_what_the_host_has_put_behind_the_message() -> None:
    async def host(raw: Raw) -> None:
        await raw.say(
            NEGOTIATION,
            ic(1, struct.pack("<QI", 0xFFFF_FFFF_FFFF_FFFF, 9) + b"rest", transaction_id=3, flags=3) + b"pad",
        )
        await raw.hear()
        assert await raw.hear() == ic(1, struct.pack("<QI", 0, 9) + b"rest", transaction_id=3) + b"pad"

    await against(HeartbeatDriver(), host)


@pytest.mark.parametrize(
    ("driver", "kind", "body"),
    [
        (HeartbeatDriver, 1, bytes(11)),
        (ShutdownDriver, 3, bytes(2059)),
        (TimeSyncDriver, 4, bytes(24)),
        (TimeSyncDriver, 4, b""),
    ],
)
async def test_a_body_that_is_too_short_gets_no_answer(driver: type[IntegrationDriver], kind: int, body: bytes) -> None:
    """8.12, fact 4, and what Linux checks."""
    own = driver()

    async def host(raw: Raw) -> None:
        await raw.say(NEGOTIATION, ic(kind, body, flags=3), ic(9, flags=3))
        await raw.hear()
        assert await raw.hear() == ic(9, status=0x8000_4005)

    await against(own, host)
    assert own.ignored == 1


@pytest.mark.parametrize("flags", [6, 7, 8, 9, 0x8000_0000, 0xFFFF_FFFF])
async def test_unknown_flags_of_a_shutdown_are_refused(flags: int) -> None:
    driver, heard = ShutdownDriver(), []
    body = struct.pack("<III2048x", 0, 0, flags)

    async def host(raw: Raw) -> None:
        await raw.say(NEGOTIATION, ic(3, body, flags=3))
        await raw.hear()
        heard.append(await raw.hear())

    await against(driver, host)
    assert heard == [ic(3, body, status=0x8000_4005)]
    assert driver.accepted is None


@pytest.mark.parametrize(("version", "size"), [((3, 0), 25), ((3, 0), 28), ((4, 0), 22), ((4, 0), 24)])
async def test_times_of_every_length_that_linux_takes_are_taken(version: tuple[int, int], size: int) -> None:
    driver = TimeSyncDriver()
    offered = struct.pack("<HHI4H", 1, 1, 0, 3, 0, *version)
    at = 16 if version == (4, 0) else 24

    async def host(raw: Raw) -> None:
        body = bytearray(struct.pack("<QQ", 1 << 60, 0).ljust(size, b"\0"))
        await raw.say(ic(0, offered, framework=(0, 0), version=(0, 0), flags=3), ic(4, bytes(body), flags=3))
        await raw.hear()
        assert await raw.hear() == ic(4, bytes(body))
        assert driver.clock_set_to is None
        body[at] = 2
        await raw.say(ic(4, bytes(body), flags=3))
        assert await raw.hear() == ic(4, bytes(body))
        assert driver.clock_set_to is None
        body[at] = 1
        await raw.say(ic(4, bytes(body), flags=3))
        assert await raw.hear() == ic(4, bytes(body))
        assert driver.clock_set_to is not None

    await against(driver, host)
    assert [sample.flags for sample in driver.samples] == [0, 2, 1]


async def test_an_old_sample_counts_from_its_arrival() -> None:
    """8.12, fact 12: a sample that was 700 s old was taken."""
    driver = TimeSyncDriver()

    async def host(raw: Raw) -> None:
        turns = raw.channel.turns
        await turns.sleep_until(800 * 10_000_000, ("test", 0))
        offered = struct.pack("<HHI4H", 1, 1, 0, 3, 0, 4, 0)
        body = struct.pack("<QQB7x", 1 << 60, 100 * 10_000_000, 2)
        await raw.say(ic(0, offered, framework=(0, 0), version=(0, 0), flags=3), ic(4, body, flags=3))
        await raw.hear()
        await raw.hear()
        assert driver.host_time == (1 << 60) + turns.clock.now() - 100 * 10_000_000

    await against(driver, host)


async def test_no_more_than_16_samples_are_kept() -> None:
    driver = TimeSyncDriver()

    async def host(raw: Raw) -> None:
        await raw.say(NEGOTIATION, *(ic(4, struct.pack("<QQQB3x", number, 0, 0, 2), flags=3) for number in range(20)))
        for _ in range(21):
            await raw.hear()

    await against(driver, host)
    assert [sample.parent_time for sample in driver.samples] == list(range(4, 20))


async def test_versions_of_a_driver_are_its_own_order() -> None:
    driver = HeartbeatDriver(framework_versions=[FRAMEWORK_1], message_versions=[IcVersion(9, 9), FRAMEWORK_1])

    async def host(raw: Raw) -> None:
        await raw.say(NEGOTIATION)
        await raw.hear()
        assert (driver.framework, driver.version) == (FRAMEWORK_1, FRAMEWORK_1)

    await against(driver, host)


# hosts that lie


LIES = {
    "nothing": b"",
    "half a header": ic(1)[:19],
    "a size beyond the packet": ic(1, bytes(40), size=41, flags=3),
    "the longest size": ic(0, size=0xFFFF, flags=3),
    "more than the buffer takes": ic(1, bytes(4053), flags=3),
}


@pytest.mark.parametrize("what", LIES)
async def test_a_message_that_breaks_a_rule_ends_the_block_with_a_protocol_error(what: str) -> None:
    driver = HeartbeatDriver()

    async def host(raw: Raw) -> None:
        await raw.say(NEGOTIATION)
        await raw.hear()
        await raw.say(LIES[what])
        await raw.hear()

    with pytest.raises(ProtocolError):
        await against(driver, host)
    assert driver.version is None


async def test_a_request_before_the_negotiation_is_refused() -> None:
    async def host(raw: Raw) -> None:
        await raw.say(ic(1, bytes(40), flags=3))
        await raw.hear()

    with pytest.raises(ProtocolError, match="expected a negotiation first, got type 1"):
        await against(HeartbeatDriver(), host)


async def test_the_largest_message_that_linux_takes_is_taken() -> None:
    """8.12, fact 1: 4096 bytes of ring packet, descriptor included."""

    async def host(raw: Raw) -> None:
        await raw.say(NEGOTIATION, ic(1, bytes(4052), flags=3))
        await raw.hear()
        assert len(await raw.hear()) == 4072

    await against(HeartbeatDriver(), host)


messages = st.one_of(
    st.binary(max_size=60),
    st.builds(
        lambda kind, body, size, flags: ic(kind, body, size=size, flags=flags),
        st.integers(0, 9),
        st.one_of(st.binary(max_size=48), st.binary(min_size=2060, max_size=2060)),
        st.one_of(st.none(), st.none(), st.integers(0, 0xFFFF)),
        st.sampled_from([3, 5, 0, 0xFF]),
    ),
    st.just(NEGOTIATION),
)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("kind", [HeartbeatDriver, ShutdownDriver, TimeSyncDriver])
@settings(max_examples=30)
@given(said=st.lists(messages, max_size=6))
def test_whatever_a_host_says_a_driver_answers_or_raises_a_protocol_error(
    backend: str, kind: type[IntegrationDriver], said: list[bytes]
) -> None:
    async def play() -> None:
        async def host(raw: Raw) -> None:
            await raw.say(NEGOTIATION, *said)
            await raw.hear()
            await raw.channel.turns.sleep_until(10_000_000, ("test", 0))

        with capture_logs(), contextlib.suppress(ProtocolError):
            await against(kind(), host)

    anyio.run(play, backend=backend)
