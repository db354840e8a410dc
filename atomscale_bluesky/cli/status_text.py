"""What `status` shows the operator: each run, and below them what holds for all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from ..model.loss import count_not_kept
from ..status.commands import with_option
from ..status.outage import NEW_KEY
from ..status.progress import counted, number
from ..status.remedies import remedies
from .formatting import age, moment, safe
from .shown_runs import MAX_UIDS, ShownRuns

if TYPE_CHECKING:
    from ..settings import Settings
    from ..spool.runs_not_kept import NotKept
    from ..status.account import Counts
    from ..status.run_status import RunStatus, StreamStatus
    from ..status.spool_status import Status

# How many runs that found no disk space are shown one by one.
MAX_NOT_KEPT_SHOWN = 10
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


class Block(NamedTuple):
    """What is shown of one run, or of several as one."""

    shown: Group
    runs: int  # how many


def blocks(
    runs: Iterable[ShownRuns],
    finished: Iterable[dict[str, Any]],
    endpoint: str,
    now: float,
    option: str = "",
    *,
    with_links: bool = False,
) -> list[Block]:
    """Return a block of text for each run, or for several that are shown as one.

    The finished ones come first, then those in the spool, each oldest first.

    Args:
        runs: Those in the spool.
        finished: The history's entries of the others.
        endpoint: Of the command. A run for another one says so.
        now: Unix seconds.
        option: By which the commands that mend a run find the spool, such as ` --spool-dir /data/spool`.
        with_links: Say to which instrument, sample, project and tags each run is linked.
    """
    finished = list(finished)
    ended = {entry.get("run_uid") for entry in finished if not entry.get("interrupted")}
    shown = [
        Block(Group(*_finished(entry, went_on=entry.get("run_uid") in ended, with_links=with_links)), 1)
        for entry in finished
    ]
    for one in runs:
        if len(one.runs) == 1:
            shown.append(Block(Group(*_run(one.newest, now, endpoint, option, with_links=with_links)), 1))
        else:
            shown.append(Block(Group(*_runs_alike(one, now, endpoint, option)), len(one.runs)))
    return shown


def summary(settings: Settings, runs: Status, now: float, *, with_not_kept: bool = True) -> Iterator[Text]:
    """Yield the lines about the spool as a whole: what is wrong, what waits, and who delivers it.

    Args:
        settings: Of the command.
        runs: All runs of the spool, whichever of them are shown.
        now: Unix seconds.
        with_not_kept: Name the runs that found no room.
    """
    from ..checks.who_delivers import undelivered
    from ..status.clock_note import CLOCK_WARNS_S, offset_in_words, read_note

    if with_not_kept:
        yield from not_kept_lines(runs)
    note = read_note(settings.spool_path)
    if note is not None and note.endpoint == settings.endpoint:
        off = abs(note.offset_s) > CLOCK_WARNS_S + note.delay_s / 2
        text = f"Clock: {offset_in_words(note.offset_s, note.delay_s)}, measured {age(now - note.measured)} ago."
        yield Text(text, style="yellow" if off else "dim")
    waiting = sum(run.points.waiting for run in runs)
    text = f"Spool {safe(settings.spool_path)}: "
    text += f"{counted(len(runs), 'run')}, {counted(waiting, 'point')} waiting." if runs else "nothing waits."
    yield Text(text)
    for endpoint in sorted(runs.delivered_to):
        yield Text(f"A process delivers to {safe(endpoint)}.", style="dim")
    if runs.no_room:
        remedy = "Free some space; what is delivered makes room too"
        if "(spool_max_bytes)" in runs.no_room:
            remedy = "What is delivered makes room; or raise that setting"
        elif "(spool_min_free_bytes)" in runs.no_room:
            remedy = "Free some space, or lower that setting; what is delivered makes room too"
        yield Text(f"No room, so new readings are left out: {safe(runs.no_room)}. {remedy}.", style="bold red")
    if runs and runs.trouble is not None:
        yield outage(runs, now)
    yield from (Text(str(one), style="yellow") for one in undelivered(settings, runs))


def outage(runs: Status, now: float) -> Text:
    """Return the line about the present outage; empty if there is none."""
    trouble = runs.trouble
    if trouble is None:
        return Text()
    refused = trouble.key_refused and trouble.endpoint in runs.delivered_to
    what = "refused the API key" if trouble.key_refused else "taken no data"
    begun = trouble.of_kind_since
    text = f"Atomscale at {safe(trouble.endpoint)} has {what} for {age(now - begun)}, since {moment(begun)}: "
    text += safe(trouble.error)
    if begun > trouble.since:
        text += f"; the outage began at {moment(trouble.since)}, with another error"
    return Text(text + (f"; {NEW_KEY}" if refused else ""), style="bold red" if refused else "yellow")


def fit_terminal(out: Console, found: Sequence[Block], below: Sequence[Text], *, hidden: int = 0) -> Group:
    """Return what fits the terminal: the lines about the whole first, then the newest runs, newest first.

    What is new stays in view however many runs there are.

    Args:
        out: The terminal.
        found: What is to be shown of the runs, oldest first.
        below: The lines about the whole.
        hidden: How many older runs there are.
    """
    width, room = out.size.width, out.size.height - 1
    shown: list[RenderableType] = list(below)
    room -= sum(_height(out, text, width) for text in below)
    why = "; see `--last`"
    for index in range(len(found) - 1, -1, -1):
        block = found[index]
        older = hidden + sum(one.runs for one in found[:index])
        height, space = _height(out, block.shown, width), room - (older > 0)
        if height > space:
            why = ": this terminal is too small"
            if index == len(found) - 1:  # the newest one, as far as it fits
                shown.append(_FirstLines(block.shown, max(1, space)))
                hidden = older
            else:
                hidden = older + block.runs
            break
        room -= height
        shown.append(block.shown)
    if hidden:
        shown.append(Text(f"{counted(hidden, 'older run')} not shown{why}.", style="dim"))
    return Group(*shown)


class _FirstLines:
    """The first lines of something."""

    def __init__(self, shown: RenderableType, lines: int) -> None:
        self._shown = shown
        self._lines = lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield them."""
        for line in console.render_lines(self._shown, options, pad=False)[: self._lines]:
            yield from line
            yield Segment.line()


def not_shown_text(runs: Sequence[RunStatus]) -> Text:
    """Return the line about runs that are not shown. Names the newest of those that need the operator."""
    text = f"{counted(len(runs), 'older run')} in the spool not shown"
    if urgent := [safe(run.run_uid[:8]) for run in runs if run.needs_operator]:
        text += f", {number(len(urgent))} of them for the operator ({_first_of(urgent[::-1])})"
    return Text(f"{text}; see `--last`.")


def _first_of(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {number(more)} more" if more > 0 else "")


def _height(out: Console, shown: RenderableType, width: int) -> int:
    return len(out.render_lines(shown, out.options.update(width=width), pad=False))


def not_kept_text(run: NotKept) -> str:
    """Return what happened to a run that found no room, as a sentence without its full stop."""
    return (
        f"Run {safe(run.run_uid[:8])} ({safe(run.label, limit=200)}), started {moment(run.started)}, was not "
        f"kept: {counted(run.readings, 'reading')} left out, {safe(run.reason)}"
    )


def not_kept_lines(runs: Status) -> Iterator[Text]:
    """Yield a line for each of the newest runs that found no room."""
    for run in runs.not_kept[-MAX_NOT_KEPT_SHOWN:]:
        yield Text(f"{not_kept_text(run)}.", style="yellow")
    if len(runs.not_kept) > MAX_NOT_KEPT_SHOWN:
        more = len(runs.not_kept) - MAX_NOT_KEPT_SHOWN
        yield Text(f"{counted(more, 'other run')} of the last seven days found no room.", style="yellow")


def _run(run: RunStatus, now: float, endpoint: str, option: str, *, with_links: bool) -> Iterator[RenderableType]:
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
        command = f"atomscale-bluesky settle {safe(run.run_uid[:8])}{option}"
        yield Text.assemble((f"{'do':>{_NAMES}}", "dim"), f"  if its plan is over: {command}")
    yield Text()


def _runs_alike(found: ShownRuns, now: float, endpoint: str, option: str) -> Iterator[RenderableType]:
    """Yield what is shown of runs that are parked for the same problem."""
    runs, newest = found.runs, found.newest
    yield Text.assemble(
        (counted(len(runs), "run"), "bold"), "  ", (newest.state, _STATES[newest.state]), "  ",
        (f"for the same problem, started {moment(runs[0].started)} to {moment(newest.started)}", "dim"),
    )  # fmt: skip
    table = _table()
    table.add_row("runs", Text(_first_of([safe(run.run_uid[:8]) for run in reversed(runs)])))
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


def _finished(entry: dict[str, Any], *, went_on: bool, with_links: bool) -> Iterator[RenderableType]:
    from ..status.linked_to import linked_to_of_entry
    from ..status.run_summary import left_out_by_reason, verified_at

    points = int(entry.get("delivered") or 0)
    discarded = int(entry.get("discarded") or 0)
    state = "discarded" if discarded else "finalized"
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
        (f"run {safe(str(uid)[:8])}, started {moment(started)}", "dim"),
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
