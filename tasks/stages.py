"""One Prefect task a stage. DVC decides whether a stage is stale, so Prefect caches nothing."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from prefect import State, Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.logging import get_run_logger

from slimtts.params import load_params
from slimtts.workspace import STAGES, Workspace
from tasks.artifacts import show_stage, showing_progress
from tasks.checkpoint_mirror import mirrored_checkpoints
from tasks.devices import owned_devices
from tasks.fan_out import fan_out
from tasks.live_curves import catch_up, following_curves
from tasks.repetition import telling
from tasks.stage_runner import StageError, run_stage, stage_changes
from tasks.tracking import TrackedRun, log_stage, log_stage_or_wait

HOUR_S = 3600.0
NO_ANSWER = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE")  # how MLflow's client names a server that is away


def worth_retrying(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """A killed or crashed stage is tried again (training resumes); bad input is not."""
    failure = state.result(raise_on_failure=False)
    return isinstance(failure, StageError) and failure.worth_retrying


def mlflow_is_away(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """A step that MLflow did not answer is tried again; every such step can be repeated."""
    from mlflow.exceptions import MlflowException

    failure = state.result(raise_on_failure=False)
    return isinstance(failure, MlflowException) and failure.error_code in NO_ANSWER


def _bring_up_to_date(stage: str, run: TrackedRun, timeout_s: float, owns_device: bool = False) -> bool:
    """Runs the stage if it is stale, records its numbers and shows its table. A device has one stage at a time."""
    logger, ran = get_run_logger(), False
    # Without work nobody waits for a device, which a training may hold for days; with it, DVC is asked again there.
    if not owns_device or stage_changes(stage, run.workspace, logger):
        with owned_devices(run.workspace.parent, stage, logger) if owns_device else nullcontext():
            fan_out(stage, run.workspace, timeout_s, logger)
            ran = run_stage(stage, run.workspace, timeout_s, logger)
    with telling(logger, stage, "numbers and files go to MLflow and Prefect"):
        log_stage_or_wait(run, stage, logger)
        show_stage(run, stage, logger)
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
    """Heals the student; meanwhile its curves go to MLflow, its checkpoints to the S3 remote, where there is one."""
    logger, workspace = get_run_logger(), Workspace(run.workspace)
    copies = mirrored_checkpoints(workspace, load_params(workspace.params).storage, logger)
    with copies, following_curves(run, logger), showing_progress(run, logger):
        return _bring_up_to_date("distill_student", run, timeout_s=168 * HOUR_S, owns_device=True)


@task(cache_policy=NO_CACHE, retries=1, retry_delay_seconds=5, retry_condition_fn=worth_retrying)
def evaluate_student(run: TrackedRun) -> bool:
    """Measures all systems on sentences that nothing else has seen."""
    return _bring_up_to_date("evaluate_student", run, timeout_s=48 * HOUR_S, owns_device=True)


@task(cache_policy=NO_CACHE, retries=1, retry_delay_seconds=5, retry_condition_fn=worth_retrying)
def register_model(run: TrackedRun) -> bool:
    """Assembles the release and its verdict."""
    return _bring_up_to_date("register_model", run, timeout_s=HOUR_S)


@task(cache_policy=NO_CACHE, retries=5, retry_delay_seconds=[30, 60, 120, 300, 600], retry_condition_fn=mlflow_is_away)
def record_numbers(run: TrackedRun) -> None:
    """Brings to MLflow what it missed while it was away; nothing when it missed nothing."""
    logger = get_run_logger()
    with telling(logger, "record_numbers", "numbers and files go to MLflow"):
        for stage in STAGES:
            log_stage(run, stage)
        points = catch_up(run)
    logger.info("MLflow has the numbers of %d stages; %d points of curves came late", len(STAGES), points)


STAGE_TASKS = (subset_data, score_layers, prune_layers, distill_student, evaluate_student, register_model)
