"""What a processor, and each of its VTLs, needs of the partition it belongs to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from .clock import Clock
from .core import HypercallPage, ProcessorSynic
from .hvdef import Profile, Vtl
from .memory import GuestMemory
from .synic import HostSynic, Monitor, Synic, SynicPortMap
from .trace import Trace
from .turns import Turns


class VtlParts(Protocol):
    """What one VTL of a processor needs."""

    @property
    def memory(self) -> GuestMemory: ...
    @property
    def clock(self) -> Clock: ...
    @property
    def turns(self) -> Turns: ...
    @property
    def trace(self) -> Trace | None: ...
    @property
    def profile(self) -> Profile: ...
    @property
    def host_synic(self) -> HostSynic | None: ...
    @property
    def queue_depth(self) -> int: ...


class PartitionParts(VtlParts, Protocol):
    """What a processor needs."""

    @property
    def port_map(self) -> SynicPortMap: ...
    @property
    def synic_backend(self) -> Synic: ...
    @property
    def monitor(self) -> Monitor | None: ...
    @property
    def hypercall_page(self) -> HypercallPage: ...
    @property
    def vtls(self) -> tuple[Vtl, ...]: ...
    @property
    def quantum(self) -> int: ...
    @property
    def privileges(self) -> int: ...
    @property
    def trusts_posts(self) -> bool: ...
    @property
    def intercepts_unknown(self) -> bool: ...

    def machines(self, vp_index: int) -> Callable[[Vtl], ProcessorSynic | None] | None:
        """The SynICs of a processor by VTL, None where there is no such processor."""
        ...

    async def reflect(self, vp_index: int, connection_id: int) -> bool:
        """Let VTL 2 see a call of VTL 0 to an unknown connection; False when it does not want to."""
        ...
