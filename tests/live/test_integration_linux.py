"""The host's devices and a guest that answers with the very bytes that Linux sends (vmbus.md 8.12).

Linux hands the whole padded packet back, changed in place, with the ring's transaction ID that it came with.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import anyio
import pytest

from broker.clock import TICKS_PER_SECOND
from broker.errors import ChannelClosed
from channels.client import GuestChannel, VmbusClient
from channels.devices.integration import (
    FileCopyDevice,
    GuestRefused,
    HeartbeatDevice,
    IntegrationDevice,
    KvpDevice,
    ShutdownDevice,
    TimeSyncDevice,
    VssDevice,
)
from channels.protocol.integration.common import IcStatus
from channels.protocol.integration.heartbeat import HeartbeatState
from channels.protocol.integration.kvp import KvpPool

from .integration_pair import hosting, in_turn

RING = (4, 4)
"""Pages: 12288 data bytes each way."""
FAIL = 0x8000_4005

Answer = Callable[[bytearray], int]
"""Changes the IC body (which starts at byte 28 of the packet's payload) in place, and gives the status."""


async def take(channel: GuestChannel, most: int = 4096) -> tuple[bytearray, int]:
    """One packet, and its transaction ID. It has to fit Linux's buffer, descriptor included."""
    packet = await channel.receive()
    assert 16 + len(packet.payload) <= most
    assert len(packet.payload) % 8 == 0
    return bytearray(packet.payload), packet.transaction_id


def agree(raw: bytearray, version: tuple[int, int]) -> bytes:
    """Linux's answer to a negotiation, also where it knows nothing of what is offered (version 0.0)."""
    raw[25] = 5
    if version == (0, 0):
        raw[28:32] = bytes(4)
    else:
        raw[18:20] = struct.pack("<H", 0x10)
        raw[28:44] = struct.pack("<HHIHHHH", 1, 1, 0, 3, 0, *version)
    return bytes(raw)


def answered(raw: bytearray, answer: Answer) -> bytes:
    """Linux's answer to a request."""
    body = raw[28:]
    status = answer(body)
    raw[28:] = body
    raw[20:24] = struct.pack("<I", status)
    raw[25] = 5
    return bytes(raw)


async def linux(
    client: VmbusClient,
    device: IntegrationDevice,
    version: tuple[int, int],
    answers: list[Answer],
    *,
    most: int = 4096,
    daemon_after: int = 0,
) -> None:
    """Negotiate, then one answer after the other."""
    channel = await client.open(await client.wait_offer(device.interface_id), ring_pages=RING)
    raw, number = await take(channel, most)
    await client.guest_synic.turns.sleep_until(daemon_after, ("test", 0))
    await channel.send(agree(raw, version), number)
    for answer in answers:
        raw, number = await take(channel, most)
        await channel.send(answered(raw, answer), number ^ 0x77)  # nobody looks at it


def same(body: bytearray) -> int:
    return 0


def fail(body: bytearray) -> int:
    return FAIL


async def test_a_heartbeat_of_40_bytes_comes_back_with_one_more_and_its_state_as_it_was() -> None:
    device = HeartbeatDevice()

    def beat(body: bytearray) -> int:
        assert len(body) == 44  # the packet is padded
        struct.pack_into("<Q", body, 0, struct.unpack_from("<Q", body)[0] + 1)
        return 0

    async with hosting(device, guest=lambda client: linux(client, device, (3, 0), [beat] * 3)):
        for number in (1, 2):
            assert await device.wait_beat() == number
    assert device.state is HeartbeatState.UNKNOWN
    assert (device.strays, device.missed) == (0, 0)


async def test_a_sample_comes_back_as_it_went() -> None:
    for version in ((3, 0), (4, 0)):
        device = TimeSyncDevice()

        async def guest(
            client: VmbusClient, device: TimeSyncDevice = device, version: tuple[int, int] = version
        ) -> None:
            await linux(client, device, version, [same] * 3)

        async with hosting(device, guest=guest):
            await device.sync()
        assert (device.syncs, device.strays) == (2, 0)


async def test_a_shutdown_driver_that_reads_one_packet_per_event_misses_none() -> None:
    """Facts 3 and 4."""
    device = ShutdownDevice()
    sizes = []

    async def guest(client: VmbusClient) -> None:
        channel = await client.open(await client.wait_offer(device.interface_id), ring_pages=RING)
        channel.incoming.unmask()  # Linux masks nothing here
        seen = 0
        for number in range(6):
            seen = await channel.doorbell.wait(seen)
            packet = channel.incoming.read()
            assert packet is not None
            assert not channel.incoming.commit()
            raw = bytearray(packet.payload)
            sizes.append(struct.unpack_from("<H", raw, 18)[0])
            await channel.send(agree(raw, (3, 2)) if number == 0 else answered(raw, same), packet.transaction_id)

    async with hosting(device, guest=guest) as partition, anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(in_turn, partition.turns, device.shutdown)
    assert sizes == [32, *[2060] * 5]


async def test_key_value_pairs_wait_for_a_daemon_and_come_as_texts() -> None:
    """Facts 2, 7, 8 and 9: sizes count a NUL that Linux does not write."""
    device = KvpDevice()

    def enumerated(key: str, value: str) -> Answer:
        def answer(body: bytearray) -> int:
            raw_key, raw_value = key.encode("utf-16-le"), value.encode("utf-16-le")
            struct.pack_into("<III", body, 8, 1, len(raw_key) + 2, len(raw_value) + 2)
            body[20 : 20 + len(raw_key)] = raw_key
            body[532 : 532 + len(raw_value)] = raw_value
            return 0

        return answer

    def got(value: str) -> Answer:
        def answer(body: bytearray) -> int:
            raw = value[4:].encode("utf-16-le")
            struct.pack_into("<I", body, 4, 1)
            struct.pack_into("<I", body, 12, len(raw) + 2)
            body[528 : 528 + len(raw)] = raw
            return 0

        return answer

    def stored(kind: int, size: int) -> Answer:
        def answer(body: bytearray) -> int:
            assert struct.unpack_from("<BBxxIII", body) == (1, 0, kind, 4, size)
            return 0

        return answer

    answers = [
        *(stored(1, 12), stored(4, 4), stored(8, 8)),
        *(enumerated("OSName", "Debian GNU/Linux"), enumerated("k" * 254, "7" * 1022), lambda body: 0x8007_0103),
        *(got("Debian"), got("Deb"), lambda body: 0x8007_0103),
    ]

    async def guest(client: VmbusClient) -> None:
        await linux(client, device, (4, 0), answers, most=16384, daemon_after=130 * TICKS_PER_SECOND)

    async with hosting(device, guest=guest) as partition:
        await device.set(KvpPool.EXTERNAL, "k", "value")
        assert partition.clock.now() >= 130 * TICKS_PER_SECOND
        await device.set(KvpPool.EXTERNAL, "k", 7)
        await device.set(KvpPool.EXTERNAL, "k", 1 << 40)
        assert await device.items(KvpPool.AUTO) == {"OSName": "Debian GNU/Linux", "k" * 254: "7" * 1022}
        assert await device.get(KvpPool.AUTO, "OSName") == "an"
        assert await device.get(KvpPool.AUTO, "OSName") == ""
        with pytest.raises(GuestRefused) as refused:
            await device.get(KvpPool.AUTO, "nothing")
        assert refused.value.status is IcStatus.NO_MORE_ITEMS
    assert device.strays == 0


async def test_a_snapshot_driver_without_a_daemon_leaves_the_flags_and_refuses_the_freeze() -> None:
    """Facts 2, 6 and 13."""
    device = VssDevice()

    async def guest(client: VmbusClient) -> None:
        await linux(client, device, (5, 0), [same, same, fail], most=8192)

    async with hosting(device, guest=guest):
        assert await device.hot_backup_check() == 0
        await device.backup_complete()
        with pytest.raises(GuestRefused, match="0x80004005"):
            await device.freeze()


async def test_a_file_copy_driver_without_a_daemon_refuses_and_gets_packets_that_fit_its_buffer() -> None:
    """Facts 1 and 2."""
    device = FileCopyDevice()

    async def guest(client: VmbusClient) -> None:
        await linux(client, device, (1, 1), [fail, same, same, same], most=8192)

    async with hosting(device, guest=guest):
        with pytest.raises(GuestRefused, match="0x80004005"):
            await device.copy(b"x" * 6144, "/", "file")
        await device.copy(b"x" * 6144, "/", "file")


@pytest.mark.parametrize(
    "device_type", [FileCopyDevice, HeartbeatDevice, KvpDevice, ShutdownDevice, TimeSyncDevice, VssDevice]
)
async def test_no_counts_and_leftovers_mean_no_common_version(device_type: type[IntegrationDevice]) -> None:
    """Fact 10."""
    device = device_type()

    async def guest(client: VmbusClient) -> None:
        await linux(client, device, (0, 0), [])
        with pytest.raises(ChannelClosed, match="the guest supports no version"):
            await device.wait_ready()

    async with hosting(device, guest=guest):
        pass
