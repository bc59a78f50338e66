"""Artifacts of MLflow runs, read from one's own store only: a run or a version names a place, it does not choose it.

Own is what the tracking server hands out itself; without a server, what lies beside its database; and any address
below one of SLIMTTS_ARTIFACT_ROOTS. Elsewhere a version could send requests, and logins, to another host, or bring
files of this machine that nobody registered.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from slimtts.errors import InvalidInputError
from slimtts.redaction import redacted

if TYPE_CHECKING:
    from mlflow import MlflowClient

ROOTS = "SLIMTTS_ARTIFACT_ROOTS"  # environment: further addresses of one's own, separated by spaces
RUN_ID = re.compile(r"[0-9a-f]{32}")
LOCAL_SCHEMES = ("", "file")
PROXIED = "mlflow-artifacts"
NEXT = "run its compression again: the same student keeps its version"


def download_artifact(client: MlflowClient, run_id: str, path: str, into: Path, what: str) -> Path:
    """Brings a file or folder of a run below `into`; `what` names it in errors.

    Raises:
        InvalidInputError: no such run or artifact, it lies in a store that is not one's own, or holds links.
    """
    root = run_artifacts(client, run_id, what)
    check_no_links(root, path, what)
    try:
        local = Path(client.download_artifacts(run_id, path, str(into)))
    except Exception as error:
        if not _is_missing(error):
            raise
        raise InvalidInputError(what, f"no artifact {path} in run {run_id}", "one that was logged", NEXT) from None
    refuse_links(local, into, what)
    return local


def run_artifacts(client: MlflowClient, run_id: str, what: str) -> str:
    """The address of a run's artifacts, which is in one's own store.

    Raises:
        InvalidInputError: no such run, or another store.
    """
    if not RUN_ID.fullmatch(run_id):
        raise InvalidInputError(what, f"run {run_id!r}", "the id of an MLflow run", NEXT)
    try:
        address = str(client.get_run(run_id).info.artifact_uri)
    except Exception as error:
        if not _is_missing(error):
            raise
        raise InvalidInputError(what, f"no MLflow run {run_id}", "the run that it was registered by", NEXT) from None
    check_own(address, str(client.tracking_uri), what)
    return address


def check_own(address: str, tracking_uri: str, what: str) -> None:
    """Refuses an address outside of one's own store.

    Raises:
        InvalidInputError: names the address and how to allow it.
    """
    place, server = urlsplit(address), urlsplit(tracking_uri)
    climbs = ".." in unquote(unquote(address)).split("/")
    if server.scheme in ("http", "https"):
        own_host = server.netloc.rpartition("@")[2]
        is_own = place.scheme == PROXIED and place.netloc in ("", own_host)
        is_own = is_own or ((place.scheme, place.netloc) == (server.scheme, own_host) and not place.query)
        allowed = f"{PROXIED}: or {server.scheme}://{own_host}"
    else:
        folder = _local_store(tracking_uri)
        is_local = folder is not None and place.scheme in LOCAL_SCHEMES
        is_own = is_local and local_path(address).is_relative_to(str(folder))
        allowed = f"a place below {folder or 'the store'}"
    roots = os.environ.get(ROOTS, "").split()
    if climbs or not (is_own or any(_is_below(address, root) for root in roots)):
        raise InvalidInputError(
            f"artifacts of {what}", redacted(address), redacted(allowed),
            f"if that place is yours, name it in {ROOTS}; if not, do not use this version",
        )  # fmt: skip


def check_no_links(root: str, path: str, what: str) -> None:
    """Refuses an artifact of a local store that is, holds, or is reached through a link.

    Raises:
        InvalidInputError: names it.
    """
    if urlsplit(root).scheme not in LOCAL_SCHEMES:
        return
    folder = local_path(root)
    step = folder
    for part in Path(path).parts:
        step = step / part
        if step.is_symlink():
            _refuse_link(step, what)
    refuse_links(step, folder, what)


def refuse_links(local: Path, inside: Path, what: str) -> None:
    """Refuses links, and what is neither a file nor a folder, at or below `local`, which must lie below `inside`.

    Raises:
        InvalidInputError: names it.
    """
    if not local.resolve().is_relative_to(inside.resolve()):
        _refuse_link(local, what)
    for entry in (local, *_below(local)):
        if entry.is_symlink() or (entry.exists() and not (entry.is_dir() or entry.is_file())):
            _refuse_link(entry, what)


def local_path(address: str) -> Path:
    """The path behind a local address, as MLflow understands it; links in it are followed."""
    from mlflow.utils.file_utils import local_file_uri_to_path

    return Path(local_file_uri_to_path(address)).resolve()


def _below(folder: Path) -> Iterator[Path]:
    """All that lies below, without entering linked folders."""
    for place, folders, files in os.walk(folder, followlinks=False):
        yield from (Path(place, name) for name in (*folders, *files))


def _local_store(tracking_uri: str) -> Path | None:
    """The folder that holds a database in a file; None where the tracking address is no local one."""
    if tracking_uri.startswith("sqlite:///"):
        return Path(tracking_uri.removeprefix("sqlite:///")).resolve().parent
    return local_path(tracking_uri) if urlsplit(tracking_uri).scheme in LOCAL_SCHEMES else None


def _is_below(address: str, root: str) -> bool:
    return address == root.rstrip("/") or address.startswith(f"{root.rstrip('/')}/")


def _is_missing(error: Exception) -> bool:
    return getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST" or isinstance(error, FileNotFoundError)


def _refuse_link(path: Path, what: str) -> None:
    raise InvalidInputError(what, f"{path}, which is a link or no plain file", "files within their folder", NEXT)
