"""`vmbus demo`: the scene says what the reference says, in words that come from the trace."""

from __future__ import annotations

import json
from typing import Any

import pytest

from broker import BACKENDS, read_trace

from .support import complaint, vmbus

WRONG_KIND = "An event port takes no messages"
MASKED = "A message meets a masked SINT"


def scene(*options: str) -> dict[str, dict[str, Any]]:
    result = vmbus("demo", "--json", *options)
    assert result.returncode == 0, result.stderr
    return {step["title"]: step for step in map(json.loads, result.stdout.splitlines())}


def kinds(step: dict[str, Any]) -> list[str]:
    return [event["event"] for event in step["events"]]


def test_the_same_seed_prints_the_same_bytes_on_both_loops_twenty_times_each() -> None:
    outputs = {
        vmbus("demo", "--json", "--seed", "7", "--loop", loop).stdout for loop in ("asyncio", "trio") for _ in range(20)
    }
    (output,) = outputs
    assert output


def test_the_seed_decides_who_gets_the_last_buffer() -> None:
    race = "Both processors want the last buffer; the seed decides"
    first = {scene("--seed", str(seed))[race]["events"][0]["vp"] for seed in range(6)}
    assert first == {0, 1}


def test_the_default_profile_answers_0x12_for_the_wrong_kind_and_drops_for_a_masked_sint() -> None:
    steps = scene()
    assert kinds(steps[WRONG_KIND]) == ["post", "refuse"]
    assert steps[WRONG_KIND]["events"][1]["status"] == 0x12
    assert kinds(steps[MASKED]) == ["write", "queue", "drop"]
    assert steps[MASKED]["processors"][0]["dropped"] == 1
    assert steps[MASKED]["processors"][0]["message_type"] == 0


def test_the_tlfs_profile_answers_0x11_and_fills_the_slot() -> None:
    steps = scene("--profile", "tlfs")
    assert steps[WRONG_KIND]["events"][1]["status"] == 0x11
    assert kinds(steps[MASKED]) == ["write", "queue", "deliver"]
    assert steps[MASKED]["processors"][0]["message_type"] == 1
    assert steps[MASKED]["processors"][0]["dropped"] == 0


def test_the_text_names_statuses_slots_and_flags() -> None:
    text = vmbus("demo").stdout
    for words in (
        "SUCCESS (0x00)",
        "INSUFFICIENT_BUFFERS (0x13)",
        "INVALID_CONNECTION_ID (0x12)",
        "OPERATION_DENIED (0x08)",
        "VP 0 writes EOM",
        "dropped and counted: masked",
        "pending]  queue ■■",
        "flags {5}",
        "the host took 2 messages at once",
        "the host was woken once, with flags {0, 7}",
    ):
        assert words in text
    assert "INVALID_PORT_ID (0x11)" in vmbus("demo", "--profile", "tlfs").stdout


@pytest.mark.parametrize("backend", [name for name, row in BACKENDS.items() if row.synic != "none"])
def test_every_backend_with_a_synic_plays_the_scene_alike_on_both_loops(backend: str) -> None:
    on_asyncio, on_trio = (
        vmbus("demo", "--json", "--backend", backend, "--loop", loop) for loop in ("asyncio", "trio")
    )
    assert on_asyncio.returncode == 0, on_asyncio.stderr
    assert on_asyncio.stdout == on_trio.stdout


def test_a_backend_without_a_synic_says_so() -> None:
    assert "kvm-arm64 has no SynIC" in complaint(vmbus("demo", "--backend", "kvm-arm64"))


def test_the_trace_file_holds_the_events_of_the_scene(tmp_path) -> None:  # type: ignore[no-untyped-def]
    steps = scene("--seed", "3", "--trace", str(tmp_path / "scene.trace"))
    shown = [event["id"] for step in steps.values() for event in step["events"]]
    assert [event.id for event in read_trace(tmp_path / "scene.trace")][: len(shown)] == shown


def test_wrong_use_is_one_sentence() -> None:
    assert "--jsno" in complaint(vmbus("demo", "--jsno"))
    assert "nowhere" in complaint(vmbus("demo", "--backend", "nowhere"))
    assert "seven" in complaint(vmbus("demo", "--seed", "seven"))
    assert "No such command" in complaint(vmbus("dmeo"))
    assert "missing-folder" in complaint(vmbus("demo", "--trace", "/missing-folder/trace"))


def test_the_table_of_backends_comes_from_the_table() -> None:
    text = vmbus("backends").stdout
    rows = {line.split()[0]: line for line in text.splitlines() if line.split()}
    assert set(BACKENDS) <= set(rows)
    values = [json.loads(line) for line in vmbus("backends", "--json").stdout.splitlines()]
    assert [value["name"] for value in values] == list(BACKENDS)
    assert [value["prefer_os_events"] for value in values] == [row.prefer_os_events for row in BACKENDS.values()]
