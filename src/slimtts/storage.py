"""Writing that never leaves half a file (a temporary name, then a rename), and hashes of what files hold."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


def remove(path: Path) -> None:
    """Removes a file, a link or a whole folder; nothing there is right too."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def atomic_path(final: Path) -> Iterator[Path]:
    """A temporary path beside `final`; what the block leaves there becomes `final`, unless the block raises.

    Works for a file and for a folder (the block makes the folder). A former `final` is kept until the new
    content is complete.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    holder = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    temporary = holder / final.name
    try:
        yield temporary
        former = holder / "former"
        if temporary.is_dir() and final.exists():
            final.rename(former)
        try:
            temporary.replace(final)
        except OSError:
            if former.exists():
                former.rename(final)
            raise
    finally:
        remove(holder)


def files_sha256(files: Iterable[Path]) -> str:
    """SHA-256 over the bytes of the files, one after the other."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def folder_sha256(folder: Path) -> str:
    """SHA-256 of a folder's files, by name and content: none can be changed, added or left out."""
    lines = [f"{name}\0{sha256}\n" for name, sha256 in file_hashes(folder).items()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def file_hashes(path: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by its path in there; of a file alone, by "."."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return {file.relative_to(path).as_posix(): files_sha256([file]) for file in files}


def read_hashes(path: Path) -> dict[str, str] | None:
    """What `file_hashes` gave, from a JSON file; None where there is none that can be read."""
    try:
        hashes = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    is_sound = isinstance(hashes, dict) and all(isinstance(value, str) for value in hashes.values())
    return hashes if is_sound else None


def changed_file(folder: Path, hashes: Mapping[str, str]) -> str | None:
    """The first of the hashed files that is missing or holds other bytes; None when all are as they were."""
    for name, sha256 in hashes.items():
        file = folder / name
        if not file.is_file() or files_sha256([file]) != sha256:
            return name
    return None
