"""Storage packets, SCSI commands and their data, byte by byte (vmbus.md 8.9, SPC-4, SBC-3)."""

from __future__ import annotations

import struct

import pytest

from broker.errors import ProtocolError
from channels.protocol.storage import (
    BlockCdb,
    BlockLimits,
    Capacity,
    ChannelProperties,
    InquiryCdb,
    InquiryData,
    ModeSenseCdb,
    NtStatus,
    Opcode,
    Operation,
    ProtocolVersion,
    ReportLunsCdb,
    RequestSenseCdb,
    ScsiRequest,
    Sense,
    SenseKey,
    ServiceActionCdb,
    SimpleCdb,
    SrbStatus,
    StorageVersion,
    SubchannelCount,
    UnmapCdb,
    VstorPacket,
    inquiry,
    nt_status_of,
    pack_luns,
    pack_unmap,
    parameters,
    parse_block_limits,
    parse_capacity,
    parse_inquiry,
    parse_luns,
    parse_mode,
    parse_page,
    parse_sense,
    parse_srb,
    parse_unmap,
)

# packets


def test_a_packet_is_64_bytes_or_48_and_its_body_begins_at_12() -> None:
    packet = VstorPacket(Operation.QUERY_PROTOCOL_VERSION, 1, 0xC000_0059, ProtocolVersion(0x0602).pack())
    head = bytes.fromhex("09000000 01000000 590000c0 02060000")
    assert packet.pack_to(64) == head.ljust(64, b"\0")
    assert packet.pack_to(48) == head.ljust(48, b"\0")
    assert VstorPacket.unpack(head) == packet
    with pytest.raises(ProtocolError, match="12 bytes"):
        VstorPacket.unpack(head[:11])


def test_properties_and_counts_are_where_hosts_put_them() -> None:
    packed = ChannelProperties(max_subchannels=7, flags=1, max_transfer=0x40000).pack()
    assert packed == bytes.fromhex("00000000 0700 0000 01000000 00000400 0000000000000000")
    assert SubchannelCount(3).pack() == b"\x03\x00"


def test_an_srb_has_52_bytes_and_36_before_windows_8() -> None:
    request = ScsiRequest(
        path=1,
        target=2,
        lun=3,
        cdb_length=10,
        direction=1,
        transfer_length=0x1234,
        payload=bytes(range(20)),
        queue_tag=5,
        queue_action=6,
        flags=0x42,
        timeout=60,
        sort_key=9,
    )
    old = bytes.fromhex("3400 00 00 00 01 02 03 0a 14 01 00 34120000") + bytes(range(20))
    packed = request.pack()
    assert packed == old + bytes.fromhex("0000 05 06 42000000 3c000000 09000000")
    assert parse_srb(packed) == request
    assert parse_srb(old + b"\x07\x07") == ScsiRequest.unpack(old.ljust(52, b"\0"))
    with pytest.raises(ProtocolError, match="36 bytes"):
        parse_srb(old[:35])


def test_versions_say_how_long_packets_are_and_whether_there_are_subchannels() -> None:
    assert [version.value for version in StorageVersion] == [0x0200, 0x0402, 0x0501, 0x0600, 0x0602]
    assert [version.packet_size for version in StorageVersion] == [48, 48, 64, 64, 64]
    assert [version.has_subchannels for version in StorageVersion] == [False, False, True, True, True]
    assert StorageVersion.WIN10.label == "6.2"


def test_an_srb_status_has_its_nt_status() -> None:
    assert nt_status_of(SrbStatus.SUCCESS) == NtStatus.SUCCESS
    assert nt_status_of(SrbStatus.INVALID_LUN) == 0xC000_00C0
    assert nt_status_of(SrbStatus.DATA_OVERRUN) == 0x8000_0005
    assert nt_status_of(SrbStatus.INVALID_REQUEST) == nt_status_of(SrbStatus.ERROR) == 0xC000_0185


# commands

CDBS = {
    "08 000008 00 00": BlockCdb(Opcode.READ_6, 8, 256),
    "0a 123456 10 00": BlockCdb(Opcode.WRITE_6, 0x123456, 16),
    "2800 01020304 00 0506 00": BlockCdb(Opcode.READ_10, 0x01020304, 0x0506),
    "2a08 01020304 00 0506 00": BlockCdb(Opcode.WRITE_10, 0x01020304, 0x0506, 8),
    "2f00 00000001 00 0002 00": BlockCdb(Opcode.VERIFY_10, 1, 2),
    "3500 00000000 00 0000 00": BlockCdb(Opcode.SYNCHRONIZE_CACHE_10, 0, 0),
    "a800 01020304 05060708 00 00": BlockCdb(Opcode.READ_12, 0x01020304, 0x05060708),
    "aa00 01020304 05060708 00 00": BlockCdb(Opcode.WRITE_12, 0x01020304, 0x05060708),
    "8800 0102030405060708 090a0b0c 00 00": BlockCdb(Opcode.READ_16, 0x0102030405060708, 0x090A0B0C),
    "8a08 0102030405060708 090a0b0c 00 00": BlockCdb(Opcode.WRITE_16, 0x0102030405060708, 0x090A0B0C, 8),
    "9100 0000000000000001 00000002 00 00": BlockCdb(Opcode.SYNCHRONIZE_CACHE_16, 1, 2),
    "030000 0012 00": RequestSenseCdb(0x12),
    "120000 0024 00": InquiryCdb(0x24),
    "120183 0100 00": InquiryCdb(0x100, 0x83),
    "1a08 3f 00 c0 00": ModeSenseCdb(0xC0, 0x3F, opcode=Opcode.MODE_SENSE_6),
    "5a00 88 ff 000000 0100 00": ModeSenseCdb(0x100, 8, 0xFF, 2, no_descriptors=False),
    "a000 02 000000 00000810 00 00": ReportLunsCdb(0x810, 2),
    "9e10 0000000000000000 00000020 00 00": ServiceActionCdb(0x20),
    "4201 00000000 00 0018 00": UnmapCdb(0x18, True),
}


@pytest.mark.parametrize("text", CDBS)
def test_a_command_is_these_bytes_and_back(text: str) -> None:
    data, command = bytes.fromhex(text), CDBS[text]
    assert command.pack() == data
    assert type(command).unpack(data) == command
    assert type(command).unpack(data.ljust(16, b"\xee")) == command
    for cut in (data[:-1], b"", b"\xff" + data[1:]):
        with pytest.raises(ProtocolError):
            type(command).unpack(cut)


def test_commands_without_fields_are_as_long_as_their_group_says() -> None:
    assert SimpleCdb(Opcode.TEST_UNIT_READY).pack() == bytes(6)
    assert SimpleCdb(Opcode.READ_CAPACITY_10).pack() == b"\x25".ljust(10, b"\0")


def test_an_inquiry_for_standard_data_names_no_page() -> None:
    with pytest.raises(ProtocolError, match="page 0"):
        InquiryCdb.unpack(bytes.fromhex("120083002400"))


@pytest.mark.parametrize(
    "command",
    [
        BlockCdb(Opcode.READ_6, 1 << 21, 1),
        BlockCdb(Opcode.READ_6, 0, 257),
        BlockCdb(Opcode.WRITE_6, 0, 1, 8),
        BlockCdb(Opcode.READ_10, 1 << 32, 1),
        BlockCdb(Opcode.READ_10, 0, 1 << 16),
        BlockCdb(Opcode.READ_16, -1, 1),
        InquiryCdb(1 << 16),
        UnmapCdb(1 << 16),
    ],
)
def test_numbers_that_do_not_fit_a_command_are_refused(command: BlockCdb | InquiryCdb | UnmapCdb) -> None:
    with pytest.raises(ValueError, match="fit"):
        command.pack()


# sense


def test_sense_data_are_fixed_and_read_in_both_formats() -> None:
    sense = Sense(SenseKey.ILLEGAL_REQUEST, 0x24)
    assert sense.pack() == bytes.fromhex("70 00 05 00000000 0a 00000000 24 00 00 000000")
    assert parse_sense(sense.pack()) == sense
    assert parse_sense(bytes.fromhex("f1 00 e5 00000000 0a 00000000 24 01")) == Sense(5, 0x24, 1)
    assert parse_sense(bytes.fromhex("72 07 27 00 00000000")) == Sense(7, 0x27)
    assert str(sense) == "5/24/00 (invalid field in the CDB)"
    assert str(Sense(0xF, 0xAB, 0xCD)) == "f/ab/cd"
    with pytest.raises(ValueError, match="fit"):
        Sense(5, 0x100).pack()
    for wrong in (b"", bytes(18), sense.pack()[:13], b"\x72\x05\x24", b"\x7f" + bytes(17)):
        with pytest.raises(ProtocolError, match="response code"):
            parse_sense(wrong)


# what a disk tells


def test_inquiry_data_are_36_bytes() -> None:
    data = InquiryData("Msft", "Virtual Disk", "1.0")
    packed = data.pack()
    assert packed == bytes.fromhex("00 00 06 12 1f 00 00 02") + b"Msft    Virtual Disk    1.0 "
    assert parse_inquiry(packed + b"more") == data
    assert parse_inquiry(packed[:8] + bytes(24) + b"\xffa\x01 ") == InquiryData("", "", "?a?")
    assert not parse_inquiry(b"\x7f" + packed[1:]).is_disk
    with pytest.raises(ProtocolError, match="36 bytes"):
        parse_inquiry(packed[:35])
    for wrong in (InquiryData("too long a vendor", "", ""), InquiryData("ä", "", "")):
        with pytest.raises(ValueError, match="ASCII"):
            wrong.pack()


def test_vpd_pages_have_a_header_and_their_length() -> None:
    assert inquiry.supported_pages() == bytes.fromhex("00 00 0006 00 80 83 b0 b1 b2")
    assert inquiry.serial_number("abc") == bytes.fromhex("00 80 0003") + b"abc"
    identification = inquiry.device_identification("Msft", "s1", (1 << 128) - 1)
    naa = bytes.fromhex("01 03 00 08 3fffffffffffffff")
    assert identification == bytes.fromhex("00 83 001a") + naa + bytes.fromhex("02 01 00 0a") + b"Msft    s1"
    limits = BlockLimits(512, 0x200000, 256, 1)
    assert len(limits.pack()) == 64
    assert limits.pack()[:4] == bytes.fromhex("00 b0 003c")
    assert struct.unpack_from(">I", limits.pack(), 8) == (512,)
    assert struct.unpack_from(">III", limits.pack(), 20) == (0x200000, 256, 1)
    assert parse_block_limits(limits.pack()) == limits
    assert inquiry.block_device_characteristics() == bytes.fromhex("00 b1 003c 0001").ljust(64, b"\0")
    assert inquiry.logical_block_provisioning() == bytes.fromhex("00 b2 0004 00 84 02 00")
    assert parse_page(inquiry.serial_number("abc")[:6], 0x80) == b"ab"
    for wrong in (b"", limits.pack()[:63], inquiry.serial_number("abc")):
        with pytest.raises(ProtocolError):
            parse_block_limits(wrong)
    with pytest.raises(ValueError, match="fit"):
        BlockLimits(1 << 32).pack()


def test_a_capacity_names_the_last_block() -> None:
    small, large = Capacity(0x1000, 512), Capacity(1 << 33, 4096)
    assert small.pack_10() == bytes.fromhex("00000fff 00000200")
    assert large.pack_10() == bytes.fromhex("ffffffff 00001000")
    assert large.pack_16() == bytes.fromhex("00000001ffffffff 00001000 0000 c0").ljust(32, b"\0")
    assert parse_capacity(small.pack_10()) == small
    assert parse_capacity(large.pack_10()) is None
    assert parse_capacity(large.pack_16()) == large
    with pytest.raises(ProtocolError, match="8 bytes"):
        parse_capacity(bytes(7))


def test_a_list_of_luns_is_read_as_far_as_it_is_there() -> None:
    packed = pack_luns([0, 3])
    assert packed == bytes.fromhex("00000010 00000000 0000000000000000 0003000000000000")
    assert parse_luns(packed) == (0, 3)
    assert parse_luns(packed[:20]) == (0,)
    assert parse_luns(b"\xff\xff\xff\xff" + packed[4:]) == (0, 3)
    assert parse_luns(packed + bytes.fromhex("0105000000000000")) == (0, 3)
    with pytest.raises(ProtocolError, match="8 bytes"):
        parse_luns(bytes(7))


def test_mode_data_have_a_header_and_pages() -> None:
    pages = parameters.mode_pages(0x3F)
    assert pages == bytes.fromhex("08 12 04").ljust(20, b"\0") + bytes.fromhex("0a 0a").ljust(12, b"\0")
    assert parameters.mode_pages(8, changeable=True) == bytes.fromhex("08 12").ljust(20, b"\0")
    assert parameters.mode_pages(0x1C) is None
    six = parameters.pack_mode(Opcode.MODE_SENSE_6, pages, 0x90)
    ten = parameters.pack_mode(Opcode.MODE_SENSE_10, pages, 0x10)
    assert six[:4] == bytes.fromhex("23 00 90 00")
    assert ten[:8] == bytes.fromhex("0026 00 10 0000 0000")
    for data, opcode, is_protected in ((six, Opcode.MODE_SENSE_6, True), (ten, Opcode.MODE_SENSE_10, False)):
        mode = parse_mode(data, opcode)
        assert mode.is_write_protected is is_protected
        assert mode.pages[8] == b"\x04".ljust(18, b"\0")
        assert mode.pages[10] == bytes(10)
    with_descriptor = bytes.fromhex("00 00 00 08") + bytes(8) + bytes.fromhex("4a 01 0002 eeee 08 12 04")
    assert parse_mode(with_descriptor, Opcode.MODE_SENSE_6).pages == {8: b"\x04"}
    with pytest.raises(ProtocolError, match="4 bytes"):
        parse_mode(bytes(3), Opcode.MODE_SENSE_6)


def test_a_list_of_blocks_to_unmap_says_its_lengths() -> None:
    packed = pack_unmap([(1, 2), (0x10, 0x20)])
    parts = "0000000000000001 00000002 00000000 0000000000000010 00000020 00000000"
    assert packed == bytes.fromhex("0026 0020 00000000" + parts)
    assert parse_unmap(packed) == ((1, 2), (0x10, 0x20))
    assert parse_unmap(packed + b"more") == ((1, 2), (0x10, 0x20))
    assert parse_unmap(bytes.fromhex("0006 0000 00000000")) == ()
    for wrong in (packed[:-1], bytes(7), b"\x00\x10" + packed[2:], bytes.fromhex("0006 0010 00000000") + bytes(16)):
        with pytest.raises(ProtocolError):
            parse_unmap(wrong)
    with pytest.raises(ValueError, match="fit"):
        pack_unmap([(0, 1 << 32)])
