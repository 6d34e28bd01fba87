"""What the client's machine tells its shell, in order: what to post, and what has come of what was asked for.

Nothing is answered. `Complaint`, `ChannelChanged` and `GpadlChanged` are those of both machines (`channels.core.effects`).
"""

from __future__ import annotations

from uuid import UUID

from ...protocol.message import ChannelMessage
from ...protocol.offer import OfferChannel
from ...protocol.versions import FeatureFlags, Version
from ..effects import Effect, MonitorPages


class Post(Effect, frozen=True):
    """Post this to the host, after all that was to be posted before.

    When an INITIATE_CONTACT gets INVALID_CONNECTION_ID, the answer is `ClientMachine.contact_refused`.
    """

    connection_id: int
    message: ChannelMessage


class Connected(Effect, frozen=True):
    """The connection stands and all offers that the host had are told.

    `monitor_pages`: those in use, which may be the host's own, None without.
    """

    version: Version
    features: FeatureFlags
    connection_id: int
    monitor_pages: MonitorPages | None


class ConnectFailed(Effect, frozen=True):
    """There is no connection; `reason` is a sentence."""

    reason: str


class OfferAdded(Effect, frozen=True):
    """The host offers a channel."""

    offer: OfferChannel


class OfferRescinded(Effect, frozen=True):
    """The channel has no device any more; the host waits for its release."""

    channel_id: int


class Released(Effect, frozen=True):
    """The host may offer this channel ID again; GPADLs of the channel are gone."""

    channel_id: int


class OpenEnded(Effect, frozen=True):
    """An open has ended; status 0: the channel is open. Also when it was closed or rescinded before the answer came."""

    channel_id: int
    status: int


class GpadlCreateEnded(Effect, frozen=True):
    """The host uses the memory (status 0) or not."""

    channel_id: int
    gpadl_id: int
    status: int


class GpadlTornDown(Effect, frozen=True):
    """The host has let go of the memory."""

    channel_id: int
    gpadl_id: int


class ModifyEnded(Effect, frozen=True):
    """The channel's interrupts go elsewhere (status 0) or not. Before 5.3 the host does not say and 0 is a guess."""

    channel_id: int
    status: int


class ModifyConnectionEnded(Effect, frozen=True):
    """The monitor pages are others (`ConnectionState.SUCCESSFUL`) or not."""

    connection_state: int
    monitor_pages: MonitorPages | None
    """Those in use now."""


class HvsockEnded(Effect, frozen=True):
    """A listener on the host has taken the connection, which is this offer, or refused (None)."""

    service_id: UUID
    endpoint_id: UUID
    offer: OfferChannel | None


class Paused(Effect, frozen=True):
    """The host says nothing more until it is told to; the machine may be saved."""


class UnloadEnded(Effect, frozen=True):
    """The host has let go of everything."""
