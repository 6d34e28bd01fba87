"""Scenarios: `vmbus run channels.scenarios:NAME`, or any `module:name` that is a `Scenario`.

async def play(stage):
    async def guest(synic):  # a GuestSynic, as a driver has it
        async with VmbusClient(synic) as client:
            channel = await client.open(await client.wait_offer(instance_id=INSTANCE))
            stage.say("it is open")

    async with serve(stage, EchoDevice(INSTANCE)):
        await stage.start(0, guest).wait()

mine = Scenario(about="opens a channel", play=play)  # vmbus run my_module:mine
"""

from .disk import disk
from .driver_test import driver_test
from .echo import echo
from .hello import hello
from .hvsock import hvsock
from .integration import integration
from .network import network
from .reset_storm import reset_storm
from .stage import Flag, GuestRun, Scenario, ScenarioFailed, Settings, Stage, expect, serve, start_task
from .starved_guest import starved_guest
from .subchannels import subchannels

__all__ = [
    "Flag",
    "GuestRun",
    "Scenario",
    "ScenarioFailed",
    "Settings",
    "Stage",
    "disk",
    "driver_test",
    "echo",
    "expect",
    "hello",
    "hvsock",
    "integration",
    "network",
    "reset_storm",
    "serve",
    "start_task",
    "starved_guest",
    "subchannels",
]
