"""Channel messages as bytes, written down from `reference/vmbus.md` 2 and 3: what a guest sends and what a host sends.

Nothing here comes from `channels.protocol`: it is what that is compared with.
"""

from __future__ import annotations

import struct
from uuid import UUID

V1, WIN7, WIN8, WIN8_1, WIN10, RS3_0 = 0x0000_000D, 0x0001_0001, 0x0002_0004, 0x0003_0000, 0x0004_0000, 0x0004_0001
RS3_1, RS4, RS5, IRON, COPPER = 0x0005_0000, 0x0005_0001, 0x0005_0002, 0x0005_0003, 0x0006_0000
VERSIONS = (V1, WIN7, WIN8, WIN8_1, WIN10, RS3_0, RS3_1, RS4, RS5, IRON, COPPER)
FAILED = 0x8000_FFFF
REFUSED = 0xC000_0236
NO_INTERRUPTS = 0xFFFF_FFFF
NO_GUID = UUID(int=0)

NAMES = (
    *("none", "OFFER", "RESCIND", "REQUEST_OFFERS", "ALL_OFFERS_DELIVERED", "OPEN", "OPEN_RESULT", "CLOSE"),
    *("GPADL_HEADER", "GPADL_BODY", "GPADL_CREATED", "GPADL_TEARDOWN", "GPADL_TORNDOWN", "RELID_RELEASED"),
    *("INITIATE_CONTACT", "VERSION_RESPONSE", "UNLOAD", "UNLOAD_COMPLETE", "OPEN_RESERVED", "CLOSE_RESERVED"),
    *("CLOSE_RESERVED_RESPONSE", "TL_CONNECT_REQUEST", "MODIFY_CHANNEL", "TL_CONNECT_RESULT"),
    *(
        "MODIFY_CHANNEL_RESPONSE",
        "MODIFY_CONNECTION",
        "MODIFY_CONNECTION_RESPONSE",
        "PAUSE",
        "PAUSE_RESPONSE",
        "RESUME",
    ),
)
"""By message type."""


def version_id(version: int) -> str:
    """As people write it."""
    return f"{version >> 16}.{version & 0xFFFF}"


def header(message_type: int) -> bytes:
    return struct.pack("<II", message_type, 0)


# from the guest

REQUEST_OFFERS = header(3)
UNLOAD = header(16)
PAUSE = header(27)
RESUME = header(29)


def contact(
    version: int, vp: int = 0, info: int = 0, pages: tuple[int, int] = (0, 0), client: UUID | None = None
) -> bytes:
    """INITIATE_CONTACT. `info`: bytes 16 to 23, `pages`: parent to child, child to parent."""
    fixed = struct.pack("<IIQQQ", version, vp, info, *pages)
    return header(14) + fixed + (b"" if client is None else client.bytes_le)


def info(sint: int = 2, vtl: int = 0, features: int = 0) -> int:
    """Bytes 16 to 23 of an INITIATE_CONTACT from 5.0 on."""
    return int.from_bytes(struct.pack("<BBHI", sint, vtl, 0, features), "little")


def open_channel(
    channel_id: int, open_id: int = 0, gpadl_id: int = 0, vp: int = 0, page_offset: int = 0, user_data: bytes = b""
) -> bytes:
    """OPEN_CHANNEL, 148 bytes."""
    return header(5) + struct.pack("<IIIII120s", channel_id, open_id, gpadl_id, vp, page_offset, user_data)


def open_channel2(channel_id: int, connection_id: int, event_flag: int, flags: int = 0, **fields: int) -> bytes:
    """OPEN_CHANNEL, 156 bytes."""
    return open_channel(channel_id, **fields) + struct.pack("<IHH", connection_id, event_flag, flags)


def close_channel(channel_id: int) -> bytes:
    return header(7) + struct.pack("<I", channel_id)


def gpa_range(*pages: int, size: int | None = None, offset: int = 0) -> bytes:
    """One range of a range buffer; whole pages unless `size` and `offset` say otherwise."""
    size = 4096 * len(pages) if size is None else size
    return struct.pack(f"<II{len(pages)}Q", size, offset, *pages)


def gpadl_header(
    channel_id: int, gpadl_id: int, data: bytes = gpa_range(1), count: int = 1, length: int | None = None
) -> bytes:
    """GPADL_HEADER. `length`: of the whole range buffer, where more is to come."""
    length = len(data) if length is None else length
    return header(8) + struct.pack("<IIHH", channel_id, gpadl_id, length, count) + data


def gpadl_body(gpadl_id: int, data: bytes) -> bytes:
    return header(9) + struct.pack("<II", 0, gpadl_id) + data


def gpadl_teardown(channel_id: int, gpadl_id: int) -> bytes:
    return header(11) + struct.pack("<II", channel_id, gpadl_id)


def release(channel_id: int) -> bytes:
    """RELID_RELEASED."""
    return header(13) + struct.pack("<I", channel_id)


def open_reserved(channel_id: int, vp: int, sint: int, gpadl_id: int = 0, page_offset: int = 0) -> bytes:
    return header(18) + struct.pack("<IIIII", channel_id, vp, sint, gpadl_id, page_offset)


def close_reserved(channel_id: int, vp: int, sint: int) -> bytes:
    return header(19) + struct.pack("<III", channel_id, vp, sint)


def hvsock_connect(endpoint: UUID, service: UUID, silo: UUID | None = None) -> bytes:
    """TL_CONNECT_REQUEST, 40 bytes, or 56 with a silo."""
    return header(21) + endpoint.bytes_le + service.bytes_le + (b"" if silo is None else silo.bytes_le)


def modify_channel(channel_id: int, vp: int) -> bytes:
    return header(22) + struct.pack("<II", channel_id, vp)


def modify_connection(parent_to_child: int, child_to_parent: int) -> bytes:
    return header(25) + struct.pack("<QQ", parent_to_child, child_to_parent)


# from the host

ALL_OFFERS_DELIVERED = header(4)
UNLOAD_COMPLETE = header(17)
PAUSE_RESPONSE = header(28)
UNSUPPORTED = header(15) + bytes(8)
"""VERSION_RESPONSE, all zero."""


def version_response(
    value: int, features: int | None = None, state: int = 0, pages: tuple[int, int] | None = None
) -> bytes:
    """VERSION_RESPONSE of a supported version: 16 bytes, 20 with features, 40 with pages of the host."""
    response = header(15) + struct.pack("<BBHI", 1, state, 0, value)
    if features is not None:
        response += struct.pack("<I", features)
    return response if pages is None else response + struct.pack("<IQQ", 0, *pages)


def offer_channel(
    channel_id: int,
    interface: UUID,
    instance: UUID,
    flags: int = 0,
    user_defined: bytes = b"",
    subchannel: int = 0,
    monitor_id: int | None = None,
    connection_id: int | None = None,
    megabytes: tuple[int, int] = (0, 0),
) -> bytes:
    """OFFER_CHANNEL, 196 bytes."""
    monitor, allocated = (0xFF, 0) if monitor_id is None else (monitor_id, 1)
    connection_id = 0x2000 + channel_id if connection_id is None else connection_id
    return b"".join(
        (
            *(header(1), interface.bytes_le, instance.bytes_le, bytes(16)),
            struct.pack("<HH120s", flags, megabytes[0], user_defined),
            struct.pack("<HHIBBHI", subchannel, megabytes[1], channel_id, monitor, allocated, 1, connection_id),
        )
    )


def rescind(channel_id: int) -> bytes:
    return header(2) + struct.pack("<I", channel_id)


def open_result(channel_id: int, open_id: int = 0, status: int = 0) -> bytes:
    return header(6) + struct.pack("<III", channel_id, open_id, status)


def gpadl_created(channel_id: int, gpadl_id: int, status: int = 0) -> bytes:
    return header(10) + struct.pack("<III", channel_id, gpadl_id, status)


def gpadl_torndown(gpadl_id: int) -> bytes:
    return header(12) + struct.pack("<I", gpadl_id)


def reserved_closed(channel_id: int) -> bytes:
    """CLOSE_RESERVED_CHANNEL_RESPONSE."""
    return header(20) + struct.pack("<I", channel_id)


def hvsock_result(endpoint: UUID, service: UUID, status: int = REFUSED) -> bytes:
    """TL_CONNECT_RESULT."""
    return header(23) + endpoint.bytes_le + service.bytes_le + struct.pack("<I", status)


def channel_modified(channel_id: int, status: int = 0) -> bytes:
    """MODIFY_CHANNEL_RESPONSE."""
    return header(24) + struct.pack("<II", channel_id, status)


def connection_modified(state: int = 0) -> bytes:
    """MODIFY_CONNECTION_RESPONSE, 9 bytes."""
    return header(26) + bytes([state])


def words(message: bytes) -> str:
    """What a host's message is called, and whether it says that something went well."""
    (message_type,) = struct.unpack_from("<I", message)
    name = NAMES[message_type]
    offset = {6: 16, 10: 16, 24: 12}.get(message_type)
    if offset is None:
        return name
    (status,) = struct.unpack_from("<I", message, offset)
    return f"{name} {'failed' if status else 'ok'}"
