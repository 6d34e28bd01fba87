"""The monitor page as the hypervisor sees it: 128 triggers, each bound to a connection (OpenVMM, `monitor.rs`).

A guest's store into the page is not kept: the pending bits in it are signalled at once, in ascending monitor order, and
the page reads as zeros. group_enable, armed bits and latencies are ignored. Layout: `broker.hvdef.monitor`.
"""

from __future__ import annotations

from ..errors import MonitorIdInUse
from ..hvdef.monitor import GROUP_OFFSET, GROUP_SIZE, GROUPS_END, MONITOR_COUNT, MONITORS_PER_GROUP
from ..hvdef.registers import PAGE_SIZE


class MonitorPage:
    """The page's place and its 128 monitors."""

    def __init__(self) -> None:
        self._gpa: int | None = None
        self._connections: dict[int, int] = {}
        self.unclaimed = 0
        """Triggers of monitors that nobody registered."""

    @property
    def gpa(self) -> int | None:
        """Where the page is, None when it is off."""
        return self._gpa

    def set_gpa(self, gpa: int | None) -> int | None:
        """Move or switch off the page and return where it was. `ValueError` unless page-aligned."""
        if gpa is not None and gpa % PAGE_SIZE:
            raise ValueError(f"a monitor page is aligned to {PAGE_SIZE} bytes, GPA {gpa:#x} is not")
        previous, self._gpa = self._gpa, gpa
        return previous

    def register(self, monitor_id: int, connection_id: int) -> None:
        """Bind a monitor to a connection. `ValueError` outside 0 to 127, `MonitorIdInUse` when it is bound."""
        if not 0 <= monitor_id < MONITOR_COUNT:
            raise ValueError(
                f"monitor {monitor_id} does not exist, a monitor page has monitors 0 to {MONITOR_COUNT - 1}"
            )
        if monitor_id in self._connections:
            raise MonitorIdInUse(monitor_id)
        self._connections[monitor_id] = connection_id

    def unregister(self, monitor_id: int) -> None:
        """Free a monitor; idempotent."""
        self._connections.pop(monitor_id, None)

    def write_bit(self, bit: int) -> int | None:
        """The connection behind bit `bit` of the page, counted from its first bit; None for anything but a bound trigger."""
        group, within = divmod(bit - 8 * GROUP_OFFSET, 8 * GROUP_SIZE)
        if not 0 <= bit - 8 * GROUP_OFFSET < 8 * (GROUPS_END - GROUP_OFFSET) or within >= MONITORS_PER_GROUP:
            return None
        connection_id = self._connections.get(MONITORS_PER_GROUP * group + within)
        if connection_id is None:
            self.unclaimed += 1
        return connection_id

    def check_write(self, gpa: int, data: bytes) -> list[int] | None:
        """The connections that this store signals, or None when it does not start in the page.

        A store that ends beyond byte 40 is taken and signals nothing.
        """
        if self._gpa is None or not 0 <= gpa - self._gpa < PAGE_SIZE:
            return None
        start = gpa - self._gpa
        if start + len(data) > GROUPS_END:
            return []
        bits = int.from_bytes(data, "little")
        connections = []
        while bits:
            lowest = (bits & -bits).bit_length() - 1
            bits &= bits - 1
            connection_id = self.write_bit(8 * start + lowest)
            if connection_id is not None:
                connections.append(connection_id)
        return connections

    def check_read(self, gpa: int, size: int) -> bytes | None:
        """What a guest reads there: zeros, or None when the read does not start in the page."""
        if self._gpa is None or not 0 <= gpa - self._gpa < PAGE_SIZE:
            return None
        return bytes(size)
