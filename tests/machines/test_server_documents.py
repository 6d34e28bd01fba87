"""The server's machine: which saved states may be restored at all (`reference/vmbus.md` 6.6; items 25 to 31, 37)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from broker import ConfigurationError, DamagedDocument, UnsupportedVersion
from broker.errors import HostError
from channels.core.server import effects as do
from channels.core.server.state import ServerConfig
from channels.protocol.versions import FeatureFlags, Version

from . import wire
from .host import PAGES, Host, To, connected, device, offered, reading
from .saved_support import in_state, moved

item = pytest.mark.vmbus_item


# what may be restored


@item(25)
def test_without_a_connection_a_closed_channel_is_restored() -> None:
    host = Host()
    host.offer(1)
    new = moved(host)
    assert new.restore_channel(1, is_open=False) == new.start() == []
    new.go_on()
    assert reading(new.connect()) == ["backend", "VERSION_RESPONSE"]
    assert new.hear(wire.REQUEST_OFFERS) == [offered(1), wire.ALL_OFFERS_DELIVERED]
    assert reading(new.hear(wire.open_channel(1))) == ["ports", "device open", "OPEN_RESULT ok"]


@item(26, 28)
@pytest.mark.parametrize("cap", list(Version))
@pytest.mark.parametrize("version", wire.VERSIONS, ids=wire.version_id)
def test_a_connection_of_a_newer_version_is_not_restored(version: int, cap: Version) -> None:
    host = connected(version)
    if version > cap:
        with pytest.raises(ConfigurationError, match=wire.version_id(version).replace(".", r"\.")):
            moved(host, config=ServerConfig(max_version=cap))
    else:
        assert moved(host, config=ServerConfig(max_version=cap)).phase == "connected"


@item(27, 29)
@pytest.mark.parametrize(("cap", "fits"), [(0x6F, True), (0x2F, True), (0x2E, False), (0x0F, False), (0, False)])
def test_features_beyond_the_cap_are_not_restored(cap: int, fits: bool) -> None:
    host = connected(wire.COPPER, 0x2F)
    config = ServerConfig(features=FeatureFlags(cap))
    if fits:
        assert moved(host, config=config).machine.state.connection.features == 0x2F
    else:
        with pytest.raises(ConfigurationError, match="0x2f"):
            moved(host, config=config)


def test_pinning_that_was_agreed_on_is_restored_where_it_is_configured() -> None:
    host = Host(ServerConfig(gpa_pinning=True))
    host.connect(wire.COPPER, 0x80)
    assert moved(host, (), ServerConfig(gpa_pinning=True)).machine.state.connection.features == 0x80
    with pytest.raises(ConfigurationError):
        moved(host, ())


@item(30)
@pytest.mark.parametrize("version", [v for v in wire.VERSIONS if v < 0x0006_0000], ids=wire.version_id)
@pytest.mark.parametrize("cap", [0x6F, 0x01])
def test_a_feature_of_an_older_version_is_not_restored(cap: int, version: int) -> None:
    def give_feature(body: Any) -> None:
        body["connection"]["features"] = 1

    with pytest.raises(ConfigurationError, match=wire.version_id(version).replace(".", r"\.")):
        moved(connected(version), config=ServerConfig(features=FeatureFlags(cap)), edit=give_feature)


def test_an_unknown_version_is_not_restored() -> None:
    def change(body: Any) -> None:
        body["connection"]["version"] = 0x0005_0004

    with pytest.raises(ConfigurationError, match=r"5\.4"):
        moved(connected(), edit=change)


@item(31, 37)
def test_a_reserved_channel_is_restored_without_a_connection() -> None:
    host = in_state("reserved open", features=0x2C)
    host.go_on()
    host.hear(wire.UNLOAD)
    assert host.phase == "disconnected"
    new = moved(host)
    assert reading(new.restore_channel(1, is_open=True)) == ["ports", "device resume"]
    assert new.start() == []
    new.go_on()
    out = new.hear(wire.close_reserved(1, 1, 6))
    assert out == [do.CloseDevice(1), do.DestroyPorts(1), To(1, 6, wire.reserved_closed(1))]


@item(37)
def test_without_a_connection_the_gpadl_of_a_reserved_channel_is_kept() -> None:
    host = connected()
    host.hear(wire.gpadl_header(1, 7))
    host.hear(wire.open_reserved(1, 0, 5, 7, 1))
    host.hear(wire.UNLOAD)
    new = moved(host)
    out = new.restore_channel(1, is_open=True)
    assert out[0] == do.ResumeGpadl(1, 7, 1, wire.gpa_range(1))
    assert reading(out) == ["device gpadl resume", "ports", "device resume"]


RESERVED_REFUSALS: dict[str, tuple[ServerConfig, Callable[[Any], None] | None, str]] = {
    "a newer version": (ServerConfig(max_version=Version.IRON), None, r"6\.0"),
    "features beyond the cap": (ServerConfig(features=FeatureFlags(0x28)), None, "0x2c"),
    "features of an older version": (
        ServerConfig(),
        lambda body: body["channels"][0]["reserve"].update(version=0x0005_0003, features=1),
        r"5\.3",
    ),
    "a version without reserved channels": (
        ServerConfig(),
        lambda body: body["channels"][0]["reserve"].update(version=0x0003_0000, features=0),
        r"3\.0",
    ),
}


@item(31)
@pytest.mark.parametrize("what", RESERVED_REFUSALS)
def test_a_reserved_channel_that_does_not_fit_is_not_restored(what: str) -> None:
    config, edit, words = RESERVED_REFUSALS[what]
    host = in_state("reserved open", features=0x2C)
    host.go_on()
    host.hear(wire.UNLOAD)
    with pytest.raises(ConfigurationError, match=words) as refused:
        moved(host, config=config, edit=edit)
    assert "reserved channel 1" in str(refused.value)


# documents that are none


def test_a_machine_is_restored_once_and_before_it_has_a_guest() -> None:
    host = connected()
    document = host.machine.save()
    with pytest.raises(HostError):
        host.machine.restore(document)
    new = moved(host)
    with pytest.raises(HostError):
        new.machine.restore(document)


def test_damage_is_found() -> None:
    document = connected(devices=2).machine.save()
    for at in range(0, len(document), 7):
        broken = bytearray(document)
        broken[at] ^= 0x10
        with pytest.raises((DamagedDocument, UnsupportedVersion, ConfigurationError)):
            Host().machine.restore(bytes(broken))
    for data in (b"", b"\x80", document[:-1]):
        with pytest.raises(DamagedDocument):
            Host().machine.restore(data)


def test_a_document_of_a_newer_program_is_refused() -> None:
    envelope = msgspec.msgpack.decode(connected().machine.save())
    envelope["version"] += 1
    with pytest.raises(UnsupportedVersion):
        Host().machine.restore(msgspec.msgpack.encode(envelope))


def twice(what: str) -> Callable[[Any], None]:
    def edit(body: Any) -> None:
        first, second = body["channels"]
        if what == "gpadl":
            first["gpadls"] *= 2
        else:
            second[what] = first[what]

    return edit


@pytest.mark.parametrize("what", ["channel_id", "monitor_id", "key", "gpadl"])
def test_what_is_there_twice_is_not_restored(what: str) -> None:
    host = Host()
    for number in (1, 2):
        host.offer(device(number, monitor_latency=1000))
    host.connect(pages=PAGES)
    host.hear(wire.REQUEST_OFFERS)
    host.hear(wire.gpadl_header(1, 7))
    with pytest.raises(DamagedDocument):
        moved(host, (), edit=twice(what))


def test_a_monitor_id_that_somebody_else_assigned_has_to_be_the_same() -> None:
    host = Host()
    host.offer(device(monitor_id=5))
    host.connect(pages=PAGES)
    host.hear(wire.REQUEST_OFFERS)
    moved(host, [device(monitor_id=5)]).restore_channel(1, is_open=False)
    for other in (6, None):
        new = moved(host, [device(monitor_id=other)])
        with pytest.raises(HostError, match="monitor"):
            new.restore_channel(1, is_open=False)
