"""No state is ever unreachable, and none is a dead end.

A seeded walk reaches every state of both machines and consults every cell of the channel tables; all states of a small
pair, breadth first, can be left for the state in which nobody holds anything.
"""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Hashable, Iterator
from random import Random
from typing import Any

import pytest

from channels.core.client import channels as client_channels
from channels.core.client.states import ChannelState as ClientChannelState
from channels.core.client.states import ClientState, PauseState, Step
from channels.core.client.states import GpadlState as ClientGpadlState
from channels.core.server import channels as server_channel
from channels.core.server.gpadl import GpadlState
from channels.core.server.state import ConnectionPhase
from channels.core.server.table import ChannelState
from channels.protocol.connect import Unload
from channels.protocol.offer import RelidReleased
from channels.protocol.open import CloseChannel, OpenChannel, OpenChannel2, OpenReservedChannel
from channels.protocol.versions import Version

from .pair import Pair
from .pair_moves import Move, answers, deliveries, do, guest_moves, host_moves, moves, restarts, rude_moves
from .pair_rest import settle, wind_down
from .pair_setup import Setup

TABLES = ("OPEN_TABLE", "OPEN_RESERVED_TABLE", "CLOSE_TABLE", "RELEASE_TABLE", "CONNECTION_LOST")
TABLE_OF = {
    OpenChannel: "OPEN_TABLE",
    OpenChannel2: "OPEN_TABLE",
    OpenReservedChannel: "OPEN_RESERVED_TABLE",
    CloseChannel: "CLOSE_TABLE",
    RelidReleased: "RELEASE_TABLE",
}
CURIOUS = ((Step.CLAIM, ("claim",)), (Step.RESCIND, ("revoke", "deliver_to_guest")), (Step.CLOSE, ("close", "resume")))
STATES = (ChannelState, GpadlState, ConnectionPhase, ClientState, ClientChannelState, ClientGpadlState, PauseState)
WEIGHTS = {"deliver": 8, "answer": 4, "guest": 5, "host": 1, "restart": 0.5, "rude": 1}
NAMES = {"open": 4, "close": 2, "reset": 0.1, "lose": 0.1, "unload": 0.1, "pause": 0.5, "restart_client": 8}
CHAPTER, CHAPTERS = 40, 3000
"""Steps of one walk, and how many walks at most. Each begins where one before has found something."""
ENDS = ("unload", "reset", "release")


class Recording(dict[Any, Any]):
    """A table that notes which of its cells are looked at."""

    def __init__(self, name: str, table: dict[Any, Any], missing: set[Hashable]) -> None:
        super().__init__(table)
        self._name, self._missing = name, missing
        missing |= {(name, cell) for cell in table}

    def __getitem__(self, cell: Any) -> Any:
        self._missing.discard((self._name, cell))
        return super().__getitem__(cell)


def test_the_tables_are_where_they_are_watched() -> None:
    for name in TABLES:
        assert isinstance(getattr(server_channel, name), dict)
    assert isinstance(client_channels.CHANNEL_STEPS, dict)


def step(pair: Pair, random: Random, haste: float) -> None:
    """One step, chosen by group, then by name, then among the moves of that name. `haste` is that of the devices."""
    found = [*moves(pair), *restarts(pair, random.randrange(1000)), *rude_moves(pair)]
    groups = sorted({move[0] for move in found})
    group = random.choices(groups, [WEIGHTS[name] * (haste if name == "answer" else 1) for name in groups])[0]
    names = sorted({move[1] for move in found if move[0] == group})
    name = random.choices(names, [NAMES.get(name, 1) for name in names])[0]
    do(pair, random.choice([move for move in found if move[:2] == (group, name)]))


def curious_moves(pair: Pair, missing: set[Hashable]) -> list[Move]:
    """Moves that would look at a cell that nothing has looked at yet."""
    channels = pair.server.state.channels.by_offer.values()
    states = {channel.channel_id: channel.state for channel in channels}
    found = [
        move
        for move in rude_moves(pair)
        if (TABLE_OF.get(type(move[2][0])), states.get(getattr(move[2][0], "channel_id", 0))) in missing
    ]
    if any(("CONNECTION_LOST", channel.state) in missing for channel in channels):
        found.append(("rude", "raw", (Unload(),)))
    theirs = {channel.state for channel in pair.channels().values()}
    for kind, names in CURIOUS:
        if any(("CHANNEL_STEPS", (state, kind)) in missing for state in theirs):
            found += [move for move in moves(pair) if move[1] in names]
    return found


def look(pair: Pair, missing: set[Hashable]) -> None:
    """Strike off the states that are there now."""
    channels = pair.server.state.channels.by_offer.values()
    missing.difference_update((pair.server.state.connection.phase, pair.client.state, pair.client.pause_state))
    for channel in channels:
        missing.discard(channel.state)
        missing.difference_update(gpadl.state for gpadl in channel.gpadls.values())
    for theirs in pair.channels().values():
        missing.discard(theirs.state)
        missing.difference_update(theirs.gpadls.values())


def out_of_reach(version: Version) -> set[Hashable]:
    """What this version has no words for."""
    excused: set[Hashable] = set()
    if version < Version.WIN10:
        excused |= {("OPEN_RESERVED_TABLE", state) for state in ChannelState}
    if version < Version.COPPER:
        excused.add(PauseState.ASKED)
    return excused


@pytest.mark.parametrize("version", [Version.V1, Version.WIN8, Version.WIN10, Version.IRON, Version.COPPER], ids=str)
def test_every_state_and_every_cell_of_the_tables_is_reached(version: Version, monkeypatch: pytest.MonkeyPatch) -> None:
    missing: set[Hashable] = {state for kind in STATES for state in kind}
    for name in TABLES:
        monkeypatch.setattr(server_channel, name, Recording(name, getattr(server_channel, name), missing))
    steps = Recording("CHANNEL_STEPS", client_channels.CHANNEL_STEPS, missing)
    monkeypatch.setattr(client_channels, "CHANNEL_STEPS", steps)
    missing -= out_of_reach(version)
    random = Random(int(version))
    places = [place for features in (0, 0x0F, 0x2F) for place in beginnings(version, features)]
    seen: set[Hashable] = set()
    for _ in range(CHAPTERS):
        pair: Pair = pickle.loads(random.choice(places))
        haste = random.choice((0.1, 1, 4))
        for _ in range(CHAPTER):
            curious = curious_moves(pair, missing)
            if curious and random.random() < 0.3:
                do(pair, random.choice(curious))
            else:
                step(pair, random, haste)
            look(pair, missing)
            if not gist(pair) <= seen:
                seen |= gist(pair)
                places.append(pickle.dumps(pair))
        wind_down(pair, random.choice(ENDS))
        if not missing:
            return
    raise AssertionError(f"{len(missing)} never reached: {sorted(map(str, missing))}")


def gist(pair: Pair) -> set[Hashable]:
    """Where each channel is for both ends, and the connection: what is new in it is worth going on from."""
    theirs, pause = pair.channels(), pair.client.pause_state
    return {
        (
            channel.state,
            getattr(theirs.get(channel.channel_id or 0), "state", None),
            pause,
            channel.channel_id in pair.reserved,
        )
        for channel in pair.server.state.channels.by_offer.values()
    }


def beginnings(version: Version, features: int) -> Iterator[bytes]:
    """A pair that has agreed on a version, with all its devices; then with an open channel, paused, and restored."""
    pair = Pair(Setup(version=version, features=features, devices=2, subchannels=1))
    for params in pair.offers:
        pair.offer(params)
    pair.connect()
    settle(pair)
    yield pickle.dumps(pair)
    for name, arguments in (("open", (1, 0)), ("pause", ()), ("restart_client", ())):
        do(pair, ("guest", name, arguments))
        if name != "restart_client":
            settle(pair)
        yield pickle.dumps(pair)


# a small pair, all of it


def name_of(pair: Pair) -> Hashable:
    """What tells one state of a small pair from another; numbers that only grow do not count."""
    state, client = pair.server.state, pair.client
    connection = state.connection
    devices = {
        device.params.key: (device.is_open, frozenset(device.gpadls), frozenset(device.asked))
        for device in pair.devices.values()
    }
    server = tuple(
        (
            key.instance_id.int,
            channel.state,
            channel.channel_id,
            channel.open is not None,
            tuple((n, gpadl.state, gpadl.is_released) for n, gpadl in sorted(channel.gpadls.items())),
            devices.get(key),
        )
        for key, channel in sorted(state.channels.by_key.items(), key=lambda item: item[0].instance_id.int)
    )
    guest = tuple(
        (channel_id, channel.state, channel.is_held, channel.closes, tuple(sorted(channel.gpadls.items())))
        for channel_id, channel in pair.channels().items()
    )
    following = None if connection.next is None else connection.next.kind
    phase = (connection.phase, following, connection.reset_sent, connection.offers_sent, tuple(state.backend))
    return server, guest, phase, client.state, pair.is_stale, tuple(pair.to_host), tuple(pair.to_guest)


SMALL = {"connect", "lose", "unload", "open", "close", "release", "create", "teardown", "reset", "offer", "revoke"}
SMALL_QUEUE = 1
MOST_STATES = 1500


def small_moves(pair: Pair) -> list[Move]:
    """The moves of a small pair: one GPADL per channel, short queues, a backend that can do all."""
    found = [*deliveries(pair), *(move for move in answers(pair) if move[1] == "answer" or move[2] == ("ok",))]
    if len(pair.to_host) < SMALL_QUEUE and len(pair.to_guest) < SMALL_QUEUE:
        found += [move for move in (*guest_moves(pair), *host_moves(pair)) if move[1] in SMALL and is_small(pair, move)]
    return found


def is_small(pair: Pair, move: Move) -> bool:
    if move[1] == "create":
        return move[2][1] == "short" and not pair.gpadl_ids()
    return move[1] != "open" or move[2][1] == 0


def small(version: Version, devices: int) -> Pair:
    return Pair(Setup(version=version, devices=devices, features=0, monitor_pages=False))


def neighbours(frozen: bytes) -> Iterator[tuple[Hashable, bytes]]:
    """Where each move leads."""
    for move in small_moves(pickle.loads(frozen)):
        pair = pickle.loads(frozen)
        do(pair, move)
        yield name_of(pair), pickle.dumps(pair)


def test_from_every_state_of_a_pair_with_one_device_a_path_leads_back_to_the_start() -> None:
    start = small(Version.IRON, 1)
    waiting = deque([(name_of(start), pickle.dumps(start))])
    found = {name_of(start)}
    comes_from: dict[Hashable, set[Hashable]] = {name_of(start): set()}
    while waiting:
        here, frozen = waiting.popleft()
        for there, pair in neighbours(frozen):
            comes_from.setdefault(there, set()).add(here)
            if there not in found:
                found.add(there)
                waiting.append((there, pair))
    assert len(found) > 1000
    leads_back = {name_of(start)}
    behind = [name_of(start)]
    while behind:
        new = comes_from[behind.pop()] - leads_back
        leads_back |= new
        behind.extend(new)
    assert leads_back == found, f"{len(found - leads_back)} of {len(found)} states are dead ends: {found - leads_back}"


def test_a_pair_with_two_devices_can_be_wound_down_from_whatever_comes_first() -> None:
    start = small(Version.COPPER, 2)
    waiting = deque([pickle.dumps(start)])
    found = {name_of(start)}
    for number in range(MOST_STATES):
        frozen = waiting.popleft()
        wind_down(pickle.loads(frozen), ENDS[number % len(ENDS)])
        for there, pair in neighbours(frozen):
            if there not in found:
                found.add(there)
                waiting.append(pair)
