"""The scenario `hvsock` plays through at every version, live and turn by turn, and the same each time with a seed."""

from __future__ import annotations

import pytest

from broker import OPENVMM, TLFS, Profile, Trace
from broker.run import Report, find_scenario, play
from broker.trace import AnyEvent, encode_event
from channels.protocol import Version
from channels.scenarios import Settings


async def run(settings: Settings, *, profile: Profile = OPENVMM, **more: object) -> Report:
    scenario = find_scenario("channels.scenarios.hvsock:hvsock")
    return await play(scenario, settings, profile=profile, backend="emulated", **({"seed": None} | more))  # type: ignore[arg-type]


@pytest.mark.parametrize("version", Version, ids=lambda version: version.label)
@pytest.mark.parametrize("seed", [None, 11], ids=["live", "seeded"])
async def test_it_plays_at_every_version(version: Version, seed: int | None) -> None:
    # A host of 4.0 does not say that it refuses: live, the guest would wait for five seconds.
    if version == Version.WIN10 and seed is None:
        seed = 3
    report = await run(Settings(version=version, packets=50), seed=seed)
    assert report.failure is None
    if version < Version.WIN10:
        assert report.said[-1] == "this version has no hvsock"
    else:
        assert report.counts == {"bytes echoed": 2 * 50 * 240, "connections refused": 1, "connections to the guest": 1}


@pytest.mark.parametrize("profile", [OPENVMM, TLFS], ids=lambda profile: profile.name)
@pytest.mark.parametrize("size", [1, 8, 1000, 20_000])
async def test_it_plays_with_pieces_of_any_size(profile: Profile, size: int) -> None:
    report = await run(Settings(packets=20, payload=size), profile=profile)
    assert report.failure is None
    assert report.counts["bytes echoed"] == 2 * 20 * size


TRACES: dict[int, list[bytes]] = {}
"""By seed, from whichever loop came first."""


@pytest.mark.parametrize("seed", range(6))
async def test_the_same_seed_gives_the_same_trace_on_both_loops(seed: int) -> None:
    for _ in range(2):
        events: list[AnyEvent] = []
        report = await run(Settings(packets=60), seed=seed, trace=Trace(events.append))
        assert report.failure is None
        trace = [encode_event(event) for event in events]
        assert TRACES.setdefault(seed, trace) == trace
