"""What a network adapter is plugged into, and what such a back end sees of the adapter.

Frames go both ways in batches. A back end is host code: an exception of its own ends the adapter's device, as any bug does.

Adapters on one back end may belong to several partitions, each of which has its own turns. So nobody waits in another's
turns: `Station.deliver` never waits, and who waits for room in an adapter's queue brings a wakeup of its own turns, which the
adapter notifies. Each partition's part is then decided by its own seed; how the turns of two partitions interleave is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from broker.access import Turns, Wakeup

from ....protocol.network.frames import Frame


class Station(Protocol):
    """An adapter, as a back end sees it."""

    @property
    def address(self) -> bytes:
        """The adapter's MAC address, 6 bytes."""
        ...

    @property
    def turns(self) -> Turns:
        """Where tasks of the adapter's partition wait. `HostError` before a guest has opened it."""
        ...

    def deliver(self, frames: Sequence[Frame]) -> int:
        """Hand frames to the guest, in order, as far as its queue has room: how many were taken.

        Those that the guest does not want (packet filter, link down, nobody there) are taken and counted.
        """
        ...

    def drop(self, frames: Sequence[Frame]) -> None:
        """Count frames that were not delivered because the queue was full."""
        ...

    def when_room(self, wakeup: Wakeup) -> None:
        """Notify this once, as soon as frames have left the queue."""
        ...


class NetworkBackend:
    """What one adapter is plugged into."""

    def plug(self, station: Station) -> None:
        """Called once, when the adapter is made. `ConfigurationError` where another one is plugged in already."""

    async def send(self, frames: Sequence[Frame]) -> None:
        """Take frames of the guest, in order. It may wait; the guest's next frames wait meanwhile, its other work goes on.

        Runs in a task of the adapter's channel; where the adapter has several, it may be entered by each.
        """
        raise NotImplementedError

    async def run(self) -> None:
        """Work of the back end's own, from the guest's first packet filter until it closes the adapter."""


async def deliver_all(station: Station, frames: Sequence[Frame], wakeup: Wakeup) -> None:
    """Deliver, waiting for room on `wakeup`, which belongs to the turns of the task that calls."""
    done = station.deliver(frames)
    while done < len(frames):
        station.when_room(wakeup)
        await wakeup.wait()
        done += station.deliver(frames[done:])
