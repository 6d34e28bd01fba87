"""The one tree of exceptions. A guest's mistakes are statuses and guest faults, a host's mistakes are exceptions.

BrokerError
  HostError        the caller asked for something that cannot be (also ConfigurationError, a ValueError)
  PeerError        bytes from a file or a peer are not what they should be
  GuestFault       guest code did what a real processor faults on; ends that processor's task only
  MemoryAccessError  a guest physical address outside guest memory
  InvariantError   this program is wrong; please report it
"""

from __future__ import annotations


class BrokerError(Exception):
    """Everything this package raises on purpose, `ValueError` for plainly wrong arguments apart."""


class HostError(BrokerError):
    """The host's code asked for something that cannot be done."""


class ConnectionIdInUse(HostError):
    """A port is registered under this connection ID already, of whichever kind."""

    def __init__(self, connection_id: int) -> None:
        super().__init__(
            f"connection ID {connection_id:#010x} has a port already; close that one first or choose another ID"
        )
        self.connection_id = connection_id


class MonitorIdInUse(HostError):
    """Another event port is registered with this monitor ID."""

    def __init__(self, monitor_id: int) -> None:
        super().__init__(f"monitor {monitor_id} belongs to another event port; close that one first or choose another")
        self.monitor_id = monitor_id


class PortClosed(HostError):
    """The port, or what was waited for on it, was closed."""


class CalledFromOwnHandler(HostError):
    """`aclose()` was called from the port's own handler, which would wait for itself for ever; call `close()` there."""

    def __init__(self, connection_id: int) -> None:
        super().__init__(
            f"aclose() of the port at connection {connection_id:#010x} was called from its own handler and would wait"
            " for itself; the port is unregistered now, call close() there instead"
        )


class ChannelClosed(HostError):
    """The channel has ended: it was closed, rescinded, or its ring is corrupt; the sentence says which."""


class OfferRefused(HostError):
    """The VMBus server does not take this offer: there is one like it, or no channel ID is left."""


class ConnectionFailed(HostError):
    """A VMBus client got no connection, or no longer has one."""


class PartitionClosed(HostError):
    """The partition has ended."""


class UnknownProcessor(HostError):
    """No processor has this index."""

    def __init__(self, vp_index: int, vp_count: int) -> None:
        super().__init__(f"processor {vp_index} does not exist, the partition has processors 0 to {vp_count - 1}")


class SynicUnsupported(HostError):
    """This backend, or this partition, has no such SynIC feature."""


class MessageTooLarge(HostError):
    """A packet is larger than what its ring, or a packet's length field, can ever take."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"a packet takes {size} bytes of the ring, which takes at most {limit}; send smaller pieces")
        self.size = size
        """Bytes in the ring, descriptor and footer included."""
        self.limit = limit


class ConfigurationError(HostError, ValueError):
    """A setting is out of its range or contradicts another."""


class PeerError(BrokerError):
    """Bytes from outside are not what they should be."""


class ProtocolError(PeerError):
    """Bytes of a peer break a rule of their protocol; says what they are, where it breaks, what was expected and got."""

    def __init__(self, what: str, offset: int, expected: str, got: str) -> None:
        super().__init__(f"{what}: at offset {offset} expected {expected}, got {got}")
        self.what = what
        self.offset = offset
        """Bytes from the start of what was read."""
        self.expected = expected
        self.got = got


class RingCorrupt(ProtocolError):
    """The peer has left a ring in a state that no correct producer or consumer leaves: its channel cannot go on."""


class DamagedDocument(PeerError):
    """A file or a saved state is cut short, changed or of another kind."""


class UnsupportedVersion(PeerError):
    """A file or a saved state was written by a newer version."""


class GuestFault(BrokerError):
    """Guest code did what a real processor faults on. Uncaught, it ends that processor's run with this reason."""

    def __init__(self, fault: str, reason: str) -> None:
        super().__init__(f"{fault}: {reason}")
        self.fault = fault
        """What a real processor raises: "#GP", "#UD"."""
        self.reason = reason


class MemoryAccessError(BrokerError):
    """A guest physical address range is not all inside guest memory."""

    def __init__(self, gpa: int, size: int, limit: int) -> None:
        super().__init__(f"{size} bytes at GPA {gpa:#x} are not inside guest memory, which ends at {limit:#x}")
        self.gpa = gpa
        self.size = size


class InvariantError(BrokerError):
    """A broken invariant of this program."""
