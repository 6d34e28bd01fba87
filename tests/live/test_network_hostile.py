"""Guests and hosts that lie: a guest loses its channel at worst and no other, a host is answered with an error and no hang."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from broker.errors import BrokerError, ChannelClosed, ConnectionFailed, ProtocolError
from channels.bus import OfferParams
from channels.client import VmbusClient
from channels.devices import Device, DeviceChannel, serve_devices
from channels.devices.network import Loopback, NetworkAdapter
from channels.drivers.network import Frame, NetworkClient, NvspVersion
from channels.protocol.gparange import GpaRange
from channels.protocol.ids import NETWORK
from channels.protocol.network import nvsp, rndis
from channels.protocol.network.frames import pack_frame
from channels.protocol.network.nvsp import NvspType
from channels.protocol.network.oids import Oid
from channels.protocol.packet import pack_gpa_direct, pack_in_band, pack_packet

from .network_support import INSTANCES, RawNic, plugged

BACKENDS = pytest.mark.parametrize("backend", ["asyncio", "trio"])
few = settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])

words = st.one_of(
    st.integers(0, 5),
    st.sampled_from([44, 60, 1514, 6144, 0xCAFE, 0xE1E10, 0xE1E12, 0xE1E13, 0xFFFFFFFF]),
    st.integers(0, 0xFFFFFFFF),
)
nvsp_types = st.one_of(st.sampled_from(list(NvspType)), st.integers(0, 200))
payloads = st.one_of(
    st.builds(
        lambda kind, rest: struct.pack(f"<{1 + len(rest)}I", kind, *rest), nvsp_types, st.lists(words, max_size=9)
    ),
    st.builds(
        lambda kind, section, size: struct.pack("<IIII", 107, kind, section, size), st.integers(0, 2), words, words
    ),
    st.binary(max_size=60),
)
rndis_messages = st.one_of(
    st.builds(
        lambda kind, rest: struct.pack(f"<{2 + len(rest)}I", kind, 8 + 4 * len(rest), *rest),
        st.integers(0, 9),
        st.lists(words, max_size=12),
    ),
    st.builds(lambda oid, data: rndis.Set.of(1, oid, data).pack(), st.sampled_from(list(Oid)), st.binary(max_size=50)),
    st.builds(lambda oid: rndis.Query.of(1, oid).pack(), words),
    st.builds(lambda size: pack_frame(Frame(bytes(size))), st.integers(14, 1600)),
    st.binary(max_size=100),
)
ranges = st.lists(
    st.builds(
        lambda size, offset, gpn: GpaRange(
            size, offset, tuple(gpn + step for step in range((size + offset + 4095) >> 12))
        ),
        st.integers(1, 9000),
        st.integers(0, 4095),
        st.one_of(st.integers(0, 5000), st.just(1 << 40)),
    ),
    min_size=1,
    max_size=3,
)
numbers = st.one_of(st.integers(0, 8), st.integers(0, (1 << 64) - 1))
packets = st.one_of(
    st.tuples(st.just("packet"), st.builds(pack_in_band, payloads, numbers, st.booleans())),
    st.tuples(st.just("packet"), st.builds(pack_gpa_direct, ranges, payloads, numbers)),
    st.tuples(st.just("packet"), st.builds(lambda number, data: pack_packet(0xB, data, number), numbers, payloads)),
    st.tuples(st.just("rndis"), rndis_messages),
    st.tuples(st.just("data"), rndis_messages),
    st.tuples(st.just("teardown"), st.booleans()),
)  # fmt: skip


async def proves_to_live(nic: NetworkClient) -> None:
    frames = [Frame(nic.address * 2 + b"\x88\xb5" + bytes(size)) for size in range(46, 60)]
    await nic.send_batch(frames)
    came: list[Frame] = []
    while len(came) < len(frames):
        came += await nic.receive_batch()
    assert came == frames


@BACKENDS
@pytest.mark.parametrize("version", [None, NvspVersion.V2, NvspVersion.V6_1], ids=["from the start", "3.2", "6.1"])
@few
@given(script=st.lists(packets, max_size=12))
@example(script=[("teardown", True), ("data", pack_frame(Frame(bytes(60))))])
@example(script=[("packet", pack_in_band(struct.pack("<IIII", 107, 0, 0xFFFFFFFF, 0), 1, True))])
def test_a_hostile_guest_loses_its_channel_at_worst(
    backend: str, version: NvspVersion | None, script: list[tuple[str, Any]]
) -> None:
    async def play() -> None:
        hostile = NetworkAdapter(INSTANCES[0], Loopback(), max_subchannels=1)
        async with (
            plugged(hostile, NetworkAdapter(INSTANCES[1], Loopback())) as stage,
            NetworkClient.open(stage.client, INSTANCES[1], receive_pages=32, send_pages=16) as other,
        ):
            nic = await RawNic.open(stage.client)
            if version is not None:
                await (await nic.ready(version)).listen()
            for kind, what in script:
                if kind == "packet":
                    await nic.channel.send_packet(what)
                elif kind == "teardown":
                    if version is not None:
                        await stage.client.teardown_gpadl(nic.receive_gpadl if what else nic.send_gpadl)
                else:
                    stage.partition.memory.write(nic.page * 4096, what)
                    payload = nvsp.RndisPacket(int(kind == "rndis")).padded(nic.version)
                    if what:
                        part = GpaRange(len(what), 0, (nic.page,))
                        await nic.channel.send_gpa_direct([part], payload, 5)
            await stage.partition.settled()
            await proves_to_live(other)
            await stage.client.close(nic.channel)
            async with NetworkClient.open(stage.client, INSTANCES[0], receive_pages=32, send_pages=16) as again:
                await proves_to_live(again)

    anyio.run(play, backend=backend)


class Liar(Device):
    """A host that says what it is told to: one answer to each of up to four requests, then some packets."""

    def __init__(self, answers: Sequence[bytes], packets: Sequence[bytes], honest: int = 0) -> None:
        """`honest`: how many steps of the negotiation are as they should be."""
        self.offer = OfferParams.device(NETWORK, INSTANCES[0])
        self.has_said_all = anyio.Event()
        steps = [
            nvsp.InitComplete(0xFFFFFFFF, 34, 1),
            nvsp.ReceiveBufferComplete(1, 1, 0, 1792, 18, 1792 * 18),
            nvsp.SendBufferComplete(1, 6144),
            nvsp.RndisPacketComplete(1),
        ]
        self._answers = ([step.padded(NvspVersion.V6_1) for step in steps[:honest]] + list(answers))[:4]
        self._packets = packets

    async def run(self, channel: DeviceChannel) -> None:
        answers = list(self._answers)
        while answers:
            packet = await channel.receive()
            if packet.completion_requested:
                await channel.complete(packet, answers.pop(0))
        await channel.send_packets(self._packets)
        self.has_said_all.set()


async def believe(liar: Liar) -> BrokerError | None:
    """What a driver raises that meets this host, which goes away when it has said all."""
    async with plugged() as stage, anyio.create_task_group() as group:

        async def serve() -> None:
            async with serve_devices(stage.server, liar):
                await liar.has_said_all.wait()
                await stage.partition.settled()

        group.start_soon(serve)
        try:
            async with NetworkClient.open(stage.client, receive_pages=8, send_pages=3) as nic:
                while True:
                    await nic.receive_batch()
        except BrokerError as error:
            return error
        finally:
            liar.has_said_all.set()
    return None


host_payloads = st.one_of(
    payloads,
    st.sampled_from([message.padded(NvspVersion.V6_1) for message in (
        nvsp.InitComplete(0xFFFFFFFF, 34, 1), nvsp.SendBufferComplete(1, 6144), nvsp.RndisPacketComplete(1),
        nvsp.ReceiveBufferComplete(1, 1, 0, 1792, 18, 1792 * 18), nvsp.ReceiveBufferComplete(1, 1, 0, 1792, 19, 1792 * 19),
        nvsp.IndirectionTable.of((0, 70000)), nvsp.VfAssociation(1, 1),
    )]),
)  # fmt: skip
host_packets = st.one_of(
    st.builds(pack_in_band, host_payloads, numbers, st.booleans()),
    st.builds(lambda data, number: pack_packet(0xB, data, number), host_payloads, numbers),
    st.builds(
        lambda set_id, flat, data: nvsp.pack_receive(set_id, flat[: len(flat) // 2 * 2], data, 1),
        st.sampled_from([0xCAFE, 0]),
        st.lists(words, max_size=8),
        st.one_of(st.just(nvsp.RndisPacket(0).pack()), st.just(nvsp.RndisPacket(1).pack()), host_payloads),
    ),
)


@BACKENDS
@few
@given(
    honest=st.integers(0, 4),
    answers=st.lists(host_payloads, max_size=3),
    packets=st.lists(host_packets, max_size=5),
)
def test_a_lying_host_gives_an_error_and_never_a_hang(
    backend: str, honest: int, answers: list[bytes], packets: list[bytes]
) -> None:
    async def play() -> None:
        with anyio.fail_after(20):
            error = await believe(Liar(answers, packets, honest))
        assert isinstance(error, ProtocolError | ChannelClosed | ConnectionFailed), error

    anyio.run(play, backend=backend)


LIES = {
    "a receive buffer larger than it is": (1, [nvsp.ReceiveBufferComplete(1, 1, 0, 1792, 19, 0)], "one section inside"),
    "two sections": (1, [nvsp.ReceiveBufferComplete(1, 2, 0, 1792, 1, 0)], "one section inside"),
    "suballocations of no bytes": (1, [nvsp.ReceiveBufferComplete(1, 1, 0, 0, 0, 0)], "one section inside"),
    "no receive buffer": (1, [nvsp.ReceiveBufferComplete(2)], "does not take a receive buffer: status 2"),
    "sections of no bytes": (2, [nvsp.SendBufferComplete(1, 0)], "sections of 128"),
    "sections larger than the buffer": (2, [nvsp.SendBufferComplete(1, 1 << 20)], "sections of 128"),
    "another answer": (0, [nvsp.SendBufferComplete(1, 6144)], "expected InitComplete"),
    "RNDIS refused": (3, [nvsp.RndisPacketComplete(5)], "RNDIS_PACKET_COMPLETE with status 1"),
}


@pytest.mark.parametrize("what", LIES)
async def test_each_lie_of_the_negotiation_is_named(what: str) -> None:
    honest, answers, sentence = LIES[what]
    error = await believe(Liar([answer.padded(NvspVersion.V6_1) for answer in answers], [], honest))
    assert sentence in str(error)


DATA_PACKET = nvsp.RndisPacket(0).pack()
PACKETS = {
    "a completion for nobody": (pack_packet(0xB, nvsp.RndisPacketComplete(1).pack(), 7), "ID of a packet that was sent"),
    "a completion that is none": (pack_packet(0xB, bytes(8), 7), "RNDIS_PACKET_COMPLETE"),
    "an empty completion": (pack_packet(0xB, b"", 7), "8 bytes"),
    "a range outside of the buffer": (nvsp.pack_receive(0xCAFE, [8, 32761], DATA_PACKET, 1), "an end within 32768"),
    "a range larger than a suballocation": (nvsp.pack_receive(0xCAFE, [1793, 0], DATA_PACKET, 1), "1792 bytes"),
    "another set": (nvsp.pack_receive(1, [8, 0], nvsp.RndisPacket(0).pack(), 1), "in the receive buffer"),
    "frames that are none": (nvsp.pack_receive(0xCAFE, [60, 0], nvsp.RndisPacket(0).pack(), 1), "RNDIS packet"),
    "more frames than there is room for": (nvsp.pack_receive(0xCAFE, [44, 0] * 19, DATA_PACKET, 1), "18 ranges at once"),
    "a GPA-direct packet": (pack_gpa_direct([GpaRange(1, 0, (1,))], b"", 1), "a packet that hosts send"),
    "a message of a guest": (pack_in_band(nvsp.Init(2, 2).padded(None)), "a type that a host sends"),
    "an answer as a notice": (pack_in_band(nvsp.SendBufferComplete(1, 6144).padded(None)), "a notice"),
    "an answer to nothing": (nvsp.pack_receive(0xCAFE, [8, 0], nvsp.RndisPacket(1).pack(), 1), "a length of 8"),
    "a table of nothing": (pack_in_band(nvsp.IndirectionTable(0, 12).padded(None)), "1 to 128 entries"),
}  # fmt: skip


@pytest.mark.parametrize("what", PACKETS)
async def test_each_lie_in_a_packet_is_named(what: str) -> None:
    packet, sentence = PACKETS[what]
    error = await believe(Liar([], [packet], honest=4))
    assert isinstance(error, ProtocolError)
    assert sentence in str(error)


async def test_a_host_that_ends_a_cancelled_wait_leaves_the_client_usable() -> None:
    adapter = NetworkAdapter(INSTANCES[0], Loopback())
    async with plugged(adapter) as stage:
        client: VmbusClient = stage.client
        with anyio.move_on_after(0.01):
            async with NetworkClient.open(client, INSTANCES[3]):
                pytest.fail("there is no such adapter")
        async with NetworkClient.open(client) as nic:
            await proves_to_live(nic)
