"""A VMBus client's signals: event flags to doorbells, and the ways to signal a channel's host end.

It will: find the doorbell of a flag (from 2.4 on the channel's own flag; before, flag 0 and the channel bitmap of the
interrupt page); signal by the channel's connection, by the monitor page where the channel is monitored, and at 0.13 by
bitmap and connection 2. It will not: signal a channel that has ended, or keep what was signalled for nobody (it counts).

The bitmap is read and cleared between two awaits, which is one step for every host in this process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from broker.access import GuestSynic
from broker.hvdef import HvStatus
from broker.hvdef.monitor import pending_location

from ..core.client.states import ClientChannel
from ..core.effects import MonitorPages
from ..doorbell import Doorbell
from ..protocol.ids import EVENT_CONNECTION
from ..protocol.versions import Version

BITMAP_SIZE = 2048
"""Bytes of each half of the interrupt page: host to guest, then guest to host."""
PENDING_SIZE = 4


class Signals:
    """See the module."""

    def __init__(self, synic: GuestSynic) -> None:
        self.version = Version.COPPER
        self.interrupt_page = 0
        """GPA of the channel bitmap, 0 without."""
        self.monitor_pages: MonitorPages | None = None
        self.stray = 0
        """Flags that were set for nobody."""
        self.refused = 0
        """Signals that the host had no port for."""
        self._synic = synic
        self._doorbells: dict[int, Doorbell] = {}
        self._flags: dict[int, int] = {}
        """Channel ID -> its flag."""

    def listen(self, channel_id: int, flag: int, doorbell: Doorbell) -> None:
        """Ring this when the host signals the channel."""
        self._flags[channel_id] = flag
        self._doorbells[flag] = doorbell

    def forget(self, channel_id: int, reason: str) -> None:
        """The channel has ended: so does its doorbell, and its flag is free. Idempotent."""
        flag = self._flags.pop(channel_id, None)
        if flag is not None:
            self._doorbells.pop(flag).close(reason)

    def forget_all(self, reason: str) -> None:
        """All channels have ended."""
        for channel_id in list(self._flags):
            self.forget(channel_id, reason)

    def ring(self, flags: Iterable[int]) -> None:
        """These event flags were set."""
        if self.version.has_interrupt_page:
            flags = self._take_bitmap() if 0 in flags else ()
        for flag in sorted(flags):
            doorbell = self._doorbells.get(flag)
            if doorbell is not None:
                doorbell.ring()
            elif flag:
                self.stray += 1

    async def signal(self, channel: ClientChannel, has_interrupts: bool) -> None:
        """Signal the host's end of a channel that is open."""
        offer, pages, connection_id = channel.offer, self.monitor_pages, channel.connection_id
        if pages is not None and offer.monitor_allocated & 1 and has_interrupts:
            offset, mask = pending_location(offer.monitor_id)
            await self._synic.write_memory(pages.child_to_parent + offset, mask.to_bytes(PENDING_SIZE, "little"))
            return
        if self.version.has_interrupt_page:
            is_dedicated = offer.is_dedicated & 1 and self.version is not Version.V1
            if not is_dedicated and self.interrupt_page:
                self._set_bit(offer.channel_id)
            if self.version is Version.V1:
                connection_id = EVENT_CONNECTION
        if await self._synic.signal_event(connection_id) is not HvStatus.SUCCESS:
            self.refused += 1

    def _take_bitmap(self) -> Iterator[int]:
        if not self.interrupt_page:
            return iter(())
        view = self._synic.memory.view(self.interrupt_page, BITMAP_SIZE)
        bits = int.from_bytes(view, "little")
        view[:] = bytes(BITMAP_SIZE)
        return (flag for flag in range(bits.bit_length()) if bits >> flag & 1)

    def _set_bit(self, channel_id: int) -> None:
        byte = self._synic.memory.view(self.interrupt_page + BITMAP_SIZE + channel_id // 8, 1)
        byte[0] |= 1 << channel_id % 8
