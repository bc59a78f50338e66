"""Which layers matter: one bar a layer, with its interval where there is one."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from slimtts.plots.style import BLUE, GREY, RED, label, new_figure, save, whiskers
from slimtts.results import LayerScores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AXIS_LABELS = {
    "wli": "WER without the layer, % (capped at 100)",
    "block_influence": "1 - mean cosine of input and output",
    "search": "KL from the teacher without the layer,\nnats a code",
}
PERCENT = {"wli": 100.0}
WIDE_SPREAD = 30.0  # largest over smallest: beyond it, bars of a linear axis hide each other


def importance_figure(scores: LayerScores, dropped: Collection[int] = ()) -> Figure:
    """A bar for each layer; those of `dropped` in another colour."""
    figure, (axes,) = new_figure(width_in=8.0)
    scale = PERCENT.get(scores.method, 1.0)
    values = [scale * s.importance for s in scores.layers]
    measured = [s.wer_capped for s in scores.layers if s.wer_capped]
    spans = whiskers(measured, scale) if len(measured) == len(values) else None
    for name, colour in (("kept", BLUE), ("dropped", RED)):
        rows = [i for i, s in enumerate(scores.layers) if (s.layer in dropped) == (name == "dropped")]
        if rows:
            axes.bar(
                [scores.layers[i].layer for i in rows], [values[i] for i in rows], color=colour, capsize=3,
                yerr=[[side[i] for i in rows] for side in spans] if spans else None,
                label=name if dropped else None,
            )  # fmt: skip
    if scores.reference_wer is not None:
        axes.axhline(scale * scores.reference_wer.value, color=GREY, linestyle="--", label="full model")
    if min(values) > 0 and max(values) > WIDE_SPREAD * min(values):
        axes.set_yscale("log")
    axes.set_xticks([s.layer for s in scores.layers])
    label(
        axes, "layer", AXIS_LABELS[scores.method],
        f"Importance of each layer by {scores.method}, {scores.utterances} utterances",
    )  # fmt: skip
    if dropped or scores.reference_wer is not None:
        axes.legend(frameon=False)
    return figure


def plot_scores(scores: LayerScores, out: Path) -> None:
    """Writes a PNG of the scores alone."""
    save(importance_figure(scores), out)
