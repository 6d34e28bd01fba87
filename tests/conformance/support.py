"""What the SynIC conformance tests share: a partition, a guest that programs its SynIC, and the bytes to expect.

Numbers stand here as the reference prints them (`reference/synic.md` 1.2 to 1.4, 2.1, 2.2, 2.5), so that no expectation
comes out of the code under test. `Guest` is the guest's view of one processor and VTL: it goes through MSRs, hypercalls
and guest memory only.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from broker import OPENVMM, GuestMessagePort, HvStatus, Interrupt, Partition, PartitionConfig, Profile, Vtl
from broker.core import LocalApic, ProcessorSynic, QueuedMessage
from broker.memory import GuestMemory
from broker.processor import VirtualProcessor

PAGE = 4096
SINTS = range(16)

GUEST_OS_ID = 0x4000_0000
HYPERCALL = 0x4000_0001
VP_INDEX = 0x4000_0002
TIME_REF_COUNT = 0x4000_0020
EOI = 0x4000_0070
TPR = 0x4000_0072
SCONTROL = 0x4000_0080
SVERSION = 0x4000_0081
SIEFP = 0x4000_0082
SIMP = 0x4000_0083
EOM = 0x4000_0084
SINT0 = 0x4000_0090
STIMER0_CONFIG = 0x4000_00B0
STIMER0_COUNT = 0x4000_00B1

VSM_VINA = 0x000D_0005

POST_MESSAGE = 0x005C
SIGNAL_EVENT = 0x005D
SIGNAL_EVENT_DIRECT = 0x00C0
POST_MESSAGE_DIRECT = 0x00C1
FAST = 1 << 16
PARTITION_SELF = 0xFFFF_FFFF_FFFF_FFFF

SUCCESS = 0x00
INVALID_SYNIC_STATE = 0x18

INPUT_GPA = 0x1000
OUTPUT_GPA = 0x2000
_FIRST_SYNIC_GPN = 0x10


@asynccontextmanager
async def partition(**config: Any) -> AsyncIterator[Partition]:
    """An open partition of 1 MiB; the arguments are those of `PartitionConfig`."""
    async with Partition(PartitionConfig(**({"memory_size": 1 << 20} | config))) as opened:
        yield opened


def sint_value(
    vector: int, *, masked: bool = False, auto_eoi: bool = False, polling: bool = False, proxy: bool = False
) -> int:
    """The value of a SINT register (1.3)."""
    return vector | masked << 16 | auto_eoi << 17 | polling << 18 | proxy << 20


def vector_of(sint: int) -> int:
    """The vector that `Guest.enable` gives a SINT; all sixteen are of one priority class."""
    return 0x40 + sint


def message_slot(message_type: int, payload: bytes = b"", *, pending: bool = False, origination: int = 0) -> bytes:
    """The 256 bytes of a message slot (1.4)."""
    return struct.pack("<IBBHQ240s", message_type, len(payload), pending, 0, origination, payload)


EMPTY_SLOT = bytes(256)


def post_message_block(
    connection_id: int, message_type: int, payload: bytes, *, payload_size: int | None = None, reserved: int = 0
) -> bytes:
    """The 256 bytes of HvCallPostMessage's input (2.5); `payload_size` where it is to differ from the payload's."""
    size = len(payload) if payload_size is None else payload_size
    return struct.pack("<IIII240s", connection_id, reserved, message_type, size, payload)


def flags_page(flags: Iterable[tuple[int, int]] = ()) -> bytes:
    """The 4096 bytes of a SIEF page in which these (SINT, flag) are set (1.4)."""
    page = bytearray(PAGE)
    for sint, flag in flags:
        page[256 * sint + flag // 8] |= 1 << flag % 8
    return bytes(page)


class Guest:
    """Guest code on one processor and VTL. Its SIM and SIEF pages are its own unless a test moves them."""

    def __init__(self, of: Partition, vp_index: int = 0, vtl: Vtl = Vtl.VTL0) -> None:
        self.partition = of
        self.vp: VirtualProcessor = of.vp(vp_index)
        self.vtl = vtl
        self.sim_gpa = (_FIRST_SYNIC_GPN + 8 * vp_index + 2 * vtl) * PAGE
        self.sief_gpa = self.sim_gpa + PAGE
        self.input_gpa = INPUT_GPA + 0x200 * vp_index
        self.output_gpa = OUTPUT_GPA + 8 * vp_index

    async def enable(
        self,
        sints: Iterable[int] = (2,),
        *,
        masked: bool = False,
        auto_eoi: bool = True,
        polling: bool = False,
        proxy: bool = False,
    ) -> None:
        """Program the SynIC in Linux's order: SIMP, SIEFP, the SINTs, SCONTROL."""
        await self.write(SIMP, self.sim_gpa | 1)
        await self.write(SIEFP, self.sief_gpa | 1)
        for sint in sints:
            value = sint_value(vector_of(sint), masked=masked, auto_eoi=auto_eoi, polling=polling, proxy=proxy)
            await self.write(SINT0 + sint, value)
        await self.write(SCONTROL, 1)

    async def read(self, msr: int) -> int:
        """RDMSR."""
        return await self.vp.read_msr(msr, vtl=self.vtl)

    async def write(self, msr: int, value: int) -> None:
        """WRMSR."""
        await self.vp.write_msr(msr, value, vtl=self.vtl)

    def sim_page(self) -> bytes:
        """The guest page where `enable` put the SIM page."""
        return self.partition.memory.read(self.sim_gpa, PAGE)

    def sief_page(self) -> bytes:
        """The guest page where `enable` put the SIEF page."""
        return self.partition.memory.read(self.sief_gpa, PAGE)

    def slot(self, sint: int = 2) -> bytes:
        """A message slot."""
        return self.partition.memory.read(self.sim_gpa + 256 * sint, 256)

    def clear_type(self, sint: int = 2) -> None:
        """Empty a slot as a guest does. A store by the guest is no exit."""
        self.partition.memory.write(self.sim_gpa + 256 * sint, bytes(4))

    def clear_flag(self, sint: int, flag: int) -> None:
        """Clear an event flag as a guest does."""
        at = self.sief_gpa + 256 * sint + flag // 8
        (byte,) = self.partition.memory.read(at, 1)
        self.partition.memory.write(at, bytes([byte & ~(1 << flag % 8)]))

    async def take_message(self, sint: int = 2) -> bytes:
        """Copy the slot, clear its type, write EOM if message-pending is set; the copy."""
        copy = self.slot(sint)
        self.clear_type(sint)
        if copy[5] & 1:
            await self.write(EOM, 0)
        return copy

    def acknowledge(self) -> int | None:
        """Enter the interrupt handler of the highest deliverable vector, if there is one."""
        return self.vp.try_take_interrupt(vtl=self.vtl)

    def take_interrupts(self) -> list[int]:
        """Acknowledge all deliverable interrupts, without an EOI: what auto-EOI vectors need. Their vectors, in order."""
        vectors = []
        while (vector := self.acknowledge()) is not None:
            vectors.append(vector)
        return vectors

    async def serve_interrupts(self) -> list[int]:
        """Handle all deliverable interrupts, with an EOI after each; their vectors, in order."""
        vectors = []
        while (vector := self.acknowledge()) is not None:
            vectors.append(vector)
            await self.write(EOI, 0)
        return vectors

    async def signal_direct(self, sint: int, flag: int, *, vp: int = 0, vtl: Vtl = Vtl.VTL0) -> tuple[int, bytes]:
        """HvCallSignalEventDirect to (vp, vtl): the result value and the 8 bytes of output."""
        memory = self.partition.memory
        memory.write(self.input_gpa, struct.pack("<QIBBH", PARTITION_SELF, vp, vtl, sint, flag))
        memory.write(self.output_gpa, bytes(8))
        result = await self.vp.hypercall(SIGNAL_EVENT_DIRECT, self.input_gpa, self.output_gpa, vtl=self.vtl)
        return result, memory.read(self.output_gpa, 8)

    async def post_direct(self, sint: int, slot: bytes, *, vp: int = 0, vtl: Vtl = Vtl.VTL0) -> int:
        """HvCallPostMessageDirect to (vp, vtl), wire layout: the result value."""
        block = struct.pack("<QIB3xB3x256s4x", PARTITION_SELF, vp, vtl, sint, slot)
        self.partition.memory.write(self.input_gpa, block)
        return await self.vp.hypercall(POST_MESSAGE_DIRECT, self.input_gpa, vtl=self.vtl)


async def enabled_guest(
    of: Partition, vp_index: int = 0, sints: Iterable[int] = (2,), *, vtl: Vtl = Vtl.VTL0, **sint: bool
) -> Guest:
    """A guest whose SynIC is programmed, see `Guest.enable`."""
    guest = Guest(of, vp_index, vtl)
    await guest.enable(sints, **sint)
    return guest


async def message_port(of: Partition, vp: int = 0, sint: int = 2, vtl: Vtl = Vtl.VTL0) -> GuestMessagePort:
    """The host's way to post messages to a SINT."""
    return await of.synic().new_guest_message_port(vtl, vp, sint)


async def event_interrupt(
    of: Partition, sint: int = 2, flag: int = 0, *, vp: int = 0, vtl: Vtl = Vtl.VTL0
) -> Interrupt:
    """The host's way to set an event flag."""
    return (await of.synic().new_guest_event_port(flag, vtl, vp, sint, flag)).interrupt()


class RepostingPort:
    """A message port that posts each message it gets back to a guest, as the kvm-unit-tests device does."""

    def __init__(self, target: GuestMessagePort, message_type: int = 1) -> None:
        self.target = target
        self.message_type = message_type

    async def handle_message(self, message: bytes, trusted: bool) -> HvStatus:
        """No room: the caller has to try again."""
        is_queued = self.target.try_post_message(self.message_type, message)
        return HvStatus.SUCCESS if is_queued else HvStatus.INSUFFICIENT_BUFFERS


class RaisingPort:
    """An event port that sets a guest's event flag whenever it is signalled."""

    def __init__(self, target: Interrupt) -> None:
        self.target = target

    async def handle_event(self, flag: int) -> None:
        """Whatever the flag, the target is the same."""
        self.target.deliver()


class BareSynic:
    """A `ProcessorSynic` and its interrupt sink on 64 KiB of memory, without a partition around them."""

    def __init__(self, profile: Profile = OPENVMM, *, queue_depth: int = 16) -> None:
        self.memory = GuestMemory(16 * PAGE)
        self.apic = LocalApic(lambda: None)
        self.machine = ProcessorSynic(0, 0, profile, self.apic, self.memory.page, queue_depth)

    def enable(self, sints: Iterable[int] = (2,), **sint: bool) -> None:
        """Unmask these SINTs and switch SCONTROL, SIMP (page 1) and SIEFP (page 2) on."""
        for name, value in (
            (0x000A_0013, 1 * PAGE | 1),
            (0x000A_0012, 2 * PAGE | 1),
            *((0x000A_0000 + n, sint_value(vector_of(n), **sint)) for n in sints),
            (0x000A_0010, 1),
        ):
            assert self.machine.write_register(name, value, 0) is HvStatus.SUCCESS

    def __enter__(self) -> BareSynic:
        return self

    def __exit__(self, *_: object) -> None:
        self.memory.close()


def queued(message_type: int, payload: bytes = b"") -> QueuedMessage:
    """A message on its way to a slot."""
    return QueuedMessage(message_type, payload)
