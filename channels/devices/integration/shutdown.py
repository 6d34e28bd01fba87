"""Shutdown, host side: the guest is told to power off, restart or hibernate.

    await device.shutdown(ShutdownKind.RESTART, message="new kernel")

returns when the guest has said yes; it acts after that, and goes.
"""

from __future__ import annotations

from typing import ClassVar
from uuid import UUID

from ...protocol.ids import SHUTDOWN
from ...protocol.integration.common import IcMessageType, IcStatus
from ...protocol.integration.shutdown import (
    PLANNED,
    SHUTDOWN_INSTANCE,
    SHUTDOWN_VERSIONS,
    TEXT_SIZE,
    ShutdownFlags,
    ShutdownKind,
    ShutdownMessage,
)
from ...protocol.integration.text import pack_text
from .component import GuestRefused, IntegrationDevice


class ShutdownDevice(IntegrationDevice):
    """See the module."""

    interface_id: ClassVar[UUID] = SHUTDOWN
    well_known_id: ClassVar[UUID] = SHUTDOWN_INSTANCE
    message_type: ClassVar[IcMessageType] = IcMessageType.SHUTDOWN
    message_versions = SHUTDOWN_VERSIONS

    async def shutdown(
        self,
        kind: ShutdownKind = ShutdownKind.POWER_OFF,
        *,
        force: bool = False,
        planned: bool = True,
        timeout_s: int = 0,
        message: str = "",
    ) -> None:
        """Ask, once there is a guest, and wait until it has said yes.

        `force`: without asking users and programs. `timeout_s`: seconds until it acts. `message`: what it tells its users,
        at most 1023 units of UTF-16, no NUL. `GuestRefused` when it says no, `ValueError` for what does not fit the message,
        else as in `call`.
        """
        flags = kind | (ShutdownFlags.FORCE if force else 0)
        text = pack_text(message, TEXT_SIZE, "message")
        body = ShutdownMessage(PLANNED if planned else 0, timeout_s, flags, text).pack()
        status, _ = await self.call(body)
        if status != IcStatus.SUCCESS:
            raise GuestRefused(f"to {kind.name.lower().replace('_', ' ')}", status)
