"""Conformance, `Interrupt` objects (items 161 to 165): a function, an eventfd, or nothing yet behind them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import anyio
import pytest

from broker import Interrupt


class Calls:
    """A function that counts its calls and says when there was one."""

    def __init__(self) -> None:
        self.count = 0
        self.called = anyio.Event()

    def __call__(self) -> None:
        self.count += 1
        self.called.set()


@pytest.fixture
def eventfd() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    yield fd
    os.close(fd)


def take_signals(fd: int | None) -> int:
    """How often an eventfd was signalled since the last look."""
    assert fd is not None
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


@pytest.mark.item(161)
async def test_a_function_is_called_once_per_delivery_and_there_is_no_event() -> None:
    calls = Calls()
    interrupt = Interrupt.from_function(calls)
    assert interrupt.event() is None
    assert calls.count == 0
    interrupt.deliver()
    interrupt.deliver()
    assert calls.count == 2
    assert interrupt.event() is None


@pytest.mark.item(162)
def test_an_event_is_signalled_by_each_delivery_and_stays_the_same(eventfd: int) -> None:
    interrupt = Interrupt.from_event(eventfd)
    interrupt.deliver()
    assert take_signals(eventfd) == 1
    interrupt.deliver()
    interrupt.deliver()
    assert take_signals(eventfd) == 2
    assert interrupt.event() == interrupt.event() == eventfd


@pytest.mark.item(162)
def test_an_event_is_its_owners_to_close(eventfd: int) -> None:
    interrupt = Interrupt.from_event(eventfd)
    interrupt.disconnect()
    del interrupt
    os.eventfd_write(eventfd, 1)
    assert take_signals(eventfd) == 1


@pytest.mark.item(162)
def test_an_event_whose_counter_is_full_is_signalled_as_it_is(eventfd: int) -> None:
    largest = 2**64 - 2
    os.eventfd_write(eventfd, largest)
    Interrupt.from_event(eventfd).deliver()
    assert take_signals(eventfd) == largest


@pytest.mark.item(163)
def test_a_null_interrupt_does_nothing_and_makes_its_event_when_asked() -> None:
    before = len(os.listdir("/proc/self/fd"))
    interrupt = Interrupt.null()
    interrupt.deliver()
    assert len(os.listdir("/proc/self/fd")) == before
    fd = interrupt.event()
    assert take_signals(fd) == 0, "what was delivered before somebody asked is lost"
    assert interrupt.event() == fd
    interrupt.deliver()
    assert take_signals(fd) == 1
    del interrupt
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.item(164)
def test_clones_of_a_function_call_the_same_function() -> None:
    calls = Calls()
    interrupt = Interrupt.from_function(calls)
    clone = interrupt.clone()
    interrupt.deliver()
    clone.deliver()
    clone.clone().deliver()
    assert calls.count == 3


@pytest.mark.item(164)
def test_clones_share_an_event_also_one_that_is_made_later(eventfd: int) -> None:
    for interrupt in (Interrupt.from_event(eventfd), Interrupt.null()):
        clone = interrupt.clone()
        fd = clone.event()
        interrupt.deliver()
        assert interrupt.event() == fd
        assert take_signals(fd) == 1
        clone.deliver()
        assert take_signals(interrupt.event()) == 1


@pytest.mark.item(164)
def test_an_event_made_for_a_clone_outlives_the_first_handle() -> None:
    interrupt = Interrupt.null()
    clone = interrupt.clone()
    fd = interrupt.event()
    del interrupt
    clone.deliver()
    assert clone.event() == fd
    assert take_signals(fd) == 1


@pytest.mark.item(165)
async def test_signalling_the_proxy_event_of_a_function_runs_the_function() -> None:
    calls = Calls()
    async with Interrupt.from_function(calls).event_or_proxy() as fd:
        os.eventfd_write(fd, 1)
        with anyio.fail_after(10):
            await calls.called.wait()
        assert calls.count == 1
        assert take_signals(fd) == 0
        calls.called = anyio.Event()
        os.eventfd_write(fd, 1)
        with anyio.fail_after(10):
            await calls.called.wait()
        assert calls.count == 2


@pytest.mark.item(165)
async def test_an_interrupt_with_an_event_needs_no_proxy(eventfd: int) -> None:
    async with Interrupt.from_event(eventfd).event_or_proxy() as fd:
        assert fd == eventfd
    async with Interrupt.null().event_or_proxy() as fd:
        assert take_signals(fd) == 0
        os.eventfd_write(fd, 1)
        assert take_signals(fd) == 1
