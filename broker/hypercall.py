"""The hypercall layer: control word, parameter block, dispatch to callables (TLFS, "Hypercall Interface").

Order of the checks, as in OpenVMM: call code, control word, straddle, alignment, memory, then what the call itself
checks. It knows the calls by the callables that it was given and nothing of devices or ports.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from .errors import MemoryAccessError
from .hvdef import (
    ALL_PRIVILEGES,
    MAX_PAYLOAD,
    PAGE_SIZE,
    CallCode,
    HvStatus,
    HypercallControl,
    HypercallResult,
    PostMessageDirectInput,
    PostMessageInput,
    Privilege,
    Profile,
    SignalEventDirectInput,
    SignalEventInput,
    Vtl,
)
from .hvdef.hypercall import (
    POST_MESSAGE_DIRECT_SIZE,
    POST_MESSAGE_SIZE,
    SIGNAL_EVENT,
    SIGNAL_EVENT_DIRECT,
    SIGNAL_EVENT_DIRECT_OUTPUT,
)
from .memory import GuestMemory

_INPUT_SIZE = {
    CallCode.POST_MESSAGE: POST_MESSAGE_SIZE,
    CallCode.SIGNAL_EVENT: SIGNAL_EVENT.size,
    CallCode.SIGNAL_EVENT_DIRECT: SIGNAL_EVENT_DIRECT.size,
    CallCode.POST_MESSAGE_DIRECT: POST_MESSAGE_DIRECT_SIZE,
}
_PRIVILEGE = {CallCode.POST_MESSAGE: Privilege.POST_MESSAGES, CallCode.SIGNAL_EVENT: Privilege.SIGNAL_EVENTS}

Post = Callable[[Vtl, int, int, bytes], Awaitable[HvStatus]]
"""(caller's VTL, connection ID, message type, payload)."""
Signal = Callable[[Vtl, int, int], Awaitable[HvStatus]]
"""(caller's VTL, connection ID, flag number)."""
PostDirect = Callable[[Vtl, PostMessageDirectInput], HvStatus]
SignalDirect = Callable[[Vtl, SignalEventDirectInput], tuple[HvStatus, bool]]
"""The status, and whether the flag was newly signalled."""


class Hypercalls:
    """The calls of one processor. Without the direct forms, those codes are unknown."""

    def __init__(
        self,
        memory: GuestMemory,
        profile: Profile,
        post: Post,
        signal: Signal,
        post_direct: PostDirect | None = None,
        signal_direct: SignalDirect | None = None,
        privileges: int = ALL_PRIVILEGES,
    ) -> None:
        self._memory = memory
        self._profile = profile
        self._privileges = privileges
        self._post = post
        self._signal = signal
        self._post_direct = post_direct
        self._signal_direct = signal_direct

    async def dispatch(self, control: int, first: int, second: int, vtl: Vtl) -> int | None:
        """Execute one hypercall and return the 64-bit result; None when it has to be executed again (no result).

        `first` is the input GPA, or the first 8 bytes of a fast call; `second` the output GPA or the next 8 bytes.
        """
        status = await self._execute(HypercallControl(control), first, second, vtl)
        return None if status is HvStatus.TIMEOUT else HypercallResult.make(status=status)

    async def _execute(self, control: HypercallControl, first: int, second: int, vtl: Vtl) -> HvStatus:
        try:
            code = CallCode(control.code)
        except ValueError:
            return HvStatus.INVALID_HYPERCALL_CODE
        status = self._check_control(code, control)
        if status is not HvStatus.SUCCESS:
            return status
        if control.fast:
            if code is not CallCode.SIGNAL_EVENT:
                return HvStatus.INVALID_HYPERCALL_INPUT
            event = SignalEventInput.from_fast(first)
            return await self._signal(vtl, event.connection_id, event.flag_number)
        data = self._read(first, _INPUT_SIZE[code])
        if isinstance(data, HvStatus):
            return data
        match code:
            case CallCode.POST_MESSAGE:
                return await self._post_message(vtl, data)
            case CallCode.SIGNAL_EVENT:
                event = SignalEventInput.unpack(data)
                return await self._signal(vtl, event.connection_id, event.flag_number)
            case CallCode.POST_MESSAGE_DIRECT:
                return self._post_message_direct(vtl, data)
            case CallCode.SIGNAL_EVENT_DIRECT:
                return self._signal_event_direct(vtl, data, second)

    def _check_control(self, code: CallCode, control: HypercallControl) -> HvStatus:
        is_direct = code in (CallCode.POST_MESSAGE_DIRECT, CallCode.SIGNAL_EVENT_DIRECT)
        if is_direct and (self._post_direct is None or self._signal_direct is None):
            return HvStatus.INVALID_HYPERCALL_CODE
        needed = _PRIVILEGE.get(code, 0)
        if self._profile.checks_privileges and needed & ~self._privileges:
            return HvStatus.ACCESS_DENIED
        if self._profile.checks_reserved_control_bits and (control.reserved0 or control.reserved1 or control.reserved2):
            return HvStatus.INVALID_HYPERCALL_INPUT
        if control.variable_header_size or control.rep_count or control.rep_start:
            return HvStatus.INVALID_HYPERCALL_INPUT
        return HvStatus.SUCCESS

    def _check_block(self, gpa: int, size: int) -> HvStatus:
        straddles = gpa % PAGE_SIZE + size > PAGE_SIZE
        misaligned = gpa % 8 != 0
        if straddles and (self._profile.straddle_before_alignment or not misaligned):
            return self._profile.straddle
        return HvStatus.INVALID_ALIGNMENT if misaligned else HvStatus.SUCCESS

    def _read(self, gpa: int, size: int) -> bytes | HvStatus:
        status = self._check_block(gpa, size)
        if status is not HvStatus.SUCCESS:
            return status
        try:
            return self._memory.read(gpa, size)
        except MemoryAccessError:
            return self._profile.straddle

    async def _post_message(self, vtl: Vtl, data: bytes) -> HvStatus:
        message = PostMessageInput.unpack(data)
        if message.payload_size is None or message.payload_size > MAX_PAYLOAD:
            return HvStatus.INVALID_PARAMETER
        return await self._post(vtl, message.connection_id, message.message_type, message.payload)

    def _post_message_direct(self, vtl: Vtl, data: bytes) -> HvStatus:
        assert self._post_direct is not None
        return self._post_direct(vtl, PostMessageDirectInput.unpack(data))

    def _signal_event_direct(self, vtl: Vtl, data: bytes, output_gpa: int) -> HvStatus:
        assert self._signal_direct is not None
        status = self._check_block(output_gpa, SIGNAL_EVENT_DIRECT_OUTPUT.size)
        if status is not HvStatus.SUCCESS:
            return status
        try:
            output = self._memory.view(output_gpa, SIGNAL_EVENT_DIRECT_OUTPUT.size)
        except MemoryAccessError:
            return self._profile.straddle
        status, newly_signaled = self._signal_direct(vtl, SignalEventDirectInput.unpack(data))
        if status is HvStatus.SUCCESS:
            output[:] = SIGNAL_EVENT_DIRECT_OUTPUT.pack(newly_signaled)
        return status
