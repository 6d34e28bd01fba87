"""pcap files: what is written is read back, and a file that is none says so in one sentence."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from broker.errors import ConfigurationError, DamagedDocument, HostError
from channels.devices.network import PcapFile, Replay, read_pcap
from channels.protocol.network.frames import Frame

FRAMES = [Frame(bytes([number]) * 12 + b"\x88\xb5" + bytes(number)) for number in range(1, 40)]
TICKS = [0, 1, 9_999_999, 10_000_000, 10_000_001, 36_000_000_123, 8_640_000_000_001]


def written(path: Path) -> Path:
    with PcapFile(path) as pcap:
        for number, tick in enumerate(TICKS):
            pcap.write([FRAMES[number]], tick)
        assert pcap.count == len(TICKS)
    return path


def test_frames_and_ticks_come_back_as_they_were_written(tmp_path: Path) -> None:
    records = list(read_pcap(written(tmp_path / "frames.pcap")))
    assert records == list(zip(TICKS, FRAMES, strict=False))


def test_the_file_has_nanoseconds_and_ethernet_in_its_header(tmp_path: Path) -> None:
    data = written(tmp_path / "frames.pcap").read_bytes()
    magic, major, minor, zone, _, _, link = struct.unpack_from("=IHHIIII", data)
    assert (magic, major, minor, zone, link) == (0xA1B23C4D, 2, 4, 0, 1)
    assert struct.unpack_from("=II", data, 24 + 16 + len(FRAMES[0].data)) == (0, 100)


@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed here")
def test_tshark_reads_the_same_times(tmp_path: Path) -> None:
    command = ["tshark", "-r", written(tmp_path / "frames.pcap"), "-T", "fields", "-e", "frame.time_epoch"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()
    assert [round(float(line) * 10_000_000) for line in lines] == TICKS


def test_a_closed_file_takes_no_more_and_closes_again(tmp_path: Path) -> None:
    pcap = PcapFile(tmp_path / "frames.pcap")
    pcap.close()
    pcap.close()
    pcap.write(FRAMES, 0)
    assert pcap.count == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_is_one_sentence_and_hides_no_other_error() -> None:
    with (
        pytest.raises(HostError, match="ends early, after about 0 frames: No space left"),
        PcapFile("/dev/full") as pcap,
    ):
        pcap.write([Frame(bytes(1514))] * 1000, 0)
    with pytest.raises(HostError, match=r"/dev/full ends early"), PcapFile("/dev/full") as pcap:
        pcap.write(FRAMES, 0)

    def fail() -> None:
        with PcapFile("/dev/full") as pcap:
            pcap.write(FRAMES, 0)
            raise ZeroDivisionError("own")

    with pytest.raises(ZeroDivisionError, match="own"):
        fail()


@pytest.mark.parametrize("path", ["nowhere/frames.pcap", "."])
def test_a_file_that_cannot_be_opened_is_one_sentence(tmp_path: Path, path: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be written: "):
        PcapFile(tmp_path / path)
    with pytest.raises(ConfigurationError, match="cannot be read: "):
        Replay(tmp_path / path)


@pytest.mark.parametrize("data", [b"", b"\xd4\xc3\xb2", b"no pcap file, but long enough to have a header"])
def test_a_file_that_is_no_pcap_file_is_one_sentence(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "frames.pcap"
    path.write_bytes(data)
    with pytest.raises(DamagedDocument, match="is no pcap file"):
        Replay(path)


def test_a_file_that_ends_within_a_record_is_one_sentence(tmp_path: Path) -> None:
    path = written(tmp_path / "frames.pcap")
    data = path.read_bytes()
    ends = {24}
    for frame in FRAMES[: len(TICKS)]:
        ends.add(max(ends) + 16 + len(frame.data))
    assert max(ends) == len(data)
    for size in range(24, len(data)):
        path.write_bytes(data[:size])
        if size in ends:
            assert len(list(read_pcap(path))) < len(TICKS)
        else:
            with pytest.raises(DamagedDocument, match="ends within a record"):
                Replay(path)


def test_another_link_type_and_short_frames_are_one_sentence(tmp_path: Path) -> None:
    path = written(tmp_path / "frames.pcap")
    data = path.read_bytes()
    path.write_bytes(data[:20] + struct.pack("=I", 101) + data[24:])
    with pytest.raises(ConfigurationError, match=r"has link type 101; only Ethernet"):
        Replay(path)
    path.write_bytes(data[:24] + struct.pack("=IIII", 0, 0, 13, 13) + bytes(13))
    with pytest.raises(DamagedDocument, match="a frame of 13 bytes"):
        Replay(path)


@pytest.mark.parametrize("size", [262_145, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_length_that_is_none_is_not_read(tmp_path: Path, size: int) -> None:
    path = written(tmp_path / "frames.pcap")
    with path.open("ab") as file:
        file.write(struct.pack("=IIII", 0, 0, size, size) + bytes(60))
    with pytest.raises(DamagedDocument, match=f"a record of {size} bytes"):
        Replay(path)


def test_microseconds_of_a_date_of_today_are_exact(tmp_path: Path) -> None:
    path, data = tmp_path / "frames.pcap", FRAMES[0].data
    times = [(1_700_000_000, 28), (1_700_000_000, 49), (1_764_000_000, 999_999)]
    records = [struct.pack("<IIII", *time, len(data), len(data)) + data for time in times]
    path.write_bytes(struct.pack("<IHHIIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1) + b"".join(records))
    assert [tick for tick, _ in read_pcap(path)] == [seconds * 10_000_000 + micro * 10 for seconds, micro in times]


def test_files_of_microseconds_and_of_the_other_byte_order_are_read(tmp_path: Path) -> None:
    path, data = tmp_path / "frames.pcap", FRAMES[0].data
    for order in "<>":
        header = struct.pack(f"{order}IHHIIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
        path.write_bytes(header + struct.pack(f"{order}IIII", 3, 25, len(data), len(data)) + data)
        assert list(read_pcap(path)) == [(30_000_250, FRAMES[0])]


def test_without_dpkt_a_sentence_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dpkt", None)
    monkeypatch.setitem(sys.modules, "dpkt.pcap", None)
    for use in (PcapFile, Replay):
        with pytest.raises(ConfigurationError, match=r"install vmbus-broker\[pcap\]"):
            use(tmp_path / "frames.pcap")
