"""File copy, host side: a file goes into the guest, 6144 bytes at a time, each of them answered.

    await copy.copy(Path("setup.sh"), "/tmp", "setup.sh", overwrite=True)

It will: keep two copies apart (the second waits), tell the guest when one is given up. It will not: hold a file in memory,
or fetch files from the guest; the protocol has no such thing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar
from uuid import UUID

from broker.access import Turns
from broker.clock import TICKS_PER_SECOND
from broker.errors import ChannelClosed, HostError

from ...protocol.ids import FILE_COPY
from ...protocol.integration.common import IcMessageType
from ...protocol.integration.file_copy import (
    DATA_SIZE,
    FILE_COPY_INSTANCE,
    FILE_COPY_VERSIONS,
    CopyRequest,
    FileCopyFlags,
    FileCopyHeader,
    FileCopyOperation,
    pack_start,
    pack_write,
)
from .asking import OneAtATime, ask, insist
from .component import Conversation, GuestRefused, IntegrationDevice
from .file_source import Copyable, Source, open_source

CANCEL_LIMIT = 5 * TICKS_PER_SECOND
"""How long a copy that is given up waits until the guest has heard of it."""


class FileCopyDevice(IntegrationDevice):
    """See the module."""

    interface_id: ClassVar[UUID] = FILE_COPY
    well_known_id: ClassVar[UUID] = FILE_COPY_INSTANCE
    message_type: ClassVar[IcMessageType] = IcMessageType.FILE_COPY
    message_versions = FILE_COPY_VERSIONS

    _copies: OneAtATime

    def attached(self, turns: Turns) -> None:
        """See `Device.attached`."""
        super().attached(turns)
        self._copies = OneAtATime(turns, ("integration-copy", self.message_type))

    async def copy(
        self,
        source: Copyable,
        guest_path: str,
        name: str,
        *,
        size: int | None = None,
        overwrite: bool = False,
        create_path: bool = False,
        progress: Callable[[int, int], object] | None = None,
    ) -> None:
        """Copy `source` into the guest's directory `guest_path` as `name`, once there is a guest. Returns when it is there.

        `source`: the path of a file, bytes, or an asynchronous iterable of bytes, whose `size` in bytes has to be given; a
        generator is closed.
        `overwrite`: the guest may have such a file already. `create_path`: it need not have the directory. `progress` is
        called with the bytes that were copied and those there are, after each piece.

        `GuestRefused` with ALREADY_EXISTS, DISK_FULL or FAIL; `HostError` for a file that is missing, unreadable or no
        regular file, and for a source that turns out to be longer or shorter than it was; `ValueError` for names of more
        than 259 UTF-16 code units; `ChannelClosed` when the guest goes.
        """
        flags = FileCopyFlags.OVERWRITE if overwrite else FileCopyFlags(0)
        flags |= FileCopyFlags.CREATE_PATH if create_path else FileCopyFlags(0)
        async with open_source(source, size) as opened:
            start = pack_start(CopyRequest(name, guest_path, flags, opened.size))
            conversation = await self._wait_conversation()
            async with self._copies.taken():
                await self._copy(conversation, opened, start, name, progress)

    async def _copy(
        self,
        conversation: Conversation,
        source: Source,
        start: bytes,
        name: str,
        progress: Callable[[int, int], object] | None,
    ) -> None:
        what = f"the file {name!r}"
        has_begun = False
        try:
            await ask(conversation, what, start)
            has_begun = True
            await _send(conversation, source, what, progress)
            await ask(conversation, what, FileCopyHeader(FileCopyOperation.COMPLETE).pack())
        except ChannelClosed:
            raise
        except GuestRefused:
            if has_begun:
                await self._cancel(conversation)
            raise
        except BaseException:
            await self._cancel(conversation)
            raise

    async def _cancel(self, conversation: Conversation) -> None:
        """The guest need not agree, and may be gone."""

        async def cancel() -> None:
            await conversation.request(FileCopyHeader(FileCopyOperation.CANCEL).pack())

        try:
            await insist(conversation.turns, CANCEL_LIMIT, ("integration-cancel", self.message_type), cancel)
        except ChannelClosed:
            return


async def _send(
    conversation: Conversation, source: Source, what: str, progress: Callable[[int, int], object] | None
) -> None:
    sent, size = 0, source.size
    while sent < size:
        data = await source.read(min(DATA_SIZE, size - sent))
        if not data:
            raise HostError(f"{source.name} has become shorter while it was copied: {sent} bytes instead of {size}")
        await ask(conversation, what, pack_write(sent, data))
        sent += len(data)
        if progress is not None:
            progress(sent, size)
    if await source.read(1):
        raise HostError(f"{source.name} has become longer while it was copied: more than {size} bytes")
