"""Training checkpoints in S3, so that another machine can go on with a training.

    <url>/manifest.json      the newest checkpoint of each training: its files and their SHA-256
    <url>/objects/<sha256>   their contents

The manifest is replaced by one request after all that it names has arrived: a reader never meets half a checkpoint.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints, ValidationError

from slimtts.curves import CURVES
from slimtts.errors import InvalidInputError, SlimttsError
from slimtts.params import StorageParams
from slimtts.storage import read_hashes, remove
from slimtts.workspace import Workspace
from tasks.bucket import ensure_bucket, s3_client
from tasks.repetition import repeating
from tasks.transfer import abort_uploads, download_file, object_at, s3_errors, upload_by_content

if TYPE_CHECKING:
    from botocore.client import BaseClient

EVERY_S = 60.0
Logger = logging.Logger | logging.LoggerAdapter[Any]
DONE = "DONE"  # as slimtts.checkpoints, which needs torch, names it


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError("leaves the folder")
    return name


RelativePath = Annotated[str, AfterValidator(_inside)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class MirroredTraining(BaseModel):
    """The newest complete checkpoint of one training, as step-00000400, and files by path below the training."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    newest: str
    files: dict[RelativePath, Sha256]


class Manifest(BaseModel):
    """Trainings by their path below the workspace's checkpoints."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    trainings: dict[RelativePath, MirroredTraining] = {}


@contextmanager
def mirrored_checkpoints(
    workspace: Workspace, storage: StorageParams, logger: Logger, every_s: float = EVERY_S
) -> Iterator[None]:
    """While the block trains, its checkpoints go to the DVC remote every so often; without a remote, nothing happens.

    A workspace that has not trained yet begins with what the mirror holds for its name. After a good end the mirror is
    removed. An S3 that is away delays the copies and never the training.
    """
    if not storage.dvc_remote:
        yield
        return
    url, client = f"{storage.dvc_remote}/checkpoints/{workspace.root.name}", s3_client(storage.s3_endpoint)

    def copy() -> None:
        try:
            mirror_checkpoints(client, workspace, url)
        except SlimttsError as error:  # the training goes on; the next round tries again
            logger.warning("the copy of the checkpoints is late: %s", error)

    try:
        ensure_bucket(client, storage.dvc_remote, logger)
        if not workspace.student.exists() and not newest_checkpoints(workspace.checkpoints):
            fetched = fetch_checkpoints(client, workspace, url)
            if fetched:
                logger.info("goes on from checkpoints of another machine, %.1f MB from %s", fetched / 1e6, url)
    except SlimttsError as error:
        logger.warning("starts without a look at the copy of its checkpoints: %s", error)
    with repeating(copy, every_s):
        yield
    try:
        remove_mirror(client, url)
    except SlimttsError as error:
        logger.warning("the copy of the checkpoints stays: %s", error)


def mirror_checkpoints(client: BaseClient, workspace: Workspace, url: str) -> int:
    """Copies the newest complete checkpoint of each training to `url`, and removes older ones there.

    One that is not what the trainer wrote is not copied; the one before it is.

    Args:
        client: of `tasks.bucket.s3_client`; the bucket exists.
        workspace: may be training meanwhile.
        url: s3://bucket/prefix; one writer at a time.

    Returns:
        The bytes that were sent; 0 when there was nothing new.

    Raises:
        SlimttsError: the server refuses or stays away, or a checkpoint is damaged.
    """
    folder, sent = workspace.checkpoints, 0
    trainings, damaged = {}, []
    try:
        for step in _newest_first(folder):
            training, files = step.parent, {}
            name = training.relative_to(folder).as_posix()
            if name in trainings:
                continue
            for path in [*sorted(step.iterdir()), training / CURVES]:
                if path.is_file():
                    transfer = upload_by_content(client, path, f"{url}/objects")
                    files[path.relative_to(training).as_posix()] = transfer.sha256
                    sent += transfer.moved_bytes
            if _is_as_written(step, files):
                trainings[name] = MirroredTraining(newest=step.name, files=files)
            else:
                damaged.append(str(step))
    except FileNotFoundError:  # the trainer has removed it for a newer one, which the next call takes
        return sent
    manifest = Manifest(trainings=trainings)
    if trainings and manifest != read_manifest(client, url):
        with s3_errors(url):
            client.put_object(**object_at(f"{url}/manifest.json"), Body=manifest.model_dump_json().encode())
            _remove_others(client, url, manifest)
            abort_uploads(client, f"{url}/objects/")
    if damaged:
        raise SlimttsError(f"{damaged[0]}: observed other bytes than the training wrote; the one before it is copied")
    return sent


def _is_as_written(step: Path, files: Mapping[str, str]) -> bool:
    """Whether the hashes of what was sent are those that the trainer noted; earlier versions noted none."""
    noted = read_hashes(step / DONE) or {}
    return all(files.get(f"{step.name}/{name}") == sha256 for name, sha256 in noted.items())


def fetch_checkpoints(client: BaseClient, workspace: Workspace, url: str) -> int:
    """Brings mirrored checkpoints that are newer than the workspace's own; call it while nothing trains there.

    Returns:
        The bytes that were fetched.

    Raises:
        InvalidInputError: the manifest is none, or names files outside of the workspace.
        SlimttsError: the server refuses or stays away, or the mirror was replaced meanwhile; a second call goes on.
    """
    own = {step.parent: step.name for step in newest_checkpoints(workspace.checkpoints)}
    fetched = 0
    for name, mirrored in read_manifest(client, url).trainings.items():
        training = workspace.checkpoints / name
        if own.get(training, "") < mirrored.newest:
            # DONE last: a checkpoint counts once it is there.
            for path in sorted(mirrored.files, key=lambda path: path.endswith(DONE)):
                source = f"{url}/objects/{mirrored.files[path]}"
                transfer = download_file(client, source, training / path)
                if transfer.sha256 != mirrored.files[path]:
                    remove(training / path)
                    raise SlimttsError(f"{source}: observed an object of another content; next: remove the mirror")
                fetched += transfer.moved_bytes
    return fetched


def remove_mirror(client: BaseClient, url: str) -> None:
    """Deletes the mirror at `url`; the manifest first, so that nobody reads of what is gone.

    Raises:
        SlimttsError: the server refuses or stays away.
    """
    with s3_errors(url):
        client.delete_object(**object_at(f"{url}/manifest.json"))
        _remove_others(client, url, Manifest())
        abort_uploads(client, f"{url}/objects/")


def newest_checkpoints(folder: Path) -> list[Path]:
    """`<training>/step-00000400` of each training below `folder`: the newest that is complete."""
    newest: dict[Path, Path] = {}
    for step in _newest_first(folder):
        newest.setdefault(step.parent, step)
    return list(newest.values())


def _newest_first(folder: Path) -> list[Path]:
    return sorted((done.parent for done in folder.glob(f"**/step-*/{DONE}")), reverse=True)


def read_manifest(client: BaseClient, url: str) -> Manifest:
    """What lies at `url`; an empty manifest when nothing does.

    Raises:
        InvalidInputError: it is no manifest, or one with paths that leave the folder.
    """
    where = object_at(f"{url}/manifest.json")
    with s3_errors(url):
        listed = client.list_objects_v2(Bucket=where["Bucket"], Prefix=where["Key"])
        if where["Key"] not in [entry["Key"] for entry in listed.get("Contents", [])]:
            return Manifest()
        text = client.get_object(**where)["Body"].read()
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        observed = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise InvalidInputError(f"{url}/manifest.json", observed, "a manifest", "remove the mirror") from None


def _remove_others(client: BaseClient, url: str, manifest: Manifest) -> None:
    bucket, prefix = urlsplit(url).netloc, urlsplit(f"{url}/objects/").path.lstrip("/")
    wanted = {sha256 for training in manifest.trainings.values() for sha256 in training.files.values()}
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for entry in page.get("Contents", []):
            if entry["Key"].removeprefix(prefix) not in wanted:
                client.delete_object(Bucket=bucket, Key=entry["Key"])
