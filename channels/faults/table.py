"""All faults by name, and `Faults`, which puts those that are wanted in place."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable

import msgspec

from broker.access import GuestSynic, SynicPortAccess, Turns
from broker.clock import TICKS_PER_MILLISECOND
from broker.errors import ConfigurationError

from ..bus import Bus
from .access import BeforeHandler, HandlerAccess, RefusingAccess, Strikes
from .bus import RescindingBus
from .guest import BusySlot, CorruptRing, GpadlTornDown, LateEom, MaskedSint


class InjectedFault(Exception):
    """What a handler raises that was made to crash."""


class FaultKind(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table."""

    about: str
    """One sentence."""
    argument: str
    """What the number after the colon means."""
    default: int
    is_survived: bool
    """Nothing is lost by it, unless it strikes every single time: what worked without it works with it, only later. Else a
    guest may wait for ever, lose its channel or its connection; the host and other guests go on."""


FAULTS: dict[str, FaultKind] = {
    "busy-slot": FaultKind(
        about="the guest is busy for a while before it looks for each message",
        argument="milliseconds",
        default=5,
        is_survived=True,
    ),
    "masked-sint": FaultKind(
        about="the guest masks its SINT once, for a while: what comes meanwhile is dropped",
        argument="milliseconds",
        default=5,
        is_survived=False,
    ),
    "late-eom": FaultKind(
        about="the guest writes each EOM late: what waits for the slot waits longer",
        argument="milliseconds",
        default=5,
        is_survived=True,
    ),
    "missing-eom": FaultKind(
        about="the guest forgets an EOM now and then: what waits for the slot waits for the next (openvmm: for an exit)",
        argument="one in so many",
        default=4,
        is_survived=False,
    ),
    "refused-posts": FaultKind(
        about="posts are refused, both ways, as if there were no buffers",
        argument="one in so many",
        default=4,
        is_survived=True,
    ),
    "slow-handler": FaultKind(
        about="each handler of a port takes its time",
        argument="milliseconds",
        default=1,
        is_survived=True,
    ),
    "crashing-handler": FaultKind(
        about="a handler of a port raises now and then: the guest gets OPERATION_FAILED",
        argument="one in so many",
        default=20,
        is_survived=False,
    ),
    "rescind-during-open": FaultKind(
        about="the host takes an offer back while the guest opens it",
        argument="the open that it happens to",
        default=1,
        is_survived=False,
    ),
    "gpadl-torn-down": FaultKind(
        about="the guest wants the GPADL of its rings back while the channel is open",
        argument="the open that it happens to",
        default=1,
        is_survived=True,
    ),
    "corrupt-ring": FaultKind(
        about="the guest writes an index into a ring that is none",
        argument="the signal that it happens before",
        default=3,
        is_survived=False,
    ),
}


class Fault(msgspec.Struct, frozen=True):
    """One that is wanted."""

    name: str
    argument: int


def parse_fault(text: str) -> Fault:
    """`NAME` or `NAME:NUMBER`. `ConfigurationError` for a name that is not in `FAULTS`, or a number below 1."""
    name, colon, number = text.partition(":")
    kind = FAULTS.get(name)
    if kind is None:
        raise ConfigurationError(f"there is no fault {name}; there are {', '.join(FAULTS)}")
    if not colon:
        return Fault(name, kind.default)
    if not number.isascii() or not number.isdecimal() or len(number) > 9 or int(number) < 1:
        raise ConfigurationError(f"fault {name} takes a number from 1 on ({kind.argument}), not {number!r}")
    return Fault(name, int(number))


class Faults:
    """Puts faults in place, each with random numbers of its own. `struck` counts how often each did what it does."""

    def __init__(self, faults: Iterable[Fault], seed: int = 0) -> None:
        self.faults = tuple(faults)
        self.struck: Counter[str] = Counter()
        self._seed = seed

    def access(self, inner: SynicPortAccess) -> SynicPortAccess:
        """What the host holds instead of `inner`."""
        for fault in self.faults:
            match fault.name:
                case "refused-posts":
                    inner = RefusingAccess(inner, self._strikes_share(fault))
                case "slow-handler":
                    inner = HandlerAccess(inner, self._slow(fault))
                case "crashing-handler":
                    inner = HandlerAccess(inner, self._crashing(fault))
        return inner

    def guest(self, inner: GuestSynic) -> GuestSynic:
        """What guest code holds instead of `inner`."""
        for fault in self.faults:
            ticks = fault.argument * TICKS_PER_MILLISECOND
            match fault.name:
                case "busy-slot":
                    inner = BusySlot(inner, ticks, self._strikes_share(fault, 1))
                case "late-eom":
                    inner = LateEom(inner, ticks, self._strikes_share(fault, 1))
                case "missing-eom":
                    inner = LateEom(inner, None, self._strikes_share(fault))
                case "masked-sint":
                    inner = MaskedSint(inner, ticks, self._strikes_once(fault, self._random(fault).randint(1, 8)))
                case "gpadl-torn-down":
                    inner = GpadlTornDown(inner, self._strikes_once(fault, fault.argument))
                case "corrupt-ring":
                    inner = CorruptRing(inner, self._strikes_once(fault, fault.argument))
        return inner

    def bus(self, inner: Bus) -> Bus:
        """What devices are offered on instead of `inner`."""
        for fault in self.faults:
            if fault.name == "rescind-during-open":
                inner = RescindingBus(inner, self._strikes_once(fault, fault.argument))
        return inner

    def _random(self, fault: Fault) -> random.Random:
        return random.Random(f"{self._seed}:{fault.name}")

    def _strikes_share(self, fault: Fault, share: int | None = None) -> Strikes:
        """One in so many, as the fault says unless told."""
        draws = self._random(fault)
        among = fault.argument if share is None else share

        def strikes() -> bool:
            is_struck = draws.randrange(among) == 0
            self.struck[fault.name] += is_struck
            return is_struck

        return strikes

    def _strikes_once(self, fault: Fault, number: int) -> Strikes:
        """The time with this number."""
        asked = 0

        def strikes() -> bool:
            nonlocal asked
            asked += 1
            self.struck[fault.name] += asked == number
            return asked == number

        return strikes

    def _slow(self, fault: Fault) -> BeforeHandler:
        async def wait(connection_id: int, turns: Turns) -> None:
            self.struck[fault.name] += 1
            ticks = fault.argument * TICKS_PER_MILLISECOND
            await turns.sleep_until(turns.clock.now() + ticks, ("fault-handler", connection_id))

        return wait

    def _crashing(self, fault: Fault) -> BeforeHandler:
        strikes = self._strikes_share(fault)

        async def crash(connection_id: int, turns: Turns) -> None:
            if strikes():
                raise InjectedFault(f"the handler at connection {connection_id:#x} was made to crash")

        return crash
