"""The VMBus server: the shell around `channels.core.server`, over a `SynicPortAccess` and guest memory."""

from ..core.server import ServerConfig
from .backend import OuterHost
from .vmbus_server import MESSAGE_DEPTH, HvsockListener, ServerStatistics, VmbusServer

__all__ = ["MESSAGE_DEPTH", "HvsockListener", "OuterHost", "ServerConfig", "ServerStatistics", "VmbusServer"]
