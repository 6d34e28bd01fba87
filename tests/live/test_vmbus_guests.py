"""`VmbusServer` and a guest written by hand: trusted guests, and hvsock (items 21, 22, 57)."""

from __future__ import annotations

import struct
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from broker import Partition
from channels.bus import OfferParams
from channels.server import VmbusServer

from ..machines import wire
from .hand_guest import HandGuest, LateDevice, config, served

item = pytest.mark.vmbus_item
VERSIONS = pytest.mark.parametrize("version", wire.VERSIONS, ids=wire.version_id)
SERVICE, ENDPOINT, SILO = UUID(int=0x111), UUID(int=0x222), UUID(int=0x333)


# trust


@pytest.mark.parametrize("backend", ["openhcl", "emulated"])
@item(57)
async def test_a_trusted_guest_is_heard_over_trusted_messages_alone(backend: str) -> None:
    async with served(backend=backend) as (server, guest):
        await server.offer(OfferParams.device(SERVICE, ENDPOINT, confidential_external_memory=True), LateDevice())
        contact = wire.contact(wire.COPPER, info=wire.info(features=0x10))
        await guest.say(contact, trusted=True)
        assert await guest.hear() == wire.version_response(4, 0x10)
        await guest.say(wire.REQUEST_OFFERS)
        assert await guest.silent()
        (offer,) = await guest.offers(trusted=True)
        assert offer[56] == 0x06


async def test_a_backend_without_trusted_posts_has_no_trusted_guests() -> None:
    async with served(backend="mshv") as (_, guest):
        await guest.say(wire.contact(wire.COPPER, info=wire.info(features=0x10)), trusted=True)
        assert await guest.hear() == wire.version_response(4, 0)


# hvsock


async def test_without_a_listener_a_connect_is_refused() -> None:
    async with served() as (_, guest):
        await guest.connect(wire.RS5)
        await guest.say(wire.hvsock_connect(ENDPOINT, SERVICE, SILO))
        await guest.expect(wire.hvsock_result(ENDPOINT, SERVICE))


@item(21)
async def test_a_listener_offers_the_channel_of_a_connect() -> None:
    heard: list[tuple[UUID, UUID, UUID]] = []

    async def listener(service: UUID, endpoint: UUID, silo: UUID) -> bool:
        heard.append((service, endpoint, silo))
        if service != SERVICE:
            return False
        device = LateDevice()
        device.params = OfferParams.hvsock(service, endpoint, guest_accepts=False, silo_id=silo)
        await device.begin(server)
        return True

    async with served(server={"hvsock_listener": listener}) as (server, guest):
        await guest.connect(wire.RS5)
        await guest.offers()
        await guest.say(wire.hvsock_connect(ENDPOINT, SERVICE, SILO), wire.hvsock_connect(SILO, SILO))
        area = struct.pack("<IBBI16s", 0, 0, 0, 1, SILO.bytes_le)
        answers = {await guest.hear(), await guest.hear()}
        accepted = wire.offer_channel(1, SERVICE, ENDPOINT, 0x2011, area)
        assert answers == {accepted, wire.hvsock_result(SILO, SILO)}
        assert sorted(heard) == sorted([(SERVICE, ENDPOINT, SILO), (SILO, SILO, UUID(int=0))])


async def test_a_listener_that_raises_refuses_and_the_server_goes_on() -> None:
    async def listener(*_: UUID) -> bool:
        raise RuntimeError("broken listener")

    async with served(server={"hvsock_listener": listener}) as (_, guest):
        await guest.connect(wire.RS5)
        with capture_logs() as logs:
            await guest.say(wire.hvsock_connect(ENDPOINT, SERVICE))
            await guest.expect(wire.hvsock_result(ENDPOINT, SERVICE))
        assert [log["event"] for log in logs] == ["hvsock_listener_failed"]
        assert await guest.offers() == []


async def test_connects_that_wait_keep_further_messages_waiting() -> None:
    async with Partition(config()) as partition:
        answered = partition.turns.wakeup(("test", 0))
        waiting: list[UUID] = []
        is_over = False

        async def listener(service: UUID, endpoint: UUID, silo: UUID) -> bool:
            waiting.append(endpoint)
            while not is_over:
                await answered.wait()
            return False

        async with (
            VmbusServer(partition.synic(), partition.memory, hvsock_listener=listener) as server,
            HandGuest(partition).listening() as guest,
        ):
            await guest.connect(wire.RS5)
            for number in range(20):
                await guest.say(wire.hvsock_connect(UUID(int=number), SERVICE))
            await partition.settled()
            assert (len(waiting), server.statistics().waiting_in) == (16, 4)
            is_over = True
            answered.notify()
            refused = {await guest.hear() for _ in range(20)}
            assert refused == {wire.hvsock_result(UUID(int=number), SERVICE) for number in range(20)}
