"""How a driver sends frames: several small ones in one packet, as many packets at once as there are slots for."""

from __future__ import annotations

from collections.abc import Sequence

from broker.access import Wakeup
from broker.errors import BrokerError

from ...protocol.network.frames import Frame, pack_frame
from .lane import GuestLane
from .slots import Slots

MAX_ALIGNMENT_SHIFT = 12


class FrameSender:
    """Puts frames into slots of the send buffer (`sections`) or, where they are too long for that, into pages (`large`).

    `max_packets` and `alignment_shift`: RNDIS messages that the host takes in one packet, and where each may begin.
    """

    def __init__(
        self, sections: Slots, large: Slots, max_packets: int, alignment_shift: int, has_slots: Wakeup
    ) -> None:
        self._sections = sections
        self._large = large
        self._max_packets = max(1, max_packets)
        self._unaligned = (1 << min(alignment_shift, MAX_ALIGNMENT_SHIFT)) - 1
        self._has_slots = has_slots
        self._failure: BrokerError | None = None

    def slots_came_back(self) -> None:
        """Who waits for a slot may look again."""
        self._has_slots.notify()

    def fail(self, error: BrokerError) -> None:
        """No slot will come back: who waits for one gets this error."""
        self._failure = error
        self._has_slots.notify()

    async def send(self, lane: GuestLane, frames: Sequence[Frame]) -> None:
        """Send these, in order, on one channel; wait where the host has not completed enough of what was sent before.

        `ValueError` for a frame that with its information is longer than any slot; those before it are sent.
        """
        packets: list[bytes] = []
        position = 0
        try:
            while position < len(frames):
                slots, message, following = self._next_message(frames, position)
                while not slots.free or len(lane.sent) >= lane.most_sent:
                    staged, packets = packets, []
                    if staged:
                        await lane.channel.send_packets(staged)
                    elif self._failure is not None:
                        raise self._failure
                    else:
                        await self._has_slots.wait()
                position = following
                packets.append(lane.pack(slots, slots.free.pop(), message))
        finally:
            if packets:
                await lane.channel.send_packets(packets)

    def _next_message(self, frames: Sequence[Frame], position: int) -> tuple[Slots, bytes, int]:
        """Where the next frames go, their RNDIS messages, and the position after them."""
        first = pack_frame(frames[position])
        position += 1
        sections, limit = self._sections, self._sections.size
        if not sections.count or len(first) > limit:
            if len(first) > self._large.size:
                raise ValueError(f"a frame and its information have {len(first)} bytes, up to {self._large.size} fit")
            return self._large, first, position
        messages, size = [first], len(first)
        most = min(self._max_packets, len(frames) - position + 1)
        while len(messages) < most and not size & self._unaligned:
            message = pack_frame(frames[position])
            size += len(message)
            if size > limit:
                break
            messages.append(message)
            position += 1
        return sections, first if len(messages) == 1 else b"".join(messages), position
