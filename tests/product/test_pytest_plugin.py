"""The pytest plugin: the README's test file passes, and what goes wrong ends a test with its own error, on both loops."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from .support import ROOT

HEAD = """
import pytest
from uuid import UUID
from broker import HvStatus, PartitionClosed
from channels.bus import OfferParams
from channels.devices import Device, EchoDevice

pytestmark = pytest.mark.anyio
INSTANCE = UUID(int=1)

class Broken(Device):
    offer = OfferParams.device(UUID(int=2), UUID(int=3))

    async def run(self, channel):
        await channel.receive()
        raise KeyError("the device's own mistake")

@pytest.fixture
def vmbus_devices():
    return [EchoDevice(INSTANCE), Broken()]
"""


def run_pytest(folder: Path, source: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_it.py").write_text(source)
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -p no:cacheprovider -q\nfilterwarnings = error\n")
    command = (sys.executable, "-m", "pytest", "--timeout", "60", "test_it.py")
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def test_the_readmes_test_file_passes_on_both_loops(tmp_path: Path) -> None:
    source = re.search(r"<!-- pytest -->\n```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert source is not None
    result = run_pytest(tmp_path, source[1])
    assert result.returncode == 0, result.stdout
    tests = len(re.findall(r"^async def test_", source[1], re.MULTILINE))
    assert f"{2 * tests} passed" in result.stdout


def test_a_test_waits_an_hour_of_virtual_time_in_none(tmp_path: Path) -> None:
    source = """
async def test_time(vmbus_client, vmbus_time):
    channel = await vmbus_client.open(await vmbus_client.wait_offer(instance_id=INSTANCE))
    assert (await channel.request(b"ping")).payload[:4] == b"ping"
    before = vmbus_time.now
    await vmbus_time.sleep(3600)
    assert 3600 <= vmbus_time.now - before < 3601
    await vmbus_time.settled()
"""
    result = run_pytest(tmp_path, HEAD + source)
    assert "2 passed" in result.stdout, result.stdout


def test_markers_choose_faults_a_seed_a_version_and_the_partition(tmp_path: Path) -> None:
    source = """
@pytest.mark.vmbus(faults=["refused-posts:2", "late-eom:10"], seed=3)
async def test_faults(vmbus_client, vmbus_faults):
    channel = await vmbus_client.open(await vmbus_client.wait_offer(instance_id=INSTANCE))
    assert (await channel.request(b"ping")).payload[:4] == b"ping"
    assert vmbus_faults.struck["refused-posts"] > 0

@pytest.mark.vmbus(version=0x4_0000, vp_count=2)
async def test_version(vmbus_client, vmbus_partition):
    assert vmbus_client.version.label == "4.0"
    assert vmbus_partition.config.vp_count == 2

async def test_refusing(vmbus_refusing_access, vmbus_partition):
    from broker import receive_messages
    async with receive_messages(vmbus_refusing_access, 1, depth=100):
        statuses = {await vmbus_partition.vp(0).post_message(1, 1, b"x") for _ in range(50)}
    assert statuses == {HvStatus.SUCCESS, HvStatus.INSUFFICIENT_BUFFERS}
"""
    result = run_pytest(tmp_path, HEAD + source)
    assert "6 passed" in result.stdout, result.stdout


def test_a_device_that_raises_ends_the_test_with_its_own_error(tmp_path: Path) -> None:
    source = """
async def test_device(vmbus_client):
    channel = await vmbus_client.open(await vmbus_client.wait_offer(instance_id=UUID(int=3)))
    await channel.request(b"ping")
"""
    result = run_pytest(tmp_path, HEAD + source)
    assert result.returncode == 1
    assert "2 failed" in result.stdout
    assert result.stdout.count("FAILED test_it.py::test_device") == 2
    assert result.stdout.count('- KeyError: "the device\'s own mistake"') == 2, result.stdout


def test_a_device_that_raises_ends_a_fixture_that_waits_for_it(tmp_path: Path) -> None:
    source = """
class BrokenOpen(Device):
    offer = OfferParams.device(UUID(int=2), UUID(int=4))

    async def open(self, channel):
        raise KeyError("no open")

@pytest.fixture
def vmbus_devices():
    return [BrokenOpen()]

@pytest.fixture
async def channel(vmbus_client):
    channel = await vmbus_client.open(await vmbus_client.wait_offer())
    yield channel
    await vmbus_client.close(channel)

class TestIt:
    async def test_it(self, channel): ...
"""
    result = run_pytest(tmp_path, HEAD + source)
    assert "4 errors" in result.stdout, result.stdout
    assert result.stdout.count("ERROR test_it.py::TestIt::test_it[asyncio] - ") == 2, result.stdout
    assert result.stdout.count("- KeyError: 'no open'") == 2, result.stdout


def test_a_test_that_fails_by_itself_closes_everything(tmp_path: Path) -> None:
    result = run_pytest(tmp_path, HEAD + "\nasync def test_mine(vmbus_client):\n    assert 1 == 2\n")
    assert "2 failed" in result.stdout, result.stdout
    assert "error" not in result.stdout.splitlines()[-1]


def test_a_marker_that_makes_no_sense_is_one_sentence(tmp_path: Path) -> None:
    source = """
@pytest.mark.vmbus(vp_cuont=3)
async def test_typo(vmbus_client): ...

@pytest.mark.vmbus("late-eom")
async def test_positional(vmbus_client): ...

@pytest.mark.vmbus(faults=["late-om"])
async def test_fault(vmbus_client): ...
"""
    result = run_pytest(tmp_path, HEAD + source)
    assert "6 errors" in result.stdout, result.stdout
    assert "UsageError: pytest.mark.vmbus: Unexpected keyword argument 'vp_cuont'" in result.stdout
    assert "keyword arguments only" in result.stdout
    assert "there is no fault late-om" in result.stdout


def test_a_run_that_uses_none_of_it_does_not_import_it(tmp_path: Path) -> None:
    source = "import sys\n\ndef test_lean():\n    assert 'channels.server' not in sys.modules\n"
    result = run_pytest(tmp_path, source)
    assert "1 passed" in result.stdout, result.stdout


def test_a_test_that_waits_for_what_never_comes_fails_at_once(tmp_path: Path) -> None:
    source = """
async def test_stuck(vmbus_client):
    await vmbus_client.wait_offer(instance_id=UUID(int=99))

async def test_stuck_without_a_client(vmbus_partition):
    await vmbus_partition.turns.wakeup(("nobody", 0)).wait()
"""
    result = run_pytest(tmp_path, HEAD + source)
    assert "4 failed" in result.stdout, result.stdout
    assert result.stdout.count("TimeoutError: nobody can go on") >= 4


def test_sockets_one_device_and_a_version_s_label_will_do(tmp_path: Path) -> None:
    source = """
@pytest.fixture
def vmbus_devices():
    return EchoDevice(INSTANCE)

@pytest.mark.vmbus(version="5.3", faults="late-eom:2")
async def test_hvsock(vmbus_client, vmbus_hvsock, vmbus_faults):
    from channels.hvsock import HvsockGuest
    assert vmbus_client.version.label == "5.3"
    async with await vmbus_hvsock.listen(5000) as listener, HvsockGuest(vmbus_client) as guest:
        async with await guest.connect(5000) as stream:
            await stream.send(b"hello")
            async with await listener.accept() as accepted:
                assert await accepted.receive() == b"hello"
    assert vmbus_faults.struck["late-eom"]

@pytest.mark.vmbus(version="9.9")
async def test_version(vmbus_client): ...
"""
    result = run_pytest(tmp_path, HEAD + source)
    assert "2 passed, 2 errors" in result.stdout, result.stdout
    assert "there is no version 9.9" in result.stdout
