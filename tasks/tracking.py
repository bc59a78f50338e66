"""What was measured, in MLflow: one run per workspace and parameters, continued after a kill."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit, urlunsplit

import yaml

from slimtts.comparison.runs import flat_knobs
from slimtts.errors import InvalidInputError
from slimtts.redaction import redacted, without_login
from slimtts.storage import atomic_path
from slimtts.workspace import Workspace
from tasks.checkouts import code_revision
from tasks.experiment_view import VIEW_TAG, experiment_view
from tasks.logged_models import log_student
from tasks.mlflow_database import ensure_database
from tasks.plots import stage_plots
from tasks.stage_numbers import HEADLINE, UsedData, stage_record

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Run

EXPERIMENT = "slimtts"
ADDRESS = "MLFLOW_TRACKING_URI"
LOGIN = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
REMEMBERED = ".mlflow-run.json"
MARK = "slimtts.mark"  # tag of a run: which workspace and parameters made it
PARAM_BATCH = 100  # MLflow takes at most this many params in a call
NOTE = "mlflow.note.content"  # tag that MLflow shows as the description of a run
PARENT = "mlflow.parentRunId"  # tag by which MLflow shows a run below another
DELETED = "deleted"  # lifecycle stage of a run or experiment in MLflow's trash
Logger = logging.Logger | logging.LoggerAdapter[Any]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrackedRun:
    """Where one pipeline run is recorded; small enough to travel between tasks."""

    tracking_uri: str = field(repr=False)  # of a database it may hold a password
    run_id: str
    workspace: Path

    @property
    def client(self) -> MlflowClient:
        """A client of the store that holds the run."""
        return mlflow_client(self.tracking_uri)


def tracking_uri(runs_root: Path) -> str:
    """MLFLOW_TRACKING_URI, else an SQLite file below the runs.

    A login in the address of a server moves to the variables in which MLflow's client looks for it: an address is
    logged, kept and shown.
    """
    address = os.environ.get(ADDRESS)
    if not address:
        return f"sqlite:///{runs_root.resolve() / 'mlflow.db'}"
    place = urlsplit(address)
    login, at, host = place.netloc.rpartition("@")
    if at and place.scheme in ("http", "https"):
        if not any(os.environ.get(name) for name in LOGIN):
            user, _, password = login.partition(":")
            os.environ.update(zip(LOGIN, (unquote(user), unquote(password)), strict=True))
        address = os.environ[ADDRESS] = urlunsplit(place._replace(netloc=host))
    return address


def mlflow_client(uri: str) -> MlflowClient:
    """A client for both tracking and registry; the first one makes the SQLite file, which takes seconds.

    Raises:
        InvalidInputError: see `ensure_database`.
    """
    from mlflow import MlflowClient

    logging.getLogger("alembic").setLevel(logging.WARNING)
    ensure_database(uri)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def tracked_run(workspace: Path, profile: str, parent_id: str = "") -> Iterator[TrackedRun]:
    """Opens, or continues, the run of this workspace; its status says how the block ended."""
    from mlflow.exceptions import MlflowException

    run = open_run(workspace, profile, parent_id)
    try:
        yield run
    except BaseException as ending:
        # What ended the block is told, also where MLflow is away.
        with suppress(MlflowException):
            run.client.set_terminated(run.run_id, "FAILED" if isinstance(ending, Exception) else "KILLED")
        raise
    if active_run(run.client, run.run_id):
        run.client.set_terminated(run.run_id, "FINISHED")


def open_run(workspace: Path, profile: str, parent_id: str = "") -> TrackedRun:
    """The run of this workspace's params and code: the remembered one, or a new one when either has changed.

    What somebody deleted meanwhile comes back, or is made anew where it is gone for good. MLflow shows it below the
    run `parent_id`, if there is one.
    """
    from mlflow.entities import Param

    params = yaml.safe_load((workspace / "params.yaml").read_text())
    uri, revision = tracking_uri(workspace.parent), code_revision(workspace)
    identity = {"tracking_uri": without_login(uri), "git_sha": revision, "params_sha256": _digest(params)}
    memory = workspace / REMEMBERED
    known = _remembered(memory)
    client = mlflow_client(uri)
    experiment_id = _experiment(client, workspace.parent)
    is_same = {key: without_login(known.get(key, "")) for key in identity} == identity
    if is_same and "run_id" in known and active_run(client, known["run_id"]):
        client.update_run(known["run_id"], status="RUNNING")
        return TrackedRun(uri, known["run_id"], workspace)
    if (
        not is_same or "run_id" in known
    ):  # the mark is kept before a run bears it, so that a kill in between leaves none that nobody knows
        known = {**identity, "mark": secrets.token_hex(8)}
        _remember(memory, known)
    tags = {"git_sha": revision, "profile": profile, "workspace": workspace.name, MARK: known["mark"]}
    if parent_id:
        tags[PARENT] = parent_id
    run_id = _only_run(client, experiment_id, workspace.name, tags)
    knobs = [Param(knob, redacted(value)) for knob, value in flat_knobs(params).items()]
    for start in range(0, len(knobs), PARAM_BATCH):
        client.log_batch(run_id, params=knobs[start : start + PARAM_BATCH])
    _remember(memory, {**known, "run_id": run_id})
    return TrackedRun(uri, run_id, workspace)


def active_run(client: MlflowClient, run_id: str) -> Run | None:
    """The run, restored where somebody deleted it; None where it is gone for good. Both are told."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        logger.warning("MLflow run %s is gone for good; its numbers go to a new one", run_id)
        return None
    if run.info.lifecycle_stage == DELETED:
        client.restore_run(run_id)
        logger.warning("MLflow run %s was deleted; restored, because its workspace goes on", run_id)
    return run


def _only_run(client: MlflowClient, experiment_id: str, name: str, tags: dict[str, str]) -> str:
    """The run with the mark among `tags`, made when there is none.

    A server that dies while it answers has made the run, and its client asks again: what came twice is deleted.
    """

    def marked() -> list[str]:
        found = client.search_runs([experiment_id], f"tags.`{MARK}` = '{tags[MARK]}'", order_by=["start_time ASC"])
        return [run.info.run_id for run in found]

    if not marked():
        client.create_run(experiment_id, run_name=name, tags=tags)
    first, *others = marked()
    for other in others:
        client.delete_run(other)
    return first


def _remember(memory: Path, known: dict[str, str]) -> None:
    with atomic_path(memory) as temporary:
        temporary.write_text(json.dumps(known) + "\n")


def remembered_run_id(workspace: Path) -> str:
    """The MLflow run of a workspace; "" when it has none."""
    return _remembered(workspace / REMEMBERED).get("run_id", "")


def _remembered(memory: Path) -> dict[str, str]:
    """What `_remember` wrote; nothing where it is damaged."""
    try:
        known = json.loads(memory.read_text())
    except (OSError, ValueError):
        return {}
    is_sound = isinstance(known, dict) and all(isinstance(value, str) for value in known.values())
    return known if is_sound else {}


def log_stage_or_wait(run: TrackedRun, stage: str, logger: Logger) -> bool:
    """`log_stage`, unless MLflow is away longer than its client waits: outputs are kept, and `log_stage` comes again.

    MLflow's client itself tries for some four minutes (MLFLOW_HTTP_REQUEST_MAX_RETRIES). False: not recorded yet.
    """
    from mlflow.exceptions import MlflowException

    try:
        log_stage(run, stage)
    except MlflowException as error:
        logger.warning("the numbers of %s wait for MLflow: %s", stage, str(error).splitlines()[0])
        return False
    return True


def log_stage(run: TrackedRun, stage: str) -> None:
    """Records a finished stage once: numbers, tags and files. The tag `stage.NAME` says which outputs it describes."""
    from mlflow.entities import Metric, RunTag

    lock = yaml.safe_load((run.workspace / "dvc.lock").read_text())
    outputs = _digest(lock["stages"][stage])
    client = run.client
    entry = active_run(client, run.run_id)
    if entry is None:
        raise InvalidInputError(
            f"MLflow run {run.run_id}", "gone for good while its flow ran", "the run that the flow began",
            "start the same command again: it goes on in a new run",
        )  # fmt: skip
    known = entry.data.tags
    if known.get(f"stage.{stage}") == outputs:
        return
    workspace = Workspace(run.workspace)
    record = stage_record(stage, workspace)
    pictures = [(path, "plots") for path in stage_plots(stage, workspace)]
    for path, folder in [*record.files, *pictures]:
        client.log_artifact(run.run_id, str(path), folder or None)
    if record.data:
        client.log_inputs(run.run_id, [dataset_input(data) for data in record.data])
    student = log_student(client, run.run_id, workspace) if stage == "evaluate_student" else None
    now_ms = int(time.time() * 1000)
    metrics = [Metric(key, value, now_ms, 0) for key, value in record.metrics.items()]
    if student:  # the headline, on these data, is the student's as well as the run's
        name, digest = dataset_key(record.data[0])
        metrics = [
            Metric(m.key, m.value, now_ms, 0, student, name, digest) if m.key.startswith(f"{HEADLINE}/") else m
            for m in metrics
        ]
    told = {**record.tags, f"stage.{stage}": outputs}
    if record.note and known.get(NOTE, "|").startswith("|"):  # a table of ours, and nobody's own words
        told[NOTE] = record.note
    tags = [RunTag(key, value) for key, value in told.items()]
    client.log_batch(run.run_id, metrics=metrics, tags=tags)  # the tag comes with the numbers: never twice


def dataset_key(data: UsedData) -> tuple[str, str]:
    """Name and digest by which MLflow tells datasets apart; its digests have 36 characters at most."""
    return data.name, data.sha256[:32]


def dataset_input(data: UsedData) -> DatasetInput:
    """As MLflow shows it on the run's page and in the table of runs."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    name, digest = dataset_key(data)
    profile = json.dumps({"utterances": data.utterances})
    dataset = Dataset(name, digest, "local", json.dumps({"uri": redacted(data.source)}), profile=profile)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", data.purpose)])


def _experiment(client: MlflowClient, runs_root: Path) -> str:
    found = client.get_experiment_by_name(EXPERIMENT)
    if found:
        if found.lifecycle_stage == DELETED:
            client.restore_experiment(found.experiment_id)
            logger.warning("MLflow experiment %s was deleted; restored with its runs", EXPERIMENT)
        if found.tags.get(VIEW_TAG) != experiment_view():
            client.set_experiment_tag(found.experiment_id, VIEW_TAG, experiment_view())
        return found.experiment_id
    # A server decides itself where artifacts lie; without one they lie beside the database.
    local = tracking_uri(runs_root).startswith("sqlite:")
    return client.create_experiment(
        EXPERIMENT,
        artifact_location=(runs_root.resolve() / "mlartifacts").as_uri() if local else None,
        # The kind opens MLflow's view of runs, not of chat traces.
        tags={"mlflow.experimentKind": "custom_model_development", VIEW_TAG: experiment_view()},
    )


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
