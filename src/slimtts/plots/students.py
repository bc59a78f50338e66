"""Students of many runs in one picture: errors against depth, and errors against what speaking costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slimtts.comparison.ranking import Contender
from slimtts.plots.published import SPADE, SPADE_STUDENTS
from slimtts.plots.style import BLUE, GREY, OTHERS, RED, label, many_sizes, new_figure, whiskers
from slimtts.results import Interval, SystemResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDE_POINTS = 20.0  # gaps beyond it would flatten the others on a linear scale
APART_PERCENT = 3.0
MARKERS = "sD^v"
TEACHER = "teacher"


def depth_figure(students: Sequence[Contender]) -> Figure:
    """WER minus the own teacher's against the share of layers that stayed; published students beside ours."""
    figure, (axes,) = new_figure(width_in=8.0)
    axes.axhline(0, color=GREY, linewidth=0.8)
    depths = side_by_side([100 * s.layers / s.teacher_layers for s in students])
    gaps = [s.wer_gap_points for s in students]
    axes.errorbar(
        depths, [g.value for g in gaps], yerr=whiskers(gaps), fmt="o", color=BLUE, capsize=3,
        label="ours, 95 % interval paired by sentence",
    )  # fmt: skip
    for student, depth, gap in zip(students, depths, gaps, strict=True):
        axes.annotate(
            f"{student.name}\n{student.layers} of {student.teacher_layers}", (depth, gap.value), xytext=(6, 4),
            textcoords="offset points", fontsize="x-small",
        )  # fmt: skip
    for index, teacher in enumerate(dict.fromkeys(s.teacher for s in SPADE_STUDENTS)):
        theirs = [s for s in SPADE_STUDENTS if s.teacher == teacher]
        axes.plot(
            [s.depth_percent for s in theirs], [s.wer_points for s in theirs], linestyle="", marker=MARKERS[index],
            color=OTHERS[index], label=f"{teacher} ({SPADE})",
        )  # fmt: skip
        for s in theirs:
            axes.annotate(
                f"{s.layers} of {s.teacher_layers}", (s.depth_percent, s.wer_points), xytext=(-6, 4), ha="right",
                textcoords="offset points", fontsize="x-small",
            )  # fmt: skip
    if max((g.high for g in gaps), default=0.0) > WIDE_POINTS:
        many_sizes(axes)
    shares = [*depths, *(s.depth_percent for s in SPADE_STUDENTS)]
    axes.set_xlim(min(shares) - 10, max(shares) + 15)
    axes.margins(y=0.15)
    label(
        axes, "layers that stayed, % of the teacher's", "WER minus the own teacher's, points",
        "Errors against depth (other teachers, data and recognisers: compare only the gaps)",
    )  # fmt: skip
    axes.legend(frameon=False, fontsize="small")
    return figure


def side_by_side(depths: Sequence[float]) -> list[float]:
    """The depths, moved apart where several students have the same, around the true one."""
    moved = []
    for index, depth in enumerate(depths):
        moved.append(depth + APART_PERCENT * (depths[:index].count(depth) - (depths.count(depth) - 1) / 2))
    return moved


@dataclass(frozen=True)
class CostPoint:
    """A system's errors, in percent, and its price of speaking.

    Its time is a share of the teacher's in the same run: machines are busier at one time than at another.
    """

    name: str
    wer: Interval
    lm_rtf_percent: float
    peak_memory_mb: float
    weight_mb: float | None


def cost_points(students: Sequence[Contender], teacher: SystemResult) -> list[CostPoint]:
    """All students, then the teacher."""
    points = [CostPoint(s.name, _percent(s.wer), 100 / s.lm_speedup, s.peak_memory_mb, s.weight_mb) for s in students]
    wer, peak_mb = _percent(teacher.wer_corpus), teacher.speed.peak_memory_mb
    return [*points, CostPoint(TEACHER, wer, 100.0, peak_mb, teacher.weight_mb)]


def _percent(wer: Interval) -> Interval:
    return Interval(value=100 * wer.value, low=100 * wer.low, high=100 * wer.high)


def pareto_front(costs: Sequence[float], errors: Sequence[float]) -> list[int]:
    """Indices, by cost, of the points that no other beats: none costs at most as much with fewer errors.

    Of points that are equal in both the first counts.
    """
    front: list[int] = []
    for index in sorted(range(len(costs)), key=lambda i: (costs[i], errors[i], i)):
        if not front or errors[index] < errors[front[-1]]:
            front.append(index)
    return front


def cost_figure(points: Sequence[CostPoint]) -> Figure:
    """WER against LM-RTF, as a share of the teacher's, and against memory; a line joins what no other system beats.

    Memory is that of the weights where every system tells it: on a CPU the whole process is mostly libraries.
    """
    figure, (rtf, memory) = new_figure(panels=2)
    weights = [p.weight_mb for p in points if p.weight_mb is not None]
    is_told = len(weights) == len(points)
    _draw_costs(rtf, points, [p.lm_rtf_percent for p in points])
    _draw_costs(memory, points, weights if is_told else [p.peak_memory_mb for p in points])
    label(rtf, "LM-RTF, % of the teacher's in the same run", "WER, %", "Errors against time, batch 1")
    label(memory, f"{'weights' if is_told else 'peak of the process'}, MB", "WER, %", "Errors against memory")
    return figure


def _draw_costs(axes: Axes, points: Sequence[CostPoint], costs: Sequence[float]) -> None:
    wers = [p.wer for p in points]
    front = pareto_front(costs, [wer.value for wer in wers])
    axes.step(
        [costs[i] for i in front], [wers[i].value for i in front], where="post", color=RED, linewidth=1,
        label="Pareto front",
    )  # fmt: skip
    for point, cost in zip(points, costs, strict=True):
        colour = GREY if point.name == TEACHER else BLUE
        axes.errorbar([cost], [point.wer.value], yerr=whiskers([point.wer]), fmt="o", color=colour, capsize=3)
        axes.annotate(
            point.name, (cost, point.wer.value), xytext=(6, 4), textcoords="offset points", fontsize="x-small"
        )
    axes.set_xlim(0, 1.25 * max(costs))
    axes.margins(y=0.15)
    if max(wer.high for wer in wers) > 20 * max(1.0, min(wer.value for wer in wers)):
        many_sizes(axes)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
