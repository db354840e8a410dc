"""`atomscale-bluesky status`: what became of every reading that is not yet delivered whole.

It reads the spool's files and claims nothing, so it may be asked while the RunEngine's process lives, and after it has
died.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .text import age, console, counted, moment, number, plain

if TYPE_CHECKING:
    from ..account import Counts, RunStatus, StreamStatus
    from ..settings import Settings
    from ..spool import Spool

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
@click.option("--json", "as_json", is_flag=True, help="Say it as JSON, channel by channel.")
def status(with_finished: bool, spool_dir: Path | None, as_json: bool) -> int:
    """Tell what became of every reading.

    Shows the runs that are not delivered whole: what was seen, delivered, waits, was refused or left out, and why; and
    for how long the oldest point has been waiting. Works while the RunEngine's process lives, and after it has died.

    The exit code is 1 if something needs a person: a run that is parked, a chunk that was refused, a point that was
    lost. It is 0 otherwise, also while points wait.
    """
    from ..settings import Settings
    from ..watch import SpoolWatch

    settings = Settings.load(spool_dir=spool_dir)
    spool = open_spool(settings)
    runs: list[RunStatus] = list(SpoolWatch(spool).status()) if spool is not None else []
    finished = spool.history() if spool is not None and with_finished else []
    now = time.time()
    if as_json:
        click.echo(json.dumps(_as_json(settings, runs, finished if with_finished else None, now), indent=2))
    else:
        _show(console(), settings, runs, finished, now)
    return 1 if any(needs_a_person(run) for run in runs) else 0


def open_spool(settings: Settings) -> Spool | None:
    """The spool as it is; None where nothing was ever spooled.

    Raises:
        SettingsError: The folder cannot be used.
    """
    from ..errors import SettingsError, SpoolError
    from ..spool import Spool

    if not settings.spool_path.exists():
        return None
    try:
        return Spool(
            settings.spool_path, max_bytes=settings.spool_max_bytes, min_free_bytes=settings.spool_min_free_bytes
        )
    except SpoolError as error:
        raise SettingsError(str(error)) from error


def needs_a_person(run: RunStatus) -> bool:
    """Whether something of the run does not move by itself."""
    return run.state == "parked" or run.points.refused > 0 or run.points.lost > 0


def _show(out: Console, settings: Settings, runs: list[RunStatus], finished: list[dict[str, Any]], now: float) -> None:
    from ..clock import CLOCK_WARNS_S, read_note, told

    for run in runs:
        _show_run(out, run, now)
    for entry in finished:
        _show_finished(out, entry)
    note = read_note(settings.spool_path)
    if note is not None and note.endpoint == settings.endpoint:
        off = abs(note.offset_s) > CLOCK_WARNS_S + note.delay_s / 2
        text = f"Clock: {told(note.offset_s, note.delay_s)}, measured {age(now - note.measured)} ago."
        out.print(Text(text, style="yellow" if off else "dim"), soft_wrap=True)
    waiting = sum(run.points.waiting for run in runs)
    text = f"Spool {plain(settings.spool_path)}: "
    if not runs:
        text += "nothing waits."
    else:
        text += f"{counted(len(runs), 'run')}, {counted(waiting, 'point')} waiting."
    out.print(Text(text), soft_wrap=True)
    if waiting and not settings.api_key and not settings.offline:
        out.print(Text("There is no API key here (ATOMSCALE_API_KEY); `atomscale-bluesky upload` will need one."))


def _show_run(out: Console, run: RunStatus, now: float) -> None:
    _headline(out, run.label, run.state, run.run_uid, run.started)
    table = _table()
    table.add_row("points", _sum_of(run.points))
    if run.points.lost:
        table.add_row("lost", Text(f"{counted(run.points.lost, 'point')}, from damaged lines", style="bold red"))
    if run.oldest_waiting is not None:
        table.add_row("waiting", Text(f"the oldest point for {age(now - run.oldest_waiting)}"))
    for reason, keys in _left_out(run).items():
        count = sum(keys.values())
        table.add_row("left out", Text(f"{number(count)} {plain(reason)}: {plain(', '.join(keys))}"))
    for stream in run.streams:
        table.add_row("stream", _stream(stream))
    if run.problem:
        table.add_row("problem", Text(plain(run.problem, limit=1000), style="bold red"))
    out.print(table)
    out.print()


def _show_finished(out: Console, entry: dict[str, Any]) -> None:
    points = int(entry.get("delivered") or 0)
    discarded = int(entry.get("discarded") or 0)
    state = "discarded" if discarded else "finalized"
    _headline(out, entry.get("label"), state, entry.get("run_uid"), float(entry.get("started") or 0.0))
    table = _table()
    share = f"{number(discarded)} given up" if discarded else "all of them"
    table.add_row("points", Text(f"{number(points)} delivered, {share}, by {moment(entry.get('finished') or 0.0)}"))
    for reason, count in (entry.get("left_out") or {}).items():
        table.add_row("left out", Text(f"{number(count)} {plain(reason)}"))
    if entry.get("lost"):
        table.add_row("lost", Text(counted(entry["lost"], "point"), style="bold red"))
    if entry.get("interrupted"):
        table.add_row("", Text("interrupted: no stop document came", style="yellow"))
    for data_id in entry.get("data_ids") or ():
        table.add_row("stream", Text(plain(data_id)))
    out.print(table)
    out.print()


def _headline(out: Console, label: Any, state: str, uid: Any, started: float) -> None:
    out.print(
        Text.assemble(
            (plain(label, limit=200), "bold"), "  ", (plain(state), _STATES.get(state, "")), "  ",
            (f"run {plain(str(uid)[:8])}, started {moment(started)}", "dim"),
        ),
        soft_wrap=True,
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
    return text


def _as_json(
    settings: Settings, runs: list[RunStatus], finished: list[dict[str, Any]] | None, now: float
) -> dict[str, Any]:
    import msgspec

    from ..clock import read_note

    told: dict[str, Any] = {
        "spool": str(settings.spool_path),
        "points": msgspec.to_builtins(sum((run.points for run in runs), _nothing())),
        "runs": [
            msgspec.to_builtins(run)
            | {"oldest_waiting_s": None if run.oldest_waiting is None else max(0.0, now - run.oldest_waiting)}
            for run in runs
        ],
    }
    note = read_note(settings.spool_path)
    if note is not None and note.endpoint == settings.endpoint:
        told["clock"] = msgspec.to_builtins(note)
    if finished is not None:
        told["finished"] = finished
    return told


def _nothing() -> Counts:
    from ..account import Counts

    return Counts()
