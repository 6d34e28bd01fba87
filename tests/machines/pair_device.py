"""A device as the pair tests model it: it remembers what it was asked, answers when it is told to, and insists on sense.

A server must not ask to open what is open, to close what is not, to tear down what is not used, or anything twice.
"""

from __future__ import annotations

from channels.core.server import effects as do
from channels.core.server.offer_params import OfferParams

ASKED = (
    do.OpenDevice
    | do.ResumeDevice
    | do.CloseDevice
    | do.ModifyDevice
    | do.CreateGpadl
    | do.ResumeGpadl
    | do.TeardownGpadl
)
"""What a server asks of a device."""


class Device:
    """See the module."""

    def __init__(self, params: OfferParams) -> None:
        self.params = params
        self.is_open = False
        self.gpadls: set[int] = set()
        """Memory that it uses."""
        self.asked: list[tuple[str, int]] = []
        """(what, GPADL ID or 0) that it has not answered, oldest first."""

    def ask(self, effect: ASKED) -> None:
        """The server asks for something; some of it has no answer."""
        match effect:
            case do.OpenDevice():
                assert not self.is_open, "opened twice"
                self._ask("open")
            case do.ResumeDevice():
                self.is_open = True
            case do.CloseDevice():
                assert self.is_open, "closed twice"
                self._ask("close")
            case do.ModifyDevice():
                assert self.is_open, "modified while closed"
                self.asked.append(("modify", 0))
            case do.CreateGpadl():
                assert effect.gpadl_id not in self.gpadls, "created twice"
                self._ask("create", effect.gpadl_id)
            case do.ResumeGpadl():
                self.gpadls.add(effect.gpadl_id)
            case do.TeardownGpadl():
                assert effect.gpadl_id in self.gpadls, "torn down twice"
                self._ask("teardown", effect.gpadl_id)

    def _ask(self, what: str, number: int = 0) -> None:
        assert (what, number) not in self.asked, f"asked twice to {what} {number:#x}"
        assert what != "open" or ("close", 0) not in self.asked, "opened before it had closed"
        self.asked.append((what, number))

    def answered(self, what: str, number: int, is_ok: bool) -> None:
        """It has answered this."""
        self.asked.remove((what, number))
        if what == "open":
            self.is_open = is_ok
        elif what == "close":
            self.is_open = False
        elif what == "create" and is_ok:
            self.gpadls.add(number)
        elif what == "teardown":
            self.gpadls.discard(number)

    def drop_open(self) -> None:
        """The VM is reset: nobody waits for the open that is under way."""
        self.asked.remove(("open", 0))
