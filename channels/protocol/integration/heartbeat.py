"""Heartbeat: the body of its messages, the same in every version (vmbus.md 8.2). The host sends all 40 bytes.

The guest answers with the sequence number plus one, and its state where it says one (Linux leaves it as it came).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated
from uuid import UUID

from ..wire import At, Wire
from .common import FRAMEWORK_1, FRAMEWORK_3

HEARTBEAT_INSTANCE = UUID("fd149e91-82e0-4a7d-afa6-2a4166cbd7c0")
HEARTBEAT_VERSIONS = (FRAMEWORK_1, FRAMEWORK_3)
"""1.0 and 3.0."""
HEARTBEAT_SIZE = 40
"""Bytes of a body as hosts send it; what follows the fields is 0."""
MAX_SEQUENCE = (1 << 64) - 1


class HeartbeatState(IntEnum):
    """How the guest is. Other numbers are kept as they come."""

    UNKNOWN = 0
    HEALTHY = 1
    CRITICAL = 2
    STOPPED = 3


class Heartbeat(Wire, frozen=True):
    """The fields of the body."""

    sequence: Annotated[int, At(0, "Q", "number of the beat; one more in the answer")]
    state: Annotated[int, At(8, "I", "0 unknown, 1 healthy, 2 critical, 3 stopped")] = 0


def heartbeat_state(number: int) -> HeartbeatState | int:
    """The state with its name, where it has one."""
    try:
        return HeartbeatState(number)
    except ValueError:
        return number
