"""What README.md says holds: its commands, its example, its counts."""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path

import pytest

from broker.cli import COMMANDS

from ..conformance import items, vmbus_items
from .support import ROOT, run, vmbus

README = (ROOT / "README.md").read_text()


def command(mark: str) -> str:
    (found,) = re.findall(rf"<!-- {mark} -->\n```sh\n(.+)\n```", README)
    return str(found)


def test_it_stays_under_300_lines() -> None:
    assert len(README.splitlines()) < 300


def test_its_two_commands_need_nothing_but_python_and_end_in_the_main_job_and_in_the_tests() -> None:
    assert command("run").startswith("python3 -m venv .venv && .venv/bin/pip install . && ")
    assert command("run").endswith(".venv/bin/vmbus demo")
    assert command("test").startswith("python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && ")
    assert ".venv/bin/pytest" in command("test")


EXAMPLES = re.findall(r"(?<!<!-- pytest -->\n)```python\n(.+?)```", README, re.DOTALL)
PREAMBLE = """\
from uuid import UUID
import anyio
from broker import Partition, PartitionConfig, receive_messages
from channels.bus import OfferParams
from channels.client import VmbusClient
from channels.devices import Device, serve_devices
from channels.server import VmbusServer

INTERFACE, INSTANCE = UUID(int=1), UUID(int=2)

async def main():
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("example", EXAMPLES, ids=["synic", "vmbus"])
def test_its_examples_print_what_their_comments_say(tmp_path: Path, example: str, backend: str) -> None:
    promised = re.findall(r"print\(.+?\) +# (.+)", example)
    script = tmp_path / "example.py"
    script.write_text(f"{PREAMBLE}{textwrap.indent(example, '    ')}\n\nanyio.run(main, backend={backend!r})\n")
    result = run(sys.executable, "-W", "error", script)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == promised
    assert promised


def test_its_counts_of_conformance_items_are_the_counts() -> None:
    text = " ".join(README.split())
    for name, listed in (("", items), ("VMBus: ", vmbus_items)):
        total, left_out = listed.TOTAL, len(listed.NOT_APPLICABLE)
        assert f"`{name}covered {total - left_out}, not applicable {left_out}, total {total}`" in text


def test_every_command_it_lists_exists() -> None:
    listed = set(re.findall(r"^\| `vmbus (\w+)", README, re.MULTILINE))
    assert listed == set(COMMANDS)
    assert all(vmbus(name, "--help").returncode == 0 for name in listed)


def test_every_file_it_links_to_is_there() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert all((ROOT / link).exists() for link in links)
