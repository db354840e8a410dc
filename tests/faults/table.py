"""Results as a table that reads as text and as markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from .bench import Result

COLUMNS = (
    *("scenario", "seeds", "failed", "expected", "held", "lost", "doubled", "wrong", "orphans", "requests", "raised"),
    *("kills", "slowest call", "s per seed"),
)


def table(results: Iterable[Result]) -> str:
    """One line per scenario, in the order in which they are first met."""
    by_name: dict[str, list[Result]] = {}
    for result in sorted(results, key=lambda result: (result.scenario, result.seed)):
        by_name.setdefault(result.scenario, []).append(result)
    rows = [_row(name, found) for name, found in by_name.items()]
    rows.append(_row("all", [result for found in by_name.values() for result in found]))
    widths = [max(len(str(row[i])) for row in [COLUMNS, *rows]) for i in range(len(COLUMNS))]
    lines = [_line(COLUMNS, widths), "|" + "|".join("-" * (width + 2) for width in widths) + "|"]
    return "\n".join(lines + [_line(row, widths) for row in rows])


def _row(name: str, results: list[Result]) -> tuple[str, ...]:
    verdicts = [result.verdict for result in results]
    needed = sum(verdict.needed for verdict in verdicts)
    requests = sum(verdict.requests for verdict in verdicts)
    calls = [s for result in results for _, s in [*result.calls, *result.calls_beside_server]]
    counts = sum((result.counts for result in results), Counter[str]())
    lost = sum(v.lost for v in verdicts)
    allowed = sum(result.allowed_lost for result in results)
    return (
        name,
        str(len(results)),
        str(sum(bool(result.problems) for result in results)),
        str(sum(v.expected for v in verdicts)),
        str(sum(v.held for v in verdicts)),
        f"{lost - allowed}" + (f" (+{allowed} by rule)" if allowed else ""),
        str(sum(v.doubled for v in verdicts)),
        str(sum(v.wrong for v in verdicts)),
        str(sum(v.orphans for v in verdicts)),
        f"{requests / needed:.2f}" if needed else "–",
        str(sum(len(result.raised) for result in results)),
        str(counts["kills"] + counts["power cuts"] or "–"),
        f"{max(calls) * 1e3:.1f} ms" if calls else "–",
        f"{sum(result.took_s for result in results) / len(results):.1f}",
    )


def _line(cells: Iterable[object], widths: list[int]) -> str:
    return "| " + " | ".join(str(cell).ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"


def quantiles(what: str, calls: list[tuple[str, float]]) -> str:
    """How long calls took, one line per kind of document."""
    by_kind: dict[str, list[float]] = {}
    for kind, seconds in calls:
        by_kind.setdefault(kind, []).append(seconds)
    return "\n".join(_quantiles(f"{what}, {kind}", sorted(found)) for kind, found in sorted(by_kind.items()))


def _quantiles(what: str, ordered: list[float]) -> str:
    shown = [
        f"{name} {ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e6:.0f} µs" for name, share in SHARES
    ]
    return f"{what}: {len(ordered)}; {', '.join(shown)}; worst {ordered[-1] * 1e3:.2f} ms"


SHARES = (("median", 0.5), ("95 %", 0.95), ("99 %", 0.99), ("99.9 %", 0.999), ("99.99 %", 0.9999))
