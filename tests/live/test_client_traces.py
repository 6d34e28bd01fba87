"""A `VmbusClient` that is saved, and what its trace tells: the same for the same seed, whatever the loop."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import anyio
import pytest

from broker import (
    Partition,
    Trace,
    Vtl,
)
from broker.errors import HostError
from broker.trace import AnyEvent, Channel, Control, Gpadl, Post, encode_event
from channels.client import VmbusClient
from channels.client.opens import GuestChannel
from channels.protocol.connect import (
    Pause,
    PauseResponse,
    Resume,
)
from channels.protocol.offer import (
    OfferChannel,
)
from channels.protocol.open import (
    CloseChannel,
)
from channels.protocol.versions import Version

from .scripted_host import ScriptedHost, config, offer, scripted

VERSIONS = sorted(Version, reverse=True)


# save and restore


async def save_and_stop(client: VmbusClient, documents: list[tuple[GuestChannel, bytes]]) -> None:
    """A guest that opens all that is offered, is saved, and ends without a word."""
    async with client:
        channels = [await client.open(one) for one in client.offers.values()]
        with pytest.raises(HostError, match="pause it before a save"):
            client.save()
        await client.pause()
        documents.append((channels[0], client.save()))
        raise InterruptedError


async def test_a_client_goes_on_where_another_was_saved() -> None:
    async def script(host: ScriptedHost) -> None:
        await host.connect(offer(1), offer(2))
        for _ in range(2):
            await host.open()
        await host.hear(Pause)
        await host.say(PauseResponse())
        await host.hear(Resume)
        await host.hear(CloseChannel)
        assert (await host.tear_down()).channel_id == 2
        port = await host.access.new_guest_event_port(2, Vtl.VTL0, 0, 2, 1)
        port.interrupt().deliver()
        assert await host.hear(CloseChannel) == CloseChannel(1)
        await host.tear_down()
        await host.unload()

    async with Partition(config()) as partition, scripted(partition, script):
        synic = partition.vp(0).guest_synic()
        documents: list[tuple[GuestChannel, bytes]] = []
        with pytest.raises(InterruptedError):
            await save_and_stop(VmbusClient(synic), documents)
        ((channel, document),) = documents
        async with VmbusClient(synic, document=document) as client:
            assert client.version is Version.COPPER
            assert list(client.offers) == [1, 2]
            free = client.pages.free_count
            with pytest.raises(HostError, match="was not open over GPADL 0x00000001"):
                client.claim(channel.offer, 1, channel.gpns, channel.upstream_pages)
            again = client.claim(channel.offer, channel.gpadl_id, channel.gpns, channel.upstream_pages)
            assert client.pages.free_count == free - 8
            await client.resume()
            assert await again.doorbell.wait(0) == 1
            await client.close(again)
            assert client.pages.free_count == free
            assert client.complaints == {}


# order


def traced(backend: str, seed: int) -> list[bytes]:
    """The trace of a client with five users at once."""
    events: list[AnyEvent] = []

    async def in_turn(partition: Partition, number: int, work: Callable[[], Awaitable[None]]) -> None:
        await partition.take_turn(number)
        await work()

    async def host_script(host: ScriptedHost) -> None:
        await host.connect(*(offer(channel_id) for channel_id in range(1, 6)))
        await host.answer_everything()

    async def use(client: VmbusClient, one: OfferChannel) -> None:
        channel = await client.open(one)
        await channel.signal()
        await client.close(channel)

    async def main() -> None:
        async with Partition(config(seed=seed, trace=Trace(events.append))) as partition:
            host = ScriptedHost(partition, partition.synic())
            async with host.listening(), anyio.create_task_group() as group:
                group.start_soon(in_turn, partition, 0, partial(host_script, host))
                async with (
                    VmbusClient(partition.vp(0).guest_synic()) as client,
                    anyio.create_task_group() as users,
                ):
                    for channel_id, one in client.offers.items():
                        users.start_soon(in_turn, partition, channel_id, partial(use, client, one))

    anyio.run(main, backend=backend)
    return [encode_event(event) for event in events]


@pytest.mark.parametrize("seed", range(3))
def test_the_same_seed_gives_the_same_trace_on_both_loops(seed: int) -> None:
    trace = traced("asyncio", seed)
    assert trace == traced("trio", seed)
    assert len(trace) > 250
    assert trace != traced("trio", seed + 1)


async def test_the_trace_tells_of_messages_channels_and_gpadls() -> None:
    async def script(host: ScriptedHost) -> None:
        await host.connect(offer())
        await host.say(offer())
        await host.open()
        await host.hear(CloseChannel)
        await host.tear_down()
        await host.unload()

    events: list[AnyEvent] = []
    async with (
        Partition(config(trace=Trace(events.append))) as partition,
        scripted(partition, script),
        VmbusClient(partition.vp(0).guest_synic()) as client,
    ):
        await client.close(await client.open(await client.wait_offer(), ring_pages=(20, 20)))
    told = [
        (event.direction, event.name, event.channel_id, bool(event.refused))
        for event in events
        if isinstance(event, Control)
    ]
    assert [one for one in told if one[0] == "out"] == [
        ("out", "INITIATE_CONTACT", 0, False),
        ("out", "REQUEST_OFFERS", 0, False),
        ("out", "GPADL_HEADER", 1, False),
        ("out", "GPADL_BODY", 0, False),
        ("out", "OPEN_CHANNEL", 1, False),
        ("out", "CLOSE_CHANNEL", 1, False),
        ("out", "GPADL_TEARDOWN", 1, False),
        ("out", "UNLOAD", 0, False),
    ]
    assert [one for one in told if one[0] == "in"] == [
        ("in", "VERSION_RESPONSE", 0, False),
        ("in", "OFFER_CHANNEL", 1, False),
        ("in", "ALL_OFFERS_DELIVERED", 0, False),
        ("in", "OFFER_CHANNEL", 1, True),
        ("in", "GPADL_CREATED", 1, False),
        ("in", "OPEN_CHANNEL_RESULT", 1, False),
        ("in", "GPADL_TORNDOWN", 0, False),
        ("in", "UNLOAD_COMPLETE", 0, False),
    ]
    channels = [(event.before, event.after) for event in events if isinstance(event, Channel)]
    assert channels == [
        ("", "offered"),
        ("offered", "opening"),
        ("opening", "open"),
        ("open", "offered"),
        ("offered", ""),
    ]
    gpadls = [(event.before, event.after) for event in events if isinstance(event, Gpadl)]
    assert gpadls == [("", "creating"), ("creating", "created"), ("created", "tearing-down"), ("tearing-down", "")]
    by_id = {event.id: event for event in events}
    posts = [event for event in events if isinstance(event, Post)]
    assert all(isinstance(by_id[post.cause], Control) for post in posts), "each post says which message it carries"
    answer = next(event for event in events if isinstance(event, Control) and event.name == "OPEN_CHANNEL_RESULT")
    opened = next(event for event in events if isinstance(event, Channel) and event.after == "open")
    assert opened.cause == answer.id
