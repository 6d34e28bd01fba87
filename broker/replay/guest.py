"""What a recorded guest needs of its partition: processors, memory, and where it looks for messages."""

from __future__ import annotations

import msgspec

from channels.protocol.connect import InitiateContact, ModifyConnection
from channels.protocol.ids import MAX_MESSAGE, MESSAGE_CONNECTION, NO_INTERRUPTS, VMBUS_SINT
from channels.protocol.message import ChannelMessage
from channels.protocol.open import CloseReservedChannel, ModifyChannel, OpenChannel, OpenReservedChannel
from channels.protocol.parse import Sender, parse_message
from channels.protocol.versions import Version, find_version

from ..errors import ProtocolError
from ..hvdef import PAGE_SIZE
from ..hvdef.registers import SINT_COUNT
from .conversation import Conversation, GuestMessage

MAX_PROCESSORS = 2048
MAX_MEMORY = 1 << 40
"""Bytes of guest RAM; pages beyond are pages that the guest does not have."""
_OWN_MEMORY = 16 << 20
_SYNIC_MEMORY = 6 * PAGE_SIZE
"""Two pages for each of a processor's three VTLs, at the top of RAM."""


class Needs(msgspec.Struct, frozen=True):
    """See the module."""

    vp_count: int
    memory_size: int
    """Bytes; all pages that the guest names are below, and much of its own use above them."""
    input_gpa: int
    """A page for hypercall inputs that the guest does not name."""
    targets: tuple[tuple[int, int], ...]
    """(processor, SINT) where messages of the host may come, in order."""


def needs_of(conversation: Conversation) -> Needs:
    """Look through the guest's messages. `DamagedDocument` when one names more processors than there can be."""
    collector = _Collector()
    for number, step in conversation.steps.items():
        if not isinstance(step, GuestMessage) or len(step.payload) > MAX_MESSAGE:
            continue
        try:
            message = parse_message(step.payload, Sender.GUEST)
        except ProtocolError:
            continue  # the server will say so
        collector.look_at(message, step.connection_id)
        if collector.last_vp >= MAX_PROCESSORS:
            what = f"it names processor {collector.last_vp}; a replayed guest has at most {MAX_PROCESSORS}"
            raise conversation.damage(number, what)
    vp_count = collector.last_vp + 1
    memory_size = collector.top + _OWN_MEMORY + vp_count * _SYNIC_MEMORY
    return Needs(vp_count, memory_size, collector.top, tuple(sorted(collector.targets)))


class _Collector:
    def __init__(self) -> None:
        self.last_vp = 0
        self.top = PAGE_SIZE
        """The first byte behind all pages that the guest names."""
        self.targets = {(0, VMBUS_SINT)}
        self._version = Version.V1

    def look_at(self, message: ChannelMessage, connection_id: int) -> None:
        match message:
            case InitiateContact():
                self._contact(message, connection_id)
            case ModifyConnection():
                self._page(message.parent_to_child_monitor_page_gpa)
                self._page(message.child_to_parent_monitor_page_gpa)
            case OpenChannel() | ModifyChannel() if self._version >= Version.WIN8:
                self._processor(message.target_vp)
            case OpenReservedChannel() | CloseReservedChannel():
                self._target(message.target_vp, message.target_sint & 0xFF)

    def _contact(self, message: InitiateContact, connection_id: int) -> None:
        self._version = find_version(message.version_requested) or Version.V1
        if self._version.has_interrupt_page:
            self._page(message.interrupt_page_or_target_info)
        self._page(message.parent_to_child_monitor_page_gpa)
        self._page(message.child_to_parent_monitor_page_gpa)
        if self._version >= Version.WIN8_1:
            self._target(message.target_message_vp, VMBUS_SINT)
        if self._version >= Version.WIN10_RS3_1 and connection_id != MESSAGE_CONNECTION:
            self._target(message.target_message_vp, message.sint)

    def _target(self, vp: int, sint: int) -> None:
        self._processor(vp)
        if sint < SINT_COUNT:
            self.targets.add((vp, sint))

    def _processor(self, vp: int) -> None:
        if vp != NO_INTERRUPTS:
            self.last_vp = max(self.last_vp, vp)

    def _page(self, gpa: int) -> None:
        end = (gpa // PAGE_SIZE + 1) * PAGE_SIZE
        if end <= MAX_MEMORY:
            self.top = max(self.top, end)
