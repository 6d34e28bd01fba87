"""A back end that sends each frame back."""

from __future__ import annotations

from collections.abc import Sequence

from broker.errors import ConfigurationError

from ....protocol.network.frames import Frame
from .backend import NetworkBackend, Station, deliver_all


class Loopback(NetworkBackend):
    """Returns each frame as it is, waiting for room. The guest's packet filter applies: frames to other addresses only come
    back to a promiscuous one."""

    def __init__(self) -> None:
        self._station: Station | None = None

    def plug(self, station: Station) -> None:
        """See `NetworkBackend.plug`."""
        if self._station is not None:
            raise ConfigurationError("a loopback is for one adapter; make another one")
        self._station = station

    async def send(self, frames: Sequence[Frame]) -> None:
        """See `NetworkBackend.send`."""
        station = self._station
        assert station is not None
        if (done := station.deliver(frames)) < len(frames):
            await deliver_all(station, frames[done:], station.turns.wakeup(("network-loopback", 0)))
