"""A byte-exact, runnable model of Hyper-V's synthetic interrupt controller.

Everything a user of the library needs imports from here; see `broker.access` for the contract and `broker.partition`
for the root of it all.
"""

import channels as _channels

if _channels.__dict__.get("__vmbus__") != 1:
    raise ImportError(
        f"another distribution owns the import name 'channels' here ({_channels.__file__}); install vmbus-broker in a"
        " virtual environment of its own (Django Channels ships a package of the same name)"
    )

from .access import (
    EventPort,
    GuestEventPort,
    GuestMessagePort,
    GuestSynic,
    MessagePort,
    MonitorInfo,
    MonitorPageGpas,
    PortHandle,
    SynicMonitorAccess,
    SynicPortAccess,
)
from .errors import (
    BrokerError,
    CalledFromOwnHandler,
    ConfigurationError,
    ConnectionIdInUse,
    DamagedDocument,
    GuestFault,
    HostError,
    InvariantError,
    MemoryAccessError,
    MonitorIdInUse,
    PartitionClosed,
    PeerError,
    PortClosed,
    SynicUnsupported,
    UnknownProcessor,
    UnsupportedVersion,
)
from .guest_synic import LocalGuestSynic
from .hvdef import OPENVMM, PROFILES, TLFS, HvStatus, MessageType, Msr, Profile, SynicMessage, Vtl
from .inbox import EventFlags, Message, MessageInbox, receive_events, receive_messages, serve_messages
from .interrupt import Interrupt
from .memory import GuestMemory
from .partition import Partition, PartitionConfig
from .processor import VirtualProcessor
from .runs import ProcessorRun, RunEnd
from .synic import BACKENDS, Backend, HostSynic, MapStatistics, PortStatistics, Synic, SynicPortMap, SynicPorts
from .trace import Trace, TraceRecorder, read_trace

__version__ = "0.1.0"

__all__ = [
    "BACKENDS",
    "OPENVMM",
    "PROFILES",
    "TLFS",
    "Backend",
    "BrokerError",
    "CalledFromOwnHandler",
    "ConfigurationError",
    "ConnectionIdInUse",
    "DamagedDocument",
    "EventFlags",
    "EventPort",
    "GuestEventPort",
    "GuestFault",
    "GuestMemory",
    "GuestMessagePort",
    "GuestSynic",
    "HostError",
    "HostSynic",
    "HvStatus",
    "Interrupt",
    "InvariantError",
    "LocalGuestSynic",
    "MapStatistics",
    "MemoryAccessError",
    "Message",
    "MessageInbox",
    "MessagePort",
    "MessageType",
    "MonitorIdInUse",
    "MonitorInfo",
    "MonitorPageGpas",
    "Msr",
    "Partition",
    "PartitionClosed",
    "PartitionConfig",
    "PeerError",
    "PortClosed",
    "PortHandle",
    "PortStatistics",
    "ProcessorRun",
    "Profile",
    "RunEnd",
    "Synic",
    "SynicMessage",
    "SynicMonitorAccess",
    "SynicPortAccess",
    "SynicPortMap",
    "SynicPorts",
    "SynicUnsupported",
    "Trace",
    "TraceRecorder",
    "UnknownProcessor",
    "UnsupportedVersion",
    "VirtualProcessor",
    "Vtl",
    "read_trace",
    "receive_events",
    "receive_messages",
    "serve_messages",
]
