"""How a healing went: loss and each of its terms over the steps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from slimtts.errors import InvalidInputError
from slimtts.plots.style import BLUE, GREEN, GREY, OTHERS, RED, YELLOW, colour_of, label, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curves = Mapping[str, Sequence[float]]  # `step`, `loss`, and the loss' terms
NOT_TERMS = ("name", "step", "loss", "learning_rate", "gradient_norm")
TERM_COLOURS = {"cross_entropy": GREY, "skew_kl": BLUE, "latent": GREEN, "attention": RED, "embedding": YELLOW}
SMOOTHED_SHARE = 0.05  # of the steps that one point of the smooth line averages


def read_curves(path: Path) -> Curves:
    """Columns of the JSON lines that a training leaves.

    Raises:
        InvalidInputError: a line is no such row.
    """
    columns: dict[str, list[float]] = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        row = _numbers(line)
        missing = {"step", "loss", *columns} - row.keys()
        if missing:
            raise InvalidInputError(
                f"{path}, line {number}", f"no {', '.join(sorted(missing))}", "a row with step, loss and its terms",
                "train again",
            )  # fmt: skip
        for key, value in row.items():
            columns.setdefault(key, []).append(value)
    return columns


def _numbers(line: str) -> dict[str, float]:
    """What a row says in numbers; nothing when it is no row."""
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return {k: float(v) for k, v in row.items() if isinstance(v, int | float)} if isinstance(row, dict) else {}


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Mean of each value and up to `window - 1` before it."""
    return [sum(part) / len(part) for part in (values[max(0, i - window + 1) : i + 1] for i in range(len(values)))]


def training_figure(curves: Mapping[str, Curves]) -> Figure:
    """Left: loss of each training, `student` and perhaps `control`. Right: the student's terms before weighting."""
    figure, (losses, terms) = new_figure(panels=2)
    for name, columns in curves.items():
        _draw(losses, columns["step"], columns["loss"], colour_of(name, curves), name)
    student = curves["student"]
    strangers = [key for key in student if key not in (*NOT_TERMS, *TERM_COLOURS)]
    for key, values in student.items():
        if key not in NOT_TERMS:
            colour = TERM_COLOURS.get(key) or OTHERS[strangers.index(key) % len(OTHERS)]
            _draw(terms, student["step"], values, colour, key)
    label(losses, "step", "loss", "Loss of each training")
    label(terms, "step", "term before its weight\n(cross-entropy and KL: nats a code)", "The student's loss by term")
    terms.set_yscale("log")
    for axes in (losses, terms):
        if axes.lines:
            axes.legend(frameon=False)
    return figure


def _draw(axes: Axes, steps: Sequence[float], values: Sequence[float], colour: str, name: str) -> None:
    """Every step faintly, and the running mean that people read."""
    axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
    axes.plot(steps, smooth(values, max(1, round(SMOOTHED_SHARE * len(values)))), color=colour, label=name)
