"""What a disk answers to each SCSI command, and how it refuses: statuses, sense data, bytes moved (SPC-4, SBC-3, OpenVMM)."""

from __future__ import annotations

import errno
import struct
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from broker.errors import ConfigurationError
from channels.devices.storage import Disk, MemoryDisk, ScsiController
from channels.protocol import GpaRange
from channels.protocol.packet import PacketType

from .raw_storage import IN, IO_ERROR, NO_DEVICE, NONE, OUT, OVERFLOW, PAGE, SUCCESS, Answer, RawStorage, raw_storage

GOOD, CHECK = 0, 2
OK, ERROR, INVALID_REQUEST, OVERRUN, INVALID_LUN = 1, 4, 6, 0x12, 0x20
CONTENTS = b"".join(index.to_bytes(4, "little") * 128 for index in range(2048))
"""2048 blocks of 512 bytes, each full of its number."""
SERIAL = "00000000000000000000000000000abc" + "00"


def blocks(first: int, count: int) -> bytes:
    return CONTENTS[first * 512 : (first + count) * 512]


def controller(**more: Disk) -> ScsiController:
    disks: dict[int, Disk] = {0: MemoryDisk(CONTENTS), 2: MemoryDisk(CONTENTS, read_only=True)}
    return ScsiController(UUID(int=0xABC), disks | {int(lun[1:]): disk for lun, disk in more.items()})


def is_good(answer: Answer, moved: int) -> None:
    assert answer[:5] == (SUCCESS, OK, GOOD, moved, "")


def is_refused(answer: Answer, sense: str, srb_status: int = INVALID_REQUEST) -> None:
    nt_status = {INVALID_LUN: NO_DEVICE, OVERRUN: OVERFLOW}.get(srb_status, IO_ERROR)
    assert answer[:5] == (nt_status, srb_status, CHECK, 0, sense)


def contents(guest: RawStorage, size: int) -> bytes:
    return guest.memory.read(guest.gpns[0] * PAGE, size)


# reading and writing

READS = {
    6: "08 {:06x} {:02x} 00",
    10: "28 00 {:08x} 00 {:04x} 00",
    12: "a8 00 {:08x} {:08x} 0000",
    16: "88 00 {:016x} {:08x} 0000",
}
WRITES = {
    6: "0a {:06x} {:02x} 00",
    10: "2a 00 {:08x} 00 {:04x} 00",
    12: "aa 00 {:08x} {:08x} 0000",
    16: "8a 00 {:016x} {:08x} 0000",
}
VERIFIES = {10: "2f 00 {:08x} 00 {:04x} 00", 12: "af 00 {:08x} {:08x} 0000", 16: "8f 00 {:016x} {:08x} 0000"}
each_size = pytest.mark.parametrize("form", READS)


@each_size
@pytest.mark.parametrize("size", [48, 64])
async def test_blocks_are_read_and_written_with_every_form(form: int, size: int) -> None:
    device = controller()
    async with raw_storage(device, 0x0402 if size == 48 else 0x0602, size) as guest:
        answer = await guest.srb(READS[form].format(7, 9), data_in=9 * 512, size=size)
        is_good(answer, 9 * 512)
        assert answer.data == blocks(7, 9)
        data = bytes(range(256)) * 4
        is_good(await guest.srb(WRITES[form].format(2046, 2), data_out=data, size=size), 1024)
        answer = await guest.srb(READS[form].format(2045, 3), data_in=3 * 512, size=size)
        assert answer.data == blocks(2045, 1) + data


async def test_a_count_of_0_is_256_blocks_in_6_bytes_and_none_elsewhere() -> None:
    async with raw_storage(controller()) as guest:
        answer = await guest.srb(READS[6].format(1, 0), data_in=256 * 512)
        is_good(answer, 256 * 512)
        assert answer.data == blocks(1, 256)
        for form in (10, 12, 16):
            for command in (READS[form], WRITES[form], VERIFIES[form]):
                is_good(await guest.srb(command.format(1, 0)), 0)


async def test_a_transfer_of_256_kib_is_the_longest() -> None:
    device = controller()
    async with raw_storage(device) as guest:
        answer = await guest.srb(READS[10].format(0, 512), data_in=0x40000)
        is_good(answer, 0x40000)
        assert answer.data == blocks(0, 512)
        for length in (0x40001, 0x40200, 0xFFFF_FFFF):
            ranges = guest.buffer(0x41000)
            is_refused(
                await guest.srb(READS[10].format(0, 1), data_in=0x41000, length=length, ranges=ranges), "5/24/00"
            )
        for form in (10, 12, 16):
            for command in (READS[form], VERIFIES[form]):
                is_refused(await guest.srb(command.format(0, 513), data_in=0x40000), "5/24/00")
            is_refused(await guest.srb(WRITES[form].format(0, 513), data_out=bytes(0x40000)), "5/24/00")
        assert (await guest.srb(READS[10].format(0, 512), data_in=0x40000)).data == blocks(0, 512)


@each_size
async def test_blocks_that_are_not_there_are_refused_and_nothing_is_moved(form: int) -> None:
    device = controller()
    async with raw_storage(device) as guest:
        far = [(2047, 2), (2048, 1), (0x1F_FFFF, 1)]
        far += [(0xFFFF_FFFF, 1)] if form > 6 else []
        far += [(0xFFFF_FFFF_FFFF_FFFF, 1), (1 << 63, 0)] if form == 16 else []
        far += [(0, 0xFFFF_FFFF), (2047, 0xFFFF_FFFF)] if form > 10 else []
        for lba, count in far:
            is_refused(await guest.srb(READS[form].format(lba, count), data_in=1024), "5/21/00")
            assert contents(guest, 1024) == b"\xee" * 1024
            is_refused(await guest.srb(WRITES[form].format(lba, count), data_out=bytes(1024)), "5/21/00")
            if form > 6:
                is_refused(await guest.srb(VERIFIES[form].format(lba, count)), "5/21/00")
        assert (await guest.srb(READS[10].format(2040, 8), data_in=4096)).data == blocks(2040, 8)


@each_size
async def test_a_buffer_that_is_too_short_for_its_blocks_is_refused(form: int) -> None:
    """OpenVMM says 5/21/00."""
    async with raw_storage(controller()) as guest:
        is_refused(await guest.srb(READS[form].format(0, 3), data_in=1535), "5/21/00")
        assert contents(guest, 1535) == b"\xee" * 1535
        is_refused(await guest.srb(WRITES[form].format(0, 3), data_out=bytes(1535)), "5/21/00")
        assert (await guest.srb(READS[form].format(0, 3), data_in=1536)).data == blocks(0, 3)


@each_size
async def test_a_buffer_that_is_too_long_is_used_as_far_as_there_are_data(form: int) -> None:
    async with raw_storage(controller()) as guest:
        is_good(await guest.srb(READS[form].format(5, 1), data_in=4000), 512)
        assert contents(guest, 4000) == blocks(5, 1) + b"\xee" * 3488
        is_good(await guest.srb(WRITES[form].format(5, 1), data_out=bytes(4000)), 512)
        assert (await guest.srb(READS[form].format(5, 2), data_in=1024)).data == bytes(512) + blocks(6, 1)


@each_size
async def test_data_that_go_the_wrong_way_are_refused(form: int) -> None:
    async with raw_storage(controller()) as guest:
        for direction in (OUT, NONE, 3, 255):
            is_refused(await guest.srb(READS[form].format(0, 1), data_in=512, direction=direction), "5/24/00")
            assert contents(guest, 512) == b"\xee" * 512
        for direction in (IN, NONE, 3, 255):
            is_refused(await guest.srb(WRITES[form].format(0, 1), data_out=bytes(512), direction=direction), "5/24/00")
        assert (await guest.srb(READS[form].format(0, 1), data_in=512)).data == blocks(0, 1)


@pytest.mark.parametrize("form", [10, 12, 16])
async def test_protection_information_and_comparing_are_refused(form: int) -> None:
    async with raw_storage(controller()) as guest:
        for flags in (0x20, 0x80, 0xE0):
            for text in (READS[form], WRITES[form], VERIFIES[form]):
                cdb = bytearray.fromhex(text.format(0, 1))
                cdb[1] = flags
                is_refused(await guest.srb(bytes(cdb), data_out=bytes(512)), "5/24/00")
        cdb = bytearray.fromhex(VERIFIES[form].format(0, 1))
        cdb[1] = 2
        is_refused(await guest.srb(bytes(cdb), data_out=bytes(512)), "5/24/00")
        is_good(await guest.srb(VERIFIES[form].format(0, 100)), 0)


# the ranges of a request


async def test_data_may_lie_in_several_ranges_that_begin_anywhere() -> None:
    async with raw_storage(controller()) as guest:
        first, second, third = guest.gpns[9], guest.gpns[3], guest.gpns[5]
        ranges = [GpaRange(5, 4091, (first,)), GpaRange(1000, 3900, (second, first)), GpaRange(2000, 17, (third,))]
        is_good(await guest.srb(READS[10].format(1, 2), data_in=1024, ranges=ranges), 1024)
        pieces = ((first, 4091, 5), (second, 3900, 196), (first, 0, 804), (third, 17, 19))
        found = b"".join(guest.memory.read(page * PAGE + offset, size) for page, offset, size in pieces)
        assert found == blocks(1, 2)
        assert guest.memory.read(third * PAGE + 36, 100) == b"\xee" * 100


async def test_ranges_that_are_wrong_are_refused_and_nothing_is_moved() -> None:
    device = controller()
    async with raw_storage(device) as guest:
        page = guest.gpns[0]
        outside = guest.memory.size // PAGE + 100
        wrong: list[list[GpaRange]] = [
            [GpaRange(PAGE, 0, (outside,))],
            [GpaRange(2 * PAGE, 0, (page, outside))],
            [GpaRange(PAGE, 0, (page,)), GpaRange(PAGE, 0, (1 << 63,))],
            [GpaRange(PAGE, 0, ((1 << 64) - 1,))],
            [GpaRange(1023, 0, (page,))],
            [GpaRange(1000, 0, (page,)), GpaRange(23, 0, (page,))],
        ]
        for ranges in wrong:
            length = 2 * PAGE if sum(part.byte_count for part in ranges) == 2 * PAGE else 1024
            if ranges[-1].byte_count == PAGE and len(ranges) == 2:
                length = 2 * PAGE
            count = length // 512
            is_refused(await guest.srb(READS[10].format(0, count), data_in=length, ranges=ranges), "5/24/00")
            assert contents(guest, PAGE) == b"\xee" * PAGE
            answer = await guest.srb(WRITES[10].format(0, count), data_out=bytes(length), ranges=ranges)
            is_refused(answer, "5/24/00")
        is_refused(await guest.srb(READS[10].format(0, 1), data_in=512, ranges=()), "5/24/00")
        is_refused(await guest.srb(WRITES[10].format(0, 1), data_out=bytes(512), ranges=()), "5/24/00")
        assert (await guest.srb(READS[10].format(0, 32), data_in=32 * 512)).data == blocks(0, 32)


@pytest.mark.parametrize("what", ["no bytes", "offset", "pages missing", "too many ranges"])
async def test_ranges_that_break_a_rule_are_refused(what: str) -> None:
    async with raw_storage(controller()) as guest:
        page = guest.gpns[0]
        count, part = {
            "no bytes": (1, struct.pack("<IIQ", 0, 0, page)),
            "offset": (1, struct.pack("<IIQ", 512, 4096, page)),
            "pages missing": (1, struct.pack("<IIQ", 8192, 1, page)),
            "too many ranges": (9, struct.pack("<IIQ", 512, 0, page)),
        }[what]
        srb = struct.pack("<HBBxBBBBBBBI", 52, 0, 0, 0, 0, 0, 10, 20, IN, 0, 512) + bytes.fromhex(
            READS[10].format(0, 1)
        )
        header = struct.pack("<II", 0, count) + part
        payload = (struct.pack("<III", 3, 1, 0) + srb).ljust(64, b"\0")
        start = 16 + len(header)
        descriptor = struct.pack("<HHHHQ", PacketType.GPA_DIRECT, start // 8, (start + 64) // 8, 1, 5)
        await guest.channel.send_packet(descriptor + header + payload)
        answer = await guest.channel.receive()
        assert answer.transaction_id == 5
        assert (answer.payload[14], answer.payload[28:42]) == (
            0x86,
            bytes.fromhex("7000050000000 00a 00000000 2400".replace(" ", "")),
        )


async def test_a_request_with_ranges_but_no_data_leaves_them_alone() -> None:
    async with raw_storage(controller()) as guest:
        is_good(await guest.srb("000000000000", ranges=[GpaRange(PAGE, 0, (1 << 50,))]), 0)
        is_refused(await guest.srb(READS[10].format(0, 1), data_in=512, length=0), "5/21/00")
        assert contents(guest, 512) == b"\xee" * 512


# what a disk tells


async def test_inquiry_says_what_the_unit_is() -> None:
    async with raw_storage(controller()) as guest:
        answer = await guest.srb("12 00 00 0060 00", data_in=96)
        is_good(answer, 36)
        assert answer.data == bytes.fromhex("00 00 06 12 1f 00 00 02") + b"Msft    Virtual Disk    1.0 "
        assert contents(guest, 40)[36:] == b"\xee" * 4
        is_good(await guest.srb("12 00 00 0005 00", data_in=96), 5)
        is_good(await guest.srb("12 00 00 0000 00"), 0)
        is_refused(await guest.srb("12 00 00 0061 00", data_in=96), "5/24/00")
        is_refused(await guest.srb("12 00 80 0024 00", data_in=96), "5/24/00")
        is_refused(await guest.srb("12 00 00 0024 00", data_in=96, direction=OUT), "5/24/00")


async def test_inquiry_has_the_pages_that_it_lists() -> None:
    naa = bytes.fromhex("01 03 00 08 30000000000abc00 02 01 00 2a")
    expected = {
        0x00: bytes.fromhex("00 00 0006 00 80 83 b0 b1 b2"),
        0x80: bytes.fromhex("00 80 0022") + SERIAL.encode(),
        0x83: bytes.fromhex("00 83 003a") + naa + b"Msft    " + SERIAL.encode(),
        0xB0: bytes.fromhex("00 b0 003c 00 00 0000 00000200 00000000 00000000 00020000 00000100 00000001").ljust(
            64, b"\0"
        ),
        0xB1: bytes.fromhex("00 b1 003c 0001").ljust(64, b"\0"),
        0xB2: bytes.fromhex("00 b2 0004 00 84 02 00"),
    }
    async with raw_storage(controller()) as guest:
        for page in range(256):
            answer = await guest.srb(f"12 01 {page:02x} 00ff 00", data_in=255)
            if page in expected:
                is_good(answer, len(expected[page]))
                assert answer.data == expected[page]
            else:
                is_refused(answer, "5/24/00")


async def test_units_of_controllers_with_neighbouring_ids_have_other_names() -> None:
    names = set()
    for instance in (1, 2):
        disks = {lun: MemoryDisk(512) for lun in (0, 1, 255)}
        async with raw_storage(ScsiController(UUID(int=instance), disks)) as guest:
            for lun in disks:
                names.add((await guest.srb("12 01 83 00ff 00", lun=lun, data_in=255)).data[8:16])
    assert len(names) == 6


async def test_capacities_name_the_last_block_and_need_room() -> None:
    async with raw_storage(controller(_1=MemoryDisk(8192 * 4096, block_size=4096))) as guest:
        for lun, numbers in ((0, "000007ff 00000200"), (1, "00001fff 00001000")):
            answer = await guest.srb("25 00 00000000 000000 00", lun=lun, data_in=8)
            is_good(answer, 8)
            assert answer.data == bytes.fromhex(numbers)
            answer = await guest.srb("9e 10 0000000000000000 00000020 0000", lun=lun, data_in=32)
            is_good(answer, 32)
            assert answer.data == bytes.fromhex("00000000" + numbers + "0000c000").ljust(32, b"\0")
        is_good(await guest.srb("9e 10 0000000000000000 0000000c 0000", data_in=32), 12)
        is_refused(await guest.srb("25 00 00000000 000000 00", data_in=7), "5/24/00", OVERRUN)
        is_refused(await guest.srb("9e 10 0000000000000000 00000020 0000", data_in=31), "5/24/00", OVERRUN)
        is_refused(await guest.srb("9e 12 0000000000000000 00000020 0000", data_in=32), "5/24/00")


async def test_a_disk_that_is_too_large_for_10_bytes_says_so() -> None:
    class Huge(MemoryDisk):
        def __init__(self) -> None:
            super().__init__(512)
            self.block_count = (1 << 40) + 1

    async with raw_storage(controller(_1=Huge())) as guest:
        assert (await guest.srb("25 00 00000000 000000 00", lun=1, data_in=8)).data[:4] == b"\xff\xff\xff\xff"
        answer = await guest.srb("9e 10 0000000000000000 00000020 0000", lun=1, data_in=32)
        assert answer.data[:8] == (1 << 40).to_bytes(8, "big")


@pytest.mark.parametrize(("lun", "flags"), [(0, 0x10), (2, 0x90)], ids=["writable", "read-only"])
async def test_mode_sense_has_two_pages_and_says_whether_writes_are_taken(lun: int, flags: int) -> None:
    caching, control = bytes.fromhex("08 12 04").ljust(20, b"\0"), bytes.fromhex("0a 0a").ljust(12, b"\0")
    fixed = bytes.fromhex("08 12").ljust(20, b"\0")
    async with raw_storage(controller()) as guest:
        for page, pages in (
            (0x08, caching),
            (0x0A, control),
            (0x3F, caching + control),
            (0x88, caching),
            (0x48, fixed),
        ):
            answer = await guest.srb(f"1a 08 {page:02x} 00 c0 00", lun=lun, data_in=192)
            is_good(answer, 4 + len(pages))
            assert answer.data == bytes((3 + len(pages), 0, flags, 0)) + pages
            answer = await guest.srb(f"5a 00 {page:02x} 00 000000 00ff 00", lun=lun, data_in=255)
            is_good(answer, 8 + len(pages))
            assert answer.data == bytes((0, 6 + len(pages), 0, flags, 0, 0, 0, 0)) + pages
        is_good(await guest.srb("1a 08 3f ff 04 00", lun=lun, data_in=4), 4)
        for wrong in ("1a 08 01 00 c0 00", "1a 08 08 01 c0 00", "1a 08 3f 00 c1 00"):
            is_refused(await guest.srb(wrong, lun=lun, data_in=192), "5/24/00")
        is_refused(await guest.srb("1a 08 c8 00 c0 00", lun=lun, data_in=192), "5/39/00")


async def test_the_simple_commands_are_good() -> None:
    async with raw_storage(controller()) as guest:
        is_good(await guest.srb("00 0000000000"), 0)
        is_good(await guest.srb("1b 00 00 00 01 00"), 0)
        is_good(await guest.srb("35 00 00000000 00 0000 00"), 0)
        is_good(await guest.srb("91 00 0000000000000001 00000002 0000"), 0)
        is_refused(await guest.srb("35 00 00000800 00 0001 00"), "5/21/00")
        answer = await guest.srb("03 00 00 00 fc 00", data_in=252)
        is_good(answer, 18)
        assert answer.data == bytes.fromhex("70 00 00 00000000 0a").ljust(18, b"\0")
        is_refused(await guest.srb("03 01 00 00 12 00", data_in=18), "5/24/00")


async def test_every_other_operation_code_is_unknown() -> None:
    known = {0x00, 0x03, 0x08, 0x0A, 0x12, 0x1A, 0x1B, 0x25, 0x28, 0x2A, 0x2F, 0x35, 0x42, 0x5A}
    known |= {0x88, 0x8A, 0x8F, 0x91, 0x9E, 0xA0, 0xA8, 0xAA, 0xAF}
    device = controller()
    async with raw_storage(device) as guest:
        for opcode in set(range(256)) - known:
            is_refused(await guest.srb(bytes([opcode]).ljust(16, b"\0")), "5/20/00")
        assert (device.served, device.refused) == (256 - len(known),) * 2
        is_refused(await guest.srb(b""), "5/20/00")


@pytest.mark.parametrize("opcode", [0x03, 0x08, 0x12, 0x1A, 0x25, 0x28, 0x2A, 0x35, 0x42, 0x5A, 0x88, 0x9E, 0xA0, 0xA8])
async def test_a_cdb_that_is_too_short_for_its_command_is_refused(opcode: int) -> None:
    size = (6, 10, 10, 0, 16, 12)[opcode >> 5]
    async with raw_storage(controller()) as guest:
        cdb = bytes([opcode]).ljust(16, b"\0")
        for length in (1, size - 1, 17, 255):
            is_refused(await guest.srb(cdb, cdb_length=length), "5/24/00")


# several units


async def test_luns_are_reported_whichever_is_asked() -> None:
    async with raw_storage(controller(_255=MemoryDisk(512))) as guest:
        luns = bytes.fromhex("00000018 00000000 0000000000000000 0002000000000000 00ff000000000000")
        for lun in (0, 2, 7):
            for select in (0, 2):
                answer = await guest.srb(f"a0 00 {select:02x} 000000 00001000 0000", lun=lun, data_in=4096)
                is_good(answer, 32)
                assert answer.data == luns
        answer = await guest.srb("a0 00 00 000000 00001000 0000", data_in=20)
        is_good(answer, 20)
        assert answer.data == luns[:20]
        is_good(await guest.srb("a0 00 00 000000 00000010 0000", data_in=4096), 16)
        assert (await guest.srb("a0 00 01 000000 00001000 0000", data_in=4096)).data == bytes(8)
        assert (await guest.srb("a0 00 00 000000 00001000 0000", data_in=4096, target=1)).data == bytes(8)
        is_refused(await guest.srb("a0 00 00 000000 0000000f 0000", data_in=4096), "5/24/00")
        is_refused(await guest.srb("a0 00 03 000000 00001000 0000", data_in=4096), "5/24/00")


@pytest.mark.parametrize("where", [{"lun": 1}, {"lun": 255}, {"target": 1}, {"path": 1}], ids=str)
async def test_where_no_unit_is_inquiry_says_so_and_all_else_is_an_invalid_lun(where: dict[str, int]) -> None:
    async with raw_storage(controller()) as guest:
        answer = await guest.srb("12 00 00 0024 00", data_in=36, **where)  # type: ignore[arg-type]
        is_good(answer, 36)
        assert answer.data[0] == 0x7F
        is_refused(await guest.srb("12 01 00 0024 00", data_in=36, **where), "5/24/00")  # type: ignore[arg-type]
        is_refused(await guest.srb("12 00 00 0025 00", data_in=36, **where), "5/24/00")  # type: ignore[arg-type]
        for cdb in ("000000000000", READS[10].format(0, 1), "ff" * 16):
            is_refused(await guest.srb(cdb, data_in=512, **where), "", INVALID_LUN)  # type: ignore[arg-type]


async def test_a_read_only_disk_refuses_what_would_change_it() -> None:
    device = controller()
    async with raw_storage(device) as guest:
        for command in WRITES.values():
            is_refused(await guest.srb(command.format(0, 1), lun=2, data_out=bytes(512)), "7/27/00", ERROR)
        unmap = bytes.fromhex("0016 0010 00000000 0000000000000000 00000001 00000000")
        is_refused(await guest.srb("42 00 00000000 00 0018 00", lun=2, data_out=unmap), "7/27/00", ERROR)
        assert (await guest.srb(READS[10].format(0, 8), lun=2, data_in=4096)).data == blocks(0, 8)
        is_good(await guest.srb("35 00 00000000 00 0000 00", lun=2), 0)


# unmap


def unmap_list(*ranges: tuple[int, int]) -> bytes:
    parts = b"".join(struct.pack(">QI4x", *part) for part in ranges)
    return struct.pack(">HH4x", 6 + len(parts), len(parts)) + parts


async def test_unmapped_blocks_read_as_zeros() -> None:
    async with raw_storage(controller()) as guest:
        data = unmap_list((1, 2), (5, 0), (7, 1))
        is_good(await guest.srb(f"42 00 00000000 00 {len(data):04x} 00", data_out=data), len(data))
        expected = blocks(0, 1) + bytes(1024) + blocks(3, 4) + bytes(512) + blocks(8, 1)
        assert (await guest.srb(READS[10].format(0, 9), data_in=9 * 512)).data == expected
        is_good(await guest.srb("42 00 00000000 00 0000 00"), 0)
        is_good(await guest.srb("42 00 00000000 00 0008 00", data_out=unmap_list()), 8)


@pytest.mark.parametrize(
    ("data", "length", "flags", "sense"),
    [
        (unmap_list((0, 1), (2047, 2)), None, 0, "5/21/00"),
        (unmap_list((0, 1), (1 << 63, 0)), None, 0, "5/21/00"),
        (unmap_list((0, 1), (0, 0xFFFF_FFFF)), None, 0, "5/26/00"),
        (unmap_list(*[(0, 1)] * 257), None, 0, "5/26/00"),
        (unmap_list((0, 1))[:20], None, 0, "5/1a/00"),
        (unmap_list((0, 1)), 7, 0, "5/1a/00"),
        (unmap_list((0, 1)), 25, 0, "5/24/00"),
        (unmap_list((0, 1)), None, 1, "5/24/00"),
    ],
    ids=[
        "beyond the end",
        "far beyond it",
        "too many blocks",
        "too many ranges",
        "cut",
        "no header",
        "longer than its data",
        "anchor",
    ],
)
async def test_a_wrong_list_unmaps_nothing(data: bytes, length: int | None, flags: int, sense: str) -> None:
    async with raw_storage(controller()) as guest:
        cdb = f"42 {flags:02x} 00000000 00 {len(data) if length is None else length:04x} 00"
        is_refused(await guest.srb(cdb, data_out=data), sense)
        assert (await guest.srb(READS[10].format(0, 1), data_in=512)).data == blocks(0, 1)


# disks that fail, and disks of others


class Worn(MemoryDisk):
    """Fails what it is told to fail, and counts flushes."""

    def __init__(self) -> None:
        super().__init__(CONTENTS)
        self.fails: set[str] = set()
        self.done: list[str] = []

    def _do(self, what: str) -> None:
        self.done.append(what)
        if what in self.fails:
            raise OSError(errno.EIO, "the medium is worn out")

    async def read(self, lba: int, count: int) -> bytes:
        self._do("read")
        return await super().read(lba, count)

    async def write(self, lba: int, data: bytes) -> None:
        self._do("write")
        await super().write(lba, data)

    async def flush(self) -> None:
        self._do("flush")

    async def unmap(self, lba: int, count: int) -> None:
        self._do("unmap")
        await super().unmap(lba, count)


async def test_a_failure_of_the_medium_is_a_medium_error() -> None:
    disk = Worn()
    data = unmap_list((0, 1))
    async with raw_storage(controller(_1=disk)) as guest:
        disk.fails = {"read", "write", "flush", "unmap"}
        with capture_logs() as logs:
            is_refused(await guest.srb(READS[10].format(0, 1), lun=1, data_in=512), "3/11/00", ERROR)
            is_refused(await guest.srb(VERIFIES[10].format(0, 1), lun=1), "3/11/00", ERROR)
            is_refused(await guest.srb(WRITES[10].format(0, 1), lun=1, data_out=bytes(512)), "3/0c/00", ERROR)
            is_refused(await guest.srb("35 00 00000000 00 0000 00", lun=1), "3/0c/00", ERROR)
            is_refused(await guest.srb("42 00 00000000 00 0018 00", lun=1, data_out=data), "3/0c/00", ERROR)
        assert [(log["event"], log["sense"]) for log in logs] == [("disk_failed", "3/11/00 (unrecovered read error)")]
        disk.fails = set()
        assert (await guest.srb(READS[10].format(0, 1), lun=1, data_in=512)).data == blocks(0, 1)


async def test_a_write_with_fua_flushes() -> None:
    disk = Worn()
    async with raw_storage(controller(_1=disk)) as guest:
        for form in (10, 12, 16):
            cdb = bytearray.fromhex(WRITES[form].format(0, 1))
            is_good(await guest.srb(bytes(cdb), lun=1, data_out=bytes(512)), 512)
            cdb[1] = 8
            is_good(await guest.srb(bytes(cdb), lun=1, data_out=bytes(512)), 512)
        assert disk.done == ["write", "write", "flush"] * 3
        disk.fails = {"flush"}
        is_refused(await guest.srb(bytes(cdb), lun=1, data_out=bytes(512)), "3/0c/00", ERROR)


async def test_a_disk_that_returns_the_wrong_size_is_a_mistake_of_its_author() -> None:
    class Short(MemoryDisk):
        async def read(self, lba: int, count: int) -> bytes:
            return b"short"

    async def use() -> None:
        async with raw_storage(controller(_1=Short(512))) as guest:
            await guest.srb(READS[10].format(0, 1), lun=1, data_in=512)

    with capture_logs(), pytest.raises(ValueError, match=r"Short\.read returned 5 bytes where 512 were asked for"):
        await use()


@pytest.mark.parametrize("block_size", [0, 256, 513, 1000, 8192])
def test_a_block_size_that_no_disk_has_is_refused(block_size: int) -> None:
    with pytest.raises(ConfigurationError, match=f"not {block_size}"):
        MemoryDisk(1 << 16, block_size=block_size)
    disk = MemoryDisk(1 << 16)
    disk.block_size = block_size
    with pytest.raises(ConfigurationError, match=f"not {block_size}"):
        ScsiController(disks={0: disk})


def test_a_disk_without_blocks_is_refused() -> None:
    disk = MemoryDisk(512)
    disk.block_count = 0
    with pytest.raises(ConfigurationError, match="at least one block"):
        ScsiController(disks={0: disk})


@pytest.mark.parametrize("size", [0, 511, 513, 4095])
def test_a_disk_is_whole_blocks(size: int) -> None:
    for contents_ in (size, bytes(size)):
        with pytest.raises(ConfigurationError, match=f"a disk of {size} bytes"):
            MemoryDisk(contents_)
