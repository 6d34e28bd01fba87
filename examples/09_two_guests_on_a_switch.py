"""Two guests, each on a partition of its own, find each other over a virtual switch and exchange pings.

Shows: `NetworkAdapter`, `VirtualSwitch`, `Recorded` and `PcapFile` on the host's side, `NetworkClient` on the guests'.
Run: python examples/09_two_guests_on_a_switch.py
"""

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import anyio
from dpkt.arp import ARP, ARP_OP_REPLY  # type: ignore[import-untyped]
from dpkt.ethernet import ETH_TYPE_ARP, Ethernet  # type: ignore[import-untyped]
from dpkt.ip import IP, IP_PROTO_UDP  # type: ignore[import-untyped]
from dpkt.udp import UDP  # type: ignore[import-untyped]

from broker import Partition, VirtualProcessor
from channels.client import VmbusClient
from channels.devices import serve_devices
from channels.devices.network import NetworkAdapter, NetworkBackend, PcapFile, Recorded, VirtualSwitch
from channels.drivers.network import Frame, NetworkClient
from channels.server import VmbusServer

ALICE, BOB = UUID(int=0xA), UUID(int=0xB)
ALICE_IP, BOB_IP = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
PINGS = 3


def arp(source: bytes, ip: bytes, target: bytes, target_ip: bytes, **operation: int) -> Frame:
    message = ARP(sha=source, spa=ip, tha=target, tpa=target_ip, **operation)
    to = target if operation else b"\xff" * 6
    return Frame(bytes(Ethernet(src=source, dst=to, type=ETH_TYPE_ARP, data=message)))


def udp(source: bytes, ip: bytes, target: bytes, target_ip: bytes, text: bytes) -> Frame:
    datagram = UDP(sport=7, dport=7, data=text, ulen=8 + len(text))
    packet = IP(src=ip, dst=target_ip, p=IP_PROTO_UDP, data=datagram)
    return Frame(bytes(Ethernet(src=source, dst=target, data=packet)))


async def alice(vp: VirtualProcessor) -> None:
    async with VmbusClient(vp.guest_synic()) as client, NetworkClient.open(client) as nic:
        await nic.send(arp(nic.address, ALICE_IP, bytes(6), BOB_IP))
        bob = Ethernet((await nic.receive()).data).arp.sha
        print(f"alice: bob has the address {bob.hex('-')}")
        for number in range(PINGS):
            await nic.send(udp(nic.address, ALICE_IP, bob, BOB_IP, f"ping {number}".encode()))
            print(f"alice: {Ethernet((await nic.receive()).data).ip.udp.data.decode()}")


async def bob(vp: VirtualProcessor, is_ready: anyio.Event) -> None:
    async with VmbusClient(vp.guest_synic()) as client, NetworkClient.open(client) as nic:
        is_ready.set()
        question = Ethernet((await nic.receive()).data).arp
        await nic.send(arp(nic.address, BOB_IP, question.sha, question.spa, op=ARP_OP_REPLY))
        for _ in range(PINGS):
            ping = Ethernet((await nic.receive()).data)
            answer = ping.ip.udp.data.replace(b"ping", b"pong")
            await nic.send(udp(nic.address, BOB_IP, ping.src, ping.ip.src, answer))


@asynccontextmanager
async def machine(instance_id: UUID, backend: NetworkBackend) -> AsyncIterator[Partition]:
    """A partition whose guest finds a network adapter."""
    async with (
        Partition() as partition,
        VmbusServer(partition.synic(), partition.memory) as server,
        serve_devices(server, NetworkAdapter(instance_id, backend)),
    ):
        yield partition


async def main() -> None:
    switch = VirtualSwitch()
    path = Path(tempfile.gettempdir()) / "two_guests_on_a_switch.pcap"
    with PcapFile(path) as pcap:
        async with (
            machine(ALICE, Recorded(switch.port("alice"), pcap)) as first,
            machine(BOB, switch.port("bob")) as second,
        ):
            is_ready = anyio.Event()
            running = second.start(0, lambda vp: bob(vp, is_ready))
            await is_ready.wait()
            await first.start(0, alice).wait()
            await running.wait()
    print(f"switch: {len(switch.addresses)} addresses, {pcap.count} frames in {path.name}")


if __name__ == "__main__":
    anyio.run(main)
