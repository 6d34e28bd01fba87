"""Every scenario plays through: live and turn by turn, on both loops, for every version, and the same each time with a seed."""

from __future__ import annotations

import pytest

from broker import BACKENDS, OPENVMM, TLFS, Profile, Trace
from broker.run import Report, find_scenario, play
from broker.trace import AnyEvent, encode_event
from channels.protocol import Version
from channels.scenarios import Scenario, Settings, Stage, expect

DEVICES = ["hvsock", "disk", "network", "integration", "driver_test"]
NAMES = ["hello", "echo", "subchannels", "reset_storm", "starved_guest", *DEVICES]
VERSIONS = pytest.mark.parametrize("version", Version, ids=lambda version: version.label)


async def run(name: str, settings: Settings | None = None, *, seed: int | None = None, **more: object) -> Report:
    options = {"profile": OPENVMM, "backend": "emulated"} | more
    return await play(find_scenario(f"channels.scenarios:{name}"), settings or Settings(), seed=seed, **options)  # type: ignore[arg-type]


@VERSIONS
@pytest.mark.parametrize("seed", [None, 11], ids=["live", "seeded"])
async def test_echo_brings_1000_packets_back_at_every_version(version: Version, seed: int | None) -> None:
    report = await run("echo", Settings(version=version), seed=seed)
    assert report.failure is None
    assert report.counts == {"packets echoed": 1000}
    assert report.said[0] == f"the guest is connected, version {version.label}"


@VERSIONS
@pytest.mark.parametrize("name", ["hello", "subchannels", "starved_guest", *DEVICES])
async def test_the_other_scenarios_play_at_every_version(name: str, version: Version) -> None:
    report = await run(name, Settings(version=version, packets=70, rounds=3), seed=1)
    assert report.failure is None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("profile", [OPENVMM, TLFS], ids=lambda profile: profile.name)
@pytest.mark.parametrize("backend", [name for name, row in BACKENDS.items() if row.synic != "none"])
async def test_every_scenario_plays_on_every_backend_and_profile(name: str, profile: Profile, backend: str) -> None:
    report = await run(name, Settings(packets=100, rounds=2), profile=profile, backend=backend)
    assert report.failure is None


@pytest.mark.parametrize("size", [1, 7, 8, 2000])
async def test_packets_of_any_size_come_back_through_rings_that_wrap(size: int) -> None:
    report = await run("echo", Settings(packets=333, payload=size))
    assert report.failure is None
    assert report.counts["packets echoed"] == 333


async def trace_of(name: str, seed: int) -> list[bytes]:
    events: list[AnyEvent] = []
    trace = Trace(events.append)
    report = await run(name, Settings(packets=100, rounds=2), seed=seed, trace=trace)
    assert report.failure is None
    assert not trace.errors
    return [encode_event(event) for event in events]


SEEDED_TRACES: dict[tuple[str, int], list[bytes]] = {}
"""By scenario and seed, from whichever loop came first."""


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", [0, 5])
async def test_the_same_seed_gives_the_same_trace_on_both_loops(name: str, seed: int) -> None:
    trace = await trace_of(name, seed)
    assert SEEDED_TRACES.setdefault((name, seed), trace) == trace
    assert trace == await trace_of(name, seed)


async def test_channel_gpadl_ring_and_control_events_join_the_trace_with_causes() -> None:
    events: list[AnyEvent] = []
    await run("hello", seed=3, trace=Trace(events.append))
    by_id = {event.id: event for event in events}
    for kind in ("Control", "Channel", "Gpadl", "Ring"):
        sides = {event.side for event in events if type(event).__name__ == kind}  # type: ignore[union-attr]
        assert sides == {"host", "guest"}, kind
    for event in events:
        assert event.cause == 0 or event.cause < event.id
        assert event.cause == 0 or event.cause in by_id
    sent = [e for e in events if type(e).__name__ == "Control" and e.side == "host" and e.direction == "out"]  # type: ignore[union-attr]
    assert sent
    assert all(event.flow for event in sent)


async def test_a_scenario_that_finds_something_wrong_says_so() -> None:
    async def failing(stage: Stage) -> None:
        stage.count("steps")
        expect(False, "two and two are five")

    report = await play(Scenario(about="fails", play=failing), Settings(), OPENVMM, "emulated", None)
    assert report.failure == "two and two are five"
    assert report.counts == {"steps": 1}


@pytest.mark.parametrize("field", ["packets", "payload", "channels", "rounds"])
def test_settings_below_one_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} is at least 1, not 0"):
        Settings(**{field: 0})
