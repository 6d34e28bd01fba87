"""Turns trace events into sentences. Everything that the demo says about what happened comes from here, so from the trace."""

from __future__ import annotations

from .. import trace as events
from ..hvdef import HvStatus, MessageType, Msr
from ..hvdef.registers import SINT_COUNT, TIMER_COUNT, SintRegister

_MSR_NAMES = (
    {int(msr): msr.name for msr in Msr}
    | {Msr.sint(n): f"SINT{n}" for n in range(SINT_COUNT)}
    | {Msr.stimer_config(n): f"STIMER{n}_CONFIG" for n in range(TIMER_COUNT)}
    | {Msr.stimer_count(n): f"STIMER{n}_COUNT" for n in range(TIMER_COUNT)}
)


def tell(story: list[events.AnyEvent]) -> str:
    """Several events in one line: an arrow leads from cause to effect, writes of one processor are taken together."""
    line = ""
    for index, event in enumerate(story):
        previous = story[index - 1] if index else None
        if previous is None:
            line = sentence(event)
        elif isinstance(event, events.Write) and isinstance(previous, events.Write) and event.vp == previous.vp:
            line += f", {_written(event)}"
        else:
            follows = any(event.cause == earlier.id for earlier in story[:index])
            line += (" → " if follows else "; ") + sentence(event)
    return line


def sentence(event: events.AnyEvent) -> str:
    """One event in words, without its time and ids."""
    match event:
        case events.Post():
            return f"VP {event.vp} posts {_text(event.payload)} to connection {event.connection_id:#x}"
        case events.Signal():
            return f"VP {event.vp} signals flag {event.flag} to connection {event.connection_id:#x}"
        case events.Route():
            return _status(HvStatus.SUCCESS)
        case events.Refuse():
            return f"{_status(HvStatus(event.status))}: {event.reason}"
        case events.Queue():
            where = _sint(event)
            return f"the host posts {_text(event.payload)} for {where}" + (
                "" if event.depth == 1 else f", {event.depth} wait"
            )
        case events.Deliver():
            return f"the slot of {_sint(event)} holds {_type(event.message_type)} {_text(event.payload)}"
        case events.Pending():
            return f"the slot of {_sint(event)} is full: message-pending set"
        case events.Drop():
            return f"the message for {_sint(event)} is dropped and counted: {event.reason}"
        case events.Raise():
            return f"the host sets flag {event.flag} of {_sint(event)}: {event.outcome}"
        case events.Interrupt():
            return f"vector {event.vector:#04x} {event.outcome}"
        case events.Acknowledge():
            return f"VP {event.vp} takes vector {event.vector:#04x}"
        case events.Eom():
            return f"VP {event.vp} writes EOM"
        case events.Eoi():
            return f"VP {event.vp} writes EOI"
        case events.Write():
            return f"VP {event.vp} writes {_written(event)}"
        case events.Timer():
            return f"timer {event.timer} of VP {event.vp} expires at tick {event.time}"
        case events.Fault():
            return f"VP {event.vp} faults with {event.fault}: {event.reason}"
        case events.Reset():
            return "the partition is reset"
        case events.Control():
            what = f"{event.name}{f' of channel {event.channel_id}' if event.channel_id else ''}"
            verb = "takes" if event.direction == "in" else "sends"
            return f"the {event.side} {verb} {what}" + (f", refused: {event.refused}" if event.refused else "")
        case events.Channel():
            return f"channel {event.channel_id} of the {event.side} is {event.after}"
        case events.Gpadl():
            return f"GPADL {event.gpadl_id:#x} of the {event.side} is {event.after or 'gone'}"
        case events.Ring():
            verb = "writes" if event.action == "write" else "reads"
            packets = f"{event.packets} packet{'' if event.packets == 1 else 's'}"
            return f"the {event.side} {verb} {packets}" + (" and signals" if event.signalled else "")


def _status(status: HvStatus) -> str:
    return f"{status.name} ({status:#04x})"


def _sint(event: events.Queue | events.Deliver | events.Pending | events.Drop | events.Raise) -> str:
    return f"VP {event.vp} SINT {event.sint}"


def _type(message_type: int) -> str:
    return "the timer message" if message_type == MessageType.TIMER_EXPIRED else f"type {message_type:#x}"


def _text(payload: bytes) -> str:
    text = printable(payload)
    return f"{len(payload)} bytes" if text is None else f'"{text}"'


def printable(payload: bytes) -> str | None:
    """The payload as text, None when it is not all printable ASCII."""
    text = payload.decode("ascii", "replace")
    return text if payload and text.isascii() and text.isprintable() else None


def _written(event: events.Write) -> str:
    return f"{_MSR_NAMES.get(event.msr, f'{event.msr:#010x}')} = {_value(event)}"


def _value(event: events.Write) -> str:
    if Msr.SINT0 <= event.msr <= Msr.SINT15:
        sint = SintRegister(event.value)
        flags = "".join(
            f", {name.replace('_', '-')}" for name in ("masked", "auto_eoi", "polling") if getattr(sint, name)
        )
        return f"vector {sint.vector:#04x}{flags}"
    return f"{event.value:#x}"
