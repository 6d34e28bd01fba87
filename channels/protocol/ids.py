"""Identifiers of VMBus: SINTs, connection IDs, port IDs, channel IDs and well-known interfaces (OpenVMM, `protocol.rs`)."""

from __future__ import annotations

from uuid import UUID

VMBUS_SINT = 2
"""Messages and channel events of a VMBus server without redirection."""
REDIRECT_SINT = 7
"""The same of a server whose control plane a paravisor has taken over."""
CHANNEL_MESSAGE = 1
"""The SynIC message type of every channel message, in both directions."""

MESSAGE_CONNECTION = 1
"""Guest to host, before version 5.0. Not multiclient: SINT and VTL of an INITIATE_CONTACT are not looked at."""
EVENT_CONNECTION = 2
"""Guest to host, one for all channels, before version 1.1: look at the channel bitmap."""
MULTICLIENT_CONNECTION = 4
"""Guest to host, from version 5.0: SINT (5.0) and VTL (5.1) of an INITIATE_CONTACT count."""

MAX_CHANNELS = 2047
"""Channel IDs are 1 to 2047; event flag 0 belongs to the channel bitmap."""
NO_MONITOR = 0xFF
NO_INTERRUPTS = 0xFFFF_FFFF
"""As the target processor of an OPEN_CHANNEL: the guest wants no interrupts from this channel."""
MAX_MESSAGE = 240
"""Bytes of a channel message, its header included."""

HEARTBEAT = UUID("57164f39-9115-4e78-ab55-382f3bd5422d")
SHUTDOWN = UUID("0e0b6031-5213-4934-818b-38d90ced39db")
TIME_SYNC = UUID("9527e630-d0ae-497b-adce-e80ab0175caf")
KEY_VALUE_PAIRS = UUID("a9a0f4e7-5a45-4d96-b827-8a841e8c03e6")
VOLUME_SNAPSHOT = UUID("35fa2e29-ea23-4236-96ae-3a6ebacba440")
FILE_COPY = UUID("34d14be3-dee4-41c8-9ae7-6b174977c192")
DYNAMIC_MEMORY = UUID("525074dc-8985-46e2-8057-a307dc18a502")
NETWORK = UUID("f8615163-df3e-46c5-913f-f2d2f965ed0e")
SCSI = UUID("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f")
IDE_ACCELERATOR = UUID("32412632-86cb-44a2-9b5c-50d1417354f5")
FIBRE_CHANNEL = UUID("2f9bcc4a-0069-4af3-b76b-6fd0be528cda")
NETWORK_DIRECT = UUID("8c2eaf3d-32a7-4b09-ab99-bd1f1c86b501")
VIRTUAL_PCI = UUID("44c4f61d-4444-4400-9d52-802e27ede19f")
KEYBOARD = UUID("f912ad6d-2b17-48ea-bd65-f927a61c7684")
MOUSE = UUID("cfa8b69e-5b4a-4cc0-b98b-8ba1a1f3f95a")
VIDEO = UUID("da0a7802-e377-4aac-8e77-0558eb1073f8")
SERIAL = UUID("8b60ccf6-709f-4c11-90b5-229c959a9e6a")
"""Serial ports of OpenVMM."""

INTERFACE_NAMES: dict[UUID, str] = {
    HEARTBEAT: "heartbeat",
    SHUTDOWN: "shutdown",
    TIME_SYNC: "time synchronisation",
    KEY_VALUE_PAIRS: "key-value pairs",
    VOLUME_SNAPSHOT: "volume snapshot",
    FILE_COPY: "file copy",
    DYNAMIC_MEMORY: "dynamic memory",
    NETWORK: "network",
    SCSI: "SCSI",
    IDE_ACCELERATOR: "IDE accelerator",
    FIBRE_CHANNEL: "fibre channel",
    NETWORK_DIRECT: "network direct",
    VIRTUAL_PCI: "virtual PCI",
    KEYBOARD: "keyboard",
    MOUSE: "mouse",
    VIDEO: "video",
    SERIAL: "serial port",
}


def message_connection(sint: int, vp: int, vtl: int) -> int:
    """The connection ID of a server on any SINT and VTL: 4 | sint << 4 | vp << 8 | vtl << 22; always multiclient."""
    return MULTICLIENT_CONNECTION | sint << 4 | vp << 8 | vtl << 22


REDIRECT_CONNECTION = message_connection(REDIRECT_SINT, 0, 2)
"""Where a guest finds the server of a paravisor: 0x800074."""


def event_connection(channel_id: int, sint: int = VMBUS_SINT, vtl: int = 0) -> int:
    """The connection ID that an offer names for a channel's events: channel ID | sint << 12 | vtl << 16."""
    return channel_id | sint << 12 | vtl << 16


def event_port(channel_id: int, sint: int = VMBUS_SINT, vtl: int = 0) -> int:
    """The port ID of the host's way to a guest's event flag: 2 | sint << 4 | channel ID << 8 | vtl << 22."""
    return EVENT_CONNECTION | sint << 4 | channel_id << 8 | vtl << 22
