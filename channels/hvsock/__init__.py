"""hvsock: socket-like connections between guest and host over VMBus (vmbus.md 2.8), as anyio listeners and byte streams."""

from .guest import HvsockGuest
from .host import HvsockHost
from .join import connect_streams
from .listener import BACKLOG, HvsockListener
from .services import port_of_service_id, service_id_of_port
from .stream import HvsockAttribute, HvsockStream
from .unix import relay_unix

__all__ = [
    "BACKLOG",
    "HvsockAttribute",
    "HvsockGuest",
    "HvsockHost",
    "HvsockListener",
    "HvsockStream",
    "connect_streams",
    "port_of_service_id",
    "relay_unix",
    "service_id_of_port",
]
