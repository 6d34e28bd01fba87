"""What is written for anyio's streams runs over hvsock: TLS, buffers, text; and hvsock is relayed to Unix sockets."""

from __future__ import annotations

import os
import resource
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
import trustme
from anyio.abc import ByteStream
from anyio.streams.buffered import BufferedByteStream
from anyio.streams.text import TextStream
from anyio.streams.tls import TLSAttribute, TLSListener, TLSStream

from broker import Partition
from broker.errors import OfferRefused
from channels.client import VmbusClient
from channels.hvsock import HvsockAttribute, HvsockGuest, HvsockHost, connect_streams, relay_unix
from channels.server import VmbusServer

from .pairs import OWN_BYTES, PORT, Sides, hvsocks, read_exactly, read_to_end, unix_sockets

item = pytest.mark.vmbus_item
own = pytest.mark.parametrize("opener", OWN_BYTES.values(), ids=OWN_BYTES)
sides_of = pytest.mark.parametrize("connects", ["guest", "host"])

NAME = "guest.example"
LARGE = bytes(range(256)) * 1000


class Contexts:
    """TLS contexts of a server with a certificate, and of a client that trusts it."""

    def __init__(self) -> None:
        authority = trustme.CA()
        self.server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert(NAME).configure_cert(self.server)
        self.client = ssl.create_default_context()
        authority.configure_trust(self.client)


@pytest.fixture(scope="module")
def contexts() -> Contexts:
    return Contexts()


async def shake_hands(pair: Any, contexts: Contexts) -> tuple[TLSStream, TLSStream]:
    """TLS over both ends; the second one is the server."""
    wrapped: list[TLSStream] = []

    async def serve() -> None:
        wrapped.append(await TLSStream.wrap(pair.second, server_side=True, ssl_context=contexts.server))

    async with anyio.create_task_group() as group:
        group.start_soon(serve)
        first = await TLSStream.wrap(pair.first, hostname=NAME, ssl_context=contexts.client)
    return first, wrapped[0]


@own
async def test_tls_carries_bytes_both_ways_and_ends_properly(opener, contexts: Contexts) -> None:
    async with opener() as pair:
        first, second = await shake_hands(pair, contexts)
        assert first.extra(TLSAttribute.tls_version) == second.extra(TLSAttribute.tls_version)
        for near, far in ((first, second), (second, first)):
            async with anyio.create_task_group() as group:
                group.start_soon(near.send, LARGE)
                assert await read_exactly(far, len(LARGE)) == LARGE
        assert first.extra(TLSAttribute.standard_compatible)
        async with anyio.create_task_group() as group:
            group.start_soon(first.aclose)
            with pytest.raises(anyio.EndOfStream):
                await second.receive()
            await second.aclose()


@own
async def test_tls_has_no_half_close_as_anyio_says(opener, contexts: Contexts) -> None:
    async with opener() as pair:
        first, second = await shake_hands(pair, contexts)
        with pytest.raises(NotImplementedError):
            await first.send_eof()
        await first.send(b"still here")
        assert await second.receive() == b"still here"


@own
async def test_an_end_that_tls_was_not_told_of_is_a_broken_stream(opener, contexts: Contexts) -> None:
    async with opener() as pair:
        first, second = await shake_hands(pair, contexts)
        await first.send(b"abc")
        await pair.first.send_eof()
        assert await second.receive() == b"abc"
        with pytest.raises(anyio.BrokenResourceError):
            await second.receive()


@sides_of
async def test_a_tls_listener_serves_over_hvsock(connects: str, contexts: Contexts) -> None:
    async with hvsocks() as sides, anyio.create_task_group() as group:
        connector, other = (sides.guest, sides.host) if connects == "guest" else (sides.host, sides.guest)
        listener = TLSListener(await other.listen(PORT), contexts.server)

        async def shout(stream: TLSStream) -> None:
            async with stream:
                async for data in stream:
                    await stream.send(data.upper())

        group.start_soon(listener.serve, shout)
        plain = await connector.connect(PORT)
        async with await TLSStream.wrap(plain, hostname=NAME, ssl_context=contexts.client) as stream:
            assert stream.extra(HvsockAttribute.port) == PORT
            await stream.send(b"secret")
            assert await stream.receive() == b"SECRET"
        await sides.later()
        group.cancel_scope.cancel()


@own
async def test_buffered_and_text_streams_run_over_it(opener) -> None:
    async with opener() as pair:
        buffered, text = BufferedByteStream(pair.second), TextStream(pair.first)
        await text.send("Grüße\nund mehr")
        assert await buffered.receive_until(b"\n", 100) == "Grüße".encode()
        assert await buffered.receive_exactly(3) == b"und"
        await buffered.send("zurück".encode())
        assert await text.receive() == "zurück"


# joined streams


@asynccontextmanager
async def joined(opener) -> AsyncIterator[tuple[ByteStream, ByteStream]]:
    """A socket, relayed to one end of a pair of ours: its other end, and the pair's."""
    async with opener() as pair, unix_sockets() as sockets, anyio.create_task_group() as group:
        group.start_soon(connect_streams, pair.second, sockets.first)
        yield pair.first, sockets.second
        await pair.first.aclose()
        await sockets.second.aclose()


@item(105)
@own
async def test_a_relay_passes_data_and_half_closes_both_ways(opener) -> None:
    async with joined(opener) as (ours, theirs):
        for near, far in ((ours, theirs), (theirs, ours)):
            async with anyio.create_task_group() as group:
                group.start_soon(near.send, LARGE)
                assert await read_exactly(far, len(LARGE)) == LARGE
        await ours.send(b"last")
        await ours.send_eof()
        assert await read_to_end(theirs) == b"last"
        await theirs.send(b"the answer")
        await theirs.send_eof()
        assert await read_to_end(ours) == b"the answer"


@item(105)
@own
async def test_a_socket_that_closes_is_the_end_for_the_other_side(opener) -> None:
    async with joined(opener) as (ours, theirs):
        await theirs.send(b"bye")
        await theirs.aclose()
        assert await read_to_end(ours) == b"bye"
        await ours.send_eof()


@item(105)
@own
async def test_a_side_that_drops_is_the_end_for_the_socket(opener) -> None:
    async with joined(opener) as (ours, theirs):
        await ours.send(b"bye")
        async with anyio.create_task_group() as group:
            group.start_soon(ours.aclose)
            assert await read_to_end(theirs) == b"bye"
            await theirs.send_eof()


async def test_cancelling_a_relay_closes_both() -> None:
    async with unix_sockets() as one, unix_sockets() as other:
        async with anyio.create_task_group() as group:
            group.start_soon(connect_streams, one.second, other.first)
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        assert await read_to_end(one.first) == b""
        assert await read_to_end(other.second) == b""


# Unix sockets of the host


@asynccontextmanager
async def relayed(path: Path) -> AsyncIterator[tuple[Sides, anyio.abc.TaskGroup]]:
    """A relay at this path, on a partition whose time is real: so are the sockets."""
    host = HvsockHost()
    async with (
        Partition() as part,
        VmbusServer(part.synic(), part.memory, hvsock_listener=host.accepts) as server,
        host.serve(server),
        VmbusClient(part.vp(0).guest_synic()) as client,
        HvsockGuest(client) as guest,
        relay_unix(host, path),
        anyio.create_task_group() as group,
    ):
        yield Sides(host, guest, server, client, anyio.lowlevel.checkpoint), group
        group.cancel_scope.cancel()


async def shout(stream: ByteStream) -> None:
    async with stream:
        async for data in stream:
            await stream.send(data.upper())


@item(105)
async def test_a_guest_reaches_a_unix_socket_of_the_host_by_port(tmp_path: Path) -> None:
    path = tmp_path / "vm"
    async with relayed(path) as (sides, _):
        with pytest.raises(ConnectionRefusedError):
            await sides.guest.connect(PORT)
        async with await anyio.create_unix_listener(f"{path}_{PORT}") as programs, anyio.create_task_group() as serving:
            serving.start_soon(programs.serve, shout)
            async with await sides.guest.connect(PORT) as stream:
                await stream.send(b"hello")
                assert await stream.receive() == b"HELLO"
                await stream.send_eof()
                assert await read_to_end(stream) == b""
            serving.cancel_scope.cancel()


@item(105)
async def test_a_program_of_the_host_reaches_a_listener_in_the_guest(tmp_path: Path) -> None:
    async with relayed(tmp_path / "vm") as (sides, group):
        listener = await sides.guest.listen(PORT)
        group.start_soon(listener.serve, shout)
        async with await anyio.connect_unix(tmp_path / "vm") as program:
            await program.send(b"CONNECT %d\nand more" % PORT)
            buffered = BufferedByteStream(program)
            assert (await buffered.receive_until(b"\n", 30)).startswith(b"OK ")
            assert await buffered.receive_exactly(8) == b"AND MORE"
            await buffered.send_eof()
            assert await read_to_end(buffered) == b""


async def test_a_relay_without_file_descriptors_goes_on_once_there_are_some(tmp_path: Path) -> None:
    async with relayed(tmp_path / "vm") as (sides, group):
        listener = await sides.guest.listen(PORT)
        group.start_soon(listener.serve, shout)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with socket.socket(socket.AF_UNIX) as program:
            program.setblocking(False)
            lowest_free = os.dup(0)
            os.close(lowest_free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
            try:
                program.connect(str(tmp_path / "vm"))
                for _ in range(20):  # rounds in which the relay has to wait
                    await anyio.lowlevel.checkpoint()
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            program.send(b"CONNECT %d\nabc" % PORT)
            await anyio.wait_readable(program)
            assert program.recv(3) == b"OK "


async def test_a_relay_outlives_a_program_that_hvsock_has_no_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> None:
        raise OfferRefused("there are 2047 channels already")

    async with relayed(tmp_path / "vm") as (sides, _):
        for method in (refuse, sides.host.connect):
            monkeypatch.setattr(sides.host, "connect", method)
            async with await anyio.connect_unix(tmp_path / "vm") as program:
                await program.send(b"CONNECT %d\n" % PORT)
                with pytest.raises(anyio.EndOfStream):
                    await program.receive()


@pytest.mark.parametrize("line", [b"CONNECT x\n", b"GET /\n", b"CONNECT 4294967296\n", b"C" * 100, b"CONN"])
async def test_a_program_that_says_something_else_hears_the_end(tmp_path: Path, line: bytes) -> None:
    async with relayed(tmp_path / "vm"), await anyio.connect_unix(tmp_path / "vm") as program:
        await program.send(line)
        await program.send_eof()
        with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
            await program.receive()
