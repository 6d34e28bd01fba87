"""The VMBus client: the shell around `channels.core.client`, over a `GuestSynic` and guest memory."""

from .gpadls import GuestGpadl
from .opens import GuestChannel
from .vmbus_client import CLIENT_ID, OWN_VP, RING_PAGES, VmbusClient

__all__ = ["CLIENT_ID", "OWN_VP", "RING_PAGES", "GuestChannel", "GuestGpadl", "VmbusClient"]
