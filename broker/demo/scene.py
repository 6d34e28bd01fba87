"""The scene of `vmbus demo`: two processors, a message port, an event port, and what the SynIC does with them.

Host: a mailbox of two buffers at connection 0x1, event flags at 0x2, a port for VTL 1 and above at 0x3, and a way to
post and signal to each processor's SINT 2. The guest code runs on the processors; it runs under virtual time and takes
turns, so the same seed gives the same scene on both event loops.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from ..access import SynicPortAccess
from ..hvdef import (
    EVENT_FLAG_BYTES,
    MESSAGE_SIZE,
    Msr,
    PageRegister,
    Profile,
    SintRegister,
    SynicMessage,
    TimerConfig,
    Vtl,
)
from ..hvdef.message import MESSAGE_TYPE, slot_offset
from ..inbox import MessageInbox, receive_events, receive_messages
from ..partition import Partition, PartitionConfig
from ..processor import VirtualProcessor
from ..trace import AnyEvent, Trace

MAILBOX, EVENTS, PRIVILEGED, NOBODY = 0x1, 0x2, 0x3, 0x99
SINT = 2
VECTOR = 0x52
BUFFERS = 2

GuestCode = Callable[[VirtualProcessor], Awaitable[None]]


class SlotPicture(msgspec.Struct, frozen=True):
    """SINT 2 of a processor: its message slot, what waits behind it, its event flags, its interrupts and its losses."""

    vp: int
    message_type: int
    payload: bytes
    message_pending: bool
    queued: int
    flags: list[int]
    masked: bool
    interrupt_pending: bool
    dropped: int


class Step(msgspec.Struct, frozen=True):
    """One step: what happened (trace events) and how things look after it."""

    number: int
    title: str
    events: list[AnyEvent]
    host: str
    """What the host's own task did, in words; empty when it did nothing."""
    mailbox: int
    """Messages that wait in the mailbox of two buffers."""
    processors: list[SlotPicture]


async def play(profile: Profile, backend: str, seed: int, trace: Trace) -> list[Step]:
    """Play the scene and return its steps. `SynicUnsupported` where the backend has no SynIC."""
    events: list[AnyEvent] = []
    trace.subscribe(events.append)
    config = PartitionConfig(
        vp_count=2, profile=profile, backend=backend, seed=seed, virtual_time=True, quantum=1, trace=trace
    )
    steps: list[Step] = []
    async with Partition(config) as partition:
        access = partition.synic()
        async with (
            receive_messages(access, MAILBOX, BUFFERS) as mailbox,
            receive_events(access, EVENTS) as flags,
            receive_messages(access, PRIVILEGED, minimum_vtl=Vtl.VTL1),
        ):
            scene = _Scene(partition, access, mailbox, flags.receive)
            for title, act in scene.acts():
                host = await act()
                await partition.settled()
                pictures = [scene.picture(0), scene.picture(1)]
                steps.append(Step(len(steps) + 1, title, events.copy(), host or "", len(mailbox), pictures))
                events.clear()
    return steps


class _Scene:
    def __init__(
        self,
        partition: Partition,
        access: SynicPortAccess,
        mailbox: MessageInbox,
        take_flags: Callable[[], Awaitable[set[int]]],
    ) -> None:
        self._partition = partition
        self._access = access
        self._mailbox = mailbox
        self._take_flags = take_flags

    def acts(self) -> list[tuple[str, Callable[[], Awaitable[str | None]]]]:
        """The scene, act by act; an act returns what the host did, if anything."""
        return [
            ("The guest switches its SynIC on", self._switch_on),
            ("A post is accepted", lambda: self._run(0, _post(MAILBOX, b"hello"))),
            ("Both processors want the last buffer; the seed decides", self._race),
            ("The host empties its mailbox, and there is room again", self._empty_mailbox),
            ("An event port takes no messages", lambda: self._run(0, _post(EVENTS, b"wrong kind"))),
            ("Nobody listens there", lambda: self._run(0, _post(NOBODY, b"anyone?"))),
            ("VTL 0 is not trusted enough for this port", lambda: self._run(1, _post(PRIVILEGED, b"let me in"))),
            ("Messages queue: one slot, the rest wait", self._host_posts_three),
            ("The guest empties the slot and writes EOM; the next one comes", lambda: self._run(0, _take_message)),
            ("And once more", lambda: self._run(0, _take_message)),
            ("The last one has no message-pending, so there is no EOM", lambda: self._run(0, _take_message)),
            ("A message meets a masked SINT", self._post_to_masked_sint),
            ("Signals to the host coalesce", self._signal_host),
            ("Signals to the guest coalesce too: three signals, one interrupt", self._signal_guest),
            ("The guest tests and clears its flags", lambda: self._run(1, _take_flags)),
            ("A timer message, one millisecond later", self._timer),
        ]

    def picture(self, vp_index: int) -> SlotPicture:
        """How SINT 2 of a processor looks now."""
        machine = self._partition.vp(vp_index).machine()
        assert machine is not None
        offset = slot_offset(SINT)
        slot = SynicMessage.unpack(machine.sim_page[offset : offset + MESSAGE_SIZE])
        array = machine.sief_page[EVENT_FLAG_BYTES * SINT : EVENT_FLAG_BYTES * (SINT + 1)]
        bits = int.from_bytes(array, "little")
        return SlotPicture(
            vp=vp_index,
            message_type=slot.message_type,
            payload=slot.payload if slot.message_type else b"",
            message_pending=bool(slot.message_type) and slot.message_pending,
            queued=machine.queues.count(SINT),
            flags=[flag for flag in range(bits.bit_length()) if bits >> flag & 1],
            masked=machine.sint(SINT).masked,
            interrupt_pending=machine.apic.is_pending(VECTOR),
            dropped=machine.dropped,
        )

    async def _run(self, vp_index: int, code: GuestCode) -> None:
        await self._partition.start(vp_index, code).wait()

    async def _switch_on(self) -> None:
        for vp_index in range(2):
            await self._run(vp_index, _switch_on)

    async def _race(self) -> None:
        runs = [self._partition.start(vp_index, _post(MAILBOX, b"me first")) for vp_index in range(2)]
        for run in runs:
            await run.wait()

    async def _empty_mailbox(self) -> str:
        batch = await self._mailbox.receive_batch()
        await self._run(1, _post(MAILBOX, b"again"))
        return f"the host took {len(batch)} messages at once"

    async def _host_posts_three(self) -> None:
        port = await self._access.new_guest_message_port(Vtl.VTL0, 0, SINT)
        for text in (b"one", b"two", b"three"):
            port.try_post_message(1, text)
        port.close()

    async def _post_to_masked_sint(self) -> None:
        await self._run(0, _set_masked(True))
        port = await self._access.new_guest_message_port(Vtl.VTL0, 0, SINT)
        port.try_post_message(1, b"is anybody in?")
        port.close()

    async def _signal_host(self) -> str:
        async def signal(vp: VirtualProcessor) -> None:
            for flag in (0, 7, 7):
                await vp.signal_event(EVENTS, flag)

        await self._run(1, signal)
        await self._partition.settled()
        flags = await self._take_flags()
        return f"the host was woken once, with flags {{{', '.join(map(str, sorted(flags)))}}}"

    async def _signal_guest(self) -> None:
        port = await self._access.new_guest_event_port(EVENTS, Vtl.VTL0, 1, SINT, 5)
        for _ in range(3):
            port.interrupt().deliver()
            await self._partition.settled()
        port.close()

    async def _timer(self) -> None:
        config = TimerConfig.make(enable=True, sintx=SINT)

        async def wait_for_timer(vp: VirtualProcessor) -> None:
            now = await vp.read_msr(Msr.TIME_REF_COUNT)
            await vp.write_msr(Msr.STIMER0_COUNT, now + 10_000)
            await vp.write_msr(Msr.STIMER0_CONFIG, config)
            await vp.wait_for_interrupt()

        await self._run(1, wait_for_timer)


def _post(connection_id: int, payload: bytes) -> GuestCode:
    async def post(vp: VirtualProcessor) -> None:
        await vp.post_message(connection_id, 1, payload)

    return post


def _set_masked(masked: bool) -> GuestCode:
    async def change(vp: VirtualProcessor) -> None:
        register = SintRegister(await vp.read_msr(Msr.sint(SINT)))
        await vp.write_msr(Msr.sint(SINT), register.replace(masked=masked))

    return change


async def _switch_on(vp: VirtualProcessor) -> None:
    await vp.write_msr(Msr.SIMP, PageRegister.make(enable=True, gpn=0x10 + vp.index))
    await vp.write_msr(Msr.SIEFP, PageRegister.make(enable=True, gpn=0x20 + vp.index))
    await vp.write_msr(Msr.sint(SINT), SintRegister.make(vector=VECTOR, auto_eoi=True))
    await vp.write_msr(Msr.SCONTROL, 1)


async def _take_message(vp: VirtualProcessor) -> None:
    await vp.wait_for_interrupt()
    page = PageRegister(await vp.read_msr(Msr.SIMP))
    slot = vp.memory.view(page.gpa + slot_offset(SINT), MESSAGE_SIZE)
    slot[: MESSAGE_TYPE.size] = bytes(MESSAGE_TYPE.size)
    if SynicMessage.unpack(slot).message_pending:
        await vp.write_msr(Msr.EOM, 0)


async def _take_flags(vp: VirtualProcessor) -> None:
    await vp.wait_for_interrupt()
    page = PageRegister(await vp.read_msr(Msr.SIEFP))
    await vp.write_memory(page.gpa + EVENT_FLAG_BYTES * SINT, bytes(EVENT_FLAG_BYTES))
