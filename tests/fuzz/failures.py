"""What went wrong in one target: each defect once, with the shortest input that shows it."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path

import msgspec

MOST = 16
"""Defects that are told apart; more are not looked at."""
_LIST = "failures.json"


class Failure(msgspec.Struct, frozen=True):
    """One defect. `file` holds the input."""

    exception: str
    file: str


class Watch:
    """A target that keeps what its inputs raise, in a folder, and goes on."""

    def __init__(self, run: Callable[[bytes], None], folder: Path) -> None:
        self._run = run
        self._folder = folder
        self._found: dict[str, tuple[Failure, int]] = {}
        """By place: the failure, and the bytes of its input."""

    def __call__(self, data: bytes) -> None:
        """Run the target."""
        try:
            self._run(data)
        except Exception as error:
            self._keep(data, error)

    def _keep(self, data: bytes, error: Exception) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        place = f"{type(error).__name__} at {frames[-1].filename}:{frames[-1].lineno}"
        known = self._found.get(place)
        if len(data) >= (len(self._found) < MOST and 1 << 62 if known is None else known[1]):
            return
        file = self._folder / f"failure-{len(self._found) if known is None else list(self._found).index(place)}.bin"
        file.write_bytes(data)
        told = "".join(traceback.format_exception_only(error)).strip()
        self._found[place] = Failure(f"{told} ({frames[-1].filename}:{frames[-1].lineno})", str(file)), len(data)
        (self._folder / _LIST).write_bytes(msgspec.json.encode([failure for failure, _ in self._found.values()]))


def read_failures(folder: Path) -> list[Failure]:
    """What a `Watch` has kept in this folder."""
    file = folder / _LIST
    return msgspec.json.decode(file.read_bytes(), type=list[Failure]) if file.exists() else []
