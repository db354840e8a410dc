"""What `edit` makes of a run's metadata: everything that the run has, with what the operator gives in its place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import msgspec

from ..documents.metadata import read_what_is_usable
from ..model.links import Links
from ..model.uids import shown_uid
from ..spool.journal_format import Header
from ..spool.orders import Edit, OrderLine
from ..spool.run_reader import read_header
from ..spool.spool import Spool
from ..status.linked_to import ordered_edit
from ..status.remedies import edit_options
from ..status.run_status import RunStatus
from .formatting import safe

_TRACKED = {"physical_sample", "physical_sample_id", "project_id", "track_sample"}


def corrected(spool: Spool, run: RunStatus, operator_values: Mapping[str, Any], *, leave_out: bool) -> Edit:
    """Return the order that gives a run what it has, and in the place of some of it what the operator gives.

    Args:
        spool: The spool that the run is in.
        run: Its status.
        operator_values: The operator's values, by metadata key.
        leave_out: Leave out what the metadata have and cannot be used.

    Raises:
        click.UsageError: A value that the operator gives cannot be used.
        click.ClickException: The order does not fit the run.
    """
    _check_not_fixed(run, operator_values)
    header = read_header(Path(run.folder))
    if header is None:
        raise click.ClickException(f"run {shown_uid(run.run_uid)} is unreadable: its header is damaged or gone")
    before = spool.last_edit(Path(run.folder))
    if before is None:
        _check_unusable(run, header, operator_values, leave_out=leave_out)
    unusable = run.unusable if before is None else ()
    before = before or Edit(header.links)
    metadata = msgspec.to_builtins(before.links)
    metadata |= {"points_per_chunk": before.points_per_chunk, "stream_name": before.label}
    if leave_out and not _TRACKED.isdisjoint(unusable):
        metadata["track_sample"] = False  # a project tracks a sample, and one of these is left out
    read = read_what_is_usable({"atomscale": metadata | operator_values}, Links())
    if read.problem is not None:
        wrong = (
            click.UsageError if {key for key, _ in read.unusable} <= operator_values.keys() else click.ClickException
        )
        raise wrong(f"run {shown_uid(run.run_uid)}: {safe(read.problem)}")
    return Edit(read.links, read.points_per_chunk, read.label)


def _check_not_fixed(run: RunStatus, operator_values: Mapping[str, Any]) -> None:
    fixed = sorted(operator_values.keys() & {"synth_source_id", "project_id", "stream_name", "points_per_chunk"})
    if run.data_ids and fixed:
        raise click.ClickException(
            f"run {shown_uid(run.run_uid)} is in Atomscale already as {', '.join(run.data_ids)}, "
            f"and its {fixed[0]} cannot be changed from here; change it in Atomscale"
        )
    fixed_now = sorted(operator_values.keys() & {"stream_name", "points_per_chunk"})
    if run.streams and fixed_now:
        raise click.ClickException(
            f"the first stream of run {shown_uid(run.run_uid)} is begun, so the run's {fixed_now[0]} cannot be "
            f"changed; leave out --{fixed_now[0].replace('_', '-')}"
        )


def _check_unusable(run: RunStatus, header: Header, operator_values: Mapping[str, Any], *, leave_out: bool) -> None:
    """Raise unless all that cannot be used is given or left out, and say it if nothing is known of that."""
    if header.problem and not header.unusable:
        click.echo(
            f"Run {shown_uid(run.run_uid)} was spooled by an earlier version, which kept nothing of metadata that it "
            f"could not use: give all that the run needs.",
            err=True,
        )
    # A wish to track the sample is kept if it could not be met. It may be met with what is given.
    decided = operator_values.keys() | ({"track_sample"} if header.links.track_sample else set())
    missing = [name for name in run.unusable if name not in decided]
    if missing and not leave_out:
        raise click.ClickException(
            f"run {shown_uid(run.run_uid)} has metadata that cannot be used ({safe(run.problem)}). Give also "
            f"{edit_options(missing)}, or leave out what cannot be used with --leave-out-unusable"
        )


def made_with(order: OrderLine) -> str:
    """Return what the streams of a run are made with after an edit. Empty for another order."""
    if not isinstance(order, Edit):
        return ""
    return str(ordered_edit(order))
