"""`retry`, `discard`, `edit`, `settle`, `move`: what the operator may ask to be done with runs.

An order is a line in the run's folder. The process that delivers the run carries it out within seconds, also a living
RunEngine's process. If nobody delivers the run, the next session or `atomscale-bluesky upload` carries it out first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.text import Text

from ..status.progress import counted
from .formatting import console, plain

if TYPE_CHECKING:
    from ..spool.orders import OrderLine
    from ..spool.spool import Spool
    from ..status.run_status import RunStatus

_run = click.argument("run", metavar="RUN")
_spool_dir = click.option(
    "--spool-dir", type=click.Path(file_okay=False, path_type=Path), help="The spool that the runs are in."
)
_T = TypeVar("_T", bound=Callable[..., Any])


def _runs(command: _T) -> _T:
    """Give a command the arguments that say which runs are meant, and the option to only show what it would do."""
    command = click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")(command)
    command = click.option("--all-parked", is_flag=True, help="All runs that wait for the operator.")(command)
    return click.argument("runs", metavar="RUN...", nargs=-1)(command)


@click.command
@_runs
@_spool_dir
def retry(runs: tuple[str, ...], all_parked: bool, dry_run: bool, spool_dir: Path | None) -> int:
    """Try again what is parked or refused.

    RUN is the beginning of a run's uid, as `status` shows it. Use it when the reason has passed: an instrument was
    registered, a right was given, the server was mended. A chunk keeps its number and its content.
    """
    from ..spool.orders import Retry

    spool = _spool(spool_dir)
    chosen = _choose(spool, runs, all_parked)
    return chosen.give(lambda run: Retry(), "is tried again", dry_run=dry_run)


@click.command
@_runs
@click.option("--yes", is_flag=True, help="Do not ask.")
@_spool_dir
def discard(runs: tuple[str, ...], all_parked: bool, dry_run: bool, yes: bool, spool_dir: Path | None) -> int:
    """Give up what runs have not delivered.

    RUN is the beginning of a run's uid, as `status` shows it. What waits or was refused is deleted here and never sent;
    what was delivered stays in Atomscale, in streams that are not finalized.
    """
    from ..spool.orders import Discard

    chosen = _choose(_spool(spool_dir), runs, all_parked)

    def question(found: Sequence[RunStatus]) -> str:
        left = sum(run.points.waiting + run.points.refused for run in found)
        return f"Give up {counted(left, 'point')} of {_named(found)} for good?"

    return chosen.give(
        lambda run: Discard(), "is given up as soon as it has stopped", dry_run=dry_run, ask=None if yes else question
    )


@click.command
@_runs
@click.option("--synth-source-id", type=int, help="The growth instrument.")
@click.option("--physical-sample", help="The physical sample, by its name; created if it is new.")
@click.option("--physical-sample-id", help="The physical sample, a UUID.")
@click.option("--no-sample", is_flag=True, help="Link no physical sample.")
@click.option("--project-id", help="The project, a UUID.")
@click.option("--no-project", is_flag=True, help="Name no project.")
@click.option(
    "--track-sample/--no-track-sample", default=None, help="Make the sample the project's active one, or not."
)
@click.option("--tag", "tags", multiple=True, help="A tag instead of those of the run; may be given several times.")
@click.option("--no-tags", is_flag=True, help="Attach no tags.")
@click.option("--points-per-chunk", type=int, help="Points of each channel in a chunk.")
@_spool_dir
def edit(
    runs: tuple[str, ...],
    all_parked: bool,
    dry_run: bool,
    no_sample: bool,
    no_project: bool,
    no_tags: bool,
    tags: tuple[str, ...],
    spool_dir: Path | None,
    **one: Any,
) -> int:
    """Correct what the streams of runs are initialized with and linked to.

    RUN is the beginning of a run's uid, as `status` shows it. What is not given stays as the run's metadata say. Once
    Atomscale has a stream of the run, its instrument and project are changed there, and its points per chunk no more;
    sample, tags and tracking can be given again until the run is finalized.
    """
    given: dict[str, Any] = {name: value for name, value in one.items() if value is not None}
    if no_sample or given.keys() & {"physical_sample", "physical_sample_id"}:
        given = {"physical_sample": None, "physical_sample_id": None} | given
    if no_project:
        given = {"project_id": None} | given
    if no_sample or no_project:
        given = {"track_sample": False} | given
    if no_tags or tags:
        given["tags"] = list(tags)
    if not given:
        raise click.UsageError("nothing to edit; give one of the options")
    spool = _spool(spool_dir)
    chosen = _choose(spool, runs, all_parked)
    return chosen.give(lambda run: _edit(spool, run, given), "goes on with what you gave", dry_run=dry_run)


def _edit(spool: Spool, run: RunStatus, given: dict[str, Any]) -> OrderLine:
    import msgspec

    from ..documents.metadata import read_metadata
    from ..errors import MetadataError
    from ..model.links import Links
    from ..spool.orders import Edit

    fixed = sorted(given.keys() & {"synth_source_id", "project_id", "points_per_chunk"})
    if run.data_ids and fixed:
        raise click.ClickException(
            f"run {run.run_uid[:8]} is in Atomscale already as {', '.join(run.data_ids)}, "
            f"and its {fixed[0]} cannot be changed from here; change it in Atomscale"
        )
    before = msgspec.to_builtins(spool.links_of(Path(run.folder)))
    try:
        metadata = read_metadata({"atomscale": before | given}, Links())
    except MetadataError as error:
        raise click.UsageError(plain(error)) from None
    return Edit(metadata.links, metadata.points_per_chunk)


@click.command
@_run
@_spool_dir
def settle(run: str, spool_dir: Path | None) -> int:
    """Complete a run whose stop document never comes.

    RUN is the beginning of a run's uid, as `status` shows it. Only for a run that a living process holds open although
    its plan is over, because another subscriber raised on the stop document; a run whose process has died is completed
    by itself.
    """
    from ..spool.orders import Settle
    from ..spool.run_reader import stop_of

    def order(found: RunStatus) -> OrderLine:
        if found.state != "unreadable" and stop_of(Path(found.folder)) is not None:
            raise click.ClickException(f"run {found.run_uid[:8]} has its stop document; there is nothing to settle")
        return Settle()

    return _choose(_spool(spool_dir), (run,), False).give(order, "is completed as interrupted", dry_run=False)


@click.command
@_runs
@click.option("--to", "endpoint", metavar="URL", required=True, help="Origin of the API that the runs are to go to.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_spool_dir
def move(
    runs: tuple[str, ...], all_parked: bool, dry_run: bool, endpoint: str, yes: bool, spool_dir: Path | None
) -> int:
    """Deliver runs to another endpoint than the one they were spooled for, or parked ones again to the same.

    RUN is the beginning of a run's uid, as `status` shows it. The whole run goes to the new endpoint, from its first
    reading on, into new metrology streams; what the old one has of it stays there, in streams that are not finalized.
    The process that delivers it needs a key for the new endpoint.
    """
    from ..settings import Settings
    from ..spool.orders import Move
    from ..spool.run_reader import stop_of

    endpoint = Settings.load(endpoint=endpoint).endpoint
    spool = _spool(spool_dir)

    def order(run: RunStatus) -> OrderLine:
        if run.state in {"discarded", "unreadable"}:
            raise click.ClickException(f"run {run.run_uid[:8]} is {run.state}; there is nothing to move")
        folder = Path(run.folder)
        if stop_of(folder) is None and spool.writer_alive(folder):
            raise click.ClickException(f"run {run.run_uid[:8]} goes on; move it when it has stopped")
        if run.endpoint == endpoint and run.state != "parked":
            raise click.ClickException(f"run {run.run_uid[:8]} is for {plain(endpoint)} already")
        return Move(endpoint)

    def question(found: Sequence[RunStatus]) -> str:
        told = f"Send all of {_named(found)} to {plain(endpoint)}"
        for before in dict.fromkeys(run.endpoint for run in found):
            if delivered := sum(run.points.delivered for run in found if run.endpoint == before):
                told += f", beside the {counted(delivered, 'point')} that {plain(before)} has"
        return f"{told}?"

    chosen = _choose(spool, runs, all_parked)
    return chosen.give(order, f"goes to {plain(endpoint)}", dry_run=dry_run, ask=None if yes else question)


class _Chosen:
    """The runs that are meant, and what kept others from being found."""

    def __init__(self, spool: Spool, runs: Sequence[RunStatus], problems: Sequence[str], delivered: frozenset[str]):
        self._spool = spool
        self._runs = runs
        self._problems = list(problems)
        self._delivered_to = delivered

    def give(
        self,
        order: Callable[[RunStatus], OrderLine],
        outcome: str,
        *,
        dry_run: bool,
        ask: Callable[[Sequence[RunStatus]], str] | None = None,
    ) -> int:
        """Write each run's order, and say who carries it out. Runs that do not fit are named and left as they are.

        Args:
            order: Returns the order for a run, or raises ClickException.
            outcome: What happens to a run, after its name.
            dry_run: Write nothing.
            ask: Returns the question to ask before anything is written.

        Returns:
            The exit code: 1 if something could not be ordered.
        """
        orders: list[tuple[RunStatus, OrderLine]] = []
        for run in self._runs:
            try:
                orders.append((run, order(run)))
            except click.UsageError:
                raise
            except click.ClickException as error:
                self._problems.append(error.message)
        if orders and ask is not None and not dry_run:
            click.confirm(ask([run for run, _ in orders]), abort=True)
        out = console()
        for run, line in orders:
            if not dry_run:
                self._spool.order(Path(run.folder), line)
            name = f"Run {plain(run.run_uid[:8])} ({plain(run.label)})"
            text = f"{name} {outcome}, {self._who(run)}." if not dry_run else f"Would be ordered: {name} {outcome}."
            out.print(Text(text), soft_wrap=True)
        for problem in self._problems:
            click.echo(f"Error: {problem}", err=True)
        if not orders and not self._problems:
            out.print("No run waits for the operator.")
        return 1 if self._problems else 0

    def _who(self, run: RunStatus) -> str:
        if self._spool.uploader_alive(Path(run.folder)) or run.endpoint in self._delivered_to:
            return "by the process that delivers it, within seconds"
        return "by the next session, or now by `atomscale-bluesky upload`"


def _choose(spool: Spool, names: Sequence[str], all_parked: bool) -> _Chosen:
    """Return the runs that are named, or all that wait for the operator."""
    from ..errors import SpoolError
    from ..status.spool_status import SpoolStatus

    if bool(names) == all_parked:
        raise click.UsageError("name the runs, or give --all-parked")
    watch = SpoolStatus(spool)
    status = watch.status()
    found: dict[str, RunStatus] = {}
    problems: list[str] = []
    if all_parked:
        found = {run.folder: run for run in status if run.state == "parked" or run.points.refused}
    for name in names:
        try:
            run = watch.find(name)
        except SpoolError as error:
            problems.append(plain(error))
        else:
            found[run.folder] = run
    return _Chosen(spool, list(found.values()), problems, status.delivered_to)


def _named(runs: Sequence[RunStatus]) -> str:
    """Return one run by its name, or several by their number and the beginnings of their uids."""
    if len(runs) == 1:
        return f"run {plain(runs[0].run_uid[:8])} ({plain(runs[0].label)})"
    shown = ", ".join(plain(run.run_uid[:8]) for run in runs[:10])
    return f"{len(runs)} runs ({shown}{', …' if len(runs) > 10 else ''})"


def _spool(spool_dir: Path | None) -> Spool:
    from ..settings import Settings
    from .status import open_spool

    settings = Settings.load(spool_dir=spool_dir)
    spool = open_spool(settings, read_only=False)
    if spool is None:
        raise click.ClickException(f"there is no spool in {plain(settings.spool_path)}")
    return spool
