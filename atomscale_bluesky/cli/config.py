"""`atomscale-bluesky config show`: every setting, its value, and where it comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table
from rich.text import Text

from .formatting import console, safe
from .options import Once

if TYPE_CHECKING:
    from ..checks.settings_report import SettingsReport


@click.group
def config() -> None:
    """Look at the settings."""


@config.command
@click.option(
    "--spool-dir",
    cls=Once,
    type=click.Path(file_okay=False, path_type=Path),
    help="Show the settings as they are with this folder.",
)
@click.option("--endpoint", cls=Once, metavar="URL", help="Show the settings as they are with this endpoint.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(spool_dir: Path | None, endpoint: str | None, as_json: bool) -> int:
    """Show every setting, its value, and where it comes from.

    Also names the settings file and the spool's folder, and the variables and keys of the file that are no settings,
    with the settings that were perhaps meant. It does not show the API key, only whether it is set.

    The exit code is 1 if there is such a variable or key, or a value that cannot be used. A variable that may as well
    belong to another program is named, and does not change the exit code.
    """
    from ..checks.settings_report import DEFAULT, report_settings

    report = report_settings(spool_dir=spool_dir, endpoint=endpoint)
    if as_json:
        import msgspec

        told = {"settings": msgspec.to_builtins(report.shown), "mistakes": msgspec.to_builtins(report.mistakes)}
        told |= {"file": str(report.file), "file_exists": report.file.exists(), "spool": _spool(report)}
        click.echo(json.dumps(told, indent=2))
        return _exit_code(report)
    out = console()
    table = Table(box=None, pad_edge=False)
    for title in ("setting", "value", "from"):
        table.add_column(title, overflow="fold")
    for one in report.shown:
        style = "dim" if one.source.startswith(DEFAULT) else ""
        table.add_row(one.name, Text(safe(_text(one.value)), style=style), Text(safe(one.source), style=style))
    out.print(table)
    there = "" if report.file.exists() else ", which is not there"
    out.print(Text(f"Settings file: {safe(report.file)}{there}."), soft_wrap=True)
    out.print(Text(f"Spool: {safe(_spool(report) or 'none that can be used, as `doctor` explains')}."), soft_wrap=True)
    for mistake in report.mistakes:
        text = f"{safe(mistake.found, limit=1000)}; {safe(mistake.remedy)}"
        out.print(Text(text, style="bold red" if mistake.refused else "yellow"), soft_wrap=True)
    return _exit_code(report)


def _exit_code(report: SettingsReport) -> int:
    return int(any(not one.question for one in report.mistakes))


def _spool(report: SettingsReport) -> str | None:
    """Return the spool's folder, or None if none can be used."""
    from ..errors import SettingsError, SpoolError

    if "spool_dir" in report.unclear:
        return None
    try:
        return str(report.settings.spool_path)
    except (SpoolError, SettingsError):
        return None


def _text(value: Any) -> str:
    """Return a value as it is written in the settings file."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value) if isinstance(value, tuple) else value)
