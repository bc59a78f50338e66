"""What a decision rests on, frozen in the MLflow run when a version is registered: results, params and DVC's files.

The version's tag holds the hash of each of these files; they are checked before anything of them is used.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from slimtts.errors import InvalidInputError
from slimtts.results import EvaluationReport, Lineage, Release
from slimtts.storage import files_sha256
from slimtts.workspace import Workspace
from tasks.artifact_store import NEXT, download_artifact
from tasks.promotion_log import registered_model
from tasks.tracking import TrackedRun

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

# Tag of a version: run and hash of its latest evaluation, then NAME=SHA-256 of each file; in one, so that they belong
# together. Versions of slimtts 0.1 end after the evaluation.
EVIDENCE = "evidence"
RECIPE = ("params.yaml", "dvc.yaml", "dvc.lock")
RESULTS = ("release.json", "evaluation.json")
SHA256 = re.compile(r"[0-9a-f]{64}")
IDENTITY = ("data_sha256", "teacher_sha256", "student_sha256")  # of a lineage: what one student always has


@dataclass(frozen=True)
class Evidence:
    """One release, the evaluation that it was judged by, and the knobs of that evaluation as params.yaml has them."""

    release: Release
    evaluation: EvaluationReport
    evaluation_sha256: str
    knobs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_workspace(cls, workspace: Workspace) -> Evidence:
        """What the stages of this workspace put out.

        Raises:
            InvalidInputError: the workspace holds no complete release.
        """
        release, evaluation = workspace.release / "release.json", workspace.evaluation / "evaluation.json"
        return cls._read(release, evaluation, workspace.params)

    @classmethod
    def of_version(cls, client: MlflowClient, model_name: str, version: str) -> Evidence:
        """What a registered version was judged by last.

        Raises:
            InvalidInputError: no such version, or its evidence is missing or was changed.
        """
        with tempfile.TemporaryDirectory() as scratch:
            return cls.of_folder(fetch_evidence(client, model_name, version, Path(scratch)))

    @classmethod
    def of_folder(cls, folder: Path) -> Evidence:
        """What `fetch_evidence` brought."""
        return cls._read(folder / "release.json", folder / "evaluation.json", folder / "params.yaml")

    @classmethod
    def _read(cls, release: Path, evaluation: Path, params: Path) -> Evidence:
        report = EvaluationReport.read(evaluation)
        return cls(Release.read(release), report, files_sha256([evaluation]), _knobs(params))


@dataclass(frozen=True)
class _Place:
    """Where the evidence of a version lies, and what it must be."""

    run_id: str
    evaluation_sha256: str
    sha256: Mapping[str, str] = field(default_factory=dict)


def log_evidence(run: TrackedRun, evaluation_sha256: str) -> str:
    """Copies results, params and DVC's files to a place of the run that no other evaluation writes to.

    Gives the value of the version's tag `EVIDENCE`.
    """
    workspace = Workspace(run.workspace)
    files = [workspace.release / "release.json", workspace.evaluation / "evaluation.json"]
    files += [run.workspace / name for name in RECIPE]
    for path in files:
        run.client.log_artifact(run.run_id, str(path), _folder(evaluation_sha256))
    return " ".join([run.run_id, evaluation_sha256, *(f"{path.name}={files_sha256([path])}" for path in files)])


def fetch_evidence(client: MlflowClient, model_name: str, version: str, into: Path, with_recipe: bool = False) -> Path:
    """Downloads what `log_evidence` kept of a version, each file as it was registered; gives the folder below `into`.

    Of a version of slimtts 0.1 only results are proven: the evaluation by its hash, the lineage by the version's tags.
    `with_recipe` refuses such a version.

    Raises:
        InvalidInputError: no such version, it was registered without, or a file is missing or was changed.
    """
    what, entry = f"{model_name} version {version}", model_version(client, model_name, version)
    place = _place(entry, what)
    if with_recipe and not place.sha256:
        raise InvalidInputError(
            what, f"registered without hashes of {', '.join(RECIPE)}, as slimtts 0.1 did", "a hash of each file", NEXT
        )
    folder = download_artifact(client, place.run_id, _folder(place.evaluation_sha256), into, f"evidence of {what}")
    for name, allowed in (place.sha256 or {"evaluation.json": place.evaluation_sha256}).items():
        path = folder / name
        observed = files_sha256([path]) if path.is_file() else "nothing"
        if observed != allowed:
            raise InvalidInputError(
                f"{name.removesuffix('.json')} of {what}", f"hash {observed[:12]}",
                f"hash {allowed[:12]}, as registered", NEXT,
            )  # fmt: skip
    if not place.sha256:
        _check_lineage(Evidence.of_folder(folder).release.lineage, entry.tags, what)
    return folder


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


def lineage_tags(lineage: Lineage) -> dict[str, str]:
    """A lineage as tags of its version."""
    return {key: str(value) for key, value in lineage.model_dump().items()}


def _knobs(params: Path) -> Mapping[str, Any]:
    """Of the evaluation; none where an earlier release wrote params that are read otherwise today."""
    try:
        knobs = yaml.safe_load(params.read_text())["evaluate_student"]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        return {}
    return knobs if isinstance(knobs, dict) else {}


def _check_lineage(lineage: Lineage, tags: Mapping[str, str], what: str) -> None:
    """By the hashes that belong to the student; code and recogniser may be others in a later evaluation of it."""
    named = {key: value for key, value in lineage_tags(lineage).items() if key in IDENTITY}
    changed = [key for key, value in named.items() if tags.get(key) != value]
    if changed:
        raise InvalidInputError(
            f"release of {what}", f"other {', '.join(changed)} than in its tags", "the lineage as registered", NEXT
        )


def _place(entry: ModelVersion, what: str) -> _Place:
    words: list[str] = [*str(entry.tags.get(EVIDENCE, "")).split(), "", ""]
    run_id, evaluation_sha256, *hashes = words
    sha256 = dict(word.partition("=")[::2] for word in hashes if word)
    if not SHA256.fullmatch(evaluation_sha256) or (sha256 and sha256.keys() != {*RESULTS, *RECIPE}):
        raise InvalidInputError(what, "registered without its evidence", ", ".join([*RESULTS, *RECIPE]), NEXT)
    return _Place(run_id, evaluation_sha256, sha256)


def _folder(evaluation_sha256: str) -> str:
    return f"decision/{evaluation_sha256[:12]}"
