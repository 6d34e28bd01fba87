"""What the SynIC and its hypercalls carry: message slots, event flags, monitor pages, hypercall inputs."""

from __future__ import annotations

from broker.hvdef import MessageType
from broker.hvdef.hypercall import (
    PARTITION_SELF,
    POST_MESSAGE,
    POST_MESSAGE_DIRECT_SIZE,
    POST_MESSAGE_SIZE,
    SIGNAL_EVENT,
    SIGNAL_EVENT_DIRECT,
    VP_ANY,
    VP_SELF,
)
from broker.hvdef.message import (
    EVENT_FLAG_BYTES,
    EVENT_FLAGS_PER_SINT,
    HYPERVISOR_MESSAGE,
    MAX_PAYLOAD,
    MESSAGE_PENDING,
    MESSAGE_SIZE,
    TIMER_PAYLOAD,
)
from broker.hvdef.monitor import (
    GROUP_COUNT,
    GROUP_SIZE,
    GROUPS_END,
    LATENCY_OFFSET,
    MONITOR_COUNT,
    MONITORS_PER_GROUP,
    NEXT_CHECK_TIME_OFFSET,
    PARAMETER_OFFSET,
    PARAMETER_SIZE,
)
from broker.hvdef.registers import PAGE_SIZE, SINT_COUNT, TIMER_COUNT

from . import readings as read
from .messages import explain_message
from .table import Explain, Reading, Seen, Table, Wrong, plural

_LATENCY_SIZE = 2
_NEXT_CHECK_TIME_SIZE = 4


def explain_slot(table: Table) -> None:
    """A message slot of the SIM page, 256 bytes."""
    what = "SynIC message slot"
    table.title = what
    table.need(MESSAGE_SIZE, what)
    message_type = table.number("message_type", 4, _slot_type)
    if message_type == MessageType.NONE:
        table.title = f"{what}, empty"
        table.ignored("what an earlier message left behind")
        return
    size = table.number("payload_size", 1, _payload_size)
    table.number("flags", 1, _slot_flags)
    table.zeros("reserved", 2)
    table.number("origination_id", 8, "the sender, or the port's ID")
    _payload(table, what, message_type, size)


def explain_post(table: Table) -> None:
    """The input of HvCallPostMessage, 256 bytes."""
    what = "HvCallPostMessage input"
    table.title = what
    table.need(POST_MESSAGE_SIZE, what)
    connection_id = table.number("connection_id", 4, read.message_target)
    table.misfit += not read.message_server(connection_id)
    table.zeros("reserved", 4)
    message_type = table.number("message_type", 4, _posted_type)
    size = table.number("payload_size", POST_MESSAGE.size - 12, _payload_size)
    _payload(table, what, message_type, size)
    table.ignored("beyond the input")


def explain_post_direct(table: Table) -> None:
    """The input of HvCallPostMessageDirect, 280 bytes."""
    what = "HvCallPostMessageDirect input"
    table.need(POST_MESSAGE_DIRECT_SIZE, what)
    table.title = what
    table.number("partition_id", 8, _partition)
    table.number("vp_index", 4, _vp)
    table.number("vtl", 1, read.vtl)
    table.zeros("padding", 3)
    table.number("sint", 1, read.sint)
    table.zeros("padding", 3)
    table.within(MESSAGE_SIZE, explain_slot)
    table.title = f"{what}: {table.title}"
    table.zeros("padding", 4)
    table.ignored("beyond the input")


def explain_signal(table: Table) -> None:
    """The input of HvCallSignalEvent, 8 bytes."""
    table.title = "HvCallSignalEvent input"
    table.need(SIGNAL_EVENT.size, table.title)
    table.number("connection_id", 4, read.event_target)
    table.number("flag_number", 2, _flag)
    table.zeros("reserved", 2)
    table.ignored("beyond the input")


def explain_signal_direct(table: Table) -> None:
    """The input of HvCallSignalEventDirect, 16 bytes."""
    table.title = "HvCallSignalEventDirect input"
    table.need(SIGNAL_EVENT_DIRECT.size, table.title)
    table.number("partition_id", 8, _partition)
    table.number("vp_index", 4, _vp)
    table.number("vtl", 1, read.vtl)
    table.number("sint", 1, read.sint)
    table.number("flag_number", 2, _flag)
    table.ignored("beyond the input")


def explain_flags(table: Table) -> None:
    """The event flags of all SINTs, 4096 bytes."""
    table.title = "event flags page (SIEF): 2048 flags for each SINT"
    table.need(PAGE_SIZE, "event flags page")
    table.array("SINT", SINT_COUNT, EVENT_FLAG_BYTES, _sint_flags)
    table.ignored("beyond the page")


def explain_monitors(table: Table) -> None:
    """A monitor page, 4096 bytes."""
    table.title = "monitor page: signals without hypercalls"
    table.need(PAGE_SIZE, "monitor page")
    start = table.position
    if not table.number("trigger_state", 4, _trigger_state):
        table.misfit += 1
    table.zeros("reserved", 4)
    for group in range(GROUP_COUNT):
        first = group * MONITORS_PER_GROUP
        for half in ("pending", "armed"):
            table.number(f"group[{group}].{half}", GROUP_SIZE // 2, _monitors(half, first))
    table.zeros("reserved", NEXT_CHECK_TIME_OFFSET - GROUPS_END)
    _numbers(table, "next_check_time", _NEXT_CHECK_TIME_SIZE, "in ticks of 100 ns")
    table.zeros("reserved", start + LATENCY_OFFSET - table.position)
    _numbers(table, "latency", _LATENCY_SIZE, "in ticks of 100 ns")
    table.zeros("reserved", start + PARAMETER_OFFSET - table.position)
    table.array("parameter", MONITOR_COUNT, PARAMETER_SIZE, _parameter)
    table.zeros("reserved", start + PAGE_SIZE - table.position)
    table.ignored("beyond the page")


def _payload(table: Table, what: str, message_type: int, size: int) -> None:
    """The payload that the header declares, and what is left of the 240 bytes."""
    explain = _PAYLOADS.get(message_type, _plain)
    size = min(size, MAX_PAYLOAD)

    def payload(part: Table) -> None:
        before = part.misfit
        part.within(size, explain)
        part.misfit = min(part.misfit, before + 1)  # a bad payload says little about its envelope
        part.misfit += not size
        part.ignored(f"beyond the payload of {plural(size, 'byte')}")

    table.within(MAX_PAYLOAD, payload)
    table.title = f"{what}: {table.title}" if table.title != what else what


def _plain(table: Table) -> None:
    table.rest("payload", "")


def _timer(table: Table) -> None:
    table.title = "a timer has expired"
    table.need(TIMER_PAYLOAD.size, "timer message")
    table.number("timer_index", 4, _timer_index)
    table.zeros("reserved", 4)
    table.number("expiration_time", 8, read.ticks)
    table.number("delivery_time", 8, read.ticks)


_PAYLOADS: dict[int, Explain] = {MessageType.CHANNEL: explain_message, MessageType.TIMER_EXPIRED: _timer}


def _timer_index(value: int, _: Seen) -> str | Wrong:
    return f"timer {value}" if value < TIMER_COUNT else Wrong("no such timer", f"0 to {TIMER_COUNT - 1}")


def _slot_type(value: int, _: Seen) -> str:
    if value == MessageType.CHANNEL:
        return "a channel message"
    if value == MessageType.NONE:
        return "none: the slot is empty"
    try:
        return MessageType(value).name
    except ValueError:
        return "from the hypervisor" if value & HYPERVISOR_MESSAGE else "as guest and host agree"


def _posted_type(value: int, seen: Seen) -> str | Wrong:
    if value == MessageType.NONE:
        return Wrong("0 is an empty slot; OpenVMM lets it pass, the TLFS does not", "a message type over 0")
    if value & HYPERVISOR_MESSAGE:
        return Wrong("the hypervisor's own; OpenVMM lets it pass, the TLFS does not", "a type without bit 31")
    return _slot_type(value, seen)


def _payload_size(value: int, _: Seen) -> str | Wrong:
    if value > MAX_PAYLOAD:
        return Wrong(f"a message holds {MAX_PAYLOAD} bytes", f"at most {MAX_PAYLOAD} bytes")
    return plural(value, "byte")


def _slot_flags(value: int, _: Seen) -> str | Wrong:
    if value & ~MESSAGE_PENDING:
        return Wrong("bit 0 is message-pending, the others are 0", "0 or 1")
    return "message-pending: more wait, write EOM" if value else "none"


def _flag(value: int, _: Seen) -> str | Wrong:
    if value >= EVENT_FLAGS_PER_SINT:
        return Wrong("no such flag", f"a flag from 0 to {EVENT_FLAGS_PER_SINT - 1}")
    return f"event flag {value}"


def _partition(value: int, _: Seen) -> str:
    return "the caller's own partition" if value == PARTITION_SELF else f"partition {value:#x}"


def _vp(value: int, _: Seen) -> str:
    return {VP_SELF: "the calling processor", VP_ANY: "any processor"}.get(value) or f"VP {value}"


def _sint_flags(table: Table, field: str) -> None:
    flags = read.bits(table.peek(EVENT_FLAG_BYTES))
    table.text(field, EVENT_FLAG_BYTES, flags, "event flags that are set")


def _trigger_state(value: int, _: Seen) -> str | Wrong:
    if value >> GROUP_COUNT:
        return Wrong("bits 0 to 3 enable the groups, the others are 0", f"below {1 << GROUP_COUNT}")
    return f"groups that are enabled: {read.bits(value)}"


def _monitors(half: str, first: int) -> Reading:
    return lambda value, _: f"monitors that are {half}: {read.bits(value, first)}"


def _numbers(table: Table, field: str, size: int, meaning: str) -> None:
    def one(part: Table, name: str) -> None:
        part.number(name, size, meaning)

    table.array(field, MONITOR_COUNT, size, one)


def _parameter(table: Table, field: str) -> None:
    table.number(f"{field}.connection_id", 4, read.event_target)
    table.number(f"{field}.flag_number", 2, _flag)
    table.zeros(f"{field}.reserved", 2)
