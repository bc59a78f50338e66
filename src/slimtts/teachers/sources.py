"""Where a checkpoint comes from: a folder of this machine, or one exact commit of the hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from slimtts.errors import InvalidInputError
from slimtts.model_files import SAFE_FILES

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
COMMIT = re.compile(r"[0-9a-f]{40}")
FIND_COMMIT = "copy the full commit from the history of the model's page on the hub"


def resolve_checkpoint(
    source: str, revision: str, what: str = "teacher.source", files: Sequence[str] = SAFE_FILES
) -> Path:
    """A local folder as it is; of a hub id "owner/name" the files of that commit, downloaded unless cached.

    Raises:
        InvalidInputError: neither a folder nor a hub id, a revision that can move, or the hub does not give the files.
    """
    if source and Path(source).is_dir():
        return Path(source)
    if not HUB_ID.fullmatch(source):
        raise InvalidInputError(
            what, f"'{source}', which is no folder", 'a folder or a hub id "owner/name"', "correct the path"
        )
    if not COMMIT.fullmatch(revision):
        raise InvalidInputError(
            what,
            f"'{source}', which is no folder here, at revision '{revision}'",
            "a folder, or a hub id at a full commit of 40 hex digits: a branch or tag can change under a result",
            FIND_COMMIT,
        )
    import httpx
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(files)))
    except (OSError, ValueError, httpx.HTTPError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InvalidInputError(
            f"{what} {source} at {revision}",
            reason,
            "a commit that the hub gives or the local cache holds",
            "check the id, the commit and the connection, or name a folder with the files",
        ) from None


def resolve_codec(source: str, own: str, files: Sequence[str] = SAFE_FILES) -> Path:
    """The folder of a codec given as folder or "owner/name@commit"; `own` is the hub id of the family's own codec.

    Raises:
        InvalidInputError: as `resolve_checkpoint`; no commit is a default.
    """
    if source and Path(source).is_dir():
        return Path(source)
    name, _, commit = (source or own).partition("@")
    if not COMMIT.fullmatch(commit):
        raise InvalidInputError(
            "teacher.codec",
            f"'{source}'",
            f'a folder, or a hub id with its full commit, as in "{own}@<40 hex digits>"',
            FIND_COMMIT,
        )
    return resolve_checkpoint(name, commit, "teacher.codec", files)
