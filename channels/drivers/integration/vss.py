"""Volume snapshots, guest side: guest code freezes and thaws what it writes to when the host asks.

It will: answer as Linux does, FAIL for a freeze when nobody is there to do it, SUCCESS for whatever it does not know
(vmbus.md 8.4, 8.12). It will not: stay frozen when the host is gone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar
from uuid import UUID

import anyio
import msgspec

from broker.errors import ProtocolError

from ...client import GuestChannel
from ...protocol.ids import VOLUME_SNAPSHOT
from ...protocol.integration.common import FRAMEWORK_3, IcMessageType, IcStatus, IcVersion
from ...protocol.integration.vss import VssMessage, VssOperation
from .component import IntegrationDriver, Request

Hook = Callable[[], Awaitable[bool | None]]
"""Guest code. False: it cannot be done."""

_BY_DAEMON = (VssOperation.HOT_BACKUP, VssOperation.FREEZE, VssOperation.THAW)


class VssDriver(IntegrationDriver):
    """See the module. Version 5.0 and framework 3.0 as Linux; others where they are given.

    `on_freeze`, `on_thaw`: guest code. With neither, this is a Linux guest without its daemon.
    """

    interface_id: UUID = VOLUME_SNAPSHOT
    message_type: ClassVar[IcMessageType] = IcMessageType.VOLUME_SNAPSHOT
    framework_versions = (FRAMEWORK_3,)
    message_versions = (IcVersion(5, 0),)
    buffer_size = 8192
    answers_unknown = False

    def __init__(
        self,
        *,
        on_freeze: Hook | None = None,
        on_thaw: Hook | None = None,
        instance_id: UUID | None = None,
        framework_versions: Sequence[IcVersion] | None = None,
        message_versions: Sequence[IcVersion] | None = None,
    ) -> None:
        super().__init__(
            instance_id=instance_id, framework_versions=framework_versions, message_versions=message_versions
        )
        self.is_frozen = False
        self._on_freeze = on_freeze
        self._on_thaw = on_thaw

    async def run(self, channel: GuestChannel) -> None:
        """See `IntegrationDriver`."""
        try:
            await super().run(channel)
        finally:
            if self.is_frozen:
                with anyio.CancelScope(shield=True):
                    # Drivers that end at once take turns again, so that a seed decides whose guest code goes first.
                    await self.turns.expect(("integration-thaw", channel.channel_id))()
                    await self._thaw()

    async def answer(self, request: Request) -> tuple[int, bytes]:
        """One operation."""
        try:
            asked = VssMessage.unpack(request.body)
        except ProtocolError:
            return IcStatus.INVALID_ARGUMENT, request.body
        is_done = True
        if asked.operation in _BY_DAEMON and self._on_freeze is None and self._on_thaw is None:
            is_done = False
        elif asked.operation == VssOperation.FREEZE:
            is_done = await self._freeze()
        elif asked.operation == VssOperation.THAW:
            is_done = await self._thaw()
        elif asked.operation == VssOperation.GET_DIRECT_MAPPED_INFO:
            told = msgspec.structs.replace(asked, flags=0).pack()
            return IcStatus.SUCCESS, told + request.body[len(told) :]
        return (IcStatus.SUCCESS if is_done else IcStatus.FAIL), request.body

    async def _freeze(self) -> bool:
        if self._on_freeze is not None and await self._on_freeze() is False:
            return False
        self.is_frozen = True
        return True

    async def _thaw(self) -> bool:
        if self._on_thaw is not None and await self._on_thaw() is False:
            return False
        self.is_frozen = False
        return True
