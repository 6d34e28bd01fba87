"""Whatever a host sends and a user asks for, in whatever order: documented errors only, every invariant after every step,
and every request that was taken ends once the host answers or the connection does.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import DamagedDocument, UnsupportedVersion
from broker.errors import HostError
from channels.core.client import ClientMachine
from channels.core.client.channels import OpenRequest
from channels.core.client.contact import ConnectRequest
from channels.core.client.effects import GpadlCreateEnded, GpadlTornDown, OpenEnded, Post, UnloadEnded
from channels.core.client.states import ClientState, PauseState
from channels.core.server.effects import Effect, MonitorPages
from channels.protocol.connect import (
    InitiateContact,
    ModifyConnectionResponse,
    PauseResponse,
    UnloadComplete,
    VersionResponse,
    VersionResponse2,
    VersionResponse3,
)
from channels.protocol.gpadl import GpadlBody, GpadlCreated, GpadlHeader, GpadlTeardown, GpadlTorndown
from channels.protocol.hvsock import TlConnectResult
from channels.protocol.message import MessageType
from channels.protocol.offer import AllOffersDelivered, RelidReleased, RescindChannelOffer
from channels.protocol.open import CloseReservedChannelResponse, ModifyChannelResponse, OpenChannel, OpenResult
from channels.protocol.versions import FeatureFlags, Version

from .client_support import ENDPOINT, SERVICE, connected, offer

CHANNELS = st.integers(1, 4)
GPADLS = st.integers(1, 4)
STATUSES = st.sampled_from([0, 0, 0x8000_FFFF])
VERSIONS = st.sampled_from(list(Version))

HOST = st.one_of(
    st.builds(VersionResponse, st.integers(0, 1), st.sampled_from([0, 0, 0, 1]), st.integers(0, 9)),
    st.builds(VersionResponse2, st.just(1), st.just(0), st.just(4), st.integers(0, 0xFF)),
    st.builds(
        VersionResponse3, st.just(1), st.just(0), st.just(4), st.integers(0, 0xFF), st.just(0), st.integers(0, 1)
    ),
    st.builds(offer, st.integers(0, 5)),
    st.builds(RescindChannelOffer, CHANNELS),
    st.builds(AllOffersDelivered),
    st.builds(OpenResult, CHANNELS, CHANNELS, STATUSES),
    st.builds(GpadlCreated, CHANNELS, GPADLS, STATUSES),
    st.builds(GpadlTorndown, GPADLS),
    st.builds(ModifyChannelResponse, CHANNELS, STATUSES),
    st.builds(ModifyConnectionResponse, st.integers(0, 2)),
    st.builds(TlConnectResult, st.just(ENDPOINT), st.just(SERVICE), STATUSES),
    st.builds(PauseResponse),
    st.builds(UnloadComplete),
    st.builds(CloseReservedChannelResponse, CHANNELS),
).map(lambda message: message.pack())

NOISE = st.one_of(
    st.binary(max_size=240),
    st.builds(lambda kind, rest: kind.to_bytes(4, "little") + rest, st.integers(0, 31), st.binary(max_size=236)),
)

REQUESTS = st.builds(
    OpenRequest,
    GPADLS,
    st.integers(1, 3),
    st.sampled_from([0, 0xFFFF_FFFF, 1 << 32]),
    st.just(b""),
    st.booleans(),
    st.none() | st.integers(0, 3),
    st.none() | st.integers(0, 3),
)
PAGES = st.none() | st.builds(MonitorPages, st.integers(0, 1), st.integers(0, 1 << 64))


def call(name: str, *arguments: st.SearchStrategy[object]) -> st.SearchStrategy[tuple[str, tuple[object, ...]]]:
    return st.tuples(st.just(name), st.tuples(*arguments))


STEPS = st.one_of(
    call("receive", HOST),
    call("receive", NOISE),
    call(
        "connect",
        st.builds(ConnectRequest, st.lists(VERSIONS, unique=True, max_size=3).map(tuple), monitor_pages=PAGES),
    ),
    call("contact_refused"),
    call("open", CHANNELS, REQUESTS),
    call("close", CHANNELS),
    call("release", CHANNELS),
    call("create_gpadl", CHANNELS, GPADLS, st.integers(0, 2), st.binary(max_size=1).map(lambda odd: bytes(240) + odd)),
    call("teardown_gpadl", CHANNELS, GPADLS),
    call("modify_channel", CHANNELS, st.integers(0, 2)),
    call("modify_connection", PAGES),
    call("connect_hvsock", st.just(SERVICE), st.just(ENDPOINT)),
    call("forget_hvsock", st.just(SERVICE), st.just(ENDPOINT)),
    call("pause"),
    call("resume"),
    call("claim", CHANNELS),
    call("end_claims"),
    call("unload"),
    call("connection_lost"),
    call("restore", st.binary(max_size=20)),
)


def attempt(machine: ClientMachine, name: str, arguments: tuple[object, ...]) -> list[Effect]:
    """One step; documented errors leave nothing behind."""
    method: Callable[..., list[Effect]] = getattr(machine, name)
    try:
        return method(*arguments)
    except (HostError, ValueError, DamagedDocument, UnsupportedVersion):
        assert name != "receive"
        return []
    finally:
        machine.check()


@settings(max_examples=300)
@given(st.lists(STEPS, max_size=40))
def test_from_the_start(steps: list[tuple[str, tuple[object, ...]]]) -> None:
    machine = ClientMachine()
    for name, arguments in steps:
        attempt(machine, name, arguments)


@settings(max_examples=300)
@given(VERSIONS, st.integers(0, 0x2F), st.lists(STEPS, max_size=60))
def test_within_a_connection(version: Version, features: int, steps: list[tuple[str, tuple[object, ...]]]) -> None:
    machine = connected(version, features, offer(1), offer(2), offer(3)).machine
    for name, arguments in steps:
        attempt(machine, name, arguments)


@settings(max_examples=200)
@given(NOISE)
def test_noise_at_any_state(data: bytes) -> None:
    for machine in (ClientMachine(), connected().machine, connected(Version.V1).machine):
        attempt(machine, "receive", (data,))


class Host:
    """A host that answers everything, sooner or later and as it likes, but by the rules."""

    def __init__(self, machine: ClientMachine) -> None:
        self.machine = machine
        self.due: list[bytes] = []
        """Answers in the order in which they will come."""
        self.began: dict[tuple[str, int], int] = {}
        """What the user asked for and has not heard the end of."""
        self.offered: set[int] = {1, 2, 3}

    def do(self, name: str, *arguments: object) -> None:
        """The user asks."""
        if name == "open":
            self._begin("open", arguments[0])
        if name == "create_gpadl":
            self._begin("create", arguments[1])
        if name == "teardown_gpadl":
            self._begin("teardown", arguments[1])
        try:
            effects = getattr(self.machine, name)(*arguments)
        except (HostError, ValueError):
            key = {"open": ("open", 0), "create_gpadl": ("create", 1), "teardown_gpadl": ("teardown", 1)}.get(name)
            if key is not None:
                self._end(key[0], arguments[key[1]])
            effects = []
        self.hear(effects)

    def rescind(self, channel_id: int) -> None:
        """The host takes an offer back."""
        if channel_id in self.offered:
            self.offered.discard(channel_id)
            self.due.append(RescindChannelOffer(channel_id).pack())

    def answer(self) -> None:
        """The next answer comes."""
        if self.due:
            self.hear(self.machine.receive(self.due.pop(0)))

    def hear(self, effects: list[Effect]) -> None:
        """What the machine says."""
        self.machine.check()
        for effect in effects:
            if isinstance(effect, Post):
                self._take(effect)
            elif isinstance(effect, OpenEnded):
                self._end("open", effect.channel_id)
            elif isinstance(effect, GpadlCreateEnded):
                self._end("create", effect.gpadl_id)
            elif isinstance(effect, GpadlTornDown):
                self._end("teardown", effect.gpadl_id)
            else:
                assert type(effect).__name__ != "Complaint", effect

    def _take(self, post: Post) -> None:
        message = post.message
        if isinstance(message, OpenChannel) and message.channel_id in self.offered:
            self.due.append(OpenResult(message.channel_id, message.open_id, message.target_vp).pack())
        elif isinstance(message, GpadlHeader):
            self.due.append(GpadlCreated(message.channel_id, message.gpadl_id, message.range_count - 1).pack())
        elif isinstance(message, GpadlTeardown):
            self.due.append(GpadlTorndown(message.gpadl_id).pack())
        elif isinstance(message, RelidReleased):
            self.offered.add(message.channel_id)
            self.due.append(offer(message.channel_id).pack())
        elif message.TYPE is MessageType.MODIFY_CHANNEL:
            self.due.append(ModifyChannelResponse(message.channel_id, 0).pack())  # type: ignore[attr-defined]
        elif message.TYPE is MessageType.PAUSE:
            self.due.append(PauseResponse().pack())
        elif message.TYPE is MessageType.UNLOAD:
            self.due = [UnloadComplete().pack()]
        else:
            assert not isinstance(message, InitiateContact | GpadlBody)

    def _begin(self, what: str, number: object) -> None:
        assert isinstance(number, int)
        self.began[what, number] = self.began.get((what, number), 0) + 1

    def _end(self, what: str, number: object) -> None:
        assert isinstance(number, int)
        left = self.began[what, number] - 1
        assert left >= 0, f"{what} {number} ended twice"
        self.began[what, number] = left


ACTS = st.one_of(
    st.tuples(st.just("answer")),
    st.tuples(st.just("answer")),
    st.tuples(st.just("rescind"), CHANNELS),
    st.tuples(st.just("open"), CHANNELS, st.builds(OpenRequest, GPADLS, st.just(2), st.integers(0, 1))),
    st.tuples(st.just("close"), CHANNELS),
    st.tuples(st.just("release"), CHANNELS),
    st.tuples(st.just("create_gpadl"), CHANNELS, GPADLS, st.integers(1, 2), st.just(bytes(16))),
    st.tuples(st.just("teardown_gpadl"), CHANNELS, GPADLS),
    st.tuples(st.just("modify_channel"), CHANNELS, st.just(0)),
    st.tuples(st.just("pause")),
    st.tuples(st.just("resume")),
)


@settings(max_examples=300)
@given(st.sampled_from([Version.V1, Version.IRON, Version.COPPER]), st.lists(ACTS, max_size=60))
def test_with_a_host_that_answers_every_request_ends_and_no_channel_is_stuck(
    version: Version, acts: list[tuple[object, ...]]
) -> None:
    machine = connected(version, 0x2F, offer(1), offer(2), offer(3)).machine
    host = Host(machine)
    for name, *arguments in acts:
        if name == "answer":
            host.answer()
        elif name == "rescind":
            host.rescind(*arguments)  # type: ignore[arg-type]
        else:
            host.do(str(name), *arguments)
    while host.due:
        host.answer()
    assert machine.pause_state in (PauseState.RUNNING, PauseState.PAUSED)
    if machine.pause_state is PauseState.PAUSED:  # what was asked for meanwhile is posted now
        host.do("resume")
        while host.due:
            host.answer()
    assert not any(host.began.values()), host.began
    for channel_id in (1, 2, 3):
        host.rescind(channel_id)
        host.do("release", channel_id)
    while host.due:
        host.answer()
    assert all(machine.channel(channel_id) is None or machine.channel(channel_id).is_held for channel_id in (1, 2, 3))  # type: ignore[union-attr]
    host.do("unload")
    (complete,) = host.due
    assert UnloadEnded() in machine.receive(complete)
    assert machine.state is ClientState.DISCONNECTED


@pytest.mark.parametrize("features", [FeatureFlags(0x2F), FeatureFlags(0)])
def test_as_many_channels_as_there_are_flags_can_be_open(features: FeatureFlags) -> None:
    offers = [offer(channel_id) for channel_id in range(1, 2048)]
    machine = connected(Version.COPPER, int(features), *offers).machine
    for channel_id in reversed(range(1, 2048)):
        machine.open(channel_id, OpenRequest(1, 2))
    flags = {machine.channel(channel_id).event_flag for channel_id in range(1, 2048)}  # type: ignore[union-attr]
    assert flags == set(range(1, 2048))
    machine.check()
