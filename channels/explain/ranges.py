"""Ranges of memory: GPA ranges of GPADLs and GPA-direct packets, ranges of transfer pages."""

from __future__ import annotations

from broker.hvdef import PAGE_SIZE
from broker.hvdef.registers import PAGE_SHIFT
from channels.protocol.gparange import GPA_RANGE_HEADER, GPN_SIZE, TransferRange, page_count

from .table import Table, plural

SHOWN_RANGES = 64
SHOWN_PAGES = 32
_U32 = 0xFFFF_FFFF


def gpa_ranges(table: Table, count: int, elsewhere: int = 0) -> None:
    """`count` ranges, back to back, checked as a receiver does. `elsewhere`: bytes of them that other messages carry.

    Of many pages or ranges the first have a row each, the others one together.
    """
    for number in range(count):
        name = f"range[{number}]"
        if table.left < GPA_RANGE_HEADER.size:
            if not elsewhere:
                table.problem(name, table.position, "a range", f"an end: {number} of {count} are here")
            return
        if number == SHOWN_RANGES:
            table.rest(f"range[{number}...]", f"{count - number} more, not looked at one by one")
            return
        pages = _range_header(table, name, elsewhere)
        present = min(pages, table.left // GPN_SIZE)
        _pages(table, name, present)
        if GPN_SIZE * (pages - present) > elsewhere:
            table.problem(name, table.position, plural(pages, "page number"), str(present))
            return


def range_buffer(table: Table) -> None:
    """Words of a range buffer that began in another message: page numbers, as far as one can tell."""
    for number in range(table.left // GPN_SIZE):
        _page(table, f"word[{number}]", "page number, or the start of a range: ")
    table.rest("ignored", "less than a word")


def transfer_ranges(table: Table, count: int) -> None:
    """`count` ranges of a buffer that both sides know."""
    size = TransferRange.layout().size
    present = min(count, table.left // size)
    for number in range(min(present, SHOWN_RANGES)):
        byte_count, byte_offset = table.peek(4), table.peek(4, 4)
        meaning = f"{plural(byte_count, 'byte')} from byte {byte_offset} of the buffer"
        table.text(f"range[{number}]", size, f"{byte_count:#x} at {byte_offset:#x}", meaning)
    if present > SHOWN_RANGES:
        table.octets(f"range[{SHOWN_RANGES}..{present - 1}]", size * (present - SHOWN_RANGES), "the same")
    if present < count:
        table.problem("range count", table.position, plural(count, "range"), str(present))


def _range_header(table: Table, name: str, elsewhere: int) -> int:
    """The row of a range; how many page numbers follow."""
    offset = table.position
    byte_count, byte_offset = table.peek(4), table.peek(4, 4)
    pages = page_count(byte_count, byte_offset)
    meaning = f"{plural(byte_count, 'byte')} from byte {byte_offset} of the first of {plural(pages, 'page')}"
    here = (table.left - GPA_RANGE_HEADER.size) // GPN_SIZE
    if here < pages and elsewhere:
        meaning += f"; {here} page numbers are here, the others in GPADL_BODY messages"
    table.text(name, GPA_RANGE_HEADER.size, f"{byte_count:#x} at {byte_offset:#x}", meaning)
    if not byte_count:
        table.problem(name, offset, "a byte count over 0", "0")
    if byte_offset >= PAGE_SIZE:
        table.problem(name, offset + 4, f"a byte offset below {PAGE_SIZE}", f"{byte_offset:#x}")
    elif byte_count + byte_offset + PAGE_SIZE - 1 > _U32:
        table.problem(name, offset, "a range that ends within 32 bits", f"{byte_count:#x} at {byte_offset:#x}")
    return pages


def _pages(table: Table, name: str, present: int) -> None:
    for page in range(min(present, SHOWN_PAGES)):
        _page(table, f"{name}.page[{page}]", "")
    if present > SHOWN_PAGES:
        more = present - SHOWN_PAGES
        table.octets(f"{name}.page[{SHOWN_PAGES}..{present - 1}]", GPN_SIZE * more, plural(more, "more page number"))


def _page(table: Table, field: str, before: str) -> None:
    gpn = table.peek(GPN_SIZE)
    table.number(field, GPN_SIZE, f"{before}GPA {gpn << PAGE_SHIFT:#x}")
