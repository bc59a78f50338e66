"""Where in an utterance the student stops agreeing with its teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slimtts.plots.style import colour_of, label, new_figure
from slimtts.results import AgreementReport, Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REACHED_BY = 0.1  # of the utterances: means over fewer are noise


def agreement_figure(report: AgreementReport) -> Figure:
    """Left: how often both hold the same code most likely. Right: KL. Over positions, with intervals as bands."""
    figure, (top1, kl) = new_figure(panels=2)
    for name, system in report.systems.items():
        bins = [b for b in system.bins if b.utterances >= REACHED_BY * report.utterances]
        places = [(b.first + b.last) / 2 for b in bins]
        colour = colour_of(name, report.systems)
        mean = f"{name}: {100 * system.top1.value:.0f} %"
        _draw(top1, places, [b.top1 for b in bins], 100.0, colour, mean)
        _draw(kl, places, [b.kl_nats for b in bins], 1.0, colour, f"{name}: {system.kl_nats.value:.2f}")
    where = "position in the utterance, codes"
    label(top1, where, "same most likely code, %", f"Agreement with the teacher, {report.utterances} utterances")
    label(kl, where, "KL from the teacher, nats a code", "given the recorded codes before")
    top1.set_ylim(0, 100)
    kl.set_ylim(bottom=0)
    for axes in (top1, kl):
        axes.legend(frameon=False)
    return figure


def _draw(axes: Axes, places: list[float], intervals: list[Interval], scale: float, colour: str, name: str) -> None:
    axes.plot(places, [scale * i.value for i in intervals], color=colour, marker="o", markersize=3, label=name)
    axes.fill_between(
        places, [scale * i.low for i in intervals], [scale * i.high for i in intervals], color=colour, alpha=0.15,
        linewidth=0,
    )  # fmt: skip
