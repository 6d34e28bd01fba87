"""`NetworkAdapter`: the synthetic network adapter, netvsp (vmbus.md 8.10; Linux `hv_netvsc` drives it).

    switch = VirtualSwitch()
    adapter = NetworkAdapter(uuid4(), switch.port())
    async with serve_devices(server, adapter):
        ...

It will: speak NVSP 1 to 6.1 with RNDIS inside, queue frames while the guest has no room for them and drop what is beyond the
queue, spread flows over sub-channels, and pass per-packet information (checksums, VLAN, large sends) as it is, both
ways. It will not: compute checksums, segment large frames, or go on after a restore: a guest has to open the channel anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from uuid import UUID

from broker.access import Turns, Wakeup
from broker.errors import ConfigurationError, HostError, ProtocolError

from ...core.server.offer_params import OfferParams
from ...protocol.ids import NETWORK
from ...protocol.network.frames import ADDRESS_SIZE, Frame
from ...protocol.network.nvsp import NvspVersion
from ...protocol.network.oids import Oid
from ..device import Device, DeviceChannel
from .backends.backend import NetworkBackend
from .lane import Lane
from .session import Session
from .statistics import AdapterStatistics, Counters

QUEUE_SIZE = 4096
"""Frames that wait for the guest on each channel, unless told."""
LINK_SPEED = 10_000_000_000
"""Bits per second, unless told."""
MAX_SUBCHANNELS = 63


class NetworkAdapter(Device):
    """See the module; a `Station` to its back end.

    `address`: its MAC, one made of the instance ID unless given (00-15-5d, as Hyper-V's). `max_subchannels`: how many a guest
    may ask for, up to 63. `queue_size`: frames that wait for the guest on each of its channels; beyond them the back end
    waits or drops. `versions`: those of NVSP that it agrees to. `vf_serial`: tell the guest of a virtual function with
    this number. `ConfigurationError` for values out of range.
    """

    __slots__ = (
        "_session",
        "_turns",
        "_waiting",
        "address",
        "backend",
        "counters",
        "link_speed",
        "link_up",
        "max_subchannels",
        "offer",
        "queue_size",
        "uses_vf",
        "versions",
        "vf_serial",
    )

    def __init__(
        self,
        instance_id: UUID,
        backend: NetworkBackend,
        *,
        address: bytes | None = None,
        max_subchannels: int = 0,
        queue_size: int = QUEUE_SIZE,
        link_speed: int = LINK_SPEED,
        link_up: bool = True,
        versions: Iterable[NvspVersion] = NvspVersion,
        vf_serial: int | None = None,
    ) -> None:
        self.address = b"\x00\x15\x5d" + instance_id.bytes[-3:] if address is None else address
        """6 bytes."""
        if len(self.address) != ADDRESS_SIZE or self.address[0] & 1:
            raise ConfigurationError(f"an adapter's address is 6 bytes and no group's, not {self.address.hex('-')}")
        if not 0 <= max_subchannels <= MAX_SUBCHANNELS:
            raise ConfigurationError(f"an adapter has 0 to {MAX_SUBCHANNELS} sub-channels, not {max_subchannels}")
        if queue_size < 1 or link_speed < 0:
            raise ConfigurationError(
                f"a queue holds 1 frame or more and a link has a speed, not {queue_size} and {link_speed}"
            )
        self.offer = OfferParams.device(NETWORK, instance_id)
        self.backend = backend
        self.max_subchannels = max_subchannels
        self.queue_size = queue_size
        self.link_speed = link_speed
        """Bits per second."""
        self.link_up = link_up
        """Look only, see `set_link`."""
        self.versions = frozenset(versions)
        self.vf_serial = vf_serial
        self.uses_vf = False
        """The guest has switched its frames to the virtual function."""
        self.counters = Counters()
        self._session: Session | None = None
        self._turns: Turns | None = None
        self._waiting: dict[Wakeup, None] = {}
        """To be notified when there is room."""
        backend.plug(self)

    # for the host

    def set_link(self, up: bool) -> None:
        """Plug the cable in, or pull it: the guest is told, and frames either way are dropped while it is out."""
        self.link_up = up
        if self._session is not None:
            if not up:
                self._session.drop_frames()
            self._session.wake()

    def statistics(self) -> AdapterStatistics:
        """What has happened so far."""
        return self.counters.freeze()

    # for the back end

    @property
    def turns(self) -> Turns:
        """See `Station.turns`."""
        if self._turns is None:
            raise HostError("no guest has opened this adapter yet, so it has no partition's turns")
        return self._turns

    def deliver(self, frames: Sequence[Frame]) -> int:
        """See `Station.deliver`."""
        session = self._session
        if session is None or not self.link_up or not session.rndis.filter:
            self.counters.filtered += len(frames)
            return len(frames)
        return session.deliver(frames)

    def drop(self, frames: Sequence[Frame]) -> None:
        """See `Station.drop`."""
        self.counters.dropped_full += len(frames)

    def when_room(self, wakeup: Wakeup) -> None:
        """See `Station.when_room`."""
        self._waiting[wakeup] = None

    # for the guest

    async def run(self, channel: DeviceChannel) -> None:
        """Serve the primary channel, or a sub-channel."""
        if channel.subchannel_index:
            session = self._session
            if session is None:
                raise ProtocolError("sub-channel", 0, "an open primary channel", "none")
            await Lane(session, channel).run()
            return
        self._turns = channel.turns
        self._session = session = Session(self, channel)
        try:
            await Lane(session, channel).run()
        finally:
            self._session = None
            self.uses_vf = False

    def tell_room(self) -> None:
        """Frames have left a queue."""
        waiting, self._waiting = self._waiting, {}
        for wakeup in waiting:
            wakeup.notify()

    def counted(self, oid: Oid) -> int:
        """The counter that the guest asks for."""
        counters = self.counters
        return {
            Oid.TRANSMIT_OK: counters.from_guest,
            Oid.RECEIVE_OK: counters.to_guest,
            Oid.TRANSMIT_ERROR: counters.invalid + counters.dropped_busy,
            Oid.RECEIVE_ERROR: counters.dropped_size,
            Oid.RECEIVE_NO_BUFFER: counters.dropped_full,
        }[oid]
