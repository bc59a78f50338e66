"""A registered version as a workspace again: its code, params, DVC files and outputs, proven by their hashes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from slimtts.errors import InvalidInputError
from slimtts.params import load_params
from slimtts.results import Lineage
from slimtts.storage import atomic_path
from tasks.checkouts import CHECKOUT, COPY, git_revision, run_checkout
from tasks.evidence import RECIPE, Evidence, fetch_evidence
from tasks.stage_runner import Logger, StageError, run_dvc, stage_environment, stale_stages
from tasks.workspace import CACHE, connect_workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient

COMMIT = re.compile(r"[0-9a-f]{40}")
TRANSFER_TIMEOUT_S = 4 * 3600.0


def observed_hashes(workspace: Path) -> Mapping[str, str]:
    """Hashes of data, teacher and student, taken by the package in a process of its own, because it opens models.

    Raises:
        InvalidInputError: one of them is not there.
    """
    command = [sys.executable, "-m", "slimtts.lineage_check", str(workspace)]
    done = subprocess.run(command, env=stage_environment(), capture_output=True, text=True)
    if done.returncode:
        told = (done.stderr.strip() or "no message").splitlines()[-1]
        raise InvalidInputError("what was restored", told, "data, teacher and student of the lineage", "mend this")
    return json.loads(done.stdout)


def restore_version(
    client: MlflowClient,
    model_name: str,
    version: str,
    into: Path,
    runs_root: Path,
    logger: Logger,
    observe: Callable[[Path], Mapping[str, str]] = observed_hashes,
) -> Lineage:
    """Makes the folder `into`, complete or not at all; outputs come from the runs' cache, else from the remote.

    Raises:
        InvalidInputError: `into` holds something, an output is nowhere, or a hash is not that of the lineage.
    """
    if into.exists() and (not into.is_dir() or any(into.iterdir())):
        raise InvalidInputError("--into", f"{into}, which holds something", "a new or empty folder", "choose another")
    lineage = Evidence.of_version(client, model_name, version).release.lineage
    into = into.resolve()
    with atomic_path(into) as workspace:
        workspace.mkdir()
        with tempfile.TemporaryDirectory() as scratch:
            evidence = fetch_evidence(client, model_name, version, Path(scratch))
            for name in RECIPE:
                shutil.copy(evidence / name, workspace / name)
        params = load_params(workspace / "params.yaml")
        code = _code(workspace, lineage, logger)
        connect_workspace(workspace, params, code, str(runs_root.resolve() / CACHE))
        _fetch_outputs(workspace, params.storage.dvc_remote, logger)
        _compare(observe(workspace), lineage)
    return lineage


def _code(workspace: Path, lineage: Lineage, logger: Logger) -> Path:
    """What `src` points to: the version's commit, or where this checkout does not have it, the code that is here."""
    if COMMIT.fullmatch(lineage.git_sha):
        try:
            copy = run_checkout(workspace, lineage.git_sha, CHECKOUT)
            return Path(COPY, "src") if copy != CHECKOUT else CHECKOUT / "src"
        except InvalidInputError as error:
            logger.warning("%s", error)
    logger.warning("src is the code of this checkout, %s; the version was made by %s", git_revision(), lineage.git_sha)
    return CHECKOUT / "src"


def _fetch_outputs(workspace: Path, remote: str, logger: Logger) -> None:
    for attempt in ["checkout", "pull"] if remote else ["checkout"]:
        try:
            run_dvc([attempt], workspace, TRANSFER_TIMEOUT_S, logger, f"dvc {attempt}")
            break
        except StageError as error:
            logger.warning("%s", error)
    missing = _changed_outputs(workspace)
    if missing:
        raise InvalidInputError(
            "outputs", f"{', '.join(missing)} in neither cache nor remote ({remote or 'none is set'})",
            f"all that {workspace.name}/dvc.lock names", "bring the cache below the runs back, or name its remote",
        )  # fmt: skip


def _changed_outputs(workspace: Path) -> list[str]:
    """Outputs that are not what dvc.lock says, without progress, which is kept nowhere."""
    stages = stale_stages(workspace).values()
    reasons = [entry for found in stages for entry in found if isinstance(entry, dict)]
    paths = [path for reason in reasons for path in reason.get("changed outs", {})]
    return [path for path in paths if not path.startswith("progress/")]


def _compare(observed: Mapping[str, str], lineage: Lineage) -> None:
    allowed = {"data": lineage.data_sha256, "teacher": lineage.teacher_sha256, "student": lineage.student_sha256}
    wrong = [name for name, value in allowed.items() if observed.get(name) != value]
    if wrong:
        raise InvalidInputError(
            f"{', '.join(wrong)} of the version",
            ", ".join(f"{observed.get(name, 'nothing')[:12]}" for name in wrong),
            ", ".join(f"{allowed[name][:12]}" for name in wrong) + ", as in its lineage",
            f"bring these back as they were at commit {lineage.git_sha}",
        )
