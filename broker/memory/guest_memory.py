"""Guest memory: one memfd, mapped once, addressed by GPA.

Pages that the hypervisor owns (`add_page`) lie above the guest's RAM. SynIC overlay pages live in the guest page they
were mapped to, so reads and writes see them.
"""

from __future__ import annotations

import mmap
import os
from typing import Self

from ..errors import MemoryAccessError
from ..hvdef.registers import PAGE_SHIFT, PAGE_SIZE


class GuestMemory:
    """Guest RAM of `size` bytes, a multiple of 4096, GPA 0 at offset 0 of the memfd `fd`.

    `ValueError` for a size that is no positive multiple of a page, `OSError` when there is not so much memory.
    """

    def __init__(self, size: int) -> None:
        if size <= 0 or size % PAGE_SIZE:
            raise ValueError(f"guest memory is a positive multiple of {PAGE_SIZE} bytes, not {size}")
        self.size = size
        self.fd = os.memfd_create("guest-memory", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, size)
            self._map = mmap.mmap(self.fd, size)
        except BaseException:
            os.close(self.fd)
            raise
        self._view = memoryview(self._map)
        self._pages: dict[int, memoryview] = {}

    def read(self, gpa: int, size: int) -> bytes:
        """A copy of `size` bytes. `MemoryAccessError` when they are not all inside guest memory."""
        if gpa >= 0 and size >= 0 and gpa + size <= self.size:
            return self._map[gpa : gpa + size]
        return bytes(self._outside(gpa, size))

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Store `data`. `MemoryAccessError` when it does not fit, and then nothing is stored."""
        if gpa >= 0 and gpa + len(data) <= self.size:
            self._map[gpa : gpa + len(data)] = bytes(data)
        else:
            self._outside(gpa, len(data))[:] = data

    def view(self, gpa: int, size: int) -> memoryview:
        """A writable view, valid until the memory is closed. `MemoryAccessError` as in `read`."""
        if gpa >= 0 and size >= 0 and gpa + size <= self.size:
            return self._view[gpa : gpa + size]
        return self._outside(gpa, size)

    @property
    def ram(self) -> memoryview:
        """All of RAM, writable, the same object each time; valid as any view."""
        return self._view

    def page(self, gpn: int) -> memoryview:
        """A writable view of one whole page of RAM by its number. `MemoryAccessError` for any other."""
        gpa = gpn << PAGE_SHIFT
        if not 0 <= gpa < self.size:
            raise MemoryAccessError(gpa, PAGE_SIZE, self.size)
        return self.view(gpa, PAGE_SIZE)

    def add_page(self) -> int:
        """Add one zeroed page above the guest's RAM, owned by the hypervisor, and return its page number."""
        gpn = (self.size >> PAGE_SHIFT) + len(self._pages)
        self._pages[gpn] = memoryview(bytearray(PAGE_SIZE))
        return gpn

    def close(self) -> None:
        """Unmap and close; idempotent. Views handed out before keep the mapping alive until they go."""
        if self.fd < 0:
            return
        os.close(self.fd)
        self.fd = -1
        self._view = memoryview(b"")  # rings may hold the one before
        self._view.release()
        try:
            self._map.close()
        except BufferError:
            return  # a view is still out: the mapping goes with it

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _outside(self, gpa: int, size: int) -> memoryview:
        page = self._pages.get(gpa >> PAGE_SHIFT) if gpa >= self.size else None
        offset = gpa % PAGE_SIZE
        if page is None or size < 0 or offset + size > PAGE_SIZE:
            raise MemoryAccessError(gpa, size, self.size)
        return page[offset : offset + size]
