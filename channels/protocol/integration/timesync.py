"""Time synchronisation: both forms of its body (vmbus.md 8.2). Times are ticks of 100 ns since 1601-01-01 00:00 UTC.

Hosts send 28 bytes up to version 3.0 and 24 bytes from 4.0 on; Linux accepts 25 and 22. The guest answers with what came.
"""

from __future__ import annotations

from enum import IntFlag
from typing import Annotated, ClassVar
from uuid import UUID

from ..wire import At, Wire
from .common import FRAMEWORK_1, FRAMEWORK_3, IcVersion

TIME_SYNC_INSTANCE = UUID("2dd1ce17-079e-403c-b352-a1921ee207ee")
TIME_SYNC_4 = IcVersion(4, 0)
"""From here on samples say when they were taken."""
TIME_SYNC_VERSIONS = (FRAMEWORK_1, FRAMEWORK_3, TIME_SYNC_4)
"""1.0, 3.0 and 4.0."""
UNIX_EPOCH = 11_644_473_600 * 10_000_000
"""1970-01-01 in these times."""


class TimeSyncFlags(IntFlag):
    """What a sample is for; 0 is a probe. Unknown bits are kept."""

    SYNC = 1
    """Set the clock."""
    SAMPLE = 2
    """Note the time, and let the clock drift towards it."""


class TimeSync(Wire, frozen=True):
    """Up to version 3.0; 28 bytes when sent."""

    SENT_SIZE: ClassVar[int] = 28

    parent_time: Annotated[int, At(0, "Q", "the host's time")]
    child_time: Annotated[int, At(8, "Q", "the guest's time")] = 0
    round_trip: Annotated[int, At(16, "Q", "how long a message takes both ways")] = 0
    flags: Annotated[int, At(24, "B", "1 sync, 2 sample")] = 0


class TimeSyncReference(Wire, frozen=True):
    """From version 4.0 on; 24 bytes when sent."""

    LEAST_SIZE: ClassVar[int] = 22
    SENT_SIZE: ClassVar[int] = 24

    parent_time: Annotated[int, At(0, "Q", "the host's time")]
    reference_time: Annotated[int, At(8, "Q", "the VM's reference counter at that moment, ticks")] = 0
    flags: Annotated[int, At(16, "B", "1 sync, 2 sample")] = 0
    leap: Annotated[int, At(17, "B", "leap indicator, as in NTP")] = 0
    stratum: Annotated[int, At(18, "B", "how far from a true clock the host is, as in NTP")] = 0


def time_sync_type(version: IcVersion) -> type[TimeSync | TimeSyncReference]:
    """The form that this version has."""
    return TimeSyncReference if version >= TIME_SYNC_4 else TimeSync


def pack_time_sync(sample: TimeSync | TimeSyncReference) -> bytes:
    """A body as hosts send it. `ValueError` when a value does not fit its field."""
    return sample.pack().ljust(sample.SENT_SIZE, b"\0")
