"""`VirtualSwitch`: a learning switch that joins adapters, of one partition or of several in this program.

    switch = VirtualSwitch()
    NetworkAdapter(instance_a, switch.port("a")), NetworkAdapter(instance_b, switch.port("b"))

It will: learn which port an address is behind, send frames to known addresses there alone and all others to every other
port, and wait where a port's queue is full, so that nothing is lost (`lossless`), or drop and count. It will not: look at
VLANs, break loops, or deliver a frame to the port that it came from.

A lossless switch has the one weakness of all such networks: a guest that does not take its frames in the end stops those
that send to it. Its own frames still go out, so two guests that flood each other cannot stop each other for ever.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from broker.access import Turns, Wakeup
from broker.errors import ConfigurationError

from ....protocol.network.frames import Frame
from .backend import NetworkBackend, Station, deliver_all

MAX_ADDRESSES = 1024
"""Addresses that a switch knows, unless told; the one learned first goes when there are more."""


class PortStatistics(msgspec.Struct, frozen=True):
    """Frames since the port was made."""

    received: int
    """From its adapter."""
    sent: int
    """Handed to its adapter."""
    flooded: int
    """From its adapter, to every other port."""
    dropped: int
    """For its adapter, whose queue was full."""


class VirtualSwitch:
    """See the module. `max_addresses`: how many are remembered. `ConfigurationError` for less than one."""

    def __init__(self, *, lossless: bool = True, max_addresses: int = MAX_ADDRESSES) -> None:
        if max_addresses < 1:
            raise ConfigurationError(f"a switch remembers at least 1 address, not {max_addresses}")
        self.lossless = lossless
        self._max_addresses = max_addresses
        self._ports: list[SwitchPort] = []
        self._learned: dict[bytes, SwitchPort] = {}

    def port(self, name: str = "") -> SwitchPort:
        """A new port, to plug one adapter into."""
        port = SwitchPort(self, name or f"port {len(self._ports)}")
        self._ports.append(port)
        return port

    @property
    def ports(self) -> tuple[SwitchPort, ...]:
        """All ports, oldest first."""
        return tuple(self._ports)

    @property
    def addresses(self) -> dict[bytes, str]:
        """The name of the port that each known address is behind."""
        return {address: port.name for address, port in self._learned.items()}

    def learn(self, address: bytes, port: SwitchPort) -> None:
        """Frames to this address go to that port from now on. Group addresses are nobody's."""
        learned = self._learned
        if learned.get(address) is port or address[0] & 1:
            return
        learned.pop(address, None)
        if len(learned) >= self._max_addresses:
            del learned[next(iter(learned))]
        learned[address] = port

    def route(self, address: bytes, origin: SwitchPort) -> tuple[SwitchPort, ...]:
        """Where a frame to this address goes that came from `origin`."""
        port = self._learned.get(address)
        if port is None:
            return tuple(other for other in self._ports if other is not origin)
        return () if port is origin else (port,)


class SwitchPort(NetworkBackend):
    """One port of a switch; made by `VirtualSwitch.port`."""

    def __init__(self, switch: VirtualSwitch, name: str) -> None:
        self.name = name
        self._switch = switch
        self._station: Station | None = None
        self._waiting_place: tuple[Turns, Wakeup] | None = None
        self._received = self._sent = self._flooded = self._dropped = 0

    def statistics(self) -> PortStatistics:
        """What has happened here so far."""
        return PortStatistics(self._received, self._sent, self._flooded, self._dropped)

    def plug(self, station: Station) -> None:
        """See `NetworkBackend.plug`."""
        if self._station is not None:
            raise ConfigurationError(f"{self.name} of the switch has an adapter already; make another port")
        self._station = station

    async def send(self, frames: Sequence[Frame]) -> None:
        """See `NetworkBackend.send`: run by run of frames with one destination and source."""
        self._received += len(frames)
        start, count = 0, len(frames)
        while start < count:
            addresses = frames[start].data[:12]
            end = start + 1
            while end < count and frames[end].data[:12] == addresses:
                end += 1
            run = frames[start:end] if end - start < count else frames
            self._switch.learn(addresses[6:], self)
            ports = self._switch.route(addresses[:6], self)
            if len(ports) > 1:
                self._flooded += end - start
            for port in ports:
                await port.hand_over(run, self)
            start = end

    def waiting_place(self) -> Wakeup:
        """Where this port's adapter waits for room at others: one for all its waits, so that those it gave up leave
        nothing there."""
        assert self._station is not None
        turns = self._station.turns
        if self._waiting_place is None or self._waiting_place[0] is not turns:
            self._waiting_place = turns, turns.wakeup(("network-port", 0))
        return self._waiting_place[1]

    async def hand_over(self, frames: Sequence[Frame], origin: SwitchPort) -> None:
        """Frames for this port's adapter, from the adapter of another port, in whose turns this waits."""
        station = self._station
        if station is None:
            return
        done = station.deliver(frames)
        if done < len(frames) and self._switch.lossless:
            await deliver_all(station, frames[done:], origin.waiting_place())
            done = len(frames)
        self._sent += done
        if done < len(frames):
            self._dropped += len(frames) - done
            station.drop(frames[done:])
