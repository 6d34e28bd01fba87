"""hvsock: a guest connects to services of the host by port and by GUID, and the host to a listener in the guest."""

from __future__ import annotations

from uuid import UUID

import anyio
import anyio.abc

from broker.access import GuestSynic

from ..client import VmbusClient
from ..hvsock import HvsockGuest, HvsockHost, HvsockStream
from ..protocol.versions import Version, version_label
from .stage import Flag, Scenario, ScenarioFailed, Stage, expect, serve, start_task

PORT, NOBODYS_PORT, GUEST_PORT = 5000, 5001, 6000
SERVICE = UUID("6ec80006-0000-4000-8000-000000000001")
QUESTION, ANSWER = b"who is there?", b"a guest"


async def read_to_end(stream: HvsockStream) -> bytes:
    """All that comes until the other end says that no more will."""
    return b"".join([data async for data in stream])


async def echo(stream: HvsockStream) -> None:
    """Send back what comes; say the end once the other end has said it."""
    async with stream:
        async for data in stream:
            await stream.send(data)


async def send_and_check(stream: HvsockStream, stage: Stage, name: str) -> None:
    """Send packets and the end; take them back from a service that echoes, at the same time."""
    settings = stage.settings
    payloads = [
        index.to_bytes(8, "little").ljust(settings.payload, b".")[: settings.payload]
        for index in range(settings.packets)
    ]

    async def send() -> None:
        for payload in payloads:
            await stream.send(payload)
        await stream.send_eof()

    async with stream, anyio.create_task_group() as group:
        start_task(group, stream.channel.turns, stream.channel.channel_id, send)
        came = await read_to_end(stream)
        expect(came == b"".join(payloads), f"{name} sent back something else")
    stage.count("bytes echoed", len(came))
    stage.say(f"{name}: {len(came)} bytes came back as they were sent, then the end")


async def _play_guest(stage: Stage, client: VmbusClient, listening: Flag) -> None:
    async with HvsockGuest(client) as hvsock:
        for service, name in ((PORT, f"port {PORT}"), (SERVICE, f"service {SERVICE}")):
            try:
                stream = await hvsock.connect(service)
            except OSError as error:
                raise ScenarioFailed(error.strerror or str(error)) from error
            await send_and_check(stream, stage, name)
        try:
            await hvsock.connect(NOBODYS_PORT)
        except (ConnectionRefusedError, TimeoutError):
            stage.count("connections refused")
            stage.say(f"port {NOBODYS_PORT}: refused, as nobody listens there")
        else:
            raise ScenarioFailed(f"port {NOBODYS_PORT} takes a connection, and nobody listens there")
        async with await hvsock.listen(GUEST_PORT) as listener:
            listening.set()
            async with await listener.accept() as stream:
                expect(await read_to_end(stream) == QUESTION, "the host asks something else")
                await stream.send(ANSWER)


async def _play(stage: Stage) -> None:
    hvsock = HvsockHost()
    async with (
        serve(stage, hvsock_listener=hvsock.accepts) as server,
        hvsock.serve(stage.bus(server)),
        await hvsock.listen(PORT) as by_port,
        await hvsock.listen(SERVICE) as by_id,
        anyio.create_task_group() as group,
    ):
        turns = server.turns
        listening = Flag(turns, 1)

        async def guest(synic: GuestSynic) -> None:
            async with VmbusClient(synic, version=stage.settings.version) as client:
                stage.say(f"the guest is connected, version {version_label(client.version)}")
                if client.version < Version.WIN10:
                    stage.say("this version has no hvsock")
                    return
                await _play_guest(stage, client, listening)
            stage.say("the guest has unloaded")

        async def ask() -> None:
            await listening.wait()
            try:
                stream = await hvsock.connect(GUEST_PORT)
            except OSError as error:
                raise ScenarioFailed(error.strerror or str(error)) from error
            async with stream:
                await stream.send(QUESTION)
                await stream.send_eof()
                answer = await read_to_end(stream)
            expect(answer == ANSWER, f"the guest answered {answer!r}")
            stage.count("connections to the guest")
            stage.say(f"port {GUEST_PORT} of the guest: asked {QUESTION.decode()!r}, heard {answer.decode()!r}")

        for number, work in enumerate((lambda: by_port.serve(echo), lambda: by_id.serve(echo), ask)):
            start_task(group, turns, number, work)
        await stage.start(0, guest).wait()
        group.cancel_scope.cancel()


hvsock = Scenario(
    about="connections both ways between guest and host by port and by GUID, with half-closes", play=_play
)
