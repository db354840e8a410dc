"""`atomscale-bluesky plot`: a run's channels in the terminal, or as a picture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from rich.text import Text

from .formatting import console, moment, safe
from .runs import FoundRun, find_run, run_argument, source_option, spool_dir_option, tables_of, warn_of_missing_parts

if TYPE_CHECKING:
    from ..checks.run_tables import Table, TableColumn

# How many lines share a plot, and how many plots are shown unless channels are named.
MAX_LINES, MAX_PLOTS = 8, 6
# How wide a plot in text is at most. A pipe has no width of its own.
MAX_COLUMNS = 160
_COLOURS = (
    "bright_blue",
    "bright_red",
    "bright_green",
    "bright_yellow",
    "bright_magenta",
    "bright_cyan",
    "white",
    "blue",
)


@click.command
@run_argument
@click.argument("channels", metavar="[CHANNEL]...", nargs=-1)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a picture instead: a new file, PNG, SVG or PDF by its ending.",
)
@source_option
@spool_dir_option
def plot(run: str, channels: tuple[str, ...], out: Path | None, source: str, spool_dir: Path | None) -> int:
    """Plot a run's channels, one plot for each unit.

    RUN is a uid, its beginning, a scan id, or `last` for the newest run. Without a CHANNEL all are plotted. In the
    terminal the first plots are shown, and with --out all of them. Needs the extra `plot`.
    """
    from ..settings import Settings

    settings = Settings.load(spool_dir=spool_dir)
    found = find_run(settings, run)
    if out is not None:
        check_new(out, "--out")
    by_unit = _by_unit(tables_of(settings, found, source, channels))
    if not by_unit:
        raise click.ClickException(f"run {found.short} has no point yet")
    if out is not None:
        _draw(found, by_unit, out)
        console().print(Text(f"The picture is {safe(out)}."), soft_wrap=True)
    else:
        _print(found, by_unit, bool(channels))
    return warn_of_missing_parts(found, source, channels)


def check_new(path: Path, option: str) -> None:
    """Refuse a file that exists, which the package may not have made.

    Raises:
        click.BadParameter: It exists, or its folder does not.
    """
    if path.exists() or path.is_symlink():
        raise click.BadParameter(f"{str(path)!r} exists; name a new file", param_hint=option)
    if not path.absolute().parent.is_dir():
        raise click.BadParameter(f"there is no folder {str(path.absolute().parent)!r}", param_hint=option)


# The terminal's plots have a tick every so many columns.
_TICK_COLUMNS = 10

_Lines = list[tuple["Table", "TableColumn"]]


def _by_unit(tables: list[Table]) -> dict[str, _Lines]:
    found: dict[str, _Lines] = {}
    for table in tables:
        for column in table.columns:
            if column.points:
                found.setdefault(column.unit or "", []).append((table, column))
    return found


def _print(run: FoundRun, by_unit: dict[str, _Lines], everything: bool) -> None:
    import plotille

    out = console()
    out.print(Text(f"{safe(run.label, limit=200)}, run {run.short}, started {moment(run.started)}", style="bold"))
    shown = list(by_unit.items()) if everything else list(by_unit.items())[:MAX_PLOTS]
    for unit, lines in shown:
        figure = plotille.Figure()
        figure.width, figure.height = max(20, min(out.width, MAX_COLUMNS) - 24), 12
        figure.color_mode, figure.with_colors, figure.origin = "names", out.is_terminal and not out.no_color, False
        figure.x_label, figure.y_label = "s", safe(unit or "no unit", limit=9)
        figure.register_label_formatter(float, _label)
        known = [table.times[~np.isnan(column.values)] - run.started for table, column in lines[:MAX_LINES]]
        low, high = _round_limits(min(map(np.min, known)), max(map(np.max, known)), figure.width / _TICK_COLUMNS)
        figure.set_x_limits(min_=low, max_=high)
        out.print()
        for (table, column), colour in zip(lines[:MAX_LINES], _COLOURS, strict=False):
            times, values = _thinned(table.times - run.started, column.values, 4 * figure.width)
            figure.plot(times, values, lc=colour if figure.with_colors else None)
            out.print(Text.assemble(("━ ", colour), safe(column.name)))
        if len(lines) > MAX_LINES:
            out.print(Text(f"and {len(lines) - MAX_LINES} more; name the channels that you want", style="dim"))
        out.print(Text.from_ansi(figure.show()), soft_wrap=True)
    if len(by_unit) > len(shown):
        units = ", ".join(safe(unit or "no unit") for unit in list(by_unit)[len(shown) :])
        out.print(Text(f"Not shown: {units}. Name channels, or write a picture by --out.", style="dim"))


def _round_limits(low: float, high: float, ticks: float) -> tuple[float, float]:
    """Return limits of an axis that holds these values, so that it has round numbers at its ticks."""
    tiny = max(abs(low), abs(high), 1.0) * 1e-9
    size = 10 ** math.floor(math.log10(max(high - low, tiny) / ticks))
    steps = (size * 10**power * factor for power in range(4) for factor in (1, 2, 5))
    for step in steps:
        begin = math.floor(low / step) * step
        if begin + step * ticks >= high:
            return begin, begin + step * ticks
    return low, high  # not reached: a step of the last power is longer than the values' range


def _label(val: float, chars: int, delta: float, left: bool = False) -> str:
    text = f"{val:.4g}"
    if left:  # a time, in round numbers: all of its digits, as far as they fit
        text = next((whole for digits in range(9, 4, -1) if len(whole := f"{val:.{digits}g}") <= chars), text)
    return f"{text:<{chars}}" if left else f"{text:>{chars}}"


def _thinned(times: Any, values: Any, max_points: int) -> tuple[list[float], list[float]]:
    """Return the lowest and the highest value of each part, so that no spike is missed."""
    known = ~np.isnan(values)
    times, values = times[known], values[known]
    size = math.ceil(len(values) / max(1, max_points // 2))
    if size > 2:
        parts = range(0, len(values), size)
        kept = {at + int(f(values[at : at + size])) for at in parts for f in (np.argmin, np.argmax)}
        index = np.array(sorted(kept))
        times, values = times[index], values[index]
    return times.tolist(), values.tolist()


def _draw(run: FoundRun, by_unit: dict[str, _Lines], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.8 + 2.3 * len(by_unit)), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{_literal(run.label)}\nrun {_literal(run.short)}, {moment(run.started)}", fontsize=10)
    all_axes = figure.subplots(len(by_unit), sharex=True, squeeze=False)[:, 0]
    for axes, (unit, lines) in zip(all_axes, by_unit.items(), strict=True):
        for table, column in lines:
            axes.plot(table.times - run.started, column.values, linewidth=1, label=_literal(column.name))
        axes.set_ylabel(_literal(unit))
        axes.grid(visible=True, color="#e5e5e5")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7, frameon=False)
    all_axes[-1].set_xlabel("seconds since the run's start")
    try:
        figure.savefig(path)
    except ValueError as error:  # an ending that it does not know
        raise click.BadParameter(safe(error), param_hint="--out") from None
    except OSError as error:
        raise click.ClickException(f"{str(path)!r} cannot be written: {safe(error)}") from None


def _literal(text: str) -> str:
    """Return text that matplotlib does not take for a formula, nor a legend for a hidden line."""
    return " " * text.startswith("_") + safe(text, limit=120).replace("$", r"\$")
