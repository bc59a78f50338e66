"""Writing that never leaves half a file (a temporary name, then a rename), and one hash of what several files hold."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator
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
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    lines = [f"{file.relative_to(folder).as_posix()}\0{files_sha256([file])}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
