"""Reset storm: the VM is reset again and again in the middle of traffic, and the server starts anew with nothing left."""

from __future__ import annotations

from uuid import UUID

from broker.access import GuestSynic

from ..client import VmbusClient
from ..devices import EchoDevice
from .stage import Flag, Scenario, Stage, expect, serve


def _instance(number: int) -> UUID:
    return UUID(f"6ec80004-0000-4000-8000-{number:012x}")


async def _play(stage: Stage) -> None:
    settings = stage.settings
    devices = [EchoDevice(_instance(number)) for number in range(settings.channels)]

    async with serve(stage, *devices) as server:
        for number in range(settings.rounds):
            in_traffic = Flag(server.turns, number)

            async def guest(synic: GuestSynic, in_traffic: Flag = in_traffic) -> None:
                try:
                    async with VmbusClient(synic, version=settings.version) as client:
                        channels = [
                            await client.open(await client.wait_offer(instance_id=device.offer.instance_id))
                            for device in devices
                        ]
                        while True:
                            for channel in channels:
                                await channel.request(bytes(settings.payload))
                                stage.count("packets echoed")
                            in_traffic.set()
                finally:
                    in_traffic.set()  # also where it fails: what waits for traffic goes on, and hears why

            run = stage.start(0, guest)
            await in_traffic.wait()
            await stage.reset()
            await run.wait()
            stage.count("resets")
            left = server.statistics()
            expect(not left.open_channels, f"{left.open_channels} channels are open after reset {number}")
            expect(not left.waiting_out, f"{left.waiting_out} messages wait after reset {number}")
        stage.say(f"{settings.rounds} resets in the middle of traffic, nothing left over")


reset_storm = Scenario(about="the VM is reset in the middle of traffic, again and again", play=_play)
