"""`atomscale-bluesky status`: what happened to every reading that is not delivered yet.

It reads the spool's files and claims nothing, so it works while the RunEngine's process lives, and after it has died.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from ..model.uids import uids_meant
from ..status.progress import counted
from .formatting import console, moment, safe
from .monitoring import Duration, check_now
from .options import Once
from .runs import run_or_all_argument, uid_meant

if TYPE_CHECKING:
    from ..settings import Settings
    from ..spool.spool import Spool
    from ..status.account import Counts
    from ..status.spool_status import Status

# How often `--watch` polls.
LOOK_PERIOD_S = 1.0
# How long `--watch` shows a run after it has left the spool.
FINISHED_SHOWN_S = 60.0
# How many runs are shown unless `--last` says otherwise, of those in the spool and of the finished ones.
MAX_SHOWN = 20


@click.command
@run_or_all_argument
@click.option("--all", "with_finished", is_flag=True, help="Show the finished runs too.")
@click.option("--last", type=click.IntRange(min=1), default=MAX_SHOWN, show_default=True, metavar="N",
              help="Show N runs of the spool, the newest and those that need the operator, and with --all the newest N "
                   "finished ones. Runs that are parked for the same problem count as one.")  # fmt: skip
@click.option("--spool-dir", cls=Once, type=click.Path(file_okay=False, path_type=Path), help="Read this spool.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, channel by channel; with --watch, one line each.")
@click.option("--watch", "watched", is_flag=True, help="Stay on the screen until Ctrl-C; in a pipe, print each change.")
@click.option("--check", is_flag=True, help="Print one line, with the exit code of a monitoring plugin.")
@click.option("--max-age", "max_age_s", type=Duration(), metavar="TIME",
              help="With --check: how old the oldest waiting point may be, such as 90s, 10m or 2h.")  # fmt: skip
def status(
    run: str | None,
    with_finished: bool,
    last: int,
    spool_dir: Path | None,
    as_json: bool,
    watched: bool,
    check: bool,
    max_age_s: float | None,
) -> int:
    """Report what happened to every reading.

    Shows the runs that are not completely delivered: how many points were seen, delivered, refused or left out, how
    many wait, and why; for how long the oldest point has been waiting; and what to do about a run that needs the
    operator. RUN is a uid, its beginning, a scan id, or `last` for the newest run: then only that run is shown, even if
    it is finished. Works while the RunEngine's process lives, and after it has died.

    The exit code is 1 if something needs the operator: a run that is parked or cannot be read, a chunk that was
    refused, a point that was lost, an API key that is refused, a disk or a spool that is full. It is 0 otherwise, also
    while points wait.

    With --check the exit codes are those of monitoring plugins: 0 all is well, 1 runs wait and are not being delivered,
    2 the operator is needed, or a point or a finished run waits for longer than --max-age, 3 the spool or a setting
    cannot be used, or there is no spool.
    """
    from ..settings import Settings

    if max_age_s is not None and not check:
        raise click.UsageError("--max-age needs --check")
    if check:
        return check_now(spool_dir, max_age_s)
    snapshot = _Snapshot(Settings.load(spool_dir=spool_dir), run, with_finished, last)
    if watched:
        _watch(snapshot, as_json)
        return snapshot.exit_code
    snapshot.read_again()
    if as_json:
        click.echo(json.dumps(snapshot.as_json(), indent=2))
    else:
        _print(console(), snapshot.as_text())
    return snapshot.exit_code


class _Snapshot:
    """The spool as it is at one moment."""

    def __init__(self, settings: Settings, run: str | None, with_finished: bool, last: int) -> None:
        from ..settings import spool_option
        from ..status.spool_status import SpoolStatus, Status

        self._settings = settings
        self._option = spool_option(settings)
        self._spool: Spool | None = None
        self._watch: SpoolStatus | None = None
        self._run = run
        self._with_finished = with_finished or run is not None
        self._last = last
        self._history: tuple[int, list[dict[str, Any]]] = (0, [])  # and when the spool had changed
        self.now = 0.0
        self.runs = self.in_spool = Status()  # those to be shown, and all of them
        self.finished: list[dict[str, Any]] = []

    def read_again(self, *, just_finished: bool = False) -> None:
        """Read the spool again, which may not have been there before.

        Args:
            just_finished: Find the runs that have left the spool within the last minute, too.

        Raises:
            click.ClickException: There is no such run.
        """
        if self._spool is None:
            self._spool = open_spool(self._settings)
        self.now = time.time()
        if self._spool is not None:
            self._read_spool(self._spool, just_finished=just_finished)
        if self._run is not None:
            self._keep_only(self._run)

    def _read_spool(self, spool: Spool, *, just_finished: bool) -> None:
        from ..status.spool_status import SpoolStatus, Status

        self._watch = self._watch or SpoolStatus(spool)
        self.runs = runs = self._watch.status()
        if spool.is_served(here := self._settings.endpoint):  # it may have no run at present
            self.runs = Status(runs, runs.trouble, runs.no_room, runs.not_kept, runs.delivered_to | {here})
        self.in_spool = self.runs
        self.finished = []
        if self._with_finished:
            self.finished = self._entries(spool)
        elif just_finished:
            since = self.now - FINISHED_SHOWN_S
            self.finished = [e for e in self._entries(spool) if float(e.get("finished") or 0.0) > since]

    def _keep_only(self, run: str) -> None:
        """Drop all runs but the one that is meant by a text.

        Raises:
            click.ClickException: There is no such run.
        """
        from ..status.spool_status import Status

        if self._spool is None:
            raise click.ClickException(no_spool(self._settings))
        sought = self._run = uid_meant(self._spool, run)
        known = [*(one.run_uid for one in self.runs), *(str(entry.get("run_uid")) for entry in self.finished)]
        uids = uids_meant(known, sought)
        of_it = [one for one in self.runs if one.run_uid in uids]
        self.finished = [entry for entry in self.finished if str(entry.get("run_uid")) in uids]
        if not (of_it or self.finished):
            raise click.ClickException(
                f"no run begins with {safe(repr(sought))} or has it as its scan id; `atomscale-bluesky status "
                f"--all{self._option}` lists them"
            )
        runs = self.runs
        self.runs = Status(of_it, runs.trouble, runs.no_room, (), runs.delivered_to)

    def _entries(self, spool: Spool) -> list[dict[str, Any]]:
        """Return the history's entries by when their runs began. Reads them only when a run has left the spool."""
        changed = spool.changed_at()
        if changed != self._history[0]:
            entries = sorted(spool.history.entries(), key=lambda entry: float(entry.get("started") or 0.0))
            self._history = changed, entries
        return self._history[1]

    @property
    def printed_state(self) -> tuple[object, ...]:
        """What is printed again when it changes."""
        runs = self.runs
        no_room = bool(runs.no_room)  # the amount changes all the time
        since = runs.trouble and (runs.trouble.since, runs.trouble.of_kind_since)
        ended = tuple(str(entry.get("run_uid")) for entry in self.finished)
        totals = len(self.in_spool), self.in_spool.points.waiting
        return tuple(runs), since, no_room, runs.not_kept, ended, runs.delivered_to, totals

    @property
    def exit_code(self) -> int:
        """1 if something needs the operator."""
        runs = self.runs
        return 1 if runs.no_room or runs.key_refused or any(run.needs_operator for run in runs) else 0

    def as_text(self) -> Iterable[RenderableType]:
        """Return it as text: what needs the operator, the newest runs, and what holds for all."""
        from .shown_runs import not_shown, shown_runs
        from .status_text import blocks, not_shown_text

        runs = shown_runs(self.runs, self._last)
        finished = self.finished[-self._last :]
        endpoint = self._settings.endpoint
        of_one = self._run is not None
        found = blocks(runs, finished, endpoint, self.now, self._option, with_links=of_one)
        shown: list[RenderableType] = [block.shown for block in found]
        if hidden := not_shown(self.runs, runs):
            shown.append(not_shown_text(hidden))
        if hidden := len(self.finished) - len(finished):
            shown.append(Text(f"{counted(hidden, 'older finished run')} not shown; see `--last`."))
        return [*shown, *self._summary()]

    def _summary(self) -> Iterable[Text]:
        from .status_text import summary

        if self._spool is None:
            text = no_spool(self._settings)
            return [Text(f"{text[0].upper()}{text[1:]}.", style="yellow")]
        return summary(self._settings, self.in_spool, self.now, with_not_kept=self._run is None)

    def fitting_text(self, out: Console) -> RenderableType:
        """Return it as text that fits the terminal, what is new first."""
        from .shown_runs import not_shown, shown_runs
        from .status_text import blocks, fit_terminal

        runs, finished = shown_runs(self.runs, self._last), self.finished[-self._last :]
        endpoint, of_one = self._settings.endpoint, self._run is not None
        shown = blocks(runs, finished, endpoint, self.now, self._option, with_links=of_one)
        return fit_terminal(out, shown, [*self._summary()], hidden=len(not_shown(self.runs, runs)))

    def as_json(self) -> dict[str, Any]:
        """Return it for a program: everything that the text has."""
        import msgspec

        finished = self.finished[-self._last :] if self._with_finished else None
        return _as_json(self._settings, self.runs, finished, self.now, self._option) | {
            "exit_code": self.exit_code,
            "spool_is_there": self._spool is not None,
            "in_spool": {"runs": len(self.in_spool), "points": msgspec.to_builtins(self.in_spool.points)},
        }


def _watch(snapshot: _Snapshot, as_json: bool) -> None:
    """Poll every second until Ctrl-C: on a terminal in place, in a pipe whenever something has changed."""
    from ..spool.locks import SignalEvent

    ending, out = SignalEvent(), console()
    before = signal.signal(signal.SIGINT, lambda _number, _frame: ending.set())
    try:
        with ExitStack() as stack:
            live = None
            if out.is_terminal and not as_json:
                live = stack.enter_context(Live(console=out, auto_refresh=False))
            said: Any = None
            while True:
                snapshot.read_again(just_finished=True)
                if live is not None:
                    live.update(snapshot.fitting_text(out), refresh=True)
                elif snapshot.printed_state != said:
                    said = snapshot.printed_state
                    if as_json:
                        click.echo(json.dumps(snapshot.as_json()))
                    else:
                        _print(out, [Text(moment(snapshot.now)), *snapshot.as_text()])
                    sys.stdout.flush()
                if ending.wait(LOOK_PERIOD_S):
                    return
    finally:
        signal.signal(signal.SIGINT, before)


def _print(out: Console, shown: Iterable[RenderableType]) -> None:
    for part in shown:
        out.print(part, soft_wrap=True)  # a table's cells are wrapped all the same


def open_spool(settings: Settings, *, read_only: bool = True) -> Spool | None:
    """Return the spool, or None where there is none, or an empty folder.

    With `read_only` nothing in it is made or written.

    Raises:
        SettingsError: The folder cannot be used.
    """
    from ..errors import SettingsError, SpoolError
    from ..spool.spool import Spool

    try:
        path = settings.locate_spool()
        if not _holds_something(path):
            return None
        return Spool(
            path,
            max_bytes=settings.spool_max_bytes,
            min_free_bytes=settings.spool_min_free_bytes,
            read_only=read_only,
        )
    except SpoolError as error:
        raise SettingsError(str(error)) from error


def _holds_something(path: Path) -> bool:
    """Return True if a folder is not empty, or cannot be read, which is reported on opening it."""
    try:
        with os.scandir(path) as entries:
            return any(entries)
    except FileNotFoundError:
        return False
    except OSError:
        return True


def no_spool(settings: Settings) -> str:
    """Return the sentence, without its full stop, for a spool that is not there."""
    return (
        f"there is no spool in {safe(settings.spool_path)} yet: nothing was spooled there; the setting `spool_dir` "
        f"says where it is, or the option --spool-dir"
    )


def _as_json(
    settings: Settings, runs: Status, finished: list[dict[str, Any]] | None, now: float, option: str
) -> dict[str, Any]:
    import msgspec

    from ..status.clock_note import read_note
    from ..status.remedies import remedies

    told: dict[str, Any] = {
        "spool": str(settings.spool_path),
        "endpoint": settings.endpoint,
        "points": msgspec.to_builtins(sum((run.points for run in runs), _nothing())),
        "runs": [
            msgspec.to_builtins(run)
            | {
                "name": run.name,
                "oldest_waiting_s": None if run.oldest_waiting is None else max(0.0, now - run.oldest_waiting),
                "delivered_by_a_process": run.endpoint in runs.delivered_to,
                "remedies": list(remedies(run, option, settings.endpoint)),
            }
            for run in runs
        ],
        "last_error": runs.last_error,
        "trouble": msgspec.to_builtins(runs.trouble),
        "no_room": runs.no_room or None,
        "not_kept": msgspec.to_builtins(runs.not_kept),
        "delivered_to": sorted(runs.delivered_to),
        "api_key": settings.api_key is not None,
        "offline": settings.offline,
        "uploader": settings.uploader,
    }
    note = read_note(settings.spool_path)
    if note is not None and note.endpoint == settings.endpoint:
        told["clock"] = msgspec.to_builtins(note)
    if finished is not None:
        told["finished"] = finished
    return told


def _nothing() -> Counts:
    from ..status.account import Counts

    return Counts()
