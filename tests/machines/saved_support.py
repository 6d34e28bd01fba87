"""What the tests of a server's save and restore share."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import pytest

from channels.core.server import effects as do
from channels.core.server.state import ServerConfig

from . import wire
from .host import Host, connected

item = pytest.mark.vmbus_item


def moved(
    host: Host,
    devices: Iterable[object] = (1,),
    config: ServerConfig | None = None,
    *,
    edit: Callable[[Any], None] | None = None,
    messages: Iterable[bytes] = (),
) -> Host:
    """A new host, where these devices have offered, with the state of this one; it has not started."""
    document = host.machine.save(list(messages))
    if edit is not None:
        document = edited(document, edit)
    new = Host(config)
    for params in devices:
        new.offer(params)  # type: ignore[arg-type]
    new.hold()
    new.restore(document)
    new.machine.check()
    return new


def edited(document: bytes, edit: Callable[[Any], None]) -> bytes:
    """The same document with its body changed, and a checksum that fits."""
    envelope = msgspec.msgpack.decode(document)
    body = msgspec.msgpack.decode(envelope["body"])
    edit(body)
    envelope["body"] = msgspec.msgpack.encode(body)
    envelope["crc32"] = zlib.crc32(envelope["body"])
    return msgspec.msgpack.encode(envelope)


def in_state(state: str, **how: Any) -> Host:
    """Channel 1 of device 1 in this state; what its device is asked for waits."""
    host = connected(**how)
    if state in ("opening", "reserved opening"):
        host.hold(do.OpenDevice)
    if state.startswith("reserved"):
        host.hear(wire.open_reserved(1, 0, 5, 7, 1))
    elif state in ("opening", "open", "closing", "closing-reopen"):
        host.hear(wire.open_channel(1, 9, 7, 1, 1))
    host.hold()
    if state == "reserved closing":
        host.hear(wire.close_reserved(1, 0, 5))
    elif state.startswith("closing"):
        host.hear(wire.close_channel(1))
    if state == "closing-reopen":
        host.hear(wire.open_channel(1, 10, 8, 1, 1))
    if state in ("revoked", "reoffered"):
        host.revoke(1)
    if state == "reoffered":
        host.offer(1)
    return host
