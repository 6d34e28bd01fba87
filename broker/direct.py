"""The direct forms of post and signal, which VTL 2 uses on other VTLs of its own partition (OpenVMM, WHP back end)."""

from __future__ import annotations

from collections.abc import Callable

from .core import ProcessorSynic, QueuedMessage, Signaled
from .hvdef import (
    PARTITION_SELF,
    SINT_COUNT,
    VP_SELF,
    HvStatus,
    PostMessageDirectInput,
    Profile,
    SignalEventDirectInput,
    SynicMessage,
    Vtl,
)


class DirectCalls:
    """The direct calls of processor `own_index`. `locate(vp)` gives a processor's SynIC by VTL, None for no processor."""

    def __init__(
        self, own_index: int, profile: Profile, locate: Callable[[int], Callable[[Vtl], ProcessorSynic | None] | None]
    ) -> None:
        self._own_index = own_index
        self._profile = profile
        self._locate = locate

    def post(self, vtl: Vtl, call: PostMessageDirectInput) -> HvStatus:
        """HvCallPostMessageDirect.

        INVALID_PARAMETER (VTL, SINT or partition, a processor other than the caller's, or message type 0, which would
        leave the slot empty), OPERATION_DENIED (caller is not VTL 2), INVALID_SYNIC_STATE (no such VTL, masked,
        proxied), OBJECT_IN_USE (slot busy). The slot gets the 256 bytes as they are.
        """
        is_own = call.vp_index in (VP_SELF, self._own_index)
        if call.vtl > Vtl.VTL2 or call.sint >= SINT_COUNT or call.partition_id != PARTITION_SELF or not is_own:
            return HvStatus.INVALID_PARAMETER
        if vtl != Vtl.VTL2:
            return HvStatus.OPERATION_DENIED
        machine = self._machine(self._own_index, call.vtl)
        if machine is None:
            return HvStatus.INVALID_SYNIC_STATE
        message = SynicMessage.unpack(call.message)
        if not message.message_type:
            return HvStatus.INVALID_PARAMETER
        queued = QueuedMessage(message.message_type, message.payload, message.origination_id)
        return machine.post_if_free(call.sint, queued, slot=call.message)

    def signal(self, vtl: Vtl, call: SignalEventDirectInput) -> tuple[HvStatus, bool]:
        """HvCallSignalEventDirect: the status, and whether the flag was newly signalled.

        INVALID_PARAMETER (VTL, SINT 0 or above 15, partition), OPERATION_DENIED (caller is not VTL 2), INVALID_VP_INDEX,
        INVALID_SYNIC_STATE (no such VTL, proxied; TLFS profile: masked or switched off).
        """
        if call.vtl > Vtl.VTL2 or not 0 < call.sint < SINT_COUNT or call.partition_id != PARTITION_SELF:
            return HvStatus.INVALID_PARAMETER, False
        if vtl != Vtl.VTL2:
            return HvStatus.OPERATION_DENIED, False
        vp_index = self._own_index if call.vp_index == VP_SELF else call.vp_index
        if self._locate(vp_index) is None:
            return HvStatus.INVALID_VP_INDEX, False
        machine = self._machine(vp_index, call.vtl)
        if machine is None:
            return HvStatus.INVALID_SYNIC_STATE, False
        outcome = machine.signal_event(call.sint, call.flag_number)
        is_refused = outcome is Signaled.REFUSED and self._profile.delivery.direct_signal_reports_state
        if outcome is Signaled.PROXIED or is_refused:
            return HvStatus.INVALID_SYNIC_STATE, False
        return HvStatus.SUCCESS, outcome is Signaled.NEWLY

    def _machine(self, vp_index: int, vtl: int) -> ProcessorSynic | None:
        of_processor = self._locate(vp_index)
        return None if of_processor is None else of_processor(Vtl(vtl))
