"""What `status` shows the operator: each run, and below them what holds for all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.segment import Segment
from rich.text import Text

from ..model.uids import shown_uid
from ..status.outage import NEW_KEY
from ..status.progress import counted, number
from .formatting import age, moment, safe
from .run_text import finished_text, first_of, run_text, runs_alike_text
from .shown_runs import ShownRuns

if TYPE_CHECKING:
    from ..settings import Settings
    from ..spool.runs_not_kept import NotKept
    from ..status.run_status import RunStatus
    from ..status.spool_status import Status

# How many runs that found no disk space are shown one by one.
MAX_NOT_KEPT_SHOWN = 10


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
        Block(Group(*finished_text(entry, went_on=entry.get("run_uid") in ended, with_links=with_links)), 1)
        for entry in finished
    ]
    for one in runs:
        if len(one.runs) == 1:
            shown.append(Block(Group(*run_text(one.newest, now, endpoint, option, with_links=with_links)), 1))
        else:
            shown.append(Block(Group(*runs_alike_text(one, now, endpoint, option)), len(one.runs)))
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
    if urgent := [shown_uid(run.run_uid) for run in runs if run.needs_operator]:
        text += f", {number(len(urgent))} of them for the operator ({first_of(urgent[::-1])})"
    return Text(f"{text}; see `--last`.")


def _height(out: Console, shown: RenderableType, width: int) -> int:
    return len(out.render_lines(shown, out.options.update(width=width), pad=False))


def not_kept_text(run: NotKept) -> str:
    """Return what happened to a run that found no room, as a sentence without its full stop."""
    return (
        f"Run {shown_uid(run.run_uid)} ({safe(run.label, limit=200)}), started {moment(run.started)}, was not "
        f"kept: {counted(run.readings, 'reading')} left out, {safe(run.reason)}"
    )


def not_kept_lines(runs: Status) -> Iterator[Text]:
    """Yield a line for each of the newest runs that found no room."""
    for run in runs.not_kept[-MAX_NOT_KEPT_SHOWN:]:
        yield Text(f"{not_kept_text(run)}.", style="yellow")
    if len(runs.not_kept) > MAX_NOT_KEPT_SHOWN:
        more = len(runs.not_kept) - MAX_NOT_KEPT_SHOWN
        yield Text(f"{counted(more, 'other run')} of the last seven days found no room.", style="yellow")
