"""Who may write: locks that the kernel releases when their holder dies, so that none is ever stale."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from slimtts.errors import InvalidInputError

POLL_S = 0.5


@contextmanager
def exclusive_lock(path: Path, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds the lock file `path`. With `on_wait` (called once) it waits for another holder, without it refuses.

    Raises:
        InvalidInputError: another process holds the lock and `on_wait` is None.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        waiting = False
        while not _try_lock(descriptor):
            if on_wait is None:
                raise InvalidInputError(
                    str(path.parent), "another run works here", "one at a time", "wait for it or take another --name"
                )
            if not waiting:
                on_wait()
                waiting = True
            time.sleep(POLL_S)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
