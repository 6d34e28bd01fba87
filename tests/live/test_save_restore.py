"""A saved state: restored in a new process it goes on as if nothing had been; damaged, it changes nothing."""

from __future__ import annotations

import random
import subprocess
import sys
import zlib
from pathlib import Path

import anyio
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker import (
    ConfigurationError,
    DamagedDocument,
    Msr,
    Partition,
    PartitionConfig,
    Trace,
    UnsupportedVersion,
    Vtl,
    receive_messages,
)
from broker.state import Envelope
from broker.trace import AnyEvent, Drop

from .stepper import Job, Result, config, run_job

ROOT = Path(__file__).parents[2]
HYPOTHESIS = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
PROFILES = pytest.mark.parametrize("profile", ["openvmm", "tlfs"])
SINTS = (1, 2, 5)

vps, vtls, sints = st.sampled_from([0, 0, 0, 1]), st.sampled_from([0, 0, 0, 1]), st.sampled_from(SINTS)
sint_values = st.builds(
    lambda vector, bits: vector | bits << 16,
    st.sampled_from([0x12, 0x30, 0x31, 0x83, 0xF0]),
    st.sampled_from([0, 0, 0, 1, 2, 4]),
)
page_values = st.sampled_from([0x5001, 0x6001, 0x7000, 0x8001, 0x9_9999_9001, 0xFFF])
timer_configs = st.builds(
    lambda flags, sint: flags | 0x40 << 4 | sint << 16,
    st.sampled_from([0x1, 0x3, 0x9, 0xB, 0x1009, 0x1003, 0x8]),
    st.sampled_from([0, *SINTS]),
)
msr_writes = st.one_of(
    st.tuples(st.sampled_from([int(Msr.sint(n)) for n in SINTS]), sint_values),
    st.tuples(st.sampled_from([int(Msr.SIMP), int(Msr.SIEFP)]), page_values),
    st.tuples(st.sampled_from([int(Msr.stimer_config(n)) for n in range(4)]), timer_configs),
    st.tuples(st.sampled_from([int(Msr.stimer_count(n)) for n in range(4)]), st.integers(0, 300)),
    st.tuples(st.sampled_from([int(Msr.SCONTROL), int(Msr.TPR), int(Msr.GUEST_OS_ID)]), st.integers(0, 0x60)),
    st.tuples(st.just(int(Msr.HYPERCALL)), st.sampled_from([0x3001, 0x3003])),
)
steps = st.one_of(
    st.builds(lambda vp, vtl, write: ["msr", vp, vtl, *write], vps, vtls, msr_writes),
    st.builds(lambda *a: ["post", *a], vps, vtls, sints, st.integers(1, 9), st.text("abc", max_size=3)),
    st.builds(lambda *a: ["signal", *a], vps, vtls, sints, st.sampled_from([0, 1, 2047])),
    st.builds(lambda *a: ["clear", *a], vps, vtls, sints),
    st.builds(lambda *a: ["eoi", *a], vps, vtls),
    st.builds(lambda *a: ["take", *a], vps, vtls),
    st.builds(lambda *a: ["call", *a], vps, vtls, st.sampled_from([1, 99])),
    st.builds(lambda ticks: ["advance", ticks], st.integers(0, 200)),
)
PROLOGUE: list[list[object]] = [
    ["msr", vp, vtl, int(msr), value]
    for vp in range(2)
    for vtl in range(2)
    for msr, value in [
        (Msr.SIMP, (0x10 + 4 * vp + 2 * vtl) << 12 | 1),
        (Msr.SIEFP, (0x11 + 4 * vp + 2 * vtl) << 12 | 1),
        (Msr.SCONTROL, 1),
        *((Msr.sint(sint), 0x20 * sint + 0x20) for sint in SINTS),
    ]
]
scripts = st.lists(steps, min_size=15, max_size=40).map(lambda chosen: PROLOGUE + chosen)


def run_in_a_new_process(loop: str, job: Job) -> Result:
    done = subprocess.run(
        [sys.executable, "-m", "tests.live.stepper", loop],
        input=msgspec.json.encode(job),
        capture_output=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return msgspec.json.decode(done.stdout, type=Result)


def halves(script: list[list[object]], cut: int) -> tuple[list[list[object]], list[list[object]]]:
    """Cut a script somewhere after its prologue."""
    cut = len(PROLOGUE) + cut % (len(script) - len(PROLOGUE) + 1)
    return script[:cut], script[cut:]


@HYPOTHESIS
@given(script=scripts, cut=st.integers(0, 10_000))
@pytest.mark.parametrize("backend", ["emulated", "openhcl"])
@PROFILES
async def test_saved_and_restored_at_any_step_a_partition_goes_on_as_if_nothing_had_been(
    backend: str, profile: str, script: list[list[object]], cut: int
) -> None:
    before, after = halves(script, cut)
    unbroken = await run_job(Job(backend, profile, None, script))
    first = await run_job(Job(backend, profile, None, before))
    second = await run_job(Job(backend, profile, first.state, after))
    assert first.trace + second.trace == unbroken.trace
    assert second.state == unbroken.state


@settings(HYPOTHESIS, max_examples=3)
@given(script=scripts, cut=st.integers(0, 10_000))
@PROFILES
async def test_restored_in_a_new_process_it_goes_on_just_so(
    anyio_backend_name: str, profile: str, script: list[list[object]], cut: int
) -> None:
    before, after = halves(script, cut)
    unbroken = await run_job(Job("emulated", profile, None, script))
    first = await run_job(Job("emulated", profile, None, before))
    second = await anyio.to_thread.run_sync(
        run_in_a_new_process, anyio_backend_name, Job("emulated", profile, first.state, after)
    )
    assert first.trace + second.trace == unbroken.trace
    assert second.state == unbroken.state


async def test_a_state_does_not_depend_on_the_event_loop() -> None:
    job = Job("emulated", "openvmm", None, [*PROLOGUE, ["post", 0, 0, 2, 1, "a"], ["advance", 30], ["take", 0, 0]])
    here = await run_job(job)
    for loop in ("asyncio", "trio"):
        assert await anyio.to_thread.run_sync(run_in_a_new_process, loop, job) == here


# documents that cannot be taken over


async def some_state() -> bytes:
    """A state with a little of everything, made by another partition."""
    timers = [["msr", 0, 0, int(Msr.stimer_count(0)), 500], ["msr", 0, 0, int(Msr.stimer_config(0)), 0x2_0003]]
    posts = [["post", 0, 0, 2, 1, text] for text in ("a", "b", "c")]
    done = await run_job(Job("emulated", "openvmm", None, [*PROLOGUE, *timers, *posts, ["signal", 1, 1, 5, 7]]))
    return done.state


def refused(partition: Partition, document: bytes) -> Exception | None:
    """What `restore` raises, having changed nothing."""
    before = partition.save()
    refusal = None
    try:
        partition.restore(document)
    except (DamagedDocument, UnsupportedVersion, ConfigurationError) as error:
        refusal = error
    if refusal is not None:
        assert str(refusal).strip()
        assert "\n" not in str(refusal)
        assert partition.save() == before
    return refusal


async def test_every_truncation_of_a_document_is_damage() -> None:
    document = await some_state()
    ends = [*range(300), *range(300, len(document), 97), *range(len(document) - 100, len(document))]
    async with Partition(config("emulated", "openvmm")) as partition:
        await partition.vp(0).write_msr(Msr.SIMP, 0xA001)
        for end in ends:
            assert isinstance(refused(partition, document[:end]), DamagedDocument), end
        assert isinstance(refused(partition, document + b"\0"), DamagedDocument)
        assert refused(partition, document) is None


async def test_every_flipped_bit_of_a_document_is_noticed() -> None:
    document = await some_state()
    bits = 8 * len(document)
    chosen = [*range(800), *random.Random(1).sample(range(bits), 1500), *range(bits - 400, bits)]
    async with Partition(config("emulated", "openvmm")) as partition:
        await partition.vp(0).write_msr(Msr.SIMP, 0xA001)
        for bit in chosen:
            flipped = bytearray(document)
            flipped[bit // 8] ^= 1 << bit % 8
            assert isinstance(refused(partition, bytes(flipped)), (DamagedDocument, UnsupportedVersion)), bit


@pytest.mark.parametrize("document", [b"", b"\xc0", b"hello", b"\xff" * 100, b"\x93\x01\x02\x03", b"{}"])
async def test_what_is_no_document_is_damage(document: bytes) -> None:
    async with Partition(config("emulated", "openvmm")) as partition:
        assert isinstance(refused(partition, document), DamagedDocument)


async def test_a_newer_version_is_named_and_refused() -> None:
    envelope = msgspec.msgpack.decode(await some_state(), type=Envelope)
    newer = msgspec.msgpack.encode(msgspec.structs.replace(envelope, version=2))
    async with Partition(config("emulated", "openvmm")) as partition:
        error = refused(partition, newer)
    assert isinstance(error, UnsupportedVersion)
    assert str(error) == "the saved state is of version 2; this program reads up to version 1"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("processors", 0, "vtls", 0, "synic", "registers", "sints"), [0] * 15),
        (("processors", 0, "vtls", 0, "synic", "timers"), []),
        (("processors", 0, "vtls", 0, "synic", "registers", "sim_page"), {"gpn": 64, "contents": bytes(4096)}),
        (("processors", 0, "vtls", 0, "synic", "registers", "sim_page"), {"gpn": -1, "contents": bytes(4096)}),
        (("processors", 1, "vtls", 1, "synic", "registers", "sief_page"), {"gpn": None, "contents": bytes(4095)}),
        (("processors", 0, "vtls", 0, "synic", "registers", "simp"), 0xB001),
        (("processors", 0, "vtls", 0, "synic", "registers", "simp"), -1),
        (("processors", 0, "vtls", 0, "interrupts"), ["0x1", "0x0", "0x0", "0x0"]),
        (("processors", 0, "vtls", 0, "interrupts"), ["0x0"] * 3),
        (("processors", 0, "vtls", 0, "interrupts"), ["0x0", "0x0", "0x0", "0x100"]),
        (("processors", 0, "vtls", 0, "synic", "ready"), 1 << 16),
        (("processors", 0, "vtls", 0, "synic", "queues", 2, 0, "message_type"), 0),
        (("processors", 0, "vtls", 0, "synic", "queues", 2, 0, "payload"), bytes(241)),
        (("now",), -1),
        (("random",), b"no generator"),
        (("random",), msgspec.msgpack.encode((3, [1, 2, 3], None))),
    ],
)
async def test_a_well_sealed_document_that_contradicts_itself_is_damage(
    path: tuple[str | int, ...], value: object
) -> None:
    """The checksum fits; what is inside does not."""
    envelope = msgspec.msgpack.decode(await some_state(), type=Envelope)
    state = msgspec.msgpack.decode(envelope.body)
    inner = state
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    body = msgspec.msgpack.encode(state)
    document = msgspec.msgpack.encode(msgspec.structs.replace(envelope, body=body, crc32=zlib.crc32(body)))
    async with Partition(config("emulated", "openvmm")) as partition:
        await partition.vp(0).write_msr(Msr.SIMP, 0xA001)
        assert isinstance(refused(partition, document), DamagedDocument)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"vp_count": 1}, "vp_count 2; this one has 1"),
        ({"memory_size": 32 << 12}, "memory_size 262144; this one has 131072"),
        ({"vtls": (Vtl.VTL0,)}, "vtls [0, 1]; this one has [0]"),
        ({"message_queue_depth": 4}, "message_queue_depth 3; this one has 4"),
        ({"profile": config("emulated", "tlfs").profile}, "profile openvmm; this one has tlfs"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
async def test_a_partition_of_another_shape_says_what_differs(change: dict[str, object], says: str) -> None:
    document = await some_state()
    async with Partition(msgspec.structs.replace(config("emulated", "openvmm"), **change)) as partition:
        error = refused(partition, document)
    assert isinstance(error, ConfigurationError)
    assert str(error) == f"the saved state is of a partition with {says}"


# what waits in a restored partition


async def test_restored_queues_are_delivered_without_a_new_post() -> None:
    """Conformance item 51: the slot was emptied, nothing rang, and then the state was saved."""
    async with Partition(config("emulated", "openvmm")) as first:
        vp = first.vp(0)
        await vp.write_msr(Msr.SIMP, 0x5001)
        await vp.write_msr(Msr.sint(2), 0x30)
        port = await first.synic().new_guest_message_port(Vtl.VTL0, 0, 2)
        assert port.try_post_message(1, b"first")
        assert port.try_post_message(2, b"second")
        assert vp.try_take_interrupt() == 0x30
        await vp.write_msr(Msr.EOI, 0)
        first.memory.write(0x5200, bytes(4))
        document = first.save()
    async with Partition(config("emulated", "openvmm")) as second:
        second.restore(document)
        assert await second.vp(0).wait_for_interrupt() == 0x30
        assert second.memory.read(0x5200, 22) == b"\x02\0\0\0\x06\0\0\0" + bytes(8) + b"second"


async def test_a_restored_timer_expires_when_it_would_have() -> None:
    async with Partition(config("emulated", "openvmm")) as first:
        await first.sleep(100)
        await first.vp(0).write_msr(Msr.stimer_config(0), 0x1401)
        await first.vp(0).write_msr(Msr.stimer_count(0), 1000)
        document = first.save()
    async with Partition(config("emulated", "openvmm")) as second:
        await second.sleep(700)
        second.restore(document)
        assert second.clock.now() == 100
        assert await second.vp(0).wait_for_interrupt() == 0x40
        assert second.clock.now() == 1000


# reset


async def test_a_reset_drops_what_is_queued_and_what_waits_and_counts_and_traces_it() -> None:
    events: list[AnyEvent] = []
    async with (
        Partition(config("emulated", "openvmm", Trace(events.append))) as partition,
        receive_messages(partition.synic(), 1),
        anyio.create_task_group() as group,
    ):
        vp = partition.vp(0)
        await vp.write_msr(Msr.SIMP, 0x5001)
        await vp.write_msr(Msr.sint(2), 0x30)
        port = await partition.synic().new_guest_message_port(Vtl.VTL0, 0, 2)
        posts = 0
        while port.try_post_message(1, b"x"):
            posts += 1
        group.start_soon(port.post_message, 1, b"waits")
        await partition.settled()
        run = partition.start(0, lambda vp: vp.wait_for_interrupt(vtl=Vtl.VTL1))
        await partition.reset()
        assert run.is_over
        drops = [event.reason for event in events if isinstance(event, Drop)]
        machine = vp.machine()
        assert machine is not None
        assert posts == 1 + 3  # one in the slot
        assert machine.dropped == len(drops) == 3 + 1
        assert set(drops) == {"reset"}
        assert await vp.read_msr(Msr.sint(2)) == 0x1_0000
        assert list(partition.port_map.statistics().ports) == [1]
        assert port.try_post_message(1, b"after")


@pytest.mark.parametrize("how", ["reset", "restore", "end"])
async def test_wait_reset_returns_at_a_reset_new_memory_and_the_end(how: str) -> None:
    returned = anyio.Event()

    async def wait(partition: Partition) -> None:
        await partition.synic().wait_reset()
        returned.set()

    async with anyio.create_task_group() as group:  # noqa: SIM117  (the wait outlives the partition)
        async with Partition(PartitionConfig()) as partition:
            document = partition.save()
            group.start_soon(wait, partition)
            await anyio.wait_all_tasks_blocked()
            assert not returned.is_set()
            if how == "reset":
                await partition.reset()
            if how == "restore":
                partition.restore(document)
            if how != "end":
                await returned.wait()
    assert returned.is_set()
