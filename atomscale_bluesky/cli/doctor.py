"""`atomscale-bluesky doctor`: is everything in place for a run?"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click
from rich.table import Table
from rich.text import Text

from .asking import says_that_it_waits
from .formatting import console, safe
from .options import Once

_STYLES = {"passed": "green", "warning": "yellow", "failed": "bold red"}


@click.command
@click.option("--spool-dir", cls=Once, type=click.Path(file_okay=False, path_type=Path), help="Check this spool.")
@click.option("--endpoint", cls=Once, metavar="URL", help="Ask the API there.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(spool_dir: Path | None, endpoint: str | None, as_json: bool) -> int:
    """Check key, server, TLS, clock, instrument and spool, and say what to do.

    Nothing is made, changed or sent. Where a setting cannot be used, what depends on it is not checked: no server is
    asked while it is unclear which one is meant.

    The exit code is 1 if a check failed, and 0 otherwise, warnings included.
    """
    from ..checks.doctor import Check, Result, examine
    from ..checks.settings_report import report_settings

    report = report_settings(spool_dir=spool_dir, endpoint=endpoint)
    checks = [
        Check("settings", Result.FAILED if one.refused else Result.WARNING, one.found, one.remedy)
        for one in report.mistakes
    ]
    with says_that_it_waits(report.settings):
        checks += examine(report.settings, report.unclear, report.questioned)
    if as_json:
        click.echo(json.dumps([asdict(check) | {"result": check.result.value} for check in checks], indent=2))
    else:
        table = Table(box=None, pad_edge=False)
        for title in ("check", "result", "found", "what to do"):
            table.add_column(title, overflow="fold")
        for check in checks:
            result = check.result.value
            table.add_row(
                check.what,
                Text(result, style=_STYLES[result]),
                Text(safe(check.found)),
                Text(safe(check.remedy)),
            )
        console().print(table)
    return int(any(check.result is Result.FAILED for check in checks))
