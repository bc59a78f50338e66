"""Work that several processes do side by side: each item is made once, by whoever comes first, and kept as a file.

A process that makes an item holds a lock on it, which the kernel frees when the process ends, however it ends: then
another makes the item. So nobody deals out the work, and nothing is lost with a process. Beside each item lie the
SHA-256 of its files: what is there is used only if it is what was made, else it is made again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from slimtts.storage import atomic_path, file_hashes, read_hashes, remove

logger = logging.getLogger(__name__)

PACKAGE = Path(__file__).parent
POLL_S = 0.2
CLAIMS, HASHES = ".claims", ".hashes"


def make_items(
    folder: Path, makers: Mapping[str, Callable[[Path], None]], after_item: Callable[[str], object] = lambda _: None
) -> None:
    """Returns when every item of `makers` lies in `folder`: found there, made here, or made by another meanwhile.

    A maker writes its item, a file or a folder, to the path it is given; `after_item` is told each item that is there.
    An item that is not what was made (a damaged disk, an edit) is named in the log and made again.
    """
    missing = list(makers)
    while missing:
        still = []
        for name in missing:
            if _is_there(folder / name, makers[name]):
                after_item(name)
            else:
                still.append(name)
        if still == missing:  # others are making all of them
            time.sleep(POLL_S)
        missing = still


def _is_there(item: Path, make: Callable[[Path], None]) -> bool:
    """False while another process makes it."""
    if _is_as_made(item):
        return True
    with _claimed(item) as is_ours:
        if not is_ours:
            return False
        if _is_as_made(item):
            return True
        if item.exists():
            logger.warning("%s is not what was made, or of an earlier version: it is made again", item)
        with atomic_path(item) as temporary:
            make(temporary)
            # Before the item: a kill in between leaves hashes of nothing, and the item is made again.
            with atomic_path(_hashes_of(item)) as hashes:
                hashes.write_text(json.dumps(file_hashes(temporary)))
            if item.is_dir() and not temporary.is_dir():
                remove(item)
        return True


def _is_as_made(item: Path) -> bool:
    return item.exists() and file_hashes(item) == read_hashes(_hashes_of(item))


def _hashes_of(item: Path) -> Path:
    return item.parent / HASHES / f"{item.name}.json"


@contextmanager
def _claimed(item: Path) -> Iterator[bool]:
    claim = item.parent / CLAIMS / item.name
    claim.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(claim, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(descriptor)


def progress_of(root: Path, code: Sequence[str], *marks: object) -> Path:
    """The folder below `root` for what `marks` and the code measure; progress of others is removed.

    `code` names files and folders of this package, as the stage's dependencies in dvc.yaml do.
    """
    mark = hashlib.sha256(repr((marks, _hash_sources(code))).encode()).hexdigest()[:16]
    root.mkdir(parents=True, exist_ok=True)
    for other in root.glob("*"):
        if other.name != mark:
            with suppress(OSError):  # processes that start together all do this
                remove(other)
    folder = root / mark
    folder.mkdir(exist_ok=True)
    return folder


def _hash_sources(code: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for part in (PACKAGE / name for name in code):
        for source in [part] if part.is_file() else sorted(part.rglob("*.py")):
            digest.update(str(source.relative_to(PACKAGE)).encode() + source.read_bytes())
    return digest.hexdigest()
