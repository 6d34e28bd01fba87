"""`vmbus explain`: bytes as hexadecimal, from a file or from standard input become a table, or one JSON line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from broker.hvdef import SynicMessage
from channels.explain import KINDS

from .support import complaint, vmbus

CONTACT = "0e000000 00000000 03000500 00000000 02000000 00000000 00100000 00000000 00200000 00000000"
PACKET = "06000200 03000100 88776655 44332211 68656c6c 6f000000 00000000 40000000"


def explained(*arguments: str | Path, status: int = 0) -> dict[str, Any]:
    result = vmbus("explain", *arguments, "--json")
    assert result.returncode == status, result.stderr
    assert result.stderr == ""
    (line,) = result.stdout.splitlines()
    loaded: dict[str, Any] = json.loads(line)
    return loaded


def piped(text: bytes) -> subprocess.CompletedProcess[bytes]:
    program = Path(sys.executable).with_name("vmbus")
    return subprocess.run([program, "explain", "-"], input=text, capture_output=True, check=False, timeout=100)


def test_a_contact_becomes_a_table_that_says_that_it_is_a_guess() -> None:
    result = vmbus("explain", CONTACT)
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0][:3] == ["a", "guess:", "channel-message"]
    assert result.stdout.splitlines()[1].startswith("INITIATE_CONTACT, 40 bytes: the guest asks for a version.")
    assert ["offset", "size", "field", "value", "meaning"] in lines
    assert ["8", "4", "version_requested", "0x50003", "version", "5.3"] in lines
    assert ["16", "1", "sint", "0x2", "SINT", "2"] in lines
    assert "wrong:" not in result.stdout


def test_a_kind_that_is_given_is_not_a_guess() -> None:
    result = vmbus("explain", "--as", "channel-message", CONTACT)
    assert result.returncode == 0
    assert result.stdout.splitlines()[0] == "channel-message"
    assert explained("--as", "channel-message", CONTACT)["guessed"] is False
    assert explained(CONTACT)["guessed"] is True


def test_hexadecimal_may_have_spaces_commas_and_0x_and_be_several_words() -> None:
    expected = explained(PACKET)
    assert expected["kind"] == "ring-packet"
    assert [row["size"] for row in expected["rows"]] == [2, 2, 2, 2, 8, 8, 4, 4]
    data = bytes.fromhex(PACKET)
    array = ", ".join(f"0x{byte:x}" for byte in data)
    for arguments in ([data.hex()], [data.hex().upper()], [f"0x{data.hex()}"], [array], PACKET.split()):
        assert explained(*arguments) == expected
    result = piped(f"{array}\n".encode())
    assert result.returncode == 0
    assert b'"hello"' in result.stdout


def test_a_piece_of_a_file_is_named_by_its_offset_and_length(tmp_path: Path) -> None:
    data = bytes.fromhex(PACKET)
    file = tmp_path / "a ring: dump"
    file.write_bytes(bytes(0x40) + data + bytes(1000))
    expected = explained(PACKET)
    for place in (f"{file}:64:32", f"{file}:0x40:0x20", f"{file}:064:32"):
        assert explained(place) == expected
    to_the_end = explained(f"{file}:64")
    assert to_the_end["kind"] == "ring-packet"
    assert to_the_end["rows"][:-1] == expected["rows"]
    assert to_the_end["rows"][-1]["field"] == "ignored"
    file.write_bytes(bytes(512) + SynicMessage(1, bytes.fromhex(CONTACT)).pack() + bytes(3328))
    slot = explained(f"{file}:512")
    assert slot["kind"] == "synic-message"
    assert "INITIATE_CONTACT" in slot["title"]


def test_what_is_wrong_is_printed_after_the_table_and_the_exit_status_is_1() -> None:
    sentence = "OPEN_CHANNEL: at offset 12 expected 148 bytes, got an end after 12"
    cut = "05000000 00000000 01000000"
    result = vmbus("explain", cut)
    assert result.returncode == 1
    assert result.stderr == ""
    assert result.stdout.splitlines()[-1] == f"wrong: {sentence}"
    assert explained(cut, status=1)["problems"] == [sentence]


def test_the_help_names_every_kind() -> None:
    help_text = vmbus("explain", "--help").stdout
    named = help_text.split("KIND is one of")[1].split("Options:")[0].replace(",", " ").split()
    assert sorted(named) == sorted(KINDS)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "Missing argument 'INPUT...'."),
        ([""], "INPUT has no bytes"),
        (["0e0"], "'0e0' is not hexadecimal, two digits for each byte"),
        (["0e zz"], "'zz' is not hexadecimal, two digits for each byte"),
        (["q" * 5000], f"'{'q' * 40}...' is not hexadecimal, two digits for each byte"),
        (["0x"], "'0x' is not hexadecimal, two digits for each byte"),
        (["00", "--as", "page"], f"no KIND is called 'page', there are {', '.join(KINDS)}"),
        (["/no/such/file:0"], "/no/such/file: No such file or directory"),
        (["/dev/stdin:0"], "/dev/stdin has no offsets; give its bytes in hexadecimal to -"),
    ],
)
def test_wrong_use_is_one_sentence_and_exit_status_2(arguments: list[str], sentence: str) -> None:
    program = Path(sys.executable).with_name("vmbus")
    command = [program, "explain", *arguments]
    assert complaint(subprocess.run(command, input="", capture_output=True, text=True, check=False)) == sentence


def test_a_file_that_has_no_such_bytes_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "short"
    file.write_bytes(b"12345678")
    for offset in (8, 9, 10**14):
        assert complaint(vmbus("explain", f"{file}:{offset}")) == (
            f"{file} has 8 bytes, there is none at offset {offset}"
        )
    assert complaint(vmbus("explain", f"{file}:0:0")) == "INPUT has no bytes"
    assert (
        complaint(vmbus("explain", file)) == f"{str(file)[:40] + '...'!r} is not hexadecimal; for a file say {file}:0"
    )
    assert complaint(vmbus("explain", f"{tmp_path}:0")) == f"{tmp_path}: Is a directory"


def test_bytes_that_are_no_text_on_standard_input_are_one_sentence() -> None:
    result = piped(b"\xff\xfe")
    assert result.returncode == 2
    assert b"is not hexadecimal" in result.stderr
    assert b"Traceback" not in result.stderr
