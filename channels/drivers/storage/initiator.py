"""`ScsiInitiator`: the guest's driver of a storage controller.

    async with ScsiInitiator.open(client) as controller:
        disk = await controller.disk(0)
        await disk.write(16, b"hello".ljust(disk.block_size, b"\\0"))
        await disk.flush()

It will: negotiate as Linux does (the newest version first, then older ones), open as many sub-channels as are asked for and
the host has, spread requests over all channels, have many under way at once, and use its buffers again. It will not: retry,
time out (cancel the wait; the host keeps the buffer of that request until it answers), or cache.

A host that breaks the protocol, or goes, ends the driver: requests under way and later ones raise `ProtocolError` or
`ChannelClosed`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Self
from uuid import UUID

import anyio
import anyio.abc

from broker.errors import BrokerError, ChannelClosed, ConnectionFailed, HostError, ProtocolError
from broker.hvdef import PAGE_SIZE

from ...client import GuestChannel, VmbusClient
from ...protocol.ids import SCSI
from ...protocol.storage import (
    MAX_TRANSFER,
    ChannelProperties,
    DataDirection,
    InquiryCdb,
    NtStatus,
    Operation,
    ProtocolVersion,
    ReportLunsCdb,
    ScsiRequest,
    Sense,
    SrbFlags,
    StorageVersion,
    SubchannelCount,
    VstorPacket,
    parse_inquiry,
    parse_luns,
    parse_sense,
    parse_srb,
)
from ...protocol.storage.inquiry import STANDARD_SIZE
from ...protocol.storage.srb import AUTOSENSE_VALID, CDB_SIZE, SENSE_SIZE, SRB_STATUS_MASK
from ...protocol.storage.vstor import PACKET_SIZE
from .buffers import BufferPool
from .disk import ScsiDisk
from .errors import ScsiReply
from .line import Line
from .queue import Request, RequestQueue

LINUX_VERSIONS = (StorageVersion.WIN10, StorageVersion.WIN8_1, StorageVersion.WIN8)
"""What Linux asks for, in this order."""
RING_PAGES = (17, 17)
_LUNS_SIZE = 8 + 8 * 256
_TIMEOUT = 60
_DATA_FLAGS = {
    DataDirection.TO_DISK: SrbFlags.DATA_OUT | SrbFlags.QUEUE_ACTION | SrbFlags.NO_DISCONNECT,
    DataDirection.FROM_DISK: SrbFlags.DATA_IN | SrbFlags.QUEUE_ACTION | SrbFlags.NO_DISCONNECT,
    DataDirection.NONE: SrbFlags.QUEUE_ACTION | SrbFlags.NO_DISCONNECT,
}


class ScsiInitiator:
    """See the module. Made by `open`."""

    def __init__(self, client: VmbusClient) -> None:
        self.version = StorageVersion.WIN6
        """What was agreed on."""
        self.max_transfer = 0
        """Bytes that one request moves at most; longer reads and writes are split."""
        self._client = client
        self._queues: list[RequestQueue] = []
        self._error: BrokerError | None = None
        self._pool: BufferPool
        self._line: Line
        self._bus_changes = 0

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        client: VmbusClient,
        instance_id: UUID | None = None,
        *,
        versions: Sequence[StorageVersion] = LINUX_VERSIONS,
        subchannels: int = 0,
        ring_pages: tuple[int, int] = RING_PAGES,
    ) -> AsyncIterator[Self]:
        """Open a controller, the first that is offered unless one is named, for the time of the block.

        `versions`: to ask for, in this order. `subchannels`: to open, where the host has so many. `ring_pages`: of each
        channel, see `VmbusClient.open`.

        `HostError` when the host knows none of the versions, or refuses a step; further errors as of `VmbusClient.open`.
        A block that is cancelled leaves the pages of requests under way taken: nobody can tell when the host lets go of them.
        """
        initiator = cls(client)
        errors: list[BaseException] = []
        offer = await client.wait_offer(SCSI, instance_id)
        async with AsyncExitStack() as stack:
            initiator._pool = BufferPool(
                client.pages, client.guest_synic.memory, client.guest_synic.turns, offer.channel_id
            )
            initiator._line = Line(client.guest_synic.turns, 0x10000 + offer.channel_id)
            stack.callback(initiator._end, ChannelClosed("the storage driver's block has ended"))

            async def open_channel(index: int) -> GuestChannel:
                found = offer if not index else await client.wait_offer(SCSI, offer.instance_id, index)
                data = ChannelProperties().pack()
                channel = await client.open(found, ring_pages=ring_pages, user_data=data)
                stack.push_async_callback(initiator._close, channel)
                return channel

            async with anyio.create_task_group() as group:
                try:
                    initiator._add(await open_channel(0), group)
                    await initiator._negotiate(versions)
                    for index in range(1, await initiator._create_subchannels(subchannels) + 1):
                        initiator._add(await open_channel(index), group)
                    yield initiator
                except anyio.get_cancelled_exc_class():
                    raise
                except BaseException as error:  # not from within the group, which would wrap it
                    errors.append(error)
                finally:
                    group.cancel_scope.cancel()
        if errors:
            raise errors[0]

    # what there is

    @property
    def channel_count(self) -> int:
        """Channels that requests are spread over."""
        return len(self._queues)

    @property
    def bus_changes(self) -> int:
        """How often the host has told that disks came or went."""
        return self._bus_changes

    async def luns(self) -> tuple[int, ...]:
        """The logical units that are there (REPORT LUNS)."""
        reply = await self.execute(0, ReportLunsCdb(_LUNS_SIZE).pack(), data_in=_LUNS_SIZE)
        return parse_luns(reply.check().data)

    async def disk(self, lun: int) -> ScsiDisk:
        """The disk at a LUN. `HostError` where there is none."""
        reply = await self.execute(lun, InquiryCdb(STANDARD_SIZE).pack(), data_in=STANDARD_SIZE)
        inquiry = parse_inquiry(reply.check().data)
        if not inquiry.is_disk:
            raise HostError(f"there is no disk at LUN {lun}: its peripheral byte is {inquiry.peripheral:#04x}")
        return await ScsiDisk.look(self, lun, inquiry)

    # requests

    async def execute(self, lun: int, cdb: bytes, data_out: bytes = b"", data_in: int = 0) -> ScsiReply:
        """Carry out one command and wait for its end, good or not: see `ScsiReply`.

        `data_out` goes to the disk, or `data_in` bytes at most come from it. `ValueError` for both at once, for more than
        `max_transfer` bytes, or a CDB over 16 bytes.
        """
        return await self.end(await self.begin(lun, cdb, data_out, data_in))

    async def begin(self, lun: int, cdb: bytes, data_out: bytes = b"", data_in: int = 0) -> Pending:
        """Send a command, as `execute` does; `end` waits for it, `give_up` does not. One of the two has to be called."""
        size = len(data_out) or data_in
        if data_out and data_in:
            raise ValueError("a command moves data one way, to the disk or from it")
        if size > self.max_transfer:
            raise ValueError(f"a command moves at most {self.max_transfer} bytes here, not {size}")
        if not 0 < len(cdb) <= CDB_SIZE:
            raise ValueError(f"a CDB has 1 to {CDB_SIZE} bytes, not {len(cdb)}")
        direction = DataDirection.TO_DISK if data_out else DataDirection.FROM_DISK if data_in else DataDirection.NONE
        packet = self._pack(lun, cdb, direction, size)
        buffer = await self._pool.take(size) if size else None
        try:
            if buffer is not None and data_out:
                buffer.write(0, data_out)
            queue = await self._line.wait_for(self._free_queue)
        except BaseException:
            if buffer is not None:
                self._pool.give(buffer)
            raise
        return Pending(queue, await queue.send(packet, buffer, size), lun, cdb[0], direction)

    def has_room(self, size: int) -> bool:
        """`begin` would not have to wait now for a buffer of so many bytes and a channel that is not full.

        Whoever has commands under way waits for one of them instead: two who hold buffers and wait for more never end.
        """
        return self._line.is_empty and self._pool.has_room(size) and not all(queue.is_full for queue in self._queues)

    async def end(self, pending: Pending) -> ScsiReply:
        """Wait for a command that `begin` has sent. A command whose wait is cancelled is given up."""
        request = pending.request
        try:
            return _reply(pending, await request.wait())
        finally:
            pending.queue.give_up(request)

    def give_up(self, pending: Pending) -> None:
        """Do not wait for it. It may be carried out, or not."""
        pending.queue.give_up(pending.request)

    # within

    def _pack(self, lun: int, cdb: bytes, direction: DataDirection, size: int) -> bytes:
        request = ScsiRequest(
            length=self.version.packet_size - (PACKET_SIZE - ScsiRequest.layout().size),
            lun=lun,
            cdb_length=len(cdb),
            direction=direction,
            transfer_length=size,
            payload=cdb.ljust(SENSE_SIZE, b"\0"),
            flags=_DATA_FLAGS[direction],
            timeout=_TIMEOUT,
        )
        return VstorPacket(Operation.EXECUTE_SRB, 1, body=request.pack()).pack_to(self.version.packet_size)

    def _free_queue(self) -> RequestQueue | None:
        """The channel with the fewest requests under way, unless all are full."""
        if self._error is not None:
            raise self._error
        queue = min(self._queues, key=_load)
        return None if queue.is_full else queue

    def _add(self, channel: GuestChannel, group: anyio.abc.TaskGroup) -> None:
        queue = RequestQueue(channel, self._pool, self._line.changed, self._noticed)
        self._queues.append(queue)
        group.start_soon(self._run, queue, channel.turns.expect(("storage", channel.channel_id)))

    async def _run(self, queue: RequestQueue, begin: Callable[[], Awaitable[None]]) -> None:
        try:
            await begin()
            self._end(await queue.run())
        finally:
            queue.channel.turns.leave()

    def _end(self, error: BrokerError) -> None:
        """No request can go on, for one channel has ended, or all."""
        if self._error is None:
            self._error = error
        for queue in self._queues:
            queue.end(self._error)
        self._line.end(self._error)
        self._pool.end(self._error)

    async def _close(self, channel: GuestChannel) -> None:
        try:
            await self._client.close(channel)
        except (ChannelClosed, ConnectionFailed):  # then there is nothing left to close
            return
        for queue in self._queues:
            if queue.channel is channel:
                queue.recover_all()

    def _noticed(self, packet: VstorPacket) -> None:
        if packet.operation in (Operation.ENUMERATE_BUS, Operation.REMOVE_DEVICE):
            self._bus_changes += 1

    async def _exchange(self, operation: Operation, body: bytes = b"") -> VstorPacket:
        """One step of the negotiation, on the primary channel."""
        packet = VstorPacket(operation, 1, body=body).pack_to(PACKET_SIZE)
        request = await self._queues[0].send(packet)
        return await request.wait()

    async def _step(self, operation: Operation, body: bytes = b"") -> VstorPacket:
        answer = await self._exchange(operation, body)
        if answer.status != NtStatus.SUCCESS:
            raise HostError(f"the storage controller refused {operation.name}: status {answer.status:#010x}")
        return answer

    async def _negotiate(self, versions: Sequence[StorageVersion]) -> None:
        await self._step(Operation.BEGIN_INITIALIZATION)
        for version in versions:
            answer = await self._exchange(Operation.QUERY_PROTOCOL_VERSION, ProtocolVersion(version).pack())
            if answer.status == NtStatus.SUCCESS:
                self.version = version
                break
            if answer.status != NtStatus.REVISION_MISMATCH:
                raise HostError(f"the storage controller refused to tell its version: status {answer.status:#010x}")
        else:
            asked = ", ".join(version.label for version in versions)
            raise ConnectionFailed(f"the storage controller knows none of the versions {asked}")
        self._properties = ChannelProperties.unpack((await self._step(Operation.QUERY_PROPERTIES)).body)
        self.max_transfer = min(self._properties.max_transfer, MAX_TRANSFER)
        if self.max_transfer < PAGE_SIZE:
            raise ProtocolError(
                "channel properties", 12, f"at least {PAGE_SIZE} bytes a request", f"{self.max_transfer}"
            )
        await self._step(Operation.END_INITIALIZATION)

    async def _create_subchannels(self, wanted: int) -> int:
        """After the end of the initialisation, as Linux does: how many there are now."""
        there = self._properties.max_subchannels if self.version.has_subchannels else 0
        count = min(wanted, there)
        if count > 0:
            await self._step(Operation.CREATE_SUBCHANNELS, SubchannelCount(count).pack())
        return max(count, 0)


class Pending:
    """A command under way; see `ScsiInitiator.begin`."""

    __slots__ = ("direction", "lun", "opcode", "queue", "request")

    def __init__(self, queue: RequestQueue, request: Request, lun: int, opcode: int, direction: DataDirection) -> None:
        self.queue = queue
        self.request = request
        self.lun = lun
        self.opcode = opcode
        self.direction = direction


def _load(queue: RequestQueue) -> int:
    return queue.load


def _reply(pending: Pending, answer: VstorPacket) -> ScsiReply:
    """What the host has answered. `ProtocolError` when it says that it has moved more than it might."""
    srb = parse_srb(answer.body)
    request = pending.request
    if srb.transfer_length > request.size:
        raise ProtocolError("SCSI answer", 12, f"at most {request.size} bytes moved", f"{srb.transfer_length}")
    data = b""
    if pending.direction == DataDirection.FROM_DISK and request.buffer is not None:
        data = request.buffer.read(0, srb.transfer_length)
    return ScsiReply(
        pending.lun,
        pending.opcode,
        srb.srb_status & SRB_STATUS_MASK,
        srb.scsi_status,
        _sense(srb.payload) if srb.srb_status & AUTOSENSE_VALID else None,
        srb.transfer_length,
        data,
    )


def _sense(data: bytes) -> Sense | None:
    """Sense data, unless they are of a format that nobody knows: the statuses say enough then."""
    try:
        return parse_sense(data)
    except ProtocolError:
        return None
