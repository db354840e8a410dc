"""What `status` shows of one run, of several that are shown as one, and of a finished one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ..model.loss import count_not_kept
from ..model.uids import shown_uid
from ..status.commands import with_option
from ..status.progress import counted, number
from ..status.remedies import remedies
from .formatting import age, moment, safe
from .shown_runs import MAX_UIDS, ShownRuns

if TYPE_CHECKING:
    from ..status.account import Counts
    from ..status.run_status import RunStatus, StreamStatus

# How many runs are named where many of them are shown as one.
MAX_NAMED = 5
# After how long without a document an open run is shown with what to do if its plan is over.
QUIET_S = 3600.0
# How wide the column of names is, at the left.
_NAMES = 10

# The commands that list what can be given for these options of `edit`.
_LISTINGS = {
    "--synth-source-id": ("instruments", "the instruments and their numbers"),
    "--physical-sample-id": ("samples", "the samples and their ids"),
    "--project-id": ("projects", "the projects and their ids"),
}

_STATES = {
    "running": "green",
    "delivering": "cyan",
    "waiting": "yellow",
    "interrupted": "yellow",
    "parked": "bold red",
    "finalized": "green",
    "discarded": "yellow",
    "unreadable": "bold red",
}


def run_text(run: RunStatus, now: float, endpoint: str, option: str, *, with_links: bool) -> Iterator[RenderableType]:
    """Yield what is shown of a run in the spool.

    Args:
        run: Its status.
        now: Unix seconds.
        endpoint: Of the command. A run for another one says so.
        option: By which the commands that mend it find the spool, such as ` --spool-dir /data/spool`.
        with_links: Say to which instrument, sample, project and tags it is linked.
    """
    table = _table()
    if run.state == "unreadable":
        yield Text.assemble((f"a run in {safe(run.folder)}", "bold"), "  ", (run.state, _STATES[run.state]))
        table.add_row("problem", Text(safe(run.problem, limit=1000), style="bold red"))
        yield table
        yield Text()
        return
    yield _headline(run.label, run.state, run.run_uid, run.started)
    _add_ending(table, run.exit_status, run.reason)
    if run.interrupted:
        table.add_row("plan", Text("interrupted: no stop document came", style="yellow"))
    quiet_s = now - run.last_written if run.state == "running" and run.last_written is not None else 0.0
    if quiet_s > QUIET_S:
        table.add_row("silent", Text(f"no document for {age(quiet_s)}, and no stop document came", style="yellow"))
    if run.endpoint not in {"", endpoint}:
        table.add_row("endpoint", Text(f"{safe(run.endpoint)}, not {safe(endpoint)}", style="yellow"))
    if with_links and run.linked_to is not None:
        table.add_row("linked to", Text(str(run.linked_to)))
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
        table.add_row("left out", Text(f"{number(count)} {safe(reason)}: {safe(', '.join(keys))}"))
    if run.rounded:
        count = sum(run.rounded.values())
        table.add_row("rounded", Text(f"{number(count)} integers beyond 2**53: {safe(', '.join(run.rounded))}"))
    _add_not_given(table, run.not_given)
    for stream in run.streams:
        _add_stream(table, stream)
    if run.problem:
        problem = with_option(safe(run.problem, limit=1000), option)
        table.add_row("problem", Text(problem, style="dim" if run.ordered else "bold red"))
    if run.ordered:
        table.add_row("ordered", Text(ordered_in_words(run), style="yellow"))
    yield table
    yield from _commands(remedies(run, option, endpoint))
    if quiet_s > QUIET_S and "settle" not in run.ordered:
        command = f"atomscale-bluesky settle {shown_uid(run.run_uid)}{option}"
        yield Text.assemble((f"{'do':>{_NAMES}}", "dim"), f"  if its plan is over: {command}")
    yield Text()


def runs_alike_text(found: ShownRuns, now: float, endpoint: str, option: str) -> Iterator[RenderableType]:
    """Yield what is shown of runs that are parked for the same problem. The arguments are as for `run_text`."""
    runs, newest = found.runs, found.newest
    yield Text.assemble(
        (counted(len(runs), "run"), "bold"), "  ", (newest.state, _STATES[newest.state]), "  ",
        (f"for the same problem, started {moment(runs[0].started)} to {moment(newest.started)}", "dim"),
    )  # fmt: skip
    table = _table()
    table.add_row("runs", Text(first_of([shown_uid(run.run_uid) for run in reversed(runs)])))
    if newest.endpoint not in {"", endpoint}:
        table.add_row("endpoint", Text(f"{safe(newest.endpoint)}, not {safe(endpoint)}", style="yellow"))
    table.add_row("points", _sum_of(sum((run.points for run in runs[1:]), runs[0].points)))
    since = [run.oldest_waiting for run in runs if run.oldest_waiting is not None]
    if since:
        table.add_row("waiting", Text(f"the oldest point for {age(now - min(since))}"))
    table.add_row("problem", Text(with_option(safe(found.problem, limit=1000), option), style="bold red"))
    if newest.ordered:
        table.add_row("ordered", Text(ordered_in_words(newest), style="yellow"))
    yield table
    yield from _commands(found.remedies(option, endpoint))
    if not found.all_parked and len(runs) > MAX_UIDS:
        yield Text(f"{'':{_NAMES}}  for the first {MAX_UIDS} of them; then this names the next ones", style="dim")
    yield Text()


def _commands(commands: Sequence[str]) -> Iterator[Text]:
    """Yield a line for each command, any of which mends what is shown above."""
    for index, command in enumerate(commands):
        # Not in the table, which would break a long line into several that cannot be pasted.
        name = "" if index else "do"
        yield Text.assemble((f"{name:>{_NAMES}}", "dim"), "  ", "or " if index else "", safe(command))
    for option, (listing, what) in _LISTINGS.items():
        if any(f" {option} " in f"{command} " for command in commands):
            yield Text(f"{'':{_NAMES}}  `atomscale-bluesky {listing}` lists {what}", style="dim")


def ordered_in_words(run: RunStatus) -> str:
    """Return what the operator ordered and no process has carried out yet, with the values of an edit."""
    told = [f"edit ({run.ordered_edit})" if name == "edit" and run.ordered_edit else name for name in run.ordered]
    return f"{', '.join(told)}; the process that delivers the run next carries it out"


def finished_text(entry: dict[str, Any], *, went_on: bool, with_links: bool) -> Iterator[RenderableType]:
    """Yield what is shown of a run that has left the spool.

    Args:
        entry: The run's entry in the history.
        went_on: The run was interrupted, and a later entry says how it ended.
        with_links: As for `run_text`.
    """
    from ..status.linked_to import linked_to_of_entry
    from ..status.run_summary import left_out_by_reason, verified_at, was_discarded

    points = int(entry.get("delivered") or 0)
    discarded = int(entry.get("discarded") or 0)
    state = "discarded" if was_discarded(entry) else "finalized"
    yield _headline(entry.get("label"), state, entry.get("run_uid"), float(entry.get("started") or 0.0))
    table = _table()
    if not entry.get("interrupted"):
        _add_ending(table, str(entry.get("exit_status") or ""), str(entry.get("reason") or ""))
    if with_links and (linked := linked_to_of_entry(entry)) is not None:
        table.add_row("linked to", Text(str(linked)))
    whole = not (count_not_kept(entry.get("left_out") or {}) or entry.get("lost"))
    left_out = sum((entry.get("left_out") or {}).values())
    share = "all of them" if whole else "all that was kept"
    if discarded:
        share = f"{number(discarded)} discarded"
    elif points == 0 and whole:
        share = f"{number(left_out)} left out" if left_out else "there were none"
    table.add_row("points", Text(f"{number(points)} delivered, {share}, by {moment(entry.get('finished') or 0.0)}"))
    if (at := verified_at(entry)) is not None:
        table.add_row("read back", Text(f"equal, on {moment(at)}", style="green"))
    for reason, (count, keys) in left_out_by_reason(entry).items():
        named = f": {safe(', '.join(keys))}" if keys else ""
        others = " and others" if keys and sum(keys.values()) < count else ""
        table.add_row("left out", Text(f"{number(count)} {safe(reason)}{named}{others}"))
    _add_not_given(table, entry.get("not_given") or {})
    if entry.get("lost"):
        table.add_row("lost", Text(counted(entry["lost"], "point"), style="bold red"))
    if entry.get("interrupted"):
        said = "interrupted; it went on, and has an entry of its own for that" if went_on else None
        table.add_row("", Text(said or "interrupted: no stop document came", style="" if said else "yellow"))
    _add_finished_streams(table, entry)
    yield table
    yield Text()


def _headline(label: Any, state: str, uid: Any, started: float) -> Text:
    return Text.assemble(
        (safe(label, limit=200), "bold"), "  ", (safe(state), _STATES.get(state, "")), "  ",
        (f"run {shown_uid(str(uid))}, started {moment(started)}", "dim"),
    )  # fmt: skip


def _table() -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True, width=_NAMES, justify="right")
    table.add_column(overflow="fold")
    return table


def _add_ending(table: Table, exit_status: str, reason: str) -> None:
    """Add a line if the plan did not end well."""
    from ..status.spool_status import bad_ending

    if ended := bad_ending(exit_status):
        why = f": {safe(reason)}" if reason else ""
        table.add_row("plan", Text(f"ended with {ended}{why}", style="bold yellow"))


def _sum_of(points: Counts) -> Text:
    """Return the account as a sum. What is 0 is left out, except for delivered and waiting points."""
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


def _add_not_given(table: Table, events: Mapping[str, int]) -> None:
    for name, count in events.items():
        said = f"{counted(count, 'event')} of {safe(name)}, which the stop document counts, never came"
        table.add_row("not given", Text(said, style="yellow"))


def _left_out(run: RunStatus) -> dict[str, dict[str, int]]:
    """Return by reason how many readings of which channel or data key are left out."""
    found: dict[str, dict[str, int]] = {}
    for name, counts in run.channels.items():
        for reason, count in counts.left_out.items():
            found.setdefault(reason, {})[name] = count
    return found


def _add_stream(table: Table, stream: StreamStatus) -> None:
    """Add a stream: its name in Atomscale, its id and state, and its channels on a line of their own."""
    text = Text(safe(stream.data_id or "no data_id yet"))
    text.append(f"  {safe(stream.event_stream)}, ")
    text.append(stream.state, _STATES.get(stream.state, ""))
    text.append(f", {counted(stream.chunks_confirmed, 'chunk')} confirmed")
    if stream.chunks_refused:
        text.append(f", {number(stream.chunks_refused)} refused", "bold red")
    table.add_row("name", Text(safe(stream.label)))
    table.add_row("stream", text)
    _add_channels(table, stream.channels)


def _add_finished_streams(table: Table, entry: dict[str, Any]) -> None:
    """Add each metrology stream of a finished run: its name, its id, and the channels that it holds."""
    names: dict[str, str] = {}
    channels: dict[str, list[str]] = {data_id: [] for data_id in entry.get("data_ids") or ()}
    for stream in entry.get("streams") or ():
        data_id = str(stream.get("data_id"))
        names.setdefault(data_id, str(stream.get("label") or ""))
        channels.setdefault(data_id, []).extend(stream.get("channels") or ())
    for data_id in entry.get("data_ids") or ():
        if names.get(data_id):
            table.add_row("name", Text(safe(names[data_id])))
        table.add_row("stream", Text(safe(data_id)))
        _add_channels(table, channels[data_id])


def _add_channels(table: Table, names: Sequence[str]) -> None:
    from ..model.labels import MAX_CHANNELS, join_names

    if names:
        table.add_row("channels", Text(join_names([safe(name) for name in names], MAX_CHANNELS)))


def first_of(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {number(more)} more" if more > 0 else "")
