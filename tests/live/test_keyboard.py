"""The keyboard: a guest that writes its bytes by hand (item 108), the driver, and either side lying to the other."""

from __future__ import annotations

import struct

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from broker import Trace
from broker.errors import ChannelClosed, HostError, ProtocolError
from broker.trace import AnyEvent, encode_event
from channels.client import VmbusClient
from channels.devices import serve_devices
from channels.devices.input import KeyboardDevice
from channels.drivers.framework import run_drivers
from channels.drivers.input import KeyboardDriver
from channels.protocol.input import KeyEvent, KeyFlags, Leds

from ..machines import wire
from .device_stage import Lying, answers, by_hand, driven, hosting, reopened, serving
from .hand_guest import HandGuest, Rings

REQUEST = bytes.fromhex("01000000 00000100")
BAD_REQUEST = bytes.fromhex("01000000 0df0ad0b")
ACCEPTED = bytes.fromhex("02000000 01000000")
REFUSED = bytes.fromhex("02000000 00000000")
IN_BAND, COMPLETION = 6, 0xB
BOTH_SEEDS = pytest.mark.parametrize("seed", [None, 3])

item = pytest.mark.vmbus_item


async def accept(guest: HandGuest, rings: Rings) -> None:
    rings.send(REQUEST)
    assert await answers(guest, rings) == [(IN_BAND, 0, ACCEPTED)]


async def ended(guest: HandGuest) -> None:
    """Channel 1 has ended and can be opened again; channel 2 is as it was."""
    await accept(guest, await reopened(guest))


# by hand


@item(108)
async def test_version_1_0_is_accepted_and_two_key_events_come_with_the_break_flag_for_key_up() -> None:
    keyboard = KeyboardDevice()
    async with by_hand(keyboard) as (guest, rings):
        await accept(guest, rings)
        await keyboard.press(0x1E)
        await keyboard.release(0x1E)
        assert await answers(guest, rings) == [
            (IN_BAND, 0, bytes.fromhex("03000000 1e000000 00000000 00000000")),
            (IN_BAND, 0, bytes.fromhex("03000000 1e000000 02000000 00000000")),
        ]


@item(108)
async def test_another_version_is_answered_0_and_the_host_waits_for_another_request() -> None:
    keyboard = KeyboardDevice()
    async with by_hand(keyboard) as (guest, rings):
        for _ in range(2):
            rings.send(BAD_REQUEST)
            assert await answers(guest, rings) == [(IN_BAND, 0, REFUSED)]
            assert not keyboard.is_ready
        await accept(guest, rings)
        assert keyboard.is_ready
        await keyboard.key(0x4B, extended=True)
        events = [payload for _, _, payload in await answers(guest, rings)]
        assert events == [struct.pack("<IHHII", 3, 0x4B, 0, flags, 0) for flags in (4, 6)]


async def test_a_completion_is_sent_where_one_is_asked_for_and_nowhere_else() -> None:
    async with by_hand(KeyboardDevice()) as (guest, rings):
        rings.send(REQUEST, 0x1234, completion=True)
        assert await answers(guest, rings) == [(COMPLETION, 0x1234, b""), (IN_BAND, 0, ACCEPTED)]
        rings.send(bytes.fromhex("04000000 07000000"), 5, completion=True)
        rings.send(bytes.fromhex("04000000 01000000"), 6)
        assert await answers(guest, rings) == [(COMPLETION, 5, b"")]


async def test_a_guest_may_ask_again_and_what_it_has_not_taken_is_dropped() -> None:
    keyboard = KeyboardDevice()
    async with by_hand(keyboard) as (guest, rings):
        await accept(guest, rings)
        rings.send(BAD_REQUEST)
        assert await answers(guest, rings) == [(IN_BAND, 0, REFUSED)]
        assert not keyboard.is_ready
        await accept(guest, rings)
        await keyboard.key(0x1E)
        assert len(await answers(guest, rings)) == 2


async def test_a_guest_that_does_not_read_fills_its_ring_then_the_queue_and_then_the_call_waits() -> None:
    """A ring of one page takes 102 events of 40 bytes."""
    keyboard = KeyboardDevice(depth=8)
    pressed = 0

    async def press() -> None:
        nonlocal pressed
        for code in range(400):
            await keyboard.press(code)
            pressed += 1

    async with by_hand(keyboard) as (guest, rings):
        await accept(guest, rings)
        async with anyio.create_task_group() as group:
            group.start_soon(press)
            await guest.partition.settled()
            waits_at = pressed
            assert 8 <= waits_at < 400
            await guest.partition.settled()
            assert pressed == waits_at
            await guest.say(wire.close_channel(1), wire.gpadl_teardown(1, 1))
            await guest.expect(wire.gpadl_torndown(1))
            assert pressed == waits_at, "a call waits until there is a guest again"
            again = await guest.open(1)
            again.send(REQUEST)
            accepted, first, *_ = [payload for _, _, payload in await answers(guest, again)]
            assert accepted == ACCEPTED
            assert struct.unpack_from("<H", first, 4) == (waits_at,), "what the guest had not taken is gone"
            group.cancel_scope.cancel()


HOSTILE = {
    "a type that there is not": [REQUEST, bytes.fromhex("09000000 00000000")],
    "LEDs before a request": [bytes.fromhex("04000000 07000000")],
    "LEDs after a refusal": [BAD_REQUEST, bytes.fromhex("04000000 07000000")],
    "the host's own words": [REQUEST, ACCEPTED],
    "an event": [REQUEST, bytes.fromhex("03000000 1e000000 00000000 00000000")],
    "no payload": [b""],
    "a request that is too long": [REQUEST.ljust(264, b"\0")],
}


@pytest.mark.parametrize("what", HOSTILE)
async def test_a_guest_that_breaks_a_rule_loses_this_channel_alone(what: str) -> None:
    keyboard = KeyboardDevice()
    async with by_hand(keyboard) as (guest, rings):
        for payload in HOSTILE[what]:
            rings.send(payload)
        with capture_logs() as logs:
            await guest.signal(1)
            await guest.partition.settled()
        assert [(log["event"], log["channel_id"]) for log in logs] == [("channel_ended", 1)]
        assert not keyboard.is_ready
        await ended(guest)


async def test_a_packet_that_is_no_plain_data_ends_the_channel() -> None:
    async with by_hand(KeyboardDevice()) as (guest, rings):
        await accept(guest, rings)
        at = struct.unpack("<I", guest.memory.read(rings.gpns[0] << 12, 4))[0]
        rings.send(REQUEST)
        guest.memory.write((rings.gpns[1] << 12) + at, struct.pack("<H", COMPLETION))
        await guest.signal(1)
        await ended(guest)


async def test_a_storm_of_leds_is_taken_and_the_last_one_counts() -> None:
    keyboard = KeyboardDevice()
    async with by_hand(keyboard) as (guest, rings):
        await accept(guest, rings)
        for number in range(100):
            rings.send(struct.pack("<IHH", 4, number, 0))
        assert await answers(guest, rings) == []
        assert keyboard.leds == 99
        assert await keyboard.wait_leds(Leds(99)) == 99


@settings(max_examples=25)
@given(st.lists(st.one_of(st.binary(max_size=24), st.sampled_from([REQUEST, BAD_REQUEST])), min_size=1, max_size=12))
async def test_whatever_a_guest_says_it_is_answered_or_loses_its_channel(payloads: list[bytes]) -> None:
    async with by_hand(KeyboardDevice()) as (guest, rings):
        for number, payload in enumerate(payloads):
            rings.send(payload, number, completion=bool(number & 1))
        for kind, _, payload in await answers(guest, rings):
            assert (kind, payload) in {(COMPLETION, b""), (IN_BAND, ACCEPTED), (IN_BAND, REFUSED)}
        await ended(guest)


async def test_a_keyboard_that_nobody_serves_says_so() -> None:
    keyboard = KeyboardDevice()
    for call in (keyboard.wait_ready, keyboard.wait_leds):
        with pytest.raises(HostError, match="nobody serves this keyboard"):
            await call()
    with pytest.raises(ValueError, match="does not fit"):
        await keyboard.press(0x10000)
    with pytest.raises(ValueError, match="at least one event"):
        KeyboardDevice(depth=0)
    with pytest.raises(HostError, match="nobody runs this keyboard's driver yet"):
        await KeyboardDriver().next_event()


# with the driver


@BOTH_SEEDS
async def test_what_is_typed_arrives_in_order_and_leds_go_back(seed: int | None) -> None:
    keyboard, driver = KeyboardDevice(), KeyboardDriver()

    async def use() -> None:
        await driver.set_leds(Leds.CAPS_LOCK | Leds.NUM_LOCK)
        events = [await driver.next_event() for _ in range(12)]
        assert [(event.code, KeyFlags(event.flags)) for event in events] == [
            (0x2A, KeyFlags(0)), (0x1E, KeyFlags(0)), (0x1E, KeyFlags.BREAK), (0x2A, KeyFlags.BREAK),
            (0x1C, KeyFlags(0)), (0x1C, KeyFlags.BREAK),
            (0xE9, KeyFlags.UNICODE), (0xE9, KeyFlags.UNICODE | KeyFlags.BREAK),
            (0xD83D, KeyFlags.UNICODE), (0xD83D, KeyFlags.UNICODE | KeyFlags.BREAK),
            (0xDE00, KeyFlags.UNICODE), (0xDE00, KeyFlags.UNICODE | KeyFlags.BREAK),
        ]  # fmt: skip
        assert await driver.next_event() == KeyEvent(0x61, KeyFlags.UNICODE)

    async with serving(keyboard, seed=seed) as partition:
        run = partition.start(0, driven(driver, by=use))
        assert await keyboard.wait_leds(Leds.CAPS_LOCK | Leds.NUM_LOCK) == 6
        await keyboard.type("A\né\N{GRINNING FACE}")
        await keyboard.type("a", unicode=True)
        await run.wait()
        assert not keyboard.is_ready


@BOTH_SEEDS
async def test_a_driver_tries_its_versions_until_one_is_accepted(seed: int | None) -> None:
    keyboard, driver = KeyboardDevice(), KeyboardDriver(versions=(0x0BADF00D, 0x00020000, 0x00010000))

    async def use() -> None:
        await driver.wait_ready()
        assert driver.version == 0x00010000
        assert await driver.next_event() == KeyEvent(1)

    async with serving(keyboard, seed=seed) as partition:
        run = partition.start(0, driven(driver, by=use))
        await keyboard.press(1)
        await run.wait()


async def test_a_driver_whose_versions_are_all_refused_says_so() -> None:
    driver = KeyboardDriver(versions=(0x00020000,))

    async def use() -> None:
        with pytest.raises(ChannelClosed, match=r"the host's keyboard accepts none of the versions 2\.0"):
            await driver.wait_ready()
        with pytest.raises(ChannelClosed, match="accepts none"):
            await driver.set_leds(Leds(0))

    async with serving(KeyboardDevice()) as partition:
        await partition.start(0, driven(driver, by=use)).wait()


@BOTH_SEEDS
async def test_keys_wait_for_the_next_guest_and_its_leds_start_dark(seed: int | None) -> None:
    keyboard = KeyboardDevice()
    codes = []

    async def guest_once(client: VmbusClient) -> None:
        driver = KeyboardDriver()
        async with run_drivers(client, driver):
            codes.append((await driver.next_event()).code)
            await driver.set_leds(Leds.CAPS_LOCK)
            codes.append((await driver.next_event()).code)

    async with serving(keyboard, seed=seed) as partition:

        async def guest(vp: object) -> None:
            async with VmbusClient(partition.vp(0).guest_synic()) as client:
                for _ in range(3):
                    await guest_once(client)

        run = partition.start(0, guest)
        for code in (1, 3, 5):
            await keyboard.press(code)
            await keyboard.wait_leds(Leds.CAPS_LOCK)
            await keyboard.press(code + 1)
            await keyboard.wait_leds(Leds(0)) if code < 5 else await run.wait()
    assert codes == [1, 2, 3, 4, 5, 6]


@BOTH_SEEDS
async def test_a_guest_that_takes_no_events_lets_the_host_wait_and_nothing_is_lost(seed: int | None) -> None:
    keyboard, driver = KeyboardDevice(depth=4), KeyboardDriver(depth=2)

    async def use() -> None:
        await driver.wait_ready()
        await driver.set_leds(Leds.NUM_LOCK)
        for code in range(3000):
            assert (await driver.next_event()).code == code

    async with serving(keyboard, seed=seed) as partition:
        run = partition.start(0, driven(driver, by=use))
        for code in range(3000):
            await keyboard.press(code)
        await run.wait()


@BOTH_SEEDS
async def test_a_rescinded_keyboard_ends_the_iteration_of_its_driver(seed: int | None) -> None:
    driver, keyboard = KeyboardDriver(), KeyboardDevice()
    codes = []

    async def use() -> None:
        async for event in driver:
            codes.append(event.code)

    async with hosting(seed) as (partition, server):
        async with serve_devices(server, keyboard):
            run = partition.start(0, driven(driver, by=use))
            await keyboard.key(9)
            await partition.settled()
        await run.wait()
    assert codes == [9, 9]
    with pytest.raises(ChannelClosed):
        await driver.next_event()


LIES = {
    "an event instead of a response": [bytes.fromhex("03000000 1e000000 00000000 00000000")],
    "a response twice": [ACCEPTED, ACCEPTED],
    "a type that there is not": [ACCEPTED, bytes.fromhex("07000000 00000000")],
    "an event that is cut short": [ACCEPTED, bytes.fromhex("03000000 1e000000")],
    "the guest's own words": [REQUEST],
    "nothing": [b""],
    "an event that is too long": [ACCEPTED, bytes.fromhex("03000000").ljust(264, b"\0")],
}


@pytest.mark.parametrize("what", LIES)
async def test_a_host_that_breaks_a_rule_ends_the_driver_with_a_protocol_error(what: str) -> None:
    driver = KeyboardDriver()

    async def take() -> None:
        while True:
            await driver.next_event()

    async def use() -> None:
        with pytest.raises(ChannelClosed, match=r"[Kk]ey"):
            await take()
        await anyio.sleep_forever()

    async with serving(Lying(KeyboardDevice().offer, LIES[what])) as partition:
        run = partition.start(0, driven(driver, by=use))
        with pytest.raises(ProtocolError, match=r"[Kk]ey"):
            await run.wait()
    assert driver.end_reason is not None


TRACES: dict[int, list[bytes]] = {}
"""By seed, from whichever loop came first."""


@pytest.mark.parametrize("seed", [0, 1, 2])
async def test_the_same_seed_gives_the_same_trace_on_both_loops(seed: int) -> None:
    events: list[AnyEvent] = []
    keyboard, driver = KeyboardDevice(depth=3), KeyboardDriver(depth=2)

    async def use() -> None:
        for _ in range(40):
            await driver.next_event()
        await driver.set_leds(Leds.CAPS_LOCK)
        await driver.next_event()

    async with serving(keyboard, seed=seed, trace=Trace(events.append)) as partition:
        run = partition.start(0, driven(driver, by=use))
        await keyboard.type("the quick brown fox "[:20])
        await keyboard.wait_leds(Leds.CAPS_LOCK)
        await keyboard.press(1)
        await run.wait()
    trace = [encode_event(event) for event in events]
    assert TRACES.setdefault(seed, trace) == trace
