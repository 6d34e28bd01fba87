"""A device's offer, as the server hands it out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from ..core.server import ChannelState, OfferParams, ServerMachine
from ..core.server.effects import Effect
from ..protocol.message import STATUS_SUCCESS


class Runs(Protocol):
    """A machine, and what carries its effects out."""

    machine: ServerMachine

    def run(self, effects: Iterable[Effect]) -> None: ...


class ServerOffer:
    """See `bus.Offer`."""

    __slots__ = ("_offer_id", "_params", "_server")

    def __init__(self, server: Runs, offer_id: int, params: OfferParams) -> None:
        self._server = server
        self._offer_id = offer_id
        self._params = params

    @property
    def params(self) -> OfferParams:
        return self._params

    def open_ended(self, status: int = STATUS_SUCCESS) -> bool:
        is_open, effects = self._server.machine.open_ended(self._offer_id, status)
        self._server.run(effects)
        return is_open

    def close_ended(self) -> None:
        self._server.run(self._server.machine.close_ended(self._offer_id))

    def modify_ended(self, status: int = STATUS_SUCCESS) -> None:
        self._server.run(self._server.machine.modify_ended(self._offer_id, status))

    def gpadl_created(self, gpadl_id: int, *, accepted: bool = True) -> None:
        self._server.run(self._server.machine.gpadl_created(self._offer_id, gpadl_id, accepted=accepted))

    def gpadl_torn_down(self, gpadl_id: int) -> None:
        self._server.run(self._server.machine.gpadl_torn_down(self._offer_id, gpadl_id))

    @property
    def saved_state(self) -> ChannelState | None:
        return self._server.machine.saved_state(self._offer_id)

    def restore(self, *, is_open: bool) -> None:
        self._server.run(self._server.machine.restore_channel(self._offer_id, is_open=is_open))

    def revoke(self) -> None:
        self._server.run(self._server.machine.revoke(self._offer_id))
