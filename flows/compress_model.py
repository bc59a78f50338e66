"""The whole pipeline: a teacher goes in, a student with its proof comes out.

python -m flows.compress_model --profile demo --name demo --set distill_student.steps=300
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from slimtts.console import exit_code_of
from slimtts.errors import InvalidInputError
from slimtts.params import Params, load_params
from slimtts.printable import printable, printable_lines
from slimtts.promotion_limits import stricter
from slimtts.results import Release
from tasks.approval import request_approval
from tasks.artifacts import show_links
from tasks.bucket import ensure_bucket, s3_client
from tasks.command_line import run_command
from tasks.flow_parameters import Depth, Override, Profile, RunName, fill_name, filled_name
from tasks.listening_page import publish_listening_page
from tasks.promotion import Promotions
from tasks.registry import register_release
from tasks.repetition import telling
from tasks.run_plan import check_run, print_plan
from tasks.shared_outputs import take_over
from tasks.stage_runner import StageError, run_dvc, stale_stages
from tasks.stages import (
    distill_student,
    evaluate_student,
    mlflow_is_away,
    prune_layers,
    record_numbers,
    register_model,
    score_layers,
    subset_data,
)
from tasks.team_gate import team_gate
from tasks.tracking import TrackedRun, remembered_run_id, tracked_run
from tasks.workspace import CHECKOUT, check_name, check_place, claimed_workspace, compose_params

RUNS = CHECKOUT / "runs"
PUSH_TIMEOUT_S = 4 * 3600.0
SCORED = ("subset_data", "score_layers")  # what students of any depth share


@task(cache_policy=NO_CACHE, retries=3, retry_delay_seconds=[30, 120, 300], retry_condition_fn=mlflow_is_away)
def register_version(run: TrackedRun) -> str:
    """Puts the release into the registry and, through the gate, into production; where a person must agree, asks."""
    gate = stricter(load_params(run.workspace / "params.yaml").register_model, team_gate())
    with telling(get_run_logger(), "register_version", "the release goes to the registry"):
        version = register_release(run, gate.promote)
    get_run_logger().info("registered %s version %s", gate.model_name, version)
    asked = request_approval(Promotions(run.client, run.workspace.parent, gate.model_name), version, gate)
    if asked:
        get_run_logger().warning("%s", asked)
    return version


@task(cache_policy=NO_CACHE, retries=3, retry_delay_seconds=[10, 30, 60])
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
    with telling(get_run_logger(), "confirm_clean", "DVC compares every output with its record"):
        stale = stale_stages(run.workspace)
    if stale:
        raise StageError("dvc status", f"{', '.join(stale)} changed while the flow ran; run it again", exit_code=1)


@task(cache_policy=NO_CACHE)
def take_over_scores(workspace: Path, scored: Path) -> None:
    """Brings data and scores of another run, where they fit this one's code and parameters."""
    take_over(scored, workspace, SCORED, get_run_logger())


@flow(name="compress-model", flow_run_name=filled_name)
def compress_model(
    name: RunName,
    profile: Profile = "demo",
    overrides: Sequence[Override] = (),
    runs_root: Path = RUNS,
    checkout: Path = CHECKOUT,
    revision: str = "",
    keep_layers: Depth | None = None,
    scores_of: str = "",
) -> Path:
    """Prepares, subsets, scores, prunes, distills, evaluates, registers; returns the run's folder.

    Args:
        name: Folder below the runs, where a second start goes on; {date} and {id} are of the flow run.
        profile: File in flows/profiles: demo takes minutes, full is params.yaml as it is.
        overrides: Changes to the profile, each as section.key=value, for example distill_student.steps=300.
        runs_root: Where runs live.
        checkout: Where the code lies.
        revision: Commit, branch or tag whose code runs, in a copy of its own; empty for the code there, edits included.
        keep_layers: Layers of the student at most; empty for what the profile says.
        scores_of: Run whose data and scores are taken over, and below which MLflow shows this one.
    """
    name, logger = fill_name(name), get_run_logger()
    overrides = [*overrides, *([f"prune_layers.keep_layers={keep_layers}"] if keep_layers else [])]
    with (
        claimed_workspace(name, profile, overrides, runs_root, checkout, revision, wait_if_recovered()) as workspace,
        checked_plan(workspace),
        tracked_run(workspace, profile, parent_of(scores_of, runs_root)) as run,
    ):
        show_links(run, logger)
        if scores_of:
            take_over_scores(workspace, runs_root / scores_of)
        worked = [
            subset_data(run),
            score_layers(run),
            prune_layers(run),
            distill_student(run),
            evaluate_student(run),
            register_model(run),
        ]
        record_numbers(run)
        publish_listening_page(run)
        register_version(run)
        push_outputs(run)
        confirm_clean(run)
    create_markdown_artifact((workspace / "evaluation" / "table.md").read_text(), key="evaluation", description=name)
    logger.info("%d of %d stages had work to do", sum(worked), len(worked))
    return workspace


@contextmanager
def checked_plan(workspace: Path, depth: int | None = None) -> Iterator[None]:
    """The block runs when nothing speaks against the plan, with another depth where one is given.

    Pinned code of before these checks finds out by itself.

    Raises:
        InvalidInputError: the run would be refused by one of its stages.
    """
    if (workspace / "src" / "slimtts" / "run_checks.py").is_file():
        params = load_params(workspace / "params.yaml")
        pruning = params.prune_layers.model_copy(update={"keep_layers": depth or params.prune_layers.keep_layers})
        check_run(workspace, params.model_copy(update={"prune_layers": pruning}))
    yield


def wait_if_recovered() -> Callable[[], None] | None:
    """What to do when another process has the workspace: a run that was started again waits for its former process,
    which may live after all behind a server that lost sight of it. Any other start is a mistake and is refused."""
    if flow_run.run_count < 2:
        return None
    logger = get_run_logger()
    return lambda: logger.info("waits for the former process of this run")


def parent_of(scores_of: str, runs_root: Path) -> str:
    """The MLflow run of the run whose scores are taken over.

    Raises:
        InvalidInputError: there is no such run.
    """
    if not scores_of:
        return ""
    check_name(scores_of)
    parent = remembered_run_id(runs_root / scores_of)
    if not parent:
        raise InvalidInputError("scores_of", scores_of, f"a run in {runs_root}", "run that one first")
    return parent


def show_results(workspace: Path) -> None:
    """Prints the table of the evaluation, the verdict, and one sentence spoken by every system."""
    evaluation = workspace / "evaluation"
    print(printable_lines((evaluation / "table.md").read_text()))
    verdict = Release.read(workspace / "release" / "release.json").verdict
    print(f"verdict: {verdict.decision}. {printable(' '.join(verdict.reasons), None)}\n")
    wavs = sorted(evaluation.glob("audio/*/*.wav"))
    for path in wavs:
        if path.name == wavs[0].name:
            print(path)
    print(f"and {len(wavs)} files in all below {evaluation / 'audio'}; open {workspace / 'report' / 'index.html'}")


def result_json(workspace: Path) -> str:
    """Folder, verdict and numbers of a finished run, for programs."""
    release = Release.read(workspace / "release" / "release.json")
    found = {"workspace": str(workspace), "verdict": release.verdict.model_dump(), "metrics": release.metrics}
    return json.dumps(found, indent=2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 a stage failed, 2 something that only you can mend."""
    parser = argparse.ArgumentParser(prog="python -m flows.compress_model", description=__doc__.splitlines()[0])
    parser.add_argument("--name", default="demo", help="folder below the runs; a second start continues there")
    parser.add_argument("--profile", default="demo", help="file in flows/profiles")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--runs", type=Path, default=RUNS, help="where runs live")
    parser.add_argument("--revision", default="", help="run the code of this commit (default: as it lies here)")
    parser.add_argument("--dry-run", action="store_true", help="print plan, time, memory and disk; start nothing")
    parser.add_argument("--json", action="store_true", help="print the plan, or the result, for programs")
    options = parser.parse_args(arguments)

    again = f"the same command goes on in {options.runs / options.name}"

    def composed() -> Params:
        check_place(options.runs, options.name)
        return compose_params(options.profile, options.overrides)

    def check() -> None:
        params = composed()
        if not options.revision:
            check_run(options.runs / options.name, params)

    def plan() -> int:
        print_plan(options.runs / options.name, composed(), options.json)
        return 0

    def compress() -> int:
        workspace = compress_model(
            options.name, options.profile, options.overrides, options.runs, revision=options.revision
        )
        if options.json:
            print(result_json(workspace))
        else:
            show_results(workspace)
        return 0

    if options.dry_run:
        return run_command(plan, again, needs_server=False)
    return run_command(compress, again, options.runs, check)


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
