"""The integration scenario plays through: live and turn by turn, for every version, with each fault, the same with a seed."""

from __future__ import annotations

import msgspec
import pytest

from broker import OPENVMM, TLFS, Profile
from broker.run import Report, find_scenario, play
from channels.faults import FAULTS, parse_fault
from channels.protocol import Version
from channels.scenarios import Settings

SETTINGS = Settings(rounds=3, packets=100)
REPORTS: dict[object, bytes] = {}
"""What a seeded run ended with, on whichever loop came first."""


async def run(seed: int | None, fault: str | None = None, profile: Profile = OPENVMM, **settings: object) -> Report:
    scenario = find_scenario("channels.scenarios.integration:integration")
    chosen = msgspec.structs.replace(SETTINGS, **settings)
    faults = [] if fault is None else [parse_fault(fault)]
    return await play(scenario, chosen, profile, "emulated", seed, faults=faults)


@pytest.mark.parametrize("seed", [None, 11], ids=["live", "seeded"])
@pytest.mark.parametrize("version", Version, ids=lambda version: version.label)
async def test_every_device_does_its_work_at_every_version(version: Version, seed: int | None) -> None:
    report = await run(seed, version=version)
    assert report.failure is None
    assert report.counts == {
        "heartbeats": 3,
        "clock settings": 2,
        "pairs": 11,
        "freezes and thaws": 2,
        "bytes copied": 24_008,
    }
    assert report.said[0] == f"the guest is connected, version {version.label}"
    assert set(report.said[-2:]) == {"the guest said yes to a restart", "the guest has unloaded"}


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("profile", [OPENVMM, TLFS], ids=lambda profile: profile.name)
async def test_a_seed_decides_everything_on_both_loops(profile: Profile, seed: int) -> None:
    report = await run(seed, profile=profile)
    assert report.failure is None
    document = msgspec.json.encode((report.said, report.counts, report.ticks))
    assert REPORTS.setdefault((profile.name, seed), document) == document


@pytest.mark.parametrize("fault", FAULTS)
async def test_with_each_fault_it_ends_as_promised(fault: str) -> None:
    report = await run(1, fault)
    if FAULTS[fault].is_survived:
        assert report.failure is None
    document = msgspec.json.encode((report.said, report.counts, report.ticks, report.failure))
    assert REPORTS.setdefault(fault, document) == document
