"""The demo's picture: the measured and the arrived points, the outage, and the points waiting for delivery.

Drawn with matplotlib's own canvas: no window opens, and no backend is chosen for other code. The bundled font is
enough.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

if TYPE_CHECKING:
    from .emitted import Comparison
    from .story import Outcome

DPI = 110
_LEFT, _RIGHT = 0.085, 0.865

# Pale for measured points, dark for arrived ones, so that each is visible where they agree.
_BLUE, _RED, _GOLD, _GREEN, _VIOLET = (
    ("#9ecae8", "#0b4f7d"),
    ("#f6b8a6", "#a3271a"),
    ("#f2d58a", "#8a6100"),
    ("#addfae", "#1d6b2b"),
    ("#d3bfe6", "#5b2f87"),
)
_INK, _GREY, _AWAY = "#222222", "#777777", "#e9e6e0"

_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": "#bbbbbb",
    "axes.labelcolor": _GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
    "axes.grid": True,
    "grid.color": "#eeeeee",
    "axes.axisbelow": True,
}


def draw(outcome: Outcome, path: Path) -> None:
    """Draw the outcome as a PNG, whatever the name ends in.

    Raises:
        OSError: The file cannot be written.
    """
    with rc_context(_STYLE):
        figure = Figure(figsize=(10, 10.4), dpi=DPI, facecolor="white")
        closeup = figure.subplots(gridspec_kw={"left": _LEFT, "right": _RIGHT, "top": 0.895, "bottom": 0.765})
        shared = figure.subplots(
            5,
            sharex=True,
            gridspec_kw={
                "left": _LEFT,
                "right": _RIGHT,
                "top": 0.705,
                "bottom": 0.05,
                "hspace": 0.16,
                "height_ratios": [1.5, 1.4, 0.75, 0.9, 1.6],
            },
        )
        picture = _Picture(outcome)
        picture.headline(figure)
        picture.closeup(closeup)
        panels = (picture.rheed, picture.temperatures, picture.shutters, picture.thickness, picture.delivery)
        for panel, axes in zip(panels, shared, strict=True):
            panel(axes)
            picture.outage(axes, caption=axes is shared[0])
        shared[-1].set_xlim(0, picture.end_s)
        shared[-1].set_xlabel("seconds since the run's start")
        figure.align_ylabels([closeup, *shared])
        FigureCanvasAgg(figure).print_png(path, metadata={"Software": None}, pil_kwargs={"optimize": True})


class _Picture:
    """The panels of one outcome."""

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._channels = {one.channel: one for one in outcome.comparisons}
        ends = [moment.elapsed_s for moment in outcome.moments[-1:]]
        ends += [self._times(one.emitted.times)[-1] for one in outcome.comparisons[:1] if one.emitted.times]
        self.end_s = max(ends, default=1.0)

    def headline(self, figure: Any) -> None:
        """Draw the title, and how the demo ended."""
        outcome = self._outcome
        figure.text(_LEFT, 0.982, "A growth and what arrived of it", fontsize=17, fontweight="bold", va="top")
        verdict = (
            f"All {_number(outcome.points)} points of {len(outcome.comparisons)} channels arrived as measured."
            if outcome.equal
            else "Not everything arrived as measured."
        )
        colour = _GREEN[1] if outcome.equal else _RED[1]
        figure.text(_LEFT, 0.949, verdict, fontsize=10.5, va="top", color=colour)
        pale, dark = _BLUE
        figure.legend(
            [Line2D([], [], color=pale, linewidth=4), Line2D([], [], color=dark, linewidth=0.9)],
            ["measured by the plan", "read back through the API"],
            loc="upper right", bbox_to_anchor=(_RIGHT + 0.008, 0.985), frameon=False, labelcolor=_GREY,
        )  # fmt: skip

    def closeup(self, axes: Any) -> None:
        """Draw RHEED while the first layer grows, point by point."""
        begin, end = self._first_layer()
        self._series(axes, "rheed_specular", _BLUE, "RHEED specular", width=4.0, marks=True)
        axes.set_xlim(begin, end)
        axes.set_ylabel("a.u.")
        axes.margins(y=0.1)
        self._title(axes, "RHEED while the first layer begins: one oscillation per monolayer, one dot per point")

    def rheed(self, axes: Any) -> None:
        """Draw RHEED of the whole run."""
        self._series(axes, "rheed_specular", _BLUE, "RHEED\nspecular", width=3.0)
        axes.set_ylabel("a.u.")
        self._title(axes, "The whole run")

    def temperatures(self, axes: Any) -> None:
        """Draw the temperatures of cells and substrate."""
        self._series(axes, "al_cell_temperature", _GREEN, "Al cell")
        self._series(axes, "ga_cell_temperature", _BLUE, "Ga cell")
        self._series(axes, "substrate_thermocouple", _RED, "substrate\nthermocouple", up=9)
        self._series(axes, "substrate_pyrometer", _GOLD, "substrate\npyrometer", up=-9)
        axes.set_ylabel("°C")

    def shutters(self, axes: Any) -> None:
        """Draw the shutters, open or closed, one lane each."""
        lanes = (
            ("as_cell_shutter", _VIOLET, "As"),
            ("al_cell_shutter", _GREEN, "Al"),
            ("ga_cell_shutter", _BLUE, "Ga"),
        )
        for lane, (name, (pale, dark), _label) in enumerate(lanes):
            one = self._channels.get(name)
            if one is None:
                continue
            low = lane + 0.12
            measured = [low + 0.76 * (value or 0.0) for value in one.emitted.values]
            axes.fill_between(self._times(one.emitted.times), low, measured, step="post", color=pale, linewidth=0)
            arrived = [low + 0.76 * (value or 0.0) for value in one.arrived.values]
            axes.step(self._times(one.arrived.times), arrived, where="post", color=dark, linewidth=0.9)
        axes.set_ylim(0, len(lanes))
        axes.set_yticks([lane + 0.5 for lane in range(len(lanes))], [f"{label} shutter" for _, _, label in lanes])
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0, labelsize=8)
        axes.yaxis.tick_right()
        axes.spines["left"].set_visible(False)

    def thickness(self, axes: Any) -> None:
        """Draw the film's thickness."""
        self._series(axes, "film_thickness", _VIOLET, "film\nthickness", width=4.0)
        axes.set_ylabel("nm")
        axes.set_ylim(bottom=0)

    def delivery(self, axes: Any) -> None:
        """Draw points seen and points confirmed. Those in between wait in the spool."""
        moments = self._outcome.moments
        times = [moment.elapsed_s for moment in moments]
        seen = [moment.seen for moment in moments]
        confirmed = [moment.confirmed for moment in moments]
        axes.fill_between(times, confirmed, seen, color=_GOLD[0], alpha=0.75, linewidth=0)
        axes.plot(times, seen, color=_BLUE[1], linewidth=1.3)
        axes.plot(times, confirmed, color=_GREEN[1], linewidth=1.3)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("points")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _number(round(value))))
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        if moments:
            self._label(axes, seen[-1], "seen", _BLUE[1], up=5)
            self._label(axes, confirmed[-1], "confirmed", _GREEN[1], up=-6)
            worst = max(moments, key=lambda moment: moment.waiting)
            axes.annotate(
                f"up to {_number(worst.waiting)} waiting", (worst.elapsed_s, worst.confirmed), (12, 2),
                textcoords="offset points", va="bottom", fontsize=8.5, color=_GOLD[1],
            )  # fmt: skip

    def outage(self, axes: Any, *, caption: bool) -> None:
        """Mark when the server could not be reached."""
        if self._outcome.outage is None:
            return
        begin, end = self._outcome.outage
        axes.axvspan(begin, end, color=_AWAY, linewidth=0, zorder=0)
        if caption:
            axes.text(
                (begin + end) / 2, 1.03, "server unreachable", transform=axes.get_xaxis_transform(),
                ha="center", va="bottom", fontsize=8.5, color=_GREY,
            )  # fmt: skip

    def _series(
        self,
        axes: Any,
        name: str,
        colours: tuple[str, str],
        label: str,
        *,
        width: float = 3.5,
        marks: bool = False,
        up: float = 0.0,
    ) -> None:
        one: Comparison | None = self._channels.get(name)
        if one is None:
            return
        pale, dark = colours
        axes.plot(self._times(one.emitted.times), one.emitted.values, color=pale, linewidth=width)
        style = {"marker": "o", "markersize": 2.6, "linewidth": 0} if marks else {"linewidth": 0.7}
        axes.plot(self._times(one.arrived.times), one.arrived.values, color=dark, **style)
        if one.emitted.values and not marks:
            self._label(axes, one.emitted.values[-1], label, dark, up=up)

    def _label(self, axes: Any, height: float | None, text: str, colour: str, *, up: float = 0.0) -> None:
        """Write a name at the right end of its line, instead of a legend."""
        axes.annotate(
            text, (1.0, height), (6, up), xycoords=("axes fraction", "data"), textcoords="offset points",
            va="center", fontsize=8.5, color=colour, annotation_clip=False,
        )  # fmt: skip

    def _title(self, axes: Any, text: str) -> None:
        axes.set_title(text, loc="left", fontsize=9.5, color=_INK, pad=6)

    def _times(self, times: list[float | None]) -> list[float]:
        return [(time or self._outcome.started) - self._outcome.started for time in times]

    def _first_layer(self) -> tuple[float, float]:
        """Return a second and a half around the moment at which a group III shutter first opened."""
        opened = [
            time
            for name in ("ga_cell_shutter", "al_cell_shutter")
            if (one := self._channels.get(name)) is not None
            for time, value in zip(self._times(one.emitted.times), one.emitted.values, strict=True)
            if value
        ]
        begin = max(0.0, min(opened, default=0.0) - 0.15)
        return begin, begin + 1.5


def _number(count: int) -> str:
    """Return a count with its thousands set apart."""
    return f"{count:,}".replace(",", "\N{NO-BREAK SPACE}")
