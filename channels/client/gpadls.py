"""A VMBus client's GPADLs: guest memory that the host may use, and when it may be used for something else again.

It will: keep pages that the client allocated until the host has let go of them, also when the one who waits is cancelled:
then it goes on in the background. It will not: free pages of a host that never answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import msgspec

from broker.errors import ChannelClosed, HostError
from broker.hvdef import PAGE_SIZE

from ..core.client.effects import GpadlCreateEnded, GpadlTornDown, OpenEnded
from ..pages import GuestPages
from ..protocol.gparange import GpaRange
from ..protocol.message import STATUS_SUCCESS
from .answers import Answer
from .connection import ClientConnection

FIRST_GPADL_ID = 0xE1E10
"""As in Linux."""
_MAX_ID = 0xFFFF_FFFF


class GuestGpadl(msgspec.Struct, frozen=True):
    """Guest memory that the host may use: these pages, in this order."""

    channel_id: int
    gpadl_id: int
    gpns: tuple[int, ...]
    is_allocated: bool
    """The client allocated the pages, and frees them once the host has let go of them."""


def whole_pages(gpns: Sequence[int]) -> tuple[GpaRange]:
    """These pages, in this order, as the one range of a GPADL."""
    return (GpaRange(len(gpns) * PAGE_SIZE, 0, tuple(gpns)),)


class ClientGpadls:
    """See the module."""

    def __init__(self, link: ClientConnection, pages: GuestPages) -> None:
        self.by_id: dict[int, GuestGpadl] = {}
        self._link = link
        self._machine = link.machine
        self._pages = pages
        self._next_id = FIRST_GPADL_ID

    async def create(self, channel_id: int, ranges: Sequence[GpaRange], *, is_allocated: bool) -> GuestGpadl:
        """Let the host use this memory. When that fails, allocated pages are freed."""
        while self._machine.has_gpadl(self._next_id):  # a restored client has some already
            self._next_id = (self._next_id + 1) & _MAX_ID
        gpns = tuple(gpn for gpa_range in ranges for gpn in gpa_range.gpns)
        gpadl = GuestGpadl(channel_id, self._next_id, gpns, is_allocated)
        try:
            buffer = b"".join(gpa_range.pack() for gpa_range in ranges)
            ask = partial(self._machine.create_gpadl, channel_id, gpadl.gpadl_id, len(ranges), buffer)
            answer = self._link.ask(GpadlCreateEnded, gpadl.gpadl_id, ask)
        except (HostError, ValueError):
            if is_allocated:
                self._pages.free(gpns)
            raise
        self._next_id = (self._next_id + 1) & _MAX_ID
        self.add(gpadl)
        try:
            ended = await answer.wait()
        except HostError:
            raise
        except BaseException:
            self.take_back_later(gpadl, created=answer)
            raise
        if ended.status != STATUS_SUCCESS:
            self._forget(gpadl)
            raise ChannelClosed(
                f"the host does not take GPADL {gpadl.gpadl_id:#010x} of channel {channel_id:#x}:"
                f" status {ended.status:#010x}"
            )
        return gpadl

    def add(self, gpadl: GuestGpadl) -> None:
        """The host uses this memory, or is about to."""
        self.by_id[gpadl.gpadl_id] = gpadl
        self._link.use(gpadl.channel_id)

    async def take_back(self, gpadl: GuestGpadl) -> None:
        """Tear down, and wait until the host has let go; nothing without a connection, or when it is gone already."""
        if not self._machine.is_connected or gpadl.gpadl_id not in self.by_id:
            return
        channel = self._machine.channel(gpadl.channel_id)
        if channel is None or gpadl.gpadl_id not in channel.gpadls:  # it went with its channel
            self._forget(gpadl)
            return
        ask = partial(self._machine.teardown_gpadl, gpadl.channel_id, gpadl.gpadl_id)
        await self._let_go(gpadl, self._link.ask(GpadlTornDown, gpadl.gpadl_id, ask))

    def take_back_later(
        self,
        gpadl: GuestGpadl,
        created: Answer[GpadlCreateEnded] | None = None,
        opened: Answer[OpenEnded] | None = None,
    ) -> None:
        """Take it back in the background, once it is created, or once the open over it has ended."""

        async def work() -> None:
            if opened is not None:
                await opened.wait()
            if created is not None and (await created.wait()).status != STATUS_SUCCESS:
                self._forget(gpadl)
            else:
                await self.take_back(gpadl)

        self._link.later(work)

    def forget_all(self) -> None:
        """The host has let go of everything."""
        for gpadl in list(self.by_id.values()):
            self._forget(gpadl)

    async def _let_go(self, gpadl: GuestGpadl, answer: Answer[GpadlTornDown]) -> None:
        try:
            await answer.wait()
        except HostError:
            raise
        except BaseException:
            self._link.later(partial(self._let_go, gpadl, answer))
            raise
        self._forget(gpadl)

    def _forget(self, gpadl: GuestGpadl) -> None:
        if self.by_id.pop(gpadl.gpadl_id, None) is not None:
            if gpadl.is_allocated:
                self._pages.free(gpadl.gpns)
            self._link.unuse(gpadl.channel_id)
