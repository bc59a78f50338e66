"""Brings a registered student here, verified, without running any of its files.

`python -m tasks.fetch_model models:/NAME@ALIAS FOLDER` makes FOLDER of the student's weights, configuration, tokenizer
and voices, and prints its identity as a line of JSON. Everything else a version may hold is left where it is: the
version must be laid out as `tasks.registry` lays it out, in one's own artifact store, with the code of
`speech_pyfunc.py` that is known here, and weights and all other files must have the hashes in the version's tags. A
pickle, other code, other names: refused before a download.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NoReturn

from slimtts.console import exit_code_of
from slimtts.errors import InvalidInputError, SlimttsError
from slimtts.model_files import stored_tensors
from slimtts.printable import printable
from slimtts.process_guard import die_with_parent
from slimtts.redaction import redacted
from slimtts.storage import atomic_path, files_sha256, folder_sha256
from slimtts.yaml_files import parse_yaml
from tasks.artifact_store import check_no_links, run_artifacts

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

# Every text that speech_pyfunc.py has had: a version keeps the one it was registered with.
KNOWN_CODE_SHA256 = frozenset({"b1d7a02df2af37dd5ea5804fceb39fb31dab99e5b04777f4c688cd8a484fb92c"})
MODEL_FILES = "model_files_sha256"  # tag of a version: `folder_sha256` of the student's files; slimtts 0.1 had none
CODE, MLMODEL, ARTIFACTS = "speech_pyfunc.py", "MLmodel", "artifacts"
BESIDE = frozenset({CODE, MLMODEL, "conda.yaml", "python_env.yaml", "requirements.txt"})
LOADER = "mlflow.pyfunc.loaders.code_model"  # of a model from code; the other one unpickles
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
STUDENT_SUFFIXES = frozenset({".json", ".jinja", ".safetensors", ".txt", ".model", ".md"})
LICENSE_NAMES = frozenset({"LICENSE", "LICENCE", "NOTICE"})
LARGEST_TEXT_BYTES = 256 << 20  # of any file but weights
MODEL_URI = re.compile(r"models:/(?P<name>[A-Za-z0-9._-]+)(?:@(?P<alias>[A-Za-z0-9._-]+)|/(?P<version>[0-9]+))")
SOURCE = re.compile(r"runs:/(?P<run>[0-9a-f]{32})/(?P<path>[A-Za-z0-9][A-Za-z0-9._-]*)")
SHA256 = re.compile(r"[0-9a-f]{64}")
logger = logging.getLogger(__name__)
NEXT = "promote or roll back to a version that `slimtts` registered"


@dataclass(frozen=True)
class FetchedModel:
    """A version of a model; `folder` is None when it was not fetched because the caller has it."""

    folder: str | None
    name: str
    version: str
    run_id: str
    student_sha256: str


def fetch_model(client: MlflowClient, uri: str, folder: Path, unless_version: str | None = None) -> FetchedModel:
    """Makes `folder` of the student's files, complete or not at all.

    Raises:
        InvalidInputError: no such version, or one that is not exactly what `tasks.registry` makes.
    """
    version = resolve(client, uri)
    what = f"{version.name} version {version.version}"
    sha256 = str(version.tags.get("student_sha256", ""))
    if not SHA256.fullmatch(sha256):
        _refuse(what, f"tag student_sha256 '{sha256[:80]}'", "64 hex digits")
    if str(version.version) == unless_version:
        return FetchedModel(None, version.name, str(version.version), str(version.run_id), sha256)
    source = SOURCE.fullmatch(version.source or "")
    if source is None or source["run"] != version.run_id:
        _refuse(what, f"source {str(version.source)[:120]}", "runs:/ of the version's own run")
    root = source["path"]
    check_no_links(run_artifacts(client, source["run"], what), root, what)
    sizes = dict(_listed(client, source["run"], root, what))
    student = check_names(sizes, what)
    with tempfile.TemporaryDirectory(prefix="slimtts-fetch-") as temporary:

        def download(name: str) -> Path:
            local = Path(client.download_artifacts(source["run"], f"{root}/{name}", temporary))
            is_plain = local.is_file() and not local.is_symlink()
            if not is_plain or not local.resolve().is_relative_to(Path(temporary).resolve()):
                _refuse(f"{what}, {name}", "no plain file", "a file")
            return local

        check_mlmodel(download(MLMODEL).read_bytes(), student, what)
        check_code(download(CODE).read_bytes(), what)
        with atomic_path(folder) as made:
            made.mkdir()
            for name in sorted(sizes):
                if name.startswith(f"{ARTIFACTS}/"):
                    shutil.move(download(name), made / PurePosixPath(name).name)
            check_student(made, sha256, what)
            check_files(made, version.tags.get(MODEL_FILES), what)
    return FetchedModel(str(folder), version.name, str(version.version), source["run"], sha256)


def resolve(client: MlflowClient, uri: str) -> ModelVersion:
    """The version behind models:/NAME@ALIAS or models:/NAME/NUMBER.

    Raises:
        InvalidInputError: another form, or the registry has no such version.
    """
    from mlflow.exceptions import MlflowException

    named = MODEL_URI.fullmatch(uri)
    if named is None:
        raise InvalidInputError("model", f"'{uri[:120]}'", "models:/NAME@ALIAS or models:/NAME/NUMBER", "correct it")
    try:
        if named["alias"]:
            return client.get_model_version_by_alias(named["name"], named["alias"])
        return client.get_model_version(named["name"], named["version"])
    except MlflowException as error:
        raise InvalidInputError(uri, str(error).splitlines()[0], "a version in the registry", "promote one") from None


def _listed(client: MlflowClient, run_id: str, root: str, what: str, below: str = "") -> Iterator[tuple[str, int]]:
    """Names relative to `root`, with sizes in bytes; folders other than those of a student are refused unopened."""
    prefix = f"{root}/{below}".rstrip("/")
    for entry in client.list_artifacts(run_id, prefix):
        name = str(entry.path).removeprefix(f"{root}/")
        if not entry.is_dir:
            yield name, int(entry.file_size or 0)
        elif name.split("/")[0] == ARTIFACTS and name.count("/") <= 1 and ".." not in name:
            yield from _listed(client, run_id, root, what, name)
        else:
            _refuse(what, f"a folder {name!r}", f"{ARTIFACTS}/ alone")


def check_names(sizes: dict[str, int], what: str) -> str:
    """The student's folder among these files of a version, which must be exactly those that a version has.

    Raises:
        InvalidInputError: a file is missing, or one is there that is no part of a student.
    """
    missing = sorted({CODE, MLMODEL} - sizes.keys())
    if missing:
        _refuse(what, f"no file {missing[0]}", "a model from code, with MLmodel")
    folders = set()
    for name, size in sizes.items():
        parts = name.split("/")
        is_student = len(parts) == 3 and parts[0] == ARTIFACTS and all(map(PLAIN_NAME.fullmatch, parts))
        if is_student and is_student_file(parts[2]):
            folders.add(f"{ARTIFACTS}/{parts[1]}")
        elif name not in BESIDE:
            _refuse(what, f"a file {name[:120]!r}", "weights as safetensors, JSON and texts; no pickle, no other code")
        if size > LARGEST_TEXT_BYTES and not name.endswith(".safetensors"):
            _refuse(what, f"{name} of {size} bytes", f"at most {LARGEST_TEXT_BYTES}")
    if len(folders) != 1:
        _refuse(what, f"{len(folders)} folders of a student", "one")
    return folders.pop()


def is_student_file(name: str) -> bool:
    """May a file of this name be part of a student? Neither pickles nor code may."""
    path = PurePosixPath(name)
    return path.suffix in STUDENT_SUFFIXES or name in LICENSE_NAMES


def check_mlmodel(content: bytes, student: str, what: str) -> None:
    """Refuses an MLmodel file that would load more than our code and the student's folder.

    Raises:
        InvalidInputError: names the entry.
    """
    try:
        flavors = parse_yaml(content.decode(), f"{what}, {MLMODEL}")["flavors"]
        python: dict[str, Any] = flavors["python_function"]
        code, artifacts = Path(python["model_code_path"]).name, python["artifacts"]
        paths = {key: entry["path"] for key, entry in artifacts.items()}
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        _refuse(f"{what}, {MLMODEL}", f"{type(error).__name__} at {str(error)[:80]}", "a python_function from code")
    expected = {
        "flavors": (list(flavors), ["python_function"]),
        "loader_module": (python.get("loader_module"), LOADER),
        "model_code_path": (code, CODE),
        "code": (python.get("code"), None),
        "python_model": (python.get("python_model"), None),
        "artifacts": (paths, {"student": student}),
    }
    for entry, (observed, allowed) in expected.items():
        if observed != allowed:
            _refuse(f"{what}, {MLMODEL}", f"{entry} = {str(observed)[:120]}", allowed)


def check_code(content: bytes, what: str, known: Collection[str] = KNOWN_CODE_SHA256) -> None:
    """Refuses code that is not ours, though it is never run here: somebody has changed the version.

    Raises:
        InvalidInputError: an unknown text.
    """
    digest = hashlib.sha256(content).hexdigest()
    if digest not in known:
        _refuse(f"{what}, {CODE}", f"sha256 {digest}", "a text of it that this checkout knows")


def check_student(folder: Path, sha256: str, what: str) -> None:
    """Refuses other weights than those that were evaluated, and configurations that ask for code.

    Raises:
        InvalidInputError: names the file.
    """
    found = files_sha256(sorted(folder.glob("*.safetensors")))
    if found != sha256:
        _refuse(f"{what}, weights", f"sha256 {found}", f"{sha256} as in its tag student_sha256")
    stored_tensors(folder)  # what was hashed is all that an index may lead to
    for path in sorted(folder.glob("*config.json")):
        try:
            asks_for_code = "auto_map" in json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError, TypeError) as error:
            _refuse(f"{what}, {path.name}", str(error), "a JSON object")
        if asks_for_code:
            _refuse(f"{what}, {path.name}", "auto_map, which names code", "a configuration of a known architecture")


def check_files(folder: Path, sha256: str | None, what: str) -> None:
    """Refuses other files than those that were registered: configuration, tokenizer and voices decide too what is said.

    Raises:
        InvalidInputError: the hash of all files is another.
    """
    if sha256 is None:
        logger.warning("%s: registered by slimtts 0.1; only its weights and its code have hashes", what)
    elif folder_sha256(folder) != sha256:
        _refuse(f"{what}, files", f"sha256 {folder_sha256(folder)}", f"{sha256} as in its tag {MODEL_FILES}")


def _refuse(what: str, observed: object, allowed: object) -> NoReturn:
    raise InvalidInputError(what, observed, allowed, NEXT)


def _registry() -> MlflowClient:
    from tasks.tracking import mlflow_client, tracking_uri
    from tasks.workspace import CHECKOUT

    runs_root = CHECKOUT / "runs"
    if not os.environ.get("MLFLOW_TRACKING_URI") and not (runs_root / "mlflow.db").is_file():
        raise InvalidInputError(
            "registry", f"no {runs_root / 'mlflow.db'}", "a registry", "set MLFLOW_TRACKING_URI, or `make demo` first"
        )
    return mlflow_client(tracking_uri(runs_root))


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetches one model; every expected error is one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser(prog="tasks.fetch_model", description=__doc__.splitlines()[0])
    parser.add_argument("model", help="models:/NAME@ALIAS or models:/NAME/NUMBER")
    parser.add_argument("folder", type=Path, help="to be made")
    parser.add_argument("--unless-version", help="fetch nothing when this is the version")
    options = parser.parse_args(arguments)
    die_with_parent()  # nobody would use what it brings
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # whoever waits for an answer wants it soon
    from botocore.exceptions import BotoCoreError, ClientError
    from mlflow.exceptions import MlflowException

    try:
        fetched = fetch_model(_registry(), options.model, options.folder, options.unless_version)
    except (SlimttsError, MlflowException, BotoCoreError, ClientError, OSError) as error:
        print(f"fetch_model: {redacted(printable(error, 600))}", file=sys.stderr)
        return 2
    print(json.dumps(asdict(fetched)))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
