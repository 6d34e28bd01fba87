"""Another distribution may own the import name `channels`: then `import broker` says so in one sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOREIGN = {
    "empty": "",
    "with a version": '__version__ = "4.2.0"\n',
    "with an attribute for everything": "def __getattr__(name):\n    return 1\n",
    "with another marker": "__vmbus__ = 2\n",
}


def _run(first_on_path: Path, program: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(first_on_path)}
    command = [sys.executable, "-P", "-c", program]
    return subprocess.run(command, cwd=first_on_path, env=environment, capture_output=True, text=True, check=False)


def _make(folder: Path, name: str, content: str) -> None:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(content)


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_channels_package_is_named_in_one_sentence(tmp_path: Path, kind: str) -> None:
    _make(tmp_path, "channels", FOREIGN[kind])
    result = _run(tmp_path, "import broker")
    assert result.returncode == 1
    *_, last = result.stderr.splitlines()
    assert last.startswith("ImportError: another distribution owns the import name 'channels'")
    assert str(tmp_path / "channels" / "__init__.py") in last
    assert "install vmbus-broker in a virtual environment of its own" in last
    assert result.stderr.count("Traceback") == 1  # no error behind the error


def test_a_foreign_module_of_that_name_is_named_too(tmp_path: Path) -> None:
    (tmp_path / "channels.py").write_text("")
    result = _run(tmp_path, "import broker")
    assert result.returncode == 1
    assert f"'channels' here ({tmp_path / 'channels.py'})" in result.stderr.splitlines()[-1]


def test_the_foreign_package_itself_goes_on_working(tmp_path: Path) -> None:
    _make(tmp_path, "channels", FOREIGN["with a version"])
    program = """
import channels
try:
    import broker
except ImportError as error:
    print(type(error).__name__, channels.__version__)
"""
    result = _run(tmp_path, program)
    assert result.stdout.split() == ["ImportError", "4.2.0"], result.stderr


def test_other_foreign_packages_are_none_of_its_business(tmp_path: Path) -> None:
    _make(tmp_path, "another", "")
    result = _run(tmp_path, "import broker, channels, another; print(channels.__vmbus__)")
    assert result.stdout.split() == ["1"], result.stderr
