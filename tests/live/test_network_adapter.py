"""A network adapter and a driver by hand: the order of NVSP messages, buffers, RNDIS requests, and what a guest loses that
breaks a rule."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import anyio
import pytest
from structlog.testing import capture_logs

from broker.errors import ConfigurationError
from channels.devices.network import NetworkAdapter, VirtualSwitch
from channels.devices.network.backends import NetworkBackend
from channels.protocol.gparange import GpaRange, TransferRange
from channels.protocol.network import nvsp, rndis
from channels.protocol.network.frames import BROADCAST, Frame, PacketInfo, pack_frame
from channels.protocol.network.nvsp import NvspVersion
from channels.protocol.network.oids import Oid, PacketFilter, pack_rss_parameters
from channels.protocol.packet import Packet, PacketType, pack_transfer_pages

from .network_support import INSTANCES, RawNic, Sink, loses_its_channel, plugged, send_data_batch

DATA = pack_frame(Frame(bytes(60)))
VERSIONS = pytest.mark.parametrize("version", NvspVersion, ids=lambda version: version.name)


def frame(destination: bytes, number: int = 0, size: int = 60) -> Frame:
    return Frame((destination + b"\2\0\0\0\0\1\x88\xb5" + number.to_bytes(4, "big")).ljust(size, b"x"))


# negotiation


@VERSIONS
async def test_every_version_is_agreed_on_and_carries_frames_both_ways(version: NvspVersion) -> None:
    sink = Sink()
    async with plugged(NetworkAdapter(INSTANCES[0], sink)) as stage:
        nic = await (await RawNic.open(stage.client)).ready(version)
        await nic.listen()
        assert await nic.send_data(DATA) == nvsp.RndisPacketComplete(1)
        assert sink.frames == [Frame(bytes(60))]
        assert sink.station.deliver([frame(BROADCAST)]) == 1
        found, packet = await nic.frames()
        assert found == [frame(BROADCAST)]
        await nic.complete(packet)


async def test_a_version_that_the_adapter_does_not_know_is_answered_with_status_0_until_one_is() -> None:
    adapter = NetworkAdapter(INSTANCES[0], Sink(), versions=[NvspVersion.V1, NvspVersion.V4])
    async with plugged(adapter) as stage:
        nic = await RawNic.open(stage.client)
        for version, other in ((0x60001, 0x60001), (0x12345, 0x12345), (0x40000, 0x30002), (0, 0)):
            assert await nic.ask(nvsp.Init(version, other)) == nvsp.InitComplete(0xFFFFFFFF, 34, 0)
        assert await nic.ask(nvsp.Init(0x40000, 0x40000)) == nvsp.InitComplete(0xFFFFFFFF, 34, 1)


async def test_version_1_is_answered_with_its_own_number() -> None:
    async with plugged(NetworkAdapter(INSTANCES[0], Sink())) as stage:
        nic = await RawNic.open(stage.client)
        assert await nic.ask(nvsp.Init(2, 2)) == nvsp.InitComplete(2, 34, 1)


@pytest.mark.parametrize(("mtu", "pages", "size", "count"), [(1500, 8, 1792, 18), (9000, 8, 9280, 3), (68, 1, 384, 10)])
async def test_the_receive_buffer_is_divided_by_the_mtu(mtu: int, pages: int, size: int, count: int) -> None:
    async with plugged(NetworkAdapter(INSTANCES[0], Sink())) as stage:
        nic = await RawNic.open(stage.client)
        await nic.init()
        await nic.configure(mtu)
        assert await nic.buffers(pages) == nvsp.ReceiveBufferComplete(1, 1, 0, size, count, size * count)


async def test_buffers_that_cannot_be_are_refused_and_others_taken_later() -> None:
    async with plugged(NetworkAdapter(INSTANCES[0], Sink())) as stage:
        nic = await RawNic.open(stage.client)
        await nic.init()
        await nic.configure(9000)
        small = await stage.client.create_gpadl(nic.channel, 1)
        for gpadl_id in (0, small.gpadl_id):  # not there; too small
            assert await nic.ask(nvsp.ReceiveBuffer(gpadl_id)) == nvsp.ReceiveBufferComplete(2)
            assert await nic.ask(nvsp.SendBuffer(gpadl_id)) == nvsp.SendBufferComplete(2)
        await nic.buffers()


# order

CONFIG = nvsp.NdisConfig(1514)
NDIS = nvsp.NdisVersion(6, 30)
RNDIS = nvsp.RndisPacket(0)
WRONG_ORDERS: dict[str, tuple[Sequence[nvsp.NvspMessage], str]] = {
    "configuration before the version": ([CONFIG], "INIT first"),
    "NDIS version before the version": ([NDIS], "INIT first"),
    "buffer before the version": ([nvsp.ReceiveBuffer(1)], "INIT first"),
    "data before the version": ([RNDIS], "INIT first"),
    "sub-channels before the version": ([nvsp.Subchannels(1, 1)], "INIT first"),
    "two versions": ([nvsp.Init(0x60001, 0x60001)] * 2, "expected one version"),
    "two configurations": ([nvsp.Init(0x60001, 0x60001), CONFIG, CONFIG], "one NDIS configuration"),
    "configuration at version 1": ([nvsp.Init(2, 2), CONFIG], "below version 3.2"),
    "an MTU of 67": ([nvsp.Init(0x60001, 0x60001), nvsp.NdisConfig(81)], "an MTU of 68"),
    "an MTU of 65522": ([nvsp.Init(0x60001, 0x60001), nvsp.NdisConfig(65536)], "an MTU of 68"),
    "an MTU below 0": ([nvsp.Init(0x60001, 0x60001), nvsp.NdisConfig(0)], "an MTU of 68"),
    "two NDIS versions": ([nvsp.Init(0x60001, 0x60001), NDIS, NDIS], "one NDIS version"),
    "buffer before the configuration": ([nvsp.Init(0x60001, 0x60001), nvsp.ReceiveBuffer(1)], "NDIS_CONFIG first"),
    "data before the configuration": ([nvsp.Init(0x60001, 0x60001), RNDIS], "NDIS_CONFIG first"),
    "data before the NDIS version": ([nvsp.Init(0x60001, 0x60001), CONFIG, RNDIS], "NDIS_VERSION first"),
    "data before the buffer": ([nvsp.Init(0x60001, 0x60001), CONFIG, NDIS, RNDIS], "RECEIVE_BUFFER first"),
    "control before the buffer": (
        [nvsp.Init(0x60001, 0x60001), CONFIG, NDIS, nvsp.RndisPacket(1)],
        "RECEIVE_BUFFER first",
    ),
    "sub-channels before the buffer": (
        [nvsp.Init(0x60001, 0x60001), CONFIG, NDIS, nvsp.Subchannels(1, 1)],
        "RECEIVE_BUFFER first",
    ),
    "a revocation of nothing": ([nvsp.Init(0x60001, 0x60001), nvsp.RevokeSendBuffer(0)], "a buffer that there is"),
    "the data path at version 3.2": ([nvsp.Init(0x30002, 0x30002), nvsp.SwitchDataPath(0)], "a path that there is"),
    "a data path that there is not": ([nvsp.Init(0x60001, 0x60001), nvsp.SwitchDataPath(1)], "a path that there is"),
    "a completion as a message": ([nvsp.Init(0x60001, 0x60001), nvsp.RndisPacketComplete(1)], "a request"),
}


@pytest.mark.parametrize("what", WRONG_ORDERS)
async def test_a_guest_that_breaks_the_order_loses_its_channel_and_may_open_it_again(what: str) -> None:
    messages, reason = WRONG_ORDERS[what]
    sink, adapters = Sink(), [NetworkAdapter(INSTANCES[0], Sink()), NetworkAdapter(INSTANCES[1], Sink())]
    adapters.append(NetworkAdapter(INSTANCES[2], sink))
    async with plugged(*adapters) as stage:
        other = await (await RawNic.open(stage.client, INSTANCES[2])).ready()
        nic = await RawNic.open(stage.client)
        for message in messages[:-1]:
            await nic.tell(message)
        await loses_its_channel(stage, nic.tell(messages[-1]), reason)
        assert await other.send_data(DATA) == nvsp.RndisPacketComplete(1)
        assert len(sink.frames) == 1
        await stage.client.close(nic.channel)
        again = await (await RawNic.open(stage.client)).ready()
        assert await again.send_data(DATA) == nvsp.RndisPacketComplete(1)


@pytest.mark.parametrize("payload", [b"", b"\0", bytes(40), b"\xff" * 40, nvsp.InitComplete(2, 34, 1).padded(None)])
async def test_what_is_no_message_of_a_guest_ends_the_channel(payload: bytes) -> None:
    async with plugged(NetworkAdapter(INSTANCES[0], Sink())) as stage:
        nic = await (await RawNic.open(stage.client)).ready()
        await loses_its_channel(stage, nic.tell(payload), "NVSP message")


async def test_a_second_receive_buffer_and_a_wrong_name_end_the_channel() -> None:
    for message, reason in (
        (nvsp.ReceiveBuffer(0xE1E11), "one receive buffer"),
        (nvsp.SendBuffer(0xE1E11), "one send buffer"),
        (nvsp.RevokeReceiveBuffer(7), "a buffer that there is"),
        (nvsp.RndisPacket(2), "channel type 0 or 1"),
    ):
        async with plugged(NetworkAdapter(INSTANCES[0], Sink())) as stage:
            nic = await (await RawNic.open(stage.client)).ready()
            await loses_its_channel(stage, nic.tell(message), reason)


# memory that a guest names


@pytest.mark.parametrize(("section", "size"), [(2, 60), (0xFFFFFFFE, 60), (0, 6145), (0, 0xFFFFFFFF)])
async def test_a_section_that_there_is_not_ends_the_channel(section: int, size: int) -> None:
    async with plugged(NetworkAdapter(INSTANCES[0], Sink())) as stage:
        nic = await (await RawNic.open(stage.client)).ready()
        await loses_its_channel(stage, nic.tell(nvsp.RndisPacket(0, section, size)), "send section")


async def test_ranges_outside_of_memory_and_transfer_pages_end_the_channel() -> None:
    payload = nvsp.RndisPacket(0).padded(NvspVersion.V6_1)
    for kind in ("outside", "too many", "transfer pages"):
        async with plugged(NetworkAdapter(INSTANCES[0], Sink())) as stage:
            nic = await (await RawNic.open(stage.client)).ready()
            if kind == "outside":
                action, reason = nic.channel.send_gpa_direct([GpaRange(60, 0, (1 << 40,))], payload, 1), "GPA range"
            elif kind == "too many":
                ranges = [GpaRange(4096, 0, (nic.page,))] * 33
                action, reason = nic.channel.send_gpa_direct(ranges, payload, 1), "at most 131072 bytes"
            else:
                packet = pack_transfer_pages(0xCAFE, [TransferRange(60, 0)], payload, 1)
                action, reason = nic.channel.send_packet(packet), "a packet that guests send"
            await loses_its_channel(stage, action, reason)


async def test_a_message_may_begin_in_a_section_and_go_on_in_pages() -> None:
    sink = Sink()
    async with plugged(NetworkAdapter(INSTANCES[0], sink)) as stage:
        nic = await (await RawNic.open(stage.client)).ready()
        nic.write_section(1, DATA[:44])
        nic.channel.memory.write(nic.page * 4096 + 100, DATA[44:])
        payload = nvsp.RndisPacket(0, 1, 44).padded(nic.version)
        await nic.channel.request(payload, [GpaRange(60, 100, (nic.page,))])
        assert sink.frames == [Frame(bytes(60))]


@pytest.mark.parametrize("data", [b"", bytes(44), DATA[:-1], DATA + bytes(8), DATA * 2 + b"\3"])
async def test_data_that_is_no_rndis_has_status_5_and_costs_nothing_else(data: bytes) -> None:
    sink = Sink()
    adapter = NetworkAdapter(INSTANCES[0], sink)
    async with plugged(adapter) as stage:
        nic = await (await RawNic.open(stage.client)).ready()
        assert await nic.send_data(data) == nvsp.RndisPacketComplete(5)
        assert await nic.ask(nvsp.RndisPacket(0)) == nvsp.RndisPacketComplete(5), "no data at all"
        assert await nic.send_data(DATA * 3) == nvsp.RndisPacketComplete(1)
        assert len(sink.frames) == 3
        assert adapter.statistics().invalid == 2


async def test_a_gpadl_that_is_torn_down_takes_its_buffer_with_it() -> None:
    sink = Sink()
    adapter = NetworkAdapter(INSTANCES[0], sink)
    async with plugged(adapter) as stage:
        nic = await (await (await RawNic.open(stage.client)).ready()).listen()
        await stage.client.teardown_gpadl(nic.receive_gpadl)
        before = [nic.channel.memory.read(gpn * 4096, 4096) for gpn in nic.receive_gpns]
        assert sink.station.deliver([frame(BROADCAST)]) == 1
        await stage.partition.settled()
        assert adapter.statistics().dropped_closed == 1
        assert before == [nic.channel.memory.read(gpn * 4096, 4096) for gpn in nic.receive_gpns]
        await stage.client.teardown_gpadl(nic.send_gpadl)
        await nic.buffers()
        assert await nic.send_data(DATA) == nvsp.RndisPacketComplete(1)
        await stage.client.teardown_gpadl(nic.send_gpadl)
        await loses_its_channel(stage, nic.tell(nvsp.RndisPacket(0, 0, 60)), "no section without a send buffer")


async def test_data_after_the_receive_buffer_is_gone_ends_the_channel() -> None:
    async with plugged(NetworkAdapter(INSTANCES[0], Sink())) as stage:
        nic = await (await RawNic.open(stage.client)).ready()
        await stage.client.teardown_gpadl(nic.receive_gpadl)
        await loses_its_channel(stage, nic.tell(nvsp.RndisPacket(0, 0, 60)), "RECEIVE_BUFFER first")


async def test_revoked_buffers_are_not_used_and_new_ones_taken() -> None:
    sink = Sink()
    async with plugged(NetworkAdapter(INSTANCES[0], sink)) as stage:
        nic = await (await (await RawNic.open(stage.client)).ready()).listen()
        sink.station.deliver([frame(BROADCAST, 1)])
        _, lent = await nic.frames()
        await nic.tell(nvsp.RevokeReceiveBuffer())
        await nic.tell(nvsp.RevokeSendBuffer())
        await stage.partition.settled()
        sink.station.deliver([frame(BROADCAST, 2)])
        await stage.partition.settled()
        await nic.complete(lent)
        await nic.buffers()
        sink.station.deliver([frame(BROADCAST, 3)])
        found, _ = await nic.frames()
        assert found == [frame(BROADCAST, 3)]
        assert await nic.send_data(DATA) == nvsp.RndisPacketComplete(1)


class Stuck(Sink):
    """Takes nothing before it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.is_stuck = True

    async def send(self, frames: Sequence[Frame]) -> None:
        wakeup = self.station.turns.wakeup(("test", 0))
        while self.is_stuck:
            self.station.when_room(wakeup)
            await wakeup.wait()
        await super().send(frames)

    def go_on(self) -> None:
        self.is_stuck = False
        self.station.tell_room()


@pytest.mark.parametrize(("is_torn_down", "status"), [(False, 1), (True, 2)])
async def test_a_send_buffer_that_goes_while_packets_wait_costs_those_at_most(is_torn_down: bool, status: int) -> None:
    backend = Stuck()
    adapter = NetworkAdapter(INSTANCES[0], backend)
    async with plugged(adapter) as stage:
        nic = await (await RawNic.open(stage.client)).ready()
        await send_data_batch(nic, 1, DATA)
        await stage.partition.settled()  # the back end has this one, and the next ones wait
        await send_data_batch(nic, 3, DATA)
        await stage.partition.settled()
        await nic.tell(nvsp.RevokeSendBuffer())
        if is_torn_down:
            await stage.client.teardown_gpadl(nic.send_gpadl)
        await stage.partition.settled()
        backend.go_on()
        answers = [nvsp.parse_from_host((await nic.channel.receive()).payload) for _ in range(4)]
        assert answers == [nvsp.RndisPacketComplete(1)] + [nvsp.RndisPacketComplete(status)] * 3
        assert len(backend.frames) == (1 if is_torn_down else 4)
        assert adapter.statistics().dropped_closed == (3 if is_torn_down else 0)
        assert await nic.control(rndis.KeepAlive(9)) == rndis.KeepAliveComplete(9)


@pytest.mark.parametrize("kind", ["payload", "ranges"])
async def test_a_packet_larger_than_any_driver_makes_is_not_kept(kind: str) -> None:
    async with plugged(NetworkAdapter(INSTANCES[0], Sink())) as stage:
        nic = await (await RawNic.open(stage.client)).ready()
        payload = nvsp.RndisPacket(0).padded(NvspVersion.V6_1)
        if kind == "payload":
            action = nic.channel.send(payload.ljust(4104, b"\0"), 1, completion=True)
        else:
            action = nic.channel.send_gpa_direct([GpaRange(1, 0, (nic.page,))] * 254, payload, 1)
        await loses_its_channel(stage, action, "at most 4096 bytes")


# frames for the guest


async def test_frames_of_a_burst_share_packets_and_come_in_order() -> None:
    sink = Sink()
    async with plugged(NetworkAdapter(INSTANCES[0], sink), memory_size=32 << 20) as stage:
        nic = await (await (await RawNic.open(stage.client)).ready(receive_pages=64)).listen()
        burst = [frame(BROADCAST, number) for number in range(100)]
        assert sink.station.deliver(burst) == 100
        came: list[Frame] = []
        packets = []
        while len(came) < 100:
            found, packet = await nic.frames()
            came += found
            packets.append(packet)
        assert came == burst
        assert len(packets) == 4, "32 frames in a packet"


async def test_without_free_suballocations_frames_wait_and_beyond_the_queue_none_are_taken() -> None:
    sink = Sink()
    adapter = NetworkAdapter(INSTANCES[0], sink, queue_size=10)
    async with plugged(adapter) as stage:
        nic = await (await (await RawNic.open(stage.client)).ready()).listen()
        burst = [frame(BROADCAST, number) for number in range(50)]
        done = 0
        for _ in range(10):
            done += sink.station.deliver(burst[done:])
            await stage.partition.settled()
        assert done == 14 + 10, "18 suballocations without the 4 kept for control messages, and the queue"
        assert sink.station.deliver(burst[done:]) == 0
        found, packet = await nic.frames()
        assert found == burst[:10]
        await nic.complete(packet)
        await stage.partition.settled()
        assert sink.station.deliver(burst[done:]) == 10
        assert [one for _ in range(2) for one in (await nic.frames())[0]] == burst[10:24]
        assert (await nic.control(rndis.KeepAlive(9))) == rndis.KeepAliveComplete(9), "control messages still come"


@pytest.mark.parametrize("what", ["never sent", "twice", "too short", "another message"])
async def test_a_completion_that_cannot_be_ends_the_channel(what: str) -> None:
    sink = Sink()
    async with plugged(NetworkAdapter(INSTANCES[0], sink)) as stage:
        nic = await (await (await RawNic.open(stage.client)).ready()).listen()
        sink.station.deliver([frame(BROADCAST)])
        _, packet = await nic.frames()
        if what == "never sent":
            action, reason = nic.complete_id(99), "the ID of frames that were sent"
        elif what == "twice":
            await nic.complete(packet)
            action, reason = nic.complete(packet), "the ID of frames that were sent"
        elif what == "too short":
            action, reason = nic.complete(packet, b""), "RNDIS_PACKET_COMPLETE"
        else:
            action, reason = nic.complete(packet, RNDIS.pack()), "RNDIS_PACKET_COMPLETE"
        await loses_its_channel(stage, action, reason)


async def test_frames_beyond_the_mtu_are_dropped_and_a_vlan_tag_is_not() -> None:
    sink = Sink()
    adapter = NetworkAdapter(INSTANCES[0], sink)
    async with plugged(adapter) as stage:
        nic = await (await (await RawNic.open(stage.client)).ready()).listen()
        fits = [frame(BROADCAST, 0, 1514), frame(BROADCAST, 1, 1518)]
        info = (PacketInfo(99, bytes(400)),)
        sink.station.deliver([frame(BROADCAST, 2, 1519), fits[0], frame(BROADCAST, 3, 9014), fits[1]])
        sink.station.deliver([Frame(bytes(14) + bytes(1500), info)])
        found, _ = await nic.frames()
        assert found == fits
        await stage.partition.settled()
        assert adapter.statistics().dropped_size == 3


async def test_frames_that_the_guest_can_never_have_do_not_wait() -> None:
    sink = Sink()
    adapter = NetworkAdapter(INSTANCES[0], sink, queue_size=4)
    async with plugged(adapter) as stage:
        await (await (await RawNic.open(stage.client)).ready(receive_pages=1)).listen()
        big = [frame(BROADCAST, number, 100_000) for number in range(50)]
        assert sink.station.deliver(big) == 50
        assert adapter.statistics().dropped_size == 50


@pytest.mark.parametrize("message", [
    rndis.Set.of(5, Oid.PACKET_FILTER, bytes(4)), rndis.Reset(), rndis.Halt(5),
], ids=["no filter", "reset", "halt"])  # fmt: skip
async def test_a_guest_that_listens_no_more_lets_those_go_that_wait_for_it(message: rndis.RndisMessage) -> None:
    sink = Sink()
    adapter = NetworkAdapter(INSTANCES[0], sink, queue_size=4)
    async with plugged(adapter) as stage:
        nic = await (await (await RawNic.open(stage.client)).ready()).listen()
        burst = [frame(BROADCAST, number) for number in range(100)]
        done = 0
        while taken := sink.station.deliver(burst[done:]):
            done += taken
            await stage.partition.settled()
        wakeup = nic.channel.turns.wakeup(("test", 0))
        sink.station.when_room(wakeup)
        async with anyio.create_task_group() as group:
            group.start_soon(wakeup.wait)
            await stage.partition.settled()
            assert await nic.send_control(message.pack()) == nvsp.RndisPacketComplete(1)
        assert sink.station.deliver(burst[done:]) == 100 - done
        assert adapter.statistics().filtered == 4 + 100 - done


async def test_a_link_that_flaps_while_the_guest_takes_nothing_is_told_once() -> None:
    sink = Sink()
    adapter = NetworkAdapter(INSTANCES[0], sink)
    async with plugged(adapter) as stage:
        nic = await (await RawNic.open(stage.client)).ready(receive_pages=1)
        await nic.listen()
        held: list[Packet] = []
        for number in range(1, 41):
            adapter.set_link(up=number % 2 == 0)
            await stage.partition.settled()
            if not held:
                held.append(await nic.next_of_type_7())
        await nic.complete(held[0])
        message = rndis.KeepAlive(1)
        assert await nic.send_control(message.pack()) == nvsp.RndisPacketComplete(1)
        packet = await nic.next_of_type_7()
        ((size, offset),) = nic.ranges(packet)
        assert rndis.parse_control_from_host(nic.read(offset, size)) == rndis.IndicateStatus(0x4001000B)
        await nic.complete(packet)
        packet = await nic.next_of_type_7()
        ((size, offset),) = nic.ranges(packet)
        assert rndis.parse_control_from_host(nic.read(offset, size)) == rndis.KeepAliveComplete(1)


async def test_a_channel_that_is_opened_again_and_again_leaves_one_table_for_the_guest_to_read() -> None:
    adapter = NetworkAdapter(INSTANCES[0], Sink(), max_subchannels=1)
    async with plugged(adapter) as stage:
        nic = await (await RawNic.open(stage.client)).ready()
        assert await nic.ask(nvsp.Subchannels(1, 1)) == nvsp.SubchannelsComplete(1, 1)
        for _ in range(3):  # 16 KiB of completions, which it does not read
            await send_data_batch(nic, 200, DATA)
            await stage.partition.settled()
        offer = await stage.client.wait_offer(nic.channel.offer.interface_id, INSTANCES[0], 1)
        for _ in range(10):
            await stage.client.close(await stage.client.open(offer, ring_pages=(2, 2)))
            await stage.partition.settled()
        session = adapter._session
        assert session is not None
        assert len(session.notices) == 1
        while (packet := await nic.channel.receive()).packet_type is not PacketType.IN_BAND:
            pass
        table = nvsp.parse_from_host(packet.payload)
        assert isinstance(table, nvsp.IndirectionTable)
        assert table.entries() == (0, 1) * 8


OWN = b"\x00\x15\x5d\x00\x00\x01"
GROUP, OTHER_GROUP = b"\x01\0\x5e\0\0\1", b"\x01\0\x5e\0\0\2"
FILTERS = {
    PacketFilter.NONE: [],
    PacketFilter.DIRECTED: [0],
    PacketFilter.BROADCAST: [2],
    PacketFilter.ALL_MULTICAST: [3, 4],
    PacketFilter.MULTICAST: [3],
    PacketFilter.PROMISCUOUS: [0, 1, 2, 3, 4],
    PacketFilter.DIRECTED | PacketFilter.BROADCAST | PacketFilter.MULTICAST: [0, 2, 3],
}


@pytest.mark.parametrize("chosen", FILTERS, ids=lambda chosen: chosen.name or "several")
async def test_the_packet_filter_decides_which_frames_come(chosen: PacketFilter) -> None:
    sink = Sink()
    adapter = NetworkAdapter(INSTANCES[0], sink, address=OWN)
    frames = [frame(to, number) for number, to in enumerate((OWN, b"\2" * 6, BROADCAST, GROUP, OTHER_GROUP))]
    async with plugged(adapter) as stage:
        nic = await (await RawNic.open(stage.client)).ready()
        assert sink.station.deliver(frames) == 5, "nothing comes before a filter is set"
        answer = await nic.control(rndis.Set.of(3, Oid.MULTICAST_LIST, GROUP))
        assert answer == rndis.SetComplete(3, 0)
        await nic.listen(chosen)
        assert sink.station.deliver(frames) == 5
        wanted = [frames[index] for index in FILTERS[chosen]]
        if wanted:
            found, packet = await nic.frames()
            assert found == wanted
            await nic.complete(packet)
        assert adapter.statistics().filtered == 5 + 5 - len(wanted)
        assert adapter.statistics().to_guest == len(wanted)
        await nic.control(rndis.Reset())
        sink.station.deliver(frames)
        await stage.partition.settled()
        assert adapter.statistics().to_guest == len(wanted), "a reset forgets the filter"


async def test_pulling_the_cable_is_told_and_stops_frames_both_ways() -> None:
    sink = Sink()
    adapter = NetworkAdapter(INSTANCES[0], sink)
    async with plugged(adapter) as stage:
        nic = await (await (await RawNic.open(stage.client)).ready()).listen()
        for up, status in ((False, 0x4001000C), (True, 0x4001000B)):
            adapter.set_link(up)
            packet = await nic.next_of_type_7()
            ((size, offset),) = nic.ranges(packet)
            assert rndis.parse_control_from_host(nic.read(offset, size)) == rndis.IndicateStatus(status)
            await nic.complete(packet)
            connected = await nic.control(rndis.Query.of(4, Oid.MEDIA_CONNECT_STATUS))
            assert connected == rndis.QueryComplete.of(4, 0, struct.pack("<I", not up))
            sink.station.deliver([frame(BROADCAST)])
            assert await nic.send_data(DATA) == nvsp.RndisPacketComplete(1)
        found, _ = await nic.frames()
        assert found == [frame(BROADCAST)], "the one of the link that was up"
        assert len(sink.frames) == 1
        assert adapter.statistics().dropped_link_down == 1


# RNDIS requests


async def test_every_oid_of_the_supported_list_is_answered() -> None:
    adapter = NetworkAdapter(INSTANCES[0], Sink(), address=OWN, max_subchannels=3, link_speed=25_000_000_000)
    expected = {
        Oid.MAXIMUM_FRAME_SIZE: struct.pack("<I", 4000),
        Oid.MAXIMUM_TOTAL_SIZE: struct.pack("<I", 4014),
        Oid.LINK_SPEED: struct.pack("<I", 250_000_000),
        Oid.PERMANENT_ADDRESS: OWN,
        Oid.CURRENT_ADDRESS: OWN,
        Oid.MEDIA_CONNECT_STATUS: bytes(4),
        Oid.PACKET_FILTER: struct.pack("<I", 0x20),
        Oid.TRANSMIT_OK: struct.pack("<I", 1),
        Oid.RECEIVE_NO_BUFFER: bytes(4),
    }
    async with plugged(adapter) as stage:
        nic = await (await (await RawNic.open(stage.client)).ready(mtu=4000)).listen()
        await nic.send_data(DATA)
        answer = await nic.control(rndis.Query.of(7, Oid.SUPPORTED_LIST))
        assert isinstance(answer, rndis.QueryComplete)
        listed = struct.unpack(f"<{answer.length // 4}I", answer.information)
        assert listed == tuple(sorted(Oid))
        settable_only = {Oid.RECEIVE_SCALE_PARAMETERS, Oid.OFFLOAD_PARAMETERS}
        for oid in listed:
            answer = await nic.control(rndis.Query.of(8, oid))
            assert isinstance(answer, rndis.QueryComplete)
            assert answer.status == (0xC00000BB if oid in settable_only else 0), f"{oid:#x}"
            if oid in expected:
                assert answer.information == expected[Oid(oid)], f"{oid:#x}"


SETS = {
    "an unknown OID": (0x12345678, bytes(4), 0xC00000BB),
    "one that is read only": (Oid.LINK_SPEED, bytes(4), 0xC00000BB),
    "a short packet filter": (Oid.PACKET_FILTER, bytes(3), 0xC0010014),
    "no packet filter": (Oid.PACKET_FILTER, b"", 0xC0010014),
    "half an address": (Oid.MULTICAST_LIST, bytes(9), 0xC0010014),
    "too many addresses": (Oid.MULTICAST_LIST, bytes(6 * 33), 0xC0010014),
    "no addresses": (Oid.MULTICAST_LIST, b"", 0),
    "a table": (Oid.RECEIVE_SCALE_PARAMETERS, pack_rss_parameters((0, 1) * 8), 0),
    "a table of channels that there are not": (Oid.RECEIVE_SCALE_PARAMETERS, pack_rss_parameters((0, 2)), 0xC0010015),
    "no table": (Oid.RECEIVE_SCALE_PARAMETERS, bytes(40), 0xC0010015),
    "no offload": (Oid.OFFLOAD_PARAMETERS, bytes.fromhex("80011400") + bytes(16), 0),
    "an offload": (Oid.OFFLOAD_PARAMETERS, bytes.fromhex("80011400") + b"\4" * 11 + bytes(5), 0xC00000BB),
}


@pytest.mark.parametrize("what", SETS)
async def test_what_cannot_be_set_has_a_status(what: str) -> None:
    oid, information, status = SETS[what]
    async with plugged(NetworkAdapter(INSTANCES[0], Sink(), max_subchannels=1)) as stage:
        nic = await (await RawNic.open(stage.client)).ready()
        assert await nic.control(rndis.Set.of(5, oid, information)) == rndis.SetComplete(5, status)
        unknown = await nic.control(rndis.Query.of(6, 0xFFFFFFFF))
        assert unknown == rndis.QueryComplete.of(6, 0xC00000BB)


async def test_keep_alive_reset_and_halt() -> None:
    async with plugged(NetworkAdapter(INSTANCES[0], Sink())) as stage:
        nic = await (await (await RawNic.open(stage.client)).ready()).listen()
        assert await nic.control(rndis.KeepAlive(77)) == rndis.KeepAliveComplete(77)
        assert await nic.control(rndis.Reset()) == rndis.ResetComplete(0)
        assert await nic.send_control(rndis.Halt(1).pack()) == nvsp.RndisPacketComplete(1)
        assert await nic.send_control(rndis.KeepAlive(1).pack()) == nvsp.RndisPacketComplete(5), "it has to begin anew"
        answer = await nic.control(rndis.Initialize(8))
        assert answer == rndis.InitializeComplete(8, 0)
        refused = await nic.control(rndis.Initialize(9, 2))
        assert refused == rndis.InitializeComplete(9, 0xC00000BB), "version 2 is not spoken"


@pytest.mark.parametrize("data", [bytes(8), b"\2\0\0\0\xff\xff\0\0", b"\7\0\0\0\x14\0\0\0" + bytes(12), DATA])
async def test_a_control_message_that_is_none_has_status_5(data: bytes) -> None:
    async with plugged(NetworkAdapter(INSTANCES[0], Sink())) as stage:
        nic = await (await RawNic.open(stage.client)).ready()
        assert await nic.send_control(data) == nvsp.RndisPacketComplete(5)
        assert await nic.control(rndis.KeepAlive(1)) == rndis.KeepAliveComplete(1)


async def test_a_guest_that_asks_without_reading_loses_its_channel() -> None:
    async with plugged(NetworkAdapter(INSTANCES[0], Sink())) as stage:
        nic = await (await RawNic.open(stage.client)).ready()
        message = rndis.KeepAlive(1).pack()
        nic.write_section(0, message)
        payload = nvsp.RndisPacket(1, 0, len(message)).padded(nic.version)
        await loses_its_channel(stage, nic.channel.send_batch([payload] * 100), "answers that wait to be read")


# a back end that waits


async def test_packets_beyond_those_that_wait_are_answered_with_busy_and_completions_still_count() -> None:
    class Slow(Sink):
        is_open = False

        async def send(self, frames: Sequence[Frame]) -> None:
            while not self.is_open:
                await wakeup.wait()
            await super().send(frames)

    sink = Slow()
    adapter = NetworkAdapter(INSTANCES[0], sink)
    async with plugged(adapter) as stage:
        wakeup = stage.partition.vp(0).guest_synic().turns.wakeup(("test", 0))
        nic = await (await (await RawNic.open(stage.client)).ready()).listen()
        await send_data_batch(nic, 64 + 4096 + 30, DATA)
        busy = [await nic.channel.receive() for _ in range(30)]
        assert {packet.payload[:8] for packet in busy} == {nvsp.RndisPacketComplete(6).pack()}
        assert [packet.transaction_id for packet in busy] == list(range(4161, 4191))
        sink.station.deliver([frame(BROADCAST)])
        found, packet = await nic.frames()
        assert found == [frame(BROADCAST)]
        await nic.complete(packet)
        sink.is_open = True
        wakeup.notify()
        done = [await nic.channel.receive() for _ in range(64 + 4096)]
        assert [packet.transaction_id for packet in done] == list(range(1, 4161))
        assert {packet.packet_type for packet in done} == {PacketType.COMPLETION}
        assert len(sink.frames) == 64 + 4096
        assert adapter.statistics().dropped_busy == 30


async def test_a_back_end_starts_its_own_work_once_the_guest_listens_and_a_bug_in_it_is_the_devices() -> None:
    class Broken(NetworkBackend):
        def plug(self, station: object) -> None:
            pass

        async def send(self, frames: Sequence[Frame]) -> None:
            raise ZeroDivisionError("broken")

    sink = Sink()
    async with plugged(NetworkAdapter(INSTANCES[0], sink)) as stage:
        nic = await (await RawNic.open(stage.client)).ready()
        assert sink.runs == 0
        await nic.listen()
        await nic.listen()
        assert sink.runs == 1

    async def use_broken() -> None:
        async with plugged(NetworkAdapter(INSTANCES[0], Broken())) as stage:
            nic = await (await RawNic.open(stage.client)).ready()
            await nic.send_data(DATA)

    with capture_logs() as logs, pytest.raises(ZeroDivisionError, match="broken"):
        await use_broken()
    assert [log["event"] for log in logs] == ["device_failed"]


async def test_the_guest_hears_of_a_virtual_function_and_switches_to_it() -> None:
    adapter = NetworkAdapter(INSTANCES[0], Sink(), vf_serial=42)
    async with plugged(adapter) as stage:
        nic = await RawNic.open(stage.client)
        await nic.init()
        notice = await nic.channel.receive()
        assert nvsp.parse_from_host(notice.payload) == nvsp.VfAssociation(1, 42)
        for path in (1, 0):
            assert await nic.ask(nvsp.SwitchDataPath(path)) is None
            assert adapter.uses_vf == bool(path)


def test_settings_that_cannot_be_are_refused() -> None:
    for settings, sentence in (
        ({"address": b"12345"}, "6 bytes and no group's"),
        ({"address": GROUP}, "6 bytes and no group's"),
        ({"max_subchannels": 64}, "0 to 63 sub-channels"),
        ({"queue_size": 0}, "1 frame or more"),
        ({"link_speed": -1}, "a link has a speed"),
    ):
        with pytest.raises(ConfigurationError, match=sentence):
            NetworkAdapter(INSTANCES[0], VirtualSwitch().port(), **settings)  # type: ignore[arg-type]
