"""Key-value pairs between a host and a guest: every version both ways, all pools, IP information, and ends that lie."""

from __future__ import annotations

import random
import struct
from collections.abc import Coroutine
from ipaddress import ip_address, ip_interface
from typing import Any, TypeVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import PartitionConfig
from broker.errors import ChannelClosed, HostError, ProtocolError
from channels.client import VmbusClient
from channels.devices.integration.component import GuestRefused
from channels.devices.integration.kvp import MOST_ITEMS, KvpDevice
from channels.drivers.integration.component import Request
from channels.drivers.integration.kvp import MOST_PAIRS, KvpDriver, well_known_pairs
from channels.protocol.integration.common import FRAMEWORKS, IcHeader, IcStatus, IcVersion
from channels.protocol.integration.kvp import (
    KVP_VERSIONS,
    WELL_KNOWN_KEYS,
    KvpOperation,
    KvpPool,
    KvpRecord,
)
from channels.protocol.integration.kvp_ip import IpFamily, IpInfo, pack_ip_binary, pack_ip_text

from .integration_pair import LIVE, SEEDED, VIRTUAL, Raw, chosen, hosting, ic, paired, raw_guest

T = TypeVar("T")

CONFIGS = pytest.mark.parametrize("config", [LIVE, VIRTUAL, SEEDED], ids=["live", "virtual", "seeded"])
EACH_VERSION = pytest.mark.parametrize("version", KVP_VERSIONS, ids=str)
V4, V5 = IcVersion(4, 0), IcVersion(5, 0)
INFO = IpInfo(
    "00:15:5D:00:00:01",
    IpFamily.BOTH,
    True,
    (ip_interface("10.1.2.3/20"), ip_interface("fe80::7/64")),
    (ip_address("10.1.2.254"),),
    (ip_address("9.9.9.9"), ip_address("2001:db8::53")),
)


def at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of guest code that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise AssertionError("it waits")


# versions


@EACH_VERSION
@pytest.mark.parametrize("framework", FRAMEWORKS, ids=str)
@pytest.mark.parametrize("narrow", ["host", "guest"])
async def test_every_version_is_agreed_on_and_works(narrow: str, framework: IcVersion, version: IcVersion) -> None:
    if narrow == "host":
        device = KvpDevice(versions=[version], frameworks=[framework])
        driver = KvpDriver(ip_info=[INFO], message_versions=KVP_VERSIONS[::-1])
    else:
        device = KvpDevice()
        driver = KvpDriver(ip_info=[INFO], message_versions=[version], framework_versions=[framework])
    async with paired([device], [driver]):
        await device.wait_ready()
        assert (device.framework, device.version) == (driver.framework, driver.version) == (framework, version)
        await device.set(KvpPool.EXTERNAL, "text", "välue 😀")
        await device.set(KvpPool.EXTERNAL, "small", 7)
        await device.set(KvpPool.EXTERNAL, "large", 1 << 63)
        await device.set(KvpPool.EXTERNAL, "variables", "%PATH%", expand=True)
        assert driver.pools[KvpPool.EXTERNAL] == {
            "text": "välue 😀",
            "small": 7,
            "large": 1 << 63,
            "variables": "%PATH%",
        }
        small, large = (7, 1 << 63) if version == V5 else ("7", str(1 << 63))
        assert await device.get(KvpPool.EXTERNAL, "small") == small
        assert await device.get(KvpPool.EXTERNAL, "large") == large
        assert list((await device.items(KvpPool.EXTERNAL)).items()) == [
            ("text", "välue 😀"),
            ("small", small),
            ("large", large),
            ("variables", "%PATH%"),
        ]
        if version < V4:
            with pytest.raises(HostError, match=rf"needs version 4\.0 of key-value pairs, the guest took {version}"):
                await device.get_ip(INFO.adapter_id)
            with pytest.raises(HostError, match=r"needs version 4\.0"):
                await device.set_ip(INFO)
        else:
            assert await device.get_ip(INFO.adapter_id) == INFO
            changed = msgspec.structs.replace(INFO, is_dhcp=False, gateways=())
            await device.set_ip(changed)
            assert await device.get_ip(INFO.adapter_id) == changed
            await device.set_ip(msgspec.structs.replace(changed, addresses=()))
            assert (await device.items(KvpPool.AUTO))["NetworkAddressIPv4"] == ""


async def test_a_guest_prefers_what_linux_prefers() -> None:
    device, driver = KvpDevice(), KvpDriver()
    async with paired([device], [driver]):
        await device.wait_ready()
        assert (device.framework, device.version) == (IcVersion(3, 0), V4)


async def test_a_64_bit_number_has_the_type_that_the_guest_knows() -> None:
    types: list[tuple[int, ...]] = []

    async def guest(client: VmbusClient) -> None:
        for version in ((4, 0), (5, 0)):
            raw = await raw_guest(client, device)
            await raw.hear()
            await raw.say(chosen(version=version))
            heard = await raw.hear()
            types.append(struct.unpack_from("<I", heard, 24))
            await raw.say(ic(2, heard[20:], transaction_id=heard[16]))
            await client.close(raw.channel)  # type: ignore[arg-type]

    device = KvpDevice()
    async with hosting(device, guest=guest):
        for _ in range(2):
            await device.set(KvpPool.EXTERNAL, "n", 1 << 40)
            with pytest.raises(ChannelClosed):
                await device.set(KvpPool.EXTERNAL, "n", 0)
    assert types == [(8,), (11,)]


# pools


@CONFIGS
async def test_all_pools_are_kept_apart(config: PartitionConfig) -> None:
    device, driver = KvpDevice(), KvpDriver({KvpPool.AUTO: {}, KvpPool.GUEST: {"from": "the guest"}})
    async with paired([device], [driver], config):
        for pool in KvpPool:
            await device.set(pool, "pool", pool.name)
        for pool in KvpPool:
            expected = {"pool": pool.name}
            assert await device.items(pool) == ({"from": "the guest"} | expected if pool == KvpPool.GUEST else expected)
            assert await device.get(pool, "pool") == pool.name
            await device.delete(pool, "pool")
            with pytest.raises(GuestRefused, match=f"to get a pair of pool {pool.name}: status 0x80070103") as refused:
                await device.get(pool, "pool")
            assert refused.value.status is IcStatus.NO_MORE_ITEMS
            with pytest.raises(GuestRefused, match="to delete a pair"):
                await device.delete(pool, "pool")
    assert driver.pools == {pool: {"from": "the guest"} if pool == KvpPool.GUEST else {} for pool in KvpPool}


async def test_a_guest_says_the_well_known_things_about_itself_in_linuxs_order() -> None:
    device = KvpDevice()
    async with paired([device], [KvpDriver(ip_info=[INFO])]):
        about = await device.items(KvpPool.AUTO)
    assert tuple(about) == WELL_KNOWN_KEYS
    assert about["NetworkAddressIPv4"] == "10.1.2.3"
    assert about["NetworkAddressIPv6"] == "fe80::7"
    assert about == well_known_pairs([INFO])
    assert well_known_pairs(OSName="another")["OSName"] == "another"
    with pytest.raises(ValueError, match="OsName: well-known keys are Fully"):
        well_known_pairs(OsName="another")


async def test_a_pool_takes_so_many_pairs_and_no_more() -> None:
    device, driver = KvpDevice(), KvpDriver({KvpPool.GUEST: {str(number): number for number in range(MOST_PAIRS)}})
    async with paired([device], [driver]):
        await device.set(KvpPool.GUEST, "7", "seven")
        with pytest.raises(GuestRefused, match="status 0x80004005"):
            await device.set(KvpPool.GUEST, "one more", "")
        assert len(await device.items(KvpPool.GUEST)) == MOST_ITEMS == MOST_PAIRS
        driver.pools[KvpPool.GUEST]["one more"] = ""
        with pytest.raises(ProtocolError, match="an end after 4096 pairs"):
            await device.items(KvpPool.GUEST)


async def test_what_does_not_fit_is_the_callers_mistake_and_nothing_is_sent() -> None:
    device, driver = KvpDevice(), KvpDriver()
    async with paired([device], [driver]):
        for key, value in (("k" * 256, ""), ("k", "v" * 1024), ("k", 1 << 64), ("k", -1)):
            with pytest.raises(ValueError, match=r"fit|not a number"):
                await device.set(KvpPool.EXTERNAL, key, value)
        with pytest.raises(GuestRefused, match="0x80070057"):
            await device.set(KvpPool.EXTERNAL, "", "no key")
        with pytest.raises(GuestRefused, match="0x80070057"):
            await device.items(9)  # type: ignore[arg-type]
    assert not driver.pools[KvpPool.EXTERNAL]


# IP information


@pytest.mark.parametrize("version", [V4, V5], ids=str)
async def test_ip_information_is_about_the_family_that_was_asked_for(version: IcVersion) -> None:
    device, driver = KvpDevice(), KvpDriver(ip_info=[INFO], message_versions=[version])
    async with paired([device], [driver]):
        v4 = await device.get_ip("00:15:5d:00:00:01", IpFamily.IPV4)
        assert (v4.family, v4.addresses, v4.dns_servers) == (
            IpFamily.IPV4,
            (ip_interface("10.1.2.3/20"),),
            (ip_address("9.9.9.9"),),
        )
        v6 = await device.get_ip(INFO.adapter_id, IpFamily.IPV6)
        assert (v6.addresses, v6.gateways) == ((ip_interface("fe80::7/64"),), ())
        assert await device.get_ip(INFO.adapter_id, IpFamily.NONE) == INFO


@pytest.mark.parametrize("version", [V4, V5], ids=str)
async def test_adapters_that_are_not_there_have_linuxs_statuses(version: IcVersion) -> None:
    device, driver = KvpDevice(), KvpDriver(message_versions=[version])
    async with paired([device], [driver]):
        with pytest.raises(GuestRefused, match="an adapter's addresses: status 0x80041002") as refused:
            await device.set_ip(INFO)
        assert refused.value.status is IcStatus.NOT_FOUND
        with pytest.raises(GuestRefused, match="0x80004005"):
            await device.get_ip(INFO.adapter_id)


# ends that lie


def requests(version: IcVersion) -> list[bytes]:
    """What a host may send."""
    records = [
        KvpRecord(operation, pool, key, value, kind, index)
        for operation, pool, key, value, kind, index in (
            (KvpOperation.GET, 0, "a", "", 1, 0),
            (KvpOperation.SET, 0, "b", "text", 1, 0),
            (KvpOperation.SET, 1, "c", 7, 4, 0),
            (KvpOperation.SET, 1, "c", 7, 8, 0),
            (KvpOperation.DELETE, 0, "a", "", 1, 0),
            (KvpOperation.ENUMERATE, 2, "", "", 1, 3),
        )
    ]
    pack = pack_ip_binary if version == V5 else pack_ip_text
    return [record.pack() for record in records] + [pack(operation, INFO) for operation in (4, 5)]


@EACH_VERSION
@given(data=st.data())
def test_a_guest_answers_whatever_a_host_asks(version: IcVersion, data: st.DataObject) -> None:
    driver = KvpDriver({KvpPool.EXTERNAL: {"a": "1"}}, [INFO])
    for _ in range(data.draw(st.integers(1, 4))):
        body = bytearray(data.draw(st.sampled_from(requests(version))))
        for _ in range(data.draw(st.integers(0, 4))):
            at = data.draw(st.one_of(st.integers(0, 24), st.integers(0, len(body) - 1)))
            raw = data.draw(st.binary(min_size=1, max_size=6))
            body[at : at + len(raw)] = raw
        asked = bytes(body[: data.draw(st.one_of(st.just(len(body)), st.integers(0, len(body))))])
        status, answer = at_once(driver.answer(Request(IcHeader(), version, asked)))
        assert IcStatus(status) is status
        assert len(answer) == len(asked)
        if version < V4 and asked[:1] in (b"\x04", b"\x05"):
            assert status is IcStatus.NOT_SUPPORTED or len(asked) < 2


def test_a_guest_refuses_what_it_cannot_read_and_stays_as_it_was() -> None:
    driver = KvpDriver({KvpPool.EXTERNAL: {"a": "1"}}, [INFO])
    before = {pool: dict(pairs) for pool, pairs in driver.pools.items()}
    set_ip = bytearray(pack_ip_text(KvpOperation.SET_IP, INFO))
    set_ip[260:262] = b"x\0"
    for body in (b"", b"\x01", bytes(100), b"\x09\0" + bytes(2578), bytes(set_ip), b"\x01\x00" + b"\xff" * 2578):
        status, answer = at_once(driver.answer(Request(IcHeader(), V4, body)))
        assert (status, answer) == (IcStatus.INVALID_ARGUMENT, body)
    assert driver.pools == before
    assert driver.adapters == {INFO.adapter_id: INFO}


FULL = IpInfo(
    "A",
    addresses=tuple(ip_interface(f"2001:db8:1111:2222:3333:4444:5555:{number}/64") for number in range(1000, 1064)),
)


async def test_addresses_that_fit_the_bytes_of_5_0_alone_do_not_end_a_guest() -> None:
    """Texts hold 1023 units: a guest has more addresses, or is told of more than it can tell again."""
    short = bytearray(pack_ip_text(KvpOperation.SET_IP, IpInfo("A")))
    for at, text in ((260, ["1.2.3.4"] * 64 + ["::1"] * 64), (2308, ["26"] * 64 + ["64"] * 64)):
        raw = ";".join(text).encode("utf-16-le")
        short[at : at + len(raw)] = raw
    for adapter, asked in ((FULL, None), (IpInfo("A"), bytes(short))):
        device, driver = KvpDevice(), KvpDriver(ip_info=[adapter])
        async with paired([device], [driver]):
            if asked is not None:
                assert (await device.call(asked))[0] is IcStatus.SUCCESS
            with pytest.raises(GuestRefused, match="0x80004005"):
                await device.get_ip("A")
            about = await device.items(KvpPool.AUTO)
            assert list(about) == list(WELL_KNOWN_KEYS)
    about = well_known_pairs([FULL])
    told = str(about["NetworkAddressIPv6"]).split(";")
    assert told == [str(entry.ip) for entry in FULL.addresses[: len(told)]]
    assert len(told) == 26  # 39 characters and a separator


async def test_a_host_gets_protocol_errors_from_a_guest_that_lies_and_its_channel_goes_on() -> None:
    draw = random.Random(5)
    results: dict[str, int] = {}

    async def guest(client: VmbusClient) -> None:
        raw = await raw_guest(client, device)
        await raw.hear()
        await raw.say(chosen(version=(4, 0)))
        for turn in range(400):
            heard = await raw.hear()
            body = bytearray(heard[20:])
            for _ in range(draw.randrange(5) if turn % 4 else 0):
                at = draw.randrange(draw.choice([24, len(body)]))
                body[at : at + 4] = draw.randbytes(4)
            cut = draw.randrange(len(body)) if turn % 7 == 6 else len(body)
            await raw.say(
                ic(2, bytes(body[:cut]), status=draw.choice([0, 0, 0, 0x8007_0057]), transaction_id=heard[16])
            )
        await raw.hear()
        await client.close(raw.channel)  # type: ignore[arg-type]

    device = KvpDevice()
    async with hosting(device, guest=guest):
        for turn in range(400):
            try:
                if turn % 3 == 0:
                    await device.get(KvpPool.GUEST, "key")
                elif turn % 3 == 1:
                    await device.set(KvpPool.GUEST, "key", "value")
                else:
                    await device.get_ip("adapter")
                outcome = "fine"
            except (ProtocolError, GuestRefused) as error:
                outcome = type(error).__name__
            results[outcome] = results.get(outcome, 0) + 1
        with pytest.raises(ChannelClosed):
            await device.get(KvpPool.GUEST, "key")
    assert min(results[outcome] for outcome in ("fine", "ProtocolError", "GuestRefused")) > 30


async def test_an_answer_about_something_else_is_refused() -> None:
    async def guest(client: VmbusClient) -> None:
        raw = await raw_guest(client, device)
        await raw.hear()
        await raw.say(chosen(version=(4, 0)))
        for body in (KvpRecord(1, 0, "k", "v"), KvpRecord(3, 0, "k", "v", index=1)):
            heard = await raw.hear()
            await raw.say(ic(2, body.pack(), transaction_id=heard[16]))
        await Raw(raw.channel).hear()
        await client.close(raw.channel)  # type: ignore[arg-type]

    device = KvpDevice()
    async with hosting(device, guest=guest):
        with pytest.raises(ProtocolError, match="operation 0, index 0, got operation 1"):
            await device.get(KvpPool.EXTERNAL, "k")
        with pytest.raises(ProtocolError, match="operation 3, index 0, got operation 3, index 1"):
            await device.items(KvpPool.EXTERNAL)
        with pytest.raises(ChannelClosed):
            await device.items(KvpPool.EXTERNAL)
