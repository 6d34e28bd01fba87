"""Two processors: both post at once to a mailbox of one buffer; whoever finds it full gets 0x13 and tries again.

Shows: back-pressure as a status, several processors, a seed that decides the order, virtual time, and the trace.
Run: python examples/03_two_processors.py [seed]
"""

import sys

import anyio

from broker import HvStatus, Partition, PartitionConfig, Trace, VirtualProcessor, receive_messages

CONNECTION_ID = 1
ROUNDS = 3


async def guest(vp: VirtualProcessor) -> int:
    refused = 0
    for number in range(ROUNDS):
        payload = f"message {number} of VP {vp.index}".encode()
        while await vp.post_message(CONNECTION_ID, 1, payload) is HvStatus.INSUFFICIENT_BUFFERS:
            refused += 1
    return refused


async def main(seed: int) -> None:
    statuses: list[str] = []
    trace = Trace(lambda event: statuses.append(type(event).__name__))
    config = PartitionConfig(vp_count=2, quantum=1, seed=seed, virtual_time=True, trace=trace)
    async with Partition(config) as partition, receive_messages(partition.synic(), CONNECTION_ID, depth=1) as inbox:
        runs = [partition.start(index, guest) for index in range(2)]
        for _ in range(2 * ROUNDS):
            message = await inbox.receive()
            print(f"host: {message.payload.decode()}")
        for index, run in enumerate(runs):
            end = await run.wait()
            print(f"VP {index} was refused {end.result} times")
    print(f"the trace has {statuses.count('Post')} posts, {statuses.count('Refuse')} of them refused")


if __name__ == "__main__":
    anyio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 0)
