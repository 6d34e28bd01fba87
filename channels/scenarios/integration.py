"""Integration: every integration device does its work with a guest that answers as Linux does; a shutdown ends it."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import anyio

from broker.access import GuestSynic
from broker.clock import TICKS_PER_MILLISECOND

from ..client import VmbusClient
from ..devices.integration import (
    FileCopyDevice,
    HeartbeatDevice,
    KvpDevice,
    ShutdownDevice,
    TimeSyncDevice,
    VssDevice,
)
from ..drivers.framework import run_drivers
from ..drivers.integration import (
    FileCopyDriver,
    HeartbeatDriver,
    KvpDriver,
    ShutdownDriver,
    TimeSyncDriver,
    VssDriver,
)
from ..protocol.integration.heartbeat import HeartbeatState
from ..protocol.integration.kvp import KvpPool
from ..protocol.integration.shutdown import ShutdownKind
from ..protocol.versions import version_label
from .stage import Scenario, Stage, expect, serve, start_task

PERIOD = 10 * TICKS_PER_MILLISECOND
"""Of heartbeats and time samples: two and five seconds would be long for a demonstration."""
FAREWELL = "the host is done"


class _Host:
    """The host's devices, and what it does with them."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.heartbeat = HeartbeatDevice(PERIOD)
        self.timesync = TimeSyncDevice(period=PERIOD)
        self.kvp = KvpDevice()
        self.vss = VssDevice()
        self.files = FileCopyDevice()
        self.shutdown = ShutdownDevice()
        self.devices = (self.heartbeat, self.timesync, self.kvp, self.vss, self.files, self.shutdown)

    async def work(self, guest: _Guest) -> None:
        """One after the other; the shutdown is last."""
        for device in self.devices:
            await device.wait_ready()
        versions = ", ".join(f"{device.message_type.name.lower()} {device.version}" for device in self.devices)
        self.stage.say(f"the guest knows {versions.replace('_', ' ')}")
        await self._check_pulse()
        await self._set_clock(guest)
        await self._exchange_pairs(guest)
        await self._back_up(guest)
        await self._copy_file(guest)
        await self.shutdown.shutdown(ShutdownKind.RESTART, message=FAREWELL)
        self.stage.say("the guest said yes to a restart")

    async def _check_pulse(self) -> None:
        for _ in range(self.stage.settings.rounds):
            await self.heartbeat.wait_beat()
            self.stage.count("heartbeats")
        expect(self.heartbeat.state is HeartbeatState.HEALTHY, f"the guest says that it is {self.heartbeat.state!r}")
        self.stage.say(f"the guest's heart beat {self.stage.settings.rounds} times, and it is healthy")

    async def _set_clock(self, guest: _Guest) -> None:
        await self.timesync.sync()
        samples = guest.timesync.samples
        expect(guest.timesync.clock_set_to is not None, "the guest has not set its clock")
        expect(
            samples[-1].parent_time - samples[-1].reference_time == guest.timesync.offset, "the guest's clock is off"
        )
        self.stage.count("clock settings", self.timesync.syncs)
        self.stage.say("the guest has set its clock to the host's")

    async def _exchange_pairs(self, guest: _Guest) -> None:
        await self.kvp.set(KvpPool.EXTERNAL, "greeting", "hello")
        expect(guest.kvp.pools[KvpPool.EXTERNAL] == {"greeting": "hello"}, "the guest has not stored the pair")
        about = await self.kvp.items(KvpPool.AUTO)
        expect(about == guest.kvp.pools[KvpPool.AUTO], f"the guest's pairs came as {about}")
        self.stage.count("pairs", 1 + len(about))
        self.stage.say(f"the guest took a pair and gave {len(about)}: {about['OSName']} {about['OSVersion']}")

    async def _back_up(self, guest: _Guest) -> None:
        async with self.vss.frozen():
            expect(guest.vss.is_frozen, "the guest's file systems are not frozen")
        expect(not guest.vss.is_frozen, "the guest's file systems are still frozen")
        self.stage.say("the guest's file systems were frozen for a backup, and thawed")

    async def _copy_file(self, guest: _Guest) -> None:
        settings = self.stage.settings
        content = b"".join(index.to_bytes(8, "little") for index in range(settings.packets * settings.payload // 8 + 1))
        await self.files.copy(content, "/", "gift")
        expect((guest.files.directory / "gift").read_bytes() == content, "the file is another in the guest")
        self.stage.count("bytes copied", len(content))
        self.stage.say(f"a file of {len(content)} bytes is in the guest, byte for byte")


class _Guest:
    """The guest's drivers."""

    def __init__(self, stage: Stage, directory: Path) -> None:
        self.stage = stage
        self.heartbeat = HeartbeatDriver()
        self.heartbeat.state = HeartbeatState.HEALTHY
        self.timesync = TimeSyncDriver()
        self.kvp = KvpDriver()
        self.vss = VssDriver(on_freeze=self._quiesce, on_thaw=self._quiesce)
        self.files = FileCopyDriver(directory)
        self.shutdown = ShutdownDriver()
        self.drivers = (self.heartbeat, self.timesync, self.kvp, self.vss, self.files, self.shutdown)

    async def _quiesce(self) -> None:
        self.stage.count("freezes and thaws")

    async def run(self, synic: GuestSynic) -> None:
        """Answer until the host wants a shutdown; then leave."""
        async with (
            VmbusClient(synic, version=self.stage.settings.version) as client,
            run_drivers(client, *self.drivers),
        ):
            self.stage.say(f"the guest is connected, version {version_label(client.version)}")
            request = await self.shutdown.wait_shutdown()
            expect(request.kind is ShutdownKind.RESTART, f"the guest was told to {request.kind!r}")
            expect(request.message == FAREWELL, f"the guest was told {request.message!r}")
        self.stage.say("the guest has unloaded")


async def _play(stage: Stage) -> None:
    with TemporaryDirectory(prefix="vmbus-") as directory:
        host, guest = _Host(stage), _Guest(stage, Path(directory))
        async with serve(stage, *host.devices) as server, anyio.create_task_group() as group:
            start_task(group, server.turns, 0, lambda: host.work(guest))
            await stage.start(0, guest.run).wait()  # what goes wrong in the guest ends the host's work, too


integration = Scenario(about="heartbeat, clock, key-value pairs, backup, file copy and shutdown", play=_play)
