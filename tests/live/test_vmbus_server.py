"""`VmbusServer` and a guest written by hand: connections, channels, order, and a guest that does not listen.

Items 40, 41, 67, 69 and 71 of the VMBus conformance list need the shell; the machine's own are in `tests/machines`.
"""

from __future__ import annotations

import struct
from typing import Any
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from broker import HvStatus, Partition, Vtl
from channels.core.server.state import ServerConfig
from channels.devices import EchoDevice, serve_devices
from channels.faults import RefusingAccess
from channels.server import VmbusServer

from ..machines import wire
from .hand_guest import PAGE, HandGuest, LateDevice, config, served

item = pytest.mark.vmbus_item
VERSIONS = pytest.mark.parametrize("version", wire.VERSIONS, ids=wire.version_id)
SERVICE, ENDPOINT, SILO = UUID(int=0x111), UUID(int=0x222), UUID(int=0x333)


# a whole life


@VERSIONS
@pytest.mark.parametrize("virtual_time", [True, False], ids=["turns", "live"])
async def test_a_guest_of_any_version_connects_opens_talks_and_unloads(version: int, virtual_time: bool) -> None:
    async with (
        served(virtual_time=virtual_time) as (server, guest),
        serve_devices(server, EchoDevice(UUID(int=1)), EchoDevice(UUID(int=2))),
    ):
        value = version if version < wire.RS3_1 else 4
        expected = wire.version_response(value, 0 if version == wire.COPPER else None)
        assert await guest.connect(version) == expected
        assert len(await guest.offers()) == 2
        for channel_id in (1, 2):
            rings = await guest.open(channel_id)
            for number in range(5):
                await guest.echo(rings, b"packet %d" % number, channel_id)
        await guest.say(wire.close_channel(1), wire.gpadl_teardown(1, 1))
        await guest.expect(wire.gpadl_torndown(1))
        await guest.echo(rings, b"the other is still open", 2)
        await guest.unload()
        assert server.statistics().open_channels == 0
        assert server.statistics().complaints == {}


@pytest.mark.parametrize("seed", range(4))
async def test_a_guest_gets_along_with_a_synic_that_refuses_a_quarter_of_all_posts(seed: int) -> None:
    async with Partition(config()) as partition:
        access = RefusingAccess(partition.synic(), seed)
        async with (
            VmbusServer(access, partition.memory) as server,
            serve_devices(server, *(EchoDevice(UUID(int=number)) for number in range(1, 6))),
            HandGuest(partition).listening() as guest,
        ):
            for _ in range(2):
                await guest.connect()
                assert len(await guest.offers()) == 5
                for channel_id in range(1, 6):
                    await guest.echo(await guest.open(channel_id), b"hello", channel_id)
                await guest.unload()


# contact


async def test_connection_1_does_not_look_at_the_sint_and_connection_4_answers_there() -> None:
    async with served() as (server, guest), guest.listening(3):
        contact = wire.contact(wire.IRON, info=wire.info(sint=3))
        guest.connection_id = 4
        await guest.say(contact)
        assert await guest.hear() == wire.UNSUPPORTED
        assert server.statistics().sent == 1
        guest.connection_id = 1
    async with served() as (server, guest):
        guest.connection_id = 1
        await guest.say(contact)
        assert await guest.hear() == wire.version_response(4)


async def test_an_answer_to_another_sint_lies_in_its_slot() -> None:
    async with served(vp_count=2) as (_, guest):
        other = HandGuest(guest.partition, vp=1)
        async with other.listening(3):
            await guest.say(wire.contact(wire.IRON, vp=1, info=wire.info(sint=3)))
            assert await other.hear() == wire.UNSUPPORTED
            assert await guest.silent()


@pytest.mark.parametrize(("vp", "sint"), [(7, 3), (0, 16), (0, 255), (0xFFFF_FFFF, 200)])
async def test_an_answer_to_what_cannot_be_is_dropped(vp: int, sint: int) -> None:
    async with served() as (_, guest):
        await guest.say(wire.contact(wire.IRON, vp=vp, info=wire.info(sint=sint)))
        assert await guest.silent()
        assert await guest.connect()


async def test_a_contact_for_another_vtl_goes_to_the_other_server() -> None:
    forwarded: list[Any] = []
    async with served(server={"forward": forwarded.append}) as (_, guest):
        await guest.say(wire.contact(wire.COPPER, info=wire.info(vtl=2)))
        assert await guest.silent()
        assert [effect.vtl for effect in forwarded] == [2]
    async with served() as (_, guest):
        await guest.say(wire.contact(wire.COPPER, info=wire.info(vtl=2)))
        assert await guest.silent()


async def test_a_paravisors_server_is_at_a_connection_of_its_own() -> None:
    settings = {"vtls": (Vtl.VTL0, Vtl.VTL2)}
    redirected = ServerConfig(vtl=Vtl.VTL2, redirects_messages=True, first_channel_id=1025)
    async with (
        Partition(config(**settings)) as partition,
        VmbusServer(partition.synic(), partition.memory),
        VmbusServer(partition.synic(), partition.memory, redirected),
    ):
        synic = partition.vp(0).guest_synic(Vtl.VTL2)
        async with synic.messages(7) as messages:
            contact = wire.contact(wire.COPPER, info=wire.info(vtl=2))
            assert await synic.post_message(0x80_0074, 1, contact) is HvStatus.SUCCESS
            assert (await anext(messages)).payload == wire.version_response(0x80_0074, 0)


@pytest.mark.parametrize("version", [wire.WIN8, wire.WIN8_1, wire.COPPER], ids=wire.version_id)
async def test_control_messages_go_to_the_processor_of_the_contact_from_3_0_on(version: int) -> None:
    async with served(vp_count=2) as (_, guest):
        other = HandGuest(guest.partition, vp=1)
        async with other.listening():
            listener = other if version >= 0x0003_0000 else guest
            info = wire.info() if version >= wire.RS3_1 else 0
            await guest.say(wire.contact(version, vp=1, info=info), wire.REQUEST_OFFERS)
            await listener.hear()
            assert await listener.hear() == wire.ALL_OFFERS_DELIVERED
            assert await other.silent()
            assert await guest.silent()


@item(71)
@pytest.mark.parametrize(("backend", "allocates"), [("emulated", True), ("mshv", False), ("offloaded", False)])
@pytest.mark.parametrize("pages", [(0x20_0000, 0x20_1000), (0, 0)], ids=["guest pages", "no guest pages"])
async def test_monitor_pages_are_the_hosts_where_the_platform_has_them(
    backend: str, allocates: bool, pages: tuple[int, int]
) -> None:
    async with served(backend=backend) as (_, guest):
        response = await guest.connect(wire.COPPER, 0x41, pages)
        if not allocates:
            assert response == wire.version_response(4, 0x01)
            return
        assert len(response) == 40
        towards_guest, towards_host = struct.unpack_from("<QQ", response, 24)
        assert response[:24] == wire.version_response(4, 0x41, pages=(0, 0))[:24]
        assert towards_host
        assert towards_host % PAGE == towards_guest % PAGE == 0


@pytest.mark.parametrize("page", [0xFFFF_F000, 0x1000_0000_0000])
async def test_an_interrupt_page_outside_memory_fails_the_contact(page: int) -> None:
    async with served() as (_, guest):
        guest.connection_id = 1
        await guest.say(wire.contact(wire.V1, info=page))
        assert await guest.hear() == wire.UNSUPPORTED
        assert await guest.connect(wire.V1) == wire.version_response(wire.V1)


# custom targets


@item(44)
async def test_a_reserved_channel_is_answered_where_the_guest_says() -> None:
    async with served(vp_count=2) as (server, guest):
        late = await LateDevice().begin(server)
        other = HandGuest(guest.partition, vp=1)
        async with other.listening(5):
            await guest.connect()
            await guest.offers()
            await guest.say(wire.open_reserved(1, 1, 5, 7, 1))
            await guest.partition.settled()
            assert [asked[0] for asked in late.take()] == ["open"]
            late.offer.open_ended()
            assert await other.hear() == wire.open_result(1)
            await guest.say(wire.close_reserved(1, 1, 5))
            await guest.partition.settled()
            assert late.take() == [("close",)]
            late.offer.close_ended()
            assert await other.hear() == wire.reserved_closed(1)
            assert await guest.silent()


@item(41)
async def test_an_answer_to_a_busy_target_is_dropped_and_the_server_goes_on() -> None:
    async with served(message_queue_depth=1) as (server, guest):
        late = await LateDevice().begin(server)
        await guest.connect()
        await guest.offers()
        port = await guest.partition.synic().new_guest_message_port(Vtl.VTL0, 0, 5)
        async with guest.synic.messages(5) as messages:
            assert port.try_post_message(0x77, b"in the slot")
            await guest.partition.settled()
            assert port.try_post_message(0x77, b"in the queue")
            await guest.say(wire.open_reserved(1, 0, 5, 7, 1))
            await guest.partition.settled()
            with capture_logs() as logs:
                late.offer.open_ended()
                await guest.partition.settled()
            assert [log["event"] for log in logs] == ["answer_dropped"]
            assert [(await anext(messages)).payload for _ in range(2)] == [b"in the slot", b"in the queue"]
            assert await guest.silent(5)
            await guest.say(wire.close_reserved(1, 0, 5))
            await guest.partition.settled()
            late.offer.close_ended()
            assert (await anext(messages)).payload == wire.reserved_closed(1)


# a guest that does not listen


async def test_a_guest_that_does_not_listen_is_not_answered_without_end_and_nothing_is_lost() -> None:
    async with served(message_queue_depth=2, server={"depth": 8}) as (server, guest):
        for number in range(1, 31):
            await LateDevice(number).begin(server)
        await guest.connect()
        await guest.say(wire.REQUEST_OFFERS)
        await guest.partition.settled()
        before = server.statistics()
        assert (before.received, before.waiting_out, before.waiting_in) == (2, 31 - 3, 0)
        statuses = [await guest.post(wire.modify_channel(number, 0)) for number in range(1, 12)]
        assert statuses == [HvStatus.SUCCESS] * 8 + [HvStatus.INSUFFICIENT_BUFFERS] * 3
        await guest.partition.settled()
        assert (server.statistics().received, server.statistics().waiting_in) == (2, 8)
        heard = [await guest.hear() for _ in range(31)]
        assert [int.from_bytes(offer[184:188], "little") for offer in heard[:-1]] == list(range(1, 31))
        assert heard[-1] == wire.ALL_OFFERS_DELIVERED
        await guest.expect(*(wire.channel_modified(number, wire.FAILED) for number in range(1, 9)))
        await guest.say(wire.modify_channel(9, 0))
        await guest.expect(wire.channel_modified(9, wire.FAILED))
        assert server.statistics().waiting_out == 0


async def test_while_an_answer_is_undelivered_no_message_is_taken() -> None:
    async with served(message_queue_depth=1) as (server, guest):
        for number in (1, 2):
            await LateDevice(number).begin(server)
        await guest.connect()
        await guest.say(wire.REQUEST_OFFERS, wire.UNLOAD)  # three answers: slot, queue, and one that waits
        await guest.partition.settled()
        assert (server.statistics().received, server.statistics().waiting_out) == (2, 1)
        await guest.hear()
        await guest.partition.settled()
        assert server.statistics().received == 3
        await guest.hear()
        await guest.expect(wire.ALL_OFFERS_DELIVERED, wire.UNLOAD_COMPLETE)


async def test_offers_and_rescinds_of_busy_devices_wait_in_order() -> None:
    async with served(message_queue_depth=1) as (server, guest):
        await guest.connect()
        await guest.offers()
        for number in range(1, 21):
            late = await LateDevice(number).begin(server)
            late.offer.revoke()
        await guest.partition.settled()
        for channel_id in range(1, 21):
            offer = await guest.hear()
            assert int.from_bytes(offer[184:188], "little") == channel_id
            await guest.expect(wire.rescind(channel_id))
        assert await guest.silent()


async def test_a_message_with_a_bad_size_or_type_costs_a_complaint_each() -> None:
    async with served() as (server, guest):
        await guest.connect()
        await guest.say(b"", b"\x05", wire.header(6), wire.header(30), wire.open_channel(1)[:100])
        await guest.partition.settled()
        assert server.statistics().complaints == {"message_refused": 5}
        assert await guest.silent()
        assert await guest.offers() == []
