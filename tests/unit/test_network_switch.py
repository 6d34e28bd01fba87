"""The virtual switch alone, between stations made by hand: what goes where, what is learned, what waits and what is dropped."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import pytest

from broker.access import Turns, Wakeup
from broker.clock import VirtualClock
from broker.errors import ConfigurationError
from broker.turns import LiveTurns
from channels.devices.network import Loopback, VirtualSwitch
from channels.protocol.network.frames import BROADCAST, Frame

A, B, C, D = (bytes((2, 0, 0, 0, 0, number)) for number in range(4))


class Hand:
    """A station with room for `room` frames, which the test takes."""

    def __init__(self, address: bytes, room: int = 100) -> None:
        self.address = address
        self.turns: Turns = LiveTurns(VirtualClock())
        self.room = room
        self.frames: list[Frame] = []
        self.dropped = 0
        self._waiting: list[Wakeup] = []

    def deliver(self, frames: Sequence[Frame]) -> int:
        count = min(len(frames), self.room - len(self.frames))
        self.frames += frames[:count]
        return count

    def drop(self, frames: Sequence[Frame]) -> None:
        self.dropped += len(frames)

    def when_room(self, wakeup: Wakeup) -> None:
        self._waiting.append(wakeup)

    def take(self) -> list[Frame]:
        frames, self.frames = self.frames, []
        waiting, self._waiting = self._waiting, []
        for wakeup in waiting:
            wakeup.notify()
        return frames


def frame(destination: bytes, source: bytes, number: int = 0) -> Frame:
    return Frame(destination + source + b"\x88\xb5" + number.to_bytes(4, "big"))


def joined(switch: VirtualSwitch, *stations: Hand) -> None:
    for station in stations:
        switch.port(station.address.hex()).plug(station)


async def test_unknown_and_group_addresses_go_to_every_other_port() -> None:
    switch, a, b, c = VirtualSwitch(), Hand(A), Hand(B), Hand(C)
    joined(switch, a, b, c)
    frames = [frame(B, A), frame(BROADCAST, A), frame(b"\1" + bytes(5), A)]
    await switch.ports[0].send(frames)
    assert a.take() == []
    assert b.take() == c.take() == frames
    assert switch.addresses == {A: A.hex()}
    assert switch.ports[0].statistics().flooded == 3


async def test_a_known_address_gets_its_frames_alone_and_in_order() -> None:
    switch, a, b, c = VirtualSwitch(), Hand(A), Hand(B), Hand(C)
    joined(switch, a, b, c)
    await switch.ports[1].send([frame(A, B)])
    assert len(c.take()) == 1
    some = [frame(B, A, 0), frame(B, A, 1), frame(C, A, 2), frame(B, A, 3), frame(BROADCAST, A, 4), frame(B, A, 5)]
    await switch.ports[0].send(some)
    assert b.take() == some
    assert c.take() == [some[2], some[4]]


async def test_a_frame_is_never_sent_back_and_a_station_that_moves_is_found() -> None:
    switch, a, b = VirtualSwitch(), Hand(A), Hand(B)
    joined(switch, a, b)
    await switch.ports[0].send([frame(B, A), frame(A, A)])
    assert a.take() == []
    await switch.ports[1].send([frame(B, A)])
    assert switch.addresses == {A: B.hex()}


async def test_the_switch_remembers_so_many_addresses_and_no_group() -> None:
    switch, a, b = VirtualSwitch(max_addresses=3), Hand(A, 1000), Hand(B, 1000)
    joined(switch, a, b)
    await switch.ports[0].send([frame(B, bytes((2, 1, 0, 0, 0, number))) for number in range(50)])
    await switch.ports[0].send([frame(B, BROADCAST)])
    assert list(switch.addresses) == [bytes((2, 1, 0, 0, 0, number)) for number in (47, 48, 49)]
    with pytest.raises(ConfigurationError, match="at least 1 address"):
        VirtualSwitch(max_addresses=0)


async def test_a_lossless_switch_waits_for_room_and_loses_nothing() -> None:
    switch, a, b = VirtualSwitch(), Hand(A), Hand(B, room=3)
    joined(switch, a, b)
    frames = [frame(B, A, number) for number in range(20)]
    came: list[Frame] = []
    async with anyio.create_task_group() as group:
        group.start_soon(switch.ports[0].send, frames)
        while len(came) < 20:
            await anyio.wait_all_tasks_blocked()
            assert 1 <= len(b.frames) <= 3
            came += b.take()
    assert came == frames
    assert switch.ports[1].statistics().sent == 20
    assert switch.ports[1].statistics().dropped == b.dropped == 0


async def test_waits_that_are_given_up_leave_nothing_at_the_port_that_is_full() -> None:
    switch, a, b = VirtualSwitch(), Hand(A), Hand(B, room=0)
    joined(switch, a, b)
    for _ in range(5):
        async with anyio.create_task_group() as group:
            group.start_soon(switch.ports[0].send, [frame(B, A)])
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
    assert len(set(b._waiting)) == 1


async def test_another_switch_drops_and_counts_what_is_beyond_the_queue() -> None:
    switch, a, b = VirtualSwitch(lossless=False), Hand(A), Hand(B, room=3)
    joined(switch, a, b)
    frames = [frame(B, A, number) for number in range(20)]
    await switch.ports[0].send(frames)
    assert b.take() == frames[:3]
    assert switch.ports[1].statistics().dropped == b.dropped == 17
    assert switch.ports[1].statistics().sent == 3


async def test_a_loopback_sends_back_and_waits_for_room() -> None:
    loopback, a = Loopback(), Hand(A, room=2)
    loopback.plug(a)
    frames = [frame(A, A, number) for number in range(5)]
    came: list[Frame] = []
    async with anyio.create_task_group() as group:
        group.start_soon(loopback.send, frames)
        while len(came) < 5:
            await anyio.wait_all_tasks_blocked()
            came += a.take()
    assert came == frames


def test_a_port_and_a_loopback_are_for_one_adapter() -> None:
    for backend in (VirtualSwitch().port("left"), Loopback()):
        backend.plug(Hand(A))
        with pytest.raises(ConfigurationError, match=r"one adapter|has an adapter already"):
            backend.plug(Hand(B))
