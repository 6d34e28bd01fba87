"""`vmbus backends`."""

from __future__ import annotations

import click

from ..synic import BACKENDS
from .common import console, print_json_lines


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines instead of a table.")
def backends(as_json: bool) -> None:
    """List the SynIC backends and what each does and refuses."""
    if as_json:
        print_json_lines(list(BACKENDS.values()))
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, collapse_padding=True, header_style="bold")
    for title in (
        "backend",
        "SynIC",
        "VTLs",
        "event\nports",
        "guest\nevents",
        "OS\nevents",
        "monitor\npages",
        "trusted\nposts",
        "proxied\nSINTs",
    ):
        table.add_column(title, no_wrap=True)
    for row in BACKENDS.values():
        features = (
            ",".join(str(int(vtl)) for vtl in row.vtls),
            {"none": "dispatch", "given": "given fd", "always": "eventfd"}[row.host_event_ports],
            row.guest_events,
            "prefer" if row.prefer_os_events else "-",
            {"none": "-", "yes": "yes", "allocate": "allocate"}[row.monitor],
            "yes" if row.trusted_posts else "-",
            "to host" if row.proxied_sints else "dropped",
        )
        table.add_row(row.name, row.synic, *(features if row.synic != "none" else ["-"] * len(features)))
    out = console()
    out.print(table)
    out.print()
    for row in BACKENDS.values():
        out.print(f"{row.name:10} {row.about}")
