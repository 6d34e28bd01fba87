"""Shutdown, guest side: it says yes or no, and acts after that."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar
from uuid import UUID

from broker.access import Turns
from broker.errors import ChannelClosed

from ...protocol.ids import SHUTDOWN
from ...protocol.integration.common import IcMessageType, IcStatus, IcVersion
from ...protocol.integration.shutdown import SHUTDOWN_SIZE, SHUTDOWN_VERSIONS, ShutdownKind, ShutdownMessage
from .component import IntegrationDriver, Request


class ShutdownDriver(IntegrationDriver):
    """See the module. FAIL for flags that are unknown or contradict one another, and for a hibernation that cannot be.

    `on_shutdown` is awaited with each request that was answered with yes; guest code may wait with `wait_shutdown`, too.
    """

    interface_id: UUID = SHUTDOWN
    message_type: ClassVar[IcMessageType] = IcMessageType.SHUTDOWN
    message_versions = SHUTDOWN_VERSIONS[::-1]

    def __init__(
        self,
        on_shutdown: Callable[[ShutdownMessage], Awaitable[None]] | None = None,
        *,
        can_hibernate: bool = True,
        instance_id: UUID | None = None,
        framework_versions: Sequence[IcVersion] | None = None,
        message_versions: Sequence[IcVersion] | None = None,
    ) -> None:
        super().__init__(
            instance_id=instance_id, framework_versions=framework_versions, message_versions=message_versions
        )
        self.can_hibernate = can_hibernate
        self.accepted: ShutdownMessage | None = None
        """The last request that was answered with yes."""
        self._on_shutdown = on_shutdown
        self._has_ended = False

    def attached(self, turns: Turns) -> None:
        """See `Driver.attached`."""
        super().attached(turns)
        self.accepted, self._has_ended = None, False

    async def wait_shutdown(self) -> ShutdownMessage:
        """Wait until the host has asked, and was answered with yes. `ChannelClosed` when the device goes before."""
        await self.turns.pause()
        while self.accepted is None:
            if self._has_ended:
                raise ChannelClosed("the shutdown device is gone")
            await self._changed.wait()
        return self.accepted

    def ended(self) -> None:
        """See `Driver.ended`."""
        self._has_ended = True
        self._changed.notify()

    async def answer(self, request: Request) -> tuple[int, bytes] | None:
        """Yes or no."""
        if len(request.body) < SHUTDOWN_SIZE:
            return None
        kind = ShutdownMessage.unpack(request.body).kind
        is_fine = kind is not None and (self.can_hibernate or kind is not ShutdownKind.HIBERNATE)
        return (IcStatus.SUCCESS if is_fine else IcStatus.FAIL), request.body

    async def answered(self, request: Request, status: int) -> None:
        """Act."""
        if status != IcStatus.SUCCESS:
            return
        self.accepted = ShutdownMessage.unpack(request.body)
        self._changed.notify()
        if self._on_shutdown is not None:
            await self._on_shutdown(self.accepted)
