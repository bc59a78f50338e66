"""Model versions in MLflow: one a student, @candidate for the newest, @production only through the gate.

Every step can be repeated: a kill between two of them leaves nothing that a second call does not mend, and a call
with nothing new changes nothing. It never undoes a rollback either: a decision is taken once an evaluation.
"""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from slimtts import __version__
from slimtts.errors import InvalidInputError
from slimtts.promotion import PromotionEvent, record_event
from slimtts.results import Lineage, ModelOrigin, Release, Verdict
from slimtts.workspace import Workspace
from tasks.tracking import TrackedRun

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CANDIDATE, PRODUCTION = "candidate", "production"
HISTORY = "promotions.jsonl"
FORMER = "former_production"  # tag of a version: what was in production before it
EVALUATION_RUN = "evaluation_run_id"  # tag of a version: the run that holds its latest evaluation
DECIDED = "decided_for"  # tag of a version: the evaluation, verdict and wish that its last decision rests on
EXTRAS = {"neutts": "[neutts]", "orpheus": "[orpheus]", "cosyvoice2": "[cosyvoice]"}  # of slimtts, by family
SERVED_BY = ("torch", "transformers", "safetensors", "numpy", "pandas", "soundfile", "pydantic", "pyyaml", "mlflow")


def register_release(run: TrackedRun, promote: bool) -> str:
    """Version number of this run's release; promotes it when asked to and its verdict is ACCEPT.

    Raises:
        InvalidInputError: the workspace holds no complete release.
    """
    workspace = Workspace(run.workspace)
    release = Release.read(workspace.release / "release.json")
    client = run.client
    version = _version_of(client, release) or _create_version(client, run, release, workspace.release / "model")
    number, name = str(version.version), release.model_name
    evaluation_sha256 = hashlib.sha256((workspace.evaluation / "evaluation.json").read_bytes()).hexdigest()
    for key, value in _measured_tags(release, evaluation_sha256, run.run_id).items():
        client.set_model_version_tag(name, number, key, value)
    client.set_registered_model_alias(name, CANDIDATE, number)
    question = f"{evaluation_sha256} {release.verdict.decision} promote={promote}"
    if version.tags.get(DECIDED) != question:
        if promote or release.verdict.decision != "ACCEPT":
            decide(client, run.workspace.parent, name, number, release.verdict)
        client.set_model_version_tag(name, number, DECIDED, question)
    return number


def decide(client: MlflowClient, runs_root: Path, model_name: str, version: str, verdict: Verdict) -> bool:
    """Moves @production to `version` if the verdict is ACCEPT; True when it stands there. Records the decision."""
    accepted = verdict.decision == "ACCEPT"
    former = production_version(client, model_name)
    _record(client, runs_root, model_name, version, verdict.decision, "promoted" if accepted else "refused", former)
    if accepted and former != version:
        client.set_model_version_tag(model_name, version, FORMER, former or "")
        client.set_registered_model_alias(model_name, PRODUCTION, version)
    return accepted


def roll_back(client: MlflowClient, runs_root: Path, model_name: str) -> str:
    """Returns @production to the version before the present one, and gives its number.

    Raises:
        InvalidInputError: nothing is in production, or nothing was before.
    """
    present = production_version(client, model_name)
    former = client.get_model_version(model_name, present).tags.get(FORMER) if present else None
    if not former:
        raise InvalidInputError(
            f"{model_name}@{PRODUCTION}", f"version {present or 'none'}, nothing before it",
            "a version that replaced another", "choose one with --version",
        )  # fmt: skip
    verdict = client.get_model_version(model_name, former).tags["verdict"]
    _record(client, runs_root, model_name, former, verdict, "rolled_back", present)
    client.set_registered_model_alias(model_name, PRODUCTION, former)
    return former


def production_version(client: MlflowClient, model_name: str) -> str | None:
    """Number of the version in production, if any."""
    version = client.get_registered_model(model_name).aliases.get(PRODUCTION)
    return None if version is None else str(version)


def _record(
    client: MlflowClient, runs_root: Path, model_name: str, version: str, decision: str,
    action: Literal["promoted", "refused", "rolled_back"], former: str | None,
) -> None:  # fmt: skip
    event = PromotionEvent.model_validate(
        {
            "model_name": model_name,
            "version": version,
            "evaluation_sha256": client.get_model_version(model_name, version).tags["evaluation_sha256"],
            "decision": decision,
            "action": action,
            "former_version": former,
            "recorded_at": datetime.now(UTC),
        }
    )
    record_event(runs_root / HISTORY, event)
    client.set_model_version_tag(model_name, version, "last_action", action)


def _version_of(client: MlflowClient, release: Release) -> ModelVersion | None:
    """The version that already holds this student, if any; makes the model's entry in the registry when missing."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode

    try:
        client.create_registered_model(release.model_name)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise
    student = release.lineage.student_sha256
    found = client.search_model_versions(f"name = '{release.model_name}' and tags.student_sha256 = '{student}'")
    return client.get_model_version(release.model_name, found[0].version) if found else None


def _create_version(client: MlflowClient, run: TrackedRun, release: Release, student: Path) -> ModelVersion:
    from mlflow.models import ModelSignature
    from mlflow.pyfunc import save_model
    from mlflow.types import ColSpec, Schema

    of_student = _origin_tags(student)
    optional = ("voice", "prompt_text", "prompt_audio_base64")
    signature = ModelSignature(
        inputs=Schema([ColSpec("string", "text"), *(ColSpec("string", name, required=False) for name in optional)]),
        outputs=Schema([ColSpec("string", "audio_base64"), ColSpec("long", "sample_rate_hz")]),
    )
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it wants an example, and would speak it
        save_model(
            f"{folder}/model",
            python_model=str(Path(__file__).with_name("speech_pyfunc.py")),
            artifacts={"student": str(student)},
            signature=signature,
            pip_requirements=[
                f"slimtts{EXTRAS.get(of_student.get('family', ''), '')}=={__version__}",
                *(f"{name}=={installed_version(name)}" for name in SERVED_BY),
            ],
        )
        client.log_artifacts(run.run_id, f"{folder}/model", "model")
    # The tags come with the version: a kill here cannot leave one that is not found again by its student.
    return client.create_model_version(
        release.model_name,
        f"runs:/{run.run_id}/model",
        run_id=run.run_id,
        tags=_lineage_tags(release.lineage) | of_student,
    )


def _lineage_tags(lineage: Lineage) -> dict[str, str]:
    return {key: str(value) for key, value in lineage.model_dump().items()}


def _origin_tags(student: Path) -> dict[str, str]:
    """Family and licence, for a student that tells them."""
    path = student / "slimtts.json"
    return ModelOrigin.read(path).model_dump(include={"family", "license"}) if path.is_file() else {}


def _measured_tags(release: Release, evaluation_sha256: str, run_id: str) -> dict[str, str]:
    return {
        EVALUATION_RUN: run_id,
        "evaluation_sha256": evaluation_sha256,
        "verdict": release.verdict.decision,
        "verdict_reasons": "; ".join(release.verdict.reasons) or "none",
        **{f"metric.{name}": f"{value:.6g}" for name, value in release.metrics.items()},
    }
