"""What the server tells the trace."""

from __future__ import annotations

from broker.trace import Channel, Control, Gpadl, Trace

from ..core.effects import ChannelChanged, GpadlChanged
from ..protocol.parse import name_of


def tell_message(trace: Trace, direction: str, data: bytes, refused: str = "") -> None:
    """A message was taken ("in") or is sent ("out"); what follows is due to it."""
    name, channel_id = name_of(data)
    event = trace.emit(Control, side="host", direction=direction, name=name, channel_id=channel_id, refused=refused)
    trace.work_on((event, trace.context()[1]))


def tell_change(trace: Trace, effect: ChannelChanged | GpadlChanged) -> None:
    """A channel or a GPADL went from one state to another."""
    if isinstance(effect, ChannelChanged):
        trace.emit(Channel, side="host", channel_id=effect.channel_id, before=effect.before, after=effect.after)
        return
    trace.emit(
        Gpadl,
        side="host",
        channel_id=effect.channel_id,
        gpadl_id=effect.gpadl_id,
        before=effect.before,
        after=effect.after,
    )
