"""What all integration drivers share: they answer the host's requests as Linux does (vmbus.md 8.2, 8.12).

It will: negotiate as often as the host likes, in its own order of preference; check each request before `answer` sees it;
answer in place, so that what the host has put behind a message comes back as it was. It will not: take more than
`buffer_size` bytes (where Linux falls out of step with its ring), or wait for anything of its own accord.

A host that breaks a rule ends the driver with `ProtocolError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple
from uuid import UUID

import msgspec

from broker.access import Turns, Wakeup
from broker.errors import HostError, ProtocolError

from ...client import GuestChannel
from ...pipe import MessagePipe
from ...protocol.integration.common import (
    FRAMEWORK_1,
    FRAMEWORK_3,
    HEADER_SIZE,
    NEGOTIATED_SIZE,
    RESPONSE_FLAGS,
    IcHeader,
    IcMessageType,
    IcStatus,
    IcVersion,
    pack_negotiate,
    parse_ic,
    parse_negotiate,
)
from ...protocol.packet import DESCRIPTOR_SIZE, PIPE_HEADER_SIZE
from ..framework import Driver


class Request(NamedTuple):
    """One request of the host."""

    header: IcHeader
    version: IcVersion
    """The message version that was agreed on."""
    body: bytes


class IntegrationDriver(Driver):
    """See the module."""

    message_type: ClassVar[IcMessageType]
    framework_versions: tuple[IcVersion, ...] = (FRAMEWORK_3, FRAMEWORK_1)
    """In the order of preference."""
    message_versions: tuple[IcVersion, ...] = ()
    """In the order of preference."""
    buffer_size: int = 4096
    """Bytes of a ring packet that this driver takes, its descriptor included."""
    answers_unknown: bool = True
    """Messages of other types are answered with FAIL, else not at all."""

    def __init__(
        self,
        *,
        instance_id: UUID | None = None,
        framework_versions: Sequence[IcVersion] | None = None,
        message_versions: Sequence[IcVersion] | None = None,
    ) -> None:
        """Versions in the order of preference; all unless given."""
        self.instance_id = instance_id
        if framework_versions is not None:
            self.framework_versions = tuple(framework_versions)
        if message_versions is not None:
            self.message_versions = tuple(message_versions)
        self.version: IcVersion | None = None
        """The message version that was agreed on, None before."""
        self.framework: IcVersion | None = None
        """The framework version, likewise."""
        self.ignored = 0
        """Messages that got no answer."""
        self._turns: Turns | None = None
        self._changed: Wakeup

    def attached(self, turns: Turns) -> None:
        """See `Driver.attached`."""
        self._turns = turns
        self._changed = turns.wakeup(("integration-driver", self.message_type))

    @property
    def turns(self) -> Turns:
        """Where tasks wait that use this driver. `HostError` before it runs."""
        if self._turns is None:
            raise HostError(f"{type(self).__name__} does not run yet; use it within the block of run_drivers")
        return self._turns

    async def answer(self, request: Request) -> tuple[int, bytes] | None:
        """Status and body of the answer; None to give none, as Linux does where a body is too short."""
        raise NotImplementedError

    async def answered(self, request: Request, status: int) -> None:
        """After the answer with this status was sent: what must not happen before."""

    async def run(self, channel: GuestChannel) -> None:
        """Answer requests."""
        pipe = MessagePipe(channel)
        most = self.buffer_size - DESCRIPTOR_SIZE - PIPE_HEADER_SIZE
        try:
            while True:
                data = await pipe.receive()
                if len(data) > most:
                    raise ProtocolError("integration message", 0, f"at most {most} bytes", f"{len(data)}")
                await self._take(pipe, data)
        finally:
            self.version = self.framework = None
            self._changed.notify()

    async def _take(self, pipe: MessagePipe, data: bytes) -> None:
        header, body = parse_ic(data)
        if header.message_type == IcMessageType.NEGOTIATE:
            choice = self._negotiate(body)
            size = NEGOTIATED_SIZE if self.version is not None else header.size
            await pipe.send(_in_place(data, header, size, IcStatus.SUCCESS, choice))
            self._changed.notify()
        elif header.message_type != self.message_type:
            self.ignored += not self.answers_unknown
            if self.answers_unknown:
                await pipe.send(_in_place(data, header, header.size, IcStatus.FAIL, body))
        elif self.version is None:
            raise ProtocolError("integration message", 4, "a negotiation first", f"type {header.message_type}")
        else:
            request = Request(header, self.version, body)
            answered = await self.answer(request)
            if answered is None:
                self.ignored += 1
                return
            status, answer = answered
            await pipe.send(_in_place(data, header, len(answer), status, answer))
            await self.answered(request, status)

    def _negotiate(self, body: bytes) -> bytes:
        """Choose. Where nothing fits, both counts are 0 and the versions stay what they are."""
        try:
            frameworks, messages = parse_negotiate(body)
        except ProtocolError:
            frameworks = messages = ()
        framework = next((version for version in self.framework_versions if version in frameworks), None)
        message = next((version for version in self.message_versions if version in messages), None)
        if framework is None or message is None:
            self.framework = self.version = None
            return pack_negotiate((), ())
        self.framework, self.version = framework, message
        return pack_negotiate((framework,), (message,))


def _in_place(data: bytes, header: IcHeader, size: int, status: int, body: bytes) -> bytes:
    """The message `data` as its own answer: this status, this body over the one that is there, all else as it was."""
    changed = msgspec.structs.replace(header, size=size, status=status, flags=int(RESPONSE_FLAGS))
    return changed.pack() + body + data[HEADER_SIZE + len(body) :]
