"""The server's machine: channels (`reference/vmbus.md` 6.2, items 15 to 20, 53).

The table of 6.2 stands in `CELLS` and `RELEASED`, one cell for each event and state: the state after it and what is done,
in words. "err" is a complaint and nothing else, "" is nothing at all.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from channels.core.server import effects as do

from . import wire
from .host import PAGES, Host, connected, device, offered, reading

item = pytest.mark.vmbus_item
VERSIONS = pytest.mark.parametrize("version", wire.VERSIONS, ids=wire.version_id)
NAMES = ("closed", "opening", "open", "closing", "closing-reopen", "revoked", "reoffered")


def channel(state: str, version: int = wire.IRON, *, reserved: bool = False) -> Host:
    """A host whose channel 1, of device 1 and offer 1 (offer 2 where reoffered), is in this state."""
    host = connected(version)
    opening = wire.open_reserved(1, 0, 5) if reserved else wire.open_channel(1)
    if state in ("opening", "opening-client-release"):
        host.hold(do.OpenDevice)
    if state.startswith("closing"):
        host.hold(do.CloseDevice)
    if state.startswith(("open", "closing")):
        host.hear(opening)
    if state.startswith("closing"):
        host.hear(wire.close_reserved(1, 0, 5) if reserved else wire.close_channel(1))
    if state == "closing-reopen":
        host.hear(wire.open_channel(1))
    if state in ("revoked", "reoffered"):
        host.revoke(1)
    if state == "reoffered":
        host.offer(1)
    if state in ("client-released", "closing-client-release"):
        host.hear(wire.release(1))
    if state == "opening-client-release":
        host.hear(wire.UNLOAD)
    host.hold()
    assert host.state(2 if state == "reoffered" else 1) == state
    return host


EVENTS: dict[str, Callable[[Host], list]] = {
    "OPEN": lambda host: host.hear(wire.open_channel(1, 9)),
    "OPEN_RESERVED": lambda host: host.hear(wire.open_reserved(1, 0, 5)),
    "CLOSE": lambda host: host.hear(wire.close_channel(1)),
    "CLOSE_RESERVED": lambda host: host.hear(wire.close_reserved(1, 0, 5)),
    "RELID_RELEASED": lambda host: host.hear(wire.release(1)),
    "MODIFY_CHANNEL": lambda host: host.hear(wire.modify_channel(1, 0)),
    "GPADL_HEADER": lambda host: host.hear(wire.gpadl_header(1, 7)),
    "device open ok": lambda host: host.ended(host.machine.open_ended(1)[1]),
    "device open fails": lambda host: host.ended(host.machine.open_ended(1, wire.FAILED)[1]),
    "device close done": lambda host: host.ended(host.machine.close_ended(1)),
    "device revokes": lambda host: host.revoke(2 if host.state(1) is None else 1),
    "UNLOAD": lambda host: host.hear(wire.UNLOAD),
    "INITIATE_CONTACT": lambda host: host.connect(wire.RS5),
    "VM reset": lambda host: host.reset(),
}

OPENS = "opening: ports, device open"
CLOSES = "closing: device close, no ports"
FAIL_REPLY = "err MODIFY_CHANNEL_RESPONSE failed"
GPADL = "= device gpadl"
ACCEPTED = "= GPADL_CREATED ok"
RESCINDED = "revoked: removed, RESCIND"
RESCINDED_OPEN = "revoked: no ports, removed, RESCIND"
LOST = "client-released: backend reset"

CELLS: dict[str, tuple[str, ...]] = {
    #                    Closed, Opening, Open, Closing, ClosingReopen, Revoked, Reoffered
    "OPEN": (OPENS, "err", "err", "closing-reopen:", "err", "", ""),
    "OPEN_RESERVED": (OPENS, "err", "err", "err", "err", "", ""),
    "CLOSE": ("err", "err", CLOSES, "err", "err", "", ""),
    "CLOSE_RESERVED": ("err", "err", "err", "err", "err", "", ""),
    "RELID_RELEASED": ("client-released:", "err", "err", "closing-client-release:", "err", "gone:", "closed: OFFER"),
    "MODIFY_CHANNEL": (FAIL_REPLY, FAIL_REPLY, "= device modify", *[FAIL_REPLY] * 4),
    "GPADL_HEADER": (*[GPADL] * 5, ACCEPTED, ACCEPTED),
    "device open ok": ("err", "open: OPEN_RESULT ok", *["err"] * 5),
    "device open fails": ("err", "closed: no ports, OPEN_RESULT failed", *["err"] * 5),
    "device close done": (*["err"] * 3, "closed:", "opening: ports, device open", "err", "err"),
    "device revokes": (RESCINDED, *[RESCINDED_OPEN] * 4, "", "revoked: removed"),
    "UNLOAD": (
        LOST,
        "opening-client-release:",
        "closing-client-release: device close, no ports",
        "closing-client-release:",
        "closing-client-release:",
        "gone: backend reset",
        LOST,
    ),
    "VM reset": (
        LOST,
        "client-released: device drop, no ports, backend reset",
        "closing-client-release: device close, no ports",
        "closing-client-release:",
        "closing-client-release:",
        "gone: backend reset",
        LOST,
    ),
}
CELLS["INITIATE_CONTACT"] = CELLS["UNLOAD"]

RESERVED: dict[str, dict[str, str]] = {
    "OPEN": {"opening": "err", "open": "err", "closing": "closing-reopen:"},
    "OPEN_RESERVED": {"opening": "err", "open": "err", "closing": "err"},
    "CLOSE": {"opening": "err", "open": "err", "closing": "err"},
    "CLOSE_RESERVED": {"opening": "err", "open": CLOSES, "closing": "err"},
    "RELID_RELEASED": {"opening": "err", "open": "err", "closing": "closing-client-release:"},
    "MODIFY_CHANNEL": dict.fromkeys(("opening", "open", "closing"), FAIL_REPLY),
    "GPADL_HEADER": dict.fromkeys(("opening", "open", "closing", "closing-reopen"), "err GPADL_CREATED failed"),
    "device open ok": {"opening": "open: OPEN_RESULT ok to 0:5", "open": "err", "closing": "err"},
    "device open fails": {"opening": "closed: no ports, OPEN_RESULT failed to 0:5", "open": "err", "closing": "err"},
    "device close done": {"opening": "err", "open": "err", "closing": "closed: CLOSE_RESERVED_RESPONSE to 0:5"}
    | {"closing-reopen": "opening: CLOSE_RESERVED_RESPONSE to 0:5, ports, device open"},
    "device revokes": dict.fromkeys(("opening", "open", "closing"), RESCINDED_OPEN),
    "UNLOAD": {state: f"{state}: backend reset" for state in ("opening", "open", "closing")}
    | {"closing-reopen": "closing: backend reset"},
    "VM reset": {
        "opening": "client-released: device drop, no ports, backend reset",
        "open": "closing-client-release: device close, no ports",
        "closing": "closing-client-release:",
    },
}
"""The same for a channel that was opened as a reserved one."""

GONE = "there is no channel 0x1"
RELEASED: dict[str, dict[str, str]] = {
    "OPEN": {"client-released": "err", "closing-client-release": "err"},
    "OPEN_RESERVED": {"client-released": "err", "closing-client-release": "err"},
    "CLOSE": {"client-released": "err", "closing-client-release": "err"},
    "CLOSE_RESERVED": dict.fromkeys(("client-released", "closing-client-release", "opening-client-release"), "err"),
    "RELID_RELEASED": {"client-released": "err", "closing-client-release": "err"},
    "MODIFY_CHANNEL": {"client-released": FAIL_REPLY, "closing-client-release": FAIL_REPLY},
    "GPADL_HEADER": dict.fromkeys(("client-released", "closing-client-release"), "err GPADL_CREATED failed"),
    "device open ok": {
        "client-released": "err",
        "closing-client-release": "err",
        "opening-client-release": "closing-client-release: device close, no ports",
    },
    "device open fails": {
        "client-released": "err",
        "closing-client-release": "err",
        "opening-client-release": "client-released: no ports, backend reset",
    },
    "device close done": {
        "client-released": "err",
        "closing-client-release": "client-released:",
        "opening-client-release": "err",
    },
    "device revokes": {
        "client-released": "gone: removed",
        "closing-client-release": "gone: no ports, removed",
        "opening-client-release": "gone: no ports, removed, backend reset",
    },
}


def check_cell(host: Host, event: str, cell: str) -> None:
    number = 1 if host.state(1) is not None else 2
    before, complaints = host.state(number), len(host.complaints)
    out = reading(EVENTS[event](host))
    after = host.state(number) or "gone"
    is_error = cell.startswith("err")
    assert len(host.complaints) == complaints + is_error
    cell = cell.removeprefix("err").strip()
    if not cell or is_error or cell.startswith("="):
        cell = f"{before}: {cell.removeprefix('=').strip()}".rstrip().removesuffix(":")
        assert f"{after}: {', '.join(out)}".rstrip().removesuffix(":") == cell
    else:
        assert f"{after}: {', '.join(out)}".rstrip() == cell


@pytest.mark.parametrize("state", NAMES)
@pytest.mark.parametrize("event", CELLS)
def test_cell(event: str, state: str) -> None:
    cell = CELLS[event][NAMES.index(state)]
    check_cell(channel(state), event, cell)


@pytest.mark.parametrize(("event", "state"), [(event, state) for event, cells in RESERVED.items() for state in cells])
def test_cell_of_a_reserved_channel(event: str, state: str) -> None:
    check_cell(channel(state, reserved=True), event, RESERVED[event][state])


@pytest.mark.parametrize(("event", "state"), [(event, state) for event, cells in RELEASED.items() for state in cells])
def test_cell_of_a_released_channel(event: str, state: str) -> None:
    host = channel(state)
    check_cell(host, event, RELEASED[event][state])
    if event in ("OPEN", "CLOSE", "RELID_RELEASED"):
        assert GONE in host.complaints[-1].reason


# the life of a channel

LIVES = [
    (wire.RS5, 0),
    (wire.IRON, 0),
    (wire.COPPER, 0),
    (wire.COPPER, 0x01),
    (wire.COPPER, 0x02),
]


@item(15, 16, 18, 19, 20)
@pytest.mark.parametrize(("version", "features"), LIVES)
def test_a_channel_lives(version: int, features: int) -> None:
    host = Host()
    offer_id, _ = host.offer(1)
    host.connect(version, features)
    offer = host.hear(wire.REQUEST_OFFERS)
    assert offer == [offered(1), bytes.fromhex("04000000 00000000")]
    assert isinstance(offer[0], bytes)
    assert offer[0][188:] == bytes.fromhex("ff 00 0100 01200000")
    # opened
    host.hold()
    user_data = bytes(range(1, 121))
    fields = {"open_id": 77, "gpadl_id": 0xE1E10, "vp": 3, "page_offset": 4}
    if features:
        opening = wire.open_channel2(1, 0x2002, 2, **fields)
        opening = opening[:28] + user_data + opening[148:]
    else:
        opening = wire.open_channel(1, **fields)[:28] + user_data
    ports, asked = host.hear(opening)
    flag, connection = (2, 0x2002) if features == 0x01 else (1, 0x2001)
    expected = do.OpenParams(77, 0xE1E10, 3, 4, user_data, connection, flag)
    assert (ports, asked) == (do.CreatePorts(offer_id, 1, expected), do.OpenDevice(offer_id, expected))
    assert host.answer(do.OpenDevice) == [wire.open_result(1, 77, 0)]
    # moved
    assert host.hear(wire.modify_channel(1, 2)) == [do.ModifyDevice(offer_id, 2)]
    assert host.answer(do.ModifyDevice) == ([wire.channel_modified(1)] if version >= 0x0005_0003 else [])
    # closed
    assert host.hear(wire.close_channel(1)) == [do.CloseDevice(offer_id), do.DestroyPorts(offer_id)]
    assert host.answer(do.CloseDevice) == []
    # revoked and released
    assert host.revoke(offer_id) == [do.RemoveOffer(offer_id), wire.rescind(1)]
    assert host.hear(wire.release(1)) == []
    assert not host.complaints


@item(17)
@pytest.mark.parametrize("flags", [0, 1, 0xFFFE, 0xFFFF])
@pytest.mark.parametrize("features", [0x01, 0x02, 0x03])
def test_of_the_flags_of_an_open_one_bit_counts_where_it_was_agreed_on(features: int, flags: int) -> None:
    host = connected(wire.COPPER, features)
    (ports, *_) = host.hear(wire.open_channel2(1, 0x2002, 2, flags))
    assert isinstance(ports, do.CreatePorts)
    assert ports.params.redirect == bool(features & 2 and flags & 1)
    assert (ports.params.connection_id, ports.params.event_flag) == ((0x2002, 2) if features & 1 else (0x2001, 1))


@item(18)
@pytest.mark.parametrize("status", [0, wire.FAILED, 0xC000_0001, 1, 0x7FFF_FFFF])
def test_a_device_says_how_an_open_ended_and_a_negative_status_is_a_failure(status: int) -> None:
    host = connected()
    host.hold()
    host.hear(wire.open_channel(1, open_id=0xFFFF_FFFE))
    assert host.answer(do.OpenDevice, status=status)[-1] == wire.open_result(1, 0xFFFF_FFFE, status)
    assert host.state(1) == ("closed" if status & 0x8000_0000 else "open")


@VERSIONS
def test_interrupts_go_to_the_processor_of_the_open_from_2_4_on(version: int) -> None:
    host = connected(version)
    (ports, *_) = host.hear(wire.open_channel(1, vp=3))
    assert isinstance(ports, do.CreatePorts)
    assert ports.params.target_vp == (3 if version >= 0x0002_0004 else 0)


@VERSIONS
def test_a_channel_without_interrupts_has_no_processor(version: int) -> None:
    host = connected(version)
    (ports, *_) = host.hear(wire.open_channel(1, vp=0xFFFF_FFFF))
    assert isinstance(ports, do.CreatePorts)
    assert ports.params.target_vp == (None if version >= 0x0002_0004 else 0)


@item(53)
def test_a_channel_without_interrupts_does_not_use_its_monitor_id() -> None:
    for vp, expected in ((0xFFFF_FFFF, (None, None)), (1, (1, 0))):
        host = Host()
        host.offer(device(monitor_latency=1000))
        host.connect(pages=PAGES)
        host.hear(wire.REQUEST_OFFERS)
        (ports, *_) = host.hear(wire.open_channel(1, vp=vp))
        assert isinstance(ports, do.CreatePorts)
        assert (ports.params.target_vp, ports.params.monitor_id) == expected


def test_a_reopen_uses_the_values_of_the_second_open() -> None:
    host = channel("closing")
    host.hear(wire.open_channel(1, 9, 8, 1, 2))
    ports, asked = host.answer(do.CloseDevice)
    assert isinstance(ports, do.CreatePorts)
    assert isinstance(asked, do.OpenDevice)
    assert ports.params == asked.params
    assert (asked.params.open_id, asked.params.gpadl_id, asked.params.page_offset) == (9, 8, 2)
    assert host.answer(do.OpenDevice) == [wire.open_result(1, 9)]


def test_the_connection_id_of_a_guest_is_not_kept_after_a_close() -> None:
    host = connected(wire.COPPER, 0x01)
    host.hear(wire.open_channel2(1, 0x2077, 9))
    host.hear(wire.close_channel(1))
    assert host.machine.state.channels.by_channel_id[1].open is None
    (ports, *_) = host.hear(wire.open_channel2(1, 0x2001, 1))
    assert isinstance(ports, do.CreatePorts)
    assert (ports.params.connection_id, ports.params.event_flag) == (0x2001, 1)


def test_messages_about_a_channel_that_never_was_have_no_answer() -> None:
    host = connected()
    for channel_id in (0, 2, 2047, 2048, 0xFFFF_FFFF):
        for message in (
            wire.open_channel(channel_id),
            wire.close_channel(channel_id),
            wire.release(channel_id),
            wire.open_reserved(channel_id, 0, 5),
            wire.close_reserved(channel_id, 0, 5),
        ):
            assert f"{channel_id:#x}" in host.refusal(message)
        assert host.hear(wire.modify_channel(channel_id, 0)) == [wire.channel_modified(channel_id, wire.FAILED)]


def test_a_reoffered_channel_is_offered_again_under_its_old_id() -> None:
    host = channel("reoffered")
    assert host.hear(wire.release(1)) == [offered(1)]
    assert reading(host.hear(wire.open_channel(1))) == ["ports", "device open"]


def test_a_device_that_comes_and_goes_rescinds_once() -> None:
    host = channel("revoked")
    for turn in range(3):
        offer_id, out = host.offer(1)
        assert (out, host.state(offer_id)) == ([], "reoffered"), turn
        assert reading(host.revoke(offer_id)) == ["removed"]
    assert host.hear(wire.release(1)) == []
