"""Targets that read documents: saved states of a server, a client and a partition, traces and recorded conversations.

A saved state is msgpack with a checksum, which mutated bytes would never pass. So a script edits the content of a sound
document, or brings content of its own, and the checksum is computed anew.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, cast, get_type_hints

import anyio
import msgspec

from broker import Partition, PartitionConfig
from broker import state as partition_state
from broker.errors import DamagedDocument, HostError, PeerError, UnsupportedVersion
from broker.replay.conversation import read_conversation
from broker.replay.devices import plan_devices
from broker.replay.guest import needs_of
from broker.trace import EVENT_TYPES, AnyEvent, Event, encode_event, read_trace
from broker.trace.file import FORMAT as TRACE_FORMAT
from channels.core.client import ClientMachine
from channels.core.client import saved as client_saved
from channels.core.server import ServerMachine
from channels.core.server import saved as server_saved

from . import vectors
from .client import ClientGame, client_seeds
from .script import Script, text
from .server import ServerGame, config_of, server_seeds

MOST_DOCUMENTS = 40
_DEEP = 1500
"""Arrays in arrays: more than any reader follows."""
RAW = 0
"""As the first byte: the rest is the document, or its body, as it stands."""


def server_saved_state(data: bytes) -> None:
    """A document, its restore, then a guest and devices that go on."""
    script = Script(data)
    document = _document(script, _server_documents(), server_saved.FORMAT.name)
    config = config_of(script)
    game = ServerGame(config)
    for _ in range(script.number() % 4):
        game.offer(script)
    try:
        server_saved.decode(document)
    except PeerError:
        return
    try:
        game.machine.restore(document)
    except (PeerError, HostError):
        _expect_unused(game.machine)
        return
    game.devices_come_back(script)
    game.play(script)


def server_saved_state_seeds() -> list[bytes]:
    """Sound documents with one edit each, and as they are."""
    return _document_seeds(len(_server_documents()), bytes(12))


def client_saved_state(data: bytes) -> None:
    """A document, its restore, then a host and a user that go on."""
    script = Script(data)
    document = _document(script, _client_documents(), client_saved.FORMAT.name)
    game = ClientGame()
    try:
        effects = game.machine.restore(document)
    except (DamagedDocument, UnsupportedVersion):
        game.machine.check()
        assert not game.machine.is_connected
        return
    game.follow(effects)
    game.play(script)


def client_saved_state_seeds() -> list[bytes]:
    """As for the server's."""
    return _document_seeds(len(_client_documents()), bytes(8))


def partition_saved_state(data: bytes) -> None:
    """A document: read, or refused."""
    document = _document(Script(data), _partition_documents(), partition_state.FORMAT)
    try:
        state = partition_state.decode(document)
    except (DamagedDocument, UnsupportedVersion):
        return
    assert partition_state.decode(partition_state.encode(state)) == state


def partition_saved_state_seeds() -> list[bytes]:
    """As for the server's."""
    return _document_seeds(len(_partition_documents()), b"")


def trace_file(data: bytes) -> None:
    """A trace: read, or refused at a line."""
    path = _scratch_file()
    path.write_bytes(data)
    with suppress(DamagedDocument, UnsupportedVersion):
        for event in read_trace(path):
            assert encode_event(event)


def trace_file_seeds() -> list[bytes]:
    """A header, and a header with events."""
    header = msgspec.json.encode({"format": TRACE_FORMAT, "version": 1}) + b"\n"
    events = [encode_event(cast("AnyEvent", _sample(kind))) + b"\n" for kind in EVENT_TYPES]
    deep = b'{"x":' + b"[" * _DEEP
    return [header, header + b"".join(events), *(header + event for event in events), deep, header + deep + b"\n"]


def conversation_file(data: bytes) -> None:
    """A conversation: read, and what it needs for a replay, or refused at a step."""
    path = _scratch_file()
    path.write_bytes(data)
    with suppress(DamagedDocument):
        conversation = read_conversation(path)
        needs_of(conversation)
        plan_devices(conversation)


def conversation_file_seeds() -> list[bytes]:
    """The steps of the Linux conversation, each alone and a few together."""
    steps = vectors.conversation_steps()
    groups = [steps[:4], steps[-4:], *([step] for step in steps)]
    return [msgspec.json.encode({"about": "", "steps": group}) for group in groups] + [b'{"steps":' + b"[" * _DEEP]


def _sample(kind: type[Event]) -> Event:
    """An event of this kind."""
    values: dict[type, Any] = {int: 1, str: "x", bytes: b"x", bool: True}
    return kind(**{name: values[hint] for name, hint in get_type_hints(kind).items() if name in kind.__struct_fields__})


def _document(script: Script, sound: Sequence[bytes], format_: str) -> bytes:
    how = script.number()
    if how == RAW:
        return script.text(2)
    if how == RAW + 1:
        return _sealed(script.text(2), format_)
    body = msgspec.msgpack.decode(script.pick(sound))["body"]
    content = msgspec.msgpack.decode(body)
    for _ in range(how - 2 & 3):
        content = _edited(content, script)
    return _sealed(msgspec.msgpack.encode(content), format_)


def _sealed(body: bytes, format_: str) -> bytes:
    return msgspec.msgpack.encode({"format": format_, "version": 1, "crc32": zlib.crc32(body), "body": body})


def _edited(content: Any, script: Script) -> Any:
    """Another value, or another length, somewhere in it."""
    if isinstance(content, dict | list) and content and script.number() % 8:
        keys = list(content) if isinstance(content, dict) else range(len(content))
        key = script.pick(keys)
        inner = content[key]
        if isinstance(content, list) and script.number() % 8 == 0:
            return [*content[:key], *([inner] * (script.number() % 4)), *content[key + 1 :]]
        content[key] = _edited(inner, script)
        return content
    return _replacement(content, script)


def _replacement(old: Any, script: Script) -> Any:
    if isinstance(old, bool):
        return not old
    makers: list[Callable[[], Any]] = [
        lambda: script.value(64),
        lambda: script.value(32),
        lambda: -script.value(63),
        lambda: None,
        script.flag,
        script.text,
        lambda: script.text().decode("latin-1"),
        list,
        dict,
        lambda: script.pick(_WORDS),
    ]
    if isinstance(old, int) and script.flag():
        return script.value(64)
    if isinstance(old, bytes) and script.flag():
        return old[: script.number()] + script.text()
    if isinstance(old, str) and script.flag():
        return script.pick(_WORDS)
    return script.pick(makers)()


_WORDS = (
    *("closed", "opening", "open", "closing", "closing-reopen", "revoked", "offered", "restored"),
    *("in-progress", "accepted", "tearing-down", "created", "creating"),
    *("connecting", "connected", "disconnecting", "reset", "unload", "reconnect", "nothing"),
)
"""States and kinds that documents name."""


def _document_seeds(count: int, then: bytes) -> list[bytes]:
    edits = [bytes([how, index, *edit]) for index in range(count) for how in (2, 3) for edit in _EDITS]
    deep = text(b"\x81\xa1x" + b"\x91" * _DEEP, 2)
    raw = [bytes([RAW, 0, 0]), bytes([RAW + 1, 1, 0, 0xC0]), bytes([RAW]) + deep, bytes([RAW + 1]) + deep]
    return [*raw, *(edit + then for edit in edits)]


_EDITS = (bytes(8), bytes((1, 0, 1, 1, 1, 1, 5, 0)), bytes((1, 2, 1, 0, 1, 1, 1, 9, 1, 4, 0)))


@cache
def _server_documents() -> tuple[bytes, ...]:
    """States on the way through the seeds of the server's machine."""
    found: list[bytes] = []
    for seed in server_seeds():
        script = Script(seed)
        game = ServerGame(config_of(script))
        while script:
            game.step(script)
            found.append(game.machine.save())
    return _some(found)


@cache
def _client_documents() -> tuple[bytes, ...]:
    """States on the way through the seeds of the client's machine."""
    found = [ClientMachine().save()]
    for seed in client_seeds():
        script = Script(seed)
        game = ClientGame()
        while script:
            game.step(script)
            try:
                found.append(game.machine.save())
            except HostError:
                continue  # it is saved while paused only
    return _some(found)


def _some(documents: list[bytes]) -> tuple[bytes, ...]:
    """A few dozen different ones, from first to last."""
    different = list(dict.fromkeys(documents))
    return tuple(different[:: len(different) // MOST_DOCUMENTS + 1])


@cache
def _partition_documents() -> tuple[bytes, ...]:
    async def save() -> bytes:
        async with Partition(PartitionConfig(virtual_time=True)) as partition:
            return partition.save()

    return (anyio.run(save),)


@cache
def _scratch_file() -> Path:
    """A file in memory, one for the process."""
    return Path(f"/proc/self/fd/{os.memfd_create('fuzz')}")


def _expect_unused(machine: ServerMachine) -> None:
    """A refused restore has changed nothing."""
    machine.check()
    assert not machine.state.channels.by_channel_id
    assert not machine.state.connection.is_connected
    assert not machine.state.gpadl_words
