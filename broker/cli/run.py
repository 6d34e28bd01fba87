"""`vmbus run`: a scenario, with a summary that is live on a terminal."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from channels.faults import FAULTS, parse_fault
from channels.protocol import Version
from channels.scenarios import Settings

from ..hvdef import PROFILES
from ..meter import ChannelTraffic
from ..run import Report, find_scenario, play
from .common import REFUSED, check_trace, console, open_trace, print_json_lines, run_on, scene_options

VERSIONS = {version.label: version for version in Version}
_GUID_END = re.compile(r"(?<=\b[0-9a-f]{8})-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
"""Of a GUID, all but the first group: the whole of it is in the JSON."""
_FAULTS = "\n".join(f"{name:21}{kind.about} ({kind.argument}: {kind.default})" for name, kind in FAULTS.items())


@click.command(epilog=f"Faults, with what their number means and is:\n\n\b\n{_FAULTS}")
@click.argument("scenario_name", metavar="MODULE:NAME")
@click.option(
    "--version", type=click.Choice(list(VERSIONS)), help="The VMBus version that the guest asks for; else the newest."
)
@click.option(
    "--packets", type=click.IntRange(1), default=1000, show_default=True, help="Packets through each channel."
)
@click.option("--payload", type=click.IntRange(1), default=240, show_default=True, help="Bytes of data in a packet.")
@click.option("--channels", type=click.IntRange(1), default=3, show_default=True, help="Sub-channels or devices.")
@click.option("--rounds", type=click.IntRange(1), default=10, show_default=True, help="Resets, where there are some.")
@click.option(
    "--fault",
    "fault_texts",
    multiple=True,
    metavar="NAME[:NUMBER]",
    help="Let something go wrong, see below; may be given again.",
)
@click.option("--live", is_flag=True, help="As fast as it goes, in real time; the seed decides nothing.")
@scene_options
def run(
    scenario_name: str,
    version: str | None,
    packets: int,
    payload: int,
    channels: int,
    rounds: int,
    fault_texts: tuple[str, ...],
    live: bool,
    as_json: bool,
    loop: str,
    seed: int,
    profile: str,
    backend: str,
    trace_file: Path | None,
) -> None:
    """Run a scenario: host devices and guest code under one name.

    \b
    channels.scenarios:hello          connect, open, say hello, close, unload
    channels.scenarios:echo           packets in batches, each checked as it comes back
    channels.scenarios:subchannels    sub-channels asked for in-band and used at once
    channels.scenarios:reset_storm    the VM is reset in the middle of traffic
    channels.scenarios:starved_guest  a guest asks without listening
    channels.scenarios:hvsock         sockets between guest and host, both ways
    channels.scenarios:disk           blocks written, read back and refused
    channels.scenarios:network        frames between two network adapters on one switch
    channels.scenarios:integration    heartbeat, time, shutdown, key-value pairs, snapshots, file copy
    channels.scenarios:driver_test    what a driver's author looks at: each device once, and what it answers

    Any other module's will do, too. The exit status is 1 when something is not as it has to be, as with some faults it is.
    """
    sys.path.insert(0, str(Path.cwd()))  # where a newcomer's own module is
    scenario = find_scenario(scenario_name)
    faults = [parse_fault(text) for text in fault_texts]
    settings = Settings(
        version=None if version is None else VERSIONS[version],
        packets=packets,
        payload=payload,
        channels=channels,
        rounds=rounds,
    )
    with ExitStack() as stack:
        trace = open_trace(stack, trace_file) if trace_file else None
        with _summary(None if as_json else console(), f"{scenario_name}: {scenario.about}") as tell:
            report = run_on(
                loop,
                lambda: play(
                    scenario, settings, PROFILES[profile], backend, None if live else seed, trace, tell, faults
                ),
            )
        check_trace(trace)
    if as_json:
        print_json_lines([report])
    else:
        _print_end(console(), report)
    if report.failure is not None:
        sys.exit(REFUSED)


@contextmanager
def _summary(out: Console | None, title: str) -> Iterator[Callable[[Report], None]]:
    """Tells what happens while it does: in place on a terminal, else a line for each sentence."""
    if out is None:
        yield lambda report: None
        return
    if not out.is_terminal:
        said = -1
        errors: list[BaseException] = []

        def tell(report: Report) -> None:
            nonlocal said
            if errors:
                return
            try:
                if said < 0:
                    out.print(Text(title))
                for sentence in report.said[max(said, 0) :]:
                    out.print(Text(sentence))
            except (OSError, SystemExit) as error:  # rich exits where nobody reads; not from within guest code
                errors.append(error)
            said = len(report.said)

        yield tell
        if errors:
            raise errors[0]
        return
    newest: list[Report] = []
    with Live(get_renderable=lambda: _picture(title, newest), console=out, refresh_per_second=10):
        yield lambda report: newest.__setitem__(slice(None), [report])


def _picture(title: str, newest: list[Report]) -> Group:
    if not newest:
        return Group()
    (report,) = newest
    counts = "   ".join(f"{what} {number}" for what, number in report.counts.items())
    return Group(Text(title, style="bold"), *map(Text, report.said), Text(counts, style="green"))


def _print_end(out: Console, report: Report) -> None:
    for what, number in report.counts.items():
        rate = f", {number / report.seconds:,.0f} a second" if report.ticks is None and report.seconds else ""
        out.print(Text(f"{number} {what}{rate}"))
    for what, number in report.faults.items():
        out.print(Text(f"fault {what} struck {number} times", style="yellow"))
    if report.channels:
        out.print(_channel_table(report.channels))
    if report.ticks is not None:
        out.print(Text(f"virtual time {report.ticks} ticks of 100 ns"))
    if report.failure is not None:
        out.print(Text(f"failed: {report.failure}", style="red"))


def _channel_table(channels: list[ChannelTraffic]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("channel")
    table.add_column("device", overflow="fold")  # a name is worth a second line, not three dots
    for direction in ("to host", "to guest"):
        table.add_column(f"packets {direction}", justify="right")
        table.add_column("ring bytes", justify="right")
    for channel in sorted(channels, key=lambda channel: channel.channel_id):
        sub = f".{channel.subchannel}" if channel.subchannel else ""
        ways = [f"{number:,}" for way in (channel.to_host, channel.to_guest) for number in (way.packets, way.bytes)]
        table.add_row(f"{channel.channel_id:#x}{sub}", _GUID_END.sub("…", channel.device), *ways)
    return table
