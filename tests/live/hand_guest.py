"""`HandGuest`: a VMBus guest written by hand on `GuestSynic`, in bytes; `Rings`: the guest's end of a channel's rings; and
`LateDevice`: a device that answers when the test says so.

Nothing here uses `channels.protocol` or `channels.ring`: bytes are those of `reference/vmbus.md` (see `machines.wire`).
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

from broker import HvStatus, Interrupt, Partition, PartitionConfig
from broker.memory import GuestMemory
from channels.bus import Bus, Offer, OfferParams, OpenParams
from channels.devices import Device, DeviceChannel, EchoDevice
from channels.doorbell import Doorbell
from channels.server import VmbusServer

from ..machines import wire

PAGE = 4096
RINGS = 0x100
"""Page number of the first channel's rings; each has four pages."""
INTERRUPT_PAGE = 0x80
"""Page number of the channel bitmap, for versions below 2.4."""
SIMP = 0x4000_0083

INTERFACE = UUID("12345678-9abc-def0-1122-334455667788")


def instance(number: int) -> UUID:
    return UUID(int=number)


def config(**settings: Any) -> PartitionConfig:
    return PartitionConfig(**({"virtual_time": True} | settings))


class Rings:
    """A channel's rings in four pages: control and data towards the host, control and data towards the guest."""

    def __init__(self, memory: GuestMemory, channel_id: int) -> None:
        self.gpns = tuple(range(RINGS + 4 * channel_id, RINGS + 4 * channel_id + 4))
        self._memory = memory
        self._out, self._in = self.gpns[0] * PAGE, self.gpns[2] * PAGE
        for gpn in self.gpns:
            memory.write(gpn * PAGE, bytes(PAGE))
        memory.write(self._out + 64, b"\x01")
        memory.write(self._in + 64, b"\x01")

    def send(self, payload: bytes, transaction_id: int = 0, *, completion: bool = False) -> None:
        """Write an in-band packet; the page must have room to its end."""
        (at,) = struct.unpack("<I", self._memory.read(self._out, 4))
        padded = payload.ljust((len(payload) + 7) // 8 * 8, b"\0")
        packet = struct.pack("<HHHHQ", 6, 2, 2 + len(padded) // 8, completion, transaction_id) + padded
        self._memory.write(self._out + PAGE + at, packet + struct.pack("<II", 0, at))
        self.set_write_index(at + len(packet) + 8)

    def set_write_index(self, index: int) -> None:
        """`in` of the ring towards the host."""
        self._memory.write(self._out, struct.pack("<I", index))

    def receive(self) -> list[tuple[int, int, bytes]]:
        """(type, transaction ID, payload) of all packets that the host has sent."""
        start, at = struct.unpack("<II", self._memory.read(self._in, 8))
        packets = []
        while at < start:
            head = self._memory.read(self._in + PAGE + at, 16)
            kind, offset, length, _, transaction_id = struct.unpack("<HHHHQ", head)
            payload = self._memory.read(self._in + PAGE + at + 8 * offset, 8 * (length - offset))
            packets.append((kind, transaction_id, payload))
            at += 8 * length + 8
        self._memory.write(self._in + 4, struct.pack("<I", at))
        return packets


class HandGuest:
    """See the module. `listening` programs SINT 2 of its processor, for messages and for events."""

    def __init__(self, partition: Partition, vp: int = 0, connection_id: int = 4) -> None:
        self.partition = partition
        self.vp = partition.vp(vp)
        self.synic = self.vp.guest_synic()
        self.memory = partition.memory
        self.connection_id = connection_id
        self.version = 0

    @asynccontextmanager
    async def listening(self, sint: int = 2) -> AsyncIterator[HandGuest]:
        async with self.synic.messages(sint) as self._messages, self.synic.events(sint) as self._events:
            yield self

    async def post(self, data: bytes, *, trusted: bool = False) -> HvStatus:
        """One try."""
        return await self.vp.post_message(self.connection_id, 1, data, trusted=trusted)

    async def say(self, *messages: bytes, trusted: bool = False) -> None:
        """Post these, again while the host has no room."""
        for data in messages:
            while (status := await self.post(data, trusted=trusted)) is HvStatus.INSUFFICIENT_BUFFERS:
                await self.partition.settled()
            assert status is HvStatus.SUCCESS

    async def hear(self) -> bytes:
        """The host's next message."""
        message = await anext(self._messages)
        assert message.message_type == 1
        return message.payload

    async def expect(self, *messages: bytes) -> None:
        """The host's next messages are these."""
        for message in messages:
            heard = await self.hear()
            assert heard == message, (wire.words(heard), wire.words(message))

    async def silent(self, sint: int = 2) -> bool:
        """The host says nothing, unless time passes."""
        await self.partition.settled()
        return await self.slot(sint) == bytes(256)

    async def slot(self, sint: int = 2) -> bytes:
        """The message slot as it lies there; all zeros for one whose type is 0."""
        simp = await self.vp.read_msr(SIMP)
        slot = self.memory.read((simp & ~0xFFF) + 256 * sint, 256)
        return slot if slot[:4] != bytes(4) else bytes(256)

    async def flags(self) -> set[int]:
        """The event flags that are set, once there are any."""
        return await anext(self._events)

    # a connection and its channels

    async def connect(
        self, version: int = wire.COPPER, features: int = 0, pages: tuple[int, int] = (0, 0), vp: int = 0
    ) -> bytes:
        """Contact; the answer. Versions below 5.0 use connection 1."""
        self.version = version
        info = wire.info(features=features) if version >= wire.RS3_1 else 0
        if version < wire.WIN8:
            self.memory.write(INTERRUPT_PAGE * PAGE, bytes(PAGE))
            info = INTERRUPT_PAGE * PAGE
        self.connection_id = 4 if version >= wire.RS3_1 else 1
        client = INTERFACE if features & 8 else None
        await self.say(wire.contact(version, vp, info, pages, client))
        return await self.hear()

    async def offers(self, *, trusted: bool = False) -> list[bytes]:
        """Ask for offers; the offers."""
        await self.say(wire.REQUEST_OFFERS, trusted=trusted)
        found = []
        while (message := await self.hear()) != wire.ALL_OFFERS_DELIVERED:
            found.append(message)
        return found

    async def open(self, channel_id: int = 1, vp: int = 0, **signal: int) -> Rings:
        """Rings, their GPADL (with the channel's number), and the open over them. `signal`: of the long form."""
        rings = await self.gpadl(channel_id)
        fields = {"open_id": 7, "gpadl_id": channel_id, "vp": vp, "page_offset": 2}
        await self.say(
            wire.open_channel2(channel_id, **signal, **fields) if signal else wire.open_channel(channel_id, **fields)
        )
        await self.expect(wire.open_result(channel_id, 7))
        return rings

    async def gpadl(self, channel_id: int = 1) -> Rings:
        """Rings and their GPADL."""
        rings = Rings(self.memory, channel_id)
        await self.say(wire.gpadl_header(channel_id, channel_id, wire.gpa_range(*rings.gpns)))
        await self.expect(wire.gpadl_created(channel_id, channel_id))
        return rings

    async def signal(self, channel_id: int = 1) -> None:
        """Tell the host to look at the rings, as the version has it."""
        if self.version == wire.V1:
            at = INTERRUPT_PAGE * PAGE + 2048 + channel_id // 8
            self.memory.write(at, bytes([self.memory.read(at, 1)[0] | 1 << channel_id % 8]))
            status = await self.synic.signal_event(2)
        else:
            status = await self.synic.signal_event(0x2000 + channel_id)
        assert status is HvStatus.SUCCESS

    async def signalled(self) -> set[int]:
        """The channels that the host signals, as the version has it."""
        flags = await self.flags()
        if self.version >= wire.WIN8:
            return flags
        assert flags == {0}
        bitmap = int.from_bytes(self.memory.read(INTERRUPT_PAGE * PAGE, 2048), "little")
        self.memory.write(INTERRUPT_PAGE * PAGE, bytes(2048))
        return {n for n in range(bitmap.bit_length()) if bitmap >> n & 1}

    async def echo(self, rings: Rings, payload: bytes, channel_id: int = 1) -> None:
        """A request that the host completes with the same."""
        payload = payload.ljust((len(payload) + 7) // 8 * 8, b"\0")
        rings.send(payload, 99, completion=True)
        await self.signal(channel_id)
        assert channel_id in await self.signalled()
        assert rings.receive() == [(0xB, 99, payload)]

    async def unload(self) -> None:
        await self.say(wire.UNLOAD)
        await self.expect(wire.UNLOAD_COMPLETE)


class LateDevice:
    """Notes what it is asked for (`bus.ChannelRequests`) and answers nothing; the test does, through `offer`."""

    def __init__(self, number: int = 1, **fields: Any) -> None:
        self.params = OfferParams(interface_id=INTERFACE, instance_id=instance(number), **fields)
        self.asked: list[tuple[Any, ...]] = []
        self.interrupt: Interrupt
        self.doorbell: Doorbell
        self.offer: Offer

    async def begin(self, bus: Bus) -> LateDevice:
        self.offer = await bus.offer(self.params, self)
        return self

    def open_channel(self, channel_id: int, params: OpenParams, interrupt: Interrupt, doorbell: Doorbell) -> None:
        self.asked.append(("open", channel_id, params))
        self.interrupt, self.doorbell = interrupt, doorbell

    def resume_channel(self, channel_id: int, params: OpenParams, interrupt: Interrupt, doorbell: Doorbell) -> None:
        self.asked.append(("resume", channel_id, params))
        self.interrupt, self.doorbell = interrupt, doorbell

    def drop_open(self) -> None:
        self.asked.append(("drop",))

    def close_channel(self) -> None:
        self.asked.append(("close",))

    def create_gpadl(self, gpadl_id: int, ranges: tuple[Any, ...]) -> None:
        self.asked.append(("gpadl", gpadl_id))

    def resume_gpadl(self, gpadl_id: int, ranges: tuple[Any, ...]) -> None:
        self.asked.append(("resume gpadl", gpadl_id))

    def teardown_gpadl(self, gpadl_id: int) -> None:
        self.asked.append(("teardown", gpadl_id))

    def modify_channel(self, target_vp: int) -> None:
        self.asked.append(("modify", target_vp))

    def removed(self) -> None:
        self.asked.append(("removed",))

    def take(self) -> list[tuple[Any, ...]]:
        """What it was asked for since the last time."""
        asked, self.asked = self.asked, []
        return asked


@asynccontextmanager
async def served(
    *, server: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[tuple[VmbusServer, HandGuest]]:
    """A partition with these settings, a server on it (`server`: what it is told), and a guest that listens."""
    async with (
        Partition(config(**settings)) as partition,
        VmbusServer(partition.synic(), partition.memory, **(server or {})) as host,
        HandGuest(partition).listening() as guest,
    ):
        yield host, guest


def echoes(count: int) -> list[EchoDevice]:
    """Echo devices 1 to `count`."""
    return [EchoDevice(UUID(int=number), interface_id=INTERFACE) for number in range(1, count + 1)]


class Noting(Device):
    """Notes when it is opened and closed, and echoes nothing."""

    def __init__(self, number: int = 1) -> None:
        self.offer = OfferParams.device(INTERFACE, UUID(int=number))
        self.noted: list[str] = []

    async def open(self, channel: DeviceChannel) -> None:
        self.noted.append("open")

    async def run(self, channel: DeviceChannel) -> None:
        async for _ in channel:
            pass

    async def close(self, channel: DeviceChannel) -> None:
        self.noted.append("close")
