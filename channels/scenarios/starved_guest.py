"""Starved guest: it asks and asks and does not listen. The host queues what it may, refuses the rest, and loses nothing."""

from __future__ import annotations

from uuid import UUID

from broker.access import GuestSynic
from broker.clock import TICKS_PER_MILLISECOND
from broker.hvdef import HvStatus

from ..devices import EchoDevice
from ..protocol import (
    CHANNEL_MESSAGE,
    MULTICLIENT_CONNECTION,
    STATUS_UNSUCCESSFUL,
    VMBUS_SINT,
    AllOffersDelivered,
    GpadlCreated,
    GpadlHeader,
    InitiateContact,
    OfferChannel,
    RequestOffers,
    Version,
    VersionResponse,
    parse_message,
    target_info,
)
from ..server import MESSAGE_DEPTH
from .stage import Scenario, Stage, expect, serve

_NO_CHANNEL = 0x7FF
_RETRY = 10 * TICKS_PER_MILLISECOND


def _instance(number: int) -> UUID:
    return UUID(f"6ec80005-0000-4000-8000-{number:012x}")


async def _play(stage: Stage) -> None:
    devices = [EchoDevice(_instance(number)) for number in range(10 * stage.settings.channels)]
    version = stage.settings.version or Version.IRON

    async def guest(synic: GuestSynic) -> None:
        async def post(data: bytes) -> HvStatus:
            return await synic.post_message(MULTICLIENT_CONNECTION, CHANNEL_MESSAGE, data)

        async with synic.messages(VMBUS_SINT) as messages:
            info = target_info(VMBUS_SINT, 0) if version.names_connection else 0
            for message in (InitiateContact(version, 0, info), RequestOffers()):
                while await post(message.pack()) is not HvStatus.SUCCESS:
                    await synic.turns.sleep_until(synic.turns.clock.now() + _RETRY, ("starved", 0))
            asked = 0
            while await post(GpadlHeader(_NO_CHANNEL, asked + 1, 8, 1, bytes(8)).pack()) is HvStatus.SUCCESS:
                asked += 1
                expect(asked < 10 * MESSAGE_DEPTH, "the host takes messages without end")
            stage.say(
                f"the guest listens to nothing; after {asked} more requests the host answers INSUFFICIENT_BUFFERS"
            )
            stage.count("requests taken", asked + 2)

            took = [parse_message((await anext(messages)).payload) for _ in range(2 + len(devices) + asked)]
            stage.count("messages delivered", len(took))
        kinds = [VersionResponse, *[OfferChannel] * len(devices), AllOffersDelivered, *[GpadlCreated] * asked]
        in_order = all(isinstance(message, kind) for message, kind in zip(took, kinds, strict=True))
        expect(in_order, "the answers are not in the order of the questions")
        offered = [message.channel_id for message in took if isinstance(message, OfferChannel)]
        expect(offered == list(range(1, len(devices) + 1)), "an offer is missing")
        answers = [message for message in took if isinstance(message, GpadlCreated)]
        expect([answer.gpadl_id for answer in answers] == list(range(1, asked + 1)), "an answer is missing")
        expect(all(answer.status == STATUS_UNSUCCESSFUL for answer in answers), "a GPADL of no channel was created")
        stage.say(f"the guest listens again: {len(took)} messages, in order, none lost")

    async with serve(stage, *devices) as server:
        await stage.start(0, guest).wait()
        expect(not server.statistics().waiting_out, "messages are left over")


starved_guest = Scenario(about="a guest asks without listening: bounded queues, a refusal, nothing lost", play=_play)
