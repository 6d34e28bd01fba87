"""Faults on request: seeded wrappers around what hosts, guests and devices hold.

    faults = Faults([parse_fault("late-eom:5"), parse_fault("refused-posts")], seed=1)
    async with VmbusServer(faults.access(partition.synic()), partition.memory) as server:
        async with serve_devices(faults.bus(server), EchoDevice(INSTANCE)):
            async with VmbusClient(faults.guest(partition.vp(0).guest_synic())) as client:
                ...

`FAULTS` has them by name. The same seed makes them strike at the same places.
"""

from .access import AccessWrapper, HandlerAccess, RefusingAccess
from .guest import GuestSynicWrapper
from .table import FAULTS, Fault, FaultKind, Faults, InjectedFault, parse_fault

__all__ = [
    "FAULTS",
    "AccessWrapper",
    "Fault",
    "FaultKind",
    "Faults",
    "GuestSynicWrapper",
    "HandlerAccess",
    "InjectedFault",
    "RefusingAccess",
    "parse_fault",
]
