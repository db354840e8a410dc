"""A bar on the terminal that shows the delivery: points, rate and remaining time. Needs the extra `cli`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from .spool_status import SpoolStatus

POLL_S = 0.2
# How many polls there are from one line to the next if the output is no terminal.
POLLS_PER_LINE = 25


class Bar:
    """Shows how much of the points waiting at the start, or added since, has been delivered.

    Raises:
        ImportError: From construction: rich is not installed.
    """

    def __init__(self, out: Console, watch: SpoolStatus) -> None:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        self._out = out
        self._watch = watch
        self._polls = 0
        self._points = self._printed = ""
        self._first: dict[str, int] = {}  # waiting points of each run when it was first seen
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn("[progress.percentage]{task.percentage:>3.0f}% of the points,"),
            TextColumn("{task.fields[points]}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=out,
            disable=not out.is_terminal,
        )
        self._task = self._progress.add_task("uploading", total=None, points="", rate="")

    def __enter__(self) -> Bar:
        """Start to show the bar."""
        self._progress.start()
        self.update()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, and leave the last state on the terminal."""
        self._progress.stop()
        self._print_line()

    def update(self) -> None:
        """Read the spool's status and update the bar."""
        now = {run.run_uid: run.points.waiting + run.points.refused for run in self._watch.status()}
        for uid, waiting in now.items():
            self._first.setdefault(uid, waiting)
        total = sum(max(first, now.get(uid, 0)) for uid, first in self._first.items())
        waiting = sum(now.values())
        points = self._points = f"{number(total - waiting)} of {counted(total, 'point')}"
        task = next(task for task in self._progress.tasks if task.id == self._task)
        rate = f"{number(round(task.speed))}/s" if task.speed else ""
        self._progress.update(self._task, total=max(total, 1), completed=total - waiting, points=points, rate=rate)
        if self._polls % POLLS_PER_LINE == 0:
            self._print_line()
        self._polls += 1

    def _print_line(self) -> None:
        """Print how far it is where there is no terminal, unless that was printed or there is nothing to deliver."""
        if not self._out.is_terminal and any(self._first.values()) and self._points != self._printed:
            self._printed = self._points
            self._out.print(self._points)


def number(count: int) -> str:
    """Return a count with its thousands set apart."""
    return f"{count:,}".replace(",", "\N{NO-BREAK SPACE}")


def counted(count: int, noun: str) -> str:
    """Return a count with its noun: 1 run, 2 runs."""
    return f"{number(count)} {noun}{'' if count == 1 else 's'}"
