"""What the machines of server and client have in common in what they ask of their shells."""

from __future__ import annotations

import msgspec


class Effect(msgspec.Struct, frozen=True):
    """Something to do, or to know."""


class MonitorPages(msgspec.Struct, frozen=True):
    """The two monitor pages, GPAs in bytes; `parent_to_child` may be 0 where the host gave them."""

    parent_to_child: int
    child_to_parent: int


class Complaint(Effect, frozen=True):
    """The other side, or a device, did something that it should not; nothing came of it beyond what other effects say.

    `event` is a snake_case word to count it by, `reason` a sentence.
    """

    event: str
    reason: str
    name: str = ""
    """The message type, where a message was refused."""


class ChannelChanged(Effect, frozen=True):
    """For the trace: a channel went from one state to another."""

    channel_id: int
    before: str
    after: str


class GpadlChanged(Effect, frozen=True):
    """For the trace: a GPADL went from one state to another ("" when it is gone)."""

    channel_id: int
    gpadl_id: int
    before: str
    after: str
