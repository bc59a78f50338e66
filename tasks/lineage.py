"""Where a registered version comes from: version, MLflow run, commit, DVC's outputs, data, teacher, recipe, numbers."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimtts.printable import printable
from slimtts.redaction import redacted
from slimtts.results import Decision, Lineage, Result
from slimtts.yaml_files import read_yaml
from tasks.evidence import Evidence, fetch_evidence, model_version
from tasks.promotion_log import registered_model

if TYPE_CHECKING:
    from mlflow import MlflowClient


class VersionLineage(Result):
    """All that leads to one version; `params` is its params.yaml, `metrics` are those of its MLflow run."""

    model_name: str
    version: str
    aliases: list[str]
    run_id: str
    registered_ms: int
    lineage: Lineage
    verdict: Decision
    evaluation_sha256: str
    test_set_sha256: str
    params: dict[str, dict[str, Any]]
    metrics: dict[str, float]


def version_lineage(client: MlflowClient, model_name: str, version: str) -> VersionLineage:
    """Reads it from the registry, the run, and the evidence that is kept there.

    Raises:
        InvalidInputError: no such model or version, or it was registered without its evidence.
    """
    entry, evidence = model_version(client, model_name, version), Evidence.of_version(client, model_name, version)
    with tempfile.TemporaryDirectory() as folder:
        params = read_yaml(fetch_evidence(client, model_name, version, Path(folder)) / "params.yaml")
    aliases = registered_model(client, model_name).aliases
    return VersionLineage(
        model_name=model_name,
        version=version,
        aliases=sorted(alias for alias, number in aliases.items() if str(number) == version),
        run_id=entry.run_id,
        registered_ms=entry.creation_timestamp,
        lineage=evidence.release.lineage,
        verdict=evidence.release.verdict.decision,
        evaluation_sha256=evidence.evaluation_sha256,
        test_set_sha256=evidence.evaluation.test_set_sha256,
        params=params,
        metrics=evidence.release.metrics | client.get_run(entry.run_id).data.metrics,
    )


def lineage_text(found: VersionLineage) -> str:
    """From the version back to its sources, a line each, whatever they hold; then its numbers and its parameters."""
    origin, teacher = found.lineage, found.params["teacher"]
    aliases = "".join(f" @{alias}" for alias in found.aliases)
    rows = [
        ("version", f"{found.model_name} {found.version}{aliases}"),
        ("MLflow run", found.run_id),
        ("git commit", origin.git_sha),
        ("DVC revision", origin.dvc_revision),
        *((f"  {path}", output) for path, output in sorted(origin.dvc_outputs.items())),
        ("data", origin.data_sha256),
        ("teacher", f"{origin.teacher_sha256} {teacher['family']} {teacher['source']} {teacher['revision']}"),
        ("student", origin.student_sha256),
        ("layers kept", str(origin.retained)),
        ("preset, seed", f"{origin.preset}, {origin.seed}"),
        ("evaluation", f"{found.evaluation_sha256}: {found.verdict} on test set {found.test_set_sha256}"),
        ("heard by", f"{origin.asr}, {origin.normalizer}"),
    ]
    numbers = [(f"  {name}", f"{value:.6g}") for name, value in sorted(found.metrics.items())]
    knobs = [
        (f"  {section}.{knob}", str(value))
        for section, values in found.params.items()
        for knob, value in values.items()
    ]
    blocks = [rows, [("metrics", ""), *numbers], [("params", ""), *knobs]]
    lines = (f"{printable(name):<14} {printable(value)}".rstrip() for block in blocks for name, value in block)
    return redacted("\n".join(lines))
