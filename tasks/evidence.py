"""What a decision rests on, frozen in the MLflow run when a version is registered: results, params and DVC's files."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from slimtts.errors import InvalidInputError
from slimtts.results import EvaluationReport, Release
from slimtts.workspace import Workspace
from tasks.promotion_log import registered_model
from tasks.tracking import TrackedRun

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

EVIDENCE = "evidence"  # tag of a version: run and hash of its latest evaluation, in one so that they belong together
RECIPE = ("params.yaml", "dvc.yaml", "dvc.lock")


@dataclass(frozen=True)
class Evidence:
    """One release and the evaluation that it was judged by."""

    release: Release
    evaluation: EvaluationReport
    evaluation_sha256: str

    @classmethod
    def of_workspace(cls, workspace: Workspace) -> Evidence:
        """What the stages of this workspace put out.

        Raises:
            InvalidInputError: the workspace holds no complete release.
        """
        return cls._read(workspace.release / "release.json", workspace.evaluation / "evaluation.json")

    @classmethod
    def of_version(cls, client: MlflowClient, model_name: str, version: str) -> Evidence:
        """What a registered version was judged by last.

        Raises:
            InvalidInputError: no such version, or its evidence is missing or was changed.
        """
        with tempfile.TemporaryDirectory() as scratch:
            folder = fetch_evidence(client, model_name, version, Path(scratch))
            evidence = cls._read(folder / "release.json", folder / "evaluation.json")
        registered = _place(client, model_name, version)[1]
        if evidence.evaluation_sha256 != registered:
            raise InvalidInputError(
                f"evaluation of {model_name} version {version}", f"hash {evidence.evaluation_sha256[:12]}",
                f"hash {registered[:12]}, as registered", "run its compression again",
            )  # fmt: skip
        return evidence

    @classmethod
    def _read(cls, release: Path, evaluation: Path) -> Evidence:
        report = EvaluationReport.read(evaluation)
        return cls(Release.read(release), report, hashlib.sha256(evaluation.read_bytes()).hexdigest())


def log_evidence(run: TrackedRun, evaluation_sha256: str) -> str:
    """Copies results, params and DVC's files to a place of the run that no other evaluation writes to.

    Gives the value of the version's tag `EVIDENCE`.
    """
    workspace = Workspace(run.workspace)
    files = [workspace.release / "release.json", workspace.evaluation / "evaluation.json"]
    for path in [*files, *(run.workspace / name for name in RECIPE)]:
        run.client.log_artifact(run.run_id, str(path), _folder(evaluation_sha256))
    return f"{run.run_id} {evaluation_sha256}"


def fetch_evidence(client: MlflowClient, model_name: str, version: str, into: Path) -> Path:
    """Downloads what `log_evidence` kept of a version; gives the folder below `into`.

    Raises:
        InvalidInputError: no such version, or it was registered without.
    """
    run_id, evaluation_sha256 = _place(client, model_name, version)
    return Path(client.download_artifacts(run_id, _folder(evaluation_sha256), str(into)))


def model_version(client: MlflowClient, model_name: str, version: str) -> ModelVersion:
    """The version's entry in the registry.

    Raises:
        InvalidInputError: there is none of that number.
    """
    registered_model(client, model_name)
    found = {str(entry.version): entry for entry in client.search_model_versions(f"name = '{model_name}'")}
    if version not in found:
        known = ", ".join(sorted(found, key=int)) or "none"
        raise InvalidInputError(f"version of {model_name}", repr(version), known, "choose one of these")
    return client.get_model_version(model_name, version)


def _place(client: MlflowClient, model_name: str, version: str) -> tuple[str, str]:
    """(MLflow run, hash of the evaluation)."""
    run_id, _, evaluation_sha256 = model_version(client, model_name, version).tags.get(EVIDENCE, "").partition(" ")
    if not evaluation_sha256:
        raise InvalidInputError(
            f"{model_name} version {version}", "registered without its evidence", "release.json, evaluation.json, "
            + ", ".join(RECIPE), "run its compression again: the same student keeps its version",
        )  # fmt: skip
    return run_id, evaluation_sha256


def _folder(evaluation_sha256: str) -> str:
    return f"decision/{evaluation_sha256[:12]}"
