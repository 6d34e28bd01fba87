"""The layers of the packages hold: the import contracts of pyproject.toml are kept, and each of them bites."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHECK = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True, no_logo=True{}))"

VIOLATIONS = [
    ("broker-layers", "broker/access.py", "from .partition import Partition"),
    ("broker-layers", "broker/hvdef/status.py", "from ..errors import BrokerError"),
    ("broker-layers", "broker/synic/ports.py", "from broker import Partition"),
    ("broker-layers", "broker/of_no_layer.py", ""),
    ("pure-core", "broker/core/timers.py", "import time"),
    ("pure-core", "broker/hypercall.py", "import random"),
    ("pure-core", "broker/trace/stream.py", "import structlog"),
    ("pure-core", "broker/memory/guest_memory.py", "import anyio"),
    ("one-way-in", "channels/bus.py", "from broker.partition import Partition"),
    ("one-way-in", "channels/bus.py", "from broker import Partition"),
    ("one-way-in", "channels/bus.py", "from broker.synic import SynicPortMap"),
    ("channels-layers", "channels/protocol/offer.py", "from ..ring import RingMemory"),
    ("channels-layers", "channels/devices/echo.py", "from ..server import VmbusServer"),
    ("channels-layers", "channels/server/posts.py", "from ..client import VmbusClient"),
    ("channels-layers", "channels/of_no_layer.py", ""),
    ("two-machines", "channels/core/client/states.py", "from ..server import ServerConfig"),
    ("pure-channels", "channels/core/server/table.py", "import time"),
    ("pure-channels", "channels/ring/memory.py", "import structlog"),
    ("pure-channels", "channels/protocol/wire.py", "from broker.access import Turns"),
    ("channels-follows", "broker/processor.py", "import channels"),
    ("channels-follows", "broker/core/timers.py", "import channels.bus"),
    ("channels-follows", "broker/__init__.py", "import channels.bus"),
    ("both-loops", "broker/turns.py", "import asyncio"),
    ("both-loops", "channels/bus.py", "import trio"),
    ("port-map", "broker/inbox.py", "from .synic.port_map import SynicPortMap"),
    ("port-map", "broker/processor.py", "from .synic.port_map import DispatchCall"),
]

ALLOWED = [
    ("one-way-in", "channels/bus.py", "from broker.access import SynicPortAccess"),
    ("one-way-in", "channels/bus.py", "from broker.inbox import serve_messages"),
    ("one-way-in", "channels/bus.py", "from broker.hvdef import HvStatus"),
    ("one-way-in", "channels/bus.py", "from broker.errors import BrokerError"),
    ("port-map", "broker/partition.py", "from .synic.port_map import SynicPortMap"),
    ("port-map", "broker/processor.py", "from .synic import SynicPortMap"),
]


def _check(folder: Path, contract: str | None = None) -> subprocess.CompletedProcess[str]:
    limit = "" if contract is None else f", limit_to_contracts=({contract!r},)"
    command = [sys.executable, "-c", CHECK.format(limit)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the packages that a test may spoil."""
    for package in ("broker", "channels"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def _add_line(folder: Path, file: str, line: str) -> None:
    with (folder / file).open("a") as module:
        module.write(f"\n{line}\n")


def test_the_import_contracts_are_kept() -> None:
    result = _check(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(("contract", "file", "line"), VIOLATIONS)
def test_a_forbidden_import_breaks_its_contract(copy: Path, contract: str, file: str, line: str) -> None:
    _add_line(copy, file, line)
    result = _check(copy, contract)
    assert result.returncode == 1
    assert "0 kept, 1 broken" in result.stdout, result.stdout + result.stderr


@pytest.mark.parametrize(("contract", "file", "line"), ALLOWED)
def test_an_allowed_import_keeps_its_contract(copy: Path, contract: str, file: str, line: str) -> None:
    _add_line(copy, file, line)
    result = _check(copy, contract)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 kept, 0 broken" in result.stdout
