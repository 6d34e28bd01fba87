"""Serial ports, the guest's side.

async with open_serial(client) as serial:
    await serial.send(b"login: ")
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

from broker.errors import ChannelClosed, ConnectionFailed

from ..client import RING_PAGES, VmbusClient
from ..pipe import BytePipe
from ..protocol.ids import SERIAL


@asynccontextmanager
async def open_serial(
    client: VmbusClient, instance_id: UUID | None = None, *, ring_pages: tuple[int, int] = RING_PAGES
) -> AsyncIterator[BytePipe]:
    """Wait for a serial port, whichever unless one is named, and open it for the block.

    At its end the stream is closed as a byte pipe is: that waits up to 8 s for the host's end to be done, too. Then the
    channel is closed, which is not waited for when the block is cancelled.
    """
    offer = await client.wait_offer(SERIAL, instance_id)
    channel = await client.open(offer, ring_pages=ring_pages)
    try:
        async with BytePipe(channel) as pipe:
            yield pipe
    finally:
        with contextlib.suppress(ChannelClosed, ConnectionFailed):  # then there is nothing left to close
            await client.close(channel)  # not by the pipe, which would wait for a server that is gone
