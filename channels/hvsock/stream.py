"""One end of an hvsock connection: a byte pipe with addresses, which closes as a socket does.

Closing says that no more will come and returns; the channel itself goes on in the background until the other end has said
the same, at most 8 s (Linux). Until then the other end may take what is on its way; what it still sends is dropped.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from uuid import UUID

import msgspec
from anyio import TypedAttributeSet, typed_attribute
from anyio.lowlevel import checkpoint

from ..channel import Channel
from ..pipe import BytePipe
from ..protocol.wire import NO_GUID
from .services import port_of_service_id


class HvsockAttribute(TypedAttributeSet):
    """Typed attributes of hvsock streams; listeners have the first three."""

    service_id: UUID = typed_attribute()
    """What was connected to."""
    port: int = typed_attribute()
    """The port that the service ID stands for; only where it does."""
    is_host: bool = typed_attribute()
    """True at the host's end."""
    endpoint_id: UUID = typed_attribute()
    """The connection."""
    silo_id: UUID = typed_attribute()
    """The container that the guest's end is in; zeros for none."""


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """What one end of a connection knows of it. A listener has no endpoint; one for all services has no service either."""

    is_host: bool
    service_id: UUID | None = None
    endpoint_id: UUID | None = None
    silo_id: UUID = NO_GUID

    def attributes(self) -> dict[Any, Callable[[], Any]]:
        """As typed attributes, see `HvsockAttribute`."""
        found: dict[Any, Any] = {HvsockAttribute.is_host: self.is_host}
        if self.service_id is not None:
            found[HvsockAttribute.service_id] = self.service_id
            port = port_of_service_id(self.service_id)
            if port is not None:
                found[HvsockAttribute.port] = port
        if self.endpoint_id is not None:
            found |= {HvsockAttribute.endpoint_id: self.endpoint_id, HvsockAttribute.silo_id: self.silo_id}
        return {attribute: lambda value=value: value for attribute, value in found.items()}  # type: ignore[misc]


class HvsockStream(BytePipe):
    """See the module. Made by `HvsockHost` and `HvsockGuest`, whose blocks wait for what goes on in the background."""

    def __init__(
        self,
        channel: Channel,
        address: Address,
        shut: Callable[[HvsockStream], None],
        close: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`shut` is called when this end closes, and sees to it that `wind_up` is called in a task of its own."""
        super().__init__(channel, close=close)
        self._address = address
        self._shut_here = shut

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """See `HvsockAttribute`; `PipeAttribute` as well."""
        return {**super().extra_attributes, **self._address.attributes()}

    @property
    def is_shut(self) -> bool:
        """This end was closed."""
        return self._is_closed

    async def aclose(self) -> None:
        """As `close`, and let others have their turn."""
        self.close()
        await checkpoint()

    def close(self) -> None:
        """Close this end; idempotent. Whoever waits on it gets `ClosedResourceError`.

        Waits for nobody. A task that still sends ends the connection at once: the other end gets `BrokenResourceError`.
        """
        if not self._is_closed:
            self._shut()
            self._shut_here(self)

    def abort(self) -> None:
        """End the connection at once, and this end of it."""
        if not self._is_closed:
            self.channel.end("hvsock has ended")
            self.close()

    async def wind_up(self) -> None:
        """Say that no more will come, wait for the other end, at most 8 s, and give the channel back."""
        await self._wind_up()
