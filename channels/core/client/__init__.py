"""The client's machine. `ClientMachine` is its one door; the parts behind it are negotiation, channels, hvsock, the outbox."""

from .channels import OpenRequest
from .contact import ALL_VERSIONS, ConnectRequest
from .machine import ClientMachine

__all__ = ["ALL_VERSIONS", "ClientMachine", "ConnectRequest", "OpenRequest"]
