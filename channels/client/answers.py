"""Who waits for which answer of the host. Waits go through the partition's turns, so seeded runs are the same everywhere."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

from broker.access import Turns, Wakeup
from broker.errors import HostError

from ..core.effects import Effect

T = TypeVar("T", bound=Effect)


class Answer(Generic[T]):
    """One answer that is due."""

    __slots__ = ("_error", "_value", "_wakeup")

    def __init__(self, wakeup: Wakeup) -> None:
        self._wakeup = wakeup
        self._value: T | None = None
        self._error: HostError | None = None

    def give(self, value: T) -> None:
        """Here it is."""
        self._value = value
        self._wakeup.notify()

    def fail(self, error: HostError) -> None:
        """It will not come."""
        self._error = error
        self._wakeup.notify()

    async def wait(self) -> T:
        """Wait for it, or raise what it failed with."""
        while self._value is None:
            if self._error is not None:
                raise self._error
            await self._wakeup.wait()
        return self._value


class Answers:
    """All that are due, by the kind of effect that answers and what it is about."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._due: dict[tuple[type[Effect], Hashable], Answer[Effect]] = {}
        self._count = 0

    def expect(self, kind: type[T], about: Hashable = None) -> Answer[T]:
        """An answer of this kind is about to be asked for. `HostError` when it is due already."""
        if (kind, about) in self._due:
            raise HostError(f"somebody waits for this {kind.__name__} already; one request at a time")
        self._count += 1
        answer: Answer[T] = Answer(self._turns.wakeup(("vmbus-answer", self._count)))
        self._due[kind, about] = answer  # type: ignore[assignment]
        return answer

    def forget(self, kind: type[Effect], about: Hashable = None) -> None:
        """Nobody waits for it any more; idempotent."""
        self._due.pop((kind, about), None)

    def give(self, value: Effect, about: Hashable = None) -> None:
        """An answer has come; nothing when nobody waits for it."""
        answer = self._due.pop((type(value), about), None)
        if answer is not None:
            answer.give(value)

    def fail(self, kind: type[Effect], error: HostError) -> None:
        """This answer, about nothing in particular, will not come."""
        answer = self._due.pop((kind, None), None)
        if answer is not None:
            answer.fail(error)

    def fail_all(self, error: HostError) -> None:
        """No answer will come any more."""
        due, self._due = self._due, {}
        for answer in due.values():
            answer.fail(error)
