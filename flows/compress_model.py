"""The whole pipeline: a teacher goes in, a student with its proof comes out.

python -m flows.compress_model --profile demo --name demo --set distill_student.steps=300
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from slimtts.errors import InvalidInputError, SlimttsError
from slimtts.params import load_params
from slimtts.results import Release
from tasks.bucket import ensure_bucket, s3_client
from tasks.registry import register_release
from tasks.stage_runner import StageError, run_dvc, stale_stages
from tasks.stages import (
    distill_student,
    evaluate_student,
    prune_layers,
    register_model,
    score_layers,
    subset_data,
)
from tasks.tracking import TrackedRun, tracked_run
from tasks.workspace import CHECKOUT, claimed_workspace, compose_params

RUNS = CHECKOUT / "runs"
PUSH_TIMEOUT_S = 4 * 3600.0


@task(cache_policy=NO_CACHE)
def register_version(run: TrackedRun) -> str:
    """Puts the release into the registry and, through the gate, into production."""
    params = load_params(run.workspace / "params.yaml")
    version = register_release(run, params.register_model.promote)
    get_run_logger().info("registered %s version %s", params.register_model.model_name, version)
    return version


@task(cache_policy=NO_CACHE, retries=3, retry_delay_seconds=10)
def push_outputs(run: TrackedRun) -> None:
    """Copies all outputs to the S3 remote, when there is one."""
    storage = load_params(run.workspace / "params.yaml").storage
    if not storage.dvc_remote:
        return
    ensure_bucket(s3_client(storage.s3_endpoint), storage.dvc_remote, get_run_logger())
    run_dvc(["push"], run.workspace, PUSH_TIMEOUT_S, get_run_logger(), "dvc push")


@task(cache_policy=NO_CACHE)
def confirm_clean(run: TrackedRun) -> None:
    """Every output is the one that dvc.lock describes, or the flow fails."""
    stale = stale_stages(run.workspace)
    if stale:
        raise StageError("dvc status", f"{', '.join(stale)} changed while the flow ran; run it again", exit_code=1)


@flow(name="compress-model", flow_run_name="{name}")
def compress_model(
    name: str,
    profile: str = "demo",
    overrides: Sequence[str] = (),
    runs_root: Path = RUNS,
    checkout: Path = CHECKOUT,
) -> Path:
    """Prepares, subsets, scores, prunes, distills, evaluates, registers; returns the run's folder."""
    with (
        claimed_workspace(name, profile, overrides, runs_root, checkout) as workspace,
        tracked_run(workspace, profile) as run,
    ):
        worked = [
            subset_data(run),
            score_layers(run),
            prune_layers(run),
            distill_student(run),
            evaluate_student(run),
            register_model(run),
        ]
        register_version(run)
        push_outputs(run)
        confirm_clean(run)
    create_markdown_artifact((workspace / "evaluation" / "table.md").read_text(), key="evaluation", description=name)
    get_run_logger().info("%d of %d stages had work to do", sum(worked), len(worked))
    return workspace


def show_results(workspace: Path) -> None:
    """Prints the table of the evaluation, the verdict, and one sentence spoken by every system."""
    evaluation = workspace / "evaluation"
    print((evaluation / "table.md").read_text())
    verdict = Release.read(workspace / "release" / "release.json").verdict
    print(f"verdict: {verdict.decision}. {' '.join(verdict.reasons)}\n")
    wavs = sorted(evaluation.glob("audio/*/*.wav"))
    for path in wavs:
        if path.name == wavs[0].name:
            print(path)
    print(f"and {len(wavs)} files in all below {evaluation / 'audio'}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 a stage failed, 2 something that only you can mend."""
    parser = argparse.ArgumentParser(prog="python -m flows.compress_model", description=__doc__.splitlines()[0])
    parser.add_argument("--name", default="demo", help="folder below the runs; a second start continues there")
    parser.add_argument("--profile", default="demo", help="file in flows/profiles")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--runs", type=Path, default=RUNS, help="where runs live")
    options = parser.parse_args(arguments)
    try:
        compose_params(options.profile, options.overrides)  # before a server starts for nothing
        workspace = compress_model(options.name, options.profile, options.overrides, options.runs)
    except SlimttsError as error:
        print(f"slimtts: {error}", file=sys.stderr)
        mendable = isinstance(error, InvalidInputError) or (isinstance(error, StageError) and not error.worth_retrying)
        return 2 if mendable else 1
    show_results(workspace)
    return 0


if __name__ == "__main__":
    sys.exit(main())
