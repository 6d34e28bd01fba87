"""Plays the guest's side of a recorded VMBus conversation through HvCallPostMessage into registered ports.

The file is JSON: {"about": str, "steps": [...]}. A step with `"from": "guest"` has `hex` (the payload), `connection_id`
and `message_type`; steps from others are for the reader and are passed over.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from .errors import DamagedDocument
from .hvdef import CallCode, HvStatus, HypercallResult, PostMessageInput, Profile, Vtl
from .partition import Partition, PartitionConfig
from .processor import VirtualProcessor
from .trace import Trace

_INPUT_GPA = 0x1000

U32 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF_FFFF)]


class GuestMessage(msgspec.Struct, frozen=True):
    """A message as the guest posts it; `step` is its place in the file, from 0."""

    step: int
    connection_id: int
    message_type: int
    payload: bytes


class PostedMessage(msgspec.Struct, frozen=True):
    """A message, the status of its hypercall, and whether it arrived as it was posted."""

    step: int
    connection_id: int
    message_type: int
    payload: bytes
    status: HvStatus
    arrived: bool


class _Step(msgspec.Struct, frozen=True, rename={"sender": "from"}):
    sender: str
    hex: str | None = None
    connection_id: U32 | None = None
    message_type: U32 | None = None


class _Conversation(msgspec.Struct, frozen=True):
    steps: list[_Step]
    about: str = ""


class _Port:
    """Keeps the last message."""

    def __init__(self) -> None:
        self.last: bytes | None = None

    async def handle_message(self, message: bytes, trusted: bool) -> HvStatus:
        self.last = message
        return HvStatus.SUCCESS


def read_guest_messages(path: str | Path) -> list[GuestMessage]:
    """The guest's messages of a conversation file. `DamagedDocument` with a sentence; `OSError` when it cannot be read."""
    try:
        conversation = msgspec.json.decode(Path(path).read_bytes(), type=_Conversation)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise DamagedDocument(f"{path} is no conversation file: {error}") from error
    messages = []
    for number, step in enumerate(conversation.steps):
        if step.sender != "guest":
            continue
        if step.hex is None or step.connection_id is None or step.message_type is None:
            raise DamagedDocument(f"{path}, step {number}: a guest's step has hex, connection_id and message_type")
        try:
            payload = bytes.fromhex(step.hex)
        except ValueError:
            raise DamagedDocument(f"{path}, step {number}: its hex is not hexadecimal") from None
        messages.append(GuestMessage(number, step.connection_id, step.message_type, payload))
    return messages


async def replay(
    messages: Sequence[GuestMessage], profile: Profile, backend: str, seed: int, trace: Trace | None = None
) -> list[PostedMessage]:
    """Post the messages in order from processor 0, one port for each connection ID, and return what became of each."""
    posted: list[PostedMessage] = []
    config = PartitionConfig(profile=profile, backend=backend, seed=seed, virtual_time=True, trace=trace)
    async with Partition(config) as partition:
        access = partition.synic()
        ports = {message.connection_id: _Port() for message in messages}
        for connection_id, port in ports.items():
            await access.add_message_port(connection_id, Vtl.VTL0, port)

        async def guest(vp: VirtualProcessor) -> None:
            for message in messages:
                port = ports[message.connection_id]
                port.last = None
                call = PostMessageInput(message.connection_id, message.message_type, message.payload)
                await vp.write_memory(_INPUT_GPA, call.pack())
                status = HvStatus(HypercallResult(await vp.hypercall(CallCode.POST_MESSAGE, _INPUT_GPA)).status)
                posted.append(
                    PostedMessage(
                        message.step,
                        message.connection_id,
                        message.message_type,
                        message.payload,
                        status,
                        port.last == message.payload,
                    )
                )

        await partition.start(0, guest).wait()
    return posted
