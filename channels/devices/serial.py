"""Serial ports over VMBus, host side: a byte pipe, raw bytes both ways (vmbus.md 8.1, OpenVMM's serial GUIDs).

    console = SerialConsole()
    async with serve_devices(server, console):
        await console.wait_output(b"login: ")
        await console.send(b"root\\n")

`SerialPort` hands the stream to host code, which then has all the say; `SerialConsole` reads what the guest writes, keeps
the end of it, and waits for words in it. There are no modem lines and no baud rates: a port is connected while the guest
has its channel open, and each open is a new stream.
"""

from __future__ import annotations

from uuid import UUID

from anyio import EndOfStream

from broker.access import Turns, Wakeup
from broker.errors import HostError

from ..core.server.offer_params import OfferParams
from ..pipe import BytePipe
from ..protocol.ids import SERIAL
from ..protocol.offer import PipeType
from .device import Device, DeviceChannel

COM1_INSTANCE = UUID("700df40e-b947-4776-b839-d1b0a35af034")
CAPTURE_SIZE = 65536
"""Bytes of output that a console keeps."""


class SerialPort(Device):
    """A port whose stream is for host code: `connected` gives it, once for each time that the guest opens the port.

    Nothing is read unless host code does, so a guest that writes waits once its ring is full. A guest that breaks a rule
    of pipes breaks the stream.
    """

    def __init__(self, instance_id: UUID = COM1_INSTANCE) -> None:
        self.offer = OfferParams.pipe(SERIAL, instance_id, PipeType.BYTE)
        self._pipe: BytePipe | None = None
        self._turns: Turns | None = None
        self._changed: Wakeup

    def attached(self, turns: Turns) -> None:
        """See `Device.attached`."""
        self._turns = turns
        self._changed = turns.wakeup(("serial", 0))

    def detached(self) -> None:
        """See `Device.detached`."""
        self._turns = None
        self._changed.notify()

    @property
    def is_connected(self) -> bool:
        """The guest has the port open, and the stream of this open has not ended."""
        return self._pipe is not None and self._pipe.channel.doorbell.ended is None

    async def connected(self) -> BytePipe:
        """The stream, once the guest has opened the port. Do not keep it: when the guest closes, it is broken.

        `HostError` for a port that nobody serves.
        """
        while self._pipe is None or not self.is_connected:
            await self._wait_change()
        return self._pipe

    async def send(self, data: bytes) -> None:
        """Send bytes to the guest, once it has opened the port. anyio's errors, as `BytePipe.send`."""
        pipe = await self.connected()
        await pipe.send(data)

    async def run(self, channel: DeviceChannel) -> None:
        """Hand out the stream until the guest closes."""
        self._pipe = pipe = BytePipe(channel)
        self._changed.notify()
        try:
            await self.serve(pipe)
            await channel.turns.wakeup(("serial", channel.channel_id)).wait()  # until the guest closes: cancelled
        finally:
            self._pipe = None

    async def serve(self, pipe: BytePipe) -> None:
        """What the port itself does with the stream: nothing."""

    async def _wait_change(self) -> None:
        if self._turns is None:
            raise HostError("nobody serves this serial port; use it within the block of serve_devices")
        await self._changed.wait()


class SerialConsole(SerialPort):
    """A port that keeps the last `capture` bytes of what the guest writes, from one open to the next.

    A guest that says that it will write no more is hung up on.
    """

    def __init__(self, instance_id: UUID = COM1_INSTANCE, *, capture: int = CAPTURE_SIZE) -> None:
        if capture < 1:
            raise ValueError(f"a console keeps at least one byte, not {capture}")
        super().__init__(instance_id)
        self._capture = capture
        self._kept = bytearray()
        self._written = 0
        """Bytes that the guest has written; the last of them are kept."""
        self._seen = 0
        """Bytes up to the end of what was last waited for."""

    @property
    def output(self) -> bytes:
        """The end of what the guest has written so far."""
        return bytes(self._kept)

    async def wait_output(self, words: bytes) -> bytes:
        """Wait until the guest writes these bytes, and return what it wrote up to their end since the last such wait.

        Bytes that are no longer kept are not looked at, and not returned. `ValueError` for more bytes than are kept, or
        none; `HostError` for a port that nobody serves.
        """
        if not 1 <= len(words) <= self._capture:
            raise ValueError(f"this console can wait for 1 to {self._capture} bytes, not {len(words)}")
        looked_at = self._seen
        while True:
            start = max(self._first, self._seen)
            looked_at = max(looked_at, start)
            found = self._kept.find(words, looked_at - self._first)
            if found >= 0:
                end = found + len(words)
                output = bytes(self._kept[start - self._first : end])
                self._seen = self._first + end
                return output
            looked_at = max(looked_at, self._written - len(words) + 1)
            await self._wait_change()

    async def serve(self, pipe: BytePipe) -> None:
        """Read until the guest says that no more will come, then hang up."""
        while True:
            try:
                data = await pipe.receive()
            except EndOfStream:
                await pipe.aclose()
                return
            self._kept += data
            self._written += len(data)
            del self._kept[: -self._capture]
            self._changed.notify()

    @property
    def _first(self) -> int:
        """The number of the first byte that is kept."""
        return self._written - len(self._kept)
