"""What `python -m tests.fuzz` has found, so that it stays away: documents that were taken and must be refused."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from broker import state as partition_state
from broker.errors import DamagedDocument
from broker.trace import read_trace
from channels.core.client import saved as client_saved
from channels.core.server import ServerMachine, saved
from channels.core.server.offer_params import OfferParams
from channels.protocol.connect import InitiateContact, target_info
from channels.protocol.gpadl import gpadl_messages
from channels.protocol.gparange import GpaRange
from channels.protocol.offer import RequestOffers
from channels.protocol.open import OpenChannel
from channels.protocol.versions import Version
from channels.protocol.wire import NO_GUID

DEEP = 100_000


def document() -> bytes:
    """A server of version 5.3 with one channel, which is opening."""
    machine = ServerMachine()
    offer_id, _ = machine.offer(OfferParams.device(NO_GUID, NO_GUID))
    machine.receive(InitiateContact(Version.IRON, 0, target_info(2, 0)).pack())
    machine.connection_modified()
    ranges = GpaRange(0x3000, 0, (1, 2, 3)).pack()
    for message in (RequestOffers(), *gpadl_messages(1, 7, 1, ranges), OpenChannel(1, 1, 7, 0, 1)):
        machine.receive(message.pack())
    machine.gpadl_created(offer_id, 7)
    return machine.save()


def sealed(body: bytes, format_: str = saved.FORMAT.name) -> bytes:
    return msgspec.msgpack.encode({"format": format_, "version": 1, "crc32": zlib.crc32(body), "body": body})


def edits() -> dict[str, Callable[[dict[str, Any]], object]]:
    def channel(body: dict[str, Any]) -> Any:
        return body["channels"][0]

    return {
        "a modification that was not agreed on": lambda body: body["connection"].update(modifying=True),
        "a pause that was not agreed on": lambda body: body["connection"].update(paused=True),
        "a held message that is none": lambda body: (
            body["connection"].update(paused=True, version=int(Version.COPPER), features=0x20),
            body.update(held=[b"nonsense"]),
        ),
        "channels before there is a connection": lambda body: body["connection"].update(phase="connecting"),
        "a sub-channel of 17 bits": lambda body: channel(body)["key"].update(subchannel_index=1 << 16),
        "a GPADL ID of 33 bits": lambda body: channel(body)["gpadls"][0].update(gpadl_id=1 << 32),
        "a negative open ID": lambda body: channel(body)["open"].update(open_id=-1),
        "an event flag of 17 bits": lambda body: channel(body)["open"].update(event_flag=1 << 16),
        "user data of another size": lambda body: channel(body)["open"].update(user_data=b""),
    }


@pytest.mark.parametrize("edit", edits().values(), ids=edits())
def test_a_server_refuses_a_state_that_no_server_saves(edit: Callable[[dict[str, Any]], object]) -> None:
    body = msgspec.msgpack.decode(msgspec.msgpack.decode(document())["body"])
    ServerMachine().restore(sealed(msgspec.msgpack.encode(body)))
    edit(body)
    machine = ServerMachine()
    with pytest.raises(DamagedDocument):
        machine.restore(sealed(msgspec.msgpack.encode(body)))
    machine.check()
    assert not machine.state.connection.is_connected
    assert not machine.state.channels.by_channel_id


@pytest.mark.parametrize("decode", [saved.decode, client_saved.decode, partition_state.decode])
def test_a_saved_state_that_is_nested_too_deeply_is_damaged(decode: Callable[[bytes], object]) -> None:
    nested = b"\x81\xa1x" + b"\x91" * DEEP + b"\xc0"
    with pytest.raises(DamagedDocument):
        decode(nested)
    format_ = {saved.decode: saved.FORMAT.name, client_saved.decode: client_saved.FORMAT.name}.get(
        decode, partition_state.FORMAT
    )
    with pytest.raises(DamagedDocument):
        decode(sealed(nested, format_))


@pytest.mark.parametrize("before", [b"", b'{"format":"vmbus-trace","version":1}\n'])
def test_a_trace_that_is_nested_too_deeply_is_damaged(tmp_path: Path, before: bytes) -> None:
    path = tmp_path / "trace"
    path.write_bytes(before + b'{"event":"reset","id":1,"time":1,"x":' + b"[" * DEEP + b"]" * DEEP + b"}\n")
    with pytest.raises(DamagedDocument):
        list(read_trace(path))
