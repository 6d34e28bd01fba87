"""The devices behind a server: asks them what the machine wants of them, and keeps the event ports of their channels."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from broker.access import SynicPortAccess, Turns
from broker.errors import HostError, PartitionClosed

from ..bus import ChannelRequests
from ..core.server import ServerConfig
from ..core.server import effects as do
from ..doorbell import Doorbell
from ..protocol.gparange import parse_gpa_ranges
from ..protocol.message import STATUS_UNSUCCESSFUL
from .offer import Runs
from .ports import ServerPorts

_log = structlog.get_logger("channels")


class ServerDevices:
    """See the module. Devices are named by their offers."""

    def __init__(self, access: SynicPortAccess, config: ServerConfig, turns: Turns, server: Runs) -> None:
        self.ports = ServerPorts(access, config)
        self._turns = turns
        self._server = server
        self._requests: dict[int, ChannelRequests] = {}
        self._failed: set[int] = set()
        """Offers whose ports could not be made: their open fails next."""

    def add(self, offer_id: int, requests: ChannelRequests) -> None:
        """A device has offered."""
        self._requests[offer_id] = requests

    def close(self) -> None:
        """The server has ended."""
        self.ports.close("the VMBus server has ended")
        requests, self._requests = self._requests, {}
        for request in requests.values():
            request.removed()

    async def execute(self, effect: do.Effect) -> bool:
        """Do what concerns a device; False for any other effect."""
        match effect:
            case do.CreatePorts():
                await self._create_ports(effect)
            case do.DestroyPorts(offer_id):
                self._failed.discard(offer_id)
                self.ports.destroy(offer_id, "the channel was closed")
            case do.OpenDevice() | do.ResumeDevice():
                self._open(effect)
            case do.DropOpen(offer_id):
                self._ask(offer_id, lambda requests: requests.drop_open())
            case do.CloseDevice(offer_id):
                self._ask(offer_id, lambda requests: requests.close_channel())
            case do.ModifyDevice(offer_id, target_vp):
                ports = self.ports.of(offer_id)
                if ports is not None:
                    await ports.set_target_vp(target_vp)
                self._ask(offer_id, lambda requests: requests.modify_channel(target_vp))
            case do.CreateGpadl(offer_id, gpadl_id, range_count, buffer):
                ranges, _ = parse_gpa_ranges(buffer, range_count)
                self._ask(offer_id, lambda requests: requests.create_gpadl(gpadl_id, ranges))
            case do.ResumeGpadl(offer_id, gpadl_id, range_count, buffer):
                ranges, _ = parse_gpa_ranges(buffer, range_count)
                self._ask(offer_id, lambda requests: requests.resume_gpadl(gpadl_id, ranges))
            case do.TeardownGpadl(offer_id, gpadl_id):
                self._ask(offer_id, lambda requests: requests.teardown_gpadl(gpadl_id))
            case do.RemoveOffer(offer_id):
                self._ask(offer_id, lambda requests: requests.removed())
                self._requests.pop(offer_id, None)
            case _:
                return False
        return True

    def _ask(self, offer_id: int, ask: Callable[[ChannelRequests], None]) -> None:
        requests = self._requests.get(offer_id)
        if requests is not None:
            ask(requests)

    async def _create_ports(self, effect: do.CreatePorts) -> None:
        doorbell = Doorbell(self._turns.wakeup(("channel", effect.channel_id)))
        try:
            await self.ports.create(effect.offer_id, effect.channel_id, effect.params, doorbell)
        except (HostError, ValueError) as error:
            if isinstance(error, PartitionClosed):
                raise
            self._failed.add(effect.offer_id)
            _log.info("channel_not_opened", channel_id=effect.channel_id, reason=str(error))

    def _open(self, effect: do.OpenDevice | do.ResumeDevice) -> None:
        offer_id, server = effect.offer_id, self._server
        requests, ports = self._requests.get(offer_id), self.ports.of(offer_id)
        if offer_id in self._failed:
            self._failed.discard(offer_id)
            if isinstance(effect, do.ResumeDevice):
                server.run(server.machine.revoke(offer_id))  # its signals cannot be had back: the guest has to know
            else:
                server.run(server.machine.open_ended(offer_id, STATUS_UNSUCCESSFUL)[1])
        elif requests is not None and ports is not None:
            begin = requests.resume_channel if isinstance(effect, do.ResumeDevice) else requests.open_channel
            begin(ports.channel_id, effect.params, ports.interrupt, ports.doorbell)
