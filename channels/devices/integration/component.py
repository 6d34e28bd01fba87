"""What all integration devices share: the negotiation, and one request after the other (vmbus.md 8.2, 8.12).

    class Greeter(IntegrationDevice):
        interface_id = UUID("...")
        well_known_id = UUID("...")
        message_type = IcMessageType.VM_SESSION
        message_versions = (IcVersion(1, 0),)

        async def greet(self) -> bytes:
            status, body = await self.call(b"hello")
            return body

It will: negotiate whenever a guest opens the channel, however long the guest takes for its answer (a guest may wait for a
daemon); send requests in the order in which they were made, each once the one before was answered; keep to that order
also when whoever made a request was cancelled: its answer is waited for and dropped. It will not: limit how long a guest
takes (put a limit around the call), or read what nobody asked for: a guest that says too much waits for room.

A guest may send stale messages: they are counted in `strays` and dropped. One whose messages break a rule loses this
channel; whoever waits for an answer gets `ChannelClosed`.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar
from uuid import UUID

import anyio
import structlog

from broker.access import Turns, Wakeup
from broker.errors import ChannelClosed, ConfigurationError, HostError, ProtocolError

from ...core.server.offer_params import OfferParams
from ...pipe import MessagePipe
from ...protocol.integration.common import (
    FRAMEWORKS,
    NO_VERSION,
    RESPONSE_FLAGS,
    IcMessageType,
    IcStatus,
    IcVersion,
    ic_status,
    pack_negotiate,
    pack_request,
    parse_ic,
    parse_negotiate,
)
from ..device import Device, DeviceChannel

_log = structlog.get_logger("channels")


class GuestRefused(HostError):
    """The guest's answer to a request is a failure."""

    def __init__(self, what: str, status: int) -> None:
        self.status = ic_status(status)
        name = self.status.name if isinstance(self.status, IcStatus) else "unknown"
        super().__init__(f"the guest refused {what}: status {status:#010x} ({name})")
        """What the guest said; an `IcStatus` where the number has a name."""


class IntegrationDevice(Device):
    """See the module. `message_versions`: what the host knows, oldest first."""

    interface_id: ClassVar[UUID]
    well_known_id: ClassVar[UUID]
    """The instance that Hyper-V has."""
    message_type: ClassVar[IcMessageType]
    message_versions: tuple[IcVersion, ...] = ()
    frameworks: tuple[IcVersion, ...] = FRAMEWORKS

    def __init__(
        self,
        *,
        instance_id: UUID | None = None,
        versions: Sequence[IcVersion] | None = None,
        frameworks: Sequence[IcVersion] | None = None,
    ) -> None:
        """`versions`, `frameworks`: those to offer, all unless given. `ConfigurationError` for others than those."""
        kind = type(self)
        if versions is not None:
            self.message_versions = _narrowed(kind.message_versions, versions, "message")
        if frameworks is not None:
            self.frameworks = _narrowed(kind.frameworks, frameworks, "framework")
        self.offer = OfferParams.pipe(kind.interface_id, kind.well_known_id if instance_id is None else instance_id)
        self.version: IcVersion | None = None
        """The message version that was agreed on, None while there is no guest to talk to."""
        self.framework: IcVersion | None = None
        """The framework version, likewise."""
        self.refused = ""
        """Why the guest that has the channel open is not talked to, empty where it is."""
        self.strays = 0
        """Messages that answered nothing."""
        self._turns: Turns | None = None
        self._changed: Wakeup
        self._conversation: Conversation | None = None

    def attached(self, turns: Turns) -> None:
        """See `Device.attached`."""
        self._turns = turns
        self._changed = turns.wakeup(("integration", self.message_type))

    def detached(self) -> None:
        """See `Device.detached`."""
        self._turns = None
        self._changed.notify()

    # for host tasks

    async def wait_ready(self) -> None:
        """Wait until there is a guest to talk to.

        `ChannelClosed` when the guest knows no version that this device knows, `HostError` when nobody serves the device.
        """
        await self._wait_conversation()

    async def call(self, body: bytes) -> tuple[IcStatus | int, bytes]:
        """One request and its answer, in its turn, once there is a guest: status and body.

        `ChannelClosed` when the guest closes or breaks a rule meanwhile, `ValueError` for a body that is too large.
        """
        conversation = await self._wait_conversation()
        return await conversation.request(body)

    async def _wait_conversation(self) -> Conversation:
        while (conversation := self._conversation) is None:
            if self._turns is None:
                raise HostError(f"nobody serves this {type(self).__name__}; use it within the block of serve_devices")
            if self.refused:
                raise ChannelClosed(self.refused)
            await self._changed.wait()
        return conversation

    # for subclasses

    async def serve(self, conversation: Conversation) -> None:
        """What the device does by itself while the guest is there. Calls go on when this returns."""

    # the channel

    async def run(self, channel: DeviceChannel) -> None:
        """Negotiate, then `serve` and answer calls."""
        pipe = MessagePipe(channel)
        agreed = await self._negotiate(pipe)
        if agreed is None:
            await self._refuse(channel)
            return
        self.framework, self.version = agreed
        conversation = Conversation(self, pipe, *agreed)
        self._conversation = conversation
        self._changed.notify()
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._serve, channel.turns.expect(("integration", channel.channel_id)), conversation)
                await conversation.run()
        finally:
            self._conversation = self.framework = self.version = None
            conversation.end(f"the guest no longer has the channel of {type(self).__name__} open")
            self._changed.notify()

    async def _refuse(self, channel: DeviceChannel) -> None:
        """Nothing to talk about, until the guest closes; the next one may know more."""
        known = ", ".join(map(str, self.message_versions))
        self.refused = f"the guest supports no version of {self.message_type.name}; the host has {known}"
        _log.warning("integration_refused", channel_id=channel.channel_id, reason=self.refused)
        self._changed.notify()
        try:
            await channel.turns.wakeup(("integration", channel.channel_id)).wait()  # nobody notifies
        finally:
            self.refused = ""

    async def _serve(self, begin: Callable[[], Awaitable[None]], conversation: Conversation) -> None:
        try:
            await begin()
            await self.serve(conversation)
        finally:
            conversation.turns.leave()

    async def _negotiate(self, pipe: MessagePipe) -> tuple[IcVersion, IcVersion] | None:
        """Framework and message version; None where the guest has none of ours."""
        body = pack_negotiate(self.frameworks, self.message_versions)
        await pipe.send(pack_request(IcMessageType.NEGOTIATE, NO_VERSION, NO_VERSION, body))
        found = None
        while found is None:
            for data in await pipe.receive_batch():
                header, body = parse_ic(data)
                if found is None and header.message_type == IcMessageType.NEGOTIATE:
                    found = header, body
                else:
                    self.strays += 1
        header, body = found
        what = "answer to a negotiation"
        if header.transaction_id != 0:
            raise ProtocolError(what, 16, "transaction ID 0", f"{header.transaction_id}")
        if header.flags & RESPONSE_FLAGS != RESPONSE_FLAGS:
            raise ProtocolError(what, 17, "the flags transaction and response", f"{header.flags:#04x}")
        frameworks, messages = parse_negotiate(body)
        if not frameworks and not messages:
            return None
        if len(frameworks) != 1 or len(messages) != 1:
            raise ProtocolError(what, 20, "one version of each kind", f"{len(frameworks)} and {len(messages)}")
        if frameworks[0] not in self.frameworks or messages[0] not in self.message_versions:
            raise ProtocolError(what, 28, "versions that were offered", f"{frameworks[0]} and {messages[0]}")
        return frameworks[0], messages[0]


class Conversation:
    """One guest that has the channel open, and what was agreed on with it. Any task may make requests."""

    def __init__(self, device: IntegrationDevice, pipe: MessagePipe, framework: IcVersion, version: IcVersion) -> None:
        self.framework = framework
        self.version = version
        """Of the device's own messages."""
        self.turns = pipe.channel.turns
        self._device = device
        self._pipe = pipe
        self._requests: deque[_Request] = deque()
        """Not sent yet, in order; for each there is a task that waits."""
        self._wanted = self.turns.wakeup(("integration-requests", pipe.channel.channel_id))
        self._answered = self.turns.wakeup(("integration-answers", pipe.channel.channel_id))
        self._transaction_id = 0
        self._ended = ""
        """Why there will be no more answers."""

    async def request(self, body: bytes, *, status: int = 0) -> tuple[IcStatus | int, bytes]:
        """One request and its answer, after those that were made before: status and body. Errors as in `call`."""
        self.check()
        message = pack_request(
            self._device.message_type, self.framework, self.version, body, self._next_id(), status=status
        )
        request = _Request(message, self._transaction_id)
        self._requests.append(request)
        self._wanted.notify()
        try:
            while request.answer is None:
                await self._answered.wait()
                if request.answer is None:
                    self.check()
        except BaseException:
            with contextlib.suppress(ValueError):  # it is on its way: its answer will be waited for
                self._requests.remove(request)
            raise
        return request.answer

    async def run(self) -> None:
        """Send requests and take their answers, until this is cancelled. What ends the channel, as it is."""
        try:
            while True:
                while self._requests:
                    await self._exchange(self._requests.popleft())
                await self._wanted.wait()
        except anyio.BrokenResourceError as error:
            self.end(str(error.__cause__))
            raise (error.__cause__ or error) from None
        except ProtocolError as error:
            self.end(str(error))
            raise

    def end(self, reason: str) -> None:
        """The guest is gone: whoever waits gets `ChannelClosed`. The first reason stays."""
        self._ended = self._ended or reason
        self._requests.clear()
        self._answered.notify()

    def check(self) -> None:
        """`ChannelClosed` once the guest is gone."""
        if self._ended:
            raise ChannelClosed(self._ended)

    def _next_id(self) -> int:
        self._transaction_id = (self._transaction_id + 1) & 0xFF
        return self._transaction_id

    async def _exchange(self, request: _Request) -> None:
        most = self._pipe.max_size
        if len(request.message) > most:
            raise ProtocolError("ring", 0, f"room for a message of {len(request.message)} bytes", f"{most}")
        try:
            await self._pipe.send(request.message)
            while request.answer is None:
                self._take(await self._pipe.receive_batch(), request)
        except anyio.get_cancelled_exc_class():
            # The guest closes, and its answer may be in the ring: that to a shutdown is the last thing that it sends.
            channel = self._pipe.channel
            channel.end("the channel is being closed")
            with anyio.CancelScope(shield=True), contextlib.suppress(anyio.BrokenResourceError, ProtocolError):
                await self.turns.expect(("integration", channel.channel_id))()
                self._take(await self._pipe.receive_batch(), request)
            raise

    def _take(self, messages: Sequence[bytes], request: _Request) -> None:
        """Look for the answer among these."""
        wanted = (self._device.message_type, request.transaction_id)
        for data in messages:
            header, body = parse_ic(data)
            is_answer = header.flags & RESPONSE_FLAGS == RESPONSE_FLAGS
            if request.answer is None and is_answer and (header.message_type, header.transaction_id) == wanted:
                request.answer = ic_status(header.status), body
                self._answered.notify()
            else:
                self._device.strays += 1


class _Request:
    """A message on its way, and its answer."""

    __slots__ = ("answer", "message", "transaction_id")

    def __init__(self, message: bytes, transaction_id: int) -> None:
        self.message = message
        self.transaction_id = transaction_id
        self.answer: tuple[IcStatus | int, bytes] | None = None


def _narrowed(known: tuple[IcVersion, ...], wanted: Sequence[IcVersion], kind: str) -> tuple[IcVersion, ...]:
    found = tuple(version for version in known if version in set(wanted))
    if not found or len(found) != len(set(wanted)):
        raise ConfigurationError(f"{kind} versions are {', '.join(map(str, known))}, not {', '.join(map(str, wanted))}")
    return found
