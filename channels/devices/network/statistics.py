"""What a network adapter counts."""

from __future__ import annotations

import msgspec


class AdapterStatistics(msgspec.Struct, frozen=True):
    """Frames since the adapter was made; `from_guest` and `to_guest` are those that went their way."""

    from_guest: int
    to_guest: int
    filtered: int
    """Not for this guest by its packet filter, its link is down, or it does not listen (any more)."""
    dropped_full: int
    """For the guest, while its queue was full."""
    dropped_size: int
    """For the guest, and larger than its MTU."""
    dropped_closed: int
    """On their way when the guest let go of its channel or its buffer; packets from the guest: answered with status 2."""
    dropped_link_down: int
    """From the guest, while the link was down."""
    dropped_busy: int
    """Packets from the guest while too many waited to be sent: answered with status 6."""
    invalid: int
    """Packets from the guest that held no RNDIS data: answered with status 5."""


class Counters:
    """The same, as it grows."""

    __slots__ = tuple(AdapterStatistics.__struct_fields__)

    def __init__(self) -> None:
        for name in self.__slots__:
            setattr(self, name, 0)

    from_guest: int
    to_guest: int
    filtered: int
    dropped_full: int
    dropped_size: int
    dropped_closed: int
    dropped_link_down: int
    dropped_busy: int
    invalid: int

    def freeze(self) -> AdapterStatistics:
        """As it is now."""
        return AdapterStatistics(*(getattr(self, name) for name in self.__slots__))
