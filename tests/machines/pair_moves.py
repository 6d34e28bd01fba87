"""What may happen next to a `Pair`: all moves as (group, name, arguments), in an order that depends on its state alone.

The groups: "deliver" a message; "answer" what was asked for; the "guest" and its user; the "host" and its devices; "restart"
of either machine from a saved state; "rude", what no client would send.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from uuid import UUID

from channels.core.client.channels import OpenRequest
from channels.core.client.states import ChannelState, ClientChannel, ClientState, GpadlState, PauseState
from channels.protocol.connect import Pause, Resume, Unload
from channels.protocol.gpadl import GpadlBody, GpadlHeader, GpadlTeardown
from channels.protocol.ids import NO_INTERRUPTS
from channels.protocol.offer import RelidReleased, RequestOffers
from channels.protocol.open import (
    CloseChannel,
    CloseReservedChannel,
    ModifyChannel,
    OpenChannel,
    OpenChannel2,
    OpenReservedChannel,
)
from channels.protocol.versions import OPEN2_FEATURES, FeatureFlags, Version

from .pair import Pair
from .pair_setup import GUEST_PAGES

Move = tuple[str, str, tuple[object, ...]]

SERVICE = UUID(int=0x5EF1CE)
MOST_GPADLS = 2
"""Per channel."""
MOST_HVSOCKS = 2


def ranges(pages: int) -> bytes:
    """A range buffer of one range."""
    return struct.pack(f"<II{pages}Q", pages * 4096, 0, *range(0x100, 0x100 + pages))


BUFFERS = {"short": (1, ranges(4)), "long": (1, ranges(70)), "bad": (2, ranges(4)), "bad long": (2, ranges(70))}


def moves(pair: Pair) -> list[Move]:
    """Every polite move that makes sense now."""
    return [*deliveries(pair), *answers(pair), *guest_moves(pair), *host_moves(pair)]


def do(pair: Pair, move: Move) -> None:
    """Make this move."""
    _, name, arguments = move
    if name in _USER:
        _USER[name](pair, *arguments)
    else:
        getattr(pair, name)(*arguments)


def deliveries(pair: Pair) -> Iterator[Move]:
    """Messages that are on their way."""
    if pair.to_host and pair.server.may_receive:
        yield "deliver", "deliver_to_host", ()
    if pair.to_guest:
        yield "deliver", "deliver_to_guest", ()


def answers(pair: Pair) -> Iterator[Move]:
    """What devices, backend and listeners may answer; success comes first."""
    for offer_id, device in pair.devices.items():
        for what, number in device.asked:
            yield "answer", "answer", (offer_id, what, number, True)
            if what in ("open", "create", "modify"):
                yield "answer", "answer", (offer_id, what, number, False)
    if pair.backend:
        yield "answer", "answer_backend", ("ok",)
        request, purpose = pair.backend[0], pair.server.state.backend[0]
        if purpose == "connect":
            yield "answer", "answer_backend", ("failed",)
            yield "answer", "answer_backend", ("unsupported",)
            if request.allocate:
                yield "answer", "answer_backend", ("own pages",)
        elif request.version is not None:
            yield "answer", "answer_backend", ("failed",)
    if pair.listeners:
        yield "answer", "answer_listener", (True,)
        yield "answer", "answer_listener", (False,)


def guest_moves(pair: Pair) -> Iterator[Move]:
    """What the user of the client may ask for, and what a guest does with reserved channels."""
    client = pair.client
    if client.state is ClientState.DISCONNECTED:
        yield "guest", "connect", ()
    else:
        yield "guest", "lose", ()
    if client.pause_state is PauseState.RUNNING:  # while paused a host would not listen
        for channel_id, state in pair.reserved.items():
            if state == "open":
                yield "guest", "close_reserved", (channel_id,)
    if not client.is_connected:
        return
    yield "guest", "unload", ()
    is_running = client.pause_state is PauseState.RUNNING
    if is_running and client.state is ClientState.CONNECTED:
        yield "guest", "pause", ()
    if client.pause_state is PauseState.PAUSED:
        yield "guest", "resume", ()
    for channel_id, channel in pair.channels().items():
        yield from _channel_moves(pair, channel_id, channel, is_running)
    if is_running:
        yield from _connection_moves(pair)


def _channel_moves(pair: Pair, channel_id: int, channel: ClientChannel, is_running: bool) -> Iterator[Move]:
    if channel_id in pair.reserved:
        if pair.reserved[channel_id] == "closing" and channel.state is ChannelState.OFFERED and is_running:
            yield "guest", "open", (channel_id, 0)
        return
    for gpadl_id, state in channel.gpadls.items():
        if state is GpadlState.CREATED:
            yield "guest", "teardown", (channel_id, gpadl_id)
    if not channel.is_held:
        return
    yield "guest", "release", (channel_id,)
    if channel.state is ChannelState.RESTORED:
        yield "guest", "claim", (channel_id,)
    if channel.state in (ChannelState.OPENING, ChannelState.OPEN) and not channel.closes:
        yield "guest", "close", (channel_id,)
    if not is_running:
        return
    if channel.state is ChannelState.OFFERED:
        yield "guest", "open", (channel_id, 0)
        yield "guest", "open", (channel_id, NO_INTERRUPTS)
        if (pair.client.agreed.version or 0) >= Version.WIN10:
            yield "guest", "open_reserved", (channel_id,)
    if len(channel.gpadls) < MOST_GPADLS:
        yield from (("guest", "create", (channel_id, kind)) for kind in BUFFERS)
    if not channel.is_modifying:
        yield "guest", "modify", (channel_id, 1)


def _connection_moves(pair: Pair) -> Iterator[Move]:
    waiting = [key for (what, key), count in pair.began.items() if what == "hvsock" and count]
    if len(waiting) < MOST_HVSOCKS:
        yield "guest", "hvsock", ()
    for endpoint_id in waiting:
        yield "guest", "forget", (endpoint_id,)
    if pair.client.agreed.features & FeatureFlags.MODIFY_CONNECTION:
        yield "guest", "pages", (None,)
        yield "guest", "pages", (GUEST_PAGES,)


def host_moves(pair: Pair) -> Iterator[Move]:
    """What devices and the VM do of themselves."""
    present = {device.params.key for device in pair.devices.values()}
    primaries = {device.params.instance_id for device in pair.devices.values() if not device.params.subchannel_index}
    for params in pair.offers:
        if params.key not in present and (not params.subchannel_index or params.instance_id in primaries):
            yield "host", "offer", (params,)
    for offer_id in pair.devices:
        yield "host", "revoke", (offer_id,)
    yield "host", "reset", ()


def restarts(pair: Pair, seed: int) -> Iterator[Move]:
    """Either machine, saved and restored."""
    yield "restart", "restart_server", (seed,)
    if pair.client.state is ClientState.DISCONNECTED or pair.client.pause_state is PauseState.PAUSED:
        yield "restart", "restart_client", ()


def rude_moves(pair: Pair) -> Iterator[Move]:
    """Messages that the client knows nothing of, and of which the server must make the best."""
    count, data = BUFFERS["long"]
    for channel_id in range(1, len(pair.offers) + 2):
        has_form2 = pair.client.agreed.features & OPEN2_FEATURES
        yield "rude", "raw", (OpenChannel2(channel_id) if has_form2 else OpenChannel(channel_id),)
        yield "rude", "raw", (OpenReservedChannel(channel_id),)
        yield "rude", "raw", (CloseChannel(channel_id),)
        yield "rude", "raw", (CloseReservedChannel(channel_id),)
        yield "rude", "raw", (RelidReleased(channel_id),)
        yield "rude", "raw", (ModifyChannel(channel_id, 2),)
        yield "rude", "raw", (GpadlHeader(channel_id, 1, len(data), count, data[:64]),)
        yield "rude", "raw", (GpadlTeardown(channel_id, 1),)
    yield "rude", "raw", (GpadlBody(0, 1, data[64:280]),)
    for message in (RequestOffers(), Unload(), Pause(), Resume()):
        yield "rude", "raw", (message,)


# how the user asks


def _open(pair: Pair, channel_id: int, target_vp: int) -> None:
    channel = pair.channels()[channel_id]
    created = [gpadl_id for gpadl_id, state in channel.gpadls.items() if state is GpadlState.CREATED]
    pair.user("open", channel_id, OpenRequest(created[0] if created else 1, 2, target_vp), begins=("open", channel_id))


def _create(pair: Pair, channel_id: int, kind: str) -> None:
    gpadl_id = next(n for n in range(1, 1 << 16) if n not in pair.gpadl_ids())
    pair.user("create_gpadl", channel_id, gpadl_id, *BUFFERS[kind], begins=("create", gpadl_id))


def _teardown(pair: Pair, channel_id: int, gpadl_id: int) -> None:
    pair.user("teardown_gpadl", channel_id, gpadl_id, begins=("teardown", gpadl_id))


def _hvsock(pair: Pair) -> None:
    endpoint_id, pair.next_endpoint = UUID(int=pair.next_endpoint), pair.next_endpoint + 1
    pair.user("connect_hvsock", SERVICE, endpoint_id, begins=("hvsock", endpoint_id))


def _forget(pair: Pair, endpoint_id: UUID) -> None:
    pair.is_lossy = True
    pair.user("forget_hvsock", SERVICE, endpoint_id)
    del pair.began["hvsock", endpoint_id]


def _open_reserved(pair: Pair, channel_id: int) -> None:
    pair.raw(OpenReservedChannel(channel_id, target_sint=5), is_rude=False)


def _close_reserved(pair: Pair, channel_id: int) -> None:
    pair.raw(CloseReservedChannel(channel_id, target_sint=6), is_rude=False)
    pair.reserved[channel_id] = "closing"


def _resume(pair: Pair) -> None:
    pair.end_claims()
    pair.user("resume")


_USER = {
    "open": _open,
    "create": _create,
    "teardown": _teardown,
    "hvsock": _hvsock,
    "forget": _forget,
    "open_reserved": _open_reserved,
    "close_reserved": _close_reserved,
    "close": lambda pair, channel_id: pair.user("close", channel_id),
    "release": lambda pair, channel_id: pair.user("release", channel_id),
    "modify": lambda pair, channel_id, vp: pair.user("modify_channel", channel_id, vp, begins=("modify", channel_id)),
    "pages": lambda pair, pages: pair.user("modify_connection", pages, begins=("pages", 0)),
    "pause": lambda pair: pair.user("pause", begins=("pause", 0)),
    "claim": lambda pair, channel_id: pair.user("claim", channel_id),
    "resume": _resume,
}
