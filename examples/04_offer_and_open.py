"""VMBus: a host offers an echo device, a guest negotiates, opens the channel and gets back what it sends.

Shows: a VMBus server over `SynicPortAccess`, a client over `GuestSynic`, an offer, a channel, a completion.
Run: python examples/04_offer_and_open.py [version, such as 5.3]
"""

import sys
from uuid import UUID

import anyio

from broker import Partition, VirtualProcessor
from channels.client import VmbusClient
from channels.devices import EchoDevice, serve_devices
from channels.protocol import Version
from channels.server import VmbusServer

INSTANCE = UUID("00000000-0000-0000-0000-000000000004")


async def guest(vp: VirtualProcessor, version: Version | None) -> None:
    async with VmbusClient(vp.guest_synic(), version=version) as client:
        print(f"guest: connected, version {client.version.label}")
        offer = await client.wait_offer(instance_id=INSTANCE)
        print(f"guest: channel {offer.channel_id} is offered, to be signalled at connection {offer.connection_id:#x}")
        channel = await client.open(offer)
        answer = await channel.request(b"hello, echo")
        print(f"guest: packet {answer.transaction_id:#x} was completed with {answer.payload.rstrip(bytes(1))!r}")
        await client.close(channel)
    print("guest: unloaded")


async def main(version: Version | None) -> None:
    async with Partition() as partition, VmbusServer(partition.synic(), partition.memory) as server:
        async with serve_devices(server, EchoDevice(INSTANCE)):
            await partition.start(0, lambda vp: guest(vp, version)).wait()
        taken = server.statistics()
        print(f"host: took {taken.received} messages, sent {taken.sent}")


if __name__ == "__main__":
    labels = {version.label: version for version in Version}
    anyio.run(main, labels[sys.argv[1]] if len(sys.argv) > 1 else None)
