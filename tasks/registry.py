"""Model versions in MLflow: one a student, @candidate for the newest, @production only through the gate.

Every step can be repeated: a kill between two of them leaves nothing that a second call does not mend, and a call
with nothing new changes nothing. It never undoes a rollback either: a decision is taken once an evaluation.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING

from slimtts import __version__
from slimtts.params import load_params
from slimtts.promotion_history import is_decided
from slimtts.results import ModelOrigin, Release
from slimtts.storage import folder_sha256
from slimtts.workspace import Workspace
from tasks.evidence import EVIDENCE, Evidence, lineage_tags, log_evidence
from tasks.fetch_model import MODEL_FILES
from tasks.promotion import Promotions, Request
from tasks.team_gate import team_gate
from tasks.tracking import TrackedRun

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

logger = logging.getLogger(__name__)
CANDIDATE = "candidate"
EXTRAS = {"neutts": "[neutts]", "orpheus": "[orpheus]", "cosyvoice2": "[cosyvoice]"}  # of slimtts, by family
SERVED_BY = ("torch", "transformers", "safetensors", "numpy", "pandas", "soundfile", "pydantic", "pyyaml", "mlflow")


def register_release(run: TrackedRun, promote: bool) -> str:
    """Version number of this run's release; the gate decides about it when asked to, or when its verdict is a refusal.

    The gate is the team's, tightened by the run's own params.

    Raises:
        InvalidInputError: the workspace holds no complete release.
    """
    workspace = Workspace(run.workspace)
    evidence, gate = Evidence.of_workspace(workspace), load_params(workspace.params).register_model
    release, client = evidence.release, run.client
    promotions = Promotions(client, run.workspace.parent, release.model_name)
    _create_model(client, release.model_name)
    is_new = _version_of(client, release) is None
    if is_new:
        _upload(run, release, workspace.release / "model")
    with promotions.alone():
        number = str((_version_of(client, release) or _create_version(client, run, release, workspace)).version)
    metrics = {f"metric.{name}": f"{value:.6g}" for name, value in release.metrics.items()}
    tags = {**metrics, EVIDENCE: log_evidence(run, evidence.evaluation_sha256)}
    if is_new:  # where files were lost and came again, they are today's
        tags[MODEL_FILES] = folder_sha256(workspace.release / "model")
    for key, value in tags.items():
        client.set_model_version_tag(release.model_name, number, key, value)
    client.set_registered_model_alias(release.model_name, CANDIDATE, number)
    promotions.settle()
    decision = release.verdict.decision
    if is_decided(promotions.log.read().events, number, evidence.evaluation_sha256, decision):
        return number
    if (promote and team_gate().promote) or decision != "ACCEPT":
        promotions.decide(number, evidence, gate, Request.now())
    else:
        client.set_model_version_tag(release.model_name, number, "verdict", decision)
    return number


def _create_model(client: MlflowClient, model_name: str) -> None:
    """Makes the model's entry in the registry when it is missing."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode

    try:
        client.create_registered_model(model_name)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise


def _version_of(client: MlflowClient, release: Release) -> ModelVersion | None:
    """The newest version that already holds this student, if any; one that has lost its files holds it no more."""
    student = release.lineage.student_sha256
    found = client.search_model_versions(f"name = '{release.model_name}' and tags.student_sha256 = '{student}'")
    for entry in sorted(found, key=lambda entry: int(entry.version), reverse=True):
        version = client.get_model_version(release.model_name, entry.version)
        if _has_files(client, version, release):
            return version
        logger.warning(
            "%s version %s has lost its files; its student is uploaded again", release.model_name, version.version
        )
    return None


def _has_files(client: MlflowClient, version: ModelVersion, release: Release) -> bool:
    """Deleted for good in MLflow are both the run and what it kept."""
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.list_artifacts(str(version.run_id), _model_folder(release)))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False


def _model_folder(release: Release) -> str:
    """Of the run; another student of the same run goes to another one, because versions point to it."""
    return f"model-{release.lineage.student_sha256[:12]}"


def _upload(run: TrackedRun, release: Release, student: Path) -> None:
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
        run.client.log_artifacts(run.run_id, f"{folder}/model", _model_folder(release))


def _create_version(client: MlflowClient, run: TrackedRun, release: Release, workspace: Workspace) -> ModelVersion:
    # The tags come with the version: a kill here cannot leave one that is not found again by its student.
    model = workspace.release / "model"
    return client.create_model_version(
        release.model_name,
        f"runs:/{run.run_id}/{_model_folder(release)}",
        run_id=run.run_id,
        tags=lineage_tags(release.lineage) | _origin_tags(model) | {MODEL_FILES: folder_sha256(model)},
    )


def _origin_tags(student: Path) -> dict[str, str]:
    """Family and licence, for a student that tells them."""
    path = student / "slimtts.json"
    return ModelOrigin.read(path).model_dump(include={"family", "license"}) if path.is_file() else {}
