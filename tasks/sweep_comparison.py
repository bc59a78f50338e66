"""Students of several depths side by side: one table for people, the same numbers on the sweep's MLflow run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from slimtts.results import EvaluationReport, PrunePlan, Release
from slimtts.storage import atomic_path
from slimtts.workspace import Workspace
from tasks.stage_numbers import evaluation_numbers
from tasks.stages import mlflow_is_away
from tasks.tracking import NOTE, TrackedRun

TABLE = "comparison.md"
COMPARED = ("wer_corpus", "similarity", "mos", "no_end_rate")
FAILED = "failed"
COLUMNS = ("layers", "verdict", "parameters, %", "WER, %", "WER minus teacher's, points", "LM speed-up", "speed-up")


@task(cache_policy=NO_CACHE, retries=3, retry_delay_seconds=[30, 120, 300], retry_condition_fn=mlflow_is_away)
def compare_depths(sweep: TrackedRun, finished: Mapping[int, Path], failed: Sequence[int]) -> None:
    """Shows the students, by depth, in Prefect and on the sweep's run; a depth that failed has a row that says so."""
    from mlflow.entities import Metric, RunTag

    rows = [_row(Workspace(finished[depth])) if depth in finished else _failed(depth) for depth in (*finished, *failed)]
    table = sweep.workspace / TABLE
    with atomic_path(table) as temporary:
        temporary.write_text(as_markdown(rows))
    now_ms = int(time.time() * 1000)
    metrics = [
        Metric(f"keep_{depth:02d}.{key}", value, now_ms, 0)
        for depth, root in finished.items()
        for key, value in _compared(Workspace(root)).items()
    ]
    sweep.client.log_batch(sweep.run_id, metrics=metrics, tags=[RunTag(NOTE, table.read_text())])
    sweep.client.log_artifact(sweep.run_id, str(table))
    create_table_artifact([dict(row) for row in rows], "depths", f"Students of {sweep.workspace.name}")


def as_markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """The rows as a table, in the order of COLUMNS."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *([row[column] for column in COLUMNS] for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _row(workspace: Workspace) -> dict[str, str]:
    report = EvaluationReport.read(workspace.evaluation / "evaluation.json")
    plan = PrunePlan.read(workspace.pruned / "plan.json")
    student, gap, numbers = report.systems["student"], report.gap("student", "teacher"), evaluation_numbers(report)
    wer, points = student.wer_corpus, gap.wer_points
    cells = (
        f"{len(plan.retained)} of {plan.num_layers}",
        Release.read(workspace.release / "release.json").verdict.decision,
        f"{100 * plan.student_parameters / plan.teacher_parameters:.0f}",
        f"{100 * wer.value:.1f} [{100 * wer.low:.1f}, {100 * wer.high:.1f}]",
        f"{points.value:+.2f} [{points.low:+.2f}, {points.high:+.2f}]",
        f"{numbers['speedup.student.lm']:.2f}",
        f"{numbers['speedup.student.end_to_end']:.2f}",
    )
    return dict(zip(COLUMNS, cells, strict=True))


def _failed(depth: int) -> dict[str, str]:
    return dict(zip(COLUMNS, (str(depth), FAILED, *[""] * (len(COLUMNS) - 2)), strict=True))


def _compared(workspace: Workspace) -> dict[str, float]:
    found = evaluation_numbers(EvaluationReport.read(workspace.evaluation / "evaluation.json"))
    keys = [f"student.{name}" for name in COMPARED] + ["gap.student_teacher.wer_points", "speedup.student.lm"]
    return {key: found[key] for key in keys if key in found}
