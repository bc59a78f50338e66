"""A registered version as a workspace again: its code, params, DVC files and outputs, proven by their hashes.

Nothing of a version decides where code, bytes or requests go. What it gives is checked against the hashes in its tags;
which outputs there are says one's own dvc.yaml, where they come from one's own cache and remote, and what the code is
one's own git. The code is linked last.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from slimtts.errors import InvalidInputError
from slimtts.params import Params, parse_params
from slimtts.results import Lineage
from slimtts.storage import atomic_path
from tasks.bucket import s3_client
from tasks.checkouts import CHECKOUT, COPY, git_revision, is_own_commit, run_checkout
from tasks.evidence import Evidence, fetch_evidence
from tasks.object_store import fetch_object
from tasks.output_bytes import (
    Output,
    changed_outputs,
    declared_outputs,
    locked_outputs,
    missing_objects,
    object_path,
)
from tasks.stage_runner import CACHE, Logger, run_dvc, stage_environment
from tasks.workspace import compose_params, connect_dvc, link_code

if TYPE_CHECKING:
    from mlflow import MlflowClient

COMMIT = re.compile(r"[0-9a-f]{40}")
TRANSFER_TIMEOUT_S = 4 * 3600.0
OWN_SECTIONS = ("storage", "teacher")  # settings of one's own that a restore asks for
REMOTE_KEY = "storage.dvc_remote=s3://bucket/prefix"
LARGEST_PARAMS_BYTES = 1 << 20


def own_settings(overrides: Sequence[str]) -> Params:
    """One's own params.yaml with `--set storage.KEY=VALUE` and `--set teacher.KEY=VALUE`.

    Raises:
        InvalidInputError: another section, or a bad value.
    """
    others = [text for text in overrides if text.strip().partition(".")[0] not in OWN_SECTIONS]
    if others:
        raise InvalidInputError("--set", repr(others[0]), "storage.KEY=VALUE or teacher.KEY=VALUE", "leave it out")
    return compose_params("full", overrides)


def observed_hashes(workspace: Path, may_download: bool) -> Mapping[str, str]:
    """Hashes of data, teacher and student, taken by the package in a process of its own, because it opens models.

    A teacher of the hub comes from this machine's cache, unless `may_download`.

    Raises:
        InvalidInputError: one of them is not there.
    """
    command = [sys.executable, "-P", "-m", "slimtts.lineage_check", str(workspace)]
    environment = stage_environment() | ({} if may_download else {"HF_HUB_OFFLINE": "1"})
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        told = (done.stderr.strip() or "no message").splitlines()[-1]
        raise InvalidInputError(
            "what was restored", told, "data, teacher and student of the lineage",
            "bring it here; a teacher of the hub is downloaded for --set teacher.source and teacher.revision",
        )  # fmt: skip
    return json.loads(done.stdout)


def restore_version(
    client: MlflowClient,
    model_name: str,
    version: str,
    into: Path,
    runs_root: Path,
    logger: Logger,
    overrides: Sequence[str] = (),
    observe: Callable[[Path, bool], Mapping[str, str]] = observed_hashes,
) -> Lineage:
    """Makes the folder `into`, complete or not at all; outputs come from the runs' cache, else from one's own remote.

    Args:
        client: of one's own registry.
        model_name: name in the registry.
        version: number in the registry.
        into: a new or empty folder.
        runs_root: below it lies the cache.
        logger: is told what differs from the version and does not stop the restore.
        overrides: see `own_settings`.
        observe: takes the hashes of what was restored; its second argument says whether a teacher may be downloaded.

    Raises:
        InvalidInputError: `into` holds something, the version's files are not as registered or name what one's own
            dvc.yaml does not have, an output is nowhere, or a hash is not that of the lineage.
    """
    if into.is_symlink() or (into.exists() and (not into.is_dir() or any(into.iterdir()))):
        raise InvalidInputError("--into", f"{into}, which holds something", "a new or empty folder", "choose another")
    own, cache, into = own_settings(overrides), runs_root.resolve() / CACHE, into.resolve()
    with tempfile.TemporaryDirectory() as scratch, atomic_path(into) as workspace:
        evidence = fetch_evidence(client, model_name, version, Path(scratch), with_recipe=True)
        lineage = Evidence.of_folder(evidence).release.lineage
        params = _params(evidence / "params.yaml", own, logger)
        workspace.mkdir()
        code = _code(workspace, lineage, logger)
        _copy_recipe(evidence, code if code.is_absolute() else workspace / code, workspace, logger)
        (workspace / "params.yaml").write_text(yaml.safe_dump(params.model_dump(), sort_keys=False))
        outputs = locked_outputs(workspace / "dvc.lock", declared_outputs(workspace / "dvc.yaml"), "dvc.lock")
        connect_dvc(workspace, params, str(cache))
        _fetch_outputs(workspace, cache, outputs, params, logger)
        may_download = (own.teacher.source, own.teacher.revision) == (params.teacher.source, params.teacher.revision)
        _compare(observe(workspace, may_download), lineage)
        link_code(workspace, code / "src")
    return lineage


def _params(path: Path, own: Params, logger: Logger) -> Params:
    """The version's knobs, with one's own places to store."""
    try:
        text = path.read_text(encoding="utf-8")
        values = yaml.safe_load(text) if len(text) <= LARGEST_PARAMS_BYTES else None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise InvalidInputError(path.name, " ".join(str(error).split())[:200], "valid YAML", "correct it") from None
    values = values if isinstance(values, dict) else {}
    former = values.get("storage")
    params = parse_params({**values, "storage": own.storage.model_dump()}, "params.yaml of the version")
    remote = former.get("dvc_remote") if isinstance(former, dict) else ""
    if remote and remote != own.storage.dvc_remote:
        logger.warning("the version names the remote %r; it is asked only if you name it: --set %s", remote, REMOTE_KEY)
    return params


def _code(workspace: Path, lineage: Lineage, logger: Logger) -> Path:
    """The version's commit, where a branch of this checkout has it, copied below the workspace; else what is here."""
    if COMMIT.fullmatch(lineage.git_sha) and is_own_commit(CHECKOUT, lineage.git_sha):
        copy = run_checkout(workspace, lineage.git_sha, CHECKOUT)
        return Path(COPY) if copy != CHECKOUT else CHECKOUT
    logger.warning("src is the code of this checkout, %s; the version was made by %s", git_revision(), lineage.git_sha)
    return CHECKOUT


def _copy_recipe(evidence: Path, code: Path, workspace: Path, logger: Logger) -> None:
    """dvc.lock of the version, and dvc.yaml of the code: its commands are what `dvc repro` would run."""
    shutil.copyfile(evidence / "dvc.lock", workspace / "dvc.lock")
    shutil.copyfile(code / "dvc.yaml", workspace / "dvc.yaml")
    if (evidence / "dvc.yaml").read_bytes() != (code / "dvc.yaml").read_bytes():
        logger.warning("dvc.yaml is that of the code, %s; the version was made by another", code)


def _fetch_outputs(workspace: Path, cache: Path, outputs: Sequence[Output], params: Params, logger: Logger) -> None:
    """Brings objects that the cache lacks from the remote, each checked by its hash, and checks them out."""
    client = s3_client(params.storage.s3_endpoint) if params.storage.dvc_remote else None

    def fetch(md5: str) -> bool:
        into = object_path(cache, md5)
        return client is not None and fetch_object(client, params.storage.dvc_remote, md5, into, logger)

    missing = [output.path for output in outputs if not _complete(cache, output, fetch)]
    if not missing:
        run_dvc(["checkout"], workspace, TRANSFER_TIMEOUT_S, logger, "dvc checkout")
        missing = changed_outputs(workspace, outputs)
    if missing:
        remote = params.storage.dvc_remote or "none is set"
        raise InvalidInputError(
            "outputs", f"{', '.join(missing)} in neither cache nor remote ({remote})",
            "all that dvc.lock names, with the bytes that it names",
            f"bring the cache below the runs back, or name its remote: --set {REMOTE_KEY}",
        )  # fmt: skip


def _complete(cache: Path, output: Output, fetch: Callable[[str], bool]) -> bool:
    """Whether the cache holds all of an output, after the remote was asked for what it lacks."""
    while missing := missing_objects(cache, output):
        if not all([fetch(md5) for md5 in missing]):
            return False
    return True


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
