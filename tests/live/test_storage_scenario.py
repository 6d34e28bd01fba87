"""The scenario `disk` plays at every version, live and seeded, the same each time with a seed."""

from __future__ import annotations

import pytest

from broker import OPENVMM, Trace
from broker.run import find_scenario, play
from broker.trace import AnyEvent, encode_event
from channels.protocol import Version
from channels.scenarios import Settings


async def run(settings: Settings, seed: int | None, trace: Trace | None = None) -> dict[str, int]:
    report = await play(
        find_scenario("channels.scenarios.disk:disk"),
        settings,
        profile=OPENVMM,
        backend="emulated",
        seed=seed,
        trace=trace,
    )
    assert report.failure is None
    return report.counts


@pytest.mark.parametrize("version", Version, ids=lambda version: version.label)
@pytest.mark.parametrize("seed", [None, 5], ids=["live", "seeded"])
async def test_every_version_writes_reads_and_is_refused(version: Version, seed: int | None) -> None:
    counts = await run(Settings(version=version, packets=20, payload=1000), seed)
    assert counts == {"blocks written": 40, "blocks read": 40, "writes refused": 1}


async def test_a_seed_plays_the_same_each_time() -> None:
    async def events() -> list[bytes]:
        found: list[AnyEvent] = []
        await run(Settings(packets=10), 3, Trace(found.append))
        return [encode_event(event) for event in found]

    assert await events() == await events()
