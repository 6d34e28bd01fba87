"""Heartbeat, shutdown and time synchronisation do their work with every pair of versions, and both ways."""

from __future__ import annotations

import itertools
import struct
from itertools import product

import anyio
import pytest

from broker import Partition, PartitionConfig
from broker.clock import TICKS_PER_SECOND
from broker.errors import ChannelClosed
from channels.client import VmbusClient
from channels.devices import serve_devices
from channels.devices.integration.component import GuestRefused
from channels.devices.integration.heartbeat import HeartbeatDevice
from channels.devices.integration.shutdown import ShutdownDevice
from channels.devices.integration.timesync import VIRTUAL_EPOCH, TimeSyncDevice, system_time
from channels.drivers.framework import run_drivers
from channels.drivers.integration.heartbeat import HeartbeatDriver
from channels.drivers.integration.shutdown import ShutdownDriver
from channels.drivers.integration.timesync import STALE_AFTER, TimeSyncDriver
from channels.protocol.integration.common import FRAMEWORKS, IcStatus, IcVersion
from channels.protocol.integration.heartbeat import HEARTBEAT_VERSIONS, HeartbeatState
from channels.protocol.integration.shutdown import SHUTDOWN_VERSIONS, ShutdownKind, ShutdownMessage
from channels.protocol.integration.timesync import TIME_SYNC_4, TIME_SYNC_VERSIONS, UNIX_EPOCH
from channels.scenarios.stage import Flag
from channels.server import VmbusServer

from .integration_pair import LIVE, SEEDED, VIRTUAL, Raw, chosen, hosting, ic, in_turn, paired, raw_guest

CONFIGS = pytest.mark.parametrize("config", [LIVE, VIRTUAL, SEEDED], ids=["live", "virtual", "seeded"])
SIDES = pytest.mark.parametrize("side", ["host", "guest"])


def pairs(versions: tuple[IcVersion, ...]) -> pytest.MarkDecorator:
    """Every framework version with every message version."""
    return pytest.mark.parametrize(("framework", "version"), list(product(FRAMEWORKS, versions)), ids=str)


def narrowed(side: str, framework: IcVersion, version: IcVersion) -> tuple[dict[str, object], dict[str, object]]:
    """What the device is told, and what the driver is told, for this side to leave no choice."""
    if side == "host":
        return {"frameworks": (framework,), "versions": (version,)}, {}
    return {}, {"framework_versions": (framework,), "message_versions": (version,)}


async def agreed(
    client: VmbusClient, device: HeartbeatDevice | ShutdownDevice | TimeSyncDevice, **choice: object
) -> Raw:
    raw = await raw_guest(client, device)
    await raw.hear()
    await raw.say(chosen(**choice))  # type: ignore[arg-type]
    return raw


# heartbeat


@SIDES
@pairs(HEARTBEAT_VERSIONS)
async def test_a_heartbeat_beats_at_every_version(side: str, framework: IcVersion, version: IcVersion) -> None:
    host, guest = narrowed(side, framework, version)
    device, driver = HeartbeatDevice(**host), HeartbeatDriver(**guest)  # type: ignore[arg-type]
    driver.state = HeartbeatState.HEALTHY
    async with paired([device], [driver]) as partition:
        for number in range(1, 4):
            assert await device.wait_beat() == number
        assert partition.clock.now() >= 2 * device.period
        assert (device.framework, device.version) == (framework, version)
        assert device.state == 1
        driver.state = HeartbeatState.CRITICAL
        await device.wait_beat()
        assert device.state == 2
    assert device.missed == 0
    assert device.state is HeartbeatState.UNKNOWN
    assert driver.beats >= 4


@CONFIGS
async def test_a_heartbeat_of_linux_leaves_the_state_as_it_came(config: PartitionConfig) -> None:
    device = HeartbeatDevice(period=1000)
    async with paired([device], [HeartbeatDriver()], config):
        await device.wait_beat()
        assert await device.wait_beat() >= 2
        assert device.state is HeartbeatState.UNKNOWN


async def test_heartbeats_are_40_bytes_with_numbers_that_count_up() -> None:
    device, heard = HeartbeatDevice(), []

    async def guest(client: VmbusClient) -> None:
        raw = await agreed(client, device)
        for number in range(3):
            heard.append(await raw.hear())
            await raw.say(ic(1, struct.pack("<QI28x", number + 1, 3), transaction_id=heard[-1][16]))
        await device.wait_ready()

    async with hosting(device, guest=guest):
        pass
    for number, message in enumerate(heard):
        assert message == ic(1, struct.pack("<Q32x", number), transaction_id=message[16], flags=3)


async def test_beats_are_missed_while_the_guest_owes_one() -> None:
    device = HeartbeatDevice()

    async def guest(client: VmbusClient) -> None:
        turns = client.guest_synic.turns
        raw = await agreed(client, device)
        asked = await raw.hear()
        await raw.say(ic(1, struct.pack("<QI28x", 1, 1), transaction_id=asked[16]))
        asked = await raw.hear()
        assert (device.missed, device.state) == (0, HeartbeatState.HEALTHY)
        await turns.sleep_until(turns.clock.now() + 3 * device.period + device.period // 2, ("test", 0))
        assert (device.missed, device.state) == (3, HeartbeatState.UNKNOWN)
        await raw.say(ic(1, struct.pack("<QI28x", 2, 1), transaction_id=asked[16]))
        assert await device.wait_beat() == 2
        assert (device.missed, device.state) == (3, HeartbeatState.HEALTHY)
        asked = await raw.hear()
        await raw.say(ic(1, struct.pack("<QI28x", 3, 1), transaction_id=asked[16], status=0x8000_4005))
        await raw.hear()
        assert (device.beats, device.missed) == (2, 4)

    async with hosting(device, guest=guest):
        pass


@pytest.mark.parametrize(
    "body",
    [struct.pack("<QI28x", 0, 1), struct.pack("<QI28x", 2, 1), b"", bytes(11)],
    ids=["same", "two", "none", "short"],
)
async def test_a_wrong_answer_to_a_heartbeat_ends_the_channel(body: bytes) -> None:
    device = HeartbeatDevice()

    async def guest(client: VmbusClient) -> None:
        raw = await agreed(client, device)
        asked = await raw.hear()
        await raw.say(ic(1, body, transaction_id=asked[16]))
        await gone.wait()
        await client.close(raw.channel)  # type: ignore[arg-type]
        raw = await agreed(client, device)
        asked = await raw.hear()
        await raw.say(ic(1, struct.pack("<QI28x", 1, 1), transaction_id=asked[16]))
        await device.wait_beat()

    async with hosting(device, guest=guest) as partition:
        gone = Flag(partition.turns, 0)
        with pytest.raises(ChannelClosed):
            await device.wait_beat()
        assert device.version is None
        gone.set()
    assert device.beats == 1


@pytest.mark.parametrize("period", [0, -1])
def test_a_period_is_at_least_a_tick(period: int) -> None:
    with pytest.raises(ValueError, match=f"at least 1 tick, not {period}"):
        HeartbeatDevice(period)
    with pytest.raises(ValueError, match=f"at least 1 tick, not {period}"):
        TimeSyncDevice(period=period)


# shutdown


@SIDES
@pairs(SHUTDOWN_VERSIONS)
async def test_every_kind_of_shutdown_is_answered_at_every_version(
    side: str, framework: IcVersion, version: IcVersion
) -> None:
    host, guest = narrowed(side, framework, version)
    acted: list[ShutdownMessage] = []

    async def act(request: ShutdownMessage) -> None:
        acted.append(request)

    device, driver = ShutdownDevice(**host), ShutdownDriver(act, **guest)  # type: ignore[arg-type]
    async with paired([device], [driver]) as partition:
        for kind, force in product(ShutdownKind, (False, True)):
            await device.shutdown(kind, force=force, planned=not force, timeout_s=7, message=f"{kind.name}!")
            await partition.settled()
            assert acted[-1].kind is kind
            assert acted[-1].flags == kind + force
            assert acted[-1].reason == (0 if force else 0x8000_0000)
            assert (acted[-1].timeout_s, acted[-1].message) == (7, f"{kind.name}!")
        assert (device.framework, device.version) == (framework, version)
    assert len(acted) == 6


async def test_a_guest_that_cannot_hibernate_says_no_and_does_the_rest() -> None:
    device, driver = ShutdownDevice(), ShutdownDriver(can_hibernate=False)
    async with paired([device], [driver]):
        with pytest.raises(GuestRefused, match="the guest refused to hibernate: status 0x80004005") as caught:
            await device.shutdown(ShutdownKind.HIBERNATE)
        assert caught.value.status is IcStatus.FAIL
        assert driver.accepted is None
        await device.shutdown(ShutdownKind.POWER_OFF)
        assert (await driver.wait_shutdown()).kind is ShutdownKind.POWER_OFF


@CONFIGS
async def test_the_answer_arrives_though_the_guest_goes_right_after_it(config: PartitionConfig) -> None:
    for _ in range(10):
        device, driver = ShutdownDevice(), ShutdownDriver()

        async def guest(client: VmbusClient, driver: ShutdownDriver = driver) -> None:
            async with run_drivers(client, driver):
                await driver.wait_shutdown()

        async with hosting(device, config=config, guest=guest):
            await device.shutdown(ShutdownKind.RESTART)
        assert driver.accepted is not None


async def test_a_guest_answers_before_it_acts() -> None:
    device = ShutdownDevice()
    done: list[ShutdownMessage] = []

    async def act(request: ShutdownMessage) -> None:
        await answered.wait()
        done.append(request)

    async with paired([device], [ShutdownDriver(act)]) as partition:
        answered = Flag(partition.turns, 1)
        await device.shutdown()
        assert not done
        answered.set()
        await partition.settled()
        assert len(done) == 1


async def test_a_text_that_is_too_long_is_not_sent() -> None:
    device, driver = ShutdownDevice(), ShutdownDriver()
    async with paired([device], [driver]):
        with pytest.raises(ValueError, match="1023 UTF-16 code units fit, not 1024"):
            await device.shutdown(message="x" * 1024)
        with pytest.raises(ValueError, match="ends at its first NUL"):
            await device.shutdown(message="now\0or never")
        with pytest.raises(ValueError, match="does not fit its field"):
            await device.shutdown(timeout_s=1 << 32)
        await device.shutdown(message="x" * 1023)
        assert (await driver.wait_shutdown()).message == "x" * 1023


async def test_whoever_waits_for_a_shutdown_hears_that_the_device_is_gone() -> None:
    driver = ShutdownDriver()
    caught: list[str] = []

    async def guest(client: VmbusClient) -> None:
        async with run_drivers(client, driver):
            try:
                await driver.wait_shutdown()
            except ChannelClosed as error:
                caught.append(str(error))

    async with Partition(VIRTUAL) as partition, VmbusServer(partition.synic(), partition.memory) as server:

        async def run(vp: object) -> None:
            async with VmbusClient(partition.vp(0).guest_synic()) as client:
                await guest(client)

        device = ShutdownDevice()
        async with serve_devices(server, device):
            running = partition.start(0, run)
            await device.wait_ready()
        await running.wait()
    assert caught == ["the shutdown device is gone"]


# time synchronisation


@SIDES
@pairs(TIME_SYNC_VERSIONS)
async def test_a_guest_follows_the_hosts_clock_at_every_version(
    side: str, framework: IcVersion, version: IcVersion
) -> None:
    host, guest = narrowed(side, framework, version)
    device = TimeSyncDevice(leap=1, stratum=3, **host)  # type: ignore[arg-type]
    driver = TimeSyncDriver(**guest)  # type: ignore[arg-type]
    async with paired([device], [driver]) as partition:
        clock = partition.clock
        await partition.turns.sleep_until(12 * TICKS_PER_SECOND, ("test", 0))
        assert (device.framework, device.version) == (framework, version)
        assert (device.syncs, device.samples) == (1, 2)
        assert [sample.flags for sample in driver.samples] == [1, 2, 2]
        first = driver.samples[0]
        assert driver.clock_set_to is not None
        assert driver.clock_set_to == first.parent_time + first.arrived - first.reference_time
        assert driver.host_time is not None
        late = VIRTUAL_EPOCH + clock.now() - driver.host_time
        if version >= TIME_SYNC_4:
            assert late == 0
            assert (first.leap, first.stratum) == (1, 3)
            assert driver.offset == VIRTUAL_EPOCH
        else:
            assert 0 <= late < TICKS_PER_SECOND
            assert first.reference_time == first.arrived
        set_to = driver.clock_set_to
        await device.sync()
        assert (device.syncs, device.samples) == (2, 2)
        assert driver.clock_set_to > set_to


@pytest.mark.parametrize("version", [(1, 0), (3, 0), (4, 0)])
async def test_each_form_is_sent_byte_for_byte(version: tuple[int, int]) -> None:
    clock = itertools.count(1 << 60)
    device = TimeSyncDevice(lambda: next(clock), leap=2, stratum=9)
    heard: list[bytes] = []
    times: list[int] = []

    async def guest(client: VmbusClient) -> None:
        raw = await agreed(client, device, version=version)
        for _ in range(3):
            heard.append(await raw.hear())
            times.append(client.guest_synic.turns.clock.now())
            await raw.say(ic(4, heard[-1][20:], version=version, transaction_id=heard[-1][16]))

    async with hosting(device, guest=guest):
        pass
    first = times[0]
    for number, message in enumerate(heard):
        flags, wall = 2 if number else 1, (1 << 60) + number
        body = struct.pack("<QQQB3x", wall, 0, 0, flags)
        if version == (4, 0):
            (now,) = struct.unpack_from("<Q", message, 28)
            first = now if number == 0 else first
            assert now == first + number * device.period
            body = struct.pack("<QQBBB5x", wall, now, flags, 2, 9)
        assert message == ic(4, body, version=version, transaction_id=message[16], flags=3)
        assert 0 <= times[number] - first - number * device.period < TICKS_PER_SECOND


async def test_no_sample_goes_before_the_last_was_answered() -> None:
    device = TimeSyncDevice()

    async def guest(client: VmbusClient) -> None:
        turns = client.guest_synic.turns
        raw = await agreed(client, device, version=(4, 0))
        asked = await raw.hear()
        await turns.sleep_until(turns.clock.now() + 10 * device.period, ("test", 0))
        assert raw.channel.incoming.indices[0] == raw.channel.incoming.indices[1]
        await raw.say(ic(4, asked[20:], transaction_id=asked[16]))
        asked = await raw.hear()
        assert asked[20 + 16] == 2
        assert turns.clock.now() >= 10 * device.period

    async with hosting(device, guest=guest):
        pass


async def test_a_guest_that_cannot_set_its_clock_says_so() -> None:
    device = TimeSyncDevice()

    async def guest(client: VmbusClient) -> None:
        raw = await agreed(client, device, version=(4, 0))
        for status in (0, 0x8007_0032):
            asked = await raw.hear()
            assert asked[20 + 16] == 1
            await raw.say(ic(4, asked[20:], transaction_id=asked[16], status=status))
        await done.wait()

    async with hosting(device, guest=guest) as partition:
        done = Flag(partition.turns, 0)
        with pytest.raises(GuestRefused, match="to set its clock: status 0x80070032"):
            await device.sync()
        done.set()
    assert device.syncs == 1


async def test_a_sample_is_stale_after_600_s() -> None:
    device, driver = TimeSyncDevice(period=1000 * TICKS_PER_SECOND), TimeSyncDriver()
    async with paired([device], [driver]) as partition:
        await device.sync()
        arrived = driver.samples[-1].arrived
        await partition.turns.sleep_until(arrived + STALE_AFTER, ("test", 0))
        assert driver.offset == VIRTUAL_EPOCH
        await partition.turns.sleep_until(arrived + STALE_AFTER + 1, ("test", 0))
        assert driver.offset is driver.host_time is None
        await device.sync()
        assert driver.offset == VIRTUAL_EPOCH


def test_the_system_clock_is_between_2024_and_2100() -> None:
    year = 365 * 24 * 3600 * TICKS_PER_SECOND
    assert UNIX_EPOCH + 54 * year < system_time() < UNIX_EPOCH + 131 * year


async def test_a_live_partition_gets_the_system_clock() -> None:
    device, driver = TimeSyncDevice(), TimeSyncDriver()
    before = system_time()
    async with paired([device], [driver], LIVE):
        await device.sync()
        assert driver.clock_set_to is not None
        assert before <= driver.samples[0].parent_time <= driver.samples[-1].parent_time <= system_time()


@pytest.mark.parametrize("field", ["leap", "stratum"])
def test_what_does_not_fit_a_sample_is_refused_before_there_is_a_guest(field: str) -> None:
    for value in (-1, 256):
        with pytest.raises(ValueError, match="does not fit its field"):
            TimeSyncDevice(**{field: value})  # type: ignore[arg-type]


# all at once


@CONFIGS
async def test_calls_from_several_tasks_and_a_devices_own_go_side_by_side(config: PartitionConfig) -> None:
    device, driver = TimeSyncDevice(period=10_000), TimeSyncDriver()
    async with paired([device], [driver], config) as partition, anyio.create_task_group() as group:

        async def sync() -> None:
            for _ in range(5):
                await device.sync()

        for _ in range(4):
            group.start_soon(in_turn, partition.turns, sync)
    assert device.syncs == 21
    assert device.strays == 0
