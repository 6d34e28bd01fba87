"""`NetworkClient` and `NetworkAdapter` together: every version, every size, sub-channels, link, filter, and how it ends."""

from __future__ import annotations

import struct
from functools import partial

import anyio
import pytest

from broker.errors import ChannelClosed, ConnectionFailed
from channels.devices import serve_devices
from channels.devices.network import Loopback, NetworkAdapter, PcapFile, Recorded, Replay, VirtualSwitch, read_pcap
from channels.drivers.network import Frame, NetworkClient, NvspVersion, Oid, PacketFilter, PacketInfo
from channels.protocol.ids import NETWORK
from channels.protocol.network import nvsp
from channels.protocol.network.frames import BROADCAST, flow_hash
from channels.protocol.network.oids import pack_rss_parameters

from .network_support import INSTANCES, RawNic, Sink, plugged

VERSIONS = pytest.mark.parametrize("version", NvspVersion, ids=lambda version: version.name)


def frame_to(nic: NetworkClient, number: int = 0, size: int = 60) -> Frame:
    return Frame((nic.address * 2 + b"\x88\xb5" + number.to_bytes(4, "big")).ljust(size, bytes([number & 0xFF])))


async def receive(nic: NetworkClient, count: int) -> list[Frame]:
    frames: list[Frame] = []
    while len(frames) < count:
        frames += await nic.receive_batch()
    return frames


async def echoed(nic: NetworkClient, frames: list[Frame], batch: int = 64) -> list[Frame]:
    """Send these in batches while they come back."""
    async with anyio.create_task_group() as group:

        async def send() -> None:
            for start in range(0, len(frames), batch):
                await nic.send_batch(frames[start : start + batch])

        group.start_soon(send)
        return await receive(nic, len(frames))


@VERSIONS
async def test_it_negotiates_every_version_and_learns_address_mtu_and_link(version: NvspVersion) -> None:
    adapter = NetworkAdapter(INSTANCES[0], Loopback(), address=b"\2\0\0\0\0\7", link_speed=1_000_000_000)
    async with plugged(adapter) as stage, NetworkClient.open(stage.client, versions=[version], mtu=4000) as nic:
        assert nic.version is version
        assert nic.address == b"\2\0\0\0\0\7"
        assert nic.mtu == (1500 if version is NvspVersion.V1 else 4000)
        assert nic.link_up
        assert nic.link_speed == 1_000_000_000
        assert nic.channel_count == 1
        frames = [frame_to(nic, number) for number in range(100)]
        assert await echoed(nic, frames) == frames


async def test_it_asks_for_the_newest_version_first_and_takes_what_there_is() -> None:
    adapter = NetworkAdapter(INSTANCES[0], Loopback(), versions=[NvspVersion.V1, NvspVersion.V4])
    async with plugged(adapter) as stage:
        async with NetworkClient.open(stage.client) as nic:
            assert nic.version is NvspVersion.V4
        with pytest.raises(ConnectionFailed, match="none of the NVSP versions"):
            async with NetworkClient.open(stage.client, versions=[NvspVersion.V5]):
                pytest.fail("there is no common version")
        async with NetworkClient.open(stage.client) as nic:
            await nic.keep_alive()


@pytest.mark.parametrize("send_pages", [256, 2, 0], ids=["sections", "one section", "pages only"])
@pytest.mark.parametrize("mtu", [1500, 9000])
async def test_frames_of_every_size_come_back_byte_for_byte(mtu: int, send_pages: int) -> None:
    adapter = NetworkAdapter(INSTANCES[0], Loopback())
    async with (
        plugged(adapter, memory_size=32 << 20) as stage,
        NetworkClient.open(stage.client, mtu=mtu, send_pages=send_pages) as nic,
    ):
        assert nic.mtu == mtu
        sizes = [*range(60, 1515)] if mtu == 1500 else [*range(60, 9015, 37), 6099, 6100, 6101, 6144, 9013, 9014]
        frames = [frame_to(nic, number, size) for number, size in enumerate(sizes)]
        assert await echoed(nic, frames) == frames
        assert nic.refused == 0
        for size in (13, mtu + 19):
            with pytest.raises(ValueError, match="a frame has 14 bytes"):
                await nic.send(Frame(bytes(size)))


async def test_information_about_a_frame_comes_back_as_it_was_sent() -> None:
    async with plugged(NetworkAdapter(INSTANCES[0], Loopback())) as stage, NetworkClient.open(stage.client) as nic:
        info = (PacketInfo(0, b"\x0d\0\0\0"), PacketInfo(6, b"\x21\0\0\0"), PacketInfo(0x80000001, b"12345678"))
        frames = [Frame(frame_to(nic, number).data, info[:number]) for number in range(4)] * 20
        assert await echoed(nic, frames) == frames


async def test_one_frame_at_a_time_and_batches_give_the_same_order() -> None:
    async with plugged(NetworkAdapter(INSTANCES[0], Loopback())) as stage, NetworkClient.open(stage.client) as nic:
        frames = [frame_to(nic, number) for number in range(30)]
        await nic.send_batch(frames[:20])
        for frame in frames[20:]:
            await nic.send(frame)
        came = [await nic.receive() for _ in range(5)]
        assert came + await receive(nic, 25) == frames


@pytest.mark.parametrize("ring_pages", [2, 3])
async def test_small_rings_and_buffers_only_make_it_wait(ring_pages: int) -> None:
    adapter = NetworkAdapter(INSTANCES[0], Loopback(), queue_size=4)
    async with (
        plugged(adapter) as stage,
        NetworkClient.open(stage.client, ring_pages=(ring_pages, ring_pages), receive_pages=2, send_pages=4) as nic,
    ):
        frames = [frame_to(nic, number, 60 + number % 1400) for number in range(500)]
        assert await echoed(nic, frames) == frames


async def test_a_send_that_is_cancelled_before_the_host_has_read_loses_no_slot() -> None:
    async with (
        plugged(NetworkAdapter(INSTANCES[0], Sink())) as stage,
        NetworkClient.open(stage.client, ring_pages=(2, 2)) as nic,
    ):
        for moment in range(1, 40):
            async with anyio.create_task_group() as group:
                group.start_soon(nic.send_batch, [frame_to(nic, size=1500)] * 200)
                for _ in range(moment):
                    await anyio.lowlevel.checkpoint()
                group.cancel_scope.cancel()
        await nic.send_batch([frame_to(nic)] * 2000)
        assert nic.refused == 0


async def test_a_send_that_is_cancelled_while_it_waits_loses_no_slot() -> None:
    class Stuck(Sink):
        is_stuck = True

        async def send(self, frames: object) -> None:
            while self.is_stuck:
                await wakeup.wait()

    backend = Stuck()
    async with (
        plugged(NetworkAdapter(INSTANCES[0], backend)) as stage,
        NetworkClient.open(stage.client, send_pages=6) as nic,
    ):
        wakeup = nic.turns.wakeup(("test", 0))
        for _ in range(10):
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(nic.send_batch, [frame_to(nic)] * 200)
                    await stage.partition.settled()
                    scope.cancel()
        backend.is_stuck = False
        wakeup.notify()
        for _ in range(10):
            await nic.send_batch([frame_to(nic)] * 200)
        assert nic.refused == 0


# sub-channels


async def test_sub_channels_share_the_flows_and_keep_each_in_order() -> None:
    sink = Sink()
    adapter = NetworkAdapter(INSTANCES[0], sink, max_subchannels=3)
    async with (
        plugged(adapter, memory_size=32 << 20) as stage,
        NetworkClient.open(stage.client, channels=8, packet_filter=PacketFilter.PROMISCUOUS) as nic,
    ):
        assert nic.channel_count == 4
        assert await nic.wait_indirection_table() == (0, 1, 2, 3) * 4
        flows = [bytes(5) + bytes([flow]) + nic.address + b"\x88\xb5" for flow in range(32)]
        assert len({flow_hash(flow) % 16 % 4 for flow in flows}) == 4, "these flows use all channels"
        frames = [Frame(flow + number.to_bytes(4, "big")) for number in range(50) for flow in flows]
        await nic.send_batch(frames)
        await stage.partition.settled()
        assert len(sink.frames) == len(frames)
        for flow in flows:
            mine = [frame for frame in frames if frame.data[:14] == flow]
            assert [frame for frame in sink.frames if frame.data[:14] == flow] == mine
        assert sink.frames != frames, "several channels do not keep the order between flows"
        assert sink.station.deliver(frames) == len(frames)
        came = await receive(nic, len(frames))
        for flow in flows:
            assert [frame for frame in came if frame.data[:14] == flow] == frames[flows.index(flow) :: 32]


@pytest.mark.parametrize(("version", "asked", "there", "count"), [
    (NvspVersion.V4, 2, 2, 1), (NvspVersion.V5, 2, 2, 3), (NvspVersion.V5, 5, 2, 3), (NvspVersion.V6_1, 2, 0, 1),
])  # fmt: skip
async def test_there_are_as_many_sub_channels_as_version_guest_and_host_allow(
    version: NvspVersion, asked: int, there: int, count: int
) -> None:
    adapter = NetworkAdapter(INSTANCES[0], Loopback(), max_subchannels=there)
    async with plugged(adapter) as stage:
        for _ in range(2):
            async with NetworkClient.open(stage.client, channels=asked, versions=[version]) as nic:
                assert nic.channel_count == count
                frames = [frame_to(nic, number) for number in range(200)]
                assert sorted(await echoed(nic, frames), key=lambda frame: frame.data) == sorted(
                    frames, key=lambda frame: frame.data
                )


async def test_the_guests_table_decides_where_its_frames_come() -> None:
    sink = Sink()
    async with (
        plugged(NetworkAdapter(INSTANCES[0], sink, max_subchannels=1)) as stage,
        NetworkClient.open(stage.client, channels=1, packet_filter=PacketFilter.PROMISCUOUS) as nic,
    ):
        flows = [Frame(bytes([2, 0, 0, 0, 0, flow]) + nic.address + b"\x88\xb5") for flow in range(64)]
        for table in ((1,), (0,), (0, 1)):
            assert await nic.set(Oid.RECEIVE_SCALE_PARAMETERS, pack_rss_parameters(table)) == 0
            before = [nic._lanes[index].channel.incoming.indices[1] for index in (0, 1)]
            sink.station.deliver(flows)
            assert len(await receive(nic, 64)) == 64
            used = [nic._lanes[index].channel.incoming.indices[1] != before[index] for index in (0, 1)]
            assert used[1] == (1 in table)


async def test_a_sub_channel_that_breaks_a_rule_is_lost_alone() -> None:
    sink = Sink()
    async with (
        plugged(NetworkAdapter(INSTANCES[0], sink, max_subchannels=2)) as stage,
        NetworkClient.open(stage.client, channels=2, packet_filter=PacketFilter.PROMISCUOUS) as nic,
    ):
        await nic._lanes[1].channel.send(struct.pack("<IIII", 107, 1, 0, 20).ljust(40, b"\0"))
        await stage.partition.settled()
        flows = [Frame(bytes([2, 0, 0, 0, 0, flow]) + nic.address + b"\x88\xb5") for flow in range(64)]
        sink.station.deliver(flows)
        assert len(await receive(nic, 64)) == 64
        await nic.keep_alive()


async def test_sub_channels_that_the_guest_keeps_open_do_not_harm_the_adapter() -> None:
    async with plugged(NetworkAdapter(INSTANCES[0], Loopback(), max_subchannels=2)) as stage:
        kept = None
        for _ in range(3):
            nic = await (await RawNic.open(stage.client)).ready()
            assert await nic.ask(nvsp.Subchannels(1, 3)) == nvsp.SubchannelsComplete(2), "too many"
            assert await nic.ask(nvsp.Subchannels(1, 2)) == nvsp.SubchannelsComplete(1, 2)
            assert await nic.ask(nvsp.Subchannels(1, 2)) == nvsp.SubchannelsComplete(2), "once"
            if kept is None:
                kept = await stage.client.open(await stage.client.wait_offer(NETWORK, INSTANCES[0], 1))
            await stage.client.close(nic.channel)
            await stage.partition.settled()
        await stage.client.close(kept)
        async with NetworkClient.open(stage.client, channels=2) as again:
            assert again.channel_count == 3


# link, filter, requests


async def test_the_link_goes_down_and_up_and_the_guest_can_wait_for_it() -> None:
    adapter = NetworkAdapter(INSTANCES[0], Loopback(), link_up=False)
    async with plugged(adapter) as stage, NetworkClient.open(stage.client) as nic:
        assert not nic.link_up
        for up in (True, False, True):
            adapter.set_link(up)
            await nic.wait_link(up)
        frames = [frame_to(nic)]
        assert await echoed(nic, frames) == frames


async def test_the_filter_can_change_and_a_reset_forgets_it() -> None:
    sink = Sink()
    async with plugged(NetworkAdapter(INSTANCES[0], sink)) as stage, NetworkClient.open(stage.client) as nic:
        other, own, all_ = Frame(bytes(60)), frame_to(nic), Frame(BROADCAST + bytes(54))
        sink.station.deliver([other, own, all_])
        assert await receive(nic, 2) == [own, all_]
        await nic.set_packet_filter(PacketFilter.PROMISCUOUS)
        sink.station.deliver([other, own, all_])
        assert await receive(nic, 3) == [other, own, all_]
        await nic.reset()
        sink.station.deliver([other, own, all_])
        await nic.set_packet_filter(PacketFilter.BROADCAST)
        sink.station.deliver([other, own, all_])
        assert await nic.receive() == all_


async def test_requests_of_several_tasks_take_turns_and_a_cancelled_one_leaves_no_answer() -> None:
    async with plugged(NetworkAdapter(INSTANCES[0], Loopback())) as stage, NetworkClient.open(stage.client) as nic:
        values: list[bytes | None] = []

        async def ask() -> None:
            values.append(await nic.query(Oid.MAXIMUM_FRAME_SIZE))

        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(ask)
        assert values == [struct.pack("<I", 1500)] * 5
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(ask)
                await anyio.lowlevel.checkpoint()
                scope.cancel()
        await stage.partition.settled()
        assert await nic.query(Oid.PERMANENT_ADDRESS) == nic.address
        assert await nic.query(0x12345678) is None


async def test_a_request_that_is_given_up_before_the_host_has_read_it_does_not_spoil_the_next() -> None:
    async with plugged(NetworkAdapter(INSTANCES[0], Loopback())) as stage, NetworkClient.open(stage.client) as nic:
        for moment in range(12):
            for request in (partial(nic.query, Oid.MAXIMUM_FRAME_SIZE), nic.reset):
                with anyio.CancelScope() as scope:
                    async with anyio.create_task_group() as group:
                        group.start_soon(request)
                        for _ in range(moment):
                            await anyio.lowlevel.checkpoint()
                        scope.cancel()
                assert await nic.query(Oid.PERMANENT_ADDRESS) == nic.address
        await nic.set_packet_filter(PacketFilter.PROMISCUOUS)
        frames = [frame_to(nic)]
        assert await echoed(nic, frames) == frames


# ends


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
async def test_what_was_sent_before_the_end_goes_out(seed: int | None) -> None:
    sink = Sink()
    async with plugged(NetworkAdapter(INSTANCES[0], sink), seed=seed) as stage:
        for size in (60, 1514):
            async with NetworkClient.open(stage.client, send_pages=16) as nic:
                frames = [frame_to(nic, number, size) for number in range(8)]
                await nic.send_batch(frames)
            assert sink.frames == frames
            sink.frames.clear()


async def test_an_adapter_can_be_opened_again_and_again_and_gives_all_pages_back() -> None:
    async with plugged(NetworkAdapter(INSTANCES[0], Loopback(), max_subchannels=2)) as stage:
        before = stage.client.pages.free_count
        for _ in range(3):
            async with NetworkClient.open(stage.client, channels=2) as nic:
                assert nic.channel_count == 3
            assert stage.client.pages.free_count == before
        assert stage.client.complaints == {}


async def test_an_exception_of_the_block_comes_out_unwrapped_and_the_adapter_is_closed() -> None:
    async with plugged(NetworkAdapter(INSTANCES[0], Loopback())) as stage:
        before = stage.client.pages.free_count
        with pytest.raises(ZeroDivisionError, match="own"):
            async with NetworkClient.open(stage.client):
                raise ZeroDivisionError("own")
        assert stage.client.pages.free_count == before
        async with NetworkClient.open(stage.client) as nic:
            await nic.keep_alive()


async def test_an_adapter_that_is_taken_away_ends_every_wait() -> None:
    async with plugged() as stage, anyio.create_task_group() as group:
        is_over, ended = anyio.Event(), []
        adapter = NetworkAdapter(INSTANCES[0], sink := Sink())

        async def serve() -> None:
            async with serve_devices(stage.server, adapter):
                await is_over.wait()

        async def use(nic: NetworkClient, what: str) -> None:
            with pytest.raises(ChannelClosed, match="rescinded"):
                await (nic.receive() if what == "receive" else nic.wait_link(False))
            ended.append(what)

        group.start_soon(serve)
        async with NetworkClient.open(stage.client) as nic:
            sink.station.deliver([frame_to(nic)])
            await stage.partition.settled()
            is_over.set()
            await stage.partition.settled()
            assert (await nic.receive()) == frame_to(nic), "what came before can still be received"
            async with anyio.create_task_group() as waits:
                waits.start_soon(use, nic, "receive")
                waits.start_soon(use, nic, "link")
            assert sorted(ended) == ["link", "receive"]
            for call in (nic.keep_alive(), nic.send_batch([frame_to(nic)] * 10)):
                with pytest.raises(ChannelClosed):
                    await call


# pcap files


async def test_recorded_frames_of_a_seeded_run_are_the_same_file_and_can_be_replayed(tmp_path) -> None:  # type: ignore[no-untyped-def]
    async def record(name: str) -> bytes:
        with PcapFile(tmp_path / name) as pcap:
            adapter = NetworkAdapter(INSTANCES[0], Recorded(Loopback(), pcap))
            async with plugged(adapter, seed=3) as stage, NetworkClient.open(stage.client) as nic:
                for number in range(20):
                    await nic.send(frame_to(nic, number))
                    await nic.receive()
                    now = nic.turns.clock.now()
                    await nic.turns.sleep_until(now + 1_000_000 * number, ("test", 0))
        return (tmp_path / name).read_bytes()

    assert SEEDED.setdefault("file", await record("one.pcap")) == await record("two.pcap")
    records = list(read_pcap(tmp_path / "one.pcap"))
    assert len(records) == 40
    for spaced in (True, False):
        replay = Replay(tmp_path / "one.pcap", spaced=spaced)
        async with (
            plugged(NetworkAdapter(INSTANCES[0], replay)) as stage,
            NetworkClient.open(stage.client, packet_filter=PacketFilter.PROMISCUOUS) as nic,
        ):
            begin = nic.turns.clock.now()
            came = [(await nic.receive(), nic.turns.clock.now() - begin) for _ in records]
            assert [frame for frame, _ in came] == [frame for _, frame in records]
            if spaced:
                late = [tick - due for (_, tick), (due, _) in zip(came, records, strict=True)]
                first = late[0]
                assert all(0 <= lateness - first < 100 for lateness in late), "never early, a few exits late"
            else:
                assert came[-1][1] - came[0][1] < 100
            assert replay.sent == 40
            await nic.send(frame_to(nic))


SEEDED: dict[str, bytes] = {}
"""What the first loop wrote."""


# a switch on one partition


async def test_three_adapters_on_a_switch_and_one_that_does_not_listen() -> None:
    switch = VirtualSwitch(lossless=False)
    adapters = [NetworkAdapter(instance, switch.port(), queue_size=8) for instance in INSTANCES[:3]]
    async with (
        plugged(*adapters, memory_size=32 << 20) as stage,
        NetworkClient.open(stage.client, INSTANCES[0]) as a,
        NetworkClient.open(stage.client, INSTANCES[1], receive_pages=4) as b,
    ):
        await a.send(Frame(BROADCAST + a.address + bytes(48)))
        await b.receive()
        await b.send(Frame(a.address + b.address + bytes(48)))
        await a.receive()
        assert adapters[2].statistics().filtered == 1, "it is not open, and then it is not asked"
        for _ in range(10):
            await a.send_batch([Frame(b.address + a.address + bytes(48))] * 10)
            await stage.partition.settled()
        dropped = switch.ports[1].statistics().dropped
        assert dropped > 50
        assert dropped == adapters[1].statistics().dropped_full
        assert len(await receive(b, 100 - dropped)) == 100 - dropped
        assert adapters[0].statistics().from_guest == 101
