"""Plays a recorded guest against this VMBus server and compares what the server answers, byte for byte.

`read_conversation` reads a file, `replay` plays it; the format is described in `tests/vectors/README.md`.
"""

from .compare import Difference, Reply
from .conversation import (
    Conversation,
    DeviceStep,
    GuestMessage,
    HostMessage,
    decode_conversation,
    read_conversation,
)
from .devices import Offered, Revoked, plan_devices
from .play import DeviceAction, PostedMessage, Replay, replay
from .summary import offer_summary, summary

__all__ = [
    "Conversation",
    "DeviceAction",
    "DeviceStep",
    "Difference",
    "GuestMessage",
    "HostMessage",
    "Offered",
    "PostedMessage",
    "Replay",
    "Reply",
    "Revoked",
    "decode_conversation",
    "offer_summary",
    "plan_devices",
    "read_conversation",
    "replay",
    "summary",
]
