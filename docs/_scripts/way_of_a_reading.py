"""Draw `docs/explanations/way-of-a-reading.svg`: through which rooms a reading goes, and on whose thread.

Run it from anywhere: `python docs/_scripts/way_of_a_reading.py`. The same matplotlib writes the same bytes, and a file
name as argument writes there instead (`… /tmp/picture.png` for a look).
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

OUT = Path(__file__).parents[1] / "explanations" / "way-of-a-reading.svg"

INK = "#22303c"
FAINT = "#5b6975"
FRONT, BACK, DISK = "#e8f1fa", "#fdf1e3", "#eceff1"
FRONT_EDGE, BACK_EDGE, DISK_EDGE = "#2f6694", "#9a5f10", "#56656f"
FRONT_THREADS, BACK_THREADS = "the RunEngine's thread and the threads of devices", "the uploader's threads"


def room(ax, x, y, name, says="", *, edge=INK, width=1.5, height=0.8, fill="white"):
    """A box centred on (x, y): the room's name, and under it what it does in a few words."""
    ax.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.09",
            fc=fill,
            ec=edge,
            lw=1.5,
        )
    )
    lift = 0.13 if says else 0
    ax.text(x, y + lift, name, ha="center", va="center", fontsize=12, color=INK, weight="bold")
    if says:
        ax.text(x, y - 0.17, says, ha="center", va="center", fontsize=8.6, color=FAINT)


def arrow(ax, start, end, *, color=INK, style="-|>", bend=0.0, dashed=False):
    """An arrow from one point to another; dashed ones carry answers back."""
    ax.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle=style,
            mutation_scale=13,
            lw=1.5,
            color=color,
            linestyle=(0, (3, 2)) if dashed else "-",
            connectionstyle=f"arc3,rad={bend}",
            shrinkA=1,
            shrinkB=1,
        )
    )


def note(ax, x, y, text, **kwargs):
    """A few words beside an arrow."""
    ax.text(x, y, text, fontsize=8.8, color=FAINT, **({"ha": "center", "va": "center"} | kwargs))


def draw():
    """Return the finished figure."""
    fig, ax = plt.subplots(figsize=(12.6, 5.1))
    ax.set(xlim=(0, 15.4), ylim=(0, 6.2))
    ax.axis("off")

    # The two halves, and the disk that both stand on.
    ax.add_patch(Rectangle((0.1, 2.3), 6.0, 3.8, fc=FRONT, ec="none"))
    ax.add_patch(Rectangle((6.2, 2.3), 6.9, 3.8, fc=BACK, ec="none"))
    ax.add_patch(Rectangle((0.1, 0.1), 13.0, 2.1, fc=DISK, ec="none"))
    for x, color, title, thread, manner in (
        (0.3, FRONT_EDGE, "Front half: on the plan's time", FRONT_THREADS, "microseconds; one local write, no network"),
        (6.4, BACK_EDGE, "Back half: on our own time", BACK_THREADS, "may wait and repeat, for days if need be"),
    ):
        ax.text(x, 5.8, title, fontsize=12.5, weight="bold", color=color, va="center")
        ax.text(x, 5.45, thread, fontsize=9.6, color=color, va="center")
        ax.text(x, 5.14, manner, fontsize=9.6, color=color, va="center")
    ax.text(0.3, 0.62, "The spool: a folder on the local disk", fontsize=10.5, weight="bold", color=DISK_EDGE)
    ax.text(0.3, 0.32, "all that has to outlive the process", fontsize=9, color=DISK_EDGE)

    # Rooms.
    top, low = 4.05, 1.4
    ax.text(0.85, top, "document", ha="center", va="center", fontsize=12, color=INK, style="italic")
    room(ax, 2.75, top, "callback", "finds the run", edge=FRONT_EDGE)
    room(ax, 5.1, top, "channels", "values to floats", edge=FRONT_EDGE, width=1.6)
    room(ax, 5.1, low, "journal", "rows, append only", edge=DISK_EDGE, width=1.9)
    room(ax, 7.3, top, "chunks", "cuts rows", edge=BACK_EDGE)
    room(ax, 9.55, low, "ledger", "fates, append only", edge=DISK_EDGE, width=1.9)
    room(ax, 9.85, top, "uploader", "one retry loop", edge=BACK_EDGE)
    room(ax, 12.2, top, "client", "one call each", edge=BACK_EDGE)
    room(ax, 14.45, top, "Atomscale", "or local server", edge=INK, width=1.6)

    # The way out.
    arrow(ax, (1.58, top), (2.0, top))
    arrow(ax, (3.5, top), (4.3, top))
    note(ax, 3.88, top + 0.2, "event")
    arrow(ax, (5.1, top - 0.4), (5.1, low + 0.4))
    note(ax, 4.98, 2.95, "one row,\none write", ha="right")
    arrow(ax, (6.05, low + 0.15), (7.1, top - 0.4))
    note(ax, 6.32, 3.25, "rows on\nthe disk", ha="right")
    arrow(ax, (7.6, top - 0.4), (8.75, low + 0.4))
    note(ax, 7.4, 2.72, "which rows,\nnoted first")
    arrow(ax, (9.3, low + 0.4), (9.6, top - 0.4))
    note(ax, 9.3, 2.95, "what\nwaits", ha="right")
    arrow(ax, (10.6, top + 0.1), (11.45, top + 0.1))
    note(ax, 11.02, top + 0.32, "chunk")
    arrow(ax, (12.95, top + 0.1), (13.65, top + 0.1))
    note(ax, 13.3, top + 0.32, "HTTP")

    # The way back: an answer becomes a line in the ledger.
    arrow(ax, (13.65, top - 0.14), (12.95, top - 0.14), dashed=True, color=FAINT)
    arrow(ax, (11.45, top - 0.14), (10.6, top - 0.14), dashed=True, color=FAINT)
    note(ax, 11.02, top - 0.36, "answer")
    arrow(ax, (10.2, top - 0.4), (9.9, low + 0.4), dashed=True, color=FAINT)
    note(ax, 10.25, 2.95, "confirmed,\nrefused, finalized", ha="left")
    return fig


def main(path: Path) -> None:
    """Write the picture to `path`; the suffix says in which format."""
    with mpl.rc_context({"svg.hashsalt": "way-of-a-reading", "font.family": "DejaVu Sans"}):
        fig = draw()
        metadata = {"Date": None} if path.suffix == ".svg" else None
        fig.savefig(path, bbox_inches="tight", pad_inches=0.05, facecolor="white", metadata=metadata, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else OUT)
