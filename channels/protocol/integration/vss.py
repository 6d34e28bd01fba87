"""Bodies of the volume snapshot component (vmbus.md 8.4, 8.12): what to do, and flags. At least 12 bytes.

Operations 5 to 7 came with version 5.0, operation 8 with 6.0; the others are there from 4.0 on.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated
from uuid import UUID

from ..wire import At, Wire
from .common import IcVersion

VSS_INSTANCE = UUID("2450ee40-33bf-4fbd-892e-9fb06e9214cf")
"""The one that Hyper-V has."""
VSS_VERSIONS = (IcVersion(4, 0), IcVersion(5, 0), IcVersion(6, 0), IcVersion(7, 0))
"""Oldest first. Linux knows 5.0 only, and that with framework 3.0 only."""
NO_AUTO_RECOVERY = 5
"""Flags of a guest's answer to a hot-backup check. Linux leaves what the host has sent."""


class VssOperation(IntEnum):
    """What a body asks for."""

    CREATE = 0
    DELETE = 1
    HOT_BACKUP = 2
    GET_DIRECT_MAPPED_INFO = 3
    BACKUP_COMPLETE = 4
    FREEZE = 5
    THAW = 6
    AUTO_RECOVER = 7
    QUERY_CLUSTER_INFO = 8


VSS_SINCE = {
    VssOperation.FREEZE: IcVersion(5, 0),
    VssOperation.THAW: IcVersion(5, 0),
    VssOperation.AUTO_RECOVER: IcVersion(5, 0),
    VssOperation.QUERY_CLUSTER_INFO: IcVersion(6, 0),
}
"""The version that an operation needs, where 4.0 does not do."""


class VssMessage(Wire, frozen=True):
    """A request or its answer, 12 bytes; what follows them is not looked at."""

    operation: Annotated[int, At(0, "B", "what to do")]
    flags: Annotated[int, At(8, "I", "of the answer")] = 0
