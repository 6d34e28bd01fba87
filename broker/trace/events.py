"""What can happen, as typed events (trace format 1).

Every event has an `id` that counts from 1, the `time` in reference ticks of 100 ns, the id of the event that caused it
(`cause`, 0 when nothing did) and the `flow` of the message or signal that it belongs to (0 when none). A message keeps
its flow from the guest's post through the host's answer to the EOM. Payloads are bytes, base64 in the file.
"""

from __future__ import annotations

from typing import get_args

import msgspec


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    """What all events share."""

    id: int
    time: int
    cause: int = 0
    flow: int = 0


class Post(Event, frozen=True, kw_only=True, tag=str.lower):
    """A guest posts a message to a connection."""

    vp: int
    vtl: int
    connection_id: int
    message_type: int
    payload: bytes


class Signal(Event, frozen=True, kw_only=True, tag=str.lower):
    """A guest signals an event to a connection."""

    vp: int
    vtl: int
    connection_id: int
    flag: int


class Route(Event, frozen=True, kw_only=True, tag=str.lower):
    """The port map took a post or signal to its port, whose handler accepted it."""

    connection_id: int


class Refuse(Event, frozen=True, kw_only=True, tag=str.lower):
    """A post or signal was answered with a status other than SUCCESS."""

    connection_id: int
    status: int
    reason: str


class Queue(Event, frozen=True, kw_only=True, tag=str.lower):
    """The host queues a message for a SINT; `depth` messages wait there now."""

    vp: int
    vtl: int
    sint: int
    message_type: int
    payload: bytes
    depth: int


class Deliver(Event, frozen=True, kw_only=True, tag=str.lower):
    """A message lies in its slot, type written last."""

    vp: int
    vtl: int
    sint: int
    message_type: int
    payload: bytes


class Pending(Event, frozen=True, kw_only=True, tag=str.lower):
    """The slot is busy: message-pending was set in it, so that the guest writes EOM."""

    vp: int
    vtl: int
    sint: int


class Drop(Event, frozen=True, kw_only=True, tag=str.lower):
    """A message on its way to the guest was lost, by the rules; `reason` says which."""

    vp: int
    vtl: int
    sint: int
    message_type: int
    reason: str


class Raise(Event, frozen=True, kw_only=True, tag=str.lower):
    """The host sets an event flag; `outcome` is newly-signaled, already-set, refused or proxied."""

    vp: int
    vtl: int
    sint: int
    flag: int
    outcome: str


class Interrupt(Event, frozen=True, kw_only=True, tag=str.lower):
    """A vector was requested; `outcome` is raised, merged or lost."""

    vp: int
    vtl: int
    vector: int
    outcome: str


class Acknowledge(Event, frozen=True, kw_only=True, tag=str.lower):
    """The guest takes an interrupt."""

    vp: int
    vtl: int
    vector: int


class Eom(Event, frozen=True, kw_only=True, tag=str.lower):
    """The guest writes EOM."""

    vp: int
    vtl: int


class Eoi(Event, frozen=True, kw_only=True, tag=str.lower):
    """The guest writes EOI."""

    vp: int
    vtl: int


class Write(Event, frozen=True, kw_only=True, tag=str.lower):
    """The guest writes a synthetic register other than EOM and EOI."""

    vp: int
    vtl: int
    msr: int
    value: int


class Timer(Event, frozen=True, kw_only=True, tag=str.lower):
    """A synthetic timer expired; `mode` is message or direct."""

    vp: int
    vtl: int
    timer: int
    due: int
    mode: str


class Fault(Event, frozen=True, kw_only=True, tag=str.lower):
    """Guest code did what a real processor faults on."""

    vp: int
    vtl: int
    fault: str
    reason: str


class Reset(Event, frozen=True, kw_only=True, tag=str.lower):
    """The partition was reset."""


class Control(Event, frozen=True, kw_only=True, tag=str.lower):
    """A VMBus server (`side` host) or client (guest) takes a channel message in or sends one out.

    `channel_id` is 0 where the message names none; `refused` says why nothing was done about it, "" where it was.
    """

    side: str
    direction: str
    name: str
    channel_id: int
    refused: str = ""


class Channel(Event, frozen=True, kw_only=True, tag=str.lower):
    """A channel goes from one state to another, as this side sees it; `before` is "" for a new one."""

    side: str
    channel_id: int
    before: str
    after: str


class Gpadl(Event, frozen=True, kw_only=True, tag=str.lower):
    """A GPADL goes from one state to another, as this side sees it; `after` is "" once it is gone."""

    side: str
    channel_id: int
    gpadl_id: int
    before: str
    after: str


class Ring(Event, frozen=True, kw_only=True, tag=str.lower):
    """This side wrote `packets` into its outgoing ring or read them from its incoming one (`action` write or read).

    `byte_count`: what they take in the ring, descriptors and footers included. `write_index` and `read_index` are the
    ring's after it; `signalled`: the other side must be told, and is.
    """

    side: str
    channel_id: int
    action: str
    packets: int
    byte_count: int
    write_index: int
    read_index: int
    signalled: bool


AnyEvent = (
    Post
    | Signal
    | Route
    | Refuse
    | Queue
    | Deliver
    | Pending
    | Drop
    | Raise
    | Interrupt
    | Acknowledge
    | Eom
    | Eoi
    | Write
    | Timer
    | Fault
    | Reset
    | Control
    | Channel
    | Gpadl
    | Ring
)
EVENT_TYPES: tuple[type[Event], ...] = get_args(AnyEvent)
