"""`ScsiDisk`: one disk behind a `ScsiInitiator`, in blocks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Self

from broker.errors import HostError, ProtocolError

from ...protocol.storage import (
    BlockCdb,
    Capacity,
    InquiryData,
    ModeSenseCdb,
    Opcode,
    ServiceActionCdb,
    SimpleCdb,
    UnmapCdb,
    pack_unmap,
    parse_capacity,
    parse_mode,
)
from ...protocol.storage.cdb import FUA
from ...protocol.storage.parameters import ALL_PAGES, CAPACITY_10_SIZE, CAPACITY_16_SIZE
from .errors import ScsiReply

if TYPE_CHECKING:
    from .initiator import Pending, ScsiInitiator

WINDOW = 8
"""Requests of one read or write that are under way at once."""
_LEAST_BLOCK = 512
_LAST_10 = 0xFFFF_FFFF
_LONGEST_10 = 0xFFFF
_MODE_SIZE = 192


class ScsiDisk:
    """See the module. Made by `ScsiInitiator.disk`.

    Errors of all commands: `ScsiError` for what the disk refuses, with its sense data; `ProtocolError` and `ChannelClosed` for
    a host that breaks the protocol or is gone.
    """

    def __init__(
        self, initiator: ScsiInitiator, lun: int, inquiry: InquiryData, capacity: Capacity, read_only: bool
    ) -> None:
        self.lun = lun
        self.inquiry = inquiry
        """Vendor, product and revision."""
        self.block_size = capacity.block_size
        self.block_count = capacity.block_count
        self.read_only = read_only
        """The disk says that it is write protected."""
        self._initiator = initiator
        self._most = min(initiator.max_transfer // capacity.block_size, _LONGEST_10)
        """Blocks of one request."""

    @classmethod
    async def look(cls, initiator: ScsiInitiator, lun: int, inquiry: InquiryData) -> Self:
        """Ask a disk for its capacity, and whether it may be written. `ProtocolError` for a capacity that cannot be."""
        capacity = await _capacity(initiator, lun)
        if capacity.block_size < _LEAST_BLOCK or capacity.block_size % _LEAST_BLOCK:
            raise ProtocolError("capacity", 4, "blocks of a multiple of 512 bytes", f"{capacity.block_size}")
        if capacity.block_size > initiator.max_transfer:
            raise ProtocolError(
                "capacity",
                4,
                f"blocks of at most the {initiator.max_transfer} bytes of a request",
                f"{capacity.block_size}",
            )
        cdb = ModeSenseCdb(_MODE_SIZE, ALL_PAGES, opcode=Opcode.MODE_SENSE_6).pack()
        reply = await initiator.execute(lun, cdb, data_in=_MODE_SIZE)
        is_protected = reply.is_good and parse_mode(reply.data, Opcode.MODE_SENSE_6).is_write_protected
        return cls(initiator, lun, inquiry, capacity, is_protected)

    async def read(self, lba: int, count: int) -> bytes:
        """The bytes of `count` blocks from `lba` on."""
        parts: list[bytes] = []
        under_way: deque[Pending] = deque()
        try:
            for start, blocks in self._pieces(lba, count):
                while self._is_enough(under_way, blocks):
                    parts.append(await self._read_end(under_way.popleft()))
                cdb = self._cdb(Opcode.READ_10, Opcode.READ_16, start, blocks)
                under_way.append(await self._initiator.begin(self.lun, cdb, data_in=blocks * self.block_size))
            while under_way:
                parts.append(await self._read_end(under_way.popleft()))
        finally:
            self._give_up(under_way)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def write(self, lba: int, data: bytes, *, through: bool = False) -> None:
        """Store whole blocks from `lba` on; `through`: on the medium when this returns (FUA).

        A write of more than `max_transfer` bytes is several commands: when one fails, others may have been carried out.
        `ValueError` for data that do not fill blocks.
        """
        if len(data) % self.block_size:
            raise ValueError(f"{len(data)} bytes do not fill blocks of {self.block_size} bytes")
        under_way: deque[Pending] = deque()
        flags = FUA if through else 0
        try:
            for start, blocks in self._pieces(lba, len(data) // self.block_size):
                while self._is_enough(under_way, blocks):
                    await self._write_end(under_way.popleft())
                cdb = self._cdb(Opcode.WRITE_10, Opcode.WRITE_16, start, blocks, flags)
                at, size = (start - lba) * self.block_size, blocks * self.block_size
                part = data if size == len(data) else data[at : at + size]
                under_way.append(await self._initiator.begin(self.lun, cdb, part))
            while under_way:
                await self._write_end(under_way.popleft())
        finally:
            self._give_up(under_way)

    async def flush(self) -> None:
        """What was written is on the medium when this returns (SYNCHRONIZE CACHE)."""
        await self._done(BlockCdb(Opcode.SYNCHRONIZE_CACHE_10, 0, 0).pack())

    async def unmap(self, lba: int, count: int) -> None:
        """These blocks are not needed any more: they read as zeros afterwards, where the disk says so.

        One command: a disk refuses more blocks than its VPD page 0xB0 allows, here 64 MiB of them.
        """
        data = pack_unmap([(lba, count)])
        await self._done(UnmapCdb(len(data)).pack(), data)

    async def check_ready(self) -> None:
        """Nothing, where the disk is ready (TEST UNIT READY)."""
        await self._done(SimpleCdb(Opcode.TEST_UNIT_READY).pack())

    # within

    def _pieces(self, lba: int, count: int) -> Iterator[tuple[int, int]]:
        """(first block, count) of each request."""
        if lba < 0 or count < 1:
            raise ValueError(f"blocks are read and written one or more at a time from block 0 on, not {count} at {lba}")
        for start in range(lba, lba + count, self._most):
            yield start, min(self._most, lba + count - start)

    def _is_enough(self, under_way: deque[Pending], blocks: int) -> bool:
        """Wait for the first of these before so many blocks more."""
        if len(under_way) >= WINDOW:
            return True
        return bool(under_way) and not self._initiator.has_room(blocks * self.block_size)

    def _cdb(self, short: Opcode, long: Opcode, lba: int, count: int, flags: int = 0) -> bytes:
        return BlockCdb(short if lba <= _LAST_10 else long, lba, count, flags).pack()

    async def _done(self, cdb: bytes, data: bytes = b"") -> ScsiReply:
        return (await self._initiator.execute(self.lun, cdb, data)).check()

    async def _read_end(self, pending: Pending) -> bytes:
        size = pending.request.size
        data = (await self._initiator.end(pending)).check().data
        if len(data) != size:
            raise ProtocolError("SCSI answer", 12, f"all {size} bytes of a read", f"{len(data)}")
        return data

    async def _write_end(self, pending: Pending) -> None:
        size = pending.request.size
        moved = (await self._initiator.end(pending)).check().transferred
        if moved != size:
            raise ProtocolError("SCSI answer", 12, f"all {size} bytes of a write", f"{moved}")

    def _give_up(self, under_way: deque[Pending]) -> None:
        for pending in under_way:
            self._initiator.give_up(pending)


async def _capacity(initiator: ScsiInitiator, lun: int) -> Capacity:
    cdb = SimpleCdb(Opcode.READ_CAPACITY_10).pack()
    reply = await initiator.execute(lun, cdb, data_in=CAPACITY_10_SIZE)
    capacity = parse_capacity(reply.check().data)
    if capacity is None:
        cdb = ServiceActionCdb(CAPACITY_16_SIZE).pack()
        reply = await initiator.execute(lun, cdb, data_in=CAPACITY_16_SIZE)
        capacity = parse_capacity(reply.check().data)
    if capacity is None:
        raise HostError(f"the disk at LUN {lun} does not say how large it is")
    return capacity
