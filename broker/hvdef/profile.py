"""Profiles: where the reference implementations differ, the difference as data.

`OPENVMM` does what OpenVMM's emulator and dispatcher do, `TLFS` what the specification says.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from .status import HvStatus


class DeliveryRules(msgspec.Struct, frozen=True):
    """What happens to a message or an event when its SINT cannot simply take it."""

    message_masked: Literal["drop", "fill"]
    """A message to a masked SINT: dropped and counted, or put in the slot without an interrupt."""
    message_synic_off: Literal["deliver", "wait", "drop"]
    """SCONTROL off: delivered all the same, kept in the queue, or dropped and counted. A direct post that cannot be
    delivered gets INVALID_SYNIC_STATE."""
    message_page_off: Literal["deliver", "wait", "drop"]
    """SIMP off: delivered into the hidden overlay page, kept in the queue, or dropped and counted; direct as above."""
    event_masked: Literal["refuse", "set"]
    """An event to a masked SINT: refused with the flag untouched, or the flag set and the interrupt lost."""
    event_page_off: Literal["set", "refuse"]
    """SIEFP off: the flag is set in the hidden overlay page, or the event is refused."""
    honours_polling: bool
    """A polling SINT raises no interrupt, or the polling bit is ignored."""
    direct_signal_reports_state: bool
    """HvCallSignalEventDirect to a SINT that refuses it is INVALID_SYNIC_STATE, or SUCCESS and not newly signalled."""
    rescan_every_exit: bool
    """Queued messages are tried again at every exit of the processor, or at EOM, EOI and a new message only."""


class Profile(msgspec.Struct, frozen=True):
    """One reference, as the values and switches in which it differs from the other."""

    name: str
    delivery: DeliveryRules
    scontrol_reset: int
    wrong_kind: HvStatus
    """Status of a call through a connection of the other kind."""
    straddle: HvStatus
    """Status of an input that crosses a page."""
    straddle_before_alignment: bool
    checks_reserved_control_bits: bool
    checks_message_type: bool
    """Message type 0 or with bit 31 set is INVALID_PARAMETER."""
    checks_privileges: bool
    checks_vector: bool
    """An unmasked SINT with a vector below 16 faults."""
    timer_compare_wraps: bool
    """A timer is due by a signed compare modulo 2 ** 64 (a count of 2 ** 63 or more lies in the past), or by a plain one."""
    timer_needs_sint: bool
    """An enabled timer that is not in direct mode and has SINT 0 is disabled at once."""
    zero_count_disables_timer: bool


OPENVMM = Profile(
    name="openvmm",
    delivery=DeliveryRules(
        message_masked="drop",
        message_synic_off="deliver",
        message_page_off="deliver",
        event_masked="refuse",
        event_page_off="set",
        honours_polling=True,
        direct_signal_reports_state=False,
        rescan_every_exit=True,
    ),
    scontrol_reset=1,
    wrong_kind=HvStatus.INVALID_CONNECTION_ID,
    straddle=HvStatus.INVALID_HYPERCALL_INPUT,
    straddle_before_alignment=True,
    checks_reserved_control_bits=False,
    checks_message_type=False,
    checks_privileges=False,
    checks_vector=False,
    timer_compare_wraps=True,
    timer_needs_sint=False,
    zero_count_disables_timer=False,
)

TLFS = Profile(
    name="tlfs",
    delivery=DeliveryRules(
        message_masked="fill",
        message_synic_off="wait",
        message_page_off="wait",
        event_masked="refuse",
        event_page_off="refuse",
        honours_polling=True,
        direct_signal_reports_state=True,
        rescan_every_exit=False,
    ),
    scontrol_reset=0,
    wrong_kind=HvStatus.INVALID_PORT_ID,
    straddle=HvStatus.INVALID_ALIGNMENT,
    straddle_before_alignment=False,
    checks_reserved_control_bits=True,
    checks_message_type=True,
    checks_privileges=True,
    checks_vector=True,
    timer_compare_wraps=False,
    timer_needs_sint=True,
    zero_count_disables_timer=True,
)

PROFILES: dict[str, Profile] = {profile.name: profile for profile in (OPENVMM, TLFS)}
