"""hvsock: a guest connects to a port of the host, as to a socket, and talks text with the service that listens there.

Shows: `HvsockHost` beside a VMBus server, a listener that serves each connection in a task of its own, `HvsockGuest`,
anyio's `TextStream` over it, a port that nobody listens to.
Run: python examples/07_hvsock_echo.py
"""

import anyio
from anyio.streams.text import TextStream

from broker import Partition, VirtualProcessor
from channels.client import VmbusClient
from channels.hvsock import HvsockAttribute, HvsockGuest, HvsockHost, HvsockStream
from channels.server import VmbusServer

PORT = 5000


async def echo(stream: HvsockStream) -> None:
    print(f"host: a connection to port {stream.extra(HvsockAttribute.port)}")
    async with TextStream(stream) as text:
        async for line in text:
            await text.send(f"you said: {line}")
    print("host: the guest has closed it")


async def guest(vp: VirtualProcessor) -> None:
    async with VmbusClient(vp.guest_synic()) as client, HvsockGuest(client) as hvsock:
        async with TextStream(await hvsock.connect(PORT)) as text:
            for line in ("Grüße an den Host", "and goodbye"):
                await text.send(line)
                print(f"guest: {await text.receive()}")
        try:
            await hvsock.connect(PORT + 1)
        except ConnectionRefusedError as error:
            print(f"guest: {error.strerror}")


async def main() -> None:
    hvsock = HvsockHost()
    async with (
        Partition() as partition,
        VmbusServer(partition.synic(), partition.memory, hvsock_listener=hvsock.accepts) as server,
        hvsock.serve(server),
        await hvsock.listen(PORT) as listener,
        anyio.create_task_group() as services,
    ):
        services.start_soon(listener.serve, echo)
        await partition.start(0, guest).wait()
        services.cancel_scope.cancel()


if __name__ == "__main__":
    anyio.run(main)
