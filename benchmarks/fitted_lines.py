"""What was measured at several sizes, as a line through it: seconds = a + b x, a table and a picture."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass
class Series:
    """One stage: what x is, and (x, seconds) at every size; fitted as seconds = a + b x."""

    stage: str
    x: str
    points: list[tuple[float, float]] = field(default_factory=list)

    def fit(self) -> tuple[float, float, float]:
        """a, b, and the root mean square of the residuals / mean seconds."""
        x, seconds = np.array(self.points).T
        columns = np.stack([np.ones_like(x), x], 1)
        (a, b), *_ = np.linalg.lstsq(columns, seconds, rcond=None)
        return float(a), float(b), float(np.sqrt(np.mean((columns @ (a, b) - seconds) ** 2)) / seconds.mean())


def table(made: list[Series]) -> str:
    """Markdown."""
    lines = ["| stage | x | formula, seconds | error | measured at |", "|---|---|---|---|---|"]
    for series in made:
        a, b, error = series.fit()
        places = ", ".join(f"{x:,.0f}: {seconds:.2f}" for x, seconds in series.points)
        lines.append(f"| {series.stage} | {series.x} | {a:.2f} + {b:.2e} x | {100 * error:.0f} % | {places} |")
    return "\n".join(lines)


def draw(made: list[Series], title: str, out: Path) -> None:
    """A panel a stage: what was measured, and the line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = 3
    rows = -(-len(made) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(10, 2.5 * rows), layout="constrained", squeeze=False)
    for panel, series in zip(axes.flat, made, strict=False):
        x, seconds = np.array(series.points).T
        a, b, _ = series.fit()
        line = np.array([0, x.max()])
        panel.plot(line, a + b * line, color="#cc6677", linewidth=1)
        panel.plot(x, seconds, "o", color="#4477aa", markersize=4)
        panel.set_title(series.stage, fontsize=9)
        panel.set_xlabel(series.x, fontsize=8)
        panel.set_ylabel("seconds", fontsize=8)
        panel.set_ylim(bottom=0)
        panel.tick_params(labelsize=7)
        panel.ticklabel_format(axis="x", style="sci", scilimits=(0, 4))
    for panel in axes.flat[len(made) :]:
        panel.axis("off")
    figure.suptitle(title, fontsize=9)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=100)
    pyplot.close(figure)
