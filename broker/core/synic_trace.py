"""What the SynIC of one processor and VTL tells its trace, if it has one."""

from __future__ import annotations

from .. import trace as events
from .message_queues import QueuedMessage


class SynicTeller:
    """Emits the events of one SynIC. Without a trace every call returns at once, and contexts are empty."""

    def __init__(self, vp_index: int, vtl: int, trace: events.Trace | None) -> None:
        self._where = {"vp": vp_index, "vtl": vtl}
        self._trace = trace
        self.interrupts: dict[int, events.Context] = {}
        """What each requested vector is due to."""

    def queued(self, sint: int, message: QueuedMessage, depth: int) -> int:
        """A message was queued; returns what it is due to from now on."""
        if self._trace is None:
            return 0
        return self._trace.emit(
            events.Queue,
            flow=message.flow,
            sint=sint,
            message_type=message.message_type,
            payload=message.payload,
            depth=depth,
            **self._where,
        )

    def delivered(self, sint: int, message: QueuedMessage) -> events.Context:
        """A message lies in its slot."""
        if self._trace is None:
            return events.NO_CONTEXT
        delivered = self._trace.emit(
            events.Deliver,
            cause=message.cause,
            flow=message.flow,
            sint=sint,
            message_type=message.message_type,
            payload=message.payload,
            **self._where,
        )
        return delivered, message.flow

    def pending(self, sint: int, head: QueuedMessage | None) -> None:
        """Message-pending was set for the sake of `head`, or of a timer."""
        if self._trace is not None:
            cause, flow = (None, None) if head is None else (head.cause, head.flow)
            self._trace.emit(events.Pending, cause=cause, flow=flow, sint=sint, **self._where)

    def dropped(self, sint: int, message: QueuedMessage, reason: str) -> None:
        """A message is lost."""
        if self._trace is not None:
            self._trace.emit(
                events.Drop,
                cause=message.cause,
                flow=message.flow,
                sint=sint,
                message_type=message.message_type,
                reason=reason,
                **self._where,
            )

    def raised(self, sint: int, flag: int, outcome: str) -> events.Context:
        """The host wanted an event flag set."""
        if self._trace is None:
            return events.NO_CONTEXT
        flow = self._trace.context()[1] or self._trace.new_flow()
        return self._trace.emit(events.Raise, flow=flow, sint=sint, flag=flag, outcome=outcome, **self._where), flow

    def interrupt(self, vector: int, outcome: str, context: events.Context) -> None:
        """A vector was requested."""
        if self._trace is not None:
            cause, flow = context
            requested = self._trace.emit(
                events.Interrupt, cause=cause, flow=flow, vector=vector, outcome=outcome, **self._where
            )
            self.interrupts[vector] = (requested, flow)

    def expired(self, timer: int, due: int, mode: str) -> events.Context:
        """A timer expired."""
        if self._trace is None:
            return events.NO_CONTEXT
        flow = self._trace.new_flow()
        return self._trace.emit(events.Timer, cause=0, flow=flow, timer=timer, due=due, mode=mode, **self._where), flow
