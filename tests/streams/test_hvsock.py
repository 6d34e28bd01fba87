"""hvsock: listeners and connections of both sides, their limits, and how they end."""

from __future__ import annotations

import contextlib
import errno
from uuid import UUID

import anyio
import pytest

from broker.clock import TICKS_PER_SECOND
from broker.errors import ChannelClosed, HostError
from channels.client import VmbusClient
from channels.hvsock import (
    HvsockAttribute,
    HvsockGuest,
    HvsockHost,
    HvsockStream,
    port_of_service_id,
    service_id_of_port,
)
from channels.protocol import Version
from channels.protocol.offer import HVSOCK_AREA
from channels.server import VmbusServer

from ..live.hand_guest import HandGuest
from ..machines import wire
from .pairs import PORT, Sides, hvsocks, partition, read_to_end

SERVICE = UUID("c0ffee00-1234-5678-9abc-def012345678")
ENDPOINT = UUID("e0000000-0000-0000-0000-000000000001")
SILO = UUID("51100000-0000-0000-0000-000000000001")

sides_of = pytest.mark.parametrize("connects", ["guest", "host"])
services = pytest.mark.parametrize("service", [PORT, SERVICE], ids=["port", "service ID"])


def ends(sides: Sides, connects: str) -> tuple[HvsockGuest | HvsockHost, HvsockGuest | HvsockHost]:
    """Who connects, and who listens."""
    return (sides.guest, sides.host) if connects == "guest" else (sides.host, sides.guest)


async def echo(stream: HvsockStream) -> None:
    async with stream:
        async for data in stream:
            await stream.send(data)


async def passed(sides: Sides, seconds: float) -> None:
    turns = sides.server.turns
    await turns.sleep_until(turns.clock.now() + int(seconds * TICKS_PER_SECOND), ("test", 0))


# names


@pytest.mark.parametrize(
    ("port", "service_id"),
    [
        (0, "00000000-facb-11e6-bd58-64006a7986d3"),
        (0x1234, "00001234-facb-11e6-bd58-64006a7986d3"),
        (0xFFFF_FFFF, "ffffffff-facb-11e6-bd58-64006a7986d3"),
    ],
)
def test_a_port_has_a_service_id_of_its_own(port: int, service_id: str) -> None:
    assert service_id_of_port(port) == UUID(service_id)
    assert port_of_service_id(UUID(service_id)) == port


def test_other_service_ids_are_no_ports() -> None:
    assert port_of_service_id(SERVICE) is None
    assert port_of_service_id(UUID("00001234-facb-11e6-bd58-64006a7986d4")) is None


@pytest.mark.parametrize("port", [-1, 1 << 32])
def test_a_number_that_is_no_port_is_refused(port: int) -> None:
    with pytest.raises(ValueError, match=f"ports are 0 to 4294967295, not {port}"):
        service_id_of_port(port)


# connections


@sides_of
@services
async def test_streams_know_what_they_are_connected_to(connects: str, service: UUID | int) -> None:
    async with hvsocks() as sides:
        connector, other = ends(sides, connects)
        async with await other.listen(service) as listener:
            near = await connector.connect(service, silo_id=SILO)
            far = await listener.accept()
        service_id = service if isinstance(service, UUID) else service_id_of_port(service)
        for stream in (near, far):
            assert stream.extra(HvsockAttribute.service_id) == service_id
            assert stream.extra(HvsockAttribute.silo_id) == SILO
            assert stream.extra(HvsockAttribute.port, None) == (service if service == PORT else None)
        assert near.extra(HvsockAttribute.endpoint_id) == far.extra(HvsockAttribute.endpoint_id)
        assert near.extra(HvsockAttribute.is_host) is (connects == "host")
        assert far.extra(HvsockAttribute.is_host) is (connects == "guest")
        assert listener.extra(HvsockAttribute.service_id) == service_id
        assert listener.extra(HvsockAttribute.is_host) is (connects == "guest")
        assert listener.extra(HvsockAttribute.endpoint_id, None) is None


@sides_of
async def test_many_connections_are_served_at_once_and_leave_nothing(connects: str) -> None:
    async with hvsocks() as sides:
        connector, other = ends(sides, connects)
        async with anyio.create_task_group() as group, await other.listen(PORT) as listener:
            group.start_soon(listener.serve, echo)
            endpoints = set()

            async def use(number: int) -> None:
                async with await connector.connect(PORT) as stream:
                    endpoints.add(stream.extra(HvsockAttribute.endpoint_id))
                    await stream.send(b"hello %d" % number)
                    await stream.send_eof()
                    assert await read_to_end(stream) == b"hello %d" % number

            async with anyio.create_task_group() as users:
                for number in range(20):
                    users.start_soon(use, number)
            assert len(endpoints) == 20
            await passed(sides, 1)
            group.cancel_scope.cancel()
        assert sides.server.statistics().open_channels == 0
        assert sides.client.offers == {}
        assert sides.server.statistics().complaints == {}
        assert sides.client.complaints == {}


@sides_of
async def test_handlers_run_in_the_task_group_that_is_given(connects: str) -> None:
    async with hvsocks() as sides:
        connector, other = ends(sides, connects)
        done = []

        async def handle(stream: HvsockStream) -> None:
            async with stream:
                done.append(await stream.receive())

        async with anyio.create_task_group() as handlers:
            async with anyio.create_task_group() as group, await other.listen(PORT) as listener:
                group.start_soon(listener.serve, handle, handlers)
                stream = await connector.connect(PORT)
                await passed(sides, 1)
                group.cancel_scope.cancel()
            await stream.send(b"after the listener")
        assert done == [b"after the listener"]


async def test_the_host_may_connect_to_a_container_of_the_guest() -> None:
    async with hvsocks() as sides, anyio.create_task_group() as group:

        async def connect() -> None:
            with pytest.raises(ConnectionRefusedError):
                await sides.host.connect(SERVICE, silo_id=SILO, for_container=True)

        group.start_soon(connect)
        offer = await sides.client.wait_offer(SERVICE)
        assert HVSOCK_AREA.unpack_from(offer.user_defined) == (0, 1, 1, 1, SILO.bytes_le)


@pytest.mark.parametrize("version", [v for v in Version if v >= Version.WIN10], ids=lambda v: v.label)
async def test_guests_connect_at_every_version_that_has_hvsock(version: Version) -> None:
    async with hvsocks(version=version) as sides:
        async with await sides.host.listen(PORT) as listener:
            stream = await sides.guest.connect(PORT, silo_id=SILO)
            far = await listener.accept()
        await stream.send(b"abc")
        assert await far.receive() == b"abc"
        assert far.extra(HvsockAttribute.silo_id) == (SILO if version >= Version.WIN10_RS5 else UUID(int=0))


# refusals


@sides_of
@services
async def test_a_connection_to_nobody_is_refused(connects: str, service: UUID | int) -> None:
    async with hvsocks() as sides:
        connector, _ = ends(sides, connects)
        name = "port 5000" if service == PORT else f"service {service}"
        with pytest.raises(ConnectionRefusedError, match=name) as refused:
            await connector.connect(service)
        assert refused.value.errno == errno.ECONNREFUSED


async def test_a_guest_hears_the_refusal_as_a_status_and_so_does_one_that_finds_the_backlog_full() -> None:
    host = HvsockHost()
    refused = wire.hvsock_result(ENDPOINT, SERVICE)
    async with (
        partition() as part,
        VmbusServer(part.synic(), part.memory, hvsock_listener=host.accepts) as server,
        host.serve(server),
        HandGuest(part).listening() as guest,
    ):
        await guest.connect()
        await guest.offers()
        await guest.say(wire.hvsock_connect(ENDPOINT, SERVICE))
        await guest.expect(refused)
        await host.listen(SERVICE, backlog=2)
        for number in (1, 2):
            await guest.say(wire.hvsock_connect(UUID(int=number), SERVICE))
            offer = await guest.hear()
            assert offer[0] == 1
            assert offer[24:40] == UUID(int=number).bytes_le
        await guest.say(wire.hvsock_connect(ENDPOINT, SERVICE))
        await guest.expect(refused)


async def test_the_same_connection_twice_is_refused() -> None:
    async with hvsocks() as sides, await sides.host.listen(SERVICE):
        await sides.client.connect_hvsock(SERVICE, ENDPOINT)
        with pytest.raises(ChannelClosed):
            await sides.client.connect_hvsock(SERVICE, ENDPOINT)


async def test_a_host_of_version_4_0_says_no_by_silence() -> None:
    async with hvsocks(version=Version.WIN10) as sides:
        began = sides.server.turns.clock.now()
        with pytest.raises(TimeoutError, match="the host does not answer") as timeout:
            await sides.guest.connect(PORT)
        assert timeout.value.errno == errno.ETIMEDOUT
        assert sides.server.turns.clock.now() - began >= 5 * TICKS_PER_SECOND
        async with await sides.host.listen(PORT) as listener:
            await sides.guest.connect(PORT)
            await listener.accept()


async def test_a_connection_that_waits_for_accept_fills_the_backlog_until_it_is_accepted() -> None:
    async with hvsocks() as sides, await sides.host.listen(PORT, backlog=1) as listener:
        first = await sides.guest.connect(PORT)
        with pytest.raises(ConnectionRefusedError):
            await sides.guest.connect(PORT)
        accepted = await listener.accept()
        second = await sides.guest.connect(PORT)
        await first.send(b"first")
        assert await accepted.receive() == b"first"
        await second.send(b"second")
        assert await (await listener.accept()).receive() == b"second"


async def test_a_guest_whose_backlog_is_full_leaves_the_host_waiting() -> None:
    async with hvsocks() as sides, await sides.guest.listen(PORT, backlog=1) as listener:
        await sides.host.connect(PORT)
        with pytest.raises(ConnectionRefusedError):
            await sides.host.connect(PORT)
        await listener.accept()
        await sides.host.connect(PORT)


# limits of time


async def test_a_guest_that_connects_has_five_seconds_to_open() -> None:
    async with hvsocks() as sides, await sides.host.listen(SERVICE, backlog=1) as listener:
        offer = await sides.client.connect_hvsock(SERVICE, ENDPOINT)
        await passed(sides, 4.9)
        assert offer.channel_id in sides.client.offers
        await passed(sides, 0.2)
        assert offer.channel_id not in sides.client.offers
        await sides.guest.connect(SERVICE)
        await listener.accept()


async def test_a_guest_that_is_connected_to_has_two_seconds() -> None:
    async with hvsocks() as sides, anyio.create_task_group() as group:
        refused = []

        async def connect() -> None:
            with pytest.raises(ConnectionRefusedError):
                await sides.host.connect(PORT)
            refused.append(True)

        group.start_soon(connect)
        await passed(sides, 1.9)
        assert len(sides.client.offers) == 1
        assert not refused
        await passed(sides, 0.2)
        assert refused
        assert sides.client.offers == {}


async def test_a_connection_is_opened_once() -> None:
    async with hvsocks() as sides, await sides.host.listen(SERVICE) as listener:
        offer = await sides.client.connect_hvsock(SERVICE, ENDPOINT)
        channel = await sides.client.open(offer)
        stream = await listener.accept()
        await sides.client.close(channel)
        with pytest.raises(ChannelClosed):
            await sides.client.open(offer)
        with pytest.raises(anyio.BrokenResourceError):
            await stream.receive()


async def test_a_cancelled_connect_of_the_host_takes_its_offer_back() -> None:
    async with hvsocks() as sides:
        async with anyio.create_task_group() as group:
            group.start_soon(sides.host.connect, PORT)
            offer = await sides.client.wait_offer(service_id_of_port(PORT))
            group.cancel_scope.cancel()
        await passed(sides, 0.1)
        assert offer.channel_id not in sides.client.offers


# how connections end


@sides_of
@pytest.mark.parametrize("closer", ["near", "far"])
async def test_a_close_waits_in_the_background_for_the_other_end_up_to_eight_seconds(
    connects: str, closer: str
) -> None:
    async with hvsocks() as sides:
        connector, other = ends(sides, connects)
        async with await other.listen(PORT) as listener:
            near = await connector.connect(PORT)
            far = await listener.accept()
        first, second = (near, far) if closer == "near" else (far, near)
        await first.send(b"goodbye")
        await first.aclose()
        await passed(sides, 7.9)
        assert sides.server.statistics().open_channels == 1
        await second.send(b"to nobody")
        await passed(sides, 0.2)
        assert sides.client.offers == {}
        assert await second.receive() == b"goodbye"
        with pytest.raises(anyio.EndOfStream):
            await second.receive()
        with pytest.raises(anyio.BrokenResourceError):
            await second.send(b"more")


@sides_of
async def test_what_a_guest_sent_before_it_closed_is_read_after_its_channel_is_gone(connects: str) -> None:
    async with hvsocks() as sides:
        connector, other = ends(sides, connects)
        async with await other.listen(PORT) as listener:
            near = await connector.connect(PORT)
            far = await listener.accept()
        host, guest = (far, near) if connects == "guest" else (near, far)
        await host.send_eof()
        assert await read_to_end(guest) == b""
        await guest.send(b"the answer")
        await guest.aclose()
        await passed(sides, 1)
        assert sides.server.statistics().open_channels == 0
        assert await read_to_end(host) == b"the answer"


async def test_leaving_the_guests_block_waits_for_what_is_closing() -> None:
    host = HvsockHost()
    async with (
        partition() as part,
        VmbusServer(part.synic(), part.memory, hvsock_listener=host.accepts) as server,
        host.serve(server),
        await host.listen(PORT) as listener,
    ):
        async with VmbusClient(part.vp(0).guest_synic()) as client:
            async with HvsockGuest(client) as guest:
                stream = await guest.connect(PORT)
                await stream.send(b"abc" * 1000)
                await stream.aclose()
                far = await listener.accept()
            assert server.turns.clock.now() >= 8 * TICKS_PER_SECOND
            assert client.offers == {}
        assert await read_to_end(far) == b"abc" * 1000


@sides_of
async def test_streams_that_are_in_use_when_a_block_is_left_are_at_an_end(connects: str) -> None:
    host = HvsockHost()
    async with (
        partition() as part,
        VmbusServer(part.synic(), part.memory, hvsock_listener=host.accepts) as server,
        VmbusClient(part.vp(0).guest_synic()) as client,
        HvsockGuest(client) as guest,
    ):
        async with host.serve(server):
            connector, other = (guest, host) if connects == "guest" else (host, guest)
            listener = await other.listen(PORT)
            near = await connector.connect(PORT)
            far = await listener.accept()
        for stream in (near, far):
            with pytest.raises(anyio.BrokenResourceError):
                await stream.receive()
        assert client.offers == {}
        for method in (host.listen, host.connect):
            with pytest.raises(HostError, match="within the block"):
                await method(PORT)
        with pytest.raises(ConnectionRefusedError):
            await guest.connect(PORT)
        with pytest.raises(ValueError, match="at least 6 pages, not 5"):
            HvsockGuest(client, ring_pages=(6, 5))
        with pytest.raises(HostError, match="within its block"):
            await HvsockGuest(client).connect(PORT)


async def test_a_guest_that_starts_again_connects_again() -> None:
    host = HvsockHost()
    async with (
        partition() as part,
        VmbusServer(part.synic(), part.memory, hvsock_listener=host.accepts) as server,
        host.serve(server),
        await host.listen(PORT) as listener,
    ):
        for number in range(3):
            far = None
            with contextlib.suppress(ZeroDivisionError):
                async with VmbusClient(part.vp(0).guest_synic()) as client, HvsockGuest(client) as guest:
                    stream = await guest.connect(PORT)
                    far = await listener.accept()
                    await stream.send(b"%d" % number)
                    assert await far.receive() == b"%d" % number
                    raise ZeroDivisionError
            await server.reset()
            assert far is not None
            with pytest.raises(anyio.BrokenResourceError):
                await far.receive()


async def test_an_exception_leaves_the_blocks_as_it_is() -> None:
    async def fail() -> None:
        async with hvsocks() as sides:
            await sides.host.listen(PORT)
            await sides.guest.connect(PORT)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()


# listeners


@sides_of
async def test_a_service_has_one_listener_at_a_time(connects: str) -> None:
    async with hvsocks() as sides:
        _, other = ends(sides, connects)
        listener = await other.listen(PORT)
        for service in (PORT, service_id_of_port(PORT)):
            with pytest.raises(OSError, match="port 5000") as error:
                await other.listen(service)
            assert error.value.errno == errno.EADDRINUSE
        await listener.aclose()
        await listener.aclose()
        await (await other.listen(PORT)).aclose()
        with pytest.raises(ValueError, match="backlog is at least 1, not 0"):
            await other.listen(PORT, backlog=0)


@sides_of
async def test_a_closed_listener_says_so_and_closes_what_waits(connects: str) -> None:
    async with hvsocks() as sides:
        connector, other = ends(sides, connects)
        listener = await other.listen(PORT)
        waiting = await connector.connect(PORT)
        await passed(sides, 0.1)
        await listener.aclose()
        with pytest.raises(anyio.EndOfStream):
            await waiting.receive()
        await waiting.aclose()
        with pytest.raises(anyio.ClosedResourceError):
            await listener.accept()
        with pytest.raises(ConnectionRefusedError):
            await connector.connect(PORT)


@sides_of
async def test_one_task_accepts_and_closing_calls_it_back(connects: str) -> None:
    async with hvsocks() as sides:
        _, other = ends(sides, connects)
        listener = await other.listen(PORT)
        closed = []

        async def accept() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await listener.accept()
            closed.append(True)

        async with anyio.create_task_group() as group:
            group.start_soon(accept)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(anyio.BusyResourceError):
                await listener.accept()
            await listener.aclose()
        assert closed


@sides_of
async def test_a_cancelled_accept_loses_no_connection(connects: str) -> None:
    async with hvsocks() as sides:
        connector, other = ends(sides, connects)
        async with await other.listen(PORT) as listener:
            async with anyio.create_task_group() as group:
                group.start_soon(listener.accept)
                await anyio.wait_all_tasks_blocked()
                group.cancel_scope.cancel()
            near = await connector.connect(PORT)
            await near.send(b"abc")
            assert await (await listener.accept()).receive() == b"abc"


@sides_of
async def test_a_cancelled_close_of_a_listener_closes_all_that_wait(connects: str) -> None:
    async with hvsocks() as sides:
        connector, other = ends(sides, connects)
        listener = await other.listen(PORT)
        waiting = [await connector.connect(PORT) for _ in range(3)]
        await passed(sides, 0.1)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await listener.aclose()
        for stream in waiting:
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()
            await stream.aclose()


@sides_of
async def test_a_connection_whose_handler_is_cancelled_before_it_begins_is_closed(connects: str) -> None:
    async with hvsocks() as sides:
        connector, other = ends(sides, connects)
        listener = await other.listen(PORT)
        stream = await connector.connect(PORT)
        await passed(sides, 0.1)
        async with anyio.create_task_group() as handlers, anyio.create_task_group() as group:
            handlers.cancel_scope.cancel()
            with anyio.CancelScope(shield=True) as scope:
                sides.server.turns.schedule(sides.server.turns.clock.now() + 10, ("test", 0), scope.cancel)
                await listener.serve(echo, handlers)
            group.cancel_scope.cancel()
        with pytest.raises(anyio.EndOfStream):
            await stream.receive()


async def test_a_listener_for_all_services_gets_what_nobody_else_listens_to() -> None:
    async with hvsocks() as sides:
        everything = await sides.host.listen(None, takes=lambda service_id: service_id != SERVICE)
        mine = await sides.host.listen(PORT)
        with pytest.raises(OSError, match="all services"):
            await sides.host.listen(None)
        await sides.guest.connect(PORT)
        await sides.guest.connect(PORT + 1)
        assert (await mine.accept()).extra(HvsockAttribute.port) == PORT
        assert (await everything.accept()).extra(HvsockAttribute.port) == PORT + 1
        with pytest.raises(ConnectionRefusedError):
            await sides.guest.connect(SERVICE)


async def test_the_guests_listeners_break_when_its_connection_ends() -> None:
    async with hvsocks() as sides:
        listener = await sides.guest.listen(PORT)
        await sides.client.unload()
        with pytest.raises(anyio.BrokenResourceError):
            await listener.accept()
