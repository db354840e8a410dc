"""Draw `docs/explanations/way-of-a-reading.svg`: the folders that a reading goes through, and on whose thread.

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


def box(ax, x, y, name, says="", *, edge=INK, width=1.5, height=0.8, fill="white"):
    """Draw a box centred on (x, y): the name of a folder or file, and below it its job in a few words."""
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
    fig, ax = plt.subplots(figsize=(16.4, 5.2))
    ax.set(xlim=(0, 18.3), ylim=(0, 6.2))
    ax.axis("off")

    # The two halves, and the disk that both stand on.
    ax.add_patch(Rectangle((0.1, 2.3), 5.7, 3.8, fc=FRONT, ec="none"))
    ax.add_patch(Rectangle((5.9, 2.3), 10.1, 3.8, fc=BACK, ec="none"))
    ax.add_patch(Rectangle((0.1, 0.1), 13.2, 2.1, fc=DISK, ec="none"))
    for x, color, title, thread, manner in (
        (0.3, FRONT_EDGE, "While the plan waits", FRONT_THREADS, "microseconds; one local write, no network"),
        (6.1, BACK_EDGE, "Later", BACK_THREADS, "may wait and repeat, for days if need be"),
    ):
        ax.text(x, 5.8, title, fontsize=12.5, weight="bold", color=color, va="center")
        ax.text(x, 5.45, thread, fontsize=9.6, color=color, va="center")
        ax.text(x, 5.14, manner, fontsize=9.6, color=color, va="center")
    ax.text(0.3, 0.62, "The spool: a folder on the local disk", fontsize=10.5, weight="bold", color=DISK_EDGE)
    ax.text(0.3, 0.32, "all that has to outlive the process", fontsize=9, color=DISK_EDGE)

    # Folders, and the files of a run.
    top, low = 4.05, 1.4
    ax.text(0.75, top, "document", ha="center", va="center", fontsize=12, color=INK, style="italic")
    box(ax, 2.5, top, "callback", "finds the run", edge=FRONT_EDGE)
    box(ax, 4.85, top, "documents", "documents to rows", edge=FRONT_EDGE, width=1.75)
    box(ax, 4.85, low, "journal", "rows, append only", edge=DISK_EDGE, width=1.9)
    box(ax, 6.9, top, "chunking", "rows to chunks", edge=BACK_EDGE)
    box(ax, 9.3, top, "delivery", "decides what is next", edge=BACK_EDGE, width=1.9)
    box(ax, 11.9, top, "delivery: worker", "does one task", edge=BACK_EDGE, width=2.3)
    box(ax, 14.9, top, "api", "one request", edge=BACK_EDGE, width=1.6)
    box(ax, 8.9, low, "ledger", "what was sent", edge=DISK_EDGE, width=1.9)
    box(ax, 11.75, low, "orders", "from the command line", edge=DISK_EDGE, width=2.1)
    box(ax, 14.85, low, "status", "what became of it", edge=INK, width=1.7)
    box(ax, 17.3, top, "Atomscale", "or local server", edge=INK, width=1.7)

    # The way out.
    arrow(ax, (1.45, top), (1.75, top))
    arrow(ax, (3.25, top), (3.97, top))
    note(ax, 3.65, top + 0.2, "event")
    arrow(ax, (4.85, top - 0.4), (4.85, low + 0.4))
    note(ax, 4.73, 2.95, "one row,\none write", ha="right")
    arrow(ax, (5.6, low + 0.4), (6.7, top - 0.4))
    note(ax, 5.95, 2.98, "rows", ha="right")
    arrow(ax, (7.65, top), (8.35, top))
    note(ax, 8.02, top + 0.2, "chunk")
    for left, right, word in ((10.25, 10.75, "task"), (13.05, 14.1, "call")):
        arrow(ax, (left, top + 0.12), (right, top + 0.12))
        arrow(ax, (right, top - 0.14), (left, top - 0.14), dashed=True, color=FAINT)
        note(ax, (left + right) / 2, top + 0.32, word)
    arrow(ax, (15.7, top + 0.12), (16.45, top + 0.12))
    arrow(ax, (16.45, top - 0.14), (15.7, top - 0.14), dashed=True, color=FAINT)
    note(ax, 16.07, top + 0.32, "HTTP")

    # What is about to be sent is noted first, and the answer when it is there.
    arrow(ax, (8.8, top - 0.4), (8.6, low + 0.4))
    note(ax, 8.58, 2.95, "noted before\nit is sent", ha="right")
    arrow(ax, (9.25, top - 0.4), (9.1, low + 0.4), dashed=True, color=FAINT)
    note(ax, 9.3, 2.95, "the answer", ha="left")
    arrow(ax, (11.5, low + 0.4), (9.85, top - 0.4))
    note(ax, 10.95, 2.95, "read", ha="left")

    # Status only reads files.
    arrow(ax, (13.32, low), (14.1, low))
    note(ax, 13.7, low + 0.2, "reads")
    arrow(ax, (15.75, low), (16.3, low))
    note(ax, 16.4, low, "people, programs", ha="left")
    return fig


def main(path: Path) -> None:
    """Write the picture to `path`; the suffix says in which format."""
    with mpl.rc_context({"svg.hashsalt": "way-of-a-reading", "font.family": "DejaVu Sans"}):
        fig = draw()
        metadata = {"Date": None} if path.suffix == ".svg" else None
        fig.savefig(path, bbox_inches="tight", pad_inches=0.05, facecolor="white", metadata=metadata, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else OUT)
