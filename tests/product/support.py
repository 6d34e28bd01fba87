"""Runs the installed `vmbus` as its user does: a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONVERSATION = ROOT / "tests" / "vectors" / "linux_guest_conversation.json"


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command with this environment's programs, and return its output and exit status."""
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, timeout=100)


def vmbus(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `vmbus` with these arguments."""
    return run(Path(sys.executable).with_name("vmbus"), *arguments)


def complaint(result: subprocess.CompletedProcess[str]) -> str:
    """What a failed run says: exactly one line on standard error, nothing elsewhere, exit status 2."""
    assert result.returncode == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("vmbus: ")
    return line.removeprefix("vmbus: ")
