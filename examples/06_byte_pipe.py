"""A byte pipe: a device counts the words of what a guest writes, until the guest says that this was all, and answers.

Shows: an offer of a named pipe, `BytePipe` at both ends (an anyio `ByteStream`), half-close, buffered reading.
Run: python examples/06_byte_pipe.py
"""

from uuid import UUID

import anyio
from anyio.streams.buffered import BufferedByteStream

from broker import Partition, VirtualProcessor
from channels.bus import OfferParams
from channels.client import VmbusClient
from channels.devices import Device, DeviceChannel, serve_devices
from channels.pipe import BytePipe
from channels.protocol import PipeType
from channels.server import VmbusServer

INTERFACE = UUID("00000000-0000-0000-0000-000000000600")
INSTANCE = UUID("00000000-0000-0000-0000-000000000601")
TEXT = (
    b"Bytes of any number go through rings of four pages,\nand a writer that is too fast waits for the reader.\n" * 500
)


class WordCounter(Device):
    """Reads to the end, then answers with a line."""

    offer = OfferParams.pipe(INTERFACE, INSTANCE, PipeType.BYTE)

    async def run(self, channel: DeviceChannel) -> None:
        async with BytePipe(channel) as pipe:
            text = b"".join([data async for data in pipe])
            print(f"device: {len(text)} bytes, then the guest said that this was all")
            await pipe.send(b"%d words\n" % len(text.split()))


async def guest(vp: VirtualProcessor) -> None:
    async with VmbusClient(vp.guest_synic()) as client:
        channel = await client.open(await client.wait_offer(interface_id=INTERFACE))
        async with BytePipe(channel, close=lambda: client.close(channel)) as pipe:
            await pipe.send(TEXT)
            await pipe.send_eof()
            print("guest: wrote the text, and reads on")
            answer = await BufferedByteStream(pipe).receive_until(b"\n", 100)
            print(f"guest: the device says {answer.decode()!r}")


async def main() -> None:
    async with (
        Partition() as partition,
        VmbusServer(partition.synic(), partition.memory) as server,
        serve_devices(server, WordCounter()),
    ):
        await partition.start(0, guest).wait()


if __name__ == "__main__":
    anyio.run(main)
