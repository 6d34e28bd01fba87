"""`vmbus run`: scenarios by name, the summary, the exit status."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from broker.cli.run import _channel_table
from broker.meter import ChannelTraffic, Traffic
from channels.protocol import Version

from .support import complaint, vmbus

ECHO = "channels.scenarios:echo"


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@pytest.mark.parametrize("version", [version.label for version in Version])
def test_echo_negotiates_opens_and_echoes_1000_packets_at_every_version(version: str, loop: str) -> None:
    result = vmbus("run", ECHO, "--version", version, "--loop", loop)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert f"the guest is connected, version {version}\n" in result.stdout
    assert "1000 packets of 240 bytes came back as they were sent" in result.stdout
    assert "\n1000 packets echoed\n" in result.stdout


@pytest.mark.parametrize("name", ["hello", "subchannels", "reset_storm", "starved_guest"])
def test_a_seed_prints_the_same_bytes_on_both_loops(name: str) -> None:
    command = ("run", f"channels.scenarios:{name}", "--seed", "4", "--packets", "50", "--rounds", "2")
    asyncio_, trio_ = (vmbus(*command, "--loop", loop) for loop in ("asyncio", "trio"))
    assert asyncio_.returncode == trio_.returncode == 0, asyncio_.stderr + trio_.stderr
    assert asyncio_.stdout == trio_.stdout
    assert "virtual time" in asyncio_.stdout


def test_live_says_how_fast_it_went() -> None:
    result = vmbus("run", ECHO, "--live", "--packets", "200")
    assert result.returncode == 0, result.stderr
    assert "200 packets echoed, " in result.stdout
    assert " a second\n" in result.stdout


def test_json_is_one_line() -> None:
    result = vmbus("run", ECHO, "--json", "--packets", "10")
    (line,) = result.stdout.splitlines()
    report = json.loads(line)
    assert report["counts"] == {"packets echoed": 10}
    assert report["failure"] is None


def test_a_trace_is_recorded(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    assert vmbus("run", ECHO, "--packets", "10", "--trace", file).returncode == 0
    events = {json.loads(line).get("event") for line in file.read_text().splitlines()[1:]}
    assert {"control", "channel", "gpadl", "ring", "post", "deliver"} <= events


def test_a_scenario_of_ones_own_is_found_in_the_current_folder_and_its_failure_is_exit_status_1(tmp_path: Path) -> None:
    (tmp_path / "my_scenarios.py").write_text(
        "from channels.scenarios import Scenario, expect\n"
        "async def _play(stage):\n"
        "    stage.say('so far so good')\n"
        "    expect(False, 'the sky is not green')\n"
        "green = Scenario(about='fails', play=_play)\n"
    )
    vmbus_program = Path(sys.executable).with_name("vmbus")
    command = [vmbus_program, "run", "my_scenarios:green"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 1, result.stderr
    assert result.stdout.splitlines()[-1] == "failed: the sky is not green"
    assert "so far so good" in result.stdout


def test_what_is_no_scenario_is_one_sentence() -> None:
    assert "it has disk, driver_test, echo" in complaint(vmbus("run", "channels.scenarios:nothing"))
    assert "cannot be imported" in complaint(vmbus("run", "no_such_module:echo"))
    assert "say module:name" in complaint(vmbus("run", "echo"))
    assert "9.9" in complaint(vmbus("run", ECHO, "--version", "9.9"))
    assert "packets" in complaint(vmbus("run", ECHO, "--packets", "0"))
    assert "kvm-arm64" in complaint(vmbus("run", ECHO, "--backend", "kvm-arm64"))


@pytest.mark.parametrize(("name", "text"), [("broken", "def ("), ("raising", "1 / 0")])
def test_a_module_that_cannot_be_imported_is_one_sentence(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.py").write_text(text)
    program = Path(sys.executable).with_name("vmbus")
    result = subprocess.run(
        [program, "run", f"{name}:any"], capture_output=True, text=True, check=False, timeout=100, cwd=tmp_path
    )
    assert complaint(result).startswith(f"module {name} cannot be imported: ")


def test_a_relative_module_name_is_one_sentence() -> None:
    assert complaint(vmbus("run", ".relative:any")).startswith("module .relative cannot be imported: ")


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@pytest.mark.parametrize("name", ["echo", "subchannels", "reset_storm"])
def test_a_packet_that_never_fits_is_a_sentence_and_no_traceback(name: str, loop: str) -> None:
    result = vmbus("run", f"channels.scenarios:{name}", "--payload", "100000", "--loop", loop)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("vmbus: a packet takes 100024 bytes of the ring")


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_a_reader_that_has_gone_ends_it_quietly(loop: str) -> None:
    program = Path(sys.executable).with_name("vmbus")
    command = f"{program} run channels.scenarios:subchannels --packets 5 --loop {loop} | true"
    result = subprocess.run(
        ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True, check=False, timeout=100
    )
    assert (result.returncode, result.stderr) == (1, "")


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_an_interrupt_ends_it_without_a_traceback(loop: str) -> None:
    program = Path(sys.executable).with_name("vmbus")
    with subprocess.Popen(
        [program, "run", ECHO, "--packets", "3000000", "--loop", loop],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(100) == 130
        assert "Traceback" not in process.stderr.read()


def test_it_shows_what_went_over_each_channel() -> None:
    result = vmbus("run", "channels.scenarios:disk", "--packets", "10", "--channels", "1")
    assert result.returncode == 0, result.stderr
    heading, primary, subchannel = result.stdout.splitlines()[-4:-1]
    assert " ".join(heading.split()) == "channel device packets to host ring bytes packets to guest ring bytes"
    assert primary.split()[:2] == ["0x1", "SCSI"]
    assert subchannel.split()[:2] == ["0x2.1", "SCSI"]
    assert int(primary.split()[2]) + int(subchannel.split()[2]) == 36
    (line,) = vmbus(
        "run", "channels.scenarios:disk", "--packets", "10", "--channels", "1", "--json"
    ).stdout.splitlines()
    (first, second) = json.loads(line)["channels"]
    assert (first["channel_id"], first["device"], first["subchannel"], first["opens"]) == (1, "SCSI", 0, 1)
    assert second["subchannel"] == 1
    for channel in (first, second):
        assert channel["to_host"]["packets"] == channel["to_guest"]["packets"] > 5


def test_a_scenario_that_waits_for_what_never_comes_ends_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "stuck.py").write_text(
        "from channels.scenarios import Flag, Scenario\n"
        "async def _play(stage):\n"
        "    async def guest(synic):\n"
        "        await Flag(synic.turns, 1).wait()\n"
        "    await stage.start(0, guest).wait()\n"
        "stuck = Scenario(about='waits', play=_play)\n"
    )
    program = Path(sys.executable).with_name("vmbus")
    result = subprocess.run(
        [program, "run", "stuck:stuck"], capture_output=True, text=True, check=False, timeout=100, cwd=tmp_path
    )
    assert result.returncode == 1
    assert "failed: after 86400 s of virtual time somebody still waits" in result.stdout


def test_faults_are_asked_for_by_name_and_counted() -> None:
    result = vmbus("run", ECHO, "--packets", "10", "--fault", "late-eom:3", "--fault", "refused-posts")
    assert result.returncode == 0, result.stderr
    assert "fault late-eom struck 7 times\nfault refused-posts struck" in result.stdout
    broken = vmbus("run", ECHO, "--fault", "rescind-during-open", "--json")
    assert broken.returncode == 1
    report = json.loads(broken.stdout)
    assert report["faults"] == {"rescind-during-open": 1}
    assert "was not opened" in report["failure"]
    assert "there is no fault lateeom" in complaint(vmbus("run", ECHO, "--fault", "lateeom"))
    assert "a number from 1 on (milliseconds)" in complaint(vmbus("run", ECHO, "--fault", "late-eom:soon"))


def test_names_of_devices_fit_a_narrow_terminal_and_guids_are_cut_where_they_can_be_told_apart() -> None:
    traffic = Traffic(1001, 272_032), Traffic(31, 240_992)
    guid = ChannelTraffic(2, "hvsock service 6ec80006-0000-4000-8000-000000000001", 0, *traffic)
    channel = ChannelTraffic(1, "time synchronisation of a very long name", 0, *traffic)
    out = StringIO()
    Console(file=out, width=80).print(_channel_table([guid, channel]))
    shown = out.getvalue().split()
    assert shown.index("0x1") < shown.index("0x2")
    assert "6ec80006…" in shown
    assert {"time", "very", "long", "name"} <= set(shown)
