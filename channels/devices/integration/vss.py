"""Volume snapshots, host side: a guest's file systems are frozen, copied by somebody, and thawed.

    await vss.hot_backup_check()
    async with vss.frozen():
        ...

It will: thaw whatever it froze, also when the task is cancelled; keep two such blocks apart (the second waits). It will
not: copy anything, or keep a `thaw` of its own out of a block.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import ClassVar
from uuid import UUID

from broker.access import Turns
from broker.clock import TICKS_PER_SECOND
from broker.errors import ChannelClosed, HostError, ProtocolError

from ...protocol.ids import VOLUME_SNAPSHOT
from ...protocol.integration.common import IcMessageType
from ...protocol.integration.vss import VSS_INSTANCE, VSS_SINCE, VSS_VERSIONS, VssMessage, VssOperation
from .asking import OneAtATime, ask, insist
from .component import Conversation, GuestRefused, IntegrationDevice

THAW_LIMIT = 60 * TICKS_PER_SECOND
"""How long a block that ends waits for the thaw: twice what Linux gives its daemon."""


class VssDevice(IntegrationDevice):
    """See the module. All methods wait for a guest.

    Errors of all: `GuestRefused` (FAIL from Linux without its daemon), `HostError` when the version that the guest took
    has no such operation, `ProtocolError` for an answer that is too short, else as in `call`.
    """

    interface_id: ClassVar[UUID] = VOLUME_SNAPSHOT
    well_known_id: ClassVar[UUID] = VSS_INSTANCE
    message_type: ClassVar[IcMessageType] = IcMessageType.VOLUME_SNAPSHOT
    message_versions = VSS_VERSIONS

    _snapshots: OneAtATime

    def attached(self, turns: Turns) -> None:
        """See `Device.attached`."""
        super().attached(turns)
        self._snapshots = OneAtATime(turns, ("integration-snapshot", self.message_type))

    async def hot_backup_check(self) -> int:
        """Ask whether a backup may be made while the guest runs. Its flags, see `NO_AUTO_RECOVERY`; Linux leaves them 0."""
        return await self._ask(VssOperation.HOT_BACKUP)

    async def freeze(self) -> None:
        """Freeze the file systems (from 5.0). `frozen` thaws by itself."""
        await self._ask(VssOperation.FREEZE)

    async def thaw(self) -> None:
        """Thaw them (from 5.0)."""
        await self._ask(VssOperation.THAW)

    @asynccontextmanager
    async def frozen(self) -> AsyncIterator[None]:
        """Frozen while the block lasts (from 5.0). They are thawed however it ends, also when a freeze was cancelled.

        `ChannelClosed` at the end when the guest is gone, `HostError` when it has not thawed within `THAW_LIMIT`, unless
        the block itself raises.
        """
        conversation = await self._wait_conversation()
        _check_version(conversation, VssOperation.FREEZE)
        async with self._snapshots.taken():
            try:
                await self._ask(VssOperation.FREEZE, conversation)
            except (GuestRefused, ChannelClosed):
                raise
            except BaseException:
                await self._thaw_anyway(conversation)
                raise
            try:
                yield
            except BaseException:
                await self._thaw_anyway(conversation)
                raise
            if not await self._insist(conversation):
                raise HostError("the guest was told to thaw its file systems and does not answer")

    async def backup_complete(self) -> None:
        """The backup was made."""
        await self._ask(VssOperation.BACKUP_COMPLETE)

    async def auto_recover(self) -> None:
        """Let the guest repair the snapshot (from 5.0)."""
        await self._ask(VssOperation.AUTO_RECOVER)

    async def direct_mapped_info(self) -> int:
        """Ask for disks that the host does not see. The guest's flags; Linux has none."""
        return await self._ask(VssOperation.GET_DIRECT_MAPPED_INFO)

    async def query_cluster_info(self) -> int:
        """Ask whether the guest is part of a cluster (from 6.0). The guest's flags."""
        return await self._ask(VssOperation.QUERY_CLUSTER_INFO)

    async def _ask(self, operation: VssOperation, conversation: Conversation | None = None) -> int:
        """The flags of the answer."""
        if conversation is None:
            conversation = await self._wait_conversation()
            _check_version(conversation, operation)
        what = operation.name.lower().replace("_", " ")
        answer = VssMessage.unpack(await ask(conversation, f"the operation {what!r}", VssMessage(operation).pack()))
        if answer.operation != operation:
            raise ProtocolError("snapshot message", 0, f"operation {operation:d}", f"{answer.operation}")
        return answer.flags

    async def _insist(self, conversation: Conversation) -> bool:
        async def thaw() -> None:
            await self._ask(VssOperation.THAW, conversation)

        return await insist(conversation.turns, THAW_LIMIT, ("integration-thaw", self.message_type), thaw)

    async def _thaw_anyway(self, conversation: Conversation) -> None:
        """Something else is being raised, which says more."""
        try:
            await self._insist(conversation)
        except (HostError, ProtocolError):
            return


def _check_version(conversation: Conversation, operation: VssOperation) -> None:
    since = VSS_SINCE.get(operation)
    if since is not None and conversation.version < since:
        name = operation.name.lower().replace("_", " ")
        raise HostError(f"{name!r} needs version {since} of snapshots, the guest took {conversation.version}")
