"""What the server's machine asks its shell to do, in the order in which it is to be done.

An effect is answered where it says so, by a call of the machine's method that it names; everything else is done and
forgotten. Channels are named by their `offer_id`, the number that the machine gave the device's offer.
"""

from __future__ import annotations

from uuid import UUID

import msgspec

from ...protocol.connect import InitiateContact
from ...protocol.hvsock import TlConnectRequest
from ...protocol.message import ChannelMessage
from ...protocol.versions import FeatureFlags, Version
from ..effects import ChannelChanged, Complaint, Effect, GpadlChanged, MonitorPages

__all__ = [
    "ChannelChanged",
    "CloseDevice",
    "Complaint",
    "ConnectHvsock",
    "CreateGpadl",
    "CreatePorts",
    "DestroyPorts",
    "DropMessages",
    "DropOpen",
    "Effect",
    "ForwardContact",
    "GpadlChanged",
    "ModifyConnection",
    "ModifyDevice",
    "MonitorPages",
    "OpenDevice",
    "OpenParams",
    "RemoveOffer",
    "ResetDone",
    "ResumeDevice",
    "ResumeGpadl",
    "SendMessage",
    "SendSaved",
    "Target",
    "TeardownGpadl",
    "UnloadDone",
]


class Target(msgspec.Struct, frozen=True):
    """Where an answer goes that does not go to the connection's own processor and SINT."""

    vp: int
    sint: int


class SendSaved(Effect, frozen=True):
    """Post to the guest what had not gone out when the server was saved, in order."""

    data: bytes


class SendMessage(Effect, frozen=True):
    """Post to the guest. With a `target`: now or never; else in order, when the SynIC takes it."""

    message: ChannelMessage
    target: Target | None = None


class ForwardContact(Effect, frozen=True):
    """A guest means the server of another VTL."""

    message: InitiateContact
    vtl: int
    trusted: bool


class ModifyConnection(Effect, frozen=True):
    """Set up what a connection uses of the partition, or reset it (`version` None). Answer: `connection_modified`.

    `target_vp` None leaves the processor of control messages as it is. `allocate`: monitor pages of the host, if it can.
    """

    version: Version | None
    features: FeatureFlags = FeatureFlags(0)
    target_vp: int | None = None
    interrupt_page: int | None = None
    monitor_pages: MonitorPages | None = None
    allocate: bool = False


class OpenParams(msgspec.Struct, frozen=True):
    """All that a guest says when it opens a channel, as far as it counts."""

    open_id: int
    gpadl_id: int
    target_vp: int | None
    """None: no interrupts."""
    page_offset: int
    """Pages of the guest-to-host ring, from the start of the GPADL."""
    user_data: bytes
    connection_id: int
    """What the guest signals."""
    event_flag: int
    """What the host sets."""
    redirect: bool = False
    """Interrupts go to the server's redirect VTL and SINT."""
    reserved: Target | None = None
    """Opened as a reserved channel; answers go there."""
    monitor_id: int | None = None
    confidential_ring: bool = False
    confidential_external_memory: bool = False
    monitor_latency: int = 0
    """How late a signal by the monitor page may be noticed, in ticks of 100 ns."""
    is_direct: bool = False
    """Of a relayed offer: guest and outer host signal each other by connection ID and event flag, without this server.
    False for channel-bitmap guests and for redirected interrupts: those signals pass through."""


class CreatePorts(Effect, frozen=True):
    """Make the channel's event ports. It comes before `OpenDevice`: the guest may signal at once. When that fails the
    `OpenDevice` that follows is answered with a failure instead of being done."""

    offer_id: int
    channel_id: int
    params: OpenParams


class DestroyPorts(Effect, frozen=True):
    """Close the channel's event ports."""

    offer_id: int


class OpenDevice(Effect, frozen=True):
    """Ask the device to open. Answer: `open_ended`."""

    offer_id: int
    params: OpenParams


class DropOpen(Effect, frozen=True):
    """The VM is reset while the device opens: it is to stop, and nobody waits for its `open_ended`. There is no answer."""

    offer_id: int


class ResumeDevice(Effect, frozen=True):
    """After a restore: the device's channel is open, its rings are as they were. There is no answer."""

    offer_id: int
    params: OpenParams


class CloseDevice(Effect, frozen=True):
    """Ask the device to close. Answer: `close_ended`."""

    offer_id: int


class ModifyDevice(Effect, frozen=True):
    """Send the channel's interrupts to another processor and tell the device. Answer: `modify_ended`."""

    offer_id: int
    target_vp: int


class CreateGpadl(Effect, frozen=True):
    """Tell the device about guest memory. Answer: `gpadl_created`. `buffer` is the range buffer, checked."""

    offer_id: int
    gpadl_id: int
    range_count: int
    buffer: bytes


class ResumeGpadl(Effect, frozen=True):
    """After a restore: the device uses this guest memory. There is no answer."""

    offer_id: int
    gpadl_id: int
    range_count: int
    buffer: bytes


class TeardownGpadl(Effect, frozen=True):
    """Ask the device to let go of guest memory. Answer: `gpadl_torn_down`."""

    offer_id: int
    gpadl_id: int


class RemoveOffer(Effect, frozen=True):
    """The offer is gone for good: nothing will be asked of its device any more."""

    offer_id: int


class ConnectHvsock(Effect, frozen=True):
    """A guest connects to a listener on the host. Answer: `hvsock_connected`, success by an offer."""

    request: TlConnectRequest
    silo_id: UUID


class DropMessages(Effect, frozen=True):
    """The VM is reset: messages that wait for the SynIC are dropped."""


class ResetDone(Effect, frozen=True):
    """Nothing of the guest is left."""


class UnloadDone(Effect, frozen=True):
    """The guest has let go of everything; ports that reserved channels were answered through may go."""
