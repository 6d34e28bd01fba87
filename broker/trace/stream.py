"""The trace stream: emits events to whoever looks, and carries causes and flows along with the work they belong to.

Off by default: a partition without a `Trace` emits nothing and its processors carry no hook on the dispatch path.
Observers are called in order of registration, get each event once and cannot change what happens: one that raises is
not called again, and what it raised is kept in `errors`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from .events import AnyEvent, Event

Context = tuple[int, int]
"""The event that what happens now is due to, and the flow it belongs to."""

NO_CONTEXT: Context = (0, 0)
_context: ContextVar[Context] = ContextVar("vmbus_trace_context", default=NO_CONTEXT)


class Trace:
    """One partition's stream of events. Hand it to one `PartitionConfig`; look with `subscribe`.

    >>> trace = Trace()
    >>> events = []
    >>> trace.subscribe(events.append)
    """

    def __init__(self, *observers: Callable[[AnyEvent], None]) -> None:
        self.errors: list[Exception] = []
        """What observers raised."""
        self._observers = list(observers)
        self._now: Callable[[], int] = lambda: 0
        self._last_id = 0
        self._last_flow = 0

    def subscribe(self, observer: Callable[[AnyEvent], None]) -> None:
        """Call `observer` with every event from now on."""
        self._observers.append(observer)

    def bind(self, now: Callable[[], int]) -> None:
        """Take the time from this reference counter; the partition calls it."""
        self._now = now

    def emit(self, kind: type[Event], /, cause: int | None = None, flow: int | None = None, **fields: object) -> int:
        """Emit one event and return its id. Cause and flow default to what this task is working on."""
        context = _context.get()
        self._last_id += 1
        event = kind(
            id=self._last_id,
            time=self._now(),
            cause=context[0] if cause is None else cause,
            flow=context[1] if flow is None else flow,
            **fields,
        )
        for observer in tuple(self._observers):
            try:
                observer(event)  # type: ignore[arg-type]
            except Exception as error:
                self._observers.remove(observer)
                self.errors.append(error)
        return event.id

    def new_flow(self) -> int:
        """A flow id that no other message has."""
        self._last_flow += 1
        return self._last_flow

    @staticmethod
    def context() -> Context:
        """What the current task is working on."""
        return _context.get()

    @staticmethod
    def work_on(context: Context) -> None:
        """From now on the current task works on this."""
        _context.set(context)

    @contextmanager
    def working_on(self, context: Context) -> Iterator[None]:
        """Work on this within the block."""
        token = _context.set(context)
        try:
            yield
        finally:
            _context.reset(token)

    def save(self) -> tuple[int, int]:
        """The last event id and the last flow."""
        return self._last_id, self._last_flow

    def restore(self, counters: tuple[int, int]) -> None:
        """Go on counting after what `save` returned, and never back: no id is given twice."""
        self._last_id = max(self._last_id, counters[0])
        self._last_flow = max(self._last_flow, counters[1])
