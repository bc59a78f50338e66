"""How every picture of the project looks: one palette, readable at the width of a README.

Figures are matplotlib objects without pyplot, whose state is global and not made for threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from slimtts.results import Interval
from slimtts.storage import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Paul Tol's bright scheme, told apart by colour-blind eyes and in grey: https://personal.sron.nl/~pault/
GREY, BLUE, RED, YELLOW, GREEN, PURPLE, CYAN = "#555555 #4477aa #ee6677 #ccbb44 #228833 #aa3377 #66ccee".split()
SYSTEM_COLOURS = {"teacher": GREY, "pruned": RED, "student": BLUE, "control": YELLOW}
OTHERS = (GREEN, PURPLE, CYAN)
LINEAR_UNTIL = 2.0
PANEL_WIDTH_IN, PANEL_HEIGHT_IN, DPI = 4.6, 3.4, 130


def colour_of(system: str, systems: Iterable[str] = ()) -> str:
    """The system's own colour everywhere; variants, which have none, take turns."""
    strangers = [name for name in systems if name not in SYSTEM_COLOURS] or [system]
    return SYSTEM_COLOURS.get(system) or OTHERS[strangers.index(system) % len(OTHERS)]


def new_figure(panels: int = 1, width_in: float | None = None) -> tuple[Figure, list[Axes]]:
    """A figure with so many axes side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in or PANEL_WIDTH_IN * max(1.6, panels), PANEL_HEIGHT_IN), layout="constrained")
    made = figure.subplots(1, panels, squeeze=False)[0]
    for axes in made:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
    return figure, list(made)


def label(axes: Axes, x: str, y: str, title: str = "") -> None:
    """Axes with their units, and a title on the left."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, loc="left", fontsize="medium")


def many_sizes(axes: Axes) -> None:
    """A vertical scale for small and large percentages alike: linear up to 2, logarithmic beyond, in plain numbers."""
    axes.set_yscale("symlog", linthresh=LINEAR_UNTIL, subs=[2, 5])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")


def whiskers(intervals: Sequence[Interval], scale: float = 1.0) -> list[list[float]]:
    """[below, above] as error bars take them; a bound on the wrong side of its value gives 0."""
    below = [scale * max(0.0, i.value - i.low) for i in intervals]
    above = [scale * max(0.0, i.high - i.value) for i in intervals]
    return [below, above]


def save(figure: Figure, path: Path) -> Path:
    """Writes a PNG, complete or not at all; equal figures give equal bytes."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None})
    return path
