"""Event flags: signals coalesce, in both directions, and the last one is never lost.

Shows: an event port that yields sets of flags, a guest event port whose interrupt sets a flag in the guest's SIEF page,
and the guest's test-and-clear.
Run: python examples/02_event_flags.py
"""

import anyio

from broker import Partition, PartitionConfig, VirtualProcessor, Vtl, receive_events

CONNECTION_ID = 2
SINT = 2
DOORBELL_FLAG = 7


async def guest(vp: VirtualProcessor) -> None:
    synic = vp.guest_synic(Vtl.VTL0)
    async with synic.events(SINT) as events:
        for flag in (0, 3, 3, 3):
            await synic.signal_event(CONNECTION_ID, flag)
        print("guest: signalled flags 0, 3, 3, 3")
        print(f"guest: the host set flags {sorted(await anext(events))}")


async def main() -> None:
    async with Partition(PartitionConfig(virtual_time=True)) as partition:
        access = partition.synic()
        to_guest = await access.new_guest_event_port(CONNECTION_ID, Vtl.VTL0, 0, SINT, DOORBELL_FLAG)
        async with receive_events(access, CONNECTION_ID) as signalled:
            run = partition.start(0, guest)
            print(f"host:  woken once, with flags {sorted(await signalled.receive())}")
            doorbell = to_guest.interrupt()
            for _ in range(3):
                doorbell.deliver()
            print(f"host:  delivered flag {DOORBELL_FLAG} three times")
            await run.wait()


if __name__ == "__main__":
    anyio.run(main)
