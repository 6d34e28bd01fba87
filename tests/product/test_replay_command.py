"""`vmbus replay`: a recorded Linux guest against this server; every reply byte is compared and every difference named."""

from __future__ import annotations

import json
import re
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


def rows(output: str) -> dict[str, str]:
    """The lines of the table by step."""
    return {found[1]: line for line in output.splitlines() if (found := re.match(r" *(\d+)  ", line))}


def test_all_16_replies_are_identical_on_both_loops(conversation: dict[str, Any]) -> None:
    results = [vmbus("replay", CONVERSATION, "--loop", loop) for loop in ("asyncio", "trio")]
    assert [result.returncode for result in results] == [0, 0]
    assert results[0].stdout == results[1].stdout
    assert results[0].stderr == ""
    assert results[0].stdout.endswith("\n18 messages posted: 18 SUCCESS\n16 of 16 replies identical\n")
    lines = rows(results[0].stdout)
    assert list(lines) == [str(number) for number in range(len(conversation["steps"]))]
    for number, step in enumerate(conversation["steps"]):
        direction = {"guest": "guest -> host", "host": "host -> guest", "host device": "host's device"}[step["from"]]
        assert f" {direction} " in lines[str(number)]
    assert "INITIATE_CONTACT" in lines["2"]
    assert "version 5.3" in lines["2"]
    assert "channel 2, network, connection 0x2002" in lines["6"]


def test_json_lines_are_the_posts_and_the_replies_on_both_loops(conversation: dict[str, Any]) -> None:
    results = [vmbus("replay", CONVERSATION, "--json", "--loop", loop) for loop in ("asyncio", "trio")]
    assert results[0].stdout == results[1].stdout
    lines = [json.loads(line) for line in results[0].stdout.splitlines()]
    posted = [line for line in lines if "status" in line]
    replies = [line for line in lines if "identical" in line]
    assert len(lines) == len(posted) + len(replies)
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    assert len(posted) == len(guest_steps(conversation)) == 18
    assert all({"step", "connection_id", "message_type", "payload"} <= set(line) for line in posted)
    assert all(line["status"] == 0 for line in posted)
    assert len(replies) == 16
    assert all(line["identical"] is True and line["differences"] == [] and line["payload"] for line in replies)


def test_a_changed_reply_byte_is_named_by_step_offset_and_both_values(
    tmp_path: Path, conversation: dict[str, Any]
) -> None:
    step = conversation["steps"][21]
    data = bytearray.fromhex(step["hex"])
    data[180] = 0xA5
    step["hex"] = data.hex()
    file = write(tmp_path, conversation)
    result = vmbus("replay", file)
    assert result.returncode == 1
    assert result.stderr == ""
    assert "\nstep 21, offset 180 (subchannel_index): recorded 0xa5, own 0x01\n" in result.stdout
    assert result.stdout.endswith("18 messages posted: 18 SUCCESS\n15 of 16 replies identical, 1 differs\n")
    assert rows(result.stdout)["21"].rstrip().endswith("differs")
    lines = [json.loads(line) for line in vmbus("replay", file, "--json").stdout.splitlines()]
    (wrong,) = [line for line in lines if line.get("identical") is False]
    assert wrong["step"] == 21
    assert wrong["differences"] == [{"offset": 180, "field": "subchannel_index", "recorded": 0xA5, "own": 1}]


def test_without_the_recorded_replies_the_same_16_are_printed(tmp_path: Path, conversation: dict[str, Any]) -> None:
    compared = [json.loads(line) for line in vmbus("replay", CONVERSATION, "--json").stdout.splitlines()]
    for step in conversation["steps"]:
        if step["from"] == "host":
            step["hex"] = "ff"  # nobody looks at it
    result = vmbus("replay", write(tmp_path, conversation), "--json", "--without-recorded-replies")
    assert result.returncode == 0
    alone = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["payload"] for line in alone] == [line["payload"] for line in compared]
    assert [line["identical"] for line in alone if "identical" in line] == [None] * 16
    text = vmbus("replay", CONVERSATION, "--without-recorded-replies").stdout
    assert text.endswith("18 messages posted: 18 SUCCESS\n16 replies, compared with nothing\n")


def test_missing_and_surplus_replies_are_said(tmp_path: Path, conversation: dict[str, Any]) -> None:
    (moved,) = [conversation["steps"].pop(10)]
    conversation["steps"].append(moved)
    result = vmbus("replay", write(tmp_path, conversation))
    assert result.returncode == 1
    assert "after step 9: this server sent GPADL_CREATED, which is not recorded" in result.stdout
    assert "step 39: GPADL_CREATED is recorded, and this server did not send it" in result.stdout
    assert result.stdout.endswith("15 of 16 replies identical, 1 missing, 1 surplus\n")


def test_one_message_of_241_bytes_is_refused_alone_and_the_exit_status_is_1(
    tmp_path: Path, conversation: dict[str, Any]
) -> None:
    step = guest_steps(conversation)[4]
    step["hex"] = step["hex"].ljust(2 * 241, "0")
    result = vmbus("replay", write(tmp_path, conversation))
    assert result.returncode == 1
    assert result.stderr == ""
    (refused,) = [line for line in result.stdout.splitlines() if "INVALID_PARAMETER (0x05)" in line]
    assert refused.split()[0] == str(conversation["steps"].index(step))
    assert " 241 " in refused
    assert "18 messages posted: 17 SUCCESS, 1 INVALID_PARAMETER\n" in result.stdout


def test_a_device_that_only_its_recorded_offer_knows_is_told_of(tmp_path: Path, conversation: dict[str, Any]) -> None:
    conversation["steps"][1]["device"] = "gadget"
    file = write(tmp_path, conversation)
    result = vmbus("replay", file)
    assert result.returncode == 0
    assert "step 1: only the recorded offer says what gadget is, so these fields of it cannot differ: flags, " in (
        result.stdout
    )
    alone = vmbus("replay", file, "--without-recorded-replies")
    assert alone.returncode == 0
    assert "step 1: nothing says what gadget is, so it is offered as a plain device" in alone.stdout


def test_a_damaged_file_is_one_sentence(tmp_path: Path, conversation: dict[str, Any]) -> None:
    whole = CONVERSATION.read_bytes()
    for size in (0, len(whole) // 2):
        cut = tmp_path / "cut.json"
        cut.write_bytes(whole[:size])
        assert "no conversation file" in complaint(vmbus("replay", cut))
    guest_steps(conversation)[0]["hex"] = "0g"
    assert "step 2: its hex is not hexadecimal" in complaint(vmbus("replay", write(tmp_path, conversation)))
    del guest_steps(conversation)[0]["hex"]
    assert "step 2: Object missing required field `hex`" in complaint(vmbus("replay", write(tmp_path, conversation)))
    guest_steps(conversation)[0]["hex"] = "00" * (4 << 20)
    assert "step 2: its hex has 4194304 bytes, over 4096" in complaint(vmbus("replay", write(tmp_path, conversation)))


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    assert "No such file" in complaint(vmbus("replay", tmp_path / "missing.json"))
    assert "directory" in complaint(vmbus("replay", tmp_path))
    assert "more than 67108864 bytes" in complaint(vmbus("replay", "/dev/zero"))
    assert "FILE" in complaint(vmbus("replay"))
    assert "kvm-arm64 has no SynIC" in complaint(vmbus("replay", CONVERSATION, "--backend", "kvm-arm64"))
