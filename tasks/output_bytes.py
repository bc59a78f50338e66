"""Are the bytes of DVC's outputs those that dvc.lock names? DVC trusts time and size of a file; this reads it."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import yaml

from slimtts.errors import InvalidInputError
from slimtts.storage import atomic_path, remove

OBJECTS = PurePosixPath("files", "md5")  # in a cache and in a remote: ab/cdef... of an object of hash abcdef...
MD5 = re.compile(r"[0-9a-f]{32}(\.dir)?")
FOLDER = ".dir"  # ends the hash of a folder; its object lists the files
LOCK_KEYS = {"path", "hash", "md5", "size", "nfiles", "isexec"}
LARGEST_LOCK_BYTES = 1 << 20
VERIFIED = ".verified-outputs.json"  # in a workspace: files whose bytes were read, and what the kernel said of them
NEXT = "bring the version's files back as they were, or restore it with the checkout that made it"
SETTLED_NS = 2_000_000_000  # a file that changed later than this may change again within one tick of the clock


class Output(NamedTuple):
    """An output as dvc.lock has it; `path` is relative to the workspace."""

    path: str
    md5: str


def declared_outputs(dvc_yaml: Path) -> dict[str, dict[str, bool]]:
    """Stage -> path -> whether the cache holds it: `data`, or `{progress/x: {cache: false}}`."""
    stages = yaml.safe_load(dvc_yaml.read_text())["stages"]
    return {name: dict(map(_declared, stage.get("outs", []))) for name, stage in stages.items()}


def locked_outputs(lock: Path, declared: Mapping[str, Mapping[str, bool]], what: str) -> list[Output]:
    """The cached outputs that a dvc.lock names, which must be among those that one's own dvc.yaml declares.

    Raises:
        InvalidInputError: no dvc.lock, or one that names something else.
    """
    try:
        content: Any = yaml.safe_load(lock.read_text()) if lock.stat().st_size <= LARGEST_LOCK_BYTES else None
        stages = {str(name): stage["outs"] for name, stage in content["stages"].items() if stage.get("outs")}
        entries = [(name, {**entry}) for name, outs in stages.items() for entry in outs]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidInputError(what, f"{type(error).__name__} in {lock.name}", "a dvc.lock", NEXT) from None
    outputs = []
    for stage, entry in entries:
        own = declared.get(stage, {})
        path, md5 = str(entry.get("path")), str(entry.get("md5"))
        if path not in own:
            allowed = ", ".join(own) or f"the stages {', '.join(declared)}"
            raise InvalidInputError(what, f"output {path!r} of stage {stage!r}", allowed, NEXT)
        if entry.keys() - LOCK_KEYS or entry.get("hash") != "md5" or not MD5.fullmatch(md5):
            raise InvalidInputError(what, f"output {path!r} as {entry}", "path, size and an MD5", NEXT)
        if own[path]:
            outputs.append(Output(path, md5))
    return outputs


def object_path(cache: Path, md5: str) -> Path:
    """Where a cache holds the object of this hash."""
    return cache / OBJECTS / md5[:2] / md5[2:]


def listed_files(content: bytes, output: Output) -> dict[str, str]:
    """Path -> MD5 of the files of a folder, from its object in the cache.

    Raises:
        InvalidInputError: it lists something that is no file within the folder.
    """
    try:
        files = {str(entry["relpath"]): str(entry["md5"]) for entry in json.loads(content)}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InvalidInputError(f"output {output.path}", "a list that is none", "DVC's list of files", NEXT) from None
    for path, md5 in files.items():
        parts = path.split("/")
        plain = all(part not in ("", ".", "..") and "\\" not in part and "\0" not in part for part in parts)
        if not plain or not MD5.fullmatch(md5) or md5.endswith(FOLDER):
            raise InvalidInputError(f"output {output.path}", f"{path!r} of hash {md5!r}", "files within it", NEXT)
    return files


def missing_objects(cache: Path, output: Output) -> list[str]:
    """Hashes of the objects of an output that a cache lacks or holds with other bytes; those are removed.

    Of a folder whose list is missing, the list alone.
    """
    if not _holds(cache, output.md5):
        return [output.md5]
    if not output.md5.endswith(FOLDER):
        return []
    files = listed_files(object_path(cache, output.md5).read_bytes(), output)
    return [md5 for md5 in sorted(set(files.values())) if not _holds(cache, md5)]


def remove_changed(workspace: Path, stage: str, cache: Path) -> list[str]:
    """Removes outputs of a stage that are not what its dvc.lock says, and what is damaged of them in the cache.

    DVC makes them again. Gives their paths. An output that is not there is left to DVC.
    """
    changed = [output for output in _outputs_of(workspace, [stage]) if _differs(workspace, output)]
    for output in changed:
        try:
            missing_objects(cache, output)
        except InvalidInputError:  # a list that hashes to its name and is none
            remove(object_path(cache, output.md5))
        remove(workspace / output.path)
    return [output.path for output in changed]


def lacks_objects(workspace: Path, stage: str, cache: Path) -> bool:
    """Whether the cache lacks objects of a stage's outputs; damaged ones, which DVC takes for good, are removed."""
    return any([missing_objects(cache, output) for output in _outputs_of(workspace, [stage])])


def changed_outputs(workspace: Path, outputs: Iterable[Output]) -> list[str]:
    """Paths of outputs that are missing or hold other bytes; every byte is read."""
    return [
        output.path
        for output in outputs
        if not (workspace / output.path).exists() or content_md5(workspace / output.path, {}) != output.md5
    ]


def content_md5(path: Path, verified: dict[str, list[Any]]) -> str:
    """DVC's hash of a file or folder; files that have not changed since they are in `verified` are not read again.

    A link has no content: what it leads to is somewhere else.
    """
    if path.is_symlink():
        return "link"
    if path.is_dir():
        files = [entry for entry in path.rglob("*") if entry.is_symlink() or not entry.is_dir()]
        files = [file for file in files if file.suffix != ".pyc"]  # as .dvcignore has it
        rows = [{"md5": _file_md5(file, verified), "relpath": file.relative_to(path).as_posix()} for file in files]
        rows.sort(key=lambda row: row["relpath"])
        return hashlib.md5(json.dumps(rows, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + FOLDER
    return _file_md5(path, verified)


def _differs(workspace: Path, output: Output) -> bool:
    path = workspace / output.path
    if not path.exists() and not path.is_symlink():
        return False
    memory = workspace / VERIFIED
    try:
        verified = json.loads(memory.read_text())
        verified = verified if isinstance(verified, dict) else {}
    except (OSError, ValueError):
        verified = {}
    before = dict(verified)
    differs = content_md5(path, verified) != output.md5
    if verified != before:
        with atomic_path(memory) as temporary:
            temporary.write_text(json.dumps(verified))
    return differs


def _file_md5(file: Path, verified: dict[str, list[Any]]) -> str:
    if file.is_symlink() or not file.is_file():
        return "link"
    status = file.stat()
    # The time of the last change of any kind cannot be set back, unlike that of the last change of content.
    known = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    key = f"{status.st_dev} {status.st_ino}"  # an output and its object in the cache may be one file
    former = verified.get(key)
    if isinstance(former, list) and former[:-1] == known:
        return str(former[-1])
    with file.open("rb") as stream:
        md5 = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if time.time_ns() - status.st_ctime_ns > SETTLED_NS:
        verified[key] = [*known, md5]
    return md5


def _holds(cache: Path, md5: str) -> bool:
    """Whether the cache holds the object with its content; damaged ones are removed, so that nobody takes them."""
    path = object_path(cache, md5)
    if path.is_symlink() or path.exists():
        if content_md5(path, {}) == md5.removesuffix(FOLDER):
            return True
        remove(path)
    return False


def _outputs_of(workspace: Path, stages: Sequence[str]) -> Iterator[Output]:
    """As dvc.lock of a run's own workspace names them."""
    lock = workspace / "dvc.lock"
    locked = yaml.safe_load(lock.read_text())["stages"] if lock.is_file() else {}
    declared = declared_outputs(workspace / "dvc.yaml")
    for stage in stages:
        for entry in locked.get(stage, {}).get("outs", []):
            if declared.get(stage, {}).get(entry["path"]):
                yield Output(entry["path"], entry["md5"])


def _declared(entry: str | dict[str, dict[str, Any]]) -> tuple[str, bool]:
    if isinstance(entry, str):
        return entry, True
    [(path, settings)] = entry.items()
    return path, settings.get("cache", True)
