"""`VmbusClient` against a host that a test writes down: opens, GPADLs, signals, other requests, the end."""

from __future__ import annotations

import struct
from uuid import UUID

import anyio
import pytest

from broker import (
    MonitorInfo,
    MonitorPageGpas,
    Partition,
    Trace,
    Vtl,
    receive_events,
)
from broker.errors import ChannelClosed, ConnectionFailed, HostError, RingCorrupt
from broker.trace import AnyEvent
from channels.client import VmbusClient
from channels.protocol.connect import (
    ModifyConnection,
    ModifyConnectionResponse,
    Unload,
    UnloadComplete,
)
from channels.protocol.gpadl import GpadlCreated, GpadlHeader, GpadlTeardown, GpadlTorndown
from channels.protocol.hvsock import TlConnectRequest, TlConnectResult
from channels.protocol.message import STATUS_CONNECTION_REFUSED, STATUS_UNSUCCESSFUL
from channels.protocol.offer import (
    OfferChannel,
    RelidReleased,
    RescindChannelOffer,
    hvsock_area,
)
from channels.protocol.open import (
    CloseChannel,
    ModifyChannel,
    ModifyChannelResponse,
    OpenChannel,
    OpenChannel2,
    OpenResult,
)
from channels.protocol.versions import Version

from .scripted_host import ScriptedHost, client_of, config, offer, scripted

VERSIONS = sorted(Version, reverse=True)


# opening and closing


async def test_a_channel_is_opened_over_fresh_rings_and_closed_before_they_are_taken_back() -> None:
    seen: list[tuple[int, ...]] = []

    async def script(host: ScriptedHost) -> None:
        await host.connect(offer())
        for _ in range(2):
            header, data = await host.take_gpadl()
            count, byte_offset, *gpns = struct.unpack(f"<II{len(data) // 8 - 1}Q", data)
            assert (header.range_count, count, byte_offset) == (1, 5 * 4096, 0)
            control = [host.partition.memory.read(gpn << 12, 4096) for gpn in (gpns[0], gpns[2])]
            assert control == [bytes(64) + b"\x01" + bytes(4031)] * 2
            host.partition.memory.write(gpns[1] << 12, b"\xff" * 4096)
            seen.append((header.gpadl_id, *gpns))
            request = await host.hear(OpenChannel2)
            assert request.ring_buffer_gpadl_id == header.gpadl_id
            assert request.downstream_ring_buffer_page_offset == 2
            assert (request.target_vp, request.event_flag, request.connection_id) == (0, 1, 0x2001)
            assert request.user_data == b"hello".ljust(120, b"\0")
            await host.say(OpenResult(1, request.open_id, 0))
            await host.hear(CloseChannel)
            await host.tear_down()
        await host.unload()

    async with client_of(script) as client:
        free = client.pages.free_count
        for _ in range(2):
            channel = await client.open(await client.wait_offer(), ring_pages=(2, 3), user_data=b"hello")
            assert client.pages.free_count == free - 5
            assert (channel.gpadl_id, *channel.gpns) == seen[-1]
            assert channel.upstream_pages == 2
            await client.close(channel)
            await client.close(channel)
            assert client.pages.free_count == free
        with pytest.raises(ValueError, match="a ring has a control page"):
            await client.open(channel.offer, ring_pages=(1, 2))
        with pytest.raises(ValueError, match="nobody takes the events of processor 1"):
            await client.open(channel.offer, target_vp=1)
    assert [gpadl_id for gpadl_id, *_ in seen] == [0xE1E10, 0xE1E11]


@pytest.mark.parametrize("where", ["gpadl", "open"])
async def test_what_the_host_refuses_is_taken_back(where: str) -> None:
    async def script(host: ScriptedHost) -> None:
        await host.connect(offer())
        if where == "gpadl":
            await host.take_gpadl(STATUS_UNSUCCESSFUL)
        else:
            await host.open(STATUS_UNSUCCESSFUL)
            await host.tear_down()
        await host.open()
        await host.unload()

    async with client_of(script) as client:
        free = client.pages.free_count
        one = await client.wait_offer()
        with pytest.raises(ChannelClosed, match="status 0x8000ffff"):
            await client.open(one)
        assert client.pages.free_count == free
        await client.open(one)


async def test_rings_that_the_host_spoils_before_they_are_open_are_taken_back() -> None:
    async def script(host: ScriptedHost) -> None:
        await host.connect(offer())
        header = await host.hear(GpadlHeader)
        (first,) = struct.unpack_from("<Q", header.data, 8)
        host.partition.memory.write(first << 12, b"\xff" * 4096)
        await host.say(GpadlCreated(1, header.gpadl_id, 0))
        await host.tear_down()
        await host.open()
        await host.unload()

    async with client_of(script) as client:
        free = client.pages.free_count
        one = await client.wait_offer()
        with pytest.raises(RingCorrupt):
            await client.open(one)
        assert client.pages.free_count == free
        await client.open(one)


async def test_too_much_user_data_is_refused_and_the_rings_are_taken_back() -> None:
    async def script(host: ScriptedHost) -> None:
        await host.connect(offer())
        await host.take_gpadl()
        await host.tear_down()
        await host.unload()

    async with client_of(script) as client:
        free = client.pages.free_count
        with pytest.raises(ValueError, match="at most 120 bytes"):
            await client.open(await client.wait_offer(), user_data=bytes(121))
        assert client.pages.free_count == free


async def test_a_channel_without_interrupts_says_so() -> None:
    async def script(host: ScriptedHost) -> None:
        await host.connect(offer())
        assert (await host.open()).target_vp == 0xFFFF_FFFF
        await host.unload()

    async with client_of(script) as client:
        await client.open(await client.wait_offer(), target_vp=None)


async def test_many_opens_at_once_wait_for_room_in_turn_and_those_that_are_cancelled_leave_no_gap() -> None:
    opened: list[int] = []

    async def script(host: ScriptedHost) -> None:
        await host.connect(*(offer(channel_id) for channel_id in range(1, 151)))
        await host.answer_everything()

    async def open_one(one: OfferChannel) -> None:
        await client.open(one, ring_pages=(2, 2))
        opened.append(one.channel_id)

    async def in_vain(offers: list[OfferChannel]) -> None:
        async with anyio.create_task_group() as cancelled:
            for one in offers:
                cancelled.start_soon(open_one, one)
            await client.guest_synic.turns.sleep_until(client.guest_synic.turns.clock.now() + 3, ("test", 0))
            cancelled.cancel_scope.cancel()

    async with client_of(script) as client:
        free, offers = client.pages.free_count, list(client.offers.values())
        async with anyio.create_task_group() as group:
            group.start_soon(in_vain, offers[100:])
            for one in offers[:100]:
                group.start_soon(open_one, one)
        assert sorted(opened) == list(range(1, 101))
        await client.guest_synic.turns.sleep_until(client.guest_synic.turns.clock.now() + 100_000, ("test", 0))
        assert client.pages.free_count == free - 400


async def test_a_rescind_while_it_opens_ends_the_wait_and_gives_everything_back() -> None:
    async def script(host: ScriptedHost) -> None:
        await host.connect(offer())
        await host.take_gpadl()
        await host.hear(OpenChannel)
        await host.say(RescindChannelOffer(1))
        await host.tear_down()
        assert await host.hear(RelidReleased) == RelidReleased(1)
        await host.unload()

    async with client_of(script) as client:
        free = client.pages.free_count
        with pytest.raises(ChannelClosed, match="channel 0x1 was not opened"):
            await client.open(await client.wait_offer())
        assert client.pages.free_count == free
        assert client.offers == {}


async def test_a_rescinded_channel_ends_its_doorbell_and_keeps_its_id_until_it_is_closed() -> None:
    async def script(host: ScriptedHost) -> None:
        await host.connect(offer())
        await host.open()
        await host.say(RescindChannelOffer(1))
        await host.tear_down()
        assert await host.hear(RelidReleased) == RelidReleased(1)
        await host.unload()

    async with client_of(script) as client:
        free = client.pages.free_count
        channel = await client.open(await client.wait_offer())
        with pytest.raises(ChannelClosed, match="the host rescinded channel 0x1"):
            await channel.doorbell.wait(0)
        await channel.signal()
        await client.close(channel)
        assert client.pages.free_count == free


@pytest.mark.parametrize("where", ["create", "open", "teardown"])
async def test_wherever_it_is_cancelled_nothing_is_left_open(where: str) -> None:
    async def script(host: ScriptedHost) -> None:
        await host.connect(offer())
        header = await host.hear(GpadlHeader)
        if where == "create":
            scope.cancel()
            await host.partition.sleep(1000)
        await host.say(GpadlCreated(1, header.gpadl_id, 0))
        if where != "create":
            request = await host.hear(OpenChannel)
            if where == "open":
                scope.cancel()
                await host.partition.sleep(1000)
            await host.say(OpenResult(1, request.open_id, 0))
            await host.hear(CloseChannel)
        await host.hear(GpadlTeardown)
        scope.cancel()
        await host.partition.sleep(1000)
        await host.say(GpadlTorndown(header.gpadl_id))
        await host.open()
        await host.unload()

    async with client_of(script) as client:
        free = client.pages.free_count
        one = await client.wait_offer()
        with anyio.CancelScope() as scope:
            channel = await client.open(one)
            await client.close(channel)
        assert scope.cancelled_caught
        await client.guest_synic.turns.sleep_until(10_000, ("test", 0))
        assert client.pages.free_count == free
        await client.open(one)
        assert client.complaints == {}


# GPADLs


async def test_a_long_gpadl_takes_several_messages_and_comes_back() -> None:
    async def script(host: ScriptedHost) -> None:
        await host.connect(offer())
        _, data = await host.take_gpadl()
        assert struct.unpack("<II300Q", data) == (300 * 4096, 0, *range(17, 317))
        await host.tear_down()
        _, data = await host.take_gpadl()
        assert struct.unpack("<II3Q", data) == (3 * 4096, 0, 9, 3, 7)
        await host.unload()

    async with client_of(script) as client:
        free = client.pages.free_count
        one = await client.wait_offer()
        with pytest.raises(ValueError, match="multiple of 8 bytes up to 65528"):
            await client.create_gpadl(one, range(9000))
        gpadl = await client.create_gpadl(one, 300)
        assert client.pages.free_count == free - 300
        await client.teardown_gpadl(gpadl)
        await client.teardown_gpadl(gpadl)
        assert client.pages.free_count == free
        assert (await client.create_gpadl(one, (9, 3, 7))).gpns == (9, 3, 7)
        assert client.pages.free_count == free


async def test_a_rescinded_channel_is_released_after_its_gpadls() -> None:
    async def script(host: ScriptedHost) -> None:
        await host.connect(offer())
        await host.take_gpadl()
        await host.say(RescindChannelOffer(1))
        await host.tear_down()
        await host.hear(RelidReleased)
        await host.unload()

    async with client_of(script) as client:
        gpadl = await client.create_gpadl(await client.wait_offer(), 1)
        await client.guest_synic.turns.sleep_until(5000, ("test", 0))
        await client.teardown_gpadl(gpadl)


# other requests


async def test_a_channel_moves_to_another_processor_when_the_host_says_so() -> None:
    async def script(host: ScriptedHost) -> None:
        await host.connect(offer())
        await host.open()
        for status in (0, STATUS_UNSUCCESSFUL):
            assert await host.hear(ModifyChannel) == ModifyChannel(1, 1)
            await host.say(ModifyChannelResponse(1, status))
        await host.unload()

    async with Partition(config(vp_count=3)) as partition, scripted(partition, script):
        more = [partition.vp(1).guest_synic()]
        async with VmbusClient(partition.vp(0).guest_synic(), processors=more) as client:
            channel = await client.open(await client.wait_offer(), target_vp=1)
            with pytest.raises(ValueError, match="processor 2"):
                await client.modify_channel(channel, 2)
            await client.modify_channel(channel, 1)
            with pytest.raises(ChannelClosed, match="status 0x8000ffff"):
                await client.modify_channel(channel, 1)
            port = await partition.synic().new_guest_event_port(2, Vtl.VTL0, 1, 2, 1)
            port.interrupt().deliver()
            assert await channel.doorbell.wait(0) == 1


async def test_monitor_pages_change_when_the_host_takes_them() -> None:
    async def script(host: ScriptedHost) -> None:
        contact = await host.connect()
        assert contact.parent_to_child_monitor_page_gpa == 17 << 12
        assert contact.child_to_parent_monitor_page_gpa == 18 << 12
        for state in (0, 2):
            assert await host.hear(ModifyConnection) == ModifyConnection(0x5000, 0x6000)
            await host.say(ModifyConnectionResponse(state))
        assert await host.hear(ModifyConnection) == ModifyConnection(0, 0)
        await host.say(ModifyConnectionResponse(0))
        await host.unload()

    async with client_of(script, monitor=True) as client:
        pages = MonitorPageGpas(parent_to_child=0x5000, child_to_parent=0x6000)
        await client.modify_connection(pages)
        with pytest.raises(HostError, match="state 2"):
            await client.modify_connection(pages)
        await client.modify_connection(None)


async def test_hvsock_connections_are_accepted_refused_and_given_up() -> None:
    service, endpoint = UUID(int=7), UUID(int=8)
    answer = OfferChannel(
        service, endpoint, 0x2011, 0, hvsock_area(guest_accepts=False), channel_id=5, connection_id=0x2005
    )

    async def script(host: ScriptedHost) -> None:
        await host.connect()
        await host.hear(TlConnectRequest)
        await host.say(TlConnectResult(endpoint, service, STATUS_CONNECTION_REFUSED))
        await host.hear(TlConnectRequest)
        scope.cancel()
        await host.hear(TlConnectRequest)
        await host.say(answer)
        await host.open()
        await host.unload()

    async with client_of(script) as client:
        with pytest.raises(ChannelClosed, match="nobody on the host takes the connection"):
            await client.connect_hvsock(service, endpoint)
        with anyio.CancelScope() as scope:
            await client.connect_hvsock(service, endpoint)
        assert scope.cancelled_caught
        connection = await client.connect_hvsock(service, endpoint)
        assert connection == answer
        await client.open(connection)


async def test_unload_ends_all_waits_and_channels_and_frees_all_pages() -> None:
    async def script(host: ScriptedHost) -> None:
        await host.connect(offer(1), offer(2))
        await host.open()
        await host.take_gpadl()
        await host.hear(OpenChannel)
        await host.hear(Unload)
        await host.say(UnloadComplete())

    ended: list[BaseException] = []

    async def open_in_vain() -> None:
        try:
            await client.open(client.offers[2])
        except HostError as error:
            ended.append(error)

    async with client_of(script) as client:
        free = client.pages.free_count
        channel = await client.open(client.offers[1])
        async with anyio.create_task_group() as group:
            group.start_soon(open_in_vain)
            await client.guest_synic.turns.sleep_until(5000, ("test", 0))
            await client.unload()
        assert [type(error) for error in ended] == [ConnectionFailed]
        with pytest.raises(ChannelClosed, match="the client has unloaded"):
            await channel.doorbell.wait(0)
        with pytest.raises(ConnectionFailed):
            await client.wait_offer()
        with pytest.raises(ConnectionFailed):
            await client.create_gpadl(channel, 1)
        await client.close(channel)
        await client.unload()
        assert client.offers == {}
        assert client.pages.free_count == free + 1, "the interrupt page is free, too"


# signals


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.label)
async def test_both_ends_are_signalled_as_the_version_has_it(version: Version) -> None:
    """Below 2.4 flag 0 and the bitmap, then the channel's own flag; the other way at 0.13 bitmap and connection 2."""

    async def script(host: ScriptedHost) -> None:
        contact = await host.connect(offer(9))
        request = await host.open()
        access, page = host.access, contact.interrupt_page_or_target_info
        if version.has_interrupt_page:
            host.partition.memory.write(page + 1, b"\x02")
            flag = 0
        else:
            flag = request.event_flag if isinstance(request, OpenChannel2) else 9
        port = await access.new_guest_event_port(2, Vtl.VTL0, 0, 2, flag)
        async with receive_events(access, 2 if version is Version.V1 else 0x2009) as events:
            port.interrupt().deliver()
            assert await events.receive() == {0}
        if version.has_interrupt_page:
            bitmap = host.partition.memory.read(page, 4096)
            sent = 0x0200.to_bytes(2, "little") if version is Version.V1 else bytes(2)
            assert bitmap == bytes(2048) + sent + bytes(2046)
        await host.unload()

    async with client_of(script, version=version) as client:
        channel = await client.open(await client.wait_offer())
        await channel.doorbell.wait(0)
        await channel.signal()


async def test_at_1_1_the_bitmap_is_for_channels_without_a_connection_of_their_own() -> None:
    async def script(host: ScriptedHost) -> None:
        page = (await host.connect(offer(9, is_dedicated=0))).interrupt_page_or_target_info
        await host.open()
        async with receive_events(host.access, 0x2009) as events:
            await events.receive()
        assert host.partition.memory.read(page + 2048, 2048) == b"\0\x02" + bytes(2046)
        await host.unload()

    async with client_of(script, version=Version.WIN7) as client:
        channel = await client.open(await client.wait_offer())
        await client.guest_synic.turns.sleep_until(5000, ("test", 0))
        await channel.signal()


@pytest.mark.parametrize(("monitor", "interrupts"), [(True, True), (True, False), (False, True)])
async def test_a_monitored_channel_is_signalled_by_the_monitor_page(monitor: bool, interrupts: bool) -> None:
    async def script(host: ScriptedHost) -> None:
        contact = await host.connect(offer(1, monitor_id=37, monitor_allocated=1))
        monitors = host.access.monitor_support
        assert monitors is not None
        if monitor:
            pages = MonitorPageGpas(contact.parent_to_child_monitor_page_gpa, contact.child_to_parent_monitor_page_gpa)
            await monitors.set_monitor_page(Vtl.VTL0, pages)
        await host.open()
        flags: list[int] = []

        class Port:
            async def handle_event(self, flag: int) -> None:
                flags.append(flag)

        async with await host.access.add_event_port(0x2001, Vtl.VTL0, Port(), MonitorInfo(37)):
            await host.partition.sleep(10_000)
        assert flags == [0]
        await host.unload()

    events: list[AnyEvent] = []
    async with (
        Partition(config(trace=Trace(events.append))) as partition,
        scripted(partition, script),
        VmbusClient(partition.vp(0).guest_synic(), monitor=monitor) as client,
    ):
        channel = await client.open(await client.wait_offer(), target_vp=0 if interrupts else None)
        await client.guest_synic.turns.sleep_until(5000, ("test", 0))
        await channel.signal()
