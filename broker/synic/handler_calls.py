"""Which handlers are being called, read off coroutines and the stack when somebody needs to know.

To note at every call who calls which handler costs as much as half a dispatch; whether a port closes itself from within
its handler, or a run is stopped in the middle of one, is asked rarely. So the functions that call handlers are marked
once, and those who ask look for their frames. A marked function keeps the port that it calls in its local `port`.
"""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable
from types import AsyncGeneratorType, CodeType, CoroutineType, FrameType, GeneratorType
from typing import Any, Protocol


class CalledPort(Protocol):
    """A port whose handler is being called."""

    async def wait_finished(self) -> None:
        """Wait until the next call of its handler finishes."""
        ...


_callers: set[CodeType] = set()


def mark_callers(*functions: Callable[..., Any]) -> None:
    """Mark coroutine functions that call the handler of their local `port`."""
    _callers.update(inspect.unwrap(function).__code__ for function in functions)


def ports_on_the_stack() -> list[CalledPort]:
    """The ports whose handlers the caller runs in, innermost first."""
    ports: list[CalledPort] = []
    frame: FrameType | None = inspect.currentframe()
    while frame is not None:
        if frame.f_code in _callers:
            ports.append(frame.f_locals["port"])
        frame = frame.f_back
    return ports


def ports_in_flight(code: object) -> list[CalledPort]:
    """The ports whose handlers a suspended coroutine waits in, outermost first; none while it is running."""
    ports: list[CalledPort] = []
    while code is not None:
        if isinstance(code, CoroutineType):
            if code.cr_code in _callers and code.cr_frame is not None:
                ports.append(code.cr_frame.f_locals["port"])
            code = code.cr_await
        elif isinstance(code, GeneratorType):
            code = code.gi_yieldfrom
        elif isinstance(code, AsyncGeneratorType):
            code = code.ag_await
        else:  # the awaitable of an async generator's step, or of `__await__`, has no attribute that says what it awaits
            inner = (CoroutineType, GeneratorType, AsyncGeneratorType)
            code = next((part for part in gc.get_referents(code) if isinstance(part, inner)), None)
    return ports
