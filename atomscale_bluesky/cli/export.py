"""`atomscale-bluesky export`: a run's points as a CSV or Parquet file."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.text import Text

from ..status.progress import counted
from .formatting import console, safe
from .plot import check_new
from .runs import FoundRun, find_run, run_argument, source_option, spool_dir_option, tables_of, warn_of_missing_parts

if TYPE_CHECKING:
    from ..checks.run_tables import Table

_file = click.Path(dir_okay=False, path_type=Path)


@click.command
@run_argument
@click.argument("channels", metavar="[CHANNEL]...", nargs=-1)
@click.option("--csv", "csv_path", type=_file, metavar="FILE", help="Write this new CSV file.")
@click.option("--parquet", "parquet_path", type=_file, metavar="FILE", help="Write this new Parquet file.")
@source_option
@spool_dir_option
def export(
    run: str,
    channels: tuple[str, ...],
    csv_path: Path | None,
    parquet_path: Path | None,
    source: str,
    spool_dir: Path | None,
) -> int:
    """Write a run's points to a file.

    RUN is a uid, its beginning, a scan id, or `last` for the newest run. Without a CHANNEL all are written. The first
    column is the time in Unix seconds, and each channel has a column of its own. Channels with other times,
    such as those of a monitor, get a further file, named after their event stream. No file is overwritten. Parquet
    needs the extra `parquet`. A run that was interrupted and went on has several parts, and all of them are written;
    if --from does not have the points of one, the command says so, and its exit code is 1. The same if a run that has
    left the spool has so many channels that its history does not name all: name those that are missing.
    """
    from ..settings import Settings

    path = csv_path or parquet_path
    if path is None or (csv_path and parquet_path):
        raise click.UsageError("give either --csv FILE or --parquet FILE")
    if parquet_path is not None:
        import pyarrow  # noqa: F401 - said now rather than after the run was read
    settings = Settings.load(spool_dir=spool_dir)
    found = find_run(settings, run)
    tables = [table for table in tables_of(settings, found, source, channels) if len(table.times)]
    if not tables:
        raise click.ClickException(f"run {found.short} has no point yet")
    paths = _paths(path, tables)
    for one in paths:
        check_new(one, "--csv" if csv_path else "--parquet")
    for table, one in zip(tables, paths, strict=True):
        try:
            _write_csv(table, one) if csv_path else _write_parquet(found, table, one)
        except OSError as error:
            raise click.ClickException(f"{str(one)!r} cannot be written: {safe(error)}") from None
        text = f"{safe(one)}: {counted(len(table.times), 'row')} of {counted(len(table.columns), 'channel')}"
        console().print(Text(text), soft_wrap=True)
    return warn_of_missing_parts(found, source, channels)


def _paths(path: Path, tables: list[Table]) -> list[Path]:
    """Return a file for each table. The first has the name that was given."""
    paths = [path]
    for table in tables[1:]:
        name = f"{path.stem}-{re.sub(r'[^0-9A-Za-z_.-]+', '_', table.name)[:80]}"
        other, count = path.with_name(name + path.suffix), 2
        while other in paths:
            other, count = path.with_name(f"{name}-{count}{path.suffix}"), count + 1
        paths.append(other)
    return paths


def _titles(table: Table) -> list[str]:
    return ["time", *(f"{column.name} ({column.unit})" if column.unit else column.name for column in table.columns)]


def _write_csv(table: Table, path: Path) -> None:
    with path.open("x", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(_titles(table))
        for row in zip(table.times.tolist(), *(column.values.tolist() for column in table.columns), strict=True):
            writer.writerow(["" if math.isnan(value) else repr(value) for value in row])


def _write_parquet(run: FoundRun, table: Table, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields = [pa.field("time", pa.float64(), metadata={"unit": "s since 1970-01-01 UTC"})]
    arrays = [pa.array(table.times)]
    for column in table.columns:
        fields.append(pa.field(column.name, pa.float64(), metadata={"unit": column.unit or ""}))
        arrays.append(pa.array(column.values, from_pandas=True))  # NaN is a missing value
    about = {"run_uid": run.run_uid, "label": run.label, "event_stream": table.name}
    with path.open("xb") as file:
        pq.write_table(pa.table(arrays, schema=pa.schema(fields, metadata=about)), file)
