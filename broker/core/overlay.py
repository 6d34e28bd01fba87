"""An overlay page: 4096 bytes that the SynIC owns and the guest may map at a page of its choice (OpenVMM, `pages.rs`).

While unmapped, the contents live in a buffer of their own and are zero at start. Mapping copies them into the guest's
page, so that stale guest bytes never show; unmapping copies them back. What the guest page held before is not restored.
"""

from __future__ import annotations

from collections.abc import Callable

from ..hvdef.registers import PAGE_SIZE


class OverlayPage:
    """One overlay page. `lock` gives a writable view of a guest page or raises `MemoryAccessError`."""

    def __init__(self, lock: Callable[[int], memoryview]) -> None:
        self._lock = lock
        self._data: memoryview | None = None
        self.gpn: int | None = None

    @property
    def data(self) -> memoryview:
        """The contents, wherever they are: valid until the page is mapped, unmapped or reset."""
        if self._data is None:  # most processors of a large partition never use theirs
            self._data = memoryview(bytearray(PAGE_SIZE))
        return self._data

    def map(self, gpn: int) -> None:
        """Show the contents at this guest page. `MemoryAccessError` when it cannot be locked, and then nothing changed."""
        if gpn == self.gpn:
            return
        page = self._lock(gpn)
        page[:] = self.data
        self._data = page
        self.gpn = gpn

    def unmap(self) -> None:
        """Hide the contents and keep them."""
        if self.gpn is not None:
            self._data = memoryview(bytearray(self.data))
            self.gpn = None

    def reset(self) -> None:
        """Hide the page and zero its contents; the guest's page stays as it is."""
        self._data = None
        self.gpn = None

    def restore(self, gpn: int | None, contents: bytes) -> None:
        """Take over saved contents, mapped at `gpn` or hidden. `MemoryAccessError` as in `map`."""
        self.reset()
        self.data[:] = contents
        if gpn is not None:
            self.map(gpn)
