"""`LocalGuestSynic`: what a guest-side driver on a processor of this program holds.

It programs the SynIC as Linux does (SIMP, SIEFP, SINT, SCONTROL; each page read-modify-write, with a page of its own
only where none is enabled) and takes a message as Linux does: copy, clear the type, read message-pending, EOM.
Pages are taken from the top of guest RAM: two for each processor and VTL. A SINT is masked when the last block that uses
it is left.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Generic, Protocol, TypeVar

import anyio

from .errors import ConfigurationError, PartitionClosed
from .hvdef import (
    EVENT_FLAG_BYTES,
    MESSAGE_SIZE,
    PAGE_SIZE,
    SINT_COUNT,
    HvStatus,
    Msr,
    PageRegister,
    SintRegister,
    SynicMessage,
    SyntheticControl,
    Vtl,
)
from .hvdef.message import MESSAGE_TYPE, slot_offset
from .memory import GuestMemory
from .processor_vtl import ProcessorVtl
from .synic import DispatchCall
from .trace import Trace
from .turns import Turns

GUEST_VECTOR_BASE = 0xE0
"""SINT n interrupts with vector 0xE0 + n, auto-EOI."""

_VECTORS = range(GUEST_VECTOR_BASE, GUEST_VECTOR_BASE + SINT_COUNT)

T = TypeVar("T")


class Exits(Protocol):
    """The exits of a processor that a driver needs."""

    index: int

    @property
    def turns(self) -> Turns: ...
    @property
    def trace(self) -> Trace | None: ...
    async def write_memory(self, gpa: int, data: bytes) -> None: ...
    def post_message(self, connection_id: int, message_type: int, payload: bytes, *, vtl: Vtl) -> DispatchCall: ...
    def signal_event(self, connection_id: int, flag_number: int = 0, *, vtl: Vtl) -> DispatchCall: ...
    async def read_msr(self, msr: int, *, vtl: Vtl) -> int: ...
    async def write_msr(self, msr: int, value: int, *, vtl: Vtl) -> None: ...


class LocalGuestSynic:
    """See the module and `GuestSynic`. `ConfigurationError` from `messages` and `events` when RAM has no page left."""

    def __init__(self, processor: Exits, own: ProcessorVtl, memory: GuestMemory) -> None:
        self.memory = memory
        self.vtl = own.vtl
        self._processor = processor
        self._own = own

    @property
    def vp_index(self) -> int:
        """The processor."""
        return self._processor.index

    @property
    def turns(self) -> Turns:
        """Where guest-side tasks wait."""
        return self._processor.turns

    @property
    def trace(self) -> Trace | None:
        """The partition's trace."""
        return self._processor.trace

    async def write_memory(self, gpa: int, data: bytes) -> None:
        """See `GuestSynic.write_memory`."""
        await self._processor.write_memory(gpa, data)

    async def post_message(self, connection_id: int, message_type: int, payload: bytes) -> HvStatus:
        """HvCallPostMessage."""
        return await self._processor.post_message(connection_id, message_type, payload, vtl=self.vtl)

    async def signal_event(self, connection_id: int, flag_number: int = 0) -> HvStatus:
        """HvCallSignalEvent."""
        return await self._processor.signal_event(connection_id, flag_number, vtl=self.vtl)

    async def end_of_message(self) -> None:
        """See `GuestSynic.end_of_message`."""
        await self._processor.write_msr(Msr.EOM, 0, vtl=self.vtl)

    @asynccontextmanager
    async def messages(self, sint: int, *, eom: bool = True) -> AsyncIterator[AsyncIterator[SynicMessage]]:
        """See `GuestSynic.messages`."""
        self._own.sint_users[sint] += 1
        try:
            await self._enable(sint)
            yield _Iterator(lambda: self._next(partial(self._take_message, eom=eom), sint))
        finally:
            await self._mask(sint)

    @asynccontextmanager
    async def events(self, sint: int) -> AsyncIterator[AsyncIterator[set[int]]]:
        """See `GuestSynic.events`."""
        self._own.sint_users[sint] += 1
        try:
            await self._enable(sint)
            yield _Iterator(lambda: self._next(self._take_flags, sint))
        finally:
            await self._mask(sint)

    async def _next(self, take: Callable[[int], Awaitable[T | None]], sint: int) -> T:
        """Look, and wait for an interrupt while there is nothing. All iterators of this processor share its interrupts."""
        while True:
            seen = self._own.interrupts
            self._acknowledge()
            found = await take(sint)
            if found is not None:
                return found
            await self._own.wait_interrupted(seen)

    def _acknowledge(self) -> None:
        """Take the interrupts that this driver asked for; other vectors are for other guest code to take."""
        while (vector := self._own.apic.deliverable()) is not None and vector in _VECTORS:
            self._own.take_interrupt()

    async def _take_message(self, sint: int, *, eom: bool) -> SynicMessage | None:
        page = PageRegister(await self._processor.read_msr(Msr.SIMP, vtl=self.vtl))
        slot = self.memory.view(page.gpa + slot_offset(sint), MESSAGE_SIZE)
        message = SynicMessage.unpack(bytes(slot))
        if not message.message_type:
            return None
        slot[: MESSAGE_TYPE.size] = MESSAGE_TYPE.pack(0)
        if eom and SynicMessage.unpack(bytes(slot)).message_pending:
            with anyio.CancelScope(shield=True):  # the message is out of its slot: a cancellation would lose it
                await self.end_of_message()
        return message

    async def _take_flags(self, sint: int) -> set[int] | None:
        page = PageRegister(await self._processor.read_msr(Msr.SIEFP, vtl=self.vtl))
        array = self.memory.view(page.gpa + EVENT_FLAG_BYTES * sint, EVENT_FLAG_BYTES)
        bits = int.from_bytes(array, "little")
        array[:] = bytes(EVENT_FLAG_BYTES)
        return set(_set_bits(bits)) or None

    async def _enable(self, sint: int) -> None:
        await self._enable_page(Msr.SIMP, 0)
        await self._enable_page(Msr.SIEFP, 1)
        await self._change_sint(sint, vector=GUEST_VECTOR_BASE + sint, masked=False, auto_eoi=True)
        control = SyntheticControl(await self._processor.read_msr(Msr.SCONTROL, vtl=self.vtl))
        await self._processor.write_msr(Msr.SCONTROL, control.replace(enable=True), vtl=self.vtl)

    async def _enable_page(self, msr: int, which: int) -> None:
        register = PageRegister(await self._processor.read_msr(msr, vtl=self.vtl))
        if register.enable:
            return
        below_top = 1 + 2 * (len(Vtl) * self.vp_index + int(self.vtl)) + which
        gpn = self.memory.size // PAGE_SIZE - below_top
        if gpn < 0:
            raise ConfigurationError(
                f"guest RAM of {self.memory.size} bytes has no page left for the SynIC of processor {self.vp_index};"
                " give the partition a larger memory_size"
            )
        await self._processor.write_msr(msr, register.replace(enable=True, gpn=gpn), vtl=self.vtl)

    async def _mask(self, sint: int) -> None:
        self._own.sint_users[sint] -= 1
        if self._own.sint_users[sint]:
            return
        with anyio.CancelScope(shield=True), contextlib.suppress(PartitionClosed):
            await self._change_sint(sint, masked=True)

    async def _change_sint(self, sint: int, **fields: int) -> None:
        register = SintRegister(await self._processor.read_msr(Msr.sint(sint), vtl=self.vtl))
        await self._processor.write_msr(Msr.sint(sint), register.replace(**fields), vtl=self.vtl)


class _Iterator(Generic[T]):
    def __init__(self, step: Callable[[], Awaitable[T]]) -> None:
        self._step = step

    def __aiter__(self) -> _Iterator[T]:
        return self

    async def __anext__(self) -> T:
        return await self._step()


def _set_bits(bits: int) -> Iterator[int]:
    """Their numbers, lowest first, in time that grows with how many are set and not with how high they are."""
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest
