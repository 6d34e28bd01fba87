"""Runs a list of steps on a partition, from its beginning or from a saved state: in this process or as one of its own.

    python -m tests.live.stepper asyncio < job.json > result.json

A job is {"backend", "profile", "state", "steps"}: `state` is a saved document in base64 or null, a step is a list, its
first element a method of `Stepper`. The result is {"trace", "state"}: the events as JSON lines, and the state after.
"""

from __future__ import annotations

import sys
from typing import Any

import anyio
import msgspec

from broker import PROFILES, GuestFault, HvStatus, Msr, Partition, PartitionConfig, Trace, Vtl
from broker.trace import NO_CONTEXT, encode_event

VP_COUNT = 2
CONNECTION = 1
VTLS = (Vtl.VTL0, Vtl.VTL1)


class Job(msgspec.Struct):
    backend: str
    profile: str
    state: bytes | None
    steps: list[list[Any]]


class Result(msgspec.Struct):
    trace: list[str]
    state: bytes


class Stepper:
    """The steps. `vp` and `vtl` say whose SynIC a step is about."""

    def __init__(self, partition: Partition) -> None:
        self.partition = partition

    async def msr(self, vp: int, vtl: int, number: int, value: int) -> None:
        try:
            await self.partition.vp(vp).write_msr(number, value, vtl=Vtl(vtl))
        except GuestFault:
            return  # it is in the trace

    async def post(self, vp: int, vtl: int, sint: int, message_type: int, payload: str) -> None:
        port = await self.partition.synic().new_guest_message_port(Vtl(vtl), vp, sint)
        port.try_post_message(message_type, payload.encode())

    async def signal(self, vp: int, vtl: int, sint: int, flag: int) -> None:
        port = await self.partition.synic().new_guest_event_port(1, Vtl(vtl), vp, sint, flag)
        port.interrupt().deliver()

    async def clear(self, vp: int, vtl: int, sint: int) -> None:
        """Empty a slot and write EOM, as a guest does that found it pending."""
        processor = self.partition.vp(vp)
        simp = await processor.read_msr(Msr.SIMP, vtl=Vtl(vtl))
        if simp & 1:
            await processor.write_memory((simp & ~0xFFF) + 256 * sint, bytes(4))
        await processor.write_msr(Msr.EOM, 0, vtl=Vtl(vtl))

    async def eoi(self, vp: int, vtl: int) -> None:
        await self.partition.vp(vp).write_msr(Msr.EOI, 0, vtl=Vtl(vtl))

    async def take(self, vp: int, vtl: int) -> None:
        self.partition.vp(vp).try_take_interrupt(vtl=Vtl(vtl))

    async def call(self, vp: int, vtl: int, connection_id: int) -> None:
        await self.partition.vp(vp).post_message(connection_id, 1, b"from the guest", vtl=Vtl(vtl))

    async def advance(self, ticks: int) -> None:
        await self.partition.sleep(ticks)
        await self.partition.settled()

    async def handle_message(self, message: bytes, trusted: bool) -> HvStatus:
        return HvStatus.SUCCESS


def config(backend: str, profile: str, trace: Trace | None = None) -> PartitionConfig:
    return PartitionConfig(
        vp_count=VP_COUNT,
        vtls=VTLS,
        memory_size=64 << 12,
        backend=backend,
        profile=PROFILES[profile],
        virtual_time=True,
        message_queue_depth=3,
        trace=trace,
    )


async def run_job(job: Job) -> Result:
    events: list[str] = []
    trace = Trace(lambda event: events.append(encode_event(event).decode()))
    async with Partition(config(job.backend, job.profile, trace)) as partition:
        stepper = Stepper(partition)
        await partition.synic().add_message_port(CONNECTION, Vtl.VTL0, stepper)
        if job.state is not None:
            partition.restore(job.state)
        for name, *arguments in job.steps:
            with trace.working_on(NO_CONTEXT):
                await getattr(stepper, name)(*arguments)
        return Result(events, partition.save())


def main(loop: str) -> None:
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    sys.stdout.buffer.write(msgspec.json.encode(anyio.run(run_job, job, backend=loop)))


if __name__ == "__main__":
    main(*sys.argv[1:])
