"""pcap files: frames of an adapter written down, and frames of a file sent to a guest. Uses `dpkt` (extra `pcap`).

    with PcapFile(path) as pcap:
        NetworkAdapter(instance, Recorded(switch.port(), pcap))
    NetworkAdapter(instance, Replay(path))

Files have nanosecond time stamps and link type Ethernet. The time of a frame is the reference counter of the adapter's
partition, in ticks of 100 ns, counted from 1970-01-01 00:00 UTC: a frame at tick 10,000,000 has the time 1.000000000. So
runs with a seed and virtual time write the same file each time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from types import ModuleType, TracebackType
from typing import IO, Any, Self

from broker.access import Turns, Wakeup
from broker.clock import TICKS_PER_SECOND
from broker.errors import ConfigurationError, DamagedDocument, HostError

from ....protocol.network.frames import ETHERNET_HEADER, Frame
from .backend import NetworkBackend, Station, deliver_all

ETHERNET = 1
"""The link type of files that are written and read."""
SNAP_LENGTH = 262_144
MICROSECONDS = 1_000_000
BATCH = 64
"""Frames that a replay as fast as possible hands over at once."""


class PcapFile:
    """A pcap file to write to, made anew; leaving the block closes it.

    Several adapters may write to one file; a frame that passes two of them is in it twice. `ConfigurationError` when the
    file cannot be made, or `dpkt` is missing. A write that fails later, on a full disk, is a `HostError` of `write`, and so
    ends the adapters whose frames it is to have, or of `close`: a file from which frames are missing is none.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        pcap = _dpkt_pcap()
        self._name = os.fspath(path)
        self.count = 0
        """Frames written."""
        try:
            self._file = open(path, "wb")
        except OSError as error:
            raise ConfigurationError(f"pcap file {self._name} cannot be written: {error.strerror}") from error
        self._writer: Any = pcap.Writer(self._file, snaplen=SNAP_LENGTH, linktype=ETHERNET, nano=True)

    def write(self, frames: Sequence[Frame], tick: int) -> None:
        """Write these frames, at this tick of the reference counter. Nothing once the file is closed."""
        if self._file.closed:
            return
        seconds = tick / TICKS_PER_SECOND
        try:
            self._writer.writepkts([(seconds, frame.data) for frame in frames])
        except OSError as error:
            raise self._failed(error) from error
        self.count += len(frames)

    def close(self) -> None:
        """Write what is buffered, and close; idempotent."""
        try:
            self._file.close()
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> HostError:
        return HostError(f"pcap file {self._name} ends early, after about {self.count} frames: {error.strerror}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.close()
        except HostError:
            if error is None:
                raise


class Recorded(NetworkBackend):
    """Another back end, with every frame written down that goes to it, and every one that its adapter takes from it."""

    def __init__(self, backend: NetworkBackend, pcap: PcapFile) -> None:
        self._backend = backend
        self._pcap = pcap
        self._station: Station | None = None

    def plug(self, station: Station) -> None:
        """See `NetworkBackend.plug`."""
        self._station = station
        self._backend.plug(_RecordedStation(station, self._pcap))

    async def send(self, frames: Sequence[Frame]) -> None:
        """See `NetworkBackend.send`. Frames are written before they are handed over."""
        assert self._station is not None
        self._pcap.write(frames, self._station.turns.clock.now())
        await self._backend.send(frames)

    async def run(self) -> None:
        """See `NetworkBackend.run`."""
        await self._backend.run()


class _RecordedStation:
    """The adapter, as the back end behind a `Recorded` sees it."""

    def __init__(self, station: Station, pcap: PcapFile) -> None:
        self._station = station
        self._pcap = pcap

    @property
    def address(self) -> bytes:
        return self._station.address

    @property
    def turns(self) -> Turns:
        return self._station.turns

    def deliver(self, frames: Sequence[Frame]) -> int:
        taken = self._station.deliver(frames)
        if taken:
            self._pcap.write(frames[:taken], self._station.turns.clock.now())
        return taken

    def drop(self, frames: Sequence[Frame]) -> None:
        self._station.drop(frames)

    def when_room(self, wakeup: Wakeup) -> None:
        self._station.when_room(wakeup)


class Replay(NetworkBackend):
    """Sends the frames of a pcap file to the guest, in order, each time that the guest sets its first packet filter.

    `spaced`: with the recorded spacing, in the partition's time, the first one at once; else as fast as the guest takes them.
    Frames of the guest go nowhere. The file is read when this is made: `ConfigurationError` when it is missing or of
    another link type, `DamagedDocument` when it is no pcap file or ends within a frame.
    """

    def __init__(self, path: str | os.PathLike[str], *, spaced: bool = True) -> None:
        self._records = list(read_pcap(path))
        self._spaced = spaced
        self._station: Station | None = None
        self.sent = 0
        """Frames handed over."""

    def plug(self, station: Station) -> None:
        """See `NetworkBackend.plug`."""
        if self._station is not None:
            raise ConfigurationError("a replay is for one adapter; make another one")
        self._station = station

    async def send(self, frames: Sequence[Frame]) -> None:
        """See `NetworkBackend.send`."""

    async def run(self) -> None:
        """See `NetworkBackend.run`."""
        station, records = self._station, self._records
        assert station is not None
        turns = station.turns
        wakeup = turns.wakeup(("network-replay", 0))
        if not self._spaced:
            for start in range(0, len(records), BATCH):
                batch = [frame for _, frame in records[start : start + BATCH]]
                await deliver_all(station, batch, wakeup)
                self.sent += len(batch)
            return
        begin = turns.clock.now()
        for tick, frame in records:
            due = begin + tick - records[0][0]
            if due > turns.clock.now():
                await turns.sleep_until(due, ("network-replay", 0))
            await deliver_all(station, [frame], wakeup)
            self.sent += 1


def read_pcap(path: str | os.PathLike[str]) -> Iterator[tuple[int, Frame]]:
    """(tick of 100 ns, frame) of each record of a pcap file. Errors as in `Replay`; frames below 14 bytes are damage, too."""
    pcap, name = _dpkt_pcap(), os.fspath(path)
    try:
        file = open(path, "rb")
    except OSError as error:
        raise ConfigurationError(f"pcap file {name} cannot be read: {error.strerror}") from error
    with file:
        whole = _Whole(file, name)
        try:
            reader = pcap.Reader(whole)
        except (ValueError, _dpkt_error()) as error:
            raise DamagedDocument(f"{name} is no pcap file; pcapng files have to be converted first") from error
        if reader.datalink() != ETHERNET:
            raise ConfigurationError(f"{name} has link type {reader.datalink()}; only Ethernet (1) can be replayed")
        for seconds, data in reader:
            if len(data) < ETHERNET_HEADER:
                raise DamagedDocument(f"{name} has a frame of {len(data)} bytes; the shortest has {ETHERNET_HEADER}")
            if isinstance(seconds, float):  # of a file with microseconds, which a date of today leaves no digits beyond
                yield round(seconds * MICROSECONDS) * (TICKS_PER_SECOND // MICROSECONDS), Frame(data)
            else:
                yield round(seconds * TICKS_PER_SECOND), Frame(data)


class _Whole:
    """A file for `dpkt`, which notices neither an end within a record nor a length that is none.

    It reads the file's header, then header and data of each record in turn.
    """

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file = file
        self._reads = 0
        self.name = name

    def read(self, size: int) -> bytes:
        if size > SNAP_LENGTH:
            raise DamagedDocument(f"{self.name} has a record of {size} bytes; {SNAP_LENGTH} are read at most")
        data = self._file.read(size)
        self._reads += 1
        is_end = not data and self._reads % 2 == 0
        if len(data) < size and not is_end and self._reads > 1:
            raise DamagedDocument(f"{self.name} ends within a record, {size - len(data)} bytes are missing")
        return data


def _dpkt_pcap() -> ModuleType:
    try:
        import dpkt.pcap  # type: ignore[import-untyped]
    except ImportError as error:
        raise ConfigurationError("pcap files need the package dpkt; install vmbus-broker[pcap]") from error
    module: ModuleType = dpkt.pcap
    return module


def _dpkt_error() -> type[Exception]:
    import dpkt

    error: type[Exception] = dpkt.Error
    return error
