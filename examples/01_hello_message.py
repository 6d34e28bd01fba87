"""Hello, message: a guest posts a message to the host, and the host answers into the guest's message slot.

Shows: a partition, a served message port, guest code on a processor, and `GuestSynic`, the guest's side of the SynIC.
Run: python examples/01_hello_message.py
"""

import anyio

from broker import Message, Partition, PartitionConfig, VirtualProcessor, Vtl, serve_messages

CONNECTION_ID = 1
SINT = 2
CHANNEL_MESSAGE = 1


async def guest(vp: VirtualProcessor) -> bytes:
    synic = vp.guest_synic(Vtl.VTL0)
    async with synic.messages(SINT) as messages:
        status = await synic.post_message(CONNECTION_ID, CHANNEL_MESSAGE, b"hello, host")
        print(f"guest: posted, the hypercall's status is {status.name}")
        answer = await anext(messages)
    print(f"guest: my slot of SINT {SINT} held {answer.payload!r}")
    return answer.payload


async def main() -> None:
    async with Partition(PartitionConfig()) as partition:
        access = partition.synic()
        to_guest = await access.new_guest_message_port(Vtl.VTL0, 0, SINT)

        async def answer(message: Message) -> None:
            print(f"host:  received {message.payload!r}")
            await to_guest.post_message(CHANNEL_MESSAGE, b"hello, guest")

        async with serve_messages(access, CONNECTION_ID, answer):
            end = await partition.start(0, guest).wait()
    print(f"the guest code {end.how}")


if __name__ == "__main__":
    anyio.run(main)
