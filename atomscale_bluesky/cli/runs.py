"""The argument RUN: which run is meant, and where its points come from."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from ..model.uids import UID_SHOWN, shown_uid, uids_meant
from ..status.progress import counted
from .asking import asking
from .formatting import safe
from .options import Once

if TYPE_CHECKING:
    from ..checks.run_tables import Table
    from ..settings import Settings
    from ..spool.spool import Spool
    from ..status.run_parts import RunPart, RunParts
    from ..status.run_status import RunStatus

LAST = "last"
# How many runs a shell is offered.
MAX_OFFERED = 50


@dataclass(frozen=True, slots=True)
class FoundRun:
    """A run, with all its parts, in the spool or in the history, in the order in which they were recorded."""

    run_uid: str
    label: str
    started: float
    scan_id: int | None
    parts: tuple[RunPart, ...]

    @property
    def short(self) -> str:
        """The beginning of its uid."""
        return shown_uid(self.run_uid)


class RunName(click.ParamType):
    """A uid, its beginning, a scan id, or `last`."""

    name = "run"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the newest runs, for the shell to offer."""
        from ..errors import AtomscaleBlueskyError
        from ..settings import Settings
        from .status import open_spool

        with contextlib.suppress(AtomscaleBlueskyError, OSError):
            spool = open_spool(Settings.load(spool_dir=ctx.params.get("spool_dir")))
            runs = all_runs(spool) if spool is not None else []
            fitting = [run for run in runs[::-1] if run.run_uid.startswith(incomplete)][:MAX_OFFERED]
            offered = [CompletionItem(shown_uid(run.run_uid), help=safe(run.label, limit=60)) for run in fitting]
            return offered + [CompletionItem(LAST, help="the newest run")] * LAST.startswith(incomplete)
        return []


run_argument = click.argument("run", metavar="RUN", type=RunName())
run_or_all_argument = click.argument("run", metavar="[RUN]", type=RunName(), required=False)
runs_argument = click.argument("runs", metavar="RUN...", type=RunName(), nargs=-1)
spool_dir_option = click.option(
    "--spool-dir", cls=Once, type=click.Path(file_okay=False, path_type=Path), help="The spool that the run is in."
)
source_option = click.option(
    "--from",
    "source",
    type=click.Choice(["spool", "api"]),
    default="spool",
    show_default=True,
    help="Where the points come from: the spool, or what Atomscale returns.",
)


def all_runs(spool: Spool) -> list[FoundRun]:
    """Return all runs of the spool and of its history, oldest first."""
    from ..status.run_parts import group_parts
    from ..status.spool_status import SpoolStatus

    status = SpoolStatus(spool).status()
    return sorted(map(_found, group_parts(status, spool.history.entries())), key=lambda run: run.started)


def _found(run: RunParts) -> FoundRun:
    newest = run.parts[-1]
    if newest.status is not None:
        about = newest.status
        return FoundRun(run.run_uid, about.label, about.started, about.scan_id, run.parts)
    entry = newest.entry or {}
    label, started = str(entry.get("label") or ""), float(entry.get("started") or 0.0)
    return FoundRun(run.run_uid, label, started, entry.get("scan_id"), run.parts)


def find_run(settings: Settings, text: str) -> FoundRun:
    """Return the run that is meant by `last`, a scan id (the newest run that has it), or the beginning of a uid.

    Raises:
        click.ClickException: There is no such run, or there are several.
    """
    from ..settings import spool_option
    from .status import no_spool, open_spool

    spool = open_spool(settings)
    if spool is None:
        raise click.ClickException(no_spool(settings))
    runs = all_runs(spool)
    _check_kept(spool, runs, text)
    if not runs:
        raise click.ClickException(f"there is no run in {safe(settings.spool_path)}")
    sought = _uid_meant(runs, text)
    uids = uids_meant((run.run_uid for run in runs), sought)
    if len(uids) > 1:
        raise click.ClickException(f"{len(uids)} runs begin with {safe(repr(text))}; give more of the uid")
    for run in runs:
        if run.run_uid in uids:
            return run
    raise click.ClickException(
        f"no run begins with {safe(repr(text))} or has it as its scan id; see `atomscale-bluesky status "
        f"--all{safe(spool_option(settings))}`"
    )


def _check_kept(spool: Spool, runs: Sequence[FoundRun], text: str) -> None:
    """Raise if a run is meant that found no room in the spool, so that there is nothing to show of it.

    Raises:
        click.ClickException: It is such a run.
    """
    from .status_text import not_kept_text

    not_kept = spool.not_kept.runs()
    if text == LAST:
        newest = max((run.started for run in runs), default=0.0)
        meant = [run for run in not_kept if run.started > newest]
    else:
        kept = {run.run_uid for run in runs}
        uids = uids_meant(kept | {run.run_uid for run in not_kept}, text)
        meant = [] if uids & kept else [run for run in not_kept if run.run_uid in uids]
    if meant:
        raise click.ClickException(not_kept_text(max(meant, key=lambda run: run.started)))


def uid_meant(spool: Spool, text: str) -> str:
    """Return the uid of the run that is meant by `last` or a scan id; of any other text, the text.

    Nothing is read for a text that is certainly the beginning of a uid.

    Raises:
        click.ClickException: The newest run found no room in the spool.
    """
    if text != LAST and not text.isdecimal():
        return text
    runs = all_runs(spool)
    if text == LAST:
        _check_kept(spool, runs, text)
    return _uid_meant(runs, text)


def _uid_meant(runs: Sequence[FoundRun], text: str) -> str:
    """Do the same among these runs, oldest first.

    A number that is a whole uid is no scan id. A long one is a scan id only if no uid begins with it.
    """
    if text == LAST:
        return runs[-1].run_uid if runs else text
    if any(run.run_uid == text for run in runs):
        return text
    by_scan = [run for run in runs if text.isdecimal() and run.scan_id == int(text)]
    if by_scan and (len(text) < UID_SHOWN or not any(run.run_uid.startswith(text) for run in runs)):
        return by_scan[-1].run_uid
    return text


def tables_of(settings: Settings, run: FoundRun, source: str, names: Sequence[str] = ()) -> list[Table]:
    """Return the points of all parts of a run that the source has: all its channels, or those named.

    Raises:
        click.ClickException: They are not there, or a channel is not.
    """
    tables = _from_api(settings, run, names) if source == "api" else _from_spool(run)
    if not names:
        return tables
    known = {column.name for table in tables for column in table.columns}
    for name in names:
        if name not in known:
            there_are = safe(", ".join(sorted(known)), limit=2000)
            raise click.ClickException(f"run {run.short} has no channel {safe(repr(name))}; it has {there_are}")
    return [only for table in tables if (only := table.with_channels(names)).columns]


def warn_of_missing_parts(run: FoundRun, source: str, names: Sequence[str] = ()) -> int:
    """Print how many parts of a run the source does not have, and return the exit code: 1 if there are any.

    The same for points in Atomscale of channels that nobody has named, neither `names` nor the run's history.
    """
    from ..status.run_summary import points_of_unnamed_channels

    unnamed = 0
    if source == "api":
        unnamed = 0 if names else sum(points_of_unnamed_channels(part.entry) for part in run.parts if part.entry)
        missing = [part for part in run.parts if part.status and _is_undelivered(part.status)]
        why, remedy = "no stream in Atomscale yet", "leave out `--from api` to read what is in the spool"
    else:
        missing = [part for part in run.parts if part.entry and part.entry.get("delivered")]
        why, remedy = "left the spool", "add `--from api` to read the run from Atomscale"
    if missing:
        parts = f"{len(missing)} of the {len(run.parts)} parts of run {run.short}"
        has = "has" if len(missing) == 1 else "have"
        click.echo(f"atomscale-bluesky: {parts} {has} {why}, so their points are missing here; {remedy}", err=True)
    if unnamed:
        points = counted(unnamed, "point")
        text = f"{points} of run {run.short} are of channels that its history has no room to name, so they are missing"
        click.echo(f"atomscale-bluesky: {text} here; name these channels to read them", err=True)
    return int(bool(missing or unnamed))


def _is_undelivered(run: RunStatus) -> bool:
    """Return True if a part of a run has points, and no stream in Atomscale."""
    return not run.data_ids and run.points.waiting + run.points.refused > 0


def _from_spool(run: FoundRun) -> list[Table]:
    from ..checks.run_tables import join_tables, spool_tables

    folders = [Path(part.status.folder) for part in run.parts if part.status is not None]
    if not folders:
        raise click.ClickException(
            f"run {run.short} is delivered and has left the spool; add `--from api` to read it from Atomscale"
        )
    return join_tables(map(spool_tables, folders), lambda table: table.name)


def _from_api(settings: Settings, run: FoundRun, names: Sequence[str]) -> list[Table]:
    from ..checks.run_tables import api_tables, join_tables

    parts: list[tuple[dict[str, tuple[str, str]], dict[str, int]]] = []
    for part in run.parts:
        streams, due = _in_atomscale(part, names)
        if streams and due:
            parts.append((streams, due))
        elif streams and part.status is None:
            raise click.ClickException(
                f"an earlier version has delivered run {run.short} and did not note its channels; name them"
            )
    if not parts:
        raise click.ClickException(f"run {run.short} has no point in Atomscale yet")
    event_streams = {label: event_stream for streams, _ in parts for label, event_stream in streams.values()}
    with asking(settings) as client:
        tables = [
            api_tables(client, {data_id: label for data_id, (label, _) in streams.items()}, due)
            for streams, due in parts
        ]
    return join_tables(
        tables, lambda table: (event_streams[table.name], frozenset((one.name, one.unit) for one in table.columns))
    )


def _in_atomscale(part: RunPart, names: Sequence[str]) -> tuple[dict[str, tuple[str, str]], dict[str, int]]:
    """Return the label and the event stream of a part's streams, by data_id, and how many points each channel may have.

    Args:
        part: The part. The result is empty if it has no stream in Atomscale.
        names: Channels that are read although an earlier version has not noted them.
    """
    if part.status is not None:
        streams = {one.data_id: (one.label, one.event_stream) for one in part.status.streams if one.data_id}
        return streams, {name: counts.seen for name, counts in part.status.channels.items() if counts.seen}
    entry = part.entry or {}
    known = {stream.get("data_id"): stream for stream in entry.get("streams") or ()}
    about = {data_id: known.get(data_id) or {} for data_id in part.data_ids}
    due = {name: int(channel["points"]) for name, channel in (entry.get("channels") or {}).items()}
    due |= {name: int(entry.get("delivered") or 0) for name in names if name not in due}
    return {one: (str(of.get("label") or one), str(of.get("event_stream"))) for one, of in about.items()}, due
