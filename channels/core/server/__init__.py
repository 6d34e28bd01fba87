"""The server's machine. `ServerMachine` is its one door; the parts behind it are the connection, offers, channels, GPADLs."""

from .machine import MAX_HVSOCK_CONNECTS, ServerMachine
from .offer_params import OfferKey, OfferParams
from .state import ServerConfig
from .table import ChannelState

__all__ = ["MAX_HVSOCK_CONNECTS", "ChannelState", "OfferKey", "OfferParams", "ServerConfig", "ServerMachine"]
