"""Which version of a teacher is the newest, whether its upload is complete, and its files in a folder of this machine.

A source is `s3://bucket/prefix`, below which checkpoints lie, or `models:/name@alias` in MLflow's registry.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from slimtts.errors import InvalidInputError, SlimttsError
from slimtts.storage import atomic_path
from tasks.artifact_store import check_no_links, check_own, refuse_links, run_artifacts
from tasks.bucket import s3_client
from tasks.tracking import mlflow_client, tracking_uri

if TYPE_CHECKING:
    from botocore.client import BaseClient

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
REGISTERED = re.compile(r"models:/(?P<model>[A-Za-z0-9._-]+)@(?P<alias>[A-Za-z0-9._-]+)")
LOGGED_MODEL = re.compile(r"models:/(?P<id>m-[0-9a-f]+)")
DIGITS = 12  # of a fingerprint, in names


class ChangedMeanwhileError(SlimttsError):
    """An upload went on while the checkpoint was read; the next look sees it complete."""


class StoredFile(NamedTuple):
    """An object below a prefix, by its path from there; two with the same tag and size hold the same."""

    path: str
    etag: str
    size_bytes: int
    changed_at: datetime


@dataclass(frozen=True)
class TeacherVersion:
    """A complete checkpoint: where it lies, and a fingerprint that stays as long as its content does.

    `address` is s3://bucket/folder/, or models:/name/version.
    """

    label: str
    address: str
    fingerprint: str
    files: tuple[StoredFile, ...] = ()

    @property
    def name(self) -> str:
        """Its folder and its run are called so."""
        label = re.sub(r"[^A-Za-z0-9._-]+", "-", self.label).strip("._-") or "teacher"
        return f"{label}-{self.fingerprint[:DIGITS]}"


def newest_version(source: str, endpoint: str, runs_root: Path, marker: str, quiet_s: float) -> TeacherVersion | None:
    """The newest complete checkpoint; None when there is none yet.

    Args:
        source: s3://bucket/prefix, or models:/name@alias.
        endpoint: of the S3 server; "" for AWS_ENDPOINT_URL or AWS.
        runs_root: has the MLflow store when no server is named.
        marker: file that is uploaded last; "" = a checkpoint is complete when config.json and all its weights are
            there and nothing has changed for `quiet_s`.
        quiet_s: seconds.

    Raises:
        InvalidInputError: a source of another form.
        SlimttsError: the bucket does not answer, or holds names that leave their folder.
    """
    registered = REGISTERED.fullmatch(source)
    if registered:
        return _aliased(registered["model"], registered["alias"], runs_root)
    if not source.startswith("s3://") or not urlsplit(source).netloc:
        raise InvalidInputError("source", repr(source), "s3://bucket/prefix or models:/name@alias", "correct it")
    prefix = f"{source.rstrip('/')}/"
    with _bucket_errors(source):
        client = s3_client(endpoint)
        for folder, files in _checkpoints(_listed(client, prefix), marker or CONFIG):
            address = f"{prefix}{folder}"
            if _has_settled(files, marker, quiet_s) and (marker or _has_weights(client, address, files)):
                return TeacherVersion(PurePosixPath(urlsplit(address).path).name, address, _fingerprint(files), files)
    return None


def fetch(version: TeacherVersion, endpoint: str, runs_root: Path) -> Path:
    """The checkpoint's folder below `runs_root/teachers`, complete.

    Raises:
        ChangedMeanwhileError: it was uploaded again while it was read.
        InvalidInputError: a registered one lies outside of one's own artifact store, or holds links.
        SlimttsError: the bucket does not answer, or the version holds no checkpoint.
    """
    folder = runs_root.resolve() / "teachers" / version.name
    if not folder.is_dir():
        with atomic_path(folder) as temporary:
            if version.address.startswith("models:"):
                _fetch_registered(version, temporary, runs_root)
            else:
                _fetch_objects(version, temporary, endpoint)
    return _checkpoint_in(folder)


def _aliased(model: str, alias: str, runs_root: Path) -> TeacherVersion | None:
    from mlflow.exceptions import MlflowException

    try:
        found = mlflow_client(tracking_uri(runs_root)).get_model_version_by_alias(model, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
    # A version never changes; its time of creation tells it from one of a registry that was made anew.
    identity = f"{model} {found.version} {found.creation_timestamp}"
    return TeacherVersion(model, f"models:/{model}/{found.version}", hashlib.sha256(identity.encode()).hexdigest())


def _fetch_registered(version: TeacherVersion, folder: Path, runs_root: Path) -> None:
    """From one's own artifact store, whatever the registry says of where the version lies."""
    from mlflow.artifacts import download_artifacts

    uri = tracking_uri(runs_root)
    client, what = mlflow_client(uri), f"teacher {version.address}"
    name, _, number = version.address.removeprefix("models:/").rpartition("/")
    source = str(client.get_model_version_download_uri(name, number))
    logged = LOGGED_MODEL.fullmatch(source)
    if source.startswith("runs:/"):
        run_id, _, path = source.removeprefix("runs:/").partition("/")
        root = run_artifacts(client, run_id, what)
    else:
        root, path = str(client.get_logged_model(logged["id"]).artifact_location) if logged else source, ""
        check_own(root, uri, what)
    check_no_links(root, path, what)
    folder.mkdir()
    address = f"{root.rstrip('/')}/{path}".rstrip("/")
    download_artifacts(artifact_uri=address, dst_path=str(folder), tracking_uri=uri, registry_uri=uri)
    refuse_links(folder, folder, what)


def _fetch_objects(version: TeacherVersion, folder: Path, endpoint: str) -> None:
    place = urlsplit(version.address)
    with _bucket_errors(version.address):
        client = s3_client(endpoint)
        for file in version.files:
            target = folder / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            client.download_file(place.netloc, f"{place.path[1:]}{file.path}", str(target))
        if _fingerprint(_listed(client, version.address)) != version.fingerprint:
            raise ChangedMeanwhileError(f"teacher {version.address}: changed while it was read; next: look again")


def _checkpoint_in(folder: Path) -> Path:
    """The uppermost folder with a config.json: a registered model may hold its checkpoint further down."""
    configs = sorted(folder.rglob(CONFIG), key=lambda path: len(path.parts))
    if not configs:
        raise InvalidInputError(f"teacher {folder.name}", f"no {CONFIG}", "a checkpoint", "register it with its files")
    return configs[0].parent


def _listed(client: BaseClient, prefix: str) -> tuple[StoredFile, ...]:
    place = urlsplit(prefix)
    start = place.path[1:]
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=place.netloc, Prefix=start)
    files = tuple(
        StoredFile(found["Key"].removeprefix(start), found["ETag"], found["Size"], found["LastModified"])
        for page in pages
        for found in page.get("Contents", [])
        if not found["Key"].endswith("/")
    )
    for file in files:
        if PurePosixPath(file.path).is_absolute() or ".." in PurePosixPath(file.path).parts:
            raise InvalidInputError(prefix, repr(file.path), "names within the folder", "remove that object")
    return files


def _checkpoints(files: Sequence[StoredFile], sign: str) -> list[tuple[str, tuple[StoredFile, ...]]]:
    """Folder ("" or "a/b/") and files of each uppermost folder that holds `sign`; the last changed one first."""
    found: dict[str, tuple[StoredFile, ...]] = {}
    for path in sorted((file.path for file in files), key=lambda path: path.count("/")):
        folder, _, name = path.rpartition("/")
        start = f"{folder}/" if folder else ""
        if name == sign and not any(start.startswith(other) for other in found):
            inside = sorted(file for file in files if file.path.startswith(start))
            found[start] = tuple(file._replace(path=file.path.removeprefix(start)) for file in inside)
    # Servers give whole seconds: of two folders that changed in the same one, the later name counts.
    return sorted(found.items(), key=lambda item: (max(file.changed_at for file in item[1]), item[0]), reverse=True)


def _has_settled(files: Sequence[StoredFile], marker: str, quiet_s: float) -> bool:
    last = max(file.changed_at for file in files)
    if marker:
        return any(file.path == marker and file.changed_at >= last for file in files)
    return not quiet_s or (datetime.now(UTC) - last).total_seconds() >= quiet_s


def _has_weights(client: BaseClient, address: str, files: Sequence[StoredFile]) -> bool:
    names = {file.path for file in files}
    if INDEX not in names:
        return WEIGHTS in names
    place = urlsplit(address)
    index = client.get_object(Bucket=place.netloc, Key=f"{place.path[1:]}{INDEX}")["Body"].read()
    try:
        return set(json.loads(index)["weight_map"].values()) <= names
    except (ValueError, KeyError, AttributeError):
        return False  # half an index is an upload under way


def _fingerprint(files: Sequence[StoredFile]) -> str:
    content = sorted((file.path, file.etag, file.size_bytes) for file in files)
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@contextmanager
def _bucket_errors(address: str) -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (ClientError, BotoCoreError) as error:
        raise SlimttsError(f"{address}: {error}; next: check AWS_* and the endpoint") from None
