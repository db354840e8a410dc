"""The demo in a terminal: what happens as lines that stay, and below them how things stand, redrawn.

Where the output is no terminal the standing is a line every two seconds. Any thread may tell something.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Self

from rich.console import Console, ConsoleRenderable, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..status.progress import number
from .formatting import safe

if TYPE_CHECKING:
    from ..demo import Moment

PLAIN_PERIOD_S = 2.0
_LEVELS = "▁▂▃▄▅▆▇█"


class DemoDisplay:
    """Shows the demo on a console while the `with` block lasts."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._step = ""
        self._moment: Moment | None = None
        self._waiting: list[int] = []
        self._printed_at = 0.0
        self._lock = threading.Lock()
        self._live = (
            Live(get_renderable=self._render, console=console, refresh_per_second=10, transient=True)
            if console.is_terminal
            else None
        )

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Show no more than lines from now on."""
        if self._live is not None:
            self._live.stop()

    def step(self, text: str) -> None:
        """Note the step of the demo that begins."""
        with self._lock:
            self._step = text
        self.line(Text(safe(text), style="bold"))

    def line(self, text: Text) -> None:
        """Print a line that stays, with the time before it."""
        since = Text(f"{time.monotonic() - self._began:5.1f} s", style="dim")
        if self._live is None:
            self._console.print(Text("  ").join((since, text)), soft_wrap=True)  # one line, however long
            return
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        grid.add_row(since, text)
        self._console.print(grid)

    def moment(self, moment: Moment) -> None:
        """Show how things stand now."""
        with self._lock:
            self._moment = moment
            self._waiting.append(moment.waiting)
        now = time.monotonic()
        if self._live is None and now - self._printed_at >= PLAIN_PERIOD_S:
            self._printed_at = now
            self.line(_plain_moment(moment))

    def _render(self) -> ConsoleRenderable:
        with self._lock:
            moment, step, waiting = self._moment, self._step, list(self._waiting)
        if moment is None:
            return Text("")
        grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
        grid.add_column(style="dim", no_wrap=True, width=9)
        grid.add_column(ratio=1)
        grid.add_row("now", Text(safe(step), style="bold"))
        grid.add_row("points", _counts(moment))
        grid.add_row("", ProgressBar(total=max(1, moment.seen), completed=moment.confirmed))
        if not self._console.options.ascii_only:
            grid.add_row("waiting", Text(_sparkline(waiting, self._console.width - 17), style="yellow"))
        grid.add_row("stream", Text(", ".join(map(safe, moment.data_ids)) or "not initialized yet"))
        grid.add_row("server", _server(moment))
        return Group(
            Text(), Panel(grid, title="atomscale-bluesky demo", title_align="left", border_style=_colour(moment))
        )


class DemoLog(logging.Handler):
    """Shows what the package logs among the demo's lines."""

    def __init__(self, display: DemoDisplay) -> None:
        super().__init__(logging.INFO)
        self._display = display

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record of the log."""
        style = "red" if record.levelno >= logging.ERROR else "yellow" if record.levelno >= logging.WARNING else "dim"
        text = safe(record.getMessage(), limit=400)
        self._display.line(Text.assemble(("log: ", "dim"), (text, style)))


def _counts(moment: Moment) -> Text:
    return Text.assemble(
        (number(moment.seen), "bold"), " seen   ",
        (number(moment.confirmed), "bold green"), " confirmed   ",
        (number(moment.waiting), "bold yellow"), " waiting",
    )  # fmt: skip


def _server(moment: Moment) -> Text:
    if moment.reachable is None:
        return Text("not ours, so it is left alone")
    held = f"   holds {number(moment.held)} points" if moment.held is not None else ""
    if moment.reachable:
        return Text.assemble(("reachable", "green"), held)
    return Text.assemble((f"unreachable for {moment.away_s:.1f} s", "bold red"), held)


def _colour(moment: Moment) -> str:
    return "red" if moment.reachable is False else "green"


def _plain_moment(moment: Moment) -> Text:
    parts = [f"{moment.seen} seen, {moment.confirmed} confirmed, {moment.waiting} waiting"]
    if moment.reachable is not None:
        parts.append("server reachable" if moment.reachable else f"server unreachable for {moment.away_s:.1f} s")
    return Text("; ".join(parts))


def _sparkline(values: list[int], width: int) -> str:
    """Return the course of the values so far as a row of bars, the newest at the right."""
    shown = values[-max(1, width) :]
    top = max(max(values, default=0), 1)
    return "".join(_LEVELS[min(len(_LEVELS) - 1, value * len(_LEVELS) // (top + 1))] for value in shown)
