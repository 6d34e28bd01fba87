"""The relay of a paravisor: what an outer host offers is offered again to the guest inside (reference, 6.9)."""

from .vmbus_relay import REQUIRED_FEATURES, VmbusRelay

__all__ = ["REQUIRED_FEATURES", "VmbusRelay"]
