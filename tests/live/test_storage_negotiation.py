"""A storage controller agrees on a version, answers what comes in the wrong order, and offers sub-channels (vmbus.md 8.9)."""

from __future__ import annotations

import struct
from uuid import UUID

import pytest

from broker.errors import ChannelClosed, ConfigurationError, OfferRefused
from channels.devices import DeviceChannel
from channels.devices.storage import MemoryDisk, ScsiController
from channels.protocol.packet import pack_packet

from .raw_storage import (
    BEGIN,
    END,
    EXECUTE,
    INVALID_PARAMETER,
    PROPERTIES,
    REVISION_MISMATCH,
    SUBCHANNELS,
    SUCCESS,
    VERSION,
    WRONG_STATE,
    RawStorage,
    raw_storage,
)

item = pytest.mark.vmbus_item
VERSIONS = (0x0200, 0x0402, 0x0501, 0x0600, 0x0602)
MULTI = (0x0501, 0x0600, 0x0602)
KNOWN = {BEGIN: b"", VERSION: struct.pack("<H", 0x0602), PROPERTIES: b"", END: b""}
TEST_UNIT_READY = "000000000000"
each_version = pytest.mark.parametrize("version", VERSIONS, ids=hex)
each_multi = pytest.mark.parametrize("version", MULTI, ids=hex)


def controller(max_subchannels: int = 4) -> ScsiController:
    return ScsiController(disks={0: MemoryDisk(1 << 20)}, max_subchannels=max_subchannels)


def count(number: int) -> bytes:
    return struct.pack("<H", number)


@each_version
@pytest.mark.parametrize("size", [48, 64])
async def test_every_version_is_agreed_on_and_says_its_properties(version: int, size: int) -> None:
    device = controller()
    async with raw_storage(device, None) as guest:
        assert await guest.say(BEGIN, size=size) == (SUCCESS, bytes(size - 12))
        assert device.version is None
        status, body = await guest.say(VERSION, struct.pack("<H", version), size)
        assert (status, body[:4]) == (SUCCESS, struct.pack("<HH", version, 0))
        status, body = await guest.say(PROPERTIES, size=size)
        assert status == SUCCESS
        subchannels, flags = (4, 1) if version in MULTI else (0, 0)
        assert body[:24] == struct.pack("<IHHIIQ", 0, subchannels, 0, flags, 0x40000, 0)
        assert await guest.say(END, size=size) == (SUCCESS, bytes(size - 12))
        assert device.version == version
        assert (await guest.srb(TEST_UNIT_READY, size=size)).srb_status == 1


@item(109)
async def test_an_unknown_version_is_refused_and_the_guest_tries_the_next() -> None:
    async with raw_storage(controller(), None) as guest:
        await guest.say(BEGIN)
        for version in (0, 0x0603, 0x0601, 0x0500, 0xFFFF):
            status, body = await guest.say(VERSION, struct.pack("<H", version))
            assert (status, body[:2]) == (REVISION_MISMATCH, struct.pack("<H", version))
        assert (await guest.say(PROPERTIES))[0] == WRONG_STATE
        for operation in (VERSION, PROPERTIES, END):
            assert (await guest.say(operation, KNOWN[operation]))[0] == SUCCESS


@item(109)
@pytest.mark.parametrize("done", range(5))
async def test_whatever_is_not_due_is_refused_and_changes_nothing(done: int) -> None:
    async with raw_storage(controller(), None) as guest:
        steps = list(KNOWN)
        for operation in steps[:done]:
            assert (await guest.say(operation, KNOWN[operation]))[0] == SUCCESS
        due = {steps[done]} if done < 4 else {EXECUTE, 4, 5, 6, 11}
        due |= {SUBCHANNELS} if done >= 3 else set()
        for operation in {*range(20), 0xFFFF_FFFF} - due:
            assert await guest.say(operation, KNOWN.get(operation, b"")) == (WRONG_STATE, bytes(52)), operation
        for operation in steps[done:]:
            assert (await guest.say(operation, KNOWN[operation]))[0] == SUCCESS
        for operation in (4, 5, 6, 11):
            assert (await guest.say(operation))[0] == SUCCESS
        assert (await guest.srb(TEST_UNIT_READY)).srb_status == 1


@each_multi
@item(109)
@pytest.mark.parametrize("is_before", [True, False], ids=["before the end", "after it"])
async def test_subchannels_are_created_once_and_not_too_many(version: int, is_before: bool) -> None:
    async with raw_storage(controller(3), None) as guest:
        for operation, body in ((BEGIN, b""), (VERSION, struct.pack("<H", version)), (PROPERTIES, b"")):
            await guest.say(operation, body)
        if not is_before:
            await guest.say(END)
        for number in (4, 0xFFFF):
            assert (await guest.say(SUBCHANNELS, count(number)))[0] == INVALID_PARAMETER
        assert (await guest.say(SUBCHANNELS, count(2)))[0] == SUCCESS
        for number in (0, 2, 3, 4):
            assert (await guest.say(SUBCHANNELS, count(number)))[0] == INVALID_PARAMETER
        channels = await subchannels(guest, 2)
        if is_before:
            status, _ = await guest.say(EXECUTE, bytes(52), channel=channels[0])
            assert status == WRONG_STATE, "requests wait for the end of the initialisation"
            assert (await guest.say(END))[0] == SUCCESS
        assert (await guest.say(SUBCHANNELS, count(1)))[0] == INVALID_PARAMETER
        for channel in channels:
            assert (await guest.srb(TEST_UNIT_READY, channel=channel)).srb_status == 1
            assert (await guest.say(4, channel=channel))[0] == SUCCESS
            for operation in (BEGIN, VERSION, PROPERTIES, END, SUBCHANNELS, 1, 2, 99):
                assert (await guest.say(operation, channel=channel))[0] == WRONG_STATE


@pytest.mark.parametrize("version", [0x0200, 0x0402], ids=hex)
@item(109)
async def test_there_are_no_subchannels_before_5_1(version: int) -> None:
    async with raw_storage(controller(), version) as guest:
        assert (await guest.say(SUBCHANNELS, count(1)))[0] == INVALID_PARAMETER


async def test_a_server_without_channel_ids_for_subchannels_is_a_status(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(self: DeviceChannel, count: int) -> None:
        raise OfferRefused("no channel ID is left")

    monkeypatch.setattr(DeviceChannel, "offer_subchannels", refuse)
    async with raw_storage(controller()) as guest:
        assert (await guest.say(SUBCHANNELS, count(1)))[0] == 0xC000_0001
        assert (await guest.srb(TEST_UNIT_READY)).srb_status == 1


async def test_a_guest_that_opens_again_negotiates_again() -> None:
    device = controller()
    async with raw_storage(device) as guest:
        await guest.say(SUBCHANNELS, count(2))
        first, second = await subchannels(guest, 2)
        await guest.client.close(guest.channel)
        for channel in (first, second):
            with pytest.raises(ChannelClosed):
                await channel.receive()
            await guest.client.close(channel)
        guest.channel = await guest.client.open(guest.channel.offer, ring_pages=(5, 5))
        assert device.version is None
        assert (await guest.say(END))[0] == WRONG_STATE
        await guest.negotiate(0x0501)
        assert (await guest.say(SUBCHANNELS, count(2)))[0] == SUCCESS
        await subchannels(guest, 2)


@pytest.mark.parametrize(
    ("payload", "flags", "kind"),
    [
        (bytes(8), 1, 6),
        (struct.pack("<III", VERSION, 1, 0) + b"\x02\x06\0\0", 0, 6),
        (struct.pack("<III", 1, 0, 0).ljust(64, b"\0"), 0, 11),
        (struct.pack("<III", EXECUTE, 1, 0).ljust(40, b"\0"), 1, 6),
    ],
    ids=["no header", "no completion wanted", "a completion", "an SRB that is too short"],
)
async def test_a_packet_that_no_answer_can_help_ends_its_channel_alone(payload: bytes, flags: int, kind: int) -> None:
    async with raw_storage(controller()) as guest:
        await guest.say(SUBCHANNELS, count(1))
        (channel,) = await subchannels(guest, 1)
        await channel.send_packet(pack_packet(kind, payload, 7, flags))
        assert (await guest.srb(TEST_UNIT_READY)).srb_status == 1
        await guest.client.close(channel)
        channel = await guest.client.open(channel.offer)
        assert (await guest.srb(TEST_UNIT_READY, channel=channel)).srb_status == 1


def test_controllers_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="LUNs are 0 to 255, not 256"):
        ScsiController(disks={256: MemoryDisk(512)})
    with pytest.raises(ConfigurationError, match="sub-channels, not -1"):
        ScsiController(UUID(int=1), max_subchannels=-1)


async def subchannels(guest: RawStorage, number: int) -> list:  # type: ignore[type-arg]
    client = guest.client
    offers = [
        await client.wait_offer(guest.channel.offer.interface_id, subchannel=index) for index in range(1, number + 1)
    ]
    return [await client.open(offer) for offer in offers]
