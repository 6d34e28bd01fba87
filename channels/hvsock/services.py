"""Service IDs of hvsock: a GUID of one's own, or the one that stands for a port number (Linux `hyperv_transport`).

A port's service ID is PPPPPPPP-facb-11e6-bd58-64006a7986d3, where P is the AF_VSOCK port, 32 bits.
"""

from __future__ import annotations

from uuid import UUID, uuid5

from broker.access import Turns

_PORT_SERVICE = UUID("00000000-facb-11e6-bd58-64006a7986d3")
_PORT_SHIFT = 96
_ENDPOINTS = UUID("6ec80005-0000-4000-8000-000000000000")
"""Endpoint IDs are names in here."""


def service_id_of_port(port: int) -> UUID:
    """The service ID that stands for this port. `ValueError` for a number that does not fit 32 bits."""
    if not 0 <= port < 1 << 32:
        raise ValueError(f"hvsock ports are 0 to {(1 << 32) - 1}, not {port}")
    return UUID(int=_PORT_SERVICE.int | port << _PORT_SHIFT)


def port_of_service_id(service_id: UUID) -> int | None:
    """The port that this service ID stands for, None for a service ID of another kind."""
    port = service_id.int >> _PORT_SHIFT
    return port if service_id.int == _PORT_SERVICE.int | port << _PORT_SHIFT else None


def service_id_of(service: UUID | int) -> UUID:
    """The service ID of a service that is named by it, or by its port."""
    return service_id_of_port(service) if isinstance(service, int) else service


def service_name(service_id: UUID) -> str:
    """For sentences."""
    port = port_of_service_id(service_id)
    return f"service {service_id}" if port is None else f"port {port}"


class EndpointIds:
    """Draws endpoint IDs: GUIDs made of who asks, when, and how many there were before.

    Each is another one, also those of a guest that has started again; and with a seed and virtual time they are the same
    in each run.
    """

    def __init__(self, who: str, turns: Turns) -> None:
        self._turns = turns
        self._who = who
        self._count = 0

    def draw(self) -> UUID:
        """One more."""
        self._count += 1
        return uuid5(_ENDPOINTS, f"{self._who}, {self._turns.clock.now()}, {self._count}")
