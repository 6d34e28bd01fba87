"""What ends a channel that a device serves, and what is the device's own mistake.

A guest's fault comes as `PeerError` or `ChannelClosed`, in words of anyio's from a pipe, and wrapped by task groups of the
device.
"""

from __future__ import annotations

from types import TracebackType

import anyio

from broker.errors import ChannelClosed, PartitionClosed, PeerError

from .device import RefuseOpen

STREAM_ERRORS = (anyio.BrokenResourceError, anyio.EndOfStream)
"""Words that a pipe puts it in; what happened is the cause."""


def end_of_channel(error: BaseException) -> ChannelClosed | PeerError | None:
    """What this error says about the channel, None for one of the device's own. Pipes wrap it in a word of anyio's."""
    end = error.__cause__ if isinstance(error, STREAM_ERRORS) else error
    return end if isinstance(end, (ChannelClosed, PeerError)) else None


def _is_end(error: BaseException) -> bool:
    return isinstance(error, (PartitionClosed, RefuseOpen)) or end_of_channel(error) is not None


class Unwrapped:
    """Around code of a device, whose task groups wrap what ends a channel, and on trio a cancellation along with it.

    It has no state: each channel would otherwise keep one while its device runs.
    """

    __slots__ = ()

    def __enter__(self) -> None:
        return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not isinstance(error, BaseExceptionGroup):
            return
        errors = error.split(anyio.get_cancelled_exc_class())[1]
        if errors is None:
            return
        ends, own = errors.split(_is_end)
        first: BaseException = ends if own is None and ends is not None else errors
        while isinstance(first, BaseExceptionGroup) and (own is None or len(first.exceptions) == 1):
            first = first.exceptions[0]
        raise first from first.__cause__  # which says whose fault it is, where a pipe put it in words of its own


UNWRAPPED = Unwrapped()
