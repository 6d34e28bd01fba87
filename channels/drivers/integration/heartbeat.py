"""Heartbeat, guest side."""

from __future__ import annotations

from typing import ClassVar
from uuid import UUID

from ...protocol.ids import HEARTBEAT
from ...protocol.integration.common import IcMessageType, IcStatus
from ...protocol.integration.heartbeat import HEARTBEAT_VERSIONS, MAX_SEQUENCE, Heartbeat, HeartbeatState
from .component import IntegrationDriver, Request


class HeartbeatDriver(IntegrationDriver):
    """Says that the guest lives. `state` may change at any time; with None it stays what the host sent, as with Linux."""

    interface_id: UUID = HEARTBEAT
    message_type: ClassVar[IcMessageType] = IcMessageType.HEARTBEAT
    message_versions = HEARTBEAT_VERSIONS[::-1]

    state: HeartbeatState | None = None
    beats: int = 0
    """Requests that were answered."""

    async def answer(self, request: Request) -> tuple[int, bytes] | None:
        """The number plus one."""
        if len(request.body) < Heartbeat.layout().size:
            return None
        asked = Heartbeat.unpack(request.body)
        state = asked.state if self.state is None else self.state
        self.beats += 1
        answer = Heartbeat((asked.sequence + 1) & MAX_SEQUENCE, state).pack()
        return IcStatus.SUCCESS, answer + request.body[len(answer) :]
