"""Driver test: what an author of drivers tests. Input arrives and output is seen; a device goes in the middle of traffic and
comes back, again and again, and the driver goes on with it each time."""

from __future__ import annotations

from uuid import UUID

import anyio
import anyio.abc

from broker.access import GuestSynic, Turns
from broker.errors import ChannelClosed

from ..client import VmbusClient
from ..devices import EchoDevice, SerialConsole, serve_devices
from ..devices.input import KeyboardDevice, MouseDevice
from ..drivers import open_serial, run_drivers
from ..drivers.input import KeyboardDriver, MouseDriver
from ..pipe import BytePipe
from ..protocol.input import LEFT_SHIFT, STROKES, KeyFlags, MouseButton
from ..protocol.versions import version_label
from .stage import Flag, Scenario, Stage, expect, serve, start_task

INSTANCE = UUID("6ec80007-0000-4000-8000-000000000001")
TYPED = "Hello, guest\n"
POINT = (1000, 2000)

_CHARACTERS = {(stroke.code, stroke.is_shifted): character for character, stroke in STROKES.items()}


class _Guest:
    """The drivers under test: a console that shows keys and clicks, and one that talks to an echo device."""

    def __init__(self, stage: Stage, turns: Turns) -> None:
        self.stage = stage
        self.in_traffic = [Flag(turns, number) for number in range(stage.settings.rounds)]
        """The driver has talked to the device that was offered for the n-th time."""
        self.keyboard = KeyboardDriver()
        self.mouse = MouseDriver()

    async def run(self, synic: GuestSynic) -> None:
        """Show what comes, and talk to the echo device as often as it is offered; then leave."""
        async with (
            VmbusClient(synic, version=self.stage.settings.version) as client,
            run_drivers(client, self.keyboard, self.mouse),
            open_serial(client) as console,
            anyio.create_task_group() as group,
        ):
            self.stage.say(f"the guest is connected, version {version_label(client.version)}")
            start_task(group, synic.turns, 0, lambda: self._show_keys(console))
            start_task(group, synic.turns, 1, lambda: self._show_clicks(console))
            for flag in self.in_traffic:
                await self._talk(client, flag)
            group.cancel_scope.cancel()
        self.stage.say("the guest has unloaded")

    async def _show_keys(self, console: BytePipe) -> None:
        is_shifted = False
        async for event in self.keyboard:
            is_down = not event.flags & KeyFlags.BREAK
            if event.code == LEFT_SHIFT:
                is_shifted = is_down
            elif is_down:
                await console.send(_CHARACTERS[event.code, is_shifted].encode())
                self.stage.count("keys")

    async def _show_clicks(self, console: BytePipe) -> None:
        async for event in self.mouse:
            if event.is_down(MouseButton.LEFT):
                await console.send(f"click at {event.x}, {event.y}\n".encode())
                self.stage.count("clicks")

    async def _talk(self, client: VmbusClient, flag: Flag) -> None:
        """Ask again and again until the device is gone; then let go of it, and be ready for the next."""
        settings = self.stage.settings
        channel = await client.open(await client.wait_offer(instance_id=INSTANCE))
        try:
            for number in range(settings.packets):
                answer = await channel.request(number.to_bytes(8, "little").ljust(settings.payload, b"."))
                expect(int.from_bytes(answer.payload[:8], "little") == number, f"request {number} got another's answer")
                self.stage.count("requests answered")
                if number == settings.packets // 2:
                    flag.set()
            flag.set()
            while True:
                await channel.receive()
        except ChannelClosed:
            self.stage.count("devices that went")
        await client.close(channel)


async def _play(stage: Stage) -> None:
    keyboard, mouse, console = KeyboardDevice(), MouseDevice(), SerialConsole()
    async with serve(stage, keyboard, mouse, console) as server, anyio.create_task_group() as group:
        guest = _Guest(stage, server.turns)

        async def host() -> None:
            await keyboard.type(TYPED)
            await console.wait_output(TYPED.encode())
            stage.say(f"{TYPED.strip()!r} was typed, and came out of the serial port")
            await mouse.move(*POINT)
            await mouse.click()
            await console.wait_output(f"click at {POINT[0]}, {POINT[1]}\n".encode())
            stage.say(f"the mouse was clicked at {POINT}, and the guest saw it there")
            for flag in guest.in_traffic:
                async with serve_devices(stage.bus(server), EchoDevice(INSTANCE)):
                    await flag.wait()
            stage.say(f"a device went in the middle of traffic and came back, {stage.settings.rounds} times")

        start_task(group, server.turns, 2, host)
        await stage.start(0, guest.run).wait()


driver_test = Scenario(about="input and output of a guest, and a device that goes in the middle of traffic", play=_play)
