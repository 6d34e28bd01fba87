"""Every example runs, is short, and says what it shows."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from .support import ROOT, run

EXAMPLES = sorted((ROOT / "examples").glob("[0-9]*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_without_a_warning(example: Path) -> None:
    result = run(sys.executable, "-W", "error", example)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert result.stdout


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_under_80_lines_and_says_how_to_run_it(example: Path) -> None:
    source = example.read_text()
    assert len(source.splitlines()) < 80
    assert f"Run: python examples/{example.name}" in (ast.get_docstring(ast.parse(source)) or "")


def test_the_three_examples_are_there() -> None:
    assert [path.stem for path in EXAMPLES][:3] == ["01_hello_message", "02_event_flags", "03_two_processors"]
