"""`VmbusClient` against a host that a test writes down: negotiation, offers, and what goes wrong."""

from __future__ import annotations

import itertools
from uuid import UUID

import anyio
import pytest

from broker import (
    ConfigurationError,
    Partition,
    Trace,
    Vtl,
    receive_messages,
)
from broker.errors import ChannelClosed, ConnectionFailed
from broker.trace import AnyEvent, Post
from channels.client import CLIENT_ID, VmbusClient
from channels.faults import RefusingAccess
from channels.protocol.connect import (
    InitiateContact,
    InitiateContact2,
    VersionResponse,
)
from channels.protocol.gpadl import GpadlTorndown
from channels.protocol.offer import (
    AllOffersDelivered,
    OfferChannel,
    RelidReleased,
    RequestOffers,
    RescindChannelOffer,
)
from channels.protocol.open import (
    CloseChannel,
)
from channels.protocol.versions import Version

from .scripted_host import INSTANCE, INTERFACE, ScriptedHost, accepts, client_of, config, offer, scripted

VERSIONS = sorted(Version, reverse=True)


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.label)
async def test_it_falls_back_to_each_version_that_a_host_may_have_as_newest(version: Version) -> None:
    newer = [other for other in VERSIONS if other > version]

    async def script(host: ScriptedHost) -> None:
        for expected in newer:
            assert (await host.hear(InitiateContact)).version_requested == expected
            await host.say(VersionResponse())
        contact = await host.hear(InitiateContact)
        assert contact.version_requested == version
        await host.say(accepts(contact, connection_id=1))
        await host.hear(RequestOffers)
        await host.say(offer(), AllOffersDelivered())
        await host.unload()

    async with Partition(config()) as partition, scripted(partition, script) as host:
        async with VmbusClient(partition.vp(0).guest_synic()) as client:
            assert client.version is version
            assert client.offers == {1: offer()}
        contacts = [connection for connection, message in host.heard if isinstance(message, InitiateContact)]
        assert contacts == [4 if asked.names_connection else 1 for asked in [*newer, version]]
        assert {connection for connection, message in host.heard[len(contacts) :]} == {1}


async def test_it_asks_for_the_versions_that_it_is_given_and_says_who_it_is() -> None:
    async def script(host: ScriptedHost) -> None:
        contact = await host.hear(InitiateContact2)
        assert (contact.version_requested, contact.client_id) == (Version.COPPER, CLIENT_ID)
        assert contact.feature_flags == 0x2F
        assert contact.target_message_vp == 0
        await host.say(VersionResponse())
        second = await host.connect()
        assert second.version_requested == Version.WIN10
        assert second.interrupt_page_or_target_info == 0
        await host.unload()

    async with client_of(script, version=[Version.WIN10, 0x0006_0000]) as client:
        assert client.version is Version.WIN10
        assert client.features == 0


async def test_a_host_that_knows_none_of_the_versions_fails_the_connection_and_no_page_is_lost() -> None:
    async def script(host: ScriptedHost) -> None:
        for _ in range(2):
            await host.hear(InitiateContact)
            await host.say(VersionResponse())

    async with Partition(config()) as partition, scripted(partition, script):
        client = VmbusClient(partition.vp(0).guest_synic(), version=[Version.V1, Version.WIN7], monitor=True)
        free = client.pages.free_count
        with pytest.raises(ConnectionFailed, match=r"no server takes one of the versions 1.1, 0.13"):
            async with client:
                pytest.fail("it is not connected")
        assert client.pages.free_count == free


async def test_without_a_server_there_is_no_connection_and_no_retry() -> None:
    async with Partition(config()) as partition:
        client = VmbusClient(partition.vp(0).guest_synic())
        with pytest.raises(ConnectionFailed, match=r"no server takes one of the versions 6.0, "):
            async with client:
                pytest.fail("it is not connected")
        assert client.post_retries == 0
        with pytest.raises(ConnectionFailed, match="has not connected yet"):
            client.version


async def test_a_server_at_connection_1_alone_is_found_with_an_older_version() -> None:
    async def script(host: ScriptedHost) -> None:
        assert (await host.connect()).version_requested == Version.WIN10_RS3_0
        await host.unload()

    async with (
        Partition(config()) as partition,
        scripted(partition, script, connections=(1,)),
        VmbusClient(partition.vp(0).guest_synic()) as client,
    ):
        assert client.version is Version.WIN10_RS3_0


async def test_the_server_of_a_paravisor_is_found_where_asked() -> None:
    async def script(host: ScriptedHost) -> None:
        await host.connect()
        await host.unload()

    async with (
        Partition(config()) as partition,
        scripted(partition, script, connections=(4, 0x800074)) as host,
        VmbusClient(partition.vp(0).guest_synic(), redirect=True, version=Version.IRON),
    ):
        assert [connection for connection, _ in host.heard] == [0x800074, 4]


@pytest.mark.parametrize("version", [Version.WIN8, 5, [Version.IRON, 5]])
async def test_versions_that_cannot_be_are_refused(version: object) -> None:
    async with Partition(config(vp_count=2)) as partition:
        with pytest.raises(ConfigurationError):
            VmbusClient(partition.vp(1).guest_synic(), version=version)  # type: ignore[arg-type]


# offers


async def test_offers_are_found_by_interface_instance_and_subchannel_now_or_later() -> None:
    second = OfferChannel(UUID(int=5), UUID(int=6), channel_id=2, connection_id=0x2002)
    third = OfferChannel(UUID(int=5), UUID(int=6), subchannel_index=1, channel_id=3, connection_id=0x2003)

    async def script(host: ScriptedHost) -> None:
        await host.connect(offer())
        await host.partition.sleep(1000)
        await host.say(third, second)
        await host.unload()

    async with client_of(script) as client:
        assert await client.wait_offer(interface_id=INTERFACE) == offer()
        assert await client.wait_offer(instance_id=INSTANCE) == offer()
        assert await client.wait_offer(interface_id=UUID(int=5)) == second
        assert await client.wait_offer(UUID(int=5), UUID(int=6), subchannel=1) == third
        assert list(client.offers) == [1, 3, 2]


async def test_new_offers_come_once_each_and_again_when_they_are_made_again() -> None:
    async def script(host: ScriptedHost) -> None:
        await host.connect(offer(1), offer(2), offer(3))
        await host.say(RescindChannelOffer(2))
        await host.hear(RelidReleased)
        await host.say(offer(2), offer(4))
        await host.unload()

    async with client_of(script) as client:
        offers = client.new_offers()
        assert (await anext(offers)).channel_id == 1
        await client.guest_synic.turns.sleep_until(5000, ("test", 0))
        assert [(await anext(offers)).channel_id for _ in range(3)] == [3, 2, 4]
        assert client.complaints == {}


async def test_an_offer_that_is_gone_cannot_be_opened() -> None:
    async def script(host: ScriptedHost) -> None:
        await host.connect(offer())
        await host.partition.sleep(1000)
        await host.say(RescindChannelOffer(1))
        await host.hear(RelidReleased)
        await host.say(offer(flags=1))
        await host.unload()

    async with client_of(script) as client:
        old = await client.wait_offer()
        await client.guest_synic.turns.sleep_until(5000, ("test", 0))
        with pytest.raises(ChannelClosed, match="channel 0x1 is not on offer"):
            await client.open(old)


async def test_an_offer_that_is_released_is_closed_and_given_back_when_it_is_rescinded() -> None:
    async def script(host: ScriptedHost) -> None:
        await host.connect(offer())
        await host.open()
        assert await host.hear(CloseChannel) == CloseChannel(1)
        await host.tear_down()
        await host.say(RescindChannelOffer(1))
        assert await host.hear(RelidReleased) == RelidReleased(1)
        await host.unload()

    async with client_of(script) as client:
        channel = await client.open(await client.wait_offer())
        await client.release(channel.offer)
        assert client.offers == {}
        with pytest.raises(ChannelClosed):
            await channel.doorbell.wait(0)
        await client.guest_synic.turns.sleep_until(5000, ("test", 0))


# what goes wrong


@pytest.mark.parametrize("seed", range(4))
async def test_posts_that_find_no_room_are_tried_again(seed: int) -> None:
    async def script(host: ScriptedHost) -> None:
        await host.connect(offer())
        for _ in range(4):
            await host.open()
            await host.hear(CloseChannel)
            await host.tear_down()
        await host.unload()

    async with Partition(config()) as partition:
        access = RefusingAccess(partition.synic(), seed)
        async with scripted(partition, script, access), VmbusClient(partition.vp(0).guest_synic()) as client:
            for _ in range(4):
                await client.close(await client.open(await client.wait_offer(), ring_pages=(20, 20)))
            assert client.post_retries > 0


async def test_a_host_that_never_has_room_ends_the_client_after_a_hundred_tries() -> None:
    async def script(host: ScriptedHost) -> None:
        await host.say(accepts(await host.hear(InitiateContact), connection_id=99))

    events: list[AnyEvent] = []
    async with Partition(config(trace=Trace(events.append))) as partition, scripted(partition, script):
        began = partition.clock.now()
        with pytest.raises(ConnectionFailed, match=r"REQUEST_OFFERS to connection 0x00000063 .* INVALID_CONNECTION_ID"):
            async with VmbusClient(partition.vp(0).guest_synic()):
                pytest.fail("it is not connected")
        tries = [event.time - began for event in events if isinstance(event, Post) and event.connection_id == 99]
        assert len(tries) == 100
        gaps = [later - earlier for earlier, later in itertools.pairwise(tries)]
        assert [min(10 << n, 10 << 17) <= gap <= min(10 << n, 10 << 17) + 1 for n, gap in enumerate(gaps)] == [
            True
        ] * 99


async def test_a_status_that_does_not_pass_ends_the_client_at_once() -> None:
    async def script(host: ScriptedHost) -> None:
        async with receive_messages(host.access, 98, minimum_vtl=Vtl.VTL1):
            await host.say(accepts(await host.hear(InitiateContact), connection_id=98))
            await host.partition.sleep(10_000)

    async with Partition(config(vtls=(Vtl.VTL0, Vtl.VTL1))) as partition, scripted(partition, script):
        client = VmbusClient(partition.vp(0).guest_synic())
        with pytest.raises(ConnectionFailed, match="was answered OPERATION_DENIED"):
            async with client:
                pytest.fail("it is not connected")
        assert client.post_retries == 0


async def test_nonsense_of_a_host_is_counted_and_does_no_harm() -> None:
    async def script(host: ScriptedHost) -> None:
        await host.connect(offer())
        await host.port.post_message(1, b"\xff")
        await host.port.post_message(1, bytes(240))
        await host.port.post_message(2, AllOffersDelivered().pack())
        await host.say(offer(), AllOffersDelivered(), GpadlTorndown(5), RescindChannelOffer(7))
        await host.open()
        await host.unload()

    async with client_of(script) as client:
        await client.open(await client.wait_offer())
        assert client.complaints == {"host_message_invalid": 3, "host_message_unexpected": 4}


async def test_an_exception_in_the_block_leaves_it_as_it_is_and_without_an_unload() -> None:
    async def script(host: ScriptedHost) -> None:
        await host.connect(offer())

    async with Partition(config()) as partition, scripted(partition, script) as host:
        client = VmbusClient(partition.vp(0).guest_synic())
        with pytest.raises(LookupError):
            async with client:
                raise LookupError
        assert [message.TYPE.name for _, message in host.heard] == ["INITIATE_CONTACT", "REQUEST_OFFERS"]
        with pytest.raises(ConnectionFailed):
            await client.wait_offer()


async def test_a_cancelled_block_ends_at_once() -> None:
    async def script(host: ScriptedHost) -> None:
        await host.connect(offer())

    async with Partition(config()) as partition, scripted(partition, script):
        with anyio.CancelScope() as scope:
            async with VmbusClient(partition.vp(0).guest_synic()) as client:
                one = await client.wait_offer()
                scope.cancel()
                await client.open(one)
        assert scope.cancelled_caught
