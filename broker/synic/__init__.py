"""The SynIC's driver: the port map, the adapter that consumers reach it through, and the backends."""

from .backend import Backend, GuestEventTarget, HostSynic, Synic
from .emulated import EmulatedSynic
from .handler_calls import CalledPort, ports_in_flight, ports_on_the_stack
from .host_posts import HostPosts
from .monitor import Monitor
from .offloaded import OffloadedSynic
from .port_map import DispatchCall, MapStatistics, PortStatistics, RegisteredPort, SynicPortMap
from .ports import SynicPorts
from .presets import BACKENDS, find_backend

__all__ = [
    "BACKENDS",
    "Backend",
    "CalledPort",
    "DispatchCall",
    "EmulatedSynic",
    "GuestEventTarget",
    "HostPosts",
    "HostSynic",
    "MapStatistics",
    "Monitor",
    "OffloadedSynic",
    "PortStatistics",
    "RegisteredPort",
    "Synic",
    "SynicPortMap",
    "SynicPorts",
    "find_backend",
    "ports_in_flight",
    "ports_on_the_stack",
]
