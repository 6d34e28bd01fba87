"""What a SynIC backend is: how a message or an event physically reaches a virtual processor.

`Backend` is a row of the table of backends (`presets`); `Synic` is what the adapter `SynicPorts` needs of one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import msgspec

from ..core import QueuedMessage
from ..hvdef import DeliveryRules, Vtl
from ..interrupt import Interrupt
from .host_posts import WaitingPost
from .monitor import Monitor
from .port_map import DispatchCall, RegisteredPort, SynicPortMap


class Backend(msgspec.Struct, frozen=True, kw_only=True):
    """What one backend does and refuses (`reference` OpenVMM's back ends)."""

    name: str
    about: str
    synic: Literal["emulated", "offloaded", "none"]
    """Where the SynIC lives: in this program, or elsewhere behind eventfds; none: `synic()` raises."""
    vtls: tuple[Vtl, ...] = (Vtl.VTL0,)
    """The VTLs that a partition may have."""
    host_event_ports: Literal["none", "given", "always"] = "none"
    """Event ports that reach their consumer through an eventfd and do not enter the dispatcher: none, those for which
    the consumer gives one, or all."""
    prefer_os_events: bool = False
    guest_events: Literal["function", "eventfd"] = "function"
    """What is behind a guest event port's interrupt."""
    monitor: Literal["none", "yes", "allocate"] = "none"
    trusted_posts: bool = False
    proxied_sints: bool = False
    """Messages and events of proxied SINTs go to the host's SynIC; elsewhere they are dropped."""
    intercepts_unknown_connections: bool = False
    """VTL 2 may take the calls of VTL 0 to unknown connections."""
    delivery: DeliveryRules | None = None
    """Delivery rules of its own instead of the OPENVMM profile's."""
    refusal: str = ""
    """What `synic()` says where there is none."""


SignalHandler = Callable[[int, int, int], DispatchCall]
"""(caller's VTL, connection ID, flag number); see `SynicPortMap.handle_signal_event`."""


class HostEventPort(Protocol):
    """An eventfd in front of an event port."""

    def close(self) -> None:
        """Stop signalling it; idempotent."""
        ...


class HostSynic(Protocol):
    """The host's own SynIC, where proxied SINTs go (OpenHCL). Hand it to `PartitionConfig.host_synic`."""

    def post_message(self, vtl: Vtl, vp: int, sint: int, message_type: int, payload: bytes) -> None:
        """Take a message of a proxied SINT."""
        ...

    def signal_event(self, vtl: Vtl, vp: int, sint: int, flag: int) -> None:
        """Take an event of a proxied SINT."""
        ...


class Synic(Protocol):
    """A SynIC backend of one partition."""

    @property
    def port_map(self) -> SynicPortMap:
        """The partition's router."""
        ...

    @property
    def prefer_os_events(self) -> bool:
        """True: consumers had better hand in eventfds."""
        ...

    @property
    def monitor(self) -> Monitor | None:
        """Monitored notifications, None where there are none."""
        ...

    @property
    def handle_signal_event(self) -> SignalHandler:
        """Takes a guest's signal: to an eventfd where there is one, else to the port map."""
        ...

    def new_host_event_port(self, port: RegisteredPort, os_event: int | None) -> HostEventPort | None:
        """Put an eventfd in front of this port, or None to have it dispatched."""
        ...

    def try_post(self, vtl: Vtl, vp: int, sint: int, message: QueuedMessage) -> bool:
        """Queue a message; False when there is no room."""
        ...

    async def post(self, vtl: Vtl, vp: int, sint: int, message: QueuedMessage, owned: set[WaitingPost]) -> None:
        """Queue a message, waiting for room."""
        ...

    def new_guest_event(self, target: GuestEventTarget) -> Interrupt:
        """What signals this target; it looks at the target anew at each delivery."""
        ...

    def check_open(self) -> None:
        """`PartitionClosed` once the partition ends."""
        ...

    async def wait_reset(self) -> None:
        """Return when the partition is reset, gets new memory, or ends."""
        ...


class GuestEventTarget:
    """Where a guest event port points; shared between the port and its interrupts."""

    __slots__ = ("flag", "is_open", "sint", "vp", "vtl")

    def __init__(self, vtl: Vtl, vp: int, sint: int, flag: int) -> None:
        self.vtl = vtl
        self.vp = vp
        self.sint = sint
        self.flag = flag
        self.is_open = True
