"""The conformance list is complete: each item is covered by a test or listed with its reason."""

from __future__ import annotations

import pytest

from .items import NOT_APPLICABLE, TOTAL


def test_every_item_is_covered_or_has_its_reason(request: pytest.FixtureRequest, covered_items: set[int]) -> None:
    if request.config.args_source is not request.config.ArgsSource.TESTPATHS and not _whole_folder(request.config):
        pytest.skip("only a part of the conformance tests was collected")
    assert not covered_items & NOT_APPLICABLE.keys()
    assert covered_items | NOT_APPLICABLE.keys() == set(range(1, TOTAL + 1))


def _whole_folder(config: pytest.Config) -> bool:
    return any(argument.rstrip("/") in {"tests", "tests/conformance"} for argument in config.args)
