"""Draw `docs/images/cost-per-event.svg`: what an event costs the plan's thread, against its number of data keys.

    python -m benchmarks event --json found.json
    python docs/_scripts/cost_per_event.py found.json

The same figures and the same matplotlib write the same bytes; a second file name as argument writes there instead.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import matplotlib as mpl
import orjson

mpl.use("Agg")
import matplotlib.pyplot as plt

OUT = Path(__file__).parents[1] / "images" / "cost-per-event.svg"
INK, FAINT = "#22303c", "#8796a3"
# Contestant → colour, width; whoever is not named here is one of the others.
OURS, FLOOR, OTHERS = ("#2f6694", 2.6), ("#9a5f10", 1.8), (FAINT, 1.5)


def curves(found: dict) -> dict[str, list[tuple[int, float]]]:
    """Contestant → keys of an event and its median cost, µs."""
    out: dict[str, list[tuple[int, float]]] = {}
    for table in found["tables"]:
        keys = re.match(r"Events of (\d+) keys", table["title"])
        for row in table["rows"] if keys else ():
            out.setdefault(row[""], []).append((int(keys[1]), row["median"]))
    return out


def main(source: str, out: str = str(OUT)) -> None:
    """Draw."""
    mpl.rcParams.update({"svg.hashsalt": "cost", "font.family": "sans-serif", "svg.fonttype": "none"})
    figure, axes = plt.subplots(figsize=(7.2, 4.4), layout="constrained")
    for who, points in curves(orjson.loads(Path(source).read_bytes())).items():
        colour, width = OURS if who.startswith("Atomscale") else FLOOR if who.startswith("floor") else OTHERS
        keys, cost = zip(*points, strict=True)
        dashed = "--" if "idle" in who else ":" if "suitcase" in who else "-"
        axes.plot(keys, cost, dashed, marker="o", ms=5, color=colour, lw=width, label=who)
    axes.set(xscale="log", yscale="log", xlabel="data keys of an event", ylabel="µs per event, median")
    axes.set_xticks([10, 100, 1000], ["10", "100", "1000"])
    axes.grid(visible=True, color="#e3e8ec", lw=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(out, metadata={"Date": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
