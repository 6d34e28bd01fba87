"""Every async test runs on asyncio and on trio. Hypothesis has no deadlines, and draws the same examples in CI each time.

Collects which items of the VMBus conformance list the collected tests carry, and prints the closing count; those of the
SynIC's list are all in `conformance`, which counts them itself.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

from .conformance.vmbus_items import NOT_APPLICABLE, TOTAL

settings.register_profile("everywhere", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "everywhere")

BACKENDS = ("asyncio", "trio")


@pytest.fixture(params=BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> str:
    backend: str = request.param
    return backend


COVERED = pytest.StashKey[set[int]]()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    config.stash[COVERED] = {
        number for item in items for mark in item.iter_markers("vmbus_item") for number in mark.args
    }


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    covered = config.stash.get(COVERED, set())
    if covered:
        count = f"covered {len(covered)}, not applicable {len(NOT_APPLICABLE)}, total {TOTAL}"
        terminalreporter.write_line(f"VMBus: {count}")


@pytest.fixture
def covered_vmbus_items(request: pytest.FixtureRequest) -> set[int]:
    return request.config.stash[COVERED]
