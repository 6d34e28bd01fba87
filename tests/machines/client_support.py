"""What the tests of the client's machine share: a machine that is checked after every step, and offers to feed it."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

from channels.core.client import ClientMachine
from channels.core.client.channels import OpenRequest
from channels.core.client.contact import ConnectRequest
from channels.core.client.effects import Post
from channels.core.server.effects import ChannelChanged, Complaint, Effect, GpadlChanged
from channels.protocol.connect import InitiateContact, VersionResponse, VersionResponse2, version_field
from channels.protocol.gpadl import GpadlCreated
from channels.protocol.ids import event_connection
from channels.protocol.message import ChannelMessage
from channels.protocol.offer import AllOffersDelivered, OfferChannel
from channels.protocol.open import OpenResult
from channels.protocol.versions import Version

CLIENT = UUID("ceb1cd55-6a3b-41c5-9473-4dd30624c3d8")
SERVICE = UUID("11111111-1111-1111-1111-111111111111")
ENDPOINT = UUID("22222222-2222-2222-2222-222222222222")
FAILED = 0x8000_FFFF


def offer(channel_id: int = 1, **fields: object) -> OfferChannel:
    """An offer as a host makes it."""
    usual = {"channel_id": channel_id, "connection_id": event_connection(channel_id)}
    return OfferChannel(UUID(int=1), UUID(int=channel_id), **(usual | fields))  # type: ignore[arg-type]


class Guest:
    """A machine; each step checks it, keeps what it posts apart from what it tells, and drops what is for the trace."""

    def __init__(self) -> None:
        self.machine = ClientMachine()
        self.connections: list[int] = []
        """Where messages were posted."""

    def step(self, call: Callable[..., list[Effect]], *arguments: object) -> list[ChannelMessage | Effect]:
        """Call, check, and return messages to post and effects in their order."""
        effects = call(*arguments)
        self.machine.check()
        self.connections += [effect.connection_id for effect in effects if isinstance(effect, Post)]
        return [
            effect.message if isinstance(effect, Post) else effect
            for effect in effects
            if not isinstance(effect, (ChannelChanged, GpadlChanged))
        ]

    def hear(self, message: ChannelMessage | bytes) -> list[ChannelMessage | Effect]:
        """The host says this."""
        return self.step(self.machine.receive, message if isinstance(message, bytes) else message.pack())

    def complaint(self, message: ChannelMessage | bytes) -> str:
        """The host says this, of which nothing comes but a complaint; its sentence."""
        (complaint,) = self.hear(message)
        assert isinstance(complaint, Complaint), complaint
        return complaint.reason

    def contact(self, request: ConnectRequest | None = None) -> InitiateContact:
        """Connect; the contact."""
        (contact,) = self.step(self.machine.connect, request or ConnectRequest())
        assert isinstance(contact, InitiateContact)
        return contact

    def gpadl(self, channel_id: int = 1, gpadl_id: int = 7, status: int = 0) -> None:
        """A GPADL, created unless `status` says not."""
        self.step(self.machine.create_gpadl, channel_id, gpadl_id, 1, bytes(16))
        self.hear(GpadlCreated(channel_id, gpadl_id, status))

    def open(self, channel_id: int = 1, request: OpenRequest | None = None) -> ChannelMessage | Effect:
        """An open that succeeds; its message."""
        (message,) = self.step(self.machine.open, channel_id, request or OpenRequest(7, 2))
        self.hear(OpenResult(channel_id, channel_id, 0))
        return message


def connected(version: Version = Version.COPPER, features: int = 0x2F, *offers: OfferChannel) -> Guest:
    """A guest with a connection of this version, and these offers (channel 1 where none is given)."""
    guest = Guest()
    guest.contact(ConnectRequest((version,)))
    value = version_field(version, 4)
    response = VersionResponse(1, 0, value) if version < Version.COPPER else VersionResponse2(1, 0, value, features)
    guest.hear(response)
    for one in offers or (offer(),):
        guest.hear(one)
    guest.hear(AllOffersDelivered())
    return guest
