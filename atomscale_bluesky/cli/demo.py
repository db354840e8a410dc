"""`atomscale-bluesky demo`: the demo, and how it looks in a terminal."""

from __future__ import annotations

import logging
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..status.progress import number
from .demo_display import DemoDisplay, DemoLog
from .formatting import console, safe
from .options import Once

if TYPE_CHECKING:
    from ..demo import Comparison, Outcome

DEFAULT_PLOT = Path("atomscale-demo.png")


@click.command
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    default=DEFAULT_PLOT,
    show_default=True,
    help="The file for the picture.",
)
@click.option("--no-plot", is_flag=True, help="Draw no picture.")
@click.option("--quick", is_flag=True, help="Make the growth and the outage shorter: some seconds in all.")
@click.option("--keep", is_flag=True, help="Leave the local server running when the demo ends.")
@click.option("--open", "opens", is_flag=True, help="Open the local server's page, and stay until Ctrl-C.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    help="The local server's port. 0, the default, takes any free port.",
)
@click.option(
    "--endpoint",
    cls=Once,
    metavar="URL",
    help="Stream to this server instead, with the key in ATOMSCALE_API_KEY; it is not made unreachable.",
)
@click.option(
    "--synth-source-id",
    type=click.IntRange(0),
    metavar="NUMBER",
    help="Growth instrument to link the stream to.  [default: the local server's]",
)
def demo(
    plot: Path,
    no_plot: bool,
    quick: bool,
    keep: bool,
    opens: bool,
    port: int,
    endpoint: str | None,
    synth_source_id: int | None,
) -> int:
    """See it work, in half a minute and without a key.

    A simulated growth chamber runs a recipe under a real RunEngine, and streams it to a local server. In the middle the
    server is made unreachable for some seconds: the plan does not notice. In the end everything is read back, and every
    point compared with what the RunEngine emitted. Without --endpoint nothing leaves this machine.

    The exit code is 0 only if every point is equal.
    """
    if endpoint is not None and (keep or opens or port):
        raise click.UsageError("--keep, --open and --port are about the local server, which --endpoint replaces")
    out = console()
    out.print("A simulated growth is streamed while it runs; in the end every point is compared.")
    from ..demo import Choices, run_demo  # needs bluesky, ophyd and the server

    if not no_plot:
        from ..demo.picture import draw  # needs matplotlib; said now rather than after the growth

        if not plot.absolute().parent.is_dir():
            raise click.BadParameter(f"there is no folder {str(plot.absolute().parent)!r}", param_hint="--plot")
    else:
        draw = None

    display = DemoDisplay(out)

    def tell(outcome: Outcome) -> None:
        display.end()
        _report(out, outcome)
        if draw is not None:
            try:
                draw(outcome, plot)
            except OSError as error:
                out.print(Text(f"The picture could not be written: {safe(error)}", style="red"))
            else:
                out.print(f"The picture of it is {safe(plot)}.", soft_wrap=True)
        _farewell(out, outcome)
        if opens:
            out.print(f"The page stays at {outcome.endpoint} until you press Ctrl-C.", soft_wrap=True)
            with suppress(KeyboardInterrupt):
                while True:  # on Windows a wait without a limit would not notice Ctrl-C
                    threading.Event().wait(0.2)

    choices = Choices(endpoint=endpoint, synth_source_id=synth_source_id, quick=quick, keep=keep, port=port)
    with _logged(display), display:
        if opens:
            outcome = run_demo(choices, display, at_server=webbrowser.open, at_end=tell)
        else:
            outcome = run_demo(choices, display)
    if not opens:
        tell(outcome)
    return 0 if outcome.equal else 1


@contextmanager
def _logged(display: DemoDisplay) -> Iterator[None]:
    """Print the package's log among the demo's lines while the block runs, without bluesky's traceback of an abort."""
    ours, blueskys = logging.getLogger("atomscale_bluesky"), logging.getLogger("bluesky")
    log, silence = DemoLog(display), logging.NullHandler()
    before = ours.level, ours.propagate
    ours.addHandler(log)
    ours.setLevel(logging.INFO)
    ours.propagate = False
    blueskys.addHandler(silence)
    try:
        yield
    finally:
        blueskys.removeHandler(silence)
        ours.removeHandler(log)
        ours.setLevel(before[0])
        ours.propagate = before[1]


def _report(out: Console, outcome: Outcome) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("channel")
    table.add_column("points", justify="right")
    table.add_column("unit")
    table.add_column("first", justify="right")
    table.add_column("last", justify="right")
    table.add_column("arrived")
    for one in outcome.comparisons:
        said = Text("equal", style="green") if one.equal else Text("not equal", style="bold red")
        table.add_row(Text(safe(one.channel)), number(len(one.emitted)), Text(safe(_unit(one))), *_ends(one), said)
    out.print()
    out.print(Padding(table, (0, 0, 1, 0)))
    channels = len(outcome.comparisons)
    if outcome.equal:
        out.print(
            Text.assemble(
                ("All ", "bold green"),
                (number(outcome.points), "bold green"),
                (f" points of {channels} channels arrived as measured: ", "bold green"),
                "value, time to the millisecond, unit and order.",
            )
        )
    else:
        unequal = sum(not one.equal for one in outcome.comparisons)
        text = f"{unequal} of {channels} channels did not arrive as measured."
        if outcome.problem:
            text += f" {safe(outcome.problem)}."
        out.print(Text(text, style="bold red"))
        for one in outcome.comparisons:
            if not one.equal:
                out.print(Text(f"  {safe(one.channel)}: {safe(one.difference)}", style="red"), soft_wrap=True)
    if outcome.outage is not None:
        begin, end = outcome.outage
        inside, outside = outcome.longest_pause_in_outage_s, outcome.longest_pause_s
        out.print(
            f"The server was away for {end - begin:.1f} s. The longest time between two readings was "
            f"{inside * 1e3:.0f} ms meanwhile, and {outside * 1e3:.0f} ms otherwise."
        )
    for data_id in outcome.data_ids:
        out.print(f"The metrology stream is {safe(data_id)}.", soft_wrap=True)


def _unit(one: Comparison) -> str:
    return one.emitted.unit or one.arrived.unit or ""


def _ends(one: Comparison) -> tuple[str, str]:
    values = one.emitted.values or one.arrived.values
    if not values:
        return "", ""
    return _value(values[0]), _value(values[-1])


def _value(value: float | None) -> str:
    return safe(f"{value:.5g}" if isinstance(value, float) else value, limit=12)


def _farewell(out: Console, outcome: Outcome) -> None:
    kept = outcome.kept_server
    if kept is not None:
        out.print()
        out.print(
            f"The local server is still at {kept.url}, with control at {kept.control_url}. Its key is local-key.\n"
            f"It is process {kept.pid}; end it when you are done.",
            soft_wrap=True,
        )
    out.print()
    out.print("To use it for real, put your key into ATOMSCALE_API_KEY, and in your Bluesky session:")
    out.print()
    instrument = 42 if outcome.instrument is None else outcome.instrument
    lines = (
        "from atomscale_bluesky import AtomscaleCallback",
        f'RE.md["synth_source_id"] = {instrument}  # your growth instrument',
        "RE.subscribe(AtomscaleCallback())",
    )
    for line in lines:
        out.print(Text(f"    {line}", style="cyan"))
    out.print()
