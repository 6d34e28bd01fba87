"""The one module that names the event loops, and why: a processor passes a checkpoint after every quantum.

anyio looks up the running loop at each checkpoint, which is a sixth of what the checkpoint costs. A partition belongs to
one loop, so it looks once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import anyio
import anyio.lowlevel


def checkpoint_of_this_loop() -> Callable[[], Awaitable[None]]:
    """What `anyio.lowlevel.checkpoint` does on the loop that runs now; that function itself where none does."""
    try:
        cancelled = anyio.get_cancelled_exc_class()
    except RuntimeError:
        return anyio.lowlevel.checkpoint
    if issubclass(cancelled, asyncio.CancelledError):
        return partial(asyncio.sleep, 0)
    import trio.lowlevel

    return trio.lowlevel.checkpoint
