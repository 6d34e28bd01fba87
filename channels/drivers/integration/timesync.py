"""Time synchronisation, guest side: what the host's time is, worked out as Linux does (vmbus.md 8.2, 8.12)."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import ClassVar, NamedTuple
from uuid import UUID

from broker.clock import TICKS_PER_SECOND

from ...protocol.ids import TIME_SYNC
from ...protocol.integration.common import IcMessageType, IcStatus, IcVersion
from ...protocol.integration.timesync import (
    TIME_SYNC_VERSIONS,
    TimeSyncFlags,
    TimeSyncReference,
    time_sync_type,
)
from .component import IntegrationDriver, Request

STALE_AFTER = 600 * TICKS_PER_SECOND
"""From the arrival of a sample on, however old it was then."""
KEPT_SAMPLES = 16


class TimeSample(NamedTuple):
    """What came with one message. All in ticks of 100 ns."""

    parent_time: int
    """The host's time, since 1601-01-01 00:00 UTC."""
    reference_time: int
    """Reference counter to which it belongs: when it was taken, before version 4.0 when it came."""
    arrived: int
    """Reference counter when it came."""
    flags: TimeSyncFlags
    leap: int = 0
    stratum: int = 0


class TimeSyncDriver(IntegrationDriver):
    """See the module."""

    interface_id: UUID = TIME_SYNC
    message_type: ClassVar[IcMessageType] = IcMessageType.TIME_SYNC
    message_versions = TIME_SYNC_VERSIONS[::-1]

    def __init__(
        self,
        *,
        instance_id: UUID | None = None,
        framework_versions: Sequence[IcVersion] | None = None,
        message_versions: Sequence[IcVersion] | None = None,
    ) -> None:
        super().__init__(
            instance_id=instance_id, framework_versions=framework_versions, message_versions=message_versions
        )
        self.samples: deque[TimeSample] = deque(maxlen=KEPT_SAMPLES)
        """The newest, oldest of them first."""
        self.clock_set_to: int | None = None
        """What the host had the clock set to, last; samples do not."""

    @property
    def offset(self) -> int | None:
        """Host's time minus reference counter, None before the first sample and when the last is stale."""
        if not self.samples or self.turns.clock.now() - self.samples[-1].arrived > STALE_AFTER:
            return None
        return self.samples[-1].parent_time - self.samples[-1].reference_time

    @property
    def host_time(self) -> int | None:
        """What the host's clock says now, None where the offset is not known."""
        offset = self.offset
        return None if offset is None else offset + self.turns.clock.now()

    async def answer(self, request: Request) -> tuple[int, bytes] | None:
        """Note the sample; set the clock where the host wants it."""
        kind = time_sync_type(request.version)
        if len(request.body) < kind.layout().size:
            return None
        sent, now = kind.unpack(request.body), self.turns.clock.now()
        flags = TimeSyncFlags(sent.flags)
        if isinstance(sent, TimeSyncReference):
            sample = TimeSample(sent.parent_time, sent.reference_time, now, flags, sent.leap, sent.stratum)
        else:
            sample = TimeSample(sent.parent_time, now, now, flags)
        self.samples.append(sample)
        if flags & TimeSyncFlags.SYNC:
            self.clock_set_to = self.host_time
        self._changed.notify()
        return IcStatus.SUCCESS, request.body
