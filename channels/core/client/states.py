"""The client's states and what leads from one to another, as tables (OpenVMM, `vmbus_client`; section 6.7 of the reference).

A step that stands in no table cannot happen: the host's is a complaint, the user's an exception.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum

import msgspec

from ...protocol.message import MessageType
from ...protocol.offer import OfferChannel


class ClientState(Enum):
    """Where the connection is."""

    DISCONNECTED = "disconnected"
    CONNECTING = "connecting"
    """A VERSION_RESPONSE is due."""
    REQUESTING_OFFERS = "requesting-offers"
    """Version and features are agreed on; offers come until ALL_OFFERS_DELIVERED."""
    CONNECTED = "connected"
    DISCONNECTING = "disconnecting"
    """UNLOAD_COMPLETE is due."""


class PauseState(Enum):
    """How far a pause is."""

    RUNNING = "running"
    WAITING = "waiting"
    """For answers that are outstanding."""
    ASKED = "asked"
    """PAUSE_RESPONSE is due."""
    PAUSED = "paused"


class ChannelState(Enum):
    """Where a channel is."""

    OFFERED = "offered"
    OPENING = "opening"
    OPEN = "open"
    RESTORED = "restored"
    """Open in the saved state, and nobody has claimed it yet."""
    REVOKED = "revoked"
    """Rescinded, and not released yet."""


class GpadlState(Enum):
    """Where a GPADL is."""

    CREATING = "creating"
    CREATED = "created"
    TEARING_DOWN = "tearing-down"


class Step(Enum):
    """What happens to a channel."""

    OPEN = "open"
    OPENED = "opened"
    OPEN_FAILED = "open-failed"
    CLOSE = "close"
    CLAIM = "claim"
    RESCIND = "rescind"


_S, _C, _T = ClientState, ChannelState, Step

CHANNEL_STEPS: dict[tuple[ChannelState, Step], ChannelState] = {
    (_C.OFFERED, _T.OPEN): _C.OPENING,
    (_C.OPENING, _T.OPENED): _C.OPEN,
    (_C.OPENING, _T.OPEN_FAILED): _C.OFFERED,
    (_C.OPEN, _T.CLOSE): _C.OFFERED,
    (_C.RESTORED, _T.CLOSE): _C.OFFERED,
    (_C.RESTORED, _T.CLAIM): _C.OPEN,
    (_C.OFFERED, _T.RESCIND): _C.REVOKED,
    (_C.OPENING, _T.RESCIND): _C.REVOKED,
    (_C.OPEN, _T.RESCIND): _C.REVOKED,
    (_C.RESTORED, _T.RESCIND): _C.REVOKED,
}

USES_FLAG = frozenset({_C.OPENING, _C.OPEN, _C.RESTORED})
"""States in which the host may signal the channel."""

_STANDS = frozenset({_S.REQUESTING_OFFERS, _S.CONNECTED})

ACCEPTED: dict[MessageType, frozenset[ClientState]] = {
    MessageType.VERSION_RESPONSE: frozenset({_S.CONNECTING}),
    MessageType.OFFER_CHANNEL: _STANDS,
    MessageType.RESCIND_CHANNEL_OFFER: _STANDS,
    MessageType.ALL_OFFERS_DELIVERED: frozenset({_S.REQUESTING_OFFERS}),
    MessageType.OPEN_CHANNEL_RESULT: _STANDS,
    MessageType.GPADL_CREATED: _STANDS,
    MessageType.GPADL_TORNDOWN: _STANDS,
    MessageType.MODIFY_CHANNEL_RESPONSE: _STANDS,
    MessageType.MODIFY_CONNECTION_RESPONSE: _STANDS,
    MessageType.TL_CONNECT_RESULT: _STANDS,
    MessageType.PAUSE_RESPONSE: _STANDS,
    MessageType.UNLOAD_COMPLETE: frozenset({_S.DISCONNECTING}),
}
"""In which states the host's messages are looked at. Others are complaints, but what a host still says while the client
unloads is of no interest to anybody. Reserved channels are not the client's: their answers are complaints, too."""


class ClientChannel(msgspec.Struct):
    """One channel as the client keeps it; only the machine changes it."""

    offer: OfferChannel
    state: ChannelState = ChannelState.OFFERED
    is_held: bool = True
    """The user has not released it."""
    is_modifying: bool = False
    closes: bool = False
    """The user closed it while it was opening: it is closed as soon as it is open."""
    event_flag: int = 0
    """What the host sets, 0 while the channel is neither opening nor open."""
    has_own_flag: bool = False
    """The flag is one that the client chose; else it is the channel ID."""
    connection_id: int = 0
    """What the guest signals, 0 while the channel is neither opening nor open: then it must not."""
    gpadls: dict[int, GpadlState] = {}

    @property
    def is_busy(self) -> bool:
        """An answer about a GPADL, or about a change of processor, is due."""
        return self.is_modifying or any(state is not GpadlState.CREATED for state in self.gpadls.values())

    @property
    def is_unsaved(self) -> bool:
        """Something is due that a saved state does not hold."""
        is_creating = GpadlState.CREATING in self.gpadls.values()
        return self.state is ChannelState.OPENING or self.is_modifying or is_creating

    @property
    def delays_pause(self) -> bool:
        """The host should not be asked to be quiet yet: of a revoked channel nothing is saved at all."""
        return self.is_unsaved or (self.state is ChannelState.REVOKED and self.is_busy)


class EventFlags:
    """Event flags that the client chooses itself, 1 to 2047; there are as many of them as channels."""

    def __init__(self) -> None:
        self._bits = 1
        """Bit n: flag n is taken. Flag 0 belongs to the channel bitmap."""

    def __contains__(self, flag: int) -> bool:
        return bool(self._bits >> flag & 1)

    def __iter__(self) -> Iterator[int]:
        return (flag for flag in range(1, self._bits.bit_length()) if flag in self)

    def lowest_free(self) -> int:
        """The lowest flag that no channel has."""
        return (~self._bits & self._bits + 1).bit_length() - 1

    def take(self, flag: int) -> None:
        """This flag is a channel's now."""
        self._bits |= 1 << flag

    def free(self, flag: int) -> None:
        """It is nobody's any more."""
        self._bits &= ~(1 << flag)
