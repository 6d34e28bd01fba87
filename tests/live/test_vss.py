"""Snapshots: every version, each operation where it belongs, a guest that is thawed however the block ends."""

from __future__ import annotations

from uuid import UUID

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import PartitionConfig
from broker.errors import ChannelClosed, HostError, ProtocolError
from channels.client import VmbusClient
from channels.devices.integration.component import GuestRefused
from channels.devices.integration.vss import THAW_LIMIT, VssDevice
from channels.drivers.framework import run_drivers
from channels.drivers.integration.component import Request
from channels.drivers.integration.vss import VssDriver
from channels.protocol.integration.common import FRAMEWORKS, IcHeader, IcStatus, IcVersion
from channels.protocol.integration.vss import NO_AUTO_RECOVERY, VSS_VERSIONS
from channels.scenarios.stage import Flag

from .integration_pair import LIVE, SEEDED, VIRTUAL, chosen, hosting, ic, in_turn, paired, raw_guest
from .test_kvp import at_once

CONFIGS = pytest.mark.parametrize("config", [LIVE, VIRTUAL, SEEDED], ids=["live", "virtual", "seeded"])
V3 = FRAMEWORKS[1]


class Guest:
    """What a guest has been told."""

    def __init__(self, *, can_freeze: bool = True, can_thaw: bool = True) -> None:
        self.noted: list[str] = []
        self._can = can_freeze, can_thaw

    async def freeze(self) -> bool:
        self.noted.append("freeze")
        return self._can[0]

    async def thaw(self) -> bool | None:
        self.noted.append("thaw")
        return None if self._can[1] else False

    def driver(self, **settings: object) -> VssDriver:
        return VssDriver(on_freeze=self.freeze, on_thaw=self.thaw, **settings)  # type: ignore[arg-type]


# versions


@pytest.mark.parametrize("version", VSS_VERSIONS, ids=str)
@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
@pytest.mark.parametrize("narrow", ["host", "guest"])
async def test_every_version_is_agreed_on_and_has_its_operations(
    narrow: str, framework: IcVersion, version: IcVersion
) -> None:
    guest = Guest()
    if narrow == "host":
        device = VssDevice(versions=[version], frameworks=[framework])
        driver = guest.driver(message_versions=VSS_VERSIONS[::-1], framework_versions=FRAMEWORKS)
    else:
        device = VssDevice()
        driver = guest.driver(message_versions=[version], framework_versions=[framework])
    async with paired([device], [driver]):
        await device.wait_ready()
        assert (device.framework, device.version) == (framework, version)
        assert await device.hot_backup_check() == 0
        assert await device.direct_mapped_info() == 0
        await device.backup_complete()
        if version >= (5, 0):
            async with device.frozen():
                assert driver.is_frozen
            assert not driver.is_frozen
            await device.freeze()
            await device.thaw()
            await device.auto_recover()
            assert guest.noted == ["freeze", "thaw"] * 2
        else:
            for ask in (device.freeze, device.thaw, device.auto_recover):
                with pytest.raises(HostError, match=r"needs version 5\.0 of snapshots, the guest took 4\.0"):
                    await ask()
            with pytest.raises(HostError, match=r"'freeze' needs version 5\.0"):
                async with device.frozen():
                    pass
        if version >= (6, 0):
            assert await device.query_cluster_info() == 0
        else:
            with pytest.raises(HostError, match=rf"'query cluster info' needs version 6\.0 .* took {version}"):
                await device.query_cluster_info()
    if version < (5, 0):
        assert guest.noted == []


async def test_a_linux_guest_takes_5_0_with_framework_3_0_and_nothing_else() -> None:
    device = VssDevice()
    async with paired([device], [VssDriver()]):
        await device.wait_ready()
        assert (device.framework, device.version) == (V3, IcVersion(5, 0))
    for offered in ({"frameworks": [FRAMEWORKS[0]]}, {"versions": [IcVersion(6, 0)]}):
        device = VssDevice(**offered)  # type: ignore[arg-type]
        async with paired([device], [VssDriver()]):
            with pytest.raises(ChannelClosed, match="the guest supports no version of VOLUME_SNAPSHOT"):
                await device.freeze()


# a guest that says no


async def test_a_guest_without_a_daemon_refuses_what_the_daemon_does() -> None:
    device = VssDevice()
    async with paired([device], [VssDriver()]):
        for ask in (device.hot_backup_check, device.freeze, device.thaw):
            with pytest.raises(GuestRefused, match="status 0x80004005") as refused:
                await ask()
            assert refused.value.status is IcStatus.FAIL
        await device.backup_complete()
        await device.auto_recover()
        with pytest.raises(GuestRefused, match="the guest refused the operation 'freeze'"):
            async with device.frozen():
                raise AssertionError("it is not frozen")


async def test_a_refused_thaw_is_heard_of_unless_the_block_says_more() -> None:
    guest = Guest(can_thaw=False)
    device = VssDevice()
    async with paired([device], [guest.driver()]):
        with pytest.raises(GuestRefused, match="'thaw'"):
            async with device.frozen():
                pass
        with pytest.raises(ZeroDivisionError):
            async with device.frozen():
                raise ZeroDivisionError
    assert guest.noted == ["freeze", "thaw", "freeze", "thaw", "thaw"]  # and when the host went


# thawed however it ends


@CONFIGS
async def test_a_block_that_is_cancelled_thaws(config: PartitionConfig) -> None:
    guest = Guest()
    device = VssDevice()
    driver = guest.driver()
    async with paired([device], [driver], config) as partition:
        with anyio.CancelScope() as scope:
            async with device.frozen():
                scope.cancel()
                await partition.turns.pause()
                raise AssertionError("it goes on")
        assert not driver.is_frozen
        assert guest.noted == ["freeze", "thaw"]
        async with device.frozen():
            assert driver.is_frozen


@CONFIGS
async def test_two_blocks_at_once_go_one_after_the_other(config: PartitionConfig) -> None:
    guest, device = Guest(), VssDevice()
    driver = guest.driver()
    async with paired([device], [driver], config) as partition, anyio.create_task_group() as group:

        async def hold() -> None:
            async with device.frozen():
                for _ in range(20):
                    await partition.turns.pause()
                    assert driver.is_frozen

        for _ in range(3):
            group.start_soon(in_turn, partition.turns, hold)
    assert guest.noted == ["freeze", "thaw"] * 3


async def test_a_freeze_that_is_given_up_thaws() -> None:
    """The guest freezes while nobody waits any more."""
    noted: list[str] = []
    flags: list[Flag] = []

    async def freeze() -> None:
        noted.append("freezing")
        flags[0].set()
        await flags[1].wait()
        noted.append("frozen")

    async def thaw() -> None:
        noted.append("thawed")

    device, driver = VssDevice(), VssDriver(on_freeze=freeze, on_thaw=thaw)
    async with paired([device], [driver]) as partition:
        flags += Flag(partition.turns, 1), Flag(partition.turns, 2)
        async with anyio.create_task_group() as group:

            async def hold() -> None:
                async with device.frozen():
                    raise AssertionError("nobody waits for this")

            group.start_soon(hold)
            await flags[0].wait()
            group.cancel_scope.cancel()
            flags[1].set()
        assert noted == ["freezing", "frozen", "thawed"]
        assert not driver.is_frozen


async def test_a_guest_that_does_not_thaw_does_not_hold_the_host_for_ever() -> None:
    never: list[Flag] = []

    async def freeze() -> None:
        return

    async def thaw() -> None:
        await never[0].wait()

    device = VssDevice()
    driver = VssDriver(on_freeze=freeze, on_thaw=thaw)
    async with paired([device], [driver]) as partition:
        never.append(Flag(partition.turns, 1))
        start = partition.clock.now()
        with pytest.raises(HostError, match="does not answer"):
            async with device.frozen():
                pass
        assert THAW_LIMIT <= partition.clock.now() - start < 2 * THAW_LIMIT
        never[0].set()


@CONFIGS
async def test_a_guest_that_goes_while_frozen_thaws_itself_and_the_host_hears(config: PartitionConfig) -> None:
    flags: list[Flag] = []

    async def freeze() -> None:
        return

    async def thaw() -> None:
        flags[1].set()

    async def guest(client: VmbusClient) -> None:
        async with run_drivers(client, driver):
            await flags[0].wait()

    device = VssDevice()
    driver = VssDriver(on_freeze=freeze, on_thaw=thaw)

    async def hold() -> None:
        async with device.frozen():
            assert driver.is_frozen
            flags[0].set()
            await flags[1].wait()

    async with hosting(device, config=config, guest=guest) as partition:
        flags += Flag(partition.turns, 1), Flag(partition.turns, 2)
        with pytest.raises(ChannelClosed, match="no longer has the channel of VssDevice open"):
            await hold()
        assert not driver.is_frozen


@pytest.mark.parametrize("seed", [1, 2])
def test_a_seed_gives_the_same_thaws_on_both_loops_when_guests_go(seed: int) -> None:
    async def play(noted: list[tuple[int, int]]) -> None:
        def driver(number: int) -> VssDriver:
            async def thaw() -> None:
                for _ in range(3):
                    noted.append((number, partition.clock.now()))
                    await partition.turns.pause()

            return VssDriver(on_thaw=thaw, instance_id=UUID(int=number))

        devices = [VssDevice(instance_id=UUID(int=number)) for number in range(1, 5)]
        config = PartitionConfig(virtual_time=True, seed=seed)
        async with paired(devices, [driver(number) for number in range(1, 5)], config) as partition:
            for device in devices:
                await device.freeze()

    runs: list[list[tuple[int, int]]] = [[], []]
    for noted, loop in zip(runs, ("asyncio", "trio"), strict=True):
        anyio.run(play, noted, backend=loop)
        assert len(noted) == 12
    assert runs[0] == runs[1]


# ends that lie


@given(st.binary(max_size=40))
def test_a_guest_answers_whatever_a_host_asks(body: bytes) -> None:
    guest = Guest()
    status, answer = at_once(guest.driver().answer(Request(IcHeader(), IcVersion(5, 0), body)))
    assert status is (IcStatus.SUCCESS if len(body) >= 12 else IcStatus.INVALID_ARGUMENT)
    assert len(answer) == len(body)


async def test_flags_are_the_guests_and_an_answer_about_something_else_is_refused() -> None:
    async def guest(client: VmbusClient) -> None:
        raw = await raw_guest(client, device)
        await raw.hear()
        await raw.say(chosen(version=(7, 0)))
        for operation, size in ((2, 12), (8, 12), (6, 12), (2, 11)):
            heard = await raw.hear()
            answer = bytes((operation,)) + bytes(7) + b"\x05\0\0\0"
            await raw.say(ic(5, answer[:size], version=(7, 0), transaction_id=heard[16]))

    device = VssDevice()
    async with hosting(device, guest=guest):
        assert await device.hot_backup_check() == NO_AUTO_RECOVERY
        assert await device.query_cluster_info() == 5
        with pytest.raises(ProtocolError, match="operation 5, got 6"):
            await device.freeze()
        with pytest.raises(ProtocolError, match="12 bytes"):
            await device.hot_backup_check()
