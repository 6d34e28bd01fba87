"""The four synthetic timers of one processor and VTL (TLFS, "Synthetic Timers"; OpenVMM where they differ).

Times are reference ticks of 100 ns; in the OPENVMM profile 64-bit and wrapping. A timer never fires early. A periodic
timer is due `count` ticks after the evaluation that found it due, so a late one drifts and misses no period twice.

Will: keep configuration, count and due time, say which timers are due.
Will not: post messages or raise interrupts; it asks `fire`, and a timer that cannot be fired keeps its due time.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from ..hvdef.profile import Profile
from ..hvdef.registers import TIMER_COUNT, TimerConfig

_MASK = (1 << 64) - 1
_SIGN = 1 << 63


class TimerState(msgspec.Struct, frozen=True):
    """One timer as saved. `remaining` is the ticks from the save to its due time (negative: overdue), None when it has none."""

    config: int
    count: int
    remaining: int | None


class SyntheticTimers:
    """Timers 0 to 3."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._config = [TimerConfig(0)] * TIMER_COUNT
        self._count = [0] * TIMER_COUNT
        self._due: list[int | None] = [None] * TIMER_COUNT

    def config(self, index: int) -> TimerConfig:
        """STIMERn_CONFIG."""
        return self._config[index]

    def count(self, index: int) -> int:
        """STIMERn_COUNT: an absolute time (one-shot) or a period, in ticks."""
        return self._count[index]

    def due(self, index: int) -> int | None:
        """When this timer expires, None when it is not running."""
        return self._due[index]

    def write_config(self, index: int, value: int, now: int) -> None:
        """Replace the configuration and start or stop the timer accordingly."""
        config = TimerConfig(value)
        if self._profile.timer_needs_sint and not config.direct_mode and not config.sintx:
            config = config.replace(enable=False)
        self._config[index] = config
        self._evaluate(index, now)

    def write_count(self, index: int, value: int, now: int) -> None:
        """Set the count. Zero stops the timer; another value starts it when auto-enable is set."""
        self._count[index] = value
        config = self._config[index]
        if value and config.auto_enable:
            config = config.replace(enable=True)
        elif not value and self._profile.zero_count_disables_timer:
            config = config.replace(enable=False)
        self.write_config(index, config, now)

    def expire(self, now: int, fire: Callable[[int, TimerConfig, int], bool]) -> None:
        """Offer each timer that is due, in ascending order, to `fire(index, config, due)`; True says that it went out."""
        for index in range(TIMER_COUNT):
            due = self._due[index]
            if due is None or not self._is_due(due, now):
                continue
            config = self._config[index]
            if not fire(index, config, due):
                continue
            if config.periodic:
                self._due[index] = self._after(now, self._count[index])
            else:
                self._config[index] = config.replace(enable=False)
                self._due[index] = None

    def next_due(self, now: int) -> int | None:
        """The earliest due time that is still to come; a timer that is overdue waits for another trigger."""
        return min((due for due in self._due if due is not None and not self._is_due(due, now)), default=None)

    def has_overdue(self, now: int) -> bool:
        """True when a timer is due and could not be fired."""
        return any(due is not None and self._is_due(due, now) for due in self._due)

    def reset(self) -> None:
        """All configurations and counts zero, nothing due."""
        self._config = [TimerConfig(0)] * TIMER_COUNT
        self._count = [0] * TIMER_COUNT
        self._due = [None] * TIMER_COUNT

    def save(self, now: int) -> list[TimerState]:
        """All four timers."""
        return [
            TimerState(int(config), count, None if due is None else due - now)
            for config, count, due in zip(self._config, self._count, self._due, strict=True)
        ]

    def restore(self, states: list[TimerState], now: int) -> None:
        """Take over what `save` returned."""
        self._config = [TimerConfig(state.config) for state in states]
        self._count = [state.count for state in states]
        self._due = [None if state.remaining is None else self._after(now, state.remaining) for state in states]

    def _after(self, now: int, count: int) -> int:
        return (now + count) & _MASK if self._profile.timer_compare_wraps else now + count

    def _is_due(self, due: int, now: int) -> bool:
        return not 0 < (due - now) & _MASK < _SIGN if self._profile.timer_compare_wraps else due <= now

    def _evaluate(self, index: int, now: int) -> None:
        config, count = self._config[index], self._count[index]
        if not config.enable or not count:
            self._due[index] = None
        elif config.periodic:
            self._due[index] = self._after(now, count)
        else:
            self._due[index] = count
