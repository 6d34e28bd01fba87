"""What a device offers: identity, kind, and what the guest's driver is told before it opens the channel."""

from __future__ import annotations

from typing import Any, Self
from uuid import UUID

import msgspec

from broker.hvdef import MONITOR_COUNT

from ...protocol.offer import NO_USER_AREA, USER_AREA, OfferFlags, PipeType, hvsock_area, pipe_area
from ...protocol.wire import NO_GUID


class OfferParams(msgspec.Struct, frozen=True, kw_only=True):
    """What a device offers. Two offers may not share interface, instance and sub-channel index.

    Make one with `device`, `pipe`, `interface` or `hvsock`, which know the flags and the user area of each kind.
    `ValueError` for values that do not fit the offer message.
    """

    interface_id: UUID
    instance_id: UUID
    subchannel_index: int = 0
    flags: OfferFlags = OfferFlags(0)
    user_defined: bytes = NO_USER_AREA
    mmio_megabytes: int = 0
    mmio_megabytes_optional: int = 0
    order: int | None = None
    """Offers of one interface are sorted by it; those without come last."""
    monitor_latency: int | None = None
    """Ask for a monitor ID, with this latency in ticks of 100 ns."""
    monitor_id: int | None = None
    """A monitor ID that somebody else has assigned; where `relayed`, that host watches the monitor pages for it."""
    confidential_external_memory: bool = False
    """External memory may be encrypted, where that is agreed on."""
    relayed: bool = False
    """Offered on behalf of another host: its confidential flags are not passed on, and from 2.4 on it and the guest signal
    each other without this server, see `OpenParams.is_direct`."""

    def __post_init__(self) -> None:
        for name, limit in (
            ("subchannel_index", 1 << 16),
            ("mmio_megabytes", 1 << 16),
            ("mmio_megabytes_optional", 1 << 16),
        ):
            if not 0 <= getattr(self, name) < limit:
                raise ValueError(f"{name} is 0 to {limit - 1}, not {getattr(self, name)}")
        if len(self.user_defined) != USER_AREA:
            raise ValueError(f"a user-defined area has {USER_AREA} bytes, not {len(self.user_defined)}")
        if self.monitor_id is not None and not 0 <= self.monitor_id < MONITOR_COUNT:
            raise ValueError(f"monitor IDs are 0 to {MONITOR_COUNT - 1}, not {self.monitor_id}")

    @classmethod
    def device(cls, interface_id: UUID, instance_id: UUID, *, pipe_packets: bool = False, **more: Any) -> Self:
        """A device: raw packets, or `pipe_packets`, which have pipe headers."""
        if not pipe_packets:
            return cls._of_kind(interface_id, instance_id, OfferFlags(0), NO_USER_AREA, more)
        return cls._of_kind(interface_id, instance_id, OfferFlags.NAMED_PIPE_MODE, pipe_area(PipeType.MESSAGE), more)

    @classmethod
    def pipe(
        cls,
        interface_id: UUID,
        instance_id: UUID,
        pipe_type: PipeType = PipeType.MESSAGE,
        user: bytes = b"",
        *,
        gpa_direct: bool = False,
        **more: Any,
    ) -> Self:
        """A named pipe of messages or of bytes; up to 112 bytes of `user` for the guest's driver.

        `gpa_direct`: it says that it takes data that lies in guest memory.
        """
        flags = OfferFlags.ENUMERATE_DEVICE_INTERFACE | OfferFlags.NAMED_PIPE_MODE
        area = pipe_area(pipe_type, user, gpa_direct=gpa_direct)
        return cls._of_kind(interface_id, instance_id, flags, area, more)

    @classmethod
    def interface(cls, interface_id: UUID, instance_id: UUID, user_defined: bytes = b"", **more: Any) -> Self:
        """A device interface: raw packets, and up to 120 bytes in the user area."""
        area = user_defined.ljust(USER_AREA, b"\0")
        return cls._of_kind(interface_id, instance_id, OfferFlags.ENUMERATE_DEVICE_INTERFACE, area, more)

    @classmethod
    def hvsock(
        cls,
        service_id: UUID,
        endpoint_id: UUID,
        *,
        guest_accepts: bool,
        for_container: bool = False,
        silo_id: UUID = NO_GUID,
        **more: Any,
    ) -> Self:
        """An hvsock connection. `guest_accepts`: the host connects to a listener in the guest; `for_container`: to one
        in the guest's container `silo_id`."""
        flags = OfferFlags.ENUMERATE_DEVICE_INTERFACE | OfferFlags.NAMED_PIPE_MODE | OfferFlags.TLNPI_PROVIDER
        area = hvsock_area(guest_accepts=guest_accepts, for_container=for_container, silo_id=silo_id)
        return cls._of_kind(service_id, endpoint_id, flags, area, more)

    @classmethod
    def _of_kind(
        cls, interface_id: UUID, instance_id: UUID, flags: OfferFlags, area: bytes, more: dict[str, Any]
    ) -> Self:
        return cls(interface_id=interface_id, instance_id=instance_id, flags=flags, user_defined=area, **more)

    @property
    def key(self) -> OfferKey:
        """What tells this offer from all others."""
        return OfferKey(self.interface_id, self.instance_id, self.subchannel_index)


class OfferKey(msgspec.Struct, frozen=True):
    """Interface, instance, sub-channel."""

    interface_id: UUID
    instance_id: UUID
    subchannel_index: int
