"""Joins two byte streams: what comes from one goes to the other, both ways, half-closes included."""

from __future__ import annotations

import anyio
from anyio.abc import ByteStream


async def connect_streams(first: ByteStream, second: ByteStream) -> None:
    """Pass on what comes until both have said that no more will; then both are closed.

    Where one of them breaks, both are closed at once, and nothing is raised. They are closed as well when this is
    cancelled.
    """
    async with first, second, anyio.create_task_group() as group:
        group.start_soon(_pass_on, first, second, group.cancel_scope)
        group.start_soon(_pass_on, second, first, group.cancel_scope)


async def _pass_on(source: ByteStream, sink: ByteStream, scope: anyio.CancelScope) -> None:
    try:
        async for data in source:
            await sink.send(data)
        await sink.send_eof()
    except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
        scope.cancel()
