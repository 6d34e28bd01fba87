"""Shutdown: the body of its messages, the same in every version (vmbus.md 8.2). Always 2060 bytes.

The guest answers with a status, then acts. Linux does not answer a body that is shorter.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Annotated
from uuid import UUID

from ..wire import At, Wire
from .common import FRAMEWORK_1, FRAMEWORK_3, IcVersion

SHUTDOWN_INSTANCE = UUID("b6650ff7-33bc-4840-8048-e0676786f393")
SHUTDOWN_VERSIONS = (FRAMEWORK_1, FRAMEWORK_3, IcVersion(3, 1), IcVersion(3, 2))
"""1.0, 3.0, 3.1 and 3.2."""
PLANNED = 0x8000_0000
"""In the reason: somebody meant it."""
TEXT_SIZE = 2048
"""Bytes of the text, UTF-16LE, a NUL at its end included."""


class ShutdownFlags(IntFlag):
    """What the guest is to do; it powers off with neither RESTART nor HIBERNATE. Unknown bits are kept."""

    FORCE = 1
    """Do not ask users or programs."""
    RESTART = 2
    HIBERNATE = 4


class ShutdownKind(IntEnum):
    """What to do, as the flags without FORCE say it."""

    POWER_OFF = 0
    RESTART = ShutdownFlags.RESTART
    HIBERNATE = ShutdownFlags.HIBERNATE


class ShutdownMessage(Wire, frozen=True):
    """The body."""

    reason: Annotated[int, At(0, "I", "0x80000000: planned")]
    timeout_s: Annotated[int, At(4, "I", "seconds until the guest acts")] = 0
    flags: Annotated[int, At(8, "I", "1 force, 2 restart, 4 hibernate")] = 0
    text: Annotated[bytes, At(12, "2048s", "what to tell users, UTF-16LE")] = bytes(TEXT_SIZE)

    @property
    def kind(self) -> ShutdownKind | None:
        """What to do; None for flags that contradict one another or are unknown."""
        try:
            return ShutdownKind(self.flags & ~int(ShutdownFlags.FORCE))  # ~ of a flag would drop unknown bits
        except ValueError:
            return None

    @property
    def message(self) -> str:
        """The text, up to its NUL. What is no UTF-16 is shown as U+FFFD."""
        return self.text.decode("utf-16-le", "replace").partition("\0")[0]


SHUTDOWN_SIZE = ShutdownMessage.layout().size
