"""The VMBus client: the shell around `channels.core.client`, over a `GuestSynic` and guest memory."""

from .for_others import ForeignChannel, ForOthers
from .gpadls import GuestGpadl
from .opens import GuestChannel, OpenRefused
from .vmbus_client import CLIENT_ID, OWN_VP, RING_PAGES, VmbusClient

__all__ = [
    "CLIENT_ID",
    "OWN_VP",
    "RING_PAGES",
    "ForOthers",
    "ForeignChannel",
    "GuestChannel",
    "GuestGpadl",
    "OpenRefused",
    "VmbusClient",
]
