"""Guest memory."""

from .guest_memory import GuestMemory

__all__ = ["GuestMemory"]
