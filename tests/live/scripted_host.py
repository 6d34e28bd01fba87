"""`ScriptedHost`: the host end of VMBus as a test writes it down, message by message.

Ports at connections 1 and 4, a guest message port towards SINT 2, and helpers for the usual answers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar
from uuid import UUID

import anyio

from broker import MessageInbox, Partition, PartitionConfig, SynicPortAccess, Vtl, receive_messages
from channels.client import VmbusClient
from channels.protocol.connect import InitiateContact, UnloadComplete, VersionResponse, VersionResponse2, version_field
from channels.protocol.gpadl import GpadlBody, GpadlCreated, GpadlHeader, GpadlTeardown, GpadlTorndown
from channels.protocol.ids import event_connection
from channels.protocol.message import ChannelMessage, MessageType
from channels.protocol.offer import AllOffersDelivered, OfferChannel
from channels.protocol.open import OpenChannel, OpenResult
from channels.protocol.parse import Agreed, Sender, parse_message
from channels.protocol.versions import FeatureFlags, Version

M = TypeVar("M", bound=ChannelMessage)

INTERFACE = UUID("99999999-0000-0000-0000-000000000001")
INSTANCE = UUID("aaaaaaaa-2222-3333-4444-555555555555")


def offer(channel_id: int = 1, **fields: object) -> OfferChannel:
    """An offer as a host makes it."""
    usual = {"channel_id": channel_id, "connection_id": event_connection(channel_id)}
    return OfferChannel(INTERFACE, INSTANCE, **(usual | fields))  # type: ignore[arg-type]


def accepts(contact: InitiateContact, features: FeatureFlags | None = None, connection_id: int = 4) -> VersionResponse:
    """The answer to a contact whose version is supported."""
    version = Version(contact.version_requested)
    value = version_field(version, connection_id)
    if version < Version.COPPER:
        return VersionResponse(1, 0, value)
    return VersionResponse2(1, 0, value, int(contact.feature_flags if features is None else features))


class ScriptedHost:
    """See the module."""

    def __init__(self, partition: Partition, access: SynicPortAccess) -> None:
        self.partition = partition
        self.access = access
        self.agreed = Agreed()
        self.heard: list[tuple[int, ChannelMessage]] = []
        """(connection, message), in order."""
        self._inboxes: dict[int, MessageInbox] = {}
        self._waiting: list[tuple[int, bytes]] = []

    @asynccontextmanager
    async def listening(self, *connections: int, vp: int = 0) -> AsyncIterator[ScriptedHost]:
        """Ports at these connections, 1 and 4 unless given."""
        async with AsyncExitStack() as stack:
            for connection_id in connections or (1, 4):
                inbox = await stack.enter_async_context(receive_messages(self.access, connection_id))
                self._inboxes[connection_id] = inbox
            self.port = await self.access.new_guest_message_port(Vtl.VTL0, vp, 2)
            yield self

    async def say(self, *messages: ChannelMessage) -> None:
        """Post these to the guest."""
        for message in messages:
            await self.port.post_message(1, message.pack())

    async def hear(self, kind: type[M]) -> M:
        """The guest's next message, which is of this kind."""
        message = await self.next_message()
        assert isinstance(message, kind), message
        return message

    async def next_message(self) -> ChannelMessage:
        """The guest's next message."""
        while True:
            for connection_id, inbox in self._inboxes.items():
                if len(inbox):
                    payload = (await inbox.receive()).payload
                    message = parse_message(payload, Sender.GUEST, self.agreed)
                    self.heard.append((connection_id, message))
                    if isinstance(message, InitiateContact):
                        self.agreed = Agreed(Version(message.version_requested), message.feature_flags)
                        if message.version_requested < Version.COPPER:
                            self.agreed = Agreed(Version(message.version_requested))
                    return message
            await self.partition.sleep(100)

    async def connect(self, *offers: OfferChannel) -> InitiateContact:
        """Take the guest's first contact as it comes, and offer these."""
        contact = await self.hear(InitiateContact)
        await self.say(accepts(contact))
        assert (await self.next_message()).TYPE is MessageType.REQUEST_OFFERS
        await self.say(*offers, AllOffersDelivered())
        return contact

    async def take_gpadl(self, status: int = 0) -> tuple[GpadlHeader, bytes]:
        """A whole GPADL: its header and its range buffer."""
        header = await self.hear(GpadlHeader)
        data = header.data
        while len(data) < header.range_buffer_length:
            body = await self.hear(GpadlBody)
            assert body.gpadl_id == header.gpadl_id
            data += body.data
        await self.say(GpadlCreated(header.channel_id, header.gpadl_id, status))
        return header, data

    async def open(self, status: int = 0) -> OpenChannel:
        """A ring's GPADL and the open over it."""
        await self.take_gpadl()
        request = await self.hear(OpenChannel)
        await self.say(OpenResult(request.channel_id, request.open_id, status))
        return request

    async def answer_everything(self) -> None:
        """Say yes to GPADLs, opens and teardowns, in their order, until the guest unloads."""
        while True:
            message = await self.next_message()
            if isinstance(message, GpadlHeader):
                await self.say(GpadlCreated(message.channel_id, message.gpadl_id, 0))
            elif isinstance(message, OpenChannel):
                await self.say(OpenResult(message.channel_id, message.open_id, 0))
            elif isinstance(message, GpadlTeardown):
                await self.say(GpadlTorndown(message.gpadl_id))
            elif message.TYPE is MessageType.UNLOAD:
                await self.say(UnloadComplete())
                return

    async def tear_down(self) -> GpadlTeardown:
        """A teardown."""
        teardown = await self.hear(GpadlTeardown)
        await self.say(GpadlTorndown(teardown.gpadl_id))
        return teardown

    async def unload(self) -> None:
        """The end."""
        assert (await self.next_message()).TYPE is MessageType.UNLOAD
        await self.say(UnloadComplete())


@asynccontextmanager
async def scripted(
    partition: Partition, script: object, access: SynicPortAccess | None = None, connections: tuple[int, ...] = ()
) -> AsyncIterator[ScriptedHost]:
    """A host that follows `await script(host)` while the block runs; the block's end waits for the script's."""
    host = ScriptedHost(partition, access or partition.synic())
    async with host.listening(*connections), anyio.create_task_group() as group:
        group.start_soon(script, host)  # type: ignore[arg-type]
        yield host


def config(**settings: object) -> PartitionConfig:
    return PartitionConfig(**({"virtual_time": True} | settings))  # type: ignore[arg-type]


Script = Callable[[ScriptedHost], Awaitable[None]]


@asynccontextmanager
async def client_of(script: Script, **settings: object) -> AsyncIterator[VmbusClient]:
    """A client, connected to a host that follows this script, in a partition of their own."""
    async with (
        Partition(config()) as partition,
        scripted(partition, script),
        VmbusClient(partition.vp(0).guest_synic(), **settings) as client,  # type: ignore[arg-type]
    ):
        yield client
