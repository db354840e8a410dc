"""What a program found: tables for people, JSON for programs, and the machine they were measured on."""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import subprocess
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import orjson

_SHOWN = ("atomscale-bluesky", "bluesky", "event-model", "ophyd", "orjson", "msgspec", "requests", "urllib3")

Cell = str | float | int


@dataclass
class Table:
    """Rows of cells under headings; numbers are shown with three digits that mean something."""

    title: str
    columns: Sequence[str]
    rows: list[list[Cell]] = field(default_factory=list)

    def shown(self) -> list[list[str]]:
        """The cells as text, headings first."""
        return [list(self.columns), *([_shown(cell) for cell in row] for row in self.rows)]


@dataclass
class Report:
    """Tables with what has to be known to read them."""

    title: str
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        """For a terminal."""
        parts = [self.title, "; ".join(f"{name} {value}" for name, value in machine().items())]
        for table in self.tables:
            cells = table.shown()
            widths = [max(len(row[i]) for row in cells) for i in range(len(table.columns))]
            lines = [
                "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
                for row in cells
            ]
            lines.insert(1, "  ".join("-" * w for w in widths))
            parts.append("\n".join([table.title, "", *lines]))
        parts.extend(textwrap.fill(note, 118, initial_indent="* ", subsequent_indent="  ") for note in self.notes)
        return "\n\n".join(parts)

    def markdown(self) -> str:
        """For a page."""
        parts = []
        for table in self.tables:
            heading, *rows = table.shown()
            rule = "|".join("---" if i == 0 else "---:" for i in range(len(heading)))
            lines = [f"| {' | '.join(heading)} |", f"|{rule}|", *(f"| {' | '.join(row)} |" for row in rows)]
            parts.append("\n".join([f"**{table.title}**", "", *lines]))
        parts.append("\n".join(f"- {note}" for note in self.notes))
        return "\n\n".join(parts) + "\n"

    def json(self) -> bytes:
        """For a program."""
        return orjson.dumps(
            {
                "title": self.title,
                "measured": datetime.now(UTC).isoformat(timespec="seconds"),
                "machine": machine(),
                "tables": [
                    {"title": t.title, "rows": [dict(zip(t.columns, row, strict=True)) for row in t.rows]}
                    for t in self.tables
                ],
                "notes": self.notes,
            },
            option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE,
        )


def machine() -> dict[str, str]:
    """What the figures depend on."""
    found = {
        "cores": str(os.cpu_count()),
        "processor": _processor(),
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
    }
    for name in _SHOWN:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def file_system(folder: Path) -> str:
    """The kind of file system below a folder, where the system tells."""
    if not (stat := shutil.which("stat")):
        return "unknown"
    done = subprocess.run([stat, "-f", "-c", "%T", str(folder)], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of `values` does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def middle(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Where the middle half of the rounds lies."""
    return f"{percentile(values, 0.25):.{digits}f}–{percentile(values, 0.75):.{digits}f}"


def _shown(cell: Cell) -> str:
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int):
        return str(cell)
    size = abs(cell)
    return f"{cell:.0f}" if size >= 100 else f"{cell:.1f}" if size >= 10 else f"{cell:.2f}"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
