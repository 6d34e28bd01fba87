"""A `Pair` comes to rest: everything is delivered and answered. Then nothing is due, nothing is on its way from one state
to another, and both ends mean the same. And it can be wound down, from wherever it is, until nobody holds anything.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from channels.core.client.states import ChannelState as ClientChannelState
from channels.core.client.states import ClientChannel, ClientState, GpadlState, PauseState
from channels.core.server.gpadl import GpadlState as ServerGpadlState
from channels.core.server.state import ConnectionPhase
from channels.core.server.table import Channel, ChannelState
from channels.protocol.versions import Version

from .pair import Pair
from .pair_moves import Move, answers, deliveries, do, guest_moves

_C = ChannelState
AT_REST = frozenset({_C.CLIENT_RELEASED, _C.CLOSED, _C.OPEN, _C.REVOKED, _C.REOFFERED})
"""States of a server's channel that last."""
MEANS = {
    _C.CLOSED: ClientChannelState.OFFERED,
    _C.OPEN: ClientChannelState.OPEN,
    _C.REVOKED: ClientChannelState.REVOKED,
    _C.REOFFERED: ClientChannelState.REVOKED,
}
"""The server's state of a channel, and the client's, once both have heard everything."""


def settle(pair: Pair) -> None:
    """Deliver and answer everything, see that nothing is stuck, and that both ends agree."""
    _run_dry(pair)
    _assert_at_rest(pair)
    if pair.is_rude:  # such a guest does not know itself
        held = pair.server.state.channels.by_channel_id.items()
        pair.reserved = {channel_id: "open" for channel_id, channel in held if channel.is_reserved}
        pair.was_reserved |= set(pair.reserved)
    for channel_id, state in pair.reserved.items():
        channel = pair.server.state.channels.by_channel_id.get(channel_id)
        is_answered = state == "open" or channel is None or not channel.is_reserved
        assert is_answered, f"the guest waits for reserved channel {channel_id}, which is {state}"
    pair.reserved = {channel_id: state for channel_id, state in pair.reserved.items() if state == "open"}
    if pair.is_rude or (pair.is_stale and pair.client.state is not ClientState.DISCONNECTED):
        # a guest that has confused its client, or taken an old answer for a new one, can always begin again
        pair.lose()
        pair.connect()
        pair.is_rude = pair.is_stale = False
        _run_dry(pair)
        _assert_at_rest(pair)
    pair.is_stale = False
    is_alone = pair.server.state.connection.is_connected and pair.client.state is ClientState.DISCONNECTED
    pair.is_lossy = pair.is_lossy and is_alone  # the host has not noticed
    pair.was_reserved &= pair.server.state.channels.by_channel_id.keys()
    _assert_all_ended(pair)
    if pair.client.state is ClientState.CONNECTED and pair.client.pause_state is PauseState.RUNNING:
        _assert_agreed(pair)


def _run_dry(pair: Pair) -> None:
    for _ in range(3000):
        move = _first(deliveries(pair), answers(pair))
        if move is None:
            return
        do(pair, move)
    raise AssertionError("it does not come to rest")


def _first(*kinds: Iterable[Move]) -> Move | None:
    return next(iter(chain(*kinds)), None)


def _assert_at_rest(pair: Pair) -> None:
    """Nothing is under way; the host's side never waits for anything but its guest."""
    state, connection = pair.server.state, pair.server.state.connection
    assert not pair.to_host, "the server takes no message"
    assert not state.backend
    assert not state.hvsock
    assert connection.phase in (ConnectionPhase.DISCONNECTED, ConnectionPhase.CONNECTED), connection.phase
    assert not connection.modifying
    for channel in state.channels.by_offer.values():
        assert channel.state in AT_REST, channel.state
        assert not channel.modifying
        assert channel.restored
        kinds = {gpadl.state for gpadl in channel.gpadls.values()}
        may_be_partial = (
            pair.is_rude or channel.channel_id in pair.was_reserved
        )  # where the guest has not sent the rest
        allowed = {ServerGpadlState.ACCEPTED} | ({ServerGpadlState.IN_PROGRESS} if may_be_partial else set())
        assert kinds <= allowed, kinds
        device = pair.devices.get(channel.offer_id)
        if device is not None and channel.state is not _C.REOFFERED:
            assert device.is_open == (channel.state is _C.OPEN)
            accepted = {n for n, g in channel.gpadls.items() if g.state is ServerGpadlState.ACCEPTED}
            assert device.gpadls == accepted
    if not state.connection.is_connected:
        assert all(c.channel_id is None or c.is_reserved for c in state.channels.by_offer.values())


def _assert_all_ended(pair: Pair) -> None:
    """Whatever the user asked for has ended."""
    client = pair.client
    assert client.state in (ClientState.DISCONNECTED, ClientState.CONNECTED), client.state
    assert client.pause_state in (PauseState.RUNNING, PauseState.PAUSED), client.pause_state
    if client.pause_state is PauseState.PAUSED:
        return  # what was asked for since ends after RESUME
    left = {key: count for key, count in pair.began.items() if count}
    if (client.agreed.version or Version.V1) < Version.WIN10_RS3_0:  # a refusal is not told
        left = {key: count for key, count in left.items() if key[0] != "hvsock"}
    assert not left, f"this has never ended: {left}"
    for channel_id, channel in pair.channels().items():
        assert channel.state is not ClientChannelState.OPENING, channel_id
        assert channel.state is not ClientChannelState.REVOKED or channel.is_held, "it is not released"
        assert not channel.is_modifying, channel_id
        assert set(channel.gpadls.values()) <= {GpadlState.CREATED}, channel_id


def _assert_agreed(pair: Pair) -> None:
    client, connection = pair.client, pair.server.state.connection
    assert connection.agreed == client.agreed
    assert connection.offers_sent
    assert not connection.paused
    assert connection.monitor_pages == client.monitor_pages
    known, held = pair.channels(), pair.server.state.channels.by_channel_id
    assert set(known) <= set(held), "the client knows a channel that the host does not"
    for channel_id, channel in held.items():
        theirs = known.get(channel_id)
        if channel_id in pair.was_reserved:
            continue  # the guest has used it past its client, perhaps over several connections
        assert theirs is not None, f"the host thinks that channel {channel_id} is known"
        _assert_same(pair, channel, theirs)


def _assert_same(pair: Pair, channel: Channel, theirs: ClientChannel) -> None:
    assert theirs.state is MEANS[channel.state], (theirs.state, channel.state)
    offer, key = theirs.offer, channel.params.key
    assert (offer.interface_id, offer.instance_id, offer.subchannel_index) == (
        key.interface_id,
        key.instance_id,
        key.subchannel_index,
    )
    if offer.monitor_allocated:
        assert offer.monitor_id == channel.monitor_id
    assert set(channel.gpadls) == set(theirs.gpadls)
    if channel.state is _C.OPEN and channel.open is not None:
        assert (channel.open.event_flag, channel.open.connection_id) == (theirs.event_flag, theirs.connection_id)


def wind_down(pair: Pair, how: str) -> None:
    """Come to rest, then let go of everything: the guest unloads, or the VM is reset, or all devices go and the guest
    releases their channels before it unloads. Then every ID is free, and the devices alone are left."""
    settle(pair)
    if how == "reset":
        pair.reset()
    else:
        if pair.client.state is not ClientState.CONNECTED:
            pair.connect()
            settle(pair)
        if pair.client.state is ClientState.CONNECTED:
            if pair.client.pause_state is PauseState.PAUSED:
                pair.end_claims()
                pair.user("resume")
                settle(pair)
            if how == "release":
                _release(pair)
            pair.unload()
    settle(pair)
    while (close := next((m for m in guest_moves(pair) if m[1] == "close_reserved"), None)) is not None:
        do(pair, close)
        settle(pair)
    _assert_free(pair)


def _release(pair: Pair) -> None:
    for offer_id in list(pair.devices):
        if offer_id in pair.devices:
            pair.revoke(offer_id)
    for channel_id, channel in pair.channels().items():
        if channel.is_held:
            pair.user("release", channel_id)
    settle(pair)
    assert not pair.channels()
    assert not pair.server.state.channels.by_channel_id.keys() - pair.was_reserved, "IDs of released channels are free"


def _assert_free(pair: Pair) -> None:
    state = pair.server.state
    assert pair.client.state is ClientState.DISCONNECTED
    assert state.connection.phase is ConnectionPhase.DISCONNECTED
    channels = state.channels
    assert not channels.by_channel_id
    assert channels.is_id_free(1)
    assert channels.monitor_ids == 0
    assert {channel.state for channel in channels.by_offer.values()} <= {_C.CLIENT_RELEASED}
    assert not any(channel.gpadls for channel in channels.by_offer.values())
    assert not state.gpadls_in_progress
    assert state.gpadl_words == 0
    assert not pair.ports
    assert not any(device.gpadls or device.is_open for device in pair.devices.values())
    assert not state.held
