"""The mouse: a guest that writes its bytes by hand, the driver, and either side lying to the other."""

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
from channels.devices.input import MouseDevice
from channels.drivers.framework import run_drivers
from channels.drivers.input import MouseDriver, MouseEvent
from channels.protocol.input import REPORT_DESCRIPTOR, MouseButton, MouseDeviceInfo, MouseInputReport, MouseResponse
from channels.protocol.packet import pack_pipe

from .device_stage import Lying, answers, by_hand, driven, hosting, reopened, serving
from .hand_guest import HandGuest, Rings

REQUEST = bytes.fromhex("00000000 04000000 00000200")
BAD_REQUEST = bytes.fromhex("00000000 04000000 0df0ad0b")
ACK = bytes.fromhex("03000000 01000000 00")
ACCEPTED = bytes.fromhex("01000000 05000000 00000200 01")
REFUSED = bytes.fromhex("01000000 05000000 0df0ad0b 00")
DEVICE_INFO = (
    bytes.fromhex("02000000 a9000000 20000000 5e04 2106 0100")
    + bytes(22)
    + bytes.fromhex("09 21 0101 00 01 22 4300")
    + REPORT_DESCRIPTOR.ljust(128, b"\0")
)
BOTH_SEEDS = pytest.mark.parametrize("seed", [None, 3])


def pipe(data: bytes) -> bytes:
    return struct.pack("<II", 1, len(data)) + data


async def told(guest: HandGuest, rings: Rings) -> list[bytes]:
    """What the host has said since the last time."""
    found = []
    for kind, _, payload in await answers(guest, rings):
        pipe_type, length = struct.unpack_from("<II", payload)
        assert (kind, pipe_type) == (6, 1)
        found.append(payload[8 : 8 + length])
    return found


async def accept(guest: HandGuest, rings: Rings) -> None:
    rings.send(pipe(REQUEST))
    assert await told(guest, rings) == [ACCEPTED, DEVICE_INFO]
    rings.send(pipe(ACK))
    assert await told(guest, rings) == []


# by hand


async def test_request_response_device_info_ack_then_reports() -> None:
    mouse = MouseDevice()
    async with by_hand(mouse) as (guest, rings):
        rings.send(pipe(REQUEST))
        assert await told(guest, rings) == [ACCEPTED, DEVICE_INFO]
        assert not mouse.is_ready
        rings.send(pipe(ACK))
        assert await told(guest, rings) == []
        assert mouse.is_ready
        await mouse.move(0x1234, 0x7FFF)
        await mouse.click(MouseButton.RIGHT)
        await mouse.scroll(-2)
        await mouse.press(MouseButton.FIFTH)
        assert [report.hex(" ", 4) for report in await told(guest, rings)] == [
            bytes.fromhex(f"04000000 07000000 {report}").hex(" ", 4)
            for report in (
                "00 3412 ff7f 0000",
                "02 3412 ff7f 0000",
                "00 3412 ff7f 0000",
                "00 3412 ff7f feff",
                "10 3412 ff7f 0000",
            )
        ]


async def test_another_version_is_refused_and_the_host_waits_for_another_request() -> None:
    async with by_hand(MouseDevice()) as (guest, rings):
        for _ in range(2):
            rings.send(pipe(BAD_REQUEST))
            assert await told(guest, rings) == [REFUSED]
        await accept(guest, rings)


async def test_a_guest_may_ask_again_at_any_time() -> None:
    mouse = MouseDevice()
    async with by_hand(mouse) as (guest, rings):
        await accept(guest, rings)
        await accept(guest, rings)
        rings.send(pipe(REQUEST))
        rings.send(pipe(REQUEST))
        assert await told(guest, rings) == [ACCEPTED, DEVICE_INFO] * 2
        assert not mouse.is_ready
        await accept(guest, rings)
        assert mouse.is_ready


async def test_a_guest_that_does_not_read_makes_the_call_wait_and_buttons_are_up_for_the_next_one() -> None:
    mouse = MouseDevice(depth=4)
    moves = 0

    async def move() -> None:
        nonlocal moves
        await mouse.press()
        for x in range(500):
            await mouse.move(x, 0)
            moves += 1

    async with by_hand(mouse) as (guest, rings):
        await accept(guest, rings)
        async with anyio.create_task_group() as group:
            group.start_soon(move)
            await guest.partition.settled()
            waits_at = moves
            assert 4 <= waits_at < 500
            again = await reopened(guest)
            assert moves == waits_at
            await accept_and_see(guest, again, waits_at)
            group.cancel_scope.cancel()


async def accept_and_see(guest: HandGuest, rings: Rings, x: int) -> None:
    """The first report has this place and no button."""
    rings.send(pipe(REQUEST))
    rings.send(pipe(ACK))
    accepted, device_info, first, *_ = await told(guest, rings)
    assert (accepted, device_info) == (ACCEPTED, DEVICE_INFO)
    assert first == bytes.fromhex("04000000 07000000 00") + struct.pack("<HHh", x, 0, 0)


HOSTILE = {
    "an ack before a request": [pipe(ACK)],
    "an ack after a refusal": [pipe(BAD_REQUEST), pipe(ACK)],
    "an ack twice": [pipe(REQUEST), pipe(ACK), pipe(ACK)],
    "a type that there is not": [pipe(bytes.fromhex("09000000 00000000"))],
    "the host's own words": [pipe(REQUEST), pipe(ACK), pipe(ACCEPTED)],
    "a header that is cut short": [pipe(b"\0\0\0\0")],
    "a body that is cut short": [pipe(REQUEST[:10])],
    "an empty message": [pipe(b"")],
    "no pipe header": [b""],
    "a pipe header that promises too much": [struct.pack("<II", 1, 4000) + REQUEST],
    "another pipe packet": [struct.pack("<II", 3, 12) + REQUEST],
}


@pytest.mark.parametrize("what", HOSTILE)
async def test_a_guest_that_breaks_a_rule_loses_this_channel_alone(what: str) -> None:
    mouse = MouseDevice()
    async with by_hand(mouse) as (guest, rings):
        for payload in HOSTILE[what]:
            rings.send(payload)
        with capture_logs() as logs:
            await guest.signal(1)
            await guest.partition.settled()
        assert [(log["event"], log["channel_id"]) for log in logs] == [("channel_ended", 1)]
        assert not mouse.is_ready
        await accept(guest, await reopened(guest))


@settings(max_examples=25)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=24), st.binary(max_size=24).map(pipe), st.sampled_from([*map(pipe, (REQUEST, ACK))])
        ),
        min_size=1,
        max_size=8,
    )
)
async def test_whatever_a_guest_says_it_is_answered_or_loses_its_channel(payloads: list[bytes]) -> None:
    async with by_hand(MouseDevice()) as (guest, rings):
        for payload in payloads:
            rings.send(payload)
        for answer in await told(guest, rings):
            assert answer == DEVICE_INFO or answer[:8] == ACCEPTED[:8]
        await accept(guest, await reopened(guest))


@pytest.mark.parametrize(("x", "y"), [(-1, 0), (0, -1), (32768, 0), (0, 32768)])
async def test_a_place_off_the_screen_is_refused(x: int, y: int) -> None:
    with pytest.raises(ValueError, match="is 0 to 32767, not"):
        await MouseDevice().move(x, y)


async def test_a_button_or_a_wheel_that_cannot_be_is_refused_and_a_mouse_that_nobody_serves_says_so() -> None:
    mouse = MouseDevice()
    for call in (mouse.press, mouse.release, mouse.click):
        with pytest.raises(ValueError, match="5 is not a valid MouseButton"):
            await call(5)  # type: ignore[arg-type]
        with pytest.raises(HostError, match="nobody serves this mouse"):
            await call()
    for steps in (-32768, 32768):
        with pytest.raises(ValueError, match="up to 32767 steps"):
            await mouse.scroll(steps)


# with the driver


@BOTH_SEEDS
async def test_what_the_mouse_does_arrives_in_order(seed: int | None) -> None:
    mouse, driver = MouseDevice(), MouseDriver(versions=(0x0BADF00D, 0x00020000))
    events: list[MouseEvent] = []

    async def use() -> None:
        async for event in driver:
            events.append(event)
            if len(events) == 6:
                break
        assert driver.version == 0x00020000
        assert driver.info == MouseDeviceInfo()

    async with serving(mouse, seed=seed) as partition:
        run = partition.start(0, driven(driver, by=use))
        await mouse.move(100, 32767)
        await mouse.press(MouseButton.MIDDLE)
        await mouse.click()
        await mouse.scroll(-32767)
        await mouse.release(MouseButton.MIDDLE)
        await run.wait()
    assert events == [
        MouseEvent(0, 100, 32767, 0),
        MouseEvent(4, 100, 32767, 0),
        MouseEvent(5, 100, 32767, 0),
        MouseEvent(4, 100, 32767, 0),
        MouseEvent(4, 100, 32767, -32767),
        MouseEvent(0, 100, 32767, 0),
    ]
    assert events[2].is_down(MouseButton.LEFT)
    assert not events[2].is_down(MouseButton.RIGHT)


async def test_a_driver_whose_versions_are_all_refused_says_so() -> None:
    driver = MouseDriver(versions=(0x00010000, 0x00030001))

    async def use() -> None:
        with pytest.raises(ChannelClosed, match=r"the host's mouse accepts none of the versions 1\.0, 3\.1"):
            await driver.next_event()

    async with serving(MouseDevice()) as partition:
        await partition.start(0, driven(driver, by=use)).wait()


@BOTH_SEEDS
async def test_a_driver_that_takes_nothing_lets_the_host_wait_and_nothing_is_lost(seed: int | None) -> None:
    mouse, driver = MouseDevice(depth=3), MouseDriver(depth=2)

    async def use() -> None:
        await driver.wait_ready()
        for x in range(3000):
            assert (await driver.next_event()).x == x

    async with serving(mouse, seed=seed) as partition:
        run = partition.start(0, driven(driver, by=use))
        for x in range(3000):
            await mouse.move(x, 1)
        await run.wait()


@BOTH_SEEDS
async def test_the_mouse_works_for_one_guest_after_the_other_until_it_is_rescinded(seed: int | None) -> None:
    mouse = MouseDevice()
    seen: list[int] = []

    async with hosting(seed) as (partition, server):

        async def guest(vp: object) -> None:
            async with VmbusClient(partition.vp(0).guest_synic()) as client:
                for _ in range(3):
                    driver = MouseDriver()
                    async with run_drivers(client, driver):
                        seen.append((await driver.next_event()).x)
                driver = MouseDriver()
                async with run_drivers(client, driver):
                    await driver.wait_ready()
                    async for event in driver:
                        seen.append(event.x)

        async with serve_devices(server, mouse):
            run = partition.start(0, guest)
            for x in range(3):
                await mouse.move(x, 0)
                await partition.settled()  # taken, and there is another guest
        await run.wait()
    assert seen == [0, 1, 2]


def info(**fields: object) -> bytes:
    return MouseDeviceInfo(**fields).pack()  # type: ignore[arg-type]


REPORT = MouseInputReport(bytes(7)).pack()
LIES = {
    "device info instead of a response": [DEVICE_INFO],
    "a response about another version": [MouseResponse(0x00030000, 1).pack()],
    "a report instead of device info": [ACCEPTED, REPORT],
    "a response twice": [ACCEPTED, DEVICE_INFO, ACCEPTED],
    "a report that is cut short": [ACCEPTED, DEVICE_INFO, MouseInputReport(bytes(6)).pack()],
    "a type that there is not": [ACCEPTED, DEVICE_INFO, bytes.fromhex("05000000 00000000")],
    "a report descriptor that is longer than what there is": [ACCEPTED, info(report_length=129)],
    "no HID descriptor": [ACCEPTED, info(hid_type=0)],
    "a report descriptor that is none": [ACCEPTED, MouseDeviceInfo.of(b"\xc0").pack()],
    "nothing": [b""],
}


@pytest.mark.parametrize("what", LIES)
async def test_a_host_that_breaks_a_rule_ends_the_driver_with_a_protocol_error(what: str) -> None:
    driver = MouseDriver()

    async def take() -> None:
        while True:
            await driver.next_event()

    async def use() -> None:
        with pytest.raises(ChannelClosed, match="expected"):
            await take()
        await anyio.sleep_forever()

    lies = [pack_pipe(data) for data in LIES[what]]
    async with serving(Lying(MouseDevice().offer, lies)) as partition:
        run = partition.start(0, driven(driver, by=use))
        with pytest.raises(ProtocolError):
            await run.wait()
    assert driver.version is None


async def test_reports_are_read_as_the_device_s_own_descriptor_lays_them_out() -> None:
    """Two signed relative bytes and eight buttons after them; a wheel of 0x80 is below its minimum."""
    descriptor = bytes.fromhex("0501 0930 0938 1581 257f 7508 9502 8106 0509 1901 2908 1500 2501 7501 9508 8102")
    driver = MouseDriver()
    told = [ACCEPTED, MouseDeviceInfo.of(descriptor).pack()]
    told += [MouseInputReport(bytes.fromhex(report)).pack() for report in ("ff0281", "058000")]

    async def use() -> None:
        assert await driver.next_event() == MouseEvent(0x81, -1, 0, 2)
        assert await driver.next_event() == MouseEvent(0, 5, 0, 0)

    async with serving(Lying(MouseDevice().offer, [pack_pipe(data) for data in told])) as partition:
        await partition.start(0, driven(driver, by=use)).wait()


TRACES: dict[int, list[bytes]] = {}
"""By seed, from whichever loop came first."""


@pytest.mark.parametrize("seed", [0, 1, 2])
async def test_the_same_seed_gives_the_same_trace_on_both_loops(seed: int) -> None:
    events: list[AnyEvent] = []
    mouse, driver = MouseDevice(depth=3), MouseDriver(depth=2)

    async def use() -> None:
        for _ in range(60):
            await driver.next_event()

    async with serving(mouse, seed=seed, trace=Trace(events.append)) as partition:
        run = partition.start(0, driven(driver, by=use))
        for number in range(30):
            await mouse.move(number, number)
            await mouse.scroll(1)
        await run.wait()
    trace = [encode_event(event) for event in events]
    assert TRACES.setdefault(seed, trace) == trace
