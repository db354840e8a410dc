"""What the commands that send recorded runs share: options, the way into the spool, the bar, and the report."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..model.uids import shown_uid
from ..status.progress import POLL_S, counted, number
from .delivering import check_that_it_may_send, check_the_key, deliver, logged, report
from .ending import Ending
from .formatting import console, moment, safe
from .options import Once
from .status import open_spool

if TYPE_CHECKING:
    from ..documents.recorder import DocumentRecorder
    from ..settings import Settings
    from ..sources.incoming import Incoming, Source
    from ..sources.intake import Intake

# The states of runs that an uploader hands over, in which nothing is wrong with them.
_MOVING = frozenset({"running", "delivering", "waiting", "interrupted"})
# So many reasons, or runs, are shown one by one.
MAX_SHOWN = 10
# Where the output is no terminal, a line is printed this often.
LINE_PERIOD_S = 10.0


class HowFar(NamedTuple):
    """How far a source was read."""

    done: float
    total: float | None  # None while that is not known
    text: str  # empty while there is nothing to say


class Origin(NamedTuple):
    """A source of recorded runs, and what it says of itself."""

    source: Source
    how_far: Callable[[], HowFar]
    known_runs: Callable[[], int] = lambda: 0  # that it left out, because they were taken before
    print_unusable: Callable[[Console], int] = lambda out: 0  # says what else it left out; returns the exit code
    unusable: tuple[str, str] = ("document cannot be used: {}", "documents cannot be used: {}")


Begin = Callable[["DocumentRecorder | None", threading.Event], Origin]


def common_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that hold for runs from anywhere. The command gives them to `send_runs`."""
    folder = click.Path(file_okay=False, path_type=Path)
    for option in (
        click.option("--endpoint", cls=Once, metavar="URL", help="Send to the API there."),
        click.option("--spool-dir", cls=Once, type=folder, help="Go through this spool."),
        click.option("--tag", "tag", multiple=True, help="A tag of runs that have none; may be given several times."),
        click.option("--tags", metavar="A,B", hidden=True, help="The same as several --tag, separated by commas."),
        click.option("--physical-sample", metavar="NAME", help="Physical sample, by name or id, of runs without one."),
        click.option("--synth-source-id", type=int, metavar="ID", help="Growth instrument of runs that name none."),
        click.option("--spool-only", is_flag=True, help="Only put the runs into the spool; `upload` delivers them."),
        click.option("--dry-run", is_flag=True, help="Only list the runs, and what would happen to them."),
    ):
        command = option(command)
    return command


def send_runs(
    begin: Begin,
    *,
    dry_run: bool,
    spool_only: bool,
    synth_source_id: int | None,
    physical_sample: str | None,
    tag: tuple[str, ...],
    tags: str | None,
    spool_dir: Path | None,
    endpoint: str | None,
    without_stop: str = "would be sent as interrupted",
) -> int:
    """Take runs into the spool and deliver them. Return the exit code.

    Args:
        begin: Makes the origin of the runs, given the recorder, and what ends it. With `dry_run` there is no recorder.
        dry_run: Only list the runs.
        spool_only: Deliver nothing.
        synth_source_id: The growth instrument of runs that name none.
        physical_sample: The physical sample of runs that name none.
        tag: The tags of runs that have none.
        tags: More of them, separated by commas.
        spool_dir: The spool, if not the one that the settings name.
        endpoint: The API, if not the one that the settings name.
        without_stop: What would happen to a run that has no stop document, for the list.
    """
    from ..settings import Settings

    settings = Settings.load(
        spool_dir=spool_dir,
        endpoint=endpoint,
        synth_source_id=synth_source_id,
        tags=None if tags is None and not tag else [*tag, *(tags or "").split(",")],  # blank ones are dropped
    )
    sample = None if physical_sample is None else _sample(physical_sample)
    out = console()
    if dry_run:
        return _print_contents(out, settings, sample, begin, without_stop)
    delivers = not (spool_only or settings.offline or settings.uploader == "none")
    if delivers:
        check_that_it_may_send(settings)
        check_the_key(settings)
    with Ending() as ending, logged(out, logging.WARNING):
        code = _send(out, settings, sample, begin, ending, delivers=delivers)
    return ending.exit_code or code


def _sample(text: str) -> str:
    from ..errors import SettingsError
    from ..model.identifiers import name_of

    try:
        return name_of(text)
    except ValueError as error:
        raise SettingsError(f"--physical-sample is {text!r}; {error}") from None


def _send(out: Console, settings: Settings, sample: str | None, begin: Begin, ending: Ending, *, delivers: bool) -> int:
    from ..delivery.uploader import Uploader
    from ..documents.recorder import DocumentRecorder
    from ..documents.recorder import open_spool as open_to_record
    from ..settings import spool_option
    from ..sources.incoming import SourceError
    from ..sources.intake import Intake
    from ..status.spool_status import SpoolStatus

    begun, spool = time.time(), open_to_record(settings)
    uploader = Uploader(spool, settings) if delivers else None
    failure: SourceError | None = None
    try:
        if uploader is not None:
            uploader.start()
        with DocumentRecorder(
            settings, spool=spool, listener=uploader, redelivers=True, physical_sample=sample
        ) as recorder:
            origin = begin(recorder, ending.event)
            intake = Intake(recorder, ending.event, leaves_out=False)  # its runs can be read again
            with _Reading(out, origin, intake) as reading:
                try:
                    intake.take_all(reading)
                except SourceError as error:  # what was taken before is delivered
                    failure = error
    finally:
        if uploader is not None:
            with _no_interim_summaries():
                uploader.stop()
        spool.writers.stop_threads()
    code = _print_what_was_taken(out, intake, origin, ended=ending.event.is_set())
    if failure is not None:
        out.print(Text(f"{safe(failure, limit=1000)}.", style="bold red"), soft_wrap=True)
        code = 1
    if uploader is None and ending.event.is_set():
        said = "Stopped before the end. What was taken is in the spool; begin again whenever you like, for the rest."
        out.print(said, soft_wrap=True)
        return code
    if uploader is None:
        who = f"`atomscale-bluesky upload{safe(spool_option(settings))}"
        who = f"the service {who} --follow`" if settings.uploader == "none" else f"{who}`"
        out.print(Text(f"It is in the spool; {who} delivers it."), soft_wrap=True)
        return code
    watch = SpoolStatus(spool)
    if not ending.event.is_set():
        deliver(out, settings, spool, watch, ending.event)
    if ending.event.is_set():
        out.print("Stopped before the end. Begin again whenever you like: it goes on where it is.", soft_wrap=True)
        return code
    return report(out, settings, spool, watch, begun) or code


@contextmanager
def _no_interim_summaries() -> Iterator[None]:
    """Log no summary of a run that is only handed over: another uploader goes on with it, or the report says it waits.

    What was finalized, parked or discarded meanwhile is logged as ever.
    """

    def is_wanted(record: logging.LogRecord) -> bool:
        return not (isinstance(record.args, tuple) and len(record.args) > 1 and record.args[1] in _MOVING)

    logger = logging.getLogger("atomscale_bluesky.status.run_summary")
    logger.addFilter(is_wanted)
    try:
        yield
    finally:
        logger.removeFilter(is_wanted)


class _Reading:
    """A source whose progress is shown: a bar on a terminal, else a line now and then."""

    def __init__(self, out: Console, origin: Origin, intake: Intake) -> None:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        self._out = out
        self._source = origin.source
        self._how_far = origin.how_far
        self._intake = intake
        self._show_next_at = time.monotonic()
        self._line_at = self._show_next_at + LINE_PERIOD_S
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[said]}"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=out,
            disable=not out.is_terminal,
        )
        self._task = self._progress.add_task("reading", total=self._how_far().total, said="")

    def __enter__(self) -> _Reading:
        """Show the bar."""
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Show the last state."""
        self._show_progress()
        self._progress.stop()

    def __iter__(self) -> Iterator[Incoming]:
        """Yield the source's documents."""
        for incoming in self._source:
            if time.monotonic() >= self._show_next_at:
                self._show_progress()
            yield incoming

    def pause(self, timeout_s: float) -> None:
        """Wait as the source does."""
        self._source.pause(timeout_s)

    def close(self) -> None:
        """Close the source."""
        self._source.close()

    def _show_progress(self) -> None:
        now = time.monotonic()
        self._show_next_at = now + POLL_S
        done, total, text = self._how_far()
        said = f"{counted(self._intake.documents, 'document')}"
        self._progress.update(self._task, completed=done, total=total, said=said)
        if text and not self._out.is_terminal and now >= self._line_at:
            self._line_at = now + LINE_PERIOD_S
            self._out.print(f"{text}, {said}")


def _print_what_was_taken(out: Console, intake: Intake, origin: Origin, *, ended: bool) -> int:
    """Report what happened to the documents. Return 1 if some could not be used."""
    text = f"{counted(intake.runs, 'run')} read"
    known_runs = intake.known_runs + origin.known_runs()
    if known_runs:
        text += f", and {counted(known_runs, 'run')} that had been taken before"
    text += f": {counted(intake.rows, 'row')} taken"
    if intake.known:
        text += f", {counted(intake.known, 'event')} known already"
    out.print(f"{text}.", soft_wrap=True)
    if intake.left_out:
        left_out = ", ".join(f"{number(n)} ({safe(reason)})" for reason, n in intake.left_out.most_common(MAX_SHOWN))
        out.print(Text(f"Readings that become no points: {left_out}."), soft_wrap=True)
    _print_counts(out, intake.unusable, *origin.unusable)
    _print_counts(
        out,
        intake.without_start,
        "document of run {}, whose start document is not there",
        "documents of run {}, whose start document is not there",
    )
    if ended:
        return 0
    print_runs(out, sorted(intake.open_runs), "Run {} has no stop document, so it counts as interrupted.", "So do")
    code = origin.print_unusable(out)
    return code or int(bool(intake.unusable or intake.without_start or intake.open_runs))


def print_runs(out: Console, uids: list[str], text: str, more: str) -> None:
    """Say something of each of these runs, and how many more there are."""
    for uid in uids[:MAX_SHOWN]:
        out.print(Text(text.format(safe(uid)), style="yellow"), soft_wrap=True)
    if len(uids) > MAX_SHOWN:
        out.print(Text(f"{more} {len(uids) - MAX_SHOWN} more.", style="yellow"))


def _print_counts(out: Console, counts: Mapping[str, int], one: str, several: str) -> None:
    for about, n in list(counts.items())[:MAX_SHOWN]:
        text = (one if n == 1 else several).format(safe(about))
        out.print(Text(f"{number(n)} {text}.", style="yellow"), soft_wrap=True)
    if len(counts) > MAX_SHOWN:
        more = sum(list(counts.values())[MAX_SHOWN:])
        out.print(Text(f"And {number(more)} more, for {len(counts) - MAX_SHOWN} other reasons.", style="yellow"))


# ---- --dry-run -------------------------------------------------------------------------------------------------------


def _print_contents(out: Console, settings: Settings, sample: str | None, begin: Begin, without_stop: str) -> int:
    from ..sources.contents import Contents

    contents = Contents(settings, sample)
    with Ending() as ending:
        origin = begin(None, ending.event)
        contents.read(origin.source)
    known = _known(settings, set(contents.runs))
    table = Table(box=None, pad_edge=False)
    for title in ("run", "begun", "label", "events", "instrument", "sample", "what would happen"):
        table.add_column(title, justify="right" if title == "events" else "left", overflow="fold")
    for run in contents.runs.values():
        links = run.links
        what = "would be parked" if run.problem else "would be sent" if run.stopped else without_stop
        what = known.get(run.run_uid, what)
        table.add_row(
            Text(shown_uid(run.run_uid)),
            moment(run.started),
            Text(safe(run.label, limit=60)),
            number(sum(run.events.values())),
            Text("-" if links.synth_source_id is None else str(links.synth_source_id)),
            Text(safe(links.physical_sample or links.physical_sample_id or "-", limit=60)),
            Text(what, style="bold red" if what == "would be parked" else "yellow" if what == without_stop else ""),
        )
    out.print(table)
    for run in contents.runs.values():
        if run.problem:
            out.print(Text(f"Run {shown_uid(run.run_uid)}: {safe(run.problem)}", style="red"), soft_wrap=True)
    _print_counts(out, contents.unusable, *origin.unusable)
    if contents.without_start:
        text = f"{counted(contents.without_start, 'document')} of runs whose start document is not there."
        out.print(Text(text, style="yellow"), soft_wrap=True)
    out.print("Nothing was recorded and nothing sent.")
    odd = any(run.problem or not run.stopped for run in contents.runs.values())
    return ending.exit_code or int(bool(odd or contents.unusable or contents.without_start))


def _known(settings: Settings, uids: set[str]) -> dict[str, str]:
    """Return what the spool knows of these runs."""
    from ..status.spool_status import SpoolStatus

    spool = open_spool(settings)
    if spool is None or settings.resend:
        return {}
    found: dict[str, str] = {}
    for uid in uids:
        entries: list[dict[str, Any]] = spool.history.entries_of(uid)
        if entries:
            found[uid] = (
                "the rest would be sent" if all(entry.get("interrupted") for entry in entries) else "sent before"
            )
    for run in SpoolStatus(spool).status():
        if run.run_uid in uids:
            found[run.run_uid] = "the rest would be sent" if run.state == "interrupted" else "in the spool"
    return found
