"""Keeps a stage from having two writers, and from outliving the orchestrator that started it.

`kill -9` of an orchestrator leaves its children running, and its lock files look stale to the next one. So a stage
looks after itself: it holds a lock on its workspace, and it dies with its parent.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slimtts.errors import SlimttsError

PR_SET_PDEATHSIG = 1
PARENT_CHECK_S = 2.0


class WorkspaceBusyError(SlimttsError):
    """Another process is writing the same outputs."""


def die_with_parent() -> None:
    """Linux: asks the kernel for SIGKILL when the parent dies; everywhere: a thread watches the parent's id."""
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(PARENT_CHECK_S):
            if os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def sole_writer(root: Path, stage: str) -> Iterator[None]:
    """Holds the lock of one stage in one workspace; the kernel frees it when the process ends, however it ends.

    Raises:
        WorkspaceBusyError: another process holds it.
    """
    lock = root / ".locks" / f"{stage}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WorkspaceBusyError(
                f"stage {stage} in {root}: observed another process writing it; allowed: one at a time; "
                "next: wait for it or stop it"
            ) from None
        yield
