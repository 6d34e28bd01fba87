"""`Negotiation`: what a guest has to say before it may use a storage controller, and in which order.

| state | takes | then |
|---|---|---|
| BEGIN | BEGIN_INITIALIZATION | VERSION |
| VERSION | QUERY_PROTOCOL_VERSION: a known one; else REVISION_MISMATCH, and the guest asks again | PROPERTIES |
| PROPERTIES | QUERY_PROPERTIES | END |
| END | CREATE_SUBCHANNELS, once; END_INITIALIZATION | END; READY |
| READY | EXECUTE_SRB, the resets and ENUMERATE_BUS; CREATE_SUBCHANNELS if it was not before | READY |

Everything else is answered with INVALID_DEVICE_STATE and changes nothing. Sub-channels are created once, before the end of
initialisation (OpenVMM) or after it (Linux): twice, or more than there may be, is INVALID_PARAMETER. Pure: it offers nothing.
"""

from __future__ import annotations

from enum import Enum, auto

from ...protocol.storage.vstor import (
    MAX_TRANSFER,
    VERSIONS,
    ChannelProperties,
    NtStatus,
    Operation,
    PropertyFlags,
    ProtocolVersion,
    StorageVersion,
    SubchannelCount,
)

Answer = tuple[NtStatus, bytes]
"""The status, and the body that goes with it."""


class State(Enum):
    """What is due next."""

    BEGIN = auto()
    VERSION = auto()
    PROPERTIES = auto()
    END = auto()
    READY = auto()


_STEPS: dict[tuple[State, int], State] = {
    (State.BEGIN, Operation.BEGIN_INITIALIZATION): State.VERSION,
    (State.VERSION, Operation.QUERY_PROTOCOL_VERSION): State.PROPERTIES,
    (State.PROPERTIES, Operation.QUERY_PROPERTIES): State.END,
    (State.END, Operation.END_INITIALIZATION): State.READY,
}
_WHEN_READY = frozenset(
    {Operation.RESET_LUN, Operation.RESET_ADAPTER, Operation.RESET_BUS, Operation.ENUMERATE_BUS},
)
"""Answered with success; there is nothing to reset, for no request outlives its answer."""
_WRONG_ORDER: Answer = (NtStatus.INVALID_DEVICE_STATE, b"")


class Negotiation:
    """See the module. One for each time that the primary channel is opened."""

    def __init__(self, max_subchannels: int) -> None:
        self.state = State.BEGIN
        self.version: StorageVersion | None = None
        """What was agreed on."""
        self.subchannels: int | None = None
        """How many were created; None while none were asked for."""
        self._max_subchannels = max_subchannels

    @property
    def is_ready(self) -> bool:
        """Requests may come."""
        return self.state is State.READY

    def answer(self, operation: int, body: bytes) -> Answer:
        """Take a packet of the primary channel that is no request. `ProtocolError` for a body that is too short.

        `subchannels` says afterwards how many are to be there.
        """
        if operation == Operation.CREATE_SUBCHANNELS and self.state in (State.END, State.READY):
            return self._create(SubchannelCount.unpack(body).count), b""
        if self.state is State.READY and operation in _WHEN_READY:
            return NtStatus.SUCCESS, b""
        after = _STEPS.get((self.state, operation))
        if after is None:
            return _WRONG_ORDER
        answer = b""
        if operation == Operation.QUERY_PROTOCOL_VERSION:
            asked = ProtocolVersion.unpack(body).version
            self.version = VERSIONS.get(asked)
            answer = ProtocolVersion(asked).pack()
            if self.version is None:
                return NtStatus.REVISION_MISMATCH, answer
        elif operation == Operation.QUERY_PROPERTIES:
            answer = self._properties().pack()
        self.state = after
        return NtStatus.SUCCESS, answer

    def answer_subchannel(self, operation: int) -> NtStatus:
        """Take a packet of a sub-channel that is no request."""
        if self.is_ready and operation in _WHEN_READY:
            return NtStatus.SUCCESS
        return NtStatus.INVALID_DEVICE_STATE

    def _properties(self) -> ChannelProperties:
        if self.version is None or not self.version.has_subchannels:
            return ChannelProperties(max_transfer=MAX_TRANSFER)
        return ChannelProperties(self._max_subchannels, PropertyFlags.MULTI_CHANNEL, MAX_TRANSFER)

    def _create(self, count: int) -> NtStatus:
        if self.subchannels is not None or count > self._properties().max_subchannels:
            return NtStatus.INVALID_PARAMETER
        self.subchannels = count
        return NtStatus.SUCCESS
