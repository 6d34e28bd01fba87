"""Where the client's machine collects effects; messages are held back here while the host has been asked to be quiet."""

from __future__ import annotations

from ...protocol.ids import MESSAGE_CONNECTION
from ...protocol.message import ChannelMessage
from ..effects import ChannelChanged, Complaint, Effect, GpadlChanged
from .effects import Post


class Outbox:
    """See the module."""

    def __init__(self) -> None:
        self.connection_id = MESSAGE_CONNECTION
        """Where messages go."""
        self.is_holding = False
        self.held: list[ChannelMessage] = []
        """What was sent while holding, oldest first."""
        self.effects: list[Effect] = []

    def send(self, *messages: ChannelMessage) -> None:
        """Post these, or hold them. `ValueError` for a value that does not fit its field, and then nothing is posted."""
        for message in messages:
            message.pack()
        if self.is_holding:
            self.held += messages
        else:
            self.effects += [Post(self.connection_id, message) for message in messages]

    def release(self) -> None:
        """Post what was held."""
        self.is_holding = False
        held, self.held = self.held, []
        self.send(*held)

    def say(self, effect: Effect) -> None:
        """Add an effect."""
        self.effects.append(effect)

    def complain(self, event: str, reason: str, name: str = "") -> None:
        """The host did what it should not."""
        self.effects.append(Complaint(event, reason, name))

    def channel_changed(self, channel_id: int, before: str, after: str) -> None:
        """For the trace."""
        self.effects.append(ChannelChanged(channel_id, before, after))

    def gpadl_changed(self, channel_id: int, gpadl_id: int, before: str, after: str) -> None:
        """For the trace."""
        self.effects.append(GpadlChanged(channel_id, gpadl_id, before, after))

    def take(self) -> list[Effect]:
        """All effects since the last time."""
        effects, self.effects = self.effects, []
        return effects
