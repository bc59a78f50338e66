"""Training curves in MLflow while the training runs: follows JSON lines, never logs a step twice."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from slimtts.curves import CURVES, read_points
from slimtts.workspace import Workspace
from tasks.repetition import repeating
from tasks.tracking import TrackedRun

EVERY_S = 5.0
BATCH = 1000  # MLflow takes at most this many metrics in a call
Logger = logging.Logger | logging.LoggerAdapter[Any]


@contextmanager
def following_curves(run: TrackedRun, logger: Logger, every_s: float = EVERY_S) -> Iterator[None]:
    """Logs new curve points every few seconds while the block runs, and the rest when it ends well.

    Where MLflow is away the training goes on, and `catch_up` brings what is missing. While the block runs only files
    that have changed since count: the folder of checkpoints may still hold the curves of a training with other
    parameters, until the stage has cleared it.
    """
    from mlflow.exceptions import MlflowException

    curves, workspace = CurveLog(run), Workspace(run.workspace)
    before = {path: _changed_ns(path) for path in curve_files(workspace)}

    def follow() -> None:
        try:
            curves.sync([path for path in curve_files(workspace) if _changed_ns(path) != before.get(path)])
        except MlflowException as error:  # the training goes on; the next round tries again
            logger.warning("curves are late: %s", str(error).splitlines()[0])

    with repeating(follow, every_s):
        yield
    try:
        curves.sync(curve_files(workspace))
    except MlflowException as error:
        logger.warning("curves wait for MLflow: %s", str(error).splitlines()[0])


def catch_up(run: TrackedRun) -> int:
    """Logs the points that MLflow has not yet; returns how many."""
    return CurveLog(run).sync(curve_files(Workspace(run.workspace)))


class CurveLog:
    """Asks MLflow for the last step of every curve, so that a resumed run goes on after it."""

    def __init__(self, run: TrackedRun) -> None:
        self._run, self._client = run, run.client
        self._last_step: dict[str, int] = {}

    def sync(self, files: Sequence[Path]) -> int:
        """Logs the points after the last logged step of each curve; returns how many."""
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        fresh = []
        for curve, step, value in curve_points(files):
            if step > self._logged_until(curve):
                fresh.append(Metric(curve, value, now_ms, step))
                self._last_step[curve] = step
        try:
            for start in range(0, len(fresh), BATCH):
                self._client.log_batch(self._run.run_id, metrics=fresh[start : start + BATCH])
        except BaseException:
            self._last_step.clear()  # asked again from MLflow, which knows what arrived
            raise
        return len(fresh)

    def _logged_until(self, curve: str) -> int:
        if curve not in self._last_step:
            history = self._client.get_metric_history(self._run.run_id, curve)
            self._last_step[curve] = max((metric.step for metric in history), default=-1)
        return self._last_step[curve]


def curve_files(workspace: Workspace) -> list[Path]:
    """Curves of a finished training, then those of one under way."""
    return [*sorted(workspace.student.glob("*.jsonl")), *curves_under_way(workspace)]


def curves_under_way(workspace: Workspace) -> list[Path]:
    """Curves beside the checkpoints, which lie in a folder for each training and its parameters."""
    return sorted(workspace.checkpoints.rglob(CURVES))


def curve_points(files: Sequence[Path]) -> Iterator[tuple[str, int, float]]:
    """(`student/loss`, step, value) of all lines such as `{"name": "student", "step": 3, "loss": 1.5}`.

    A damaged line is left out; a last line without its end is still being written and waits for the next reading.
    """
    for path in files:
        for point in read_points(path)[0]:
            name, step = point.pop("name"), point.pop("step")
            for term, value in point.items():
                if isinstance(value, int | float):
                    yield f"{name}/{term}", step, float(value)


def _changed_ns(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0
