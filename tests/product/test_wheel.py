"""The wheel: two packages and their metadata, both typed, nothing of the tests or the workshop."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from configparser import ConfigParser
from email import message_from_bytes
from email.message import Message
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("broker", "channels")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the checkout, outside of it."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def _read(wheel: Path, ending: str) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(ending)]
        return archive.read(name)


def _metadata(wheel: Path) -> Message:
    return message_from_bytes(_read(wheel, ".dist-info/METADATA"))


def test_the_wheel_is_pure_python_for_the_project_s_name(wheel: Path) -> None:
    assert wheel.name.startswith("vmbus_broker-")
    assert wheel.name.endswith("-py3-none-any.whl")


def test_the_wheel_holds_the_two_packages_and_metadata_only(wheel: Path, names: list[str]) -> None:
    version = wheel.name.split("-")[1]
    assert {PurePosixPath(name).parts[0] for name in names} == {*PACKAGES, f"vmbus_broker-{version}.dist-info"}


def test_the_wheel_holds_every_module_and_nothing_but_modules(names: list[str]) -> None:
    of_packages = {name for name in names if PurePosixPath(name).parts[0] in PACKAGES}
    modules = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.suffix == ".py" or path.name == "py.typed"
    }
    assert of_packages == modules
    assert len(names) == len(set(names))


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_says_that_it_is_typed(names: list[str], package: str) -> None:
    assert f"{package}/py.typed" in names


def test_the_metadata_holds_the_licence_and_the_command(wheel: Path, names: list[str]) -> None:
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    scripts = ConfigParser()
    scripts.read_string(_read(wheel, ".dist-info/entry_points.txt").decode())
    assert dict(scripts["console_scripts"]) == {"vmbus": "broker.cli:main"}


def test_the_metadata_names_python_and_what_is_needed(wheel: Path) -> None:
    metadata = _metadata(wheel)
    assert (metadata["Name"], metadata["Requires-Python"]) == ("vmbus-broker", ">=3.11")
    needed = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert sorted(line.split(">")[0].split("<")[0] for line in needed) == [
        "anyio",
        "click",
        "msgspec",
        "rich",
        "structlog",
        "trio",
    ]


def test_the_installed_wheel_works_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    program = "import sys; sys.path.insert(0, sys.argv[1]); import broker, channels; print(broker.__file__, channels.__file__)"
    command = [sys.executable, "-P", "-W", "error", "-c", program, str(tmp_path)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [str(tmp_path / package / "__init__.py") for package in PACKAGES]
