"""Joins hvsock to Unix sockets of the host, as Firecracker and OpenVMM do, so that host programs need not know hvsock.

A guest that connects to port N reaches the Unix socket PATH_N; a connection to a service ID that is no port reaches
PATH_ID. The guest is refused where there is no such socket. A host program connects to PATH, sends the line
"CONNECT N\\n", and reads "OK M\\n" once the guest has taken the connection (M says nothing), or the end where it has not;
what follows is the connection.

These are real sockets: for live partitions, not for seeded ones.
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from uuid import UUID

import anyio
from anyio.abc import ByteStream, SocketListener, TaskGroup
from anyio.streams.buffered import BufferedByteStream

from broker.errors import HostError

from .host import HvsockHost
from .join import connect_streams
from .services import port_of_service_id
from .stream import HvsockAttribute, HvsockStream

MAX_LINE = 64
"""Bytes of the line by which a host program says where to."""
RETRY_DELAY = 0.1
"""Seconds that host programs wait while this process has no file descriptor left."""


@asynccontextmanager
async def relay_unix(hvsock: HvsockHost, path: str | os.PathLike[str]) -> AsyncIterator[None]:
    """Relay while the block lasts. `OSError` when no socket can be made at `path`; one that is left there is replaced."""
    at = Path(path)
    errors: list[BaseException] = []
    async with (
        await anyio.create_unix_listener(at) as programs,
        await hvsock.listen(None, takes=partial(_is_there, at)) as guests,
        anyio.create_task_group() as group,
    ):
        group.start_soon(guests.serve, partial(_to_program, at))
        group.start_soon(_serve, programs, partial(_to_guest, hvsock), group)
        try:
            yield
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:  # not from within the group, which would wrap it
            errors.append(error)
        finally:
            group.cancel_scope.cancel()
    if errors:
        raise errors[0]


def _socket_for(path: Path, service_id: UUID) -> Path:
    port = port_of_service_id(service_id)
    return path.with_name(f"{path.name}_{service_id if port is None else port}")


def _is_there(path: Path, service_id: UUID) -> bool:
    return _socket_for(path, service_id).is_socket()


async def _serve(programs: SocketListener, handler: Callable[[ByteStream], Awaitable[None]], group: TaskGroup) -> None:
    """Accept host programs, also after a guest with too many connections has used up the file descriptors."""
    while True:
        try:
            await programs.serve(handler, group)
        except (anyio.BrokenResourceError, OSError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            if not isinstance(cause, OSError) or cause.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            await anyio.sleep(RETRY_DELAY)  # real time, as the sockets are


async def _to_program(path: Path, stream: HvsockStream) -> None:
    async with stream:
        try:
            program = await anyio.connect_unix(_socket_for(path, stream.extra(HvsockAttribute.service_id)))
        except OSError:  # it was there a moment ago
            return
        await connect_streams(stream, program)


async def _to_guest(hvsock: HvsockHost, program: ByteStream) -> None:
    async with program:
        buffered = BufferedByteStream(program)
        try:
            line = await buffered.receive_until(b"\n", MAX_LINE)
            word, _, number = line.partition(b" ")
            if word != b"CONNECT":
                return
            stream = await hvsock.connect(int(number))
            async with stream:
                await buffered.send(b"OK %d\n" % stream.channel.channel_id)
                await connect_streams(buffered, stream)
        except (
            ValueError,
            OSError,
            HostError,  # there is no room for one more offer, or hvsock ends
            anyio.IncompleteRead,
            anyio.DelimiterNotFound,
            anyio.BrokenResourceError,
            anyio.EndOfStream,
        ):
            return
