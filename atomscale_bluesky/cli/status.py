"""`atomscale-bluesky status`: what became of every reading that is not yet delivered whole.

It reads the spool's files and claims nothing, so it may be asked while the RunEngine's process lives, and after it has
died.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..status.progress import counted, number
from .formatting import age, console, moment, plain

if TYPE_CHECKING:
    from ..settings import Settings
    from ..spool.spool import Spool
    from ..status.account import Counts, RunStatus, StreamStatus
    from ..status.spool_status import Status

# How often `--watch` looks.
LOOK_PERIOD_S = 1.0
# So many runs that found no room are shown one by one.
MOST_NOT_KEPT = 10

_STATES = {
    "running": "green",
    "delivering": "cyan",
    "interrupted": "yellow",
    "parked": "bold red",
    "finalized": "green",
    "discarded": "yellow",
    "unreadable": "bold red",
}


@click.command
@click.option("--all", "with_finished", is_flag=True, help="Show the finished runs too.")
@click.option("--spool-dir", type=click.Path(file_okay=False, path_type=Path), help="Look at this spool.")
@click.option("--json", "as_json", is_flag=True, help="Say it as JSON, channel by channel; with --watch, one per line.")
@click.option("--watch", "watched", is_flag=True, help="Keep it on screen until Ctrl-C; in a pipe, say each change.")
def status(with_finished: bool, spool_dir: Path | None, as_json: bool, watched: bool) -> int:
    """Tell what became of every reading.

    Shows the runs that are not delivered whole: what was seen, delivered, waits, was refused or left out, and why; and
    for how long the oldest point has been waiting. Works while the RunEngine's process lives, and after it has died.

    The exit code is 1 if something needs a person: a run that is parked or cannot be read, a chunk that was refused, a
    point that was lost, a disk or a spool that is full. It is 0 otherwise, also while points wait.
    """
    from ..settings import Settings

    look = _Look(Settings.load(spool_dir=spool_dir), with_finished)
    if watched:
        _watch(look, as_json)
        return look.exit_code
    look.again()
    if as_json:
        click.echo(json.dumps(look.as_json(), indent=2))
    else:
        _print(console(), look.shown())
    return look.exit_code


class _Look:
    """The spool as it is at one moment."""

    def __init__(self, settings: Settings, with_finished: bool) -> None:
        from ..status.spool_status import SpoolStatus, Status

        self._settings = settings
        self._spool: Spool | None = None
        self._watch: SpoolStatus | None = None
        self._with_finished = with_finished
        self.now = 0.0
        self.delivered_by_somebody = False
        self.found: tuple[Status, list[dict[str, Any]]] = (Status(), [])

    def again(self) -> None:
        """Look again; there may be a spool now that was not there before."""
        from ..status.spool_status import SpoolStatus

        if self._spool is None:
            self._spool = open_spool(self._settings)
        if self._spool is not None:
            self._watch = self._watch or SpoolStatus(self._spool)
            self.found = (self._watch.status(), self._spool.history.entries() if self._with_finished else [])
            folders = (Path(run.folder) for run in self.found[0])
            self.delivered_by_somebody = any(map(self._spool.uploader_alive, folders))
        self.now = time.time()

    @property
    def found_to_tell(self) -> tuple[object, ...]:
        """What is worth another line when it changes."""
        runs, finished = self.found
        no_room = bool(runs.no_room)  # by how much changes all the time
        since = runs.trouble and runs.trouble.since
        return tuple(runs), since, no_room, runs.not_kept, finished, self.delivered_by_somebody

    @property
    def exit_code(self) -> int:
        """1 if something needs a person."""
        runs = self.found[0]
        return 1 if runs.no_room or any(needs_a_person(run) for run in runs) else 0

    def shown(self) -> Iterator[RenderableType]:
        """It, for a person."""
        yield from _shown(self._settings, *self.found, self.now)
        if self.found[0].points.waiting and not self.delivered_by_somebody:
            yield Text("Nobody delivers at present: the next session will, or now `atomscale-bluesky upload`.")

    def as_json(self) -> dict[str, Any]:
        """It, for a program."""
        runs, finished = self.found
        return _as_json(self._settings, runs, finished if self._with_finished else None, self.now)


def _watch(look: _Look, as_json: bool) -> None:
    """Look every second, until Ctrl-C: on a terminal in place, in a pipe whenever something has changed."""
    ending, out = threading.Event(), console()
    before = signal.signal(signal.SIGINT, lambda _number, _frame: ending.set())
    try:
        with ExitStack() as stack:
            live = None
            if out.is_terminal and not as_json:
                live = stack.enter_context(Live(console=out, auto_refresh=False))
            said: Any = None
            while True:
                look.again()
                if live is not None:
                    live.update(Group(*look.shown()), refresh=True)
                elif look.found_to_tell != said:
                    said = look.found_to_tell
                    if as_json:
                        click.echo(json.dumps(look.as_json()))
                    else:
                        _print(out, [Text(moment(look.now)), *look.shown()])
                    sys.stdout.flush()
                if ending.wait(LOOK_PERIOD_S):
                    return
    finally:
        signal.signal(signal.SIGINT, before)


def _print(out: Console, shown: Iterable[RenderableType]) -> None:
    for part in shown:
        out.print(part, soft_wrap=isinstance(part, Text))


def open_spool(settings: Settings, *, read_only: bool = True) -> Spool | None:
    """The spool as it is; None where nothing was ever spooled. With `read_only` nothing in it is made or written.

    Raises:
        SettingsError: The folder cannot be used.
    """
    from ..errors import SettingsError, SpoolError
    from ..spool.spool import Spool

    try:
        path = settings.locate_spool()
        if not path.exists():
            return None
        return Spool(
            path,
            max_bytes=settings.spool_max_bytes,
            min_free_bytes=settings.spool_min_free_bytes,
            read_only=read_only,
        )
    except SpoolError as error:
        raise SettingsError(str(error)) from error


def needs_a_person(run: RunStatus) -> bool:
    """Whether something of the run does not move by itself."""
    return run.state in {"parked", "unreadable"} or run.points.refused > 0 or run.points.lost > 0


def _shown(settings: Settings, runs: Status, finished: list[dict[str, Any]], now: float) -> Iterator[RenderableType]:
    from ..status.clock_note import CLOCK_WARNS_S, read_note, told

    for run in runs:
        yield from _run(run, now, settings.endpoint)
    ended = {entry.get("run_uid") for entry in finished if not entry.get("interrupted")}
    for entry in finished:
        yield from _finished(entry, went_on=entry.get("run_uid") in ended)
    for run in runs.not_kept[-MOST_NOT_KEPT:]:
        yield Text(
            f"Run {plain(run.run_uid[:8])} ({plain(run.label, limit=200)}), started {moment(run.started)}, was not "
            f"kept: {counted(run.readings, 'reading')} left out, {plain(run.reason)}.",
            style="yellow",
        )
    if len(runs.not_kept) > MOST_NOT_KEPT:
        more = len(runs.not_kept) - MOST_NOT_KEPT
        yield Text(f"{counted(more, 'other run')} of the last seven days found no room.", style="yellow")
    note = read_note(settings.spool_path)
    if note is not None and note.endpoint == settings.endpoint:
        off = abs(note.offset_s) > CLOCK_WARNS_S + note.delay_s / 2
        text = f"Clock: {told(note.offset_s, note.delay_s)}, measured {age(now - note.measured)} ago."
        yield Text(text, style="yellow" if off else "dim")
    waiting = sum(run.points.waiting for run in runs)
    text = f"Spool {plain(settings.spool_path)}: "
    if not runs:
        text += "nothing waits."
    else:
        text += f"{counted(len(runs), 'run')}, {counted(waiting, 'point')} waiting."
    yield Text(text)
    if runs.no_room:
        yield Text(
            f"No room, so new readings are left out: {plain(runs.no_room)}. Free some space; what is delivered makes "
            f"room too.",
            style="bold red",
        )
    if runs and runs.trouble is not None:
        trouble = runs.trouble
        yield Text(
            f"Atomscale at {plain(trouble.endpoint)} has taken no data for {age(now - trouble.since)}, "
            f"since {moment(trouble.since)}: {plain(trouble.error)}",
            style="yellow",
        )
    if waiting and not settings.api_key and not settings.offline:
        yield Text("There is no API key here (ATOMSCALE_API_KEY); `atomscale-bluesky upload` will need one.")


def _run(run: RunStatus, now: float, endpoint: str) -> Iterator[RenderableType]:
    table = _table()
    if run.state == "unreadable":
        yield Text.assemble((f"a run in {plain(run.folder)}", "bold"), "  ", (run.state, _STATES[run.state]))
        table.add_row("problem", Text(plain(run.problem, limit=1000), style="bold red"))
        yield table
        yield Text()
        return
    yield _headline(run.label, run.state, run.run_uid, run.started)
    if run.endpoint not in {"", endpoint}:
        table.add_row("endpoint", Text(f"{plain(run.endpoint)}, not {plain(endpoint)}", style="yellow"))
    table.add_row("points", _sum_of(run.points))
    if run.points.lost:
        why = "from damaged lines"
        if run.repeated_rows:
            why += f"; {counted(run.repeated_rows, 'row')} had the number of an earlier one"
        table.add_row("lost", Text(f"{counted(run.points.lost, 'point')}, {why}", style="bold red"))
    if run.oldest_waiting is not None:
        table.add_row("waiting", Text(f"the oldest point for {age(now - run.oldest_waiting)}"))
    for reason, keys in _left_out(run).items():
        count = sum(keys.values())
        table.add_row("left out", Text(f"{number(count)} {plain(reason)}: {plain(', '.join(keys))}"))
    if run.rounded:
        count = sum(run.rounded.values())
        table.add_row("rounded", Text(f"{number(count)} integers beyond 2**53: {plain(', '.join(run.rounded))}"))
    _add_not_given(table, run.not_given)
    for stream in run.streams:
        table.add_row("stream", _stream(stream))
    if run.problem:
        table.add_row("problem", Text(plain(run.problem, limit=1000), style="bold red"))
    yield table
    yield Text()


def _finished(entry: dict[str, Any], *, went_on: bool) -> Iterator[RenderableType]:
    points = int(entry.get("delivered") or 0)
    discarded = int(entry.get("discarded") or 0)
    state = "discarded" if discarded else "finalized"
    yield _headline(entry.get("label"), state, entry.get("run_uid"), float(entry.get("started") or 0.0))
    table = _table()
    share = f"{number(discarded)} given up" if discarded else "all of them"
    table.add_row("points", Text(f"{number(points)} delivered, {share}, by {moment(entry.get('finished') or 0.0)}"))
    for reason, count in (entry.get("left_out") or {}).items():
        table.add_row("left out", Text(f"{number(count)} {plain(reason)}"))
    _add_not_given(table, entry.get("not_given") or {})
    if entry.get("lost"):
        table.add_row("lost", Text(counted(entry["lost"], "point"), style="bold red"))
    if entry.get("interrupted"):
        said = "interrupted; it went on, and has an entry of its own for that" if went_on else None
        table.add_row("", Text(said or "interrupted: no stop document came", style="" if said else "yellow"))
    for line in _finished_streams(entry):
        table.add_row("stream", line)
    yield table
    yield Text()


def _add_not_given(table: Table, events: Mapping[str, int]) -> None:
    for name, count in events.items():
        said = f"{counted(count, 'event')} of {plain(name)}, which the stop document counts, never came"
        table.add_row("not given", Text(said, style="yellow"))


def _headline(label: Any, state: str, uid: Any, started: float) -> Text:
    return Text.assemble(
        (plain(label, limit=200), "bold"), "  ", (plain(state), _STATES.get(state, "")), "  ",
        (f"run {plain(str(uid)[:8])}, started {moment(started)}", "dim"),
    )  # fmt: skip


def _table() -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True, width=10, justify="right")
    table.add_column(overflow="fold")
    return table


def _sum_of(points: Counts) -> Text:
    """The account, as a sum that comes out; what is nothing is left out, but for the two of which one wants to know."""
    text = Text.assemble((number(points.seen), "bold"), " seen = ")
    text.append(f"{number(points.delivered)} delivered", "green")
    text.append(" + ")
    text.append(f"{number(points.waiting)} waiting", "yellow" if points.waiting else "")
    more = (
        ("refused", points.refused, "bold red"),
        ("discarded", points.discarded, ""),
        ("left out", sum(points.left_out.values()), ""),
        ("lost", points.lost, "bold red"),
    )
    for name, count, style in more:
        if count:
            text.append(" + ")
            text.append(f"{number(count)} {name}", style)
    return text


def _left_out(run: RunStatus) -> dict[str, dict[str, int]]:
    """By reason, how many of which channel or data key."""
    found: dict[str, dict[str, int]] = {}
    for name, counts in run.channels.items():
        for reason, count in counts.left_out.items():
            found.setdefault(reason, {})[name] = count
    return found


def _stream(stream: StreamStatus) -> Text:
    text = Text(plain(stream.data_id or "no data_id yet"))
    text.append(f"  {plain(stream.event_stream)}, ")
    text.append(stream.state, _STATES.get(stream.state, ""))
    text.append(f", {counted(stream.chunks_confirmed, 'chunk')} confirmed")
    if stream.chunks_refused:
        text.append(f", {number(stream.chunks_refused)} refused", "bold red")
    text.append(_channels(stream.channels))
    return text


def _finished_streams(entry: dict[str, Any]) -> Iterator[Text]:
    """Yield a line for each metrology stream of a finished run, with the channels that it holds."""
    channels: dict[str, list[str]] = {data_id: [] for data_id in entry.get("data_ids") or ()}
    for stream in entry.get("streams") or ():
        channels.setdefault(str(stream.get("data_id")), []).extend(stream.get("channels") or ())
    for data_id in entry.get("data_ids") or ():
        yield Text(plain(data_id) + _channels(channels[data_id]))


def _channels(names: Sequence[str]) -> str:
    from ..model.labels import MAX_CHANNELS, listed

    return f"; {listed([plain(name) for name in names], MAX_CHANNELS)}" if names else ""


def _as_json(settings: Settings, runs: Status, finished: list[dict[str, Any]] | None, now: float) -> dict[str, Any]:
    import msgspec

    from ..status.clock_note import read_note

    told: dict[str, Any] = {
        "spool": str(settings.spool_path),
        "points": msgspec.to_builtins(sum((run.points for run in runs), _nothing())),
        "runs": [
            msgspec.to_builtins(run)
            | {"oldest_waiting_s": None if run.oldest_waiting is None else max(0.0, now - run.oldest_waiting)}
            for run in runs
        ],
        "last_error": runs.last_error,
        "trouble": msgspec.to_builtins(runs.trouble),
        "no_room": runs.no_room or None,
        "not_kept": msgspec.to_builtins(runs.not_kept),
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
