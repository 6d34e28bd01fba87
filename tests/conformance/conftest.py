"""Collects which items the collected tests carry, and prints the closing count."""

from __future__ import annotations

import pytest

from .items import NOT_APPLICABLE, TOTAL

COVERED = pytest.StashKey[set[int]]()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    covered: set[int] = set()
    for item in items:
        for mark in item.iter_markers("item"):
            covered.update(mark.args)
    config.stash[COVERED] = covered


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    covered = config.stash.get(COVERED, set())
    if covered:
        terminalreporter.write_line(f"covered {len(covered)}, not applicable {len(NOT_APPLICABLE)}, total {TOTAL}")


@pytest.fixture
def covered_items(request: pytest.FixtureRequest) -> set[int]:
    return request.config.stash[COVERED]
