"""`retry`, `discard`, `edit`, `settle`, `move`: what a person may ask to be done with a run.

An order is a line in the run's folder. Who delivers the run obeys it within seconds, be it a living RunEngine's
process; a run that nobody delivers waits for the next session or `atomscale-bluesky upload`, which obey it first.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from ..status.progress import counted
from .formatting import console, plain

if TYPE_CHECKING:
    from ..spool.orders import OrderLine
    from ..spool.spool import Spool
    from ..status.account import RunStatus

_run = click.argument("run", metavar="RUN")
_spool_dir = click.option(
    "--spool-dir", type=click.Path(file_okay=False, path_type=Path), help="The spool that the run is in."
)


@click.command
@_run
@_spool_dir
def retry(run: str, spool_dir: Path | None) -> int:
    """Try again what is parked or refused.

    RUN is the beginning of a run's uid, as `status` shows it. Use it when the reason has passed: an instrument was
    registered, a right was given, the server was mended. A chunk keeps its number and its content.
    """
    from ..spool.orders import Retry

    return _order(run, spool_dir, Retry(), "is tried again")


@click.command
@_run
@click.option("--yes", is_flag=True, help="Do not ask.")
@_spool_dir
def discard(run: str, yes: bool, spool_dir: Path | None) -> int:
    """Give up what a run has not delivered.

    RUN is the beginning of a run's uid, as `status` shows it. What waits or was refused is deleted here and never sent;
    what was delivered stays in Atomscale, in streams that are not finalized.
    """
    from ..spool.orders import Discard

    spool = _spool(spool_dir)
    found = _find(spool, run)
    left = found.points.waiting + found.points.refused
    if not yes:
        click.confirm(f"Give up {counted(left, 'point')} of run {found.run_uid[:8]} for good?", abort=True)
    return _order(run, spool_dir, Discard(), "is given up as soon as it has stopped")


@click.command
@_run
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
    run: str,
    no_sample: bool,
    no_project: bool,
    no_tags: bool,
    tags: tuple[str, ...],
    spool_dir: Path | None,
    **one: Any,
) -> int:
    """Correct what a run's streams are initialized with and linked to.

    RUN is the beginning of a run's uid, as `status` shows it. What is not given stays as the run's metadata say. Once
    Atomscale has a stream of the run, its instrument and project are changed there, and its points per chunk no more;
    sample, tags and tracking can be given anew until the run is finalized.
    """
    import msgspec

    from ..documents.metadata import read_metadata
    from ..errors import MetadataError
    from ..model.links import Links
    from ..spool.orders import Edit

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
    found = _find(spool, run)
    fixed = sorted(given.keys() & {"synth_source_id", "project_id", "points_per_chunk"})
    if found.data_ids and fixed:
        raise click.ClickException(
            f"run {found.run_uid[:8]} is in Atomscale already as {', '.join(found.data_ids)}, "
            f"with the {fixed[0]} that it has; change it there"
        )
    before = msgspec.to_builtins(spool.links_of(Path(found.folder)))
    try:
        metadata = read_metadata({"atomscale": before | given}, Links())
    except MetadataError as error:
        raise click.UsageError(plain(error)) from None
    links = metadata.links
    return _order(run, spool_dir, Edit(links, metadata.points_per_chunk), "goes on with what you gave")


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

    found = _find(_spool(spool_dir), run)
    if found.state != "unreadable" and stop_of(Path(found.folder)) is not None:
        raise click.ClickException(f"run {found.run_uid[:8]} has its stop document; there is nothing to settle")
    return _order(run, spool_dir, Settle(), "is completed as interrupted")


@click.command
@_run
@click.option("--to", "endpoint", metavar="URL", required=True, help="Origin of the API that the run is to go to.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_spool_dir
def move(run: str, endpoint: str, yes: bool, spool_dir: Path | None) -> int:
    """Deliver a run to another endpoint than the one it was spooled for, or a parked one again to the same.

    RUN is the beginning of a run's uid, as `status` shows it. The whole run goes to the new endpoint, from its first
    reading on, into new metrology streams; what the old one has of it stays there, in streams that are not finalized.
    Who delivers it needs a key for the new endpoint.
    """
    from ..settings import Settings
    from ..spool.orders import Move
    from ..spool.run_reader import stop_of

    endpoint = Settings.load(endpoint=endpoint).endpoint
    spool = _spool(spool_dir)
    found = _find(spool, run)
    if found.state in {"discarded", "unreadable"}:
        raise click.ClickException(f"run {found.run_uid[:8]} is {found.state}; there is nothing to move")
    folder = Path(found.folder)
    if stop_of(folder) is None and spool.writer_alive(folder):
        raise click.ClickException(f"run {found.run_uid[:8]} goes on; move it when it has stopped")
    if found.endpoint == endpoint and found.state != "parked":
        raise click.ClickException(f"run {found.run_uid[:8]} is for {plain(endpoint)} already")
    if not yes:
        told = f"Send all of run {found.run_uid[:8]} ({plain(found.label)}) to {plain(endpoint)}"
        if found.points.delivered:
            told += f", beside the {counted(found.points.delivered, 'point')} that {plain(found.endpoint)} has"
        click.confirm(f"{told}?", abort=True)
    return _order(run, spool_dir, Move(endpoint), f"goes to {plain(endpoint)}")


def _order(run: str, spool_dir: Path | None, order: OrderLine, outcome: str) -> int:
    spool = _spool(spool_dir)
    found = _find(spool, run)
    folder = Path(found.folder)
    spool.order(folder, order)
    who = (
        "by the process that delivers it, within seconds"
        if spool.uploader_alive(folder)
        else "by the next session, or now by `atomscale-bluesky upload`"
    )
    console().print(Text(f"Run {found.run_uid[:8]} ({plain(found.label)}) {outcome}, {who}."), soft_wrap=True)
    return 0


def _spool(spool_dir: Path | None) -> Spool:
    from ..settings import Settings
    from .status import open_spool

    settings = Settings.load(spool_dir=spool_dir)
    spool = open_spool(settings, read_only=False)
    if spool is None:
        raise click.ClickException(f"there is no spool in {plain(settings.spool_path)}")
    return spool


def _find(spool: Spool, run: str) -> RunStatus:
    from ..errors import SpoolError
    from ..status.spool_status import SpoolStatus

    try:
        return SpoolStatus(spool).find(run)
    except SpoolError as error:
        raise click.ClickException(plain(error)) from None
