"""Runs that MLflow knows, compared like folders: `python -m tasks.comparison RUN RUN...`, for `slimtts compare`.

Only what a comparison needs is fetched: the evaluation, its sentences, the plan, the parameters.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from slimtts.commands.compare import add_arguments, local_folder, show
from slimtts.console import exit_code_of
from slimtts.errors import InvalidInputError
from slimtts.workspace import Workspace
from tasks.artifact_store import download_artifact, run_artifacts
from tasks.checkouts import CHECKOUT
from tasks.server_errors import exit_code
from tasks.service_checks import check_tracking
from tasks.tracking import EXPERIMENT, mlflow_client, tracking_uri
from tasks.workspace import check_name

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

RUNS = CHECKOUT / "runs"
NEEDED = ("pruned/plan.json", "evaluation/evaluation.json", "evaluation/utterances.jsonl")
RUN_ID = re.compile(r"[0-9a-f]{32}")


def fetch_run(client: MlflowClient, name: str, into: Path) -> Path:
    """A workspace below `into` with what comparisons read of an MLflow run, named by its id or its name.

    Of several runs with one name, the newest that was evaluated.

    Raises:
        InvalidInputError: no such run, or it did not record what is needed.
    """
    run = _find(client, name)
    workspace = run.data.tags.get("workspace", name)
    check_name(workspace)  # anybody may have tagged it
    folder, what = into / workspace, f"MLflow run {name}"
    folder.mkdir(parents=True)
    run_artifacts(client, run.info.run_id, what)
    recorded = {item.path for top in ("pruned", "evaluation") for item in client.list_artifacts(run.info.run_id, top)}
    missing = [path for path in NEEDED if path not in recorded]
    if missing:
        raise InvalidInputError(
            f"MLflow run {name}", f"no {', '.join(missing)}", "a run that recorded its evaluation",
            "start its flow again, or compare its folder",
        )  # fmt: skip
    for path in NEEDED:
        (folder / path).parent.mkdir(exist_ok=True)
        # Stores do not agree whether the file keeps its folder: it is put where it belongs.
        download_artifact(client, run.info.run_id, path, into, what).replace(folder / path)
    knobs: dict[str, dict[str, Any]] = {}
    for name_of_knob, value in run.data.params.items():
        section, _, knob = name_of_knob.partition(".")
        knobs.setdefault(section, {})[knob] = value
    Workspace(folder).params.write_text(yaml.safe_dump(knobs))
    return folder


def _find(client: MlflowClient, name: str) -> Run:
    from mlflow.exceptions import MlflowException

    if RUN_ID.fullmatch(name):
        try:
            return client.get_run(name)
        except MlflowException as error:
            raise InvalidInputError(
                f"MLflow run {name}", str(error).splitlines()[0], "a run of this store", "correct the id or --runs"
            ) from None
    experiment = client.get_experiment_by_name(EXPERIMENT)
    quoted = name.replace("\\", "").replace("'", "")
    found = (
        client.search_runs(
            [experiment.experiment_id], f"attributes.run_name = '{quoted}'", order_by=["start_time DESC"]
        )
        if experiment
        else []
    )
    evaluated = [run for run in found if "stage.evaluate_student" in run.data.tags]
    if not evaluated:
        raise InvalidInputError(
            f"run {name}", "no folder of that name, and no evaluated run in MLflow",
            "a run's folder, its name below --runs, or an id or name in MLflow", "correct it",
        )  # fmt: skip
    return evaluated[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 it failed, 2 something that only you can mend."""
    parser = argparse.ArgumentParser(prog="python -m tasks.comparison", description=__doc__.splitlines()[0])
    add_arguments(parser)
    options = parser.parse_args(arguments)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # whoever waits for an answer wants it soon
    runs = options.runs or RUNS

    def compare() -> int:
        with tempfile.TemporaryDirectory(prefix="slimtts-compare-") as scratch:
            folders = {}
            for index, name in enumerate(dict.fromkeys(options.names)):
                folder = local_folder(name, runs)
                folders[name] = folder or fetch_run(store(runs), name, Path(scratch) / str(index))
            show(folders, options.json, options.plots)
        return 0

    return exit_code(compare)


def store(runs: Path) -> MlflowClient:
    """The store that runs below `runs` are recorded in.

    Raises:
        InvalidInputError: there is none.
    """
    uri = tracking_uri(runs)
    if uri.startswith("sqlite:") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise InvalidInputError("MLflow", f"no {uri}", "a store that runs were recorded in", "correct --runs")
    check_tracking(runs)
    return mlflow_client(uri)


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
