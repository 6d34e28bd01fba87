"""A device of your own: a counter that adds up what guests send it, in a buffer that the guest gives it.

Shows: `Device` (offer, open, run, close), user data of an open, requests whose data lies in guest memory (GPA-direct).
Run: python examples/05_own_device.py
"""

import struct
from uuid import UUID

import anyio

from broker import Partition, VirtualProcessor
from channels.bus import OfferParams
from channels.client import VmbusClient
from channels.devices import Device, DeviceChannel, serve_devices
from channels.protocol import GpaRange
from channels.server import VmbusServer

INTERFACE = UUID("00000000-0000-0000-0000-000000000500")
INSTANCE = UUID("00000000-0000-0000-0000-000000000501")


class AddingDevice(Device):
    """Takes a GPA-direct packet whose ranges hold u32 numbers, and completes it with their sum as a u64."""

    offer = OfferParams.interface(INTERFACE, INSTANCE, b"adds u32 numbers")

    def __init__(self) -> None:
        self.total = 0

    async def open(self, channel: DeviceChannel) -> None:
        print(
            f"device: channel {channel.channel_id} opens, the guest says {channel.params.user_data.rstrip(bytes(1))!r}"
        )

    async def run(self, channel: DeviceChannel) -> None:
        async for packet in channel:
            data = channel.read_ranges(packet.gpa_ranges())
            numbers = struct.unpack(f"<{len(data) // 4}I", data)
            self.total += sum(numbers)
            await channel.complete(packet, struct.pack("<Q", self.total))

    async def close(self, channel: DeviceChannel) -> None:
        print(f"device: channel {channel.channel_id} is closed, the total is {self.total}")


async def guest(vp: VirtualProcessor) -> None:
    async with VmbusClient(vp.guest_synic()) as client:
        offer = await client.wait_offer(interface_id=INTERFACE)
        channel = await client.open(offer, user_data=b"I am the guest")
        (page,) = client.pages.allocate(1)
        for numbers in ((1, 2, 3), (1000, 2000)):
            data = struct.pack(f"<{len(numbers)}I", *numbers)
            vp.memory.write(page << 12, data)
            answer = await channel.request(b"", [GpaRange(len(data), 0, (page,))])
            print(f"guest: after {numbers} the device says {struct.unpack('<Q', answer.payload)[0]}")
        await client.close(channel)


async def main() -> None:
    async with (
        Partition() as partition,
        VmbusServer(partition.synic(), partition.memory) as server,
        serve_devices(server, AddingDevice()),
    ):
        await partition.start(0, guest).wait()


if __name__ == "__main__":
    anyio.run(main)
