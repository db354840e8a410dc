"""`retry`, `discard`, `edit`, `settle`, `move`: what the operator may ask to be done with runs.

An order is a line in the run's folder. A run that has several folders gets one in each, because it was interrupted and
went on, or was recorded twice. The process that delivers the run carries it out within seconds, also a living
RunEngine's process. If no process delivers the run, the next session or `atomscale-bluesky upload` carries it out
first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.text import Text

from ..model.endpoints import normalized_endpoint
from ..model.uids import shown_uid
from ..status.commands import with_option
from ..status.progress import counted
from .formatting import console, safe
from .options import Once
from .runs import run_argument, runs_argument, uid_meant

if TYPE_CHECKING:
    from ..spool.orders import OrderLine
    from ..spool.spool import Spool
    from ..status.run_status import RunStatus

_spool_dir = click.option(
    "--spool-dir", cls=Once, type=click.Path(file_okay=False, path_type=Path), help="The spool that the runs are in."
)
_T = TypeVar("_T", bound=Callable[..., Any])


def _runs(command: _T) -> _T:
    """Give a command the arguments that say which runs are meant, and the option to only show what it would do."""
    command = click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")(command)
    command = click.option("--all-parked", is_flag=True, help="All runs that wait for the operator.")(command)
    return runs_argument(command)


@click.command
@_runs
@_spool_dir
def retry(runs: tuple[str, ...], all_parked: bool, dry_run: bool, spool_dir: Path | None) -> int:
    """Try again what is parked or refused.

    RUN is a uid, its beginning, a scan id, or `last` for the newest run. Use it when the cause is gone: an
    instrument was registered, a permission was given, the server was repaired. A chunk keeps its number and content.
    """
    from ..spool.orders import Retry

    spool = _spool(spool_dir)
    chosen = _choose(spool, spool_dir, runs, all_parked)
    return chosen.give_orders(lambda run: Retry(), "is tried again", dry_run=dry_run)


@click.command
@_runs
@click.option("--yes", is_flag=True, help="Do not ask.")
@_spool_dir
def discard(runs: tuple[str, ...], all_parked: bool, dry_run: bool, yes: bool, spool_dir: Path | None) -> int:
    """Give up what runs have not delivered.

    RUN is a uid, its beginning, a scan id, or `last` for the newest run. What waits or was refused is deleted here
    and never sent; what was delivered stays in Atomscale, in streams that are not finalized.
    """
    from ..spool.orders import Discard

    chosen = _choose(_spool(spool_dir), spool_dir, runs, all_parked)

    def question(found: Sequence[RunStatus]) -> str:
        left = sum(run.points.waiting + run.points.refused for run in found)
        return f"Give up {counted(left, 'point')} of {_names_of(found)} for good?"

    return chosen.give_orders(
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
@click.option("--stream-name", help="The name with which the labels of its streams begin.")
@click.option("--points-per-chunk", type=int, help="Points of each channel in a chunk.")
@click.option("--leave-out-unusable", is_flag=True, help="Go on without the metadata that cannot be used.")
@_spool_dir
def edit(
    runs: tuple[str, ...],
    all_parked: bool,
    dry_run: bool,
    no_sample: bool,
    no_project: bool,
    no_tags: bool,
    tags: tuple[str, ...],
    leave_out_unusable: bool,
    spool_dir: Path | None,
    **one: Any,
) -> int:
    """Correct what the streams of runs are initialized with and linked to.

    RUN is a uid, its beginning, a scan id, or `last` for the newest run. Values that you do not give stay as in
    the run's metadata or an earlier edit. Replace values that cannot be used, or give --leave-out-unusable. Sample,
    tags and tracking can be given until the run is finalized. Once Atomscale has a stream of the run, instrument and
    project can be changed only in Atomscale. Stream name and points per chunk can be given until the uploader begins
    the run's first stream.
    """
    given: dict[str, Any] = {name: value for name, value in one.items() if value is not None}
    for without, is_given, value, has_value in (
        ("--no-sample", no_sample, "--physical-sample", "physical_sample" in given),
        ("--no-sample", no_sample, "--physical-sample-id", "physical_sample_id" in given),
        ("--no-project", no_project, "--project-id", "project_id" in given),
        ("--no-tags", no_tags, "--tag", bool(tags)),
    ):
        if is_given and has_value:
            raise click.UsageError(f"{without} and {value} contradict each other; give one of them")
    if no_sample or given.keys() & {"physical_sample", "physical_sample_id"}:
        given = {"physical_sample": None, "physical_sample_id": None} | given
    if no_project:
        given = {"project_id": None} | given
    if no_sample or no_project:
        given = {"track_sample": False} | given
    if no_tags or tags:
        given["tags"] = list(tags)
    if not given and not leave_out_unusable:
        raise click.UsageError("nothing to edit; give one of the options")
    from .correction import corrected, made_with

    spool = _spool(spool_dir)
    chosen = _choose(spool, spool_dir, runs, all_parked)
    return chosen.give_orders(
        lambda run: corrected(spool, run, given, leave_out=leave_out_unusable), "goes on", dry_run=dry_run,
        more_about=made_with,
    )  # fmt: skip


@click.command
@run_argument
@_spool_dir
def settle(run: str, spool_dir: Path | None) -> int:
    """Complete a run whose stop document never comes.

    RUN is a uid, its beginning, a scan id, or `last` for the newest run. Only for a run that a living process holds
    open although its plan is over, because another subscriber raised an exception at the stop document. A run whose
    process has died is completed without this command.
    """
    from ..spool.orders import Settle
    from ..spool.run_reader import stop_of

    def order(found: RunStatus) -> OrderLine:
        if found.state != "unreadable" and stop_of(Path(found.folder)) is not None:
            raise _NothingToDo(f"run {shown_uid(found.run_uid)} has its stop document; there is nothing to settle")
        return Settle()

    chosen = _choose(_spool(spool_dir), spool_dir, (run,), False)
    return chosen.give_orders(order, "is completed as interrupted", dry_run=False)


@click.command
@_runs
@click.option("--from", "before", metavar="URL", help="All runs that are for this endpoint.")
@click.option("--to", "endpoint", metavar="URL", required=True, help="Origin of the API that the runs are to go to.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_spool_dir
def move(
    runs: tuple[str, ...],
    all_parked: bool,
    dry_run: bool,
    before: str | None,
    endpoint: str,
    yes: bool,
    spool_dir: Path | None,
) -> int:
    """Deliver runs to another endpoint than the one they were spooled for, or parked runs to the same one again.

    RUN is a uid, its beginning, a scan id, or `last` for the newest run. The whole run goes to the new endpoint,
    from its first reading on, into new metrology streams; what the old one has of it stays there, in streams that
    are not finalized. The process that delivers it needs a key for the new endpoint.
    """
    from ..settings import Settings
    from ..spool.orders import Move
    from ..spool.run_reader import stop_of

    endpoint = Settings.load(endpoint=endpoint).endpoint
    spool = _spool(spool_dir)

    def order(run: RunStatus) -> OrderLine:
        if run.state in {"discarded", "unreadable"}:
            raise _NothingToDo(f"run {shown_uid(run.run_uid)} is {run.state}; there is nothing to move")
        folder = Path(run.folder)
        if stop_of(folder) is None and spool.writer_alive(folder):
            raise click.ClickException(f"run {shown_uid(run.run_uid)} goes on; move it when it has stopped")
        if run.endpoint == endpoint and run.state != "parked":
            raise _NothingToDo(f"run {shown_uid(run.run_uid)} is for {safe(endpoint)} already")
        return Move(endpoint)

    def question(found: Sequence[RunStatus]) -> str:
        told = f"Send all of {_names_of(found)} to {safe(endpoint)}"
        for before in dict.fromkeys(run.endpoint for run in found):
            if delivered := sum(run.points.delivered for run in found if run.endpoint == before):
                told += f", beside the {counted(delivered, 'point')} that {safe(before)} has"
        return f"{told}?"

    chosen = _choose(spool, spool_dir, runs, all_parked, before)
    return chosen.give_orders(order, f"goes to {safe(endpoint)}", dry_run=dry_run, ask=None if yes else question)


class _NothingToDo(click.ClickException):
    """A run needs no such order. This is an error only if no other part of the run gets it."""


class _Chosen:
    """The runs that are meant, all parts of each, and what kept others from being found."""

    def __init__(
        self, spool: Spool, spool_dir: Path | None, runs: Sequence[RunStatus], problems: Sequence[str],
        delivered_to: frozenset[str],
    ) -> None:  # fmt: skip
        self._spool = spool
        self._spool_dir = spool_dir  # as it was given to the command
        self._delivered_to = delivered_to
        self._runs = runs
        self._problems = list(problems)

    def give_orders(
        self,
        order: Callable[[RunStatus], OrderLine],
        outcome: str,
        *,
        dry_run: bool,
        ask: Callable[[Sequence[RunStatus]], str] | None = None,
        more_about: Callable[[OrderLine], str] | None = None,
    ) -> int:
        """Write each run's order, and say who carries it out. Runs that do not fit are named and left as they are.

        Args:
            order: Returns the order for a run, or raises ClickException.
            outcome: What happens to a run, after its name.
            dry_run: Write nothing.
            ask: Returns the question to ask before anything is written.
            more_about: Returns what else there is to say about an order.

        Returns:
            The exit code: 1 if something could not be ordered.
        """
        orders: list[tuple[RunStatus, OrderLine]] = []
        needless: dict[str, str] = {}
        for run in self._runs:
            try:
                orders.append((run, order(run)))
            except click.UsageError:
                raise
            except _NothingToDo as error:
                needless[run.run_uid] = error.message
            except click.ClickException as error:
                self._problems.append(error.message)
        ordered = {run.run_uid for run, _ in orders}
        self._problems += [text for uid, text in needless.items() if uid not in ordered]
        if orders and ask is not None and not dry_run:
            _confirm(ask([run for run, _ in orders]))
        out, who = console(), self._deliverers()
        for run, line in orders:
            if not dry_run and not self._spool.give_order(Path(run.folder), line):
                self._problems.append(_gone(self._spool, run))
                continue
            part = _which_part(run, [one for one, _ in orders])
            name = f"Run {shown_uid(run.run_uid)} ({safe(run.label)}){part}"
            text = f"{name} {outcome}, {who(run, line)}" if not dry_run else f"Would be ordered: {name} {outcome}"
            out.print(Text(f"{text}: {more_about(line)}." if more_about else f"{text}."), soft_wrap=True)
        for problem in self._problems:
            click.echo(f"atomscale-bluesky: {problem}", err=True)
        if not orders and not self._problems:
            out.print("No run waits for the operator.")
        return 1 if self._problems else 0

    def _deliverers(self) -> Callable[[RunStatus, OrderLine], str]:
        """Return a function that says who carries out an order."""
        from ..checks.who_delivers import deliverer
        from ..settings import Settings
        from ..spool.orders import Move

        settings = Settings.load(spool_dir=self._spool_dir)

        def who(run: RunStatus, order: OrderLine) -> str:
            endpoint = order.endpoint if isinstance(order, Move) else run.endpoint
            held = endpoint == run.endpoint and self._spool.uploader_alive(Path(run.folder))
            if held or endpoint in self._delivered_to or self._spool.is_served(endpoint):
                return "by the process that delivers it, within seconds"
            return deliverer(settings, endpoint)

        return who


def _confirm(question: str) -> None:
    """Ask. Raises click.Abort after Ctrl-C and any answer but yes, and says that nothing was done."""
    try:
        if click.confirm(question):
            return
    except click.Abort:
        click.echo(err=True)  # the terminal is still in the question's line
    click.echo("Nothing was done.", err=True)
    raise click.Abort


def _choose(
    spool: Spool, spool_dir: Path | None, names: Sequence[str], all_parked: bool, endpoint: str | None = None
) -> _Chosen:
    """Return the runs that are named, all that wait for the operator, or all that are for an endpoint.

    A name means all parts of a run that are in the spool and not finished.
    """
    from ..errors import SpoolError
    from ..settings import Settings, spool_option
    from ..status.spool_status import SpoolStatus

    if [bool(names), all_parked, endpoint is not None].count(True) != 1:
        other = ", --all-parked or --from" if click.get_current_context().command.name == "move" else " or --all-parked"
        raise click.UsageError(f"give one of these: the runs{other}")
    watch = SpoolStatus(spool)
    status = watch.status()
    found: dict[str, RunStatus] = {}
    problems: list[str] = []
    if all_parked:
        found = {run.folder: run for run in status if run.state == "parked" or run.points.refused}
    if endpoint is not None:
        sought = normalized_endpoint(endpoint)
        found = {run.folder: run for run in status if run.endpoint == sought and _movable(run)}
        if not found:
            others = ", ".join(dict.fromkeys(safe(run.endpoint) for run in status if _movable(run)))
            problems.append(f"no run waits for {safe(endpoint)}{f'; runs wait for {others}' if others else ''}")
    for name in names:
        uid = uid_meant(spool, name)
        try:
            parts = watch.parts(uid)
        except SpoolError as error:
            problem = with_option(safe(error), spool_option(Settings.load(spool_dir=spool_dir)))
            problems.append(problem + _where_to_edit(spool, uid))
        else:
            left = [run for run in parts if _movable(run)] or parts
            found |= {run.folder: run for run in left}
    return _Chosen(spool, spool_dir, list(found.values()), problems, status.delivered_to)


def _gone(spool: Spool, run: RunStatus) -> str:
    """Return what is said of a run that has left the spool since it was looked up."""
    left = f"run {shown_uid(run.run_uid)} has just left the spool, delivered or discarded; nothing was ordered for it"
    return left + _where_to_edit(spool, run.run_uid)


def _where_to_edit(spool: Spool, uid: str) -> str:
    """Return where a run is to be changed that has left the spool, if the command is `edit`; else an empty text."""
    entry = spool.history.newest_beginning_with(uid) if uid else None
    if click.get_current_context().command.name != "edit" or entry is None:
        return ""
    labels = dict.fromkeys(str(one.get("label")) for one in entry.get("streams") or () if one.get("data_id"))
    names = ", ".join(repr(safe(label)) for label in labels)
    which = f", where its {'stream is' if len(labels) == 1 else 'streams are'} {names}" if labels else ""
    return f"; change it in Atomscale now{which}"


def _movable(run: RunStatus) -> bool:
    """Return True if something of a run may not be in Atomscale yet."""
    return run.state not in {"finalized", "discarded"}


def _names_of(runs: Sequence[RunStatus]) -> str:
    """Return one run by its name, or several by their number and the beginnings of their uids."""
    uids = [*dict.fromkeys(run.run_uid for run in runs)]
    if len(uids) == 1:
        parts = f", in {len(runs)} parts," if len(runs) > 1 else ""
        return f"run {shown_uid(uids[0])} ({safe(runs[0].label)}){parts}"
    shown = ", ".join(shown_uid(uid) for uid in uids[:10])
    return f"{len(uids)} runs ({shown}{', …' if len(uids) > 10 else ''})"


def _which_part(run: RunStatus, runs: Sequence[RunStatus]) -> str:
    """Return which part of its run this is, if several parts of it are among these runs; else an empty text."""
    parts = sorted(one.folder for one in runs if one.run_uid == run.run_uid)
    return f", part {parts.index(run.folder) + 1} of {len(parts)}," if len(parts) > 1 else ""


def _spool(spool_dir: Path | None) -> Spool:
    from ..settings import Settings
    from .status import no_spool, open_spool

    settings = Settings.load(spool_dir=spool_dir)
    spool = open_spool(settings, read_only=False)
    if spool is None:
        raise click.ClickException(no_spool(settings))
    return spool
