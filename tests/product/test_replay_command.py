"""`vmbus replay`: a real Linux guest's messages go through HvCallPostMessage into a port."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from .support import CONVERSATION, complaint, vmbus


@pytest.fixture
def conversation() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(CONVERSATION.read_text())
    return loaded


def write(folder: Path, conversation: dict[str, Any]) -> Path:
    file = folder / "conversation.json"
    file.write_text(json.dumps(conversation))
    return file


def guest_steps(conversation: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for step in conversation["steps"] if step["from"] == "guest"]


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_all_18_messages_of_the_recorded_guest_succeed_and_arrive(loop: str, conversation: dict[str, Any]) -> None:
    result = vmbus("replay", CONVERSATION, "--json", "--loop", loop)
    assert result.returncode == 0, result.stderr
    posted = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(posted) == len(guest_steps(conversation)) == 18
    assert all(message["status"] == 0 and message["arrived"] for message in posted)
    text = vmbus("replay", CONVERSATION, "--loop", loop)
    assert text.returncode == 0
    assert text.stdout.count("SUCCESS (0x00)") == 18
    assert "18 messages posted: 18 SUCCESS; 18 arrived as posted" in text.stdout


def test_one_message_of_241_bytes_is_refused_alone_and_the_exit_status_is_1(
    tmp_path: Path, conversation: dict[str, Any]
) -> None:
    step = guest_steps(conversation)[4]
    step["hex"] = step["hex"].ljust(2 * 241, "0")
    file = write(tmp_path, conversation)
    result = vmbus("replay", file)
    assert result.returncode == 1
    assert result.stderr == ""
    (refused,) = [line for line in result.stdout.splitlines() if "INVALID_PARAMETER (0x05)" in line]
    assert f" {conversation['steps'].index(step)} " in f" {refused.split()[0]} "
    assert " 241 " in refused
    assert "17 SUCCESS, 1 INVALID_PARAMETER; 17 arrived as posted" in result.stdout


def test_a_damaged_file_is_one_sentence(tmp_path: Path, conversation: dict[str, Any]) -> None:
    whole = CONVERSATION.read_bytes()
    for size in (0, 1, len(whole) // 2, len(whole) - 2):
        cut = tmp_path / "cut.json"
        cut.write_bytes(whole[:size])
        assert "no conversation file" in complaint(vmbus("replay", cut))
    (tmp_path / "bytes").write_bytes(bytes(range(128, 256)))
    assert "no conversation file" in complaint(vmbus("replay", tmp_path / "bytes"))
    guest_steps(conversation)[0]["hex"] = "0g"
    assert "step 2: its hex is not hexadecimal" in complaint(vmbus("replay", write(tmp_path, conversation)))
    del guest_steps(conversation)[0]["hex"]
    assert "step 2: a guest's step has hex" in complaint(vmbus("replay", write(tmp_path, conversation)))
    guest_steps(conversation)[0] |= {"hex": "00", "connection_id": 1 << 32}
    assert "connection_id" in complaint(vmbus("replay", write(tmp_path, conversation)))


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    assert "No such file" in complaint(vmbus("replay", tmp_path / "missing.json"))
    assert "directory" in complaint(vmbus("replay", tmp_path))
    assert "FILE" in complaint(vmbus("replay"))
