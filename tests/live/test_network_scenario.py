"""The scenario `network`: live and seeded, for frames of any size, and the same each time with a seed."""

from __future__ import annotations

import pytest

from broker import OPENVMM, Trace
from broker.run import Report, find_scenario, play
from broker.trace import AnyEvent, encode_event
from channels.protocol import Version
from channels.scenarios import Settings

SCENARIO = find_scenario("channels.scenarios.network:network")
SEEDED: dict[int, list[bytes]] = {}
"""By seed, from whichever loop came first."""


async def run(seed: int | None = None, trace: Trace | None = None, **settings: object) -> Report:
    return await play(SCENARIO, Settings(**settings), OPENVMM, "emulated", seed, trace=trace)  # type: ignore[arg-type]


@pytest.mark.parametrize("version", Version, ids=lambda version: version.label)
async def test_nothing_is_lost_at_any_version(version: Version) -> None:
    for seed in (None, 2):
        report = await run(seed, packets=150, version=version)
        assert report.failure is None
        assert report.counts == {"frames delivered": 300}


@pytest.mark.parametrize("payload", [1, 46, 1500, 9000, 65521])
async def test_nothing_is_lost_at_any_size(payload: int) -> None:
    report = await run(packets=80, payload=payload)
    assert report.failure is None
    assert report.said[2] == f"80 frames of {max(payload, 4) + 14} bytes went each way, and none was lost"


async def test_a_frame_that_is_too_large_is_one_sentence() -> None:
    assert (await run(payload=65522)).failure == "a frame carries up to 65521 bytes"


@pytest.mark.parametrize("seed", [0, 5])
async def test_the_same_seed_gives_the_same_trace_on_both_loops(seed: int) -> None:
    for _ in range(2):
        events: list[AnyEvent] = []
        assert (await run(seed, Trace(events.append), packets=100)).failure is None
        trace = [encode_event(event) for event in events]
        assert SEEDED.setdefault(seed, trace) == trace
