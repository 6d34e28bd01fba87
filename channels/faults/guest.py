"""Wrappers around `GuestSynic`: what a slow, careless or hostile guest does."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Generic, TypeVar

import anyio

from broker.access import GuestSynic, Turns
from broker.clock import TICKS_PER_MILLISECOND
from broker.errors import PartitionClosed, ProtocolError
from broker.hvdef import HvStatus, SynicMessage, Vtl
from broker.memory import GuestMemory
from broker.trace import Trace

from ..protocol.gpadl import GpadlHeader, GpadlTeardown
from ..protocol.gparange import GPA_RANGE_HEADER, GPN_SIZE
from ..protocol.ids import CHANNEL_MESSAGE
from ..protocol.message import MessageType
from ..protocol.open import OpenChannel
from ..protocol.parse import message_type_of
from .access import Strikes

T = TypeVar("T")

NO_INDEX = 0xFFFF_FFF1
"""As an index of a ring: no multiple of 8, and beyond every ring."""


class GuestSynicWrapper:
    """A `GuestSynic` over another one; subclasses change what they want to."""

    def __init__(self, inner: GuestSynic) -> None:
        self._inner = inner

    @property
    def memory(self) -> GuestMemory:
        """See `GuestSynic`, here and below."""
        return self._inner.memory

    @property
    def vp_index(self) -> int:
        """See there."""
        return self._inner.vp_index

    @property
    def vtl(self) -> Vtl:
        """See there."""
        return self._inner.vtl

    @property
    def turns(self) -> Turns:
        """See there."""
        return self._inner.turns

    @property
    def trace(self) -> Trace | None:
        """See there."""
        return self._inner.trace

    async def write_memory(self, gpa: int, data: bytes) -> None:
        """See there."""
        await self._inner.write_memory(gpa, data)

    async def post_message(self, connection_id: int, message_type: int, payload: bytes) -> HvStatus:
        """See there."""
        return await self._inner.post_message(connection_id, message_type, payload)

    async def signal_event(self, connection_id: int, flag_number: int = 0) -> HvStatus:
        """See there."""
        return await self._inner.signal_event(connection_id, flag_number)

    def messages(self, sint: int, *, eom: bool = True) -> AbstractAsyncContextManager[AsyncIterator[SynicMessage]]:
        """See there."""
        return self._inner.messages(sint, eom=eom)

    async def end_of_message(self) -> None:
        """See there."""
        await self._inner.end_of_message()

    def events(self, sint: int) -> AbstractAsyncContextManager[AsyncIterator[set[int]]]:
        """See there."""
        return self._inner.events(sint)

    async def _sleep(self, ticks: int) -> None:
        await self.turns.sleep_until(self.turns.clock.now() + ticks, ("fault", self.vp_index))


class BusySlot(GuestSynicWrapper):
    """Is busy for a while before it looks for each message: one that comes meanwhile stays in its slot."""

    def __init__(self, inner: GuestSynic, ticks: int, strikes: Strikes) -> None:
        super().__init__(inner)
        self._ticks = ticks
        self._strikes = strikes

    @asynccontextmanager
    async def messages(self, sint: int, *, eom: bool = True) -> AsyncIterator[AsyncIterator[SynicMessage]]:
        """Late ones."""
        async with self._inner.messages(sint, eom=eom) as arriving:

            async def step() -> SynicMessage:
                if self._strikes():
                    await self._sleep(self._ticks)
                return await anext(arriving)

            yield _Steps(step)


class LateEom(GuestSynicWrapper):
    """Says late, or never (`ticks` is None), that it has taken a message: what waits for the slot stays where it is."""

    def __init__(self, inner: GuestSynic, ticks: int | None, strikes: Strikes) -> None:
        super().__init__(inner)
        self._ticks = ticks
        self._strikes = strikes

    @asynccontextmanager
    async def messages(self, sint: int, *, eom: bool = True) -> AsyncIterator[AsyncIterator[SynicMessage]]:
        """With a late EOM, or none, after each."""
        async with self._inner.messages(sint, eom=False) as arriving:

            async def step() -> SynicMessage:
                message = await anext(arriving)
                if eom:
                    await self.end_of_message()
                return message

            yield _Steps(step)

    async def end_of_message(self) -> None:
        """Late, or not at all; also when the guest is cancelled meanwhile, whose message is out of its slot."""
        is_struck = self._strikes()
        if is_struck and self._ticks is None:
            return
        try:
            if is_struck and self._ticks is not None:
                await self._sleep(self._ticks)
        finally:
            with anyio.CancelScope(shield=True), contextlib.suppress(PartitionClosed):
                await super().end_of_message()


class MaskedSint(GuestSynicWrapper):
    """Masks a SINT for a while, as soon as the fault strikes a message of it: what comes meanwhile is dropped."""

    def __init__(self, inner: GuestSynic, ticks: int, strikes: Strikes) -> None:
        super().__init__(inner)
        self._ticks = ticks
        self._strikes = strikes
        self._users: dict[int, list[_Use]] = {}
        """Everything that keeps a SINT unmasked."""

    @asynccontextmanager
    async def messages(self, sint: int, *, eom: bool = True) -> AsyncIterator[AsyncIterator[SynicMessage]]:
        """With such an interruption."""
        async with self._use(sint, lambda: self._inner.messages(sint, eom=eom)) as arriving:

            async def step() -> SynicMessage:
                message: SynicMessage = await anext(arriving)
                if self._strikes():
                    await self._mask(sint)
                return message

            yield _Steps(step)

    @asynccontextmanager
    async def events(self, sint: int) -> AsyncIterator[AsyncIterator[set[int]]]:
        """Masked along with the messages."""
        async with self._use(sint, lambda: self._inner.events(sint)) as arriving:
            yield arriving

    @asynccontextmanager
    async def _use(self, sint: int, begin: Callable[[], AbstractAsyncContextManager[Any]]) -> AsyncIterator[Any]:
        use = _Use(begin)
        users = self._users.setdefault(sint, [])
        arriving = await use.begin()
        users.append(use)
        try:
            yield arriving
        finally:
            users.remove(use)
            await use.end()

    async def _mask(self, sint: int) -> None:
        users = list(self._users[sint])
        for use in users:
            await use.end()
        try:
            await self._sleep(self._ticks)
        finally:
            with anyio.CancelScope(shield=True), contextlib.suppress(PartitionClosed):  # who gave up may wait again
                for use in users:
                    if use in self._users[sint]:
                        await use.begin()


class CorruptRing(GuestSynicWrapper):
    """Writes an index that is none into the guest-to-host ring of the channel opened last, then signals the host."""

    def __init__(self, inner: GuestSynic, strikes: Strikes) -> None:
        super().__init__(inner)
        self._strikes = strikes
        self._first_pages: dict[int, int] = {}
        """GPADL ID -> page number of its first page."""
        self._ring: int | None = None
        """GPA of a ring's control page."""

    async def post_message(self, connection_id: int, message_type: int, payload: bytes) -> HvStatus:
        """As it is; remembers where rings lie."""
        match _parsed(message_type, payload):
            case GpadlHeader() as header if len(header.data) >= GPA_RANGE_HEADER.size + GPN_SIZE:
                page = header.data[GPA_RANGE_HEADER.size : GPA_RANGE_HEADER.size + GPN_SIZE]
                self._first_pages[header.gpadl_id] = int.from_bytes(page, "little")
            case OpenChannel() as opened if opened.ring_buffer_gpadl_id in self._first_pages:
                self._ring = self._first_pages[opened.ring_buffer_gpadl_id] << 12
        return await super().post_message(connection_id, message_type, payload)

    async def signal_event(self, connection_id: int, flag_number: int = 0) -> HvStatus:
        """The host looks at the ring next, before the guest has set it right by going on."""
        is_struck = self._ring is not None and self._strikes()
        if is_struck:
            assert self._ring is not None
            self.memory.write(self._ring, NO_INDEX.to_bytes(4, "little"))
        status = await super().signal_event(connection_id, flag_number)
        if is_struck:
            await self._sleep(1)
        return status


class GpadlTornDown(GuestSynicWrapper):
    """Asks for the GPADL of a channel's rings back right after it has opened the channel over it."""

    def __init__(self, inner: GuestSynic, strikes: Strikes) -> None:
        super().__init__(inner)
        self._strikes = strikes

    async def post_message(self, connection_id: int, message_type: int, payload: bytes) -> HvStatus:
        """As it is, and then the teardown."""
        status = await super().post_message(connection_id, message_type, payload)
        message = _parsed(message_type, payload)
        if status is HvStatus.SUCCESS and isinstance(message, OpenChannel) and self._strikes():
            teardown = GpadlTeardown(message.channel_id, message.ring_buffer_gpadl_id).pack()
            while await super().post_message(connection_id, message_type, teardown) is HvStatus.INSUFFICIENT_BUFFERS:
                await self._sleep(TICKS_PER_MILLISECOND)
        return status


class _Steps(Generic[T]):
    def __init__(self, step: Callable[[], Awaitable[T]]) -> None:
        self._step = step

    def __aiter__(self) -> _Steps[T]:
        return self

    async def __anext__(self) -> T:
        return await self._step()


class _Use:
    """A block that is entered, left, and perhaps entered again."""

    def __init__(self, make: Callable[[], AbstractAsyncContextManager[Any]]) -> None:
        self._make = make
        self._block: AbstractAsyncContextManager[Any] | None = None

    async def begin(self) -> Any:
        """Enter a new one."""
        self._block = self._make()
        return await self._block.__aenter__()

    async def end(self) -> None:
        """Leave it; nothing where it was left."""
        block, self._block = self._block, None
        if block is not None:
            await block.__aexit__(None, None, None)


def _parsed(message_type: int, payload: bytes) -> GpadlHeader | OpenChannel | None:
    """A message that a fault is about; None for any other, and for one that is not whole."""
    if message_type != CHANNEL_MESSAGE:
        return None
    with contextlib.suppress(ProtocolError):
        match message_type_of(payload):
            case MessageType.GPADL_HEADER:
                return GpadlHeader.unpack(payload)
            case MessageType.OPEN_CHANNEL:
                return OpenChannel.unpack(payload)
    return None
