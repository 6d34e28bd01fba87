"""Two guests, each on a partition of its own, on one switch: nothing is lost, and the pcap file has every frame."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from dpkt.ethernet import Ethernet
from dpkt.ip import IP, IP_PROTO_UDP
from dpkt.udp import UDP

from channels.devices.network import NetworkAdapter, NetworkBackend, PcapFile, Recorded, VirtualSwitch, read_pcap
from channels.drivers.network import Frame, NetworkClient
from channels.protocol.network.frames import BROADCAST

from .network_support import INSTANCES, plugged

COUNT = 50_000
"""Frames each way."""
BATCH = 250


def udp(source: bytes, target: bytes, number: int, size: int = 32) -> bytes:
    """A UDP datagram with a number."""
    text = number.to_bytes(4, "big").ljust(size, b".")
    datagram = UDP(sport=4000, dport=4001, data=text, ulen=8 + size)
    packet = IP(src=bytes((10, 0, 0, source[-1])), dst=bytes((10, 0, 0, target[-1])), p=IP_PROTO_UDP, data=datagram)
    return bytes(Ethernet(src=source, dst=target, data=packet))


def number_of(frame: Frame) -> int:
    """Of a frame made by `udp`."""
    return int.from_bytes(Ethernet(frame.data).data.data.data[:4], "big")


@asynccontextmanager
async def guest(number: int, backend: NetworkBackend, **settings: object) -> AsyncIterator[NetworkClient]:
    """A partition of its own with one adapter, and its driver."""
    adapter = NetworkAdapter(INSTANCES[number], backend)
    async with plugged(adapter, **settings) as stage, NetworkClient.open(stage.client, INSTANCES[number]) as nic:
        yield nic


async def greet(a: NetworkClient, b: NetworkClient) -> None:
    """The switch learns where both are."""
    for sender, receiver in ((a, b), (b, a)):
        await sender.send(Frame(BROADCAST + sender.address + b"\x88\xb5"))
        await receiver.receive()


async def send_all(sender: NetworkClient, frames: list[Frame]) -> None:
    for start in range(0, len(frames), BATCH):
        await sender.send_batch(frames[start : start + BATCH])


async def receive_all(receiver: NetworkClient, count: int, came: list[Frame]) -> None:
    while len(came) < count:
        came += await receiver.receive_batch()


@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed here")
async def test_100000_frames_between_two_guests_arrive_and_are_in_the_pcap_file(tmp_path: Path) -> None:
    switch, path = VirtualSwitch(), tmp_path / "frames.pcap"
    with PcapFile(path) as pcap:
        async with (
            guest(0, Recorded(switch.port("a"), pcap), virtual_time=False) as a,
            guest(1, switch.port("b"), virtual_time=False) as b,
        ):
            await greet(a, b)
            there, back = (
                [Frame(head[:42] + number.to_bytes(4, "big") + head[46:]) for number in range(COUNT)]
                for head in (udp(a.address, b.address, 0), udp(b.address, a.address, 0))
            )
            at_a: list[Frame] = []
            at_b: list[Frame] = []
            async with anyio.create_task_group() as group:
                group.start_soon(send_all, a, there)
                group.start_soon(send_all, b, back)
                group.start_soon(receive_all, a, COUNT, at_a)
                group.start_soon(receive_all, b, COUNT, at_b)
            assert at_b == there
            assert at_a == back
            assert [number_of(frame) for frame in at_b[:: COUNT // 100]] == list(range(0, COUNT, COUNT // 100))
        assert [port.statistics().dropped for port in switch.ports] == [0, 0]
    assert pcap.count == 2 * COUNT + 2
    command = ["tshark", "-r", path, "-T", "fields", "-e", "frame.number"]
    shown = (await anyio.run_process(command)).stdout
    assert shown.count(b"\n") == 2 * COUNT + 2
    assert sum(1 for _ in read_pcap(path)) == 2 * COUNT + 2


async def test_a_guest_that_takes_nothing_stops_its_sender_and_nobody_else() -> None:
    switch = VirtualSwitch()
    async with (
        guest(0, switch.port("a")) as a,
        guest(1, switch.port("b")) as b,
        guest(2, switch.port("c")) as c,
    ):
        await greet(a, b)
        await c.receive_batch()
        await c.send(Frame(BROADCAST + c.address + b"\x88\xb5"))
        await a.receive()
        await b.receive()
        flood = [Frame(udp(a.address, b.address, number)) for number in range(20_000)]
        came: list[Frame] = []
        async with anyio.create_task_group() as group:
            group.start_soon(send_all, a, flood)
            for number in range(200):
                await c.send(Frame(udp(c.address, a.address, number)))
                assert number_of(await a.receive()) == number
            assert switch.ports[1].statistics().dropped == 0
            group.start_soon(receive_all, b, len(flood), came)
        assert came == flood


async def test_a_guest_that_is_gone_does_not_stop_the_one_that_sends_to_it() -> None:
    switch = VirtualSwitch()
    async with guest(0, switch.port("a")) as a, anyio.create_task_group() as group:
        async with guest(1, switch.port("b")) as b:
            await greet(a, b)
            flood = [Frame(udp(a.address, b.address, number)) for number in range(20_000)]
            group.start_soon(send_all, a, flood)
            await anyio.wait_all_tasks_blocked()
            assert 1000 < switch.ports[1].statistics().sent < 20_000, "the sender waits for a guest that takes nothing"
        await send_all(a, flood)
        await a.keep_alive()
        assert a.refused == 0


async def test_two_seeded_partitions_on_one_switch_lose_nothing_either() -> None:
    switch = VirtualSwitch()
    async with guest(0, switch.port("a"), seed=1) as a, guest(1, switch.port("b"), seed=2) as b:
        await greet(a, b)
        frames = [Frame(udp(a.address, b.address, number)) for number in range(600)]
        came: list[Frame] = []
        async with anyio.create_task_group() as group:
            group.start_soon(send_all, a, frames)
            group.start_soon(receive_all, b, len(frames), came)
        assert came == frames
