"""Hypercall statuses and virtual trust levels (TLFS, "Hypercall Status Codes" and "Virtual Secure Mode")."""

from __future__ import annotations

from enum import IntEnum


class HvStatus(IntEnum):
    """HV_STATUS: the low 16 bits of a hypercall's result. The comments say what causes it in this model."""

    SUCCESS = 0x00
    INVALID_HYPERCALL_CODE = 0x02
    """The call code names no hypercall of this model."""
    INVALID_HYPERCALL_INPUT = 0x03
    """The control word is wrong for the call, or its input cannot be read."""
    INVALID_ALIGNMENT = 0x04
    """A parameter block is not 8-byte aligned (strict profile: or straddles a page)."""
    INVALID_PARAMETER = 0x05
    """A field of the input is out of its range."""
    ACCESS_DENIED = 0x06
    """The partition lacks the privilege (strict profile)."""
    INVALID_PARTITION_STATE = 0x07
    OPERATION_DENIED = 0x08
    """The caller's VTL is below the port's minimum."""
    UNKNOWN_PROPERTY = 0x09
    PROPERTY_VALUE_OUT_OF_RANGE = 0x0A
    INSUFFICIENT_MEMORY = 0x0B
    PARTITION_TOO_DEEP = 0x0C
    INVALID_PARTITION_ID = 0x0D
    INVALID_VP_INDEX = 0x0E
    INVALID_PORT_ID = 0x11
    """The connection is of the other kind (strict profile)."""
    INVALID_CONNECTION_ID = 0x12
    """No port has this connection ID, or it is of the other kind."""
    INSUFFICIENT_BUFFERS = 0x13
    """The port has no free buffer and kept nothing; the guest may try again."""
    NOT_ACKNOWLEDGED = 0x14
    INVALID_VP_STATE = 0x15
    ACKNOWLEDGED = 0x16
    INVALID_SAVE_RESTORE_STATE = 0x17
    INVALID_SYNIC_STATE = 0x18
    """The target SINT cannot take it: masked, proxied, disabled or out of range."""
    OBJECT_IN_USE = 0x19
    """The message slot is busy."""
    INVALID_PROXIMITY_DOMAIN_INFO = 0x1A
    NO_DATA = 0x1B
    INACTIVE = 0x1C
    NO_RESOURCES = 0x1D
    FEATURE_UNAVAILABLE = 0x1E
    INSUFFICIENT_BUFFER = 0x33
    """An output buffer is too small: not to be mixed up with INSUFFICIENT_BUFFERS."""
    INVALID_REGISTER_VALUE = 0x50
    INVALID_VTL_STATE = 0x51
    OPERATION_FAILED = 0x71
    """A port's handler failed."""
    TIMEOUT = 0x78
    """Internal: a hypercall with it writes no result and is executed again, so a guest never sees it."""
    UNKNOWN_REGISTER_NAME = 0x87


class Vtl(IntEnum):
    """A virtual trust level; a higher one is more privileged."""

    VTL0 = 0
    VTL1 = 1
    VTL2 = 2
