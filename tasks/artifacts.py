"""What a run shows in Prefect's pages: layers, comparison, how far the distillation is, and where the rest lies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from prefect.artifacts import (
    create_link_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from slimtts.params import load_params
from slimtts.redaction import without_login
from slimtts.results import EvaluationReport, Interval, LayerScores, PrunePlan
from slimtts.workspace import Workspace
from tasks.live_curves import Logger, curve_points, curves_under_way
from tasks.repetition import repeating

if TYPE_CHECKING:
    from tasks.tracking import TrackedRun

PROGRESS_EVERY_S = 10.0
BROWSER_ADDRESS = "MLFLOW_UI_URL"  # of MLflow as a browser reaches it, where that is not MLFLOW_TRACKING_URI


def show_stage(run: TrackedRun, stage: str, logger: Logger) -> None:
    """The table of a finished stage, for those that have one."""
    name, workspace = run.workspace.name, Workspace(run.workspace)
    with _if_reachable(logger, f"the table of {stage}"):
        if stage == "prune_layers":
            create_table_artifact(layer_rows(workspace), "layers", f"Layers of {name}")
        if stage == "evaluate_student":
            rows = system_rows(EvaluationReport.read(workspace.evaluation / "evaluation.json"))
            create_table_artifact(rows, "comparison", f"Systems of {name}, with 95 % intervals")


def show_links(run: TrackedRun, logger: Logger) -> None:
    """Links to the run's page in MLflow and to its audio there; none without a server that has pages."""
    page = run_page(run)
    if page:
        with _if_reachable(logger, "the links"):
            create_link_artifact(page, "numbers, curves and files", "mlflow-run", f"MLflow of {run.workspace.name}")
            create_link_artifact(f"{page}/artifacts/audio", "hear it", "audio", f"Audio of {run.workspace.name}")


def show_listening_page(run: TrackedRun, artifact: str, logger: Logger) -> None:
    """A link to the page in MLflow that plays every system; none without a server that has pages."""
    page = run_page(run)
    if page:
        with _if_reachable(logger, "the link to the listening page"):
            create_link_artifact(f"{page}/artifacts/{artifact}", "listen and compare", "listening", run.workspace.name)


def run_page(run: TrackedRun) -> str | None:
    """Address of the run in MLflow; None when the store is a file."""
    address = without_login(os.environ.get(BROWSER_ADDRESS) or run.tracking_uri)
    if not address.startswith(("http://", "https://")):
        return None
    experiment = run.client.get_run(run.run_id).info.experiment_id
    return f"{address.rstrip('/')}/#/experiments/{experiment}/runs/{run.run_id}"


@contextmanager
def showing_progress(run: TrackedRun, logger: Logger, every_s: float = PROGRESS_EVERY_S) -> Iterator[None]:
    """A progress bar of the distillation while the block runs; a server that is away leaves it where it was."""
    workspace = Workspace(run.workspace)
    steps = total_steps(workspace)
    before = {path: path.stat().st_mtime_ns for path in curves_under_way(workspace)}
    bar: UUID | None = None
    with _if_reachable(logger, "the progress bar"):
        bar = create_progress_artifact(0.0, "distillation", f"Distillation of {run.workspace.name}: {steps} steps")
    shown = 0

    def follow() -> None:
        nonlocal shown
        done = finished_steps(workspace, before)
        if done != shown:
            shown = done
            draw(done)

    def draw(done: int) -> None:
        share = 100.0 * min(1.0, done / steps) if steps else 100.0
        with _if_reachable(logger, "the progress bar"):
            if bar:
                update_progress_artifact(bar, share, f"Distillation of {run.workspace.name}: {done} of {steps} steps")

    with repeating(follow, every_s):
        yield
    draw(steps)


def total_steps(workspace: Workspace) -> int:
    """Optimiser steps of all trainings of distill_student: the student, and the control if there is one."""
    distill = load_params(workspace.params).distill_student
    return distill.steps + (distill.steps_of_control if distill.control else 0)


def finished_steps(workspace: Workspace, before: dict[Path, int]) -> int:
    """Steps that the trainings under way have logged; files as old as in `before` are of a former training."""
    last: dict[str, int] = {}
    for path in curves_under_way(workspace):
        if path.stat().st_mtime_ns != before.get(path):
            last |= {curve.partition("/")[0]: step + 1 for curve, step, _ in curve_points([path])}
    return sum(last.values())


def layer_rows(workspace: Workspace) -> list[dict[str, object]]:
    """One row a layer: how much it matters, and whether it stayed."""
    scores = LayerScores.read(workspace.scores / "scores.json")
    kept = set(PrunePlan.read(workspace.pruned / "plan.json").retained)
    return [
        {
            "layer": score.layer,
            "fate": "kept" if score.layer in kept else "dropped",
            "importance": f"{score.importance:.4g}",
            "WER without it, %": _percent(score.wer_capped),
            "never ends without it, %": "" if score.no_end_rate is None else f"{100 * score.no_end_rate:.1f}",
        }
        for score in scores.layers
    ]


def system_rows(report: EvaluationReport) -> list[dict[str, object]]:
    """One row a system, as in table.md, for Prefect's pages."""
    return [
        {
            "system": name,
            "layers": system.num_layers,
            "parameters": system.parameters,
            "WER, %": _percent(system.wer_corpus),
            "similarity": _interval(system.similarity),
            "MOS": _interval(system.mos),
            "never ends, %": f"{100 * system.no_end_rate:.1f}",
            "LM RTF": f"{system.speed.lm_rtf:.3f}",
            "RTF": f"{system.speed.end_to_end_rtf:.3f}",
        }
        for name, system in report.systems.items()
    ]


@contextmanager
def _if_reachable(logger: Logger, what: str) -> Iterator[None]:
    """A page less is no reason to end a run: where Prefect's server is away, the log says so."""
    import httpx

    try:
        yield
    except httpx.HTTPError as error:
        logger.warning("%s is not shown: %s", what, str(error) or type(error).__name__)


def _interval(measured: Interval) -> str:
    return f"{measured.value:.3f} [{measured.low:.3f}, {measured.high:.3f}]"


def _percent(rate: Interval | None) -> str:
    return "" if rate is None else f"{100 * rate.value:.1f} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"
