"""The fuzz targets take their seeds and a few mutations of them, cover every decoder, and `python -m tests.fuzz` reports.

The long runs are `python -m tests.fuzz` itself; here the small engine runs in this process, the same each time.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from inspect import isclass, isfunction
from itertools import islice
from pathlib import Path
from pkgutil import walk_packages
from types import FrameType, ModuleType

import msgspec
import pytest
from click.testing import CliRunner

import broker.hvdef
import broker.replay.conversation
import broker.state
import broker.trace.file
import channels.core
import channels.explain
import channels.protocol
import channels.ring

from ..fuzz.__main__ import main
from ..fuzz.plain import mutations
from ..fuzz.targets import TARGETS, Target

ROOT = Path(__file__).parents[2]
MUTATIONS = 200
DECODER = re.compile("parse_.+|decode|decode_.+|unpack|explain|receive|read|read_.+|message_type_of|name_of|resolve_.+")
"""How a function that takes bytes of a peer or a file is called."""
PLACES = (
    channels.protocol,
    channels.core,
    channels.ring,
    broker.hvdef,
    broker.replay.conversation,
    broker.state,
    broker.trace.file,
)
PLANTED = """
import os

def magic(data):
    if data[:1] == b"\\x7f":
        raise KeyError("the magic byte")

def sound(data):
    pass

def fatal(data):
    if len(data) > 3:
        os._exit(9)
"""

each_target = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)


@each_target
def test_it_takes_its_seeds_and_mutations_of_them(target: Target) -> None:
    seeds = target.seeds()
    assert all(len(seed) <= target.longest for seed in seeds)
    for data in (b"", *seeds, *islice(mutations(seeds, 1, target.longest), MUTATIONS)):
        target.run(data)


@each_target
def test_its_seeds_reach_the_decoders_that_it_covers(target: Target) -> None:
    called = set()

    def look(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            called.add(f"{frame.f_globals['__name__']}:{frame.f_code.co_name}")

    seeds = target.seeds()
    sys.setprofile(look)
    try:
        for seed in seeds:
            target.run(seed)
    finally:
        sys.setprofile(None)
    assert set(target.covers) <= called


def test_every_decoder_has_a_target() -> None:
    covered = {name for target in TARGETS.values() for name in target.covers}
    missing = {*decoders(), "channels.explain:explain"} - covered
    assert not missing, f"no fuzz target covers {sorted(missing)}"


def test_mutations_are_the_same_for_the_same_seed_and_never_too_long() -> None:
    first, again = (list(islice(mutations([b"seed", b"other seed"], 7, 12), 500)) for _ in range(2))
    assert first == again
    assert len(set(first)) > 400
    assert max(map(len, first)) == 12


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A module with a defect, on the path of what `fuzz` runs; temporary files go beside it."""
    (tmp_path / "planted.py").write_text(PLANTED)
    (tmp_path / "tmp").mkdir()
    return tmp_path


@pytest.mark.parametrize("engine", ["plain", "atheris"])
def test_a_planted_defect_is_found_and_its_file_shows_it_again(planted: Path, engine: str) -> None:
    if find_spec(engine) is None and engine != "plain":
        pytest.skip("atheris is not installed here")
    result = fuzz(planted, "--target", "planted:magic", "--seconds", "2", "--engine", engine, "--seed", "1")
    assert result.returncode == 1, result.stderr
    assert "KeyError: 'the magic byte'" in result.stdout
    assert "1 failures" in result.stdout
    assert not result.stderr
    (command,) = re.findall(r"python -m tests\.fuzz (--target planted:magic --replay .+)", result.stdout)
    file = Path(command.split()[-1])
    assert file.read_bytes() == b"\x7f", "the shortest input is kept"
    again = fuzz(planted, *command.split())
    assert again.returncode == 1
    assert "KeyError: 'the magic byte'" in again.stderr


def test_a_process_that_dies_is_a_failure_with_its_last_input(planted: Path) -> None:
    result = fuzz(planted, "--target", "planted:fatal", "--seconds", "2", "--engine", "plain", "--json")
    assert result.returncode == 1
    ((failure,),) = (report["failures"] for report in msgspec.json.decode(result.stdout)["reports"])
    assert "the process ended with status 9" in failure["exception"]
    assert len(Path(failure["file"]).read_bytes()) > 3


def test_a_clean_run_leaves_nothing_behind_and_says_which_engine_it_was(planted: Path) -> None:
    result = fuzz(
        planted, "--target", "planted:sound", "--target", "pipe-header", "--seconds", "0.3", "--engine", "plain"
    )
    assert result.returncode == 0, result.stdout
    assert "0 failures" in result.stdout
    assert "without regard to coverage" in result.stdout
    assert not list((planted / "tmp").iterdir())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--target", "nonsense"), "no target is called 'nonsense'; there are channel-message, "),
        (("--target", "nonsense:target"), "there is no target 'nonsense:target'"),
        (("--replay", __file__), "--replay takes one --target"),
    ],
)
def test_wrong_use_is_status_2_with_a_sentence(arguments: tuple[str, ...], sentence: str) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert sentence in " ".join(result.stderr.split())


def fuzz(planted: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(planted), "TMPDIR": str(planted / "tmp")}
    return subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def decoders() -> Iterator[str]:
    """Public functions and methods that are called like decoders, as `module:name`."""
    for module in modules():
        for name, value in vars(module).items():
            if getattr(value, "__module__", None) != module.__name__:
                continue
            names = [name] if isfunction(value) else list(vars(value)) if isclass(value) else []
            yield from (f"{module.__name__}:{found}" for found in names if DECODER.fullmatch(found))


def modules() -> Iterator[ModuleType]:
    for place in PLACES:
        yield place
        for found in walk_packages(getattr(place, "__path__", []), f"{place.__name__}."):
            yield import_module(found.name)
