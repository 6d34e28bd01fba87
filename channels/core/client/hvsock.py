"""The client's connections to listeners on the host that wait for their offer: a part of `ClientMachine`.

It will: match each request with one offer, by service, endpoint and kind. It will not: end a request that the host does
not answer (a refusal is told from 4.1 on), or look at connections that the host asks for.
"""

from __future__ import annotations

from uuid import UUID

from broker.errors import HostError

from ...protocol.hvsock import TlConnectRequest, TlConnectRequest2, TlConnectResult
from ...protocol.message import STATUS_SUCCESS
from ...protocol.offer import HVSOCK_AREA, OfferChannel, OfferFlags
from ...protocol.versions import Version
from .effects import HvsockEnded
from .outbox import Outbox


class HvsockRequests:
    """See the module."""

    def __init__(self, outbox: Outbox) -> None:
        self.waiting: set[tuple[UUID, UUID]] = set()
        """(service, endpoint)."""
        self._out = outbox

    def connect(self, service_id: UUID, endpoint_id: UUID, silo_id: UUID, version: Version) -> None:
        """See `ClientMachine.connect_hvsock`."""
        if version < Version.WIN10:
            self._out.say(HvsockEnded(service_id, endpoint_id, None))
            return
        if (service_id, endpoint_id) in self.waiting:
            raise HostError(f"endpoint {endpoint_id} is being connected to service {service_id} already")
        if version < Version.WIN10_RS5:
            self._out.send(TlConnectRequest(endpoint_id, service_id))
        else:
            self._out.send(TlConnectRequest2(endpoint_id, service_id, silo_id))
        self.waiting.add((service_id, endpoint_id))

    def takes(self, offer: OfferChannel) -> bool:
        """True when this offer is what a request waits for, which thereby ends."""
        request = (offer.interface_id, offer.instance_id)
        if request not in self.waiting or not _answers_guest(offer):
            return False
        self.waiting.discard(request)
        self._out.say(HvsockEnded(*request, offer))
        return True

    def failed(self, message: TlConnectResult) -> None:
        """The host refuses."""
        request = (message.service_id, message.endpoint_id)
        if message.status == STATUS_SUCCESS or request not in self.waiting:
            reason = f"nobody waits for result {message.status:#x} of service {request[0]}, endpoint {request[1]}"
            self._out.complain("host_message_unexpected", reason, message.TYPE.name)
            return
        self.waiting.discard(request)
        self._out.say(HvsockEnded(*request, None))


def _answers_guest(offer: OfferChannel) -> bool:
    """The offer is the host's end of a connection that a guest asked for, not one to a listener in the guest."""
    guest_accepts = HVSOCK_AREA.unpack_from(offer.user_defined)[1]
    return bool(offer.flags & OfferFlags.TLNPI_PROVIDER) and not guest_accepts
