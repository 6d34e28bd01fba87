"""Plays a conversation: the guest's messages through HvCallPostMessage, the devices' doings through the bus, in order.

The host is a `VmbusServer` and devices that accept everything. The guest posts from processor 0 and takes the answers
out of its SIMP slots as Linux does. Time is virtual and tasks take turns: each step is over when nobody can go on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from uuid import UUID

import anyio
import msgspec

from channels.core.server.offer_params import OfferKey
from channels.server import VmbusServer

from ..hvdef import CallCode, HvStatus, HypercallResult, PostMessageInput, Profile
from ..partition import Partition, PartitionConfig
from ..processor import VirtualProcessor
from ..trace import Trace
from .compare import Answer, Reply, compare, uncompared
from .conversation import Conversation, DeviceStep, GuestMessage
from .devices import AcceptingDevice, Offered, Revoked, plan_devices
from .guest import needs_of
from .summary import name_of


class PostedMessage(msgspec.Struct, frozen=True):
    """A message of the guest, and the status of its hypercall."""

    step: int
    name: str
    connection_id: int
    message_type: int
    payload: bytes
    status: HvStatus
    complaints: list[str]
    """What the server found wrong with it."""


class DeviceAction(msgspec.Struct, frozen=True):
    """What a device did; None where the server does by itself what the step says."""

    step: int
    did: Offered | Revoked | None


class Replay(msgspec.Struct, frozen=True):
    """What came of a conversation, in the order of the file."""

    steps: list[PostedMessage | DeviceAction | Reply]

    @property
    def posted(self) -> list[PostedMessage]:
        """The guest's messages."""
        return [step for step in self.steps if isinstance(step, PostedMessage)]

    @property
    def replies(self) -> list[Reply]:
        """The host's messages."""
        return [step for step in self.steps if isinstance(step, Reply)]

    @property
    def is_right(self) -> bool:
        """Every message was taken, and every reply is as it was recorded, if any was."""
        return all(message.status is HvStatus.SUCCESS for message in self.posted) and all(
            reply.identical is not False for reply in self.replies
        )


async def replay(
    conversation: Conversation,
    profile: Profile,
    backend: str = "emulated",
    seed: int = 0,
    trace: Trace | None = None,
    *,
    compares: bool = True,
) -> Replay:
    """Play it, and compare the replies with those that were recorded; without `compares`, these are not looked at.

    `DamagedDocument` for a step that cannot be played, `SynicUnsupported` for a backend without a SynIC.
    """
    if not compares:
        conversation = conversation.without_replies()
    actions = plan_devices(conversation)
    needs = needs_of(conversation)
    config = PartitionConfig(
        vp_count=needs.vp_count,
        memory_size=needs.memory_size,
        profile=profile,
        backend=backend,
        seed=seed,
        virtual_time=True,
        trace=trace,
    )
    done: list[PostedMessage | DeviceAction] = []
    answers: list[Answer] = []
    listens_to = {_connect_of(action.params.key) for action in actions.values() if isinstance(action, Offered)}

    async def listen(service: UUID, endpoint: UUID, silo: UUID) -> bool:
        return (service, endpoint) in listens_to

    async with (
        Partition(config) as partition,
        # The recorded host's monitor IDs are part of its replies, whatever this backend has.
        VmbusServer(partition.synic(), partition.memory, hvsock_listener=listen, assigns_monitors=True) as server,
    ):
        arrived: list[bytes] = []
        for vp_index in sorted({vp for vp, _ in needs.targets}):
            partition.start(vp_index, _reader(partition, [s for vp, s in needs.targets if vp == vp_index], arrived))
        await partition.settled()
        devices: dict[OfferKey, AcceptingDevice] = {}
        for number, step in conversation.steps.items():
            if isinstance(step, GuestMessage):
                before = server.statistics().complaints
                status = await _post(partition.vp(0), needs.input_gpa, step)
                await partition.settled()
                complaints = [kind for kind, n in server.statistics().complaints.items() if n > before.get(kind, 0)]
                done.append(_posted(number, step, status, complaints))
            elif isinstance(step, DeviceStep):
                action = actions.get(number)
                await _act(server, devices, action)
                await partition.settled()
                done.append(DeviceAction(number, action))
            answers += [Answer(number, payload) for payload in arrived]
            arrived.clear()
    return Replay(_in_order(done, compare(conversation, answers) if compares else uncompared(answers)))


def _connect_of(key: OfferKey) -> tuple[UUID, UUID]:
    return key.interface_id, key.instance_id


async def _post(processor: VirtualProcessor, input_gpa: int, message: GuestMessage) -> HvStatus:
    call = PostMessageInput(message.connection_id, message.message_type, message.payload)
    await processor.write_memory(input_gpa, call.pack())
    return HvStatus(HypercallResult(await processor.hypercall(CallCode.POST_MESSAGE, input_gpa)).status)


def _posted(number: int, message: GuestMessage, status: HvStatus, complaints: list[str]) -> PostedMessage:
    name = name_of(message.payload)
    return PostedMessage(number, name, message.connection_id, message.message_type, message.payload, status, complaints)


async def _act(server: VmbusServer, devices: dict[OfferKey, AcceptingDevice], action: Offered | Revoked | None) -> None:
    match action:
        case Offered(params=params):
            device = devices[params.key] = AcceptingDevice()
            await device.offer(server, params)
        case Revoked(key=key):
            devices.pop(key).revoke()


def _reader(
    partition: Partition, sints: list[int], arrived: list[bytes]
) -> Callable[[VirtualProcessor], Awaitable[None]]:
    """Guest code that takes messages as they come."""

    async def read(vp: VirtualProcessor, sint: int) -> None:
        async with vp.guest_synic().messages(sint) as messages:
            async for message in messages:
                arrived.append(message.payload)

    async def read_all(vp: VirtualProcessor) -> None:
        if len(sints) == 1:
            await read(vp, sints[0])
            return
        async with anyio.create_task_group() as group:
            for number, sint in enumerate(sints):
                group.start_soon(_in_turn, partition, number, read, vp, sint)

    return read_all


async def _in_turn(
    partition: Partition,
    number: int,
    read: Callable[[VirtualProcessor, int], Awaitable[None]],
    vp: VirtualProcessor,
    sint: int,
) -> None:
    await partition.take_turn(number)
    await read(vp, sint)


def _in_order(
    done: list[PostedMessage | DeviceAction], replies: list[Reply]
) -> list[PostedMessage | DeviceAction | Reply]:
    """Replies at their places in the file; those that have none behind what they answer."""

    def place(step: PostedMessage | DeviceAction | Reply) -> tuple[int, bool]:
        if isinstance(step, Reply) and step.step is None:
            return step.after or 0, True
        return step.step or 0, False

    return sorted([*done, *replies], key=place)
