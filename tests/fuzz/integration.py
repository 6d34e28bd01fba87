"""Targets that decode messages of the integration components."""

from __future__ import annotations

from broker.errors import ProtocolError
from channels.protocol.integration.common import (
    FRAMEWORK_3,
    FRAMEWORKS,
    IcMessageType,
    pack_negotiate,
    pack_request,
    parse_ic,
    parse_negotiate,
)
from channels.protocol.integration.heartbeat import HEARTBEAT_VERSIONS, Heartbeat
from channels.protocol.integration.shutdown import PLANNED, TEXT_SIZE, ShutdownMessage
from channels.protocol.integration.text import pack_text
from channels.protocol.integration.timesync import TIME_SYNC_4, TimeSync, TimeSyncReference, pack_time_sync


def message(data: bytes) -> None:
    """A message, and its body by its type."""
    try:
        header, body = parse_ic(data)
        assert header.pack() + body == data[: 20 + header.size]
        if header.message_type == IcMessageType.NEGOTIATE:
            frameworks, messages = parse_negotiate(body)
            packed = pack_negotiate(frameworks, messages)
            assert packed[:4] + packed[8:] == body[:4] + body[8 : len(packed)]
        elif header.message_type == IcMessageType.HEARTBEAT:
            assert Heartbeat.unpack(body).pack() == body[:12]
        elif header.message_type == IcMessageType.SHUTDOWN:
            asked = ShutdownMessage.unpack(body)
            assert asked.pack() == body[:2060]
            assert "\0" not in asked.message
            assert asked.kind is None or asked.flags & ~1 == asked.kind
        elif header.message_type == IcMessageType.TIME_SYNC:
            kind = TimeSyncReference if header.version >= TIME_SYNC_4 else TimeSync
            sent = kind.unpack(body)
            assert kind.unpack(pack_time_sync(sent)) == sent
    except ProtocolError:
        return


def message_seeds() -> list[bytes]:
    """One of each."""
    bodies = {
        IcMessageType.NEGOTIATE: [pack_negotiate(FRAMEWORKS, HEARTBEAT_VERSIONS), pack_negotiate((), ())],
        IcMessageType.HEARTBEAT: [Heartbeat(7, 1).pack()],
        IcMessageType.SHUTDOWN: [ShutdownMessage(PLANNED, 5, 2, pack_text("bye", TEXT_SIZE, "message")).pack()],
        IcMessageType.TIME_SYNC: [pack_time_sync(TimeSync(1 << 56, flags=1))],
    }
    seeds = [pack_request(kind, FRAMEWORK_3, FRAMEWORK_3, body) for kind, found in bodies.items() for body in found]
    newest = pack_time_sync(TimeSyncReference(1 << 56, 99, 2, 1, 2))
    return [*seeds, pack_request(IcMessageType.TIME_SYNC, FRAMEWORK_3, TIME_SYNC_4, newest)]
