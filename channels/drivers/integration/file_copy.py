"""File copy, guest side: files that the host sends come to lie under one directory, whole or not at all.

It will: write in order, check each offset and the size at the end, remove what does not become whole. It will not: write
outside its directory (`guest_files`), use threads, or keep more than one file on its way: a start gives up the one before.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar
from uuid import UUID

from broker.errors import ProtocolError

from ...client import GuestChannel
from ...protocol.ids import FILE_COPY
from ...protocol.integration.common import FRAMEWORK_3, IcMessageType, IcStatus, IcVersion
from ...protocol.integration.file_copy import (
    FILE_COPY_VERSIONS,
    FileCopyFlags,
    FileCopyHeader,
    FileCopyOperation,
    parse_start,
    parse_write,
)
from .component import IntegrationDriver, Request
from .guest_files import IncomingFile, split_guest_path

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class FileCopyDriver(IntegrationDriver):
    """See the module. Version 1.1 and framework 3.0 as Linux.

    ALREADY_EXISTS without leave to overwrite, DISK_FULL, FAIL where the directory is not there or not allowed, for a
    piece or an end without a start, and an end that comes too early; INVALID_ARGUMENT for what breaks a rule.
    """

    interface_id: UUID = FILE_COPY
    message_type: ClassVar[IcMessageType] = IcMessageType.FILE_COPY
    framework_versions = (FRAMEWORK_3,)
    message_versions = FILE_COPY_VERSIONS
    buffer_size = 8192
    answers_unknown = False

    def __init__(
        self,
        directory: Path,
        allowed_paths: Iterable[str] = ("/",),
        *,
        instance_id: UUID | None = None,
        framework_versions: Sequence[IcVersion] | None = None,
        message_versions: Sequence[IcVersion] | None = None,
    ) -> None:
        """`directory`: what the host takes for the guest's root. `allowed_paths`: where below it the host may write;
        `ValueError` for one path instead of several, whose letters would be paths: "/" among them."""
        if isinstance(allowed_paths, str):
            raise ValueError(f"allowed_paths are several paths, not one: [{allowed_paths!r}]")
        super().__init__(
            instance_id=instance_id, framework_versions=framework_versions, message_versions=message_versions
        )
        self.directory = directory
        self.copied = 0
        """Files that have arrived."""
        self._allowed = tuple(split_guest_path(path) for path in allowed_paths)
        self._incoming: IncomingFile | None = None

    async def run(self, channel: GuestChannel) -> None:
        """See `IntegrationDriver`."""
        try:
            await super().run(channel)
        finally:
            self._discard()

    async def answer(self, request: Request) -> tuple[int, bytes]:
        """One step of a copy. It is given up by any that fails."""
        try:
            status = self._step(request.body)
        except FileExistsError:
            status = IcStatus.ALREADY_EXISTS
        except OSError as error:
            status = IcStatus.DISK_FULL if error.errno in _FULL else IcStatus.FAIL
        except (ProtocolError, ValueError):
            status = IcStatus.INVALID_ARGUMENT
        if status != IcStatus.SUCCESS:
            self._discard()
        return status, request.body

    def _step(self, body: bytes) -> IcStatus:
        operation = FileCopyHeader.unpack(body).operation
        if operation == FileCopyOperation.WRITE:
            return self._write(body)
        if operation == FileCopyOperation.START:
            return self._start(body)
        if operation == FileCopyOperation.COMPLETE:
            return self._complete()
        if operation == FileCopyOperation.CANCEL:
            self._discard()
            return IcStatus.SUCCESS
        return IcStatus.INVALID_ARGUMENT

    def _start(self, body: bytes) -> IcStatus:
        self._discard()
        asked = parse_start(body)
        steps = split_guest_path(asked.path)
        if not any(steps[: len(allowed)] == allowed for allowed in self._allowed):
            return IcStatus.FAIL
        self._incoming = IncomingFile(
            self.directory,
            steps,
            asked.name,
            asked.size,
            overwrite=bool(asked.flags & FileCopyFlags.OVERWRITE),
            create_path=bool(asked.flags & FileCopyFlags.CREATE_PATH),
        )
        return IcStatus.SUCCESS

    def _write(self, body: bytes) -> IcStatus:
        incoming = self._incoming
        if incoming is None:
            return IcStatus.FAIL
        offset, data = parse_write(body)
        if offset != incoming.written or offset + len(data) > incoming.size:
            return IcStatus.INVALID_ARGUMENT
        incoming.write(data)
        return IcStatus.SUCCESS

    def _complete(self) -> IcStatus:
        incoming = self._incoming
        if incoming is None or incoming.written != incoming.size:
            return IcStatus.FAIL
        self._incoming = None
        incoming.finish()
        self.copied += 1
        return IcStatus.SUCCESS

    def _discard(self) -> None:
        incoming, self._incoming = self._incoming, None
        if incoming is not None:
            incoming.discard()
