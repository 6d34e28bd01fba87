"""Guests that send anything at all: other blocks, other disks and other channels stay as they were."""

from __future__ import annotations

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from channels.devices.storage import MemoryDisk, ScsiController
from channels.protocol import GpaRange
from channels.protocol.packet import pack_gpa_direct, pack_in_band

from .raw_storage import PAGE, raw_storage

CONTENTS = b"".join(index.to_bytes(4, "little") * 128 for index in range(256))
_SETTINGS = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))

OPCODES = st.sampled_from(bytes.fromhex("00 03 08 0a 12 1a 1b 25 28 2a 2f 35 42 5a 88 8a 8f 91 9e a0 a8 aa af"))
EXTREMES = st.sampled_from([0xFFFF, 0xFFFF_FFFF, 1 << 31, (1 << 64) - 1])
DIRECTIONS = {0x0A: 0, 0x2A: 0, 0xAA: 0, 0x8A: 0, 0x42: 0}
"""Of commands whose data go to the disk; of all others they come from it."""


@st.composite
def mostly(draw: st.DrawFn, usual: st.SearchStrategy[int], odd: st.SearchStrategy[int]) -> int:
    """Something odd one time in ten: a request has many fields, and one that is all right has to come up often."""
    return draw(odd if draw(st.integers(0, 9)) == 9 else usual)


@st.composite
def cdbs(draw: st.DrawFn) -> bytes:
    """An operation code that is known, with an address and a count, or any bytes."""
    if draw(st.integers(0, 9)) == 9:
        return draw(st.binary(max_size=16))
    opcode = draw(OPCODES)
    lba, count = (
        draw(mostly(st.integers(0, 250), EXTREMES)),
        draw(mostly(st.integers(0, 6), EXTREMES | st.integers(7, 600))),
    )
    flags = draw(mostly(st.sampled_from([0, 8]), st.integers(0, 255)))
    if opcode >> 5 == 0:
        middle = lba & 0xFFFF if opcode in (0x08, 0x0A) else 0
        return struct.pack(">BBHBB", opcode, 0, middle, count & 0xFF, 0)
    if opcode >> 5 == 4:
        return struct.pack(">BBQIBB", opcode, flags if opcode != 0x9E else 0x10, lba, count & 0xFFFF_FFFF, 0, 0)
    if opcode >> 5 == 5:
        return struct.pack(">BBIIBB", opcode, flags, lba & 0xFFFF_FFFF, count & 0xFFFF_FFFF, 0, 0)
    return struct.pack(">BBIBHB", opcode, flags, lba & 0xFFFF_FFFF, 0, count & 0xFFFF, 0)


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, list[tuple[int, int, list[int]]]]:
    """A packet, and ranges as (bytes, offset, indices of pages), where index 99 and more are outside of memory."""
    cdb = draw(cdbs())
    zeros = st.just(0)
    fields = (draw(mostly(zeros, st.just(1))), draw(mostly(zeros, st.just(1))), draw(mostly(zeros, st.integers(1, 2))))
    direction = draw(mostly(st.just(DIRECTIONS.get(cdb[0] if cdb else 0, 1)), st.integers(0, 255)))
    length = draw(
        mostly(st.integers(2048, 5000), st.integers(0, 600) | st.sampled_from([0x40000, 0x40001, 0xFFFF_FFFF]))
    )
    size_of_cdb = draw(mostly(st.just(len(cdb)), st.integers(0, 255)))
    srb = struct.pack("<HBBxBBBBBBBI", 52, 0, 0, *fields, size_of_cdb, 20, direction, 0, length)
    packet = (struct.pack("<III", 3, 1, 0) + srb + cdb.ljust(20, b"\0")).ljust(64, b"\0")
    ranges = []
    for _ in range(draw(mostly(st.integers(1, 3), zeros))):
        size, offset = draw(mostly(st.integers(5000, 9000), st.integers(1, 4000))), draw(st.integers(0, 4095))
        pages = (size + offset + PAGE - 1) // PAGE
        is_odd = draw(st.integers(0, 9)) == 9
        choices = st.sampled_from([*range(20), 99, 1 << 40] if is_odd else range(20))
        ranges.append((size, offset, [draw(choices) for _ in range(pages)]))
    return packet[: draw(st.sampled_from([64, 64, 48]))], ranges


def told(packet: bytes) -> set[int]:
    """Blocks of LUN 0 that this request may change, were it all right."""
    cdb, lun = packet[28:44], packet[19]
    opcode = cdb[0]
    if lun or packet[17] or packet[18] or opcode not in (0x0A, 0x2A, 0xAA, 0x8A):
        return set()
    if opcode == 0x0A:
        first, count = int.from_bytes(cdb[1:4], "big") & 0x1F_FFFF, cdb[4] or 256
    elif opcode == 0x2A:
        first, count = struct.unpack_from(">I", cdb, 2)[0], struct.unpack_from(">H", cdb, 7)[0]
    else:
        first, count = struct.unpack_from(">II" if opcode == 0xAA else ">QI", cdb, 2)
    return set(range(first, min(first + count, 256))) if first + count <= 256 else set()


@_SETTINGS
@given(st.lists(requests(), min_size=10, max_size=25))
async def test_whatever_a_request_says_only_its_blocks_and_its_ranges_change(
    made: list[tuple[bytes, list[tuple[int, int, list[int]]]]],
) -> None:
    disk, locked = MemoryDisk(CONTENTS), MemoryDisk(CONTENTS, read_only=True)
    async with raw_storage(ScsiController(disks={0: disk, 1: locked})) as guest:
        for packet, ranges in made:
            before = bytes(disk.contents)
            memory = {gpn: guest.memory.read(gpn * PAGE, PAGE) for gpn in guest.gpns}
            found = [
                GpaRange(size, offset, tuple(guest.gpns[index] if index < 50 else index + (1 << 30) for index in pages))
                for size, offset, pages in ranges
            ]
            if found:
                await guest.channel.send_packet(pack_gpa_direct(found, packet, 7, True))
            else:
                await guest.channel.send_packet(pack_in_band(packet, 7, True))
            answer = await guest.channel.receive()
            assert (answer.transaction_id, len(answer.payload)) == (7, len(packet))
            srb_status, moved = answer.payload[14], struct.unpack_from("<I", answer.payload, 24)[0]
            assert srb_status in (0x01, 0x04, 0x84, 0x86, 0x92, 0x20)
            assert moved <= struct.unpack_from("<I", packet, 24)[0]
            changed = {
                index for index in range(256) if before[index * 512 :][:512] != disk.contents[index * 512 :][:512]
            }
            if packet[28] == 0x42 and srb_status == 1:
                assert all(not any(disk.contents[index * 512 :][:512]) for index in changed)
            else:
                assert changed <= (told(packet) if srb_status == 1 else set())
            touched = {gpn for part in found for gpn in part.gpns} if srb_status == 1 and packet[22] == 1 else set()
            for gpn in guest.gpns:
                if gpn not in touched:
                    assert guest.memory.read(gpn * PAGE, PAGE) == memory[gpn]
            assert locked.contents == CONTENTS


def _srb(cdb: str, length: int, direction: int) -> bytes:
    data = bytes.fromhex(cdb)
    srb = struct.pack("<HBBxBBBBBBBI", 52, 0, 0, 0, 0, 0, len(data), 20, direction, 0, length)
    return (struct.pack("<III", 3, 1, 0) + srb + data.ljust(20, b"\0")).ljust(64, b"\0")


@pytest.mark.parametrize(
    ("count", "cdb", "length"),
    [
        (4000, "000000000000", 0),
        (500, "2f 00 00000000 00 0200 00", 0),
        (100, "35 00 00000000 00 0000 00", 0),
        (16, "42 00 00000000 00 0108 00", 264),
    ],
    ids=["nothing", "verify", "flush", "unmap"],
)
async def test_a_guest_that_asks_for_much_at_once_does_not_hold_up_other_devices(
    count: int, cdb: str, length: int
) -> None:
    """A list for UNMAP that names all blocks sixteen times; the others move no data at all."""
    device = ScsiController(disks={0: MemoryDisk(4 << 20)})
    async with raw_storage(device) as guest:
        unmap = struct.pack(">HH4x", 262, 256) + struct.pack(">QI4x", 0, 8192) * 16
        guest.memory.write(guest.gpns[0] * PAGE, unmap)
        await guest.client.close(guest.channel)
        guest.channel = await guest.client.open(guest.channel.offer, ring_pages=(129, 129))
        await guest.negotiate()
        packet = _srb(cdb, length, 0 if length else 2)
        whole = pack_gpa_direct(guest.buffer(length), packet, 7, True) if length else pack_in_band(packet, 7, True)
        await guest.channel.send_packets([whole] * count)
        await guest.check_alive()
        assert device.served < count, "the other device had to wait for all of them"
        answers = 0
        while answers < count:
            found = await guest.channel.receive_batch()
            assert all(answer.payload[14] == 1 for answer in found)
            answers += len(found)
        assert (device.served, device.refused) == (count, 0)


@_SETTINGS
@given(st.lists(st.tuples(st.binary(max_size=80), st.integers(0, 15)), max_size=20), st.booleans())
async def test_any_packets_at_all_cost_at_most_the_channel(packets: list[tuple[bytes, int]], is_ready: bool) -> None:
    disk = MemoryDisk(CONTENTS)
    async with raw_storage(ScsiController(disks={0: disk}, max_subchannels=3), 0x0602 if is_ready else None) as guest:
        for payload, operation in packets:
            await guest.channel.send_packet(pack_in_band(struct.pack("<I", operation) + payload, 7, True))
            await guest.client.guest_synic.turns.settled()
        await guest.client.close(guest.channel)
        guest.channel = await guest.client.open(guest.channel.offer, ring_pages=(5, 5))
        await guest.negotiate()
        assert (await guest.srb("28 00 00000001 00 0001 00", data_in=512)).data == CONTENTS[512:1024]
        assert disk.contents == CONTENTS
