"""A client's machine against a server's, with no loop: whatever order offers, opens, closes, rescinds, resets, unloads,
saves and restores happen in, both ends agree once everything is delivered and answered, and nothing is ever stuck.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from channels.protocol.versions import Version

from .pair import Pair
from .pair_moves import Move, answers, deliveries, do, guest_moves, host_moves, restarts, rude_moves
from .pair_rest import settle, wind_down
from .pair_setup import Setup

ENDS = ("unload", "reset", "release")
SETUPS = st.builds(
    Setup,
    version=st.sampled_from([Version.COPPER, *sorted(Version, reverse=True)]),
    asks_newer=st.booleans(),
    features=st.sampled_from([0x2F, 0, 0x24, 0x6F, 0xFF]),
    server_features=st.sampled_from([0x6F, 0xFF, 0x20]),
    trusted=st.booleans(),
    monitor_pages=st.booleans(),
    tries_redirect=st.booleans(),
    devices=st.integers(1, 3),
    subchannels=st.integers(0, 2),
)
SEEDS = st.integers(0, 999)


class PairMachine(RuleBasedStateMachine):
    """Each rule is one step; `Pair` checks both machines after it."""

    @initialize(setup=SETUPS, data=st.data())
    def begin(self, setup: Setup, data: st.DataObject) -> None:
        self.pair = Pair(setup)
        for params in self.pair.offers[: data.draw(st.integers(0, len(self.pair.offers)), "offers")]:
            self.pair.offer(params)
        if data.draw(st.booleans(), "connected"):
            self.pair.connect()
            settle(self.pair)

    def one_of(self, data: st.DataObject, choices: Iterator[Move]) -> None:
        """One of these moves, if there are any: first its name, so that many channels do not drown the rest."""
        found = list(choices)
        if found:
            name = data.draw(st.sampled_from(list(dict.fromkeys(move[1] for move in found))), "move")
            do(self.pair, data.draw(st.sampled_from([move for move in found if move[1] == name]), "of"))

    @precondition(lambda self: next(deliveries(self.pair), None))
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        self.one_of(data, deliveries(self.pair))

    @precondition(lambda self: next(answers(self.pair), None))
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        self.one_of(data, answers(self.pair))

    @rule(data=st.data())
    def guest(self, data: st.DataObject) -> None:
        self.one_of(data, guest_moves(self.pair))

    @rule(data=st.data())
    def host(self, data: st.DataObject) -> None:
        self.one_of(data, host_moves(self.pair))

    @rule(data=st.data(), seed=SEEDS)
    def restart(self, data: st.DataObject, seed: int) -> None:
        self.one_of(data, restarts(self.pair, seed))

    @rule()
    def come_to_rest(self) -> None:
        settle(self.pair)

    @rule(how=st.sampled_from(ENDS))
    def let_go(self, how: str) -> None:
        wind_down(self.pair, how)

    def teardown(self) -> None:
        if hasattr(self, "pair"):
            for how in ENDS:
                wind_down(pickle.loads(pickle.dumps(self.pair)), how)


class RudePairMachine(PairMachine):
    """The same with a guest that also sends what its client knows nothing of; then it begins again."""

    @rule(data=st.data())
    def send_rudely(self, data: st.DataObject) -> None:
        self.one_of(data, rude_moves(self.pair))


_SETTINGS = settings(
    max_examples=300, stateful_step_count=50, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
TestPair = PairMachine.TestCase
TestPair.settings = _SETTINGS
TestRudePair = RudePairMachine.TestCase
TestRudePair.settings = _SETTINGS
