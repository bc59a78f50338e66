"""One Prefect task a stage. DVC decides whether a stage is stale, so Prefect caches nothing."""

from __future__ import annotations

from typing import Any

from prefect import State, Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.logging import get_run_logger

from tasks.live_curves import following_curves
from tasks.locks import exclusive_lock
from tasks.stage_runner import StageError, run_stage
from tasks.tracking import TrackedRun, log_stage

HOUR_S = 3600.0


def worth_retrying(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """A killed or crashed stage is tried again (training resumes); bad input is not."""
    failure = state.result(raise_on_failure=False)
    return isinstance(failure, StageError) and failure.worth_retrying


def _bring_up_to_date(stage: str, run: TrackedRun, timeout_s: float, owns_device: bool = False) -> bool:
    """Runs the stage if it is stale and records its numbers. Of all runs, one at a time has the device."""
    logger = get_run_logger()
    if owns_device:
        lock = run.workspace.parent / ".device.lock"
        with exclusive_lock(lock, on_wait=lambda: logger.info("%s: waits for the run that has the device", stage)):
            ran = run_stage(stage, run.workspace, timeout_s, logger)
    else:
        ran = run_stage(stage, run.workspace, timeout_s, logger)
    log_stage(run, stage)
    return ran


@task(cache_policy=NO_CACHE, retries=1, retry_delay_seconds=5, retry_condition_fn=worth_retrying)
def subset_data(run: TrackedRun) -> bool:
    """Chooses the utterances that train, score and test. True when there was work, as in every stage."""
    return _bring_up_to_date("subset_data", run, timeout_s=2 * HOUR_S)


@task(cache_policy=NO_CACHE, retries=2, retry_delay_seconds=5, retry_condition_fn=worth_retrying)
def score_layers(run: TrackedRun) -> bool:
    """Measures how much each layer matters."""
    return _bring_up_to_date("score_layers", run, timeout_s=48 * HOUR_S, owns_device=True)


@task(cache_policy=NO_CACHE, retries=1, retry_delay_seconds=5, retry_condition_fn=worth_retrying)
def prune_layers(run: TrackedRun) -> bool:
    """Cuts the layers that matter least."""
    return _bring_up_to_date("prune_layers", run, timeout_s=HOUR_S)


@task(cache_policy=NO_CACHE, retries=3, retry_delay_seconds=5, retry_condition_fn=worth_retrying)
def distill_student(run: TrackedRun) -> bool:
    """Heals the student, with its curves in MLflow while it trains."""
    with following_curves(run, get_run_logger()):
        return _bring_up_to_date("distill_student", run, timeout_s=168 * HOUR_S, owns_device=True)


@task(cache_policy=NO_CACHE, retries=1, retry_delay_seconds=5, retry_condition_fn=worth_retrying)
def evaluate_student(run: TrackedRun) -> bool:
    """Measures all systems on sentences that nothing else has seen."""
    return _bring_up_to_date("evaluate_student", run, timeout_s=48 * HOUR_S, owns_device=True)


@task(cache_policy=NO_CACHE, retries=1, retry_delay_seconds=5, retry_condition_fn=worth_retrying)
def register_model(run: TrackedRun) -> bool:
    """Assembles the release and its verdict."""
    return _bring_up_to_date("register_model", run, timeout_s=HOUR_S)


STAGE_TASKS = (subset_data, score_layers, prune_layers, distill_student, evaluate_student, register_model)
