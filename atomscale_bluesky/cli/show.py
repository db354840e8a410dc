"""`atomscale-bluesky show`: one run, with its streams, its channels, and why readings were left out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from ..status.progress import counted, number
from .formatting import console, moment, safe
from .runs import FoundRun, find_run, run_argument, source_option, spool_dir_option, tables_of, warn_of_missing_parts

if TYPE_CHECKING:
    from ..checks.run_tables import Table
    from ..status.linked_to import LinkedTo
    from ..status.run_parts import RunPart
    from ..status.run_status import RunStatus


@click.command
@run_argument
@source_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@spool_dir_option
def show(run: str, source: str, as_json: bool, spool_dir: Path | None) -> int:
    """Show a run: its streams, its channels, and what was left out.

    RUN is a uid, its beginning, a scan id, or `last` for the newest run. A run that was delivered has left the spool:
    its channels with their first and last values are then shown with `--from api`, as Atomscale returns them. A run
    that was interrupted and went on has several parts, and all of them are shown.
    """
    from ..settings import Settings

    settings = Settings.load(spool_dir=spool_dir)
    found = find_run(settings, run)
    here = any(part.status is not None for part in found.parts)
    tables = tables_of(settings, found, source) if here or source == "api" else []
    code = warn_of_missing_parts(found, source) if source == "api" else 0
    if as_json:
        click.echo(json.dumps(_as_json(found, tables), indent=2))
        return code
    out = console()
    out.print(Text.assemble((safe(found.label, limit=200), "bold"), f"  run {safe(found.run_uid)}"), soft_wrap=True)
    _show_parts(out, found, with_delivered=not (tables and source == "api"))
    for table in tables:
        out.print()
        out.print(Text(f"{safe(table.name, limit=200)}: {counted(len(table.times), 'row')}", style="bold"))
        out.print(_channels(table))
    return code


def _show_parts(out: Console, run: FoundRun, *, with_delivered: bool) -> None:
    """Print what is to be shown of a run beside its channels, or of each part of it.

    Args:
        out: The terminal.
        run: The run.
        with_delivered: Name the channels of what has left the spool.
    """
    facts = [("started", moment(run.started))]
    if run.scan_id is not None:
        facts.append(("scan id", str(run.scan_id)))
    if several := len(run.parts) > 1:
        points = sum((Counter(_counts(part)) for part in run.parts), Counter[str]())
        out.print(_table_of_facts([*facts, ("points", _in_words(points))]))
    for nth, part in enumerate(run.parts, start=1):
        if several:
            began = f", recorded from {moment(part.began)}" if part.began else ""
            out.print(Text(f"\nPart {nth} of {len(run.parts)}{began}", style="bold"))
        out.print(_table_of_facts(_facts(part) if several else facts + _facts(part)))
        if part.entry is not None and with_delivered:
            _show_delivered(out, part.entry)


def _show_delivered(out: Console, entry: dict[str, Any]) -> None:
    """Print the channels of a run, or a part of one, that has left the spool."""
    from ..status.run_summary import points_of_unnamed_channels

    for name, known in (entry.get("channels") or {}).items():
        text = f"  {safe(name)}  {counted(int(known['points']), 'point')}  {safe(known['unit'] or '')}"
        out.print(Text(text.rstrip()), soft_wrap=True)
    if unnamed := points_of_unnamed_channels(entry):
        out.print(Text(f"  and further channels, with {counted(unnamed, 'point')}"), soft_wrap=True)
    more = "; `--from api` shows first and last values" if entry.get("data_ids") else ""
    out.print(Text(f"It has left the spool{more}.", style="dim"))


def _counts(part: RunPart) -> dict[str, int]:
    """Return the points of a run, or of a part of one, by what happened to them."""
    if part.status is None:
        return {name: int((part.entry or {}).get(name) or 0) for name in ("delivered", "discarded", "lost")}
    points = part.status.points
    counts = {"delivered": points.delivered, "waiting": points.waiting, "refused": points.refused}
    return counts | {"discarded": points.discarded, "lost": points.lost}


def _in_words(counts: Mapping[str, int]) -> str:
    shown = {"delivered": 0} | dict(counts)
    return ", ".join(f"{number(n)} {name}" for name, n in shown.items() if n or name == "delivered")


def _facts(part: RunPart) -> list[tuple[str, str]]:
    """Return the facts of a run, or of a part of one, beside its channels. Text from outside is made harmless."""
    from ..status.run_summary import left_out_by_reason, verified_at, was_discarded
    from .run_text import ordered_in_words

    status, entry = part.status, part.entry or {}
    facts: list[tuple[str, str]] = []
    if status is not None:
        streams = [(s.label, s.data_id, s.state, s.problem) for s in status.streams]
        facts.append(("state", status.state))
        facts += _ended(status.exit_status, status.reason)
        if status.interrupted:
            facts.append(("ended", "interrupted: no stop document came"))
        left_out = {reason: (sum(keys.values()), keys) for reason, keys in _left_out(status).items()}
    else:
        streams = [
            (s.get("label"), s.get("data_id"), s.get("state"), s.get("problem")) for s in entry.get("streams") or ()
        ]
        facts.append(("state", "discarded" if was_discarded(entry) else "finalized"))
        if (at := verified_at(entry)) is not None:
            facts.append(("read back", f"equal, on {moment(at)}"))
        if entry.get("interrupted"):
            facts.append(("ended", "interrupted: no stop document came"))
        else:
            facts += _ended(str(entry.get("exit_status") or ""), str(entry.get("reason") or ""))
        left_out = left_out_by_reason(entry)
    if linked := _linked_to(part):
        facts.append(("linked to", str(linked)))
    if status is not None and status.ordered:
        facts.append(("ordered", ordered_in_words(status)))
    facts.append(("points", _in_words(_counts(part))))
    for label, data_id, state, problem in streams:
        facts.append(("stream", safe(f"{label}  {data_id or 'no data_id yet'}  {state}")))
        if problem:
            facts.append(("problem", safe(problem, limit=2000)))
    if status is not None and status.problem and all(status.problem != problem for *_, problem in streams):
        facts.append(("problem", safe(status.problem, limit=2000)))
    for reason, (count, keys) in left_out.items():
        names = ", ".join(f"{safe(key)} ({number(n)})" for key, n in keys.items())
        names += " and others" if keys and sum(keys.values()) < count else ""
        facts.append(("left out", f"{number(count)} {safe(reason)}" + (f": {names}" if names else "")))
    return facts


def _linked_to(part: RunPart) -> LinkedTo | None:
    """Return to what a run is linked; None if nothing is known of that, as for one that an earlier version finished."""
    from ..status.linked_to import linked_to_of_entry

    return part.status.linked_to if part.status is not None else linked_to_of_entry(part.entry or {})


def _ended(exit_status: str, reason: str) -> list[tuple[str, str]]:
    """Return how the plan ended; nothing as long as it goes on."""
    if not exit_status:
        return []
    return [("ended", safe(exit_status) + (f": {safe(reason)}" if reason and exit_status != "success" else ""))]


def _left_out(run: RunStatus) -> dict[str, dict[str, int]]:
    """Return by reason how many readings of which data key are left out."""
    found: dict[str, dict[str, int]] = {}
    for name, counts in run.channels.items():
        for reason, n in counts.left_out.items():
            found.setdefault(reason, {})[name] = n
    return found


def _table_of_facts(facts: list[tuple[str, str]]) -> Grid:
    grid = Grid.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True, justify="right")
    grid.add_column(overflow="fold")
    for name, text in facts:
        style = "bold red" if name == "problem" else ""
        grid.add_row(name, Text(text, style=style))
    return grid


def _channels(table: Table) -> Grid:
    grid = Grid(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("channel", "unit", "points", "first", "last"):
        grid.add_column(title, justify="right" if title in {"points", "first", "last"} else "left", overflow="fold")
    for column in table.columns:
        ends = column.ends
        first, last = (f"{ends[0]:.6g}", f"{ends[1]:.6g}") if ends else ("", "")
        grid.add_row(Text(safe(column.name)), Text(safe(column.unit or "")), number(column.points), first, last)
    return grid


def _as_json(run: FoundRun, tables: list[Table]) -> dict[str, Any]:
    import msgspec

    parts = [{"status": msgspec.to_builtins(part.status), "finished": part.entry} for part in run.parts]
    return {
        "run_uid": run.run_uid,
        "label": run.label,
        "started": run.started,
        "scan_id": run.scan_id,
        **parts[-1],
        "parts": parts,
        "tables": [
            {
                "name": table.name,
                "rows": len(table.times),
                "channels": [
                    {"name": c.name, "unit": c.unit, "points": c.points, "ends": c.ends} for c in table.columns
                ],
            }
            for table in tables
        ],
    }
