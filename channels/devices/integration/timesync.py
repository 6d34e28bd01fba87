"""Time synchronisation, host side: the guest's clock is set once, then it gets a sample every five seconds.

Each sample waits for the answer to the one before. From version 4.0 on it says at which reference time it was taken, so
that what it waits does not count.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import ClassVar
from uuid import UUID

from broker.clock import NANOSECONDS_PER_TICK, TICKS_PER_SECOND, Clock, VirtualClock

from ...protocol.ids import TIME_SYNC
from ...protocol.integration.common import IcMessageType, IcStatus, IcVersion
from ...protocol.integration.timesync import (
    TIME_SYNC_4,
    TIME_SYNC_INSTANCE,
    TIME_SYNC_VERSIONS,
    UNIX_EPOCH,
    TimeSync,
    TimeSyncFlags,
    TimeSyncReference,
    pack_time_sync,
)
from .component import Conversation, GuestRefused, IntegrationDevice

PERIOD = 5 * TICKS_PER_SECOND
VIRTUAL_EPOCH = 155_228 * 24 * 3600 * TICKS_PER_SECOND
"""Wall-clock time at which a partition with virtual time begins: 2026-01-01 00:00 UTC."""


def system_time() -> int:
    """This computer's wall clock, in ticks of 100 ns since 1601-01-01 00:00 UTC."""
    return UNIX_EPOCH + time.time_ns() // NANOSECONDS_PER_TICK


class TimeSyncDevice(IntegrationDevice):
    """See the module."""

    interface_id: ClassVar[UUID] = TIME_SYNC
    well_known_id: ClassVar[UUID] = TIME_SYNC_INSTANCE
    message_type: ClassVar[IcMessageType] = IcMessageType.TIME_SYNC
    message_versions = TIME_SYNC_VERSIONS

    def __init__(
        self,
        wall_clock: Callable[[], int] | None = None,
        period: int = PERIOD,
        *,
        leap: int = 0,
        stratum: int = 0,
        instance_id: UUID | None = None,
        versions: Sequence[IcVersion] | None = None,
        frameworks: Sequence[IcVersion] | None = None,
    ) -> None:
        """`wall_clock`: the host's time in ticks of 100 ns since 1601-01-01 00:00 UTC. Unless given it is `system_time`, and
        where the partition's time is virtual `VIRTUAL_EPOCH` plus its reference counter, so that a seeded run is the same
        each time. `period`: ticks between samples. `leap` and `stratum`, 0 to 255, go with each sample from version 4.0 on.
        """
        super().__init__(instance_id=instance_id, versions=versions, frameworks=frameworks)
        if period < 1:
            raise ValueError(f"the period of time samples is at least 1 tick, not {period}")
        TimeSyncReference(0, leap=leap, stratum=stratum).pack()  # not when a guest is there to suffer for it
        self.wall_clock = wall_clock
        self.period = period
        self.leap = leap
        self.stratum = stratum
        self.syncs = 0
        """How often the guest has taken a time to set its clock to."""
        self.samples = 0
        """Samples that the guest has taken."""

    async def sync(self) -> None:
        """Have the guest set its clock now. `GuestRefused` when it fails, else as in `call`."""
        status = await self._send(await self._wait_conversation(), TimeSyncFlags.SYNC)
        if status != IcStatus.SUCCESS:
            raise GuestRefused("to set its clock", status)

    async def serve(self, conversation: Conversation) -> None:
        """One sync, then samples."""
        turns, key = conversation.turns, ("timesync", self.message_type)
        due = turns.clock.now()
        await self._send(conversation, TimeSyncFlags.SYNC)
        while True:
            due = max(due + self.period, turns.clock.now())
            await turns.sleep_until(due, key)
            await self._send(conversation, TimeSyncFlags.SAMPLE)

    async def _send(self, conversation: Conversation, flags: TimeSyncFlags) -> IcStatus | int:
        sample = self._sample(conversation.version, conversation.turns.clock, flags)
        status, _ = await conversation.request(pack_time_sync(sample))
        if status == IcStatus.SUCCESS:
            self.syncs += flags is TimeSyncFlags.SYNC
            self.samples += flags is TimeSyncFlags.SAMPLE
        return status

    def _sample(self, version: IcVersion, clock: Clock, flags: TimeSyncFlags) -> TimeSync | TimeSyncReference:
        now = clock.now()
        if self.wall_clock is not None:
            wall = self.wall_clock()
        else:
            wall = VIRTUAL_EPOCH + now if isinstance(clock, VirtualClock) else system_time()
        if version >= TIME_SYNC_4:
            return TimeSyncReference(wall, now, flags, self.leap, self.stratum)
        return TimeSync(wall, flags=flags)
