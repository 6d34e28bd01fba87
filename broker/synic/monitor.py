"""Monitored notifications of one partition: the page, and the consumer's view of it."""

from __future__ import annotations

import contextlib

from ..access import MonitorPageGpas
from ..core import MonitorPage
from ..errors import MemoryAccessError
from ..hvdef import Vtl
from ..hvdef.registers import PAGE_SHIFT, PAGE_SIZE
from ..memory import GuestMemory


class Monitor:
    """The `SynicMonitorAccess` of a partition. `can_allocate`: the backend gives pages of its own."""

    def __init__(self, memory: GuestMemory, can_allocate: bool) -> None:
        self.page = MonitorPage()
        self._memory = memory
        self._can_allocate = can_allocate
        self._own_gpn: int | None = None

    async def set_monitor_page(self, vtl: Vtl, pages: MonitorPageGpas | None) -> None:
        """Watch this child-to-parent page, which reads as zeros from now on, or none. `ValueError` unless page-aligned."""
        self.page.set_gpa(None if pages is None else pages.child_to_parent)
        if pages is not None:
            with contextlib.suppress(MemoryAccessError):  # a page outside memory is one that no guest can store into
                self._memory.write(pages.child_to_parent, bytes(PAGE_SIZE))

    async def allocate_monitor_page(self, vtl: Vtl) -> MonitorPageGpas | None:
        """A page above the guest's RAM, the same one each time, watched from now on; None where the backend has none."""
        if not self._can_allocate:
            return None
        if self._own_gpn is None:
            self._own_gpn = self._memory.add_page()
        pages = MonitorPageGpas(parent_to_child=0, child_to_parent=self._own_gpn << PAGE_SHIFT)
        await self.set_monitor_page(vtl, pages)
        return pages
