"""Two guests, each on a partition of its own, find each other over a virtual switch and exchange pings.

Shows: `NetworkAdapter`, `VirtualSwitch`, `Recorded` and `PcapFile` on the host's side, `NetworkClient` on the guests'.
Needs the extra `pcap`: pip install '.[pcap]'. The file that it writes opens in Wireshark.
Run: python examples/09_two_guests_on_a_switch.py
"""

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import anyio

from broker import Partition, VirtualProcessor
from channels.client import VmbusClient
from channels.devices import serve_devices
from channels.devices.network import NetworkAdapter, NetworkBackend, PcapFile, Recorded, VirtualSwitch
from channels.drivers.network import Frame, NetworkClient
from channels.server import VmbusServer

ALICE, BOB = UUID(int=0xA), UUID(int=0xB)
EVERYBODY, ETHER_TYPE = b"\xff" * 6, b"\x88\xb5"  # a type for local experiments
PINGS = 3


def frame(target: bytes, source: bytes, text: str) -> Frame:
    return Frame(target + source + ETHER_TYPE + text.encode().ljust(46))


def parts(frame: Frame) -> tuple[bytes, str]:
    return frame.data[6:12], frame.data[14:].decode().rstrip()


async def alice(vp: VirtualProcessor) -> None:
    async with VmbusClient(vp.guest_synic()) as client, NetworkClient.open(client) as nic:
        await nic.send(frame(EVERYBODY, nic.address, "who is bob?"))
        bob, text = parts(await nic.receive())
        print(f"alice: {bob.hex('-')} says {text!r}")
        for number in range(PINGS):
            await nic.send(frame(bob, nic.address, f"ping {number}"))
            print(f"alice: {parts(await nic.receive())[1]}")


async def bob(vp: VirtualProcessor, is_ready: anyio.Event) -> None:
    async with VmbusClient(vp.guest_synic()) as client, NetworkClient.open(client) as nic:
        is_ready.set()
        for _ in range(1 + PINGS):
            sender, text = parts(await nic.receive())
            answer = "I am" if text == "who is bob?" else text.replace("ping", "pong")
            await nic.send(frame(sender, nic.address, answer))


@asynccontextmanager
async def machine(instance_id: UUID, backend: NetworkBackend) -> AsyncIterator[Partition]:
    async with (
        Partition() as partition,
        VmbusServer(partition.synic(), partition.memory) as server,
        serve_devices(server, NetworkAdapter(instance_id, backend)),
    ):
        yield partition


async def main() -> None:
    switch, path = VirtualSwitch(), Path(tempfile.gettempdir(), "two_guests_on_a_switch.pcap")
    with PcapFile(path) as pcap:
        alices, bobs = Recorded(switch.port("alice"), pcap), switch.port("bob")
        async with machine(ALICE, alices) as first, machine(BOB, bobs) as second:
            is_ready = anyio.Event()
            running = second.start(0, lambda vp: bob(vp, is_ready))
            await is_ready.wait()
            await first.start(0, alice).wait()
            await running.wait()
    print(f"switch: {len(switch.addresses)} addresses, {pcap.count} frames in {path.name}")


if __name__ == "__main__":
    anyio.run(main)
