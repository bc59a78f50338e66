"""What was measured at several sizes, and the formula through it: seconds = a + b x + c y, a table and a picture."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass
class Series:
    """One stage: what drives it, and its seconds at every size of that, fitted by least squares."""

    stage: str
    drivers: tuple[str, ...]
    points: list[tuple[tuple[float, ...], float]] = field(default_factory=list)

    @classmethod
    def of(cls, row: dict[str, Any]) -> Series:
        """From its fields as JSON."""
        points = [(tuple(sizes), seconds) for sizes, seconds in row["points"]]
        return cls(row["stage"], tuple(row["drivers"]), points)

    def add(self, seconds: float, *sizes: float) -> None:
        """One measurement, with a size of each driver."""
        self.points.append((sizes, seconds))

    @property
    def seconds(self) -> np.ndarray:
        """Measured."""
        return np.array([seconds for _, seconds in self.points])

    def _columns(self) -> np.ndarray:
        return np.array([(1.0, *sizes) for sizes, _ in self.points])

    def fit(self) -> tuple[list[float], float]:
        """Constant and seconds a unit of each driver; the root mean square of the residuals / mean seconds."""
        columns = self._columns()
        scale = np.abs(columns).max(0)  # sizes of millions beside ones
        found, *_ = np.linalg.lstsq(columns / scale, self.seconds, rcond=None)
        coefficients = found / scale
        residuals = columns @ coefficients - self.seconds
        return coefficients.tolist(), float(np.sqrt(np.mean(residuals**2)) / self.seconds.mean())

    def fitted(self) -> np.ndarray:
        """Seconds that the formula gives at every size."""
        return self._columns() @ np.array(self.fit()[0])


def formula(series: Series) -> str:
    """As a + b x driver + .."""
    (constant, *slopes), _ = series.fit()
    terms = [f"{slope:+.2e} x {driver}" for slope, driver in zip(slopes, series.drivers, strict=True)]
    return " ".join([f"{constant:.2f}", *terms]).replace("+", "+ ").replace("e+ ", "e+")


def table(made: list[Series]) -> str:
    """Markdown."""
    lines = ["| stage | seconds | error | sizes | from, s | to, s |", "|---|---|---|---|---|---|"]
    for series in made:
        seconds, error = series.seconds, series.fit()[1]
        lines.append(
            f"| {series.stage} | {formula(series)} | {100 * error:.0f} % | {len(seconds)} "
            f"| {seconds.min():.2f} | {seconds.max():.2f} |"
        )
    return "\n".join(lines)


def draw(made: list[Series], title: str, out: Path) -> None:
    """A panel a stage: the seconds of the formula, and those measured."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = 3
    rows = -(-len(made) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(10, 2.5 * rows), layout="constrained", squeeze=False)
    for panel, series in zip(axes.flat, made, strict=False):
        alone = len(series.drivers) == 1
        x = np.array([sizes[0] for sizes, _ in series.points]) if alone else series.fitted()
        order = np.argsort(x)
        panel.plot(x[order], series.fitted()[order], color="#cc6677", linewidth=1)
        panel.plot(x, series.seconds, "o", color="#4477aa", markersize=4)
        panel.set_title(series.stage, fontsize=9)
        panel.set_xlabel(series.drivers[0] if alone else "seconds by " + ", ".join(series.drivers), fontsize=7)
        panel.set_ylabel("seconds", fontsize=8)
        panel.set_ylim(bottom=0)
        panel.set_xlim(left=0)
        panel.tick_params(labelsize=7)
        panel.ticklabel_format(axis="x", style="sci", scilimits=(0, 4))
    for panel in axes.flat[len(made) :]:
        panel.axis("off")
    figure.suptitle(title, fontsize=9)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=100)
    pyplot.close(figure)
