"""Heartbeat, host side: the guest is asked every two seconds whether it lives.

device = HeartbeatDevice()
async with serve_devices(server, device):
    await device.wait_beat()
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar
from uuid import UUID

from broker.clock import TICKS_PER_SECOND
from broker.errors import ProtocolError

from ...protocol.ids import HEARTBEAT
from ...protocol.integration.common import IcMessageType, IcStatus, IcVersion
from ...protocol.integration.heartbeat import (
    HEARTBEAT_INSTANCE,
    HEARTBEAT_SIZE,
    HEARTBEAT_VERSIONS,
    MAX_SEQUENCE,
    Heartbeat,
    HeartbeatState,
    heartbeat_state,
)
from .component import Conversation, IntegrationDevice

PERIOD = 2 * TICKS_PER_SECOND


class HeartbeatDevice(IntegrationDevice):
    """See the module. A guest that answers with a wrong sequence number, or too little, loses the channel."""

    interface_id: ClassVar[UUID] = HEARTBEAT
    well_known_id: ClassVar[UUID] = HEARTBEAT_INSTANCE
    message_type: ClassVar[IcMessageType] = IcMessageType.HEARTBEAT
    message_versions = HEARTBEAT_VERSIONS

    def __init__(
        self,
        period: int = PERIOD,
        *,
        instance_id: UUID | None = None,
        versions: Sequence[IcVersion] | None = None,
        frameworks: Sequence[IcVersion] | None = None,
    ) -> None:
        """`period`: ticks of 100 ns from one request to the next, or to the answer where that takes longer."""
        super().__init__(instance_id=instance_id, versions=versions, frameworks=frameworks)
        if period < 1:
            raise ValueError(f"a heartbeat's period is at least 1 tick, not {period}")
        self.period = period
        self.beats = 0
        """Requests that were answered."""
        self._missed = 0
        self._state: HeartbeatState | int = HeartbeatState.UNKNOWN
        self._asked_at: int | None = None
        """Tick of the request that has no answer yet."""

    @property
    def missed(self) -> int:
        """Periods that passed without the answer that was due, and answers that were failures."""
        return self._missed + self._overdue

    @property
    def state(self) -> HeartbeatState | int:
        """What the guest said with its last beat; UNKNOWN while it owes one for a period, and without a guest."""
        return HeartbeatState.UNKNOWN if self._overdue else self._state

    @property
    def _overdue(self) -> int:
        if self._asked_at is None or self._turns is None:
            return 0
        return (self._turns.clock.now() - self._asked_at) // self.period

    async def wait_beat(self) -> int:
        """Wait for the guest's next beat; how many there were. Errors as in `call`."""
        conversation = await self._wait_conversation()
        seen = self.beats
        while self.beats == seen:
            conversation.check()
            await self._changed.wait()
        return self.beats

    async def serve(self, conversation: Conversation) -> None:
        """Ask, again and again."""
        turns, key = conversation.turns, ("heartbeat", self.message_type)
        due, sequence = turns.clock.now(), 0
        try:
            while True:
                self._asked_at = turns.clock.now()
                status, body = await conversation.request(Heartbeat(sequence).pack().ljust(HEARTBEAT_SIZE, b"\0"))
                self._note(status, body, sequence)
                sequence = (sequence + 1) & MAX_SEQUENCE
                due = max(due + self.period, turns.clock.now())
                await turns.sleep_until(due, key)
        finally:
            self._missed, self._asked_at = self.missed, None
            self._state = HeartbeatState.UNKNOWN

    def _note(self, status: int, body: bytes, sequence: int) -> None:
        """The answer to a beat."""
        self._missed, self._asked_at = self.missed, None
        if status != IcStatus.SUCCESS:
            self._missed += 1
            self._state = HeartbeatState.UNKNOWN
            return
        answer = Heartbeat.unpack(body)
        if answer.sequence != (sequence + 1) & MAX_SEQUENCE:
            raise ProtocolError("heartbeat", 0, f"sequence {sequence + 1}", f"{answer.sequence}")
        self._state = heartbeat_state(answer.state)
        self.beats += 1
        self._changed.notify()
