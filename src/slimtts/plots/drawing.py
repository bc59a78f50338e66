"""Which pictures a run has: those of each stage, and those of several runs together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from slimtts.comparison.ranking import contenders_of
from slimtts.comparison.runs import FinishedRun, read_sentences
from slimtts.plots.agreement import agreement_figure
from slimtts.plots.durations import durations_figure
from slimtts.plots.importance import importance_figure
from slimtts.plots.students import cost_figure, cost_points, depth_figure
from slimtts.plots.style import save
from slimtts.plots.training import read_curves, training_figure
from slimtts.results import AgreementReport, LayerScores, PrunePlan
from slimtts.workspace import STAGES, Workspace

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_stage(stage: str, workspace: Workspace, out: Path) -> list[Path]:
    """Writes the pictures of a finished stage into the folder `out`; results that a stage did not leave are not drawn.

    Raises:
        InvalidInputError: a result is damaged.
    """
    figures = _FIGURES[stage](workspace) if stage in _FIGURES else {}
    return [save(figure, out / f"{name}.png") for name, figure in figures.items()]


def draw_run(workspace: Workspace, out: Path) -> list[Path]:
    """Every picture of a run, of the stages that are finished."""
    return [path for stage in STAGES for path in draw_stage(stage, workspace, out)]


def draw_students(runs: Sequence[FinishedRun], out: Path) -> list[Path]:
    """What compares the students of comparable runs.

    Raises:
        InvalidInputError: no runs, or runs whose numbers cannot be compared.
    """
    students = contenders_of(runs)
    return [
        save(depth_figure(students), out / "wer_against_depth.png"),
        save(cost_figure(cost_points(students, runs[0].report.systems["teacher"])), out / "wer_against_cost.png"),
    ]


def _pruning(workspace: Workspace) -> dict[str, Figure]:
    plan, scores = workspace.pruned / "plan.json", workspace.scores / "scores.json"
    if not (plan.is_file() and scores.is_file()):
        return {}
    return {"importance": importance_figure(LayerScores.read(scores), PrunePlan.read(plan).dropped)}


def _training(workspace: Workspace) -> dict[str, Figure]:
    files = {name: workspace.student / f"{name}.jsonl" for name in ("student", "control")}
    curves = {name: read_curves(path) for name, path in files.items() if path.is_file() and path.stat().st_size}
    return {"training": training_figure(curves)} if "student" in curves else {}


def _evaluation(workspace: Workspace) -> dict[str, Figure]:
    sentences, agreement = workspace.evaluation / "utterances.jsonl", workspace.evaluation / "agreement.json"
    figures = {}
    said = read_sentences(sentences) if sentences.is_file() else {}
    if {"teacher", "student"} <= said.keys():
        figures["durations"] = durations_figure(said)
    if agreement.is_file():
        figures["agreement"] = agreement_figure(AgreementReport.read(agreement))
    return figures


_FIGURES: dict[str, Callable[[Workspace], dict[str, Figure]]] = {
    "prune_layers": _pruning,
    "distill_student": _training,
    "evaluate_student": _evaluation,
}
