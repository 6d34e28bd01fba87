"""`VmbusServer` and a guest written by hand: devices that answer later, and a server that stands still (items 40, 67, 69)."""

from __future__ import annotations

from uuid import UUID

import pytest

from broker import HvStatus, Partition, Vtl
from channels.devices import EchoDevice, serve_devices
from channels.server import VmbusServer

from ..machines import wire
from .hand_guest import HandGuest, LateDevice, config, served

item = pytest.mark.vmbus_item
VERSIONS = pytest.mark.parametrize("version", wire.VERSIONS, ids=wire.version_id)
SERVICE, ENDPOINT, SILO = UUID(int=0x111), UUID(int=0x222), UUID(int=0x333)


# devices that answer later


@item(69)
async def test_an_open_and_a_modify_wait_for_the_device_and_a_gpadl_and_a_close_are_served() -> None:
    async with served(vp_count=2) as (server, guest):
        late = await LateDevice().begin(server)
        await guest.connect(wire.IRON)
        await guest.offers()
        await guest.say(wire.gpadl_header(1, 7), wire.open_channel(1, 9, 7))
        await guest.partition.settled()
        assert [asked[0] for asked in late.take()] == ["gpadl", "open"]
        late.offer.gpadl_created(7)
        await guest.expect(wire.gpadl_created(1, 7))
        await guest.partition.sleep(1_500_000)  # 150 ms
        assert await guest.silent()
        assert late.offer.open_ended()
        await guest.expect(wire.open_result(1, 9))
        await guest.say(wire.modify_channel(1, 1))
        await guest.partition.sleep(1_500_000)
        assert await guest.silent()
        assert late.take() == [("modify", 1)]
        late.offer.modify_ended()
        await guest.expect(wire.channel_modified(1))
        await guest.say(wire.close_channel(1), wire.UNLOAD)
        await guest.partition.settled()
        assert late.take() == [("close",), ("teardown", 7)]
        assert await guest.silent()
        late.offer.close_ended()
        assert await guest.silent()
        late.offer.gpadl_torn_down(7)
        await guest.expect(wire.UNLOAD_COMPLETE)


@item(69)
async def test_a_server_that_stands_still_serves_what_waited_when_it_goes_on() -> None:
    async with served() as (server, guest), serve_devices(server, EchoDevice(UUID(int=1))):
        await guest.connect()
        await guest.offers()
        rings = await guest.gpadl()
        server.stop()
        fields = {"open_id": 7, "gpadl_id": 1, "page_offset": 2}
        await guest.say(wire.open_channel(1, **fields), wire.gpadl_header(1, 9))
        await guest.partition.sleep(1_500_000)
        assert await guest.silent()
        server.start()
        heard = {await guest.hear(), await guest.hear()}
        assert heard == {wire.open_result(1, 7), wire.gpadl_created(1, 9)}
        await guest.echo(rings, b"hello")


async def test_while_it_stands_still_the_server_does_not_touch_the_synic() -> None:
    """bugs.md, paused-post."""
    async with served(message_queue_depth=1) as (server, guest):
        for number in range(1, 7):
            await LateDevice(number).begin(server)
        await guest.connect()
        await guest.say(wire.REQUEST_OFFERS)
        await guest.partition.settled()
        assert server.statistics().waiting_out == 5
        server.stop()
        heard = [await guest.hear() for _ in range(2)]  # what the SynIC has already
        assert await guest.silent()
        assert server.statistics().waiting_out == 5
        server.start()
        heard += [await guest.hear() for _ in range(5)]
        assert [message[184] for message in heard[:6]] == [1, 2, 3, 4, 5, 6]
        assert heard[6] == wire.ALL_OFFERS_DELIVERED
        assert await guest.silent()


async def test_64_guest_messages_may_wait() -> None:
    async with served() as (server, guest):
        server.stop()
        statuses = [await guest.post(wire.header(3)) for _ in range(66)]
        assert statuses == [HvStatus.SUCCESS] * 64 + [HvStatus.INSUFFICIENT_BUFFERS] * 2


@item(67)
async def test_stop_and_start_do_not_repeat_a_teardown() -> None:
    async with served() as (server, guest):
        late = await LateDevice().begin(server)
        await guest.connect()
        await guest.offers()
        await guest.say(wire.gpadl_header(1, 7))
        await guest.partition.settled()
        late.offer.gpadl_created(7)
        await guest.expect(wire.gpadl_created(1, 7))
        await guest.say(wire.gpadl_teardown(1, 7))
        await guest.partition.settled()
        assert late.take() == [("gpadl", 7), ("teardown", 7)]
        for _ in range(3):
            server.stop()
            await guest.partition.settled()
            server.start()
            await guest.partition.settled()
        assert late.take() == []
        late.offer.gpadl_torn_down(7)
        await guest.expect(wire.gpadl_torndown(7))


@item(40)
async def test_answers_that_the_synic_did_not_take_are_saved_and_come_first_and_in_order() -> None:
    async with Partition(config(message_queue_depth=1)) as partition, HandGuest(partition).listening() as guest:
        async with VmbusServer(partition.synic(), partition.memory) as server:
            late = await LateDevice().begin(server)
            await LateDevice(2).begin(server)
            await guest.connect()
            await guest.offers()
            await guest.say(wire.gpadl_header(1, 7), wire.open_channel(1, 9, 7))
            await partition.settled()
            port = await partition.synic().new_guest_message_port(Vtl.VTL0, 0, 2)
            assert port.try_post_message(1, b"slot")
            await partition.settled()
            assert port.try_post_message(1, b"queue")
            late.offer.gpadl_created(7)
            late.offer.open_ended()
            await partition.settled()
            assert server.statistics().waiting_out == 2
            server.stop()
            document = server.save()
        assert await guest.hear() == b"slot"
        assert await guest.hear() == b"queue"
        async with VmbusServer(partition.synic(), partition.memory, saved=document) as server:
            again = await LateDevice().begin(server)
            other = await LateDevice(2).begin(server)
            assert await guest.silent()
            again.offer.restore(is_open=True)
            other.offer.restore(is_open=False)
            server.start()
            await guest.expect(wire.gpadl_created(1, 7), wire.open_result(1, 9))
            assert [asked[0] for asked in again.take()] == ["resume gpadl", "resume"]
            assert await guest.silent()
