"""Runs a command so that no process of it outlives its caller, however either of them ends (Linux).

The command runs below a small supervisor: this file, started as a script. It leads a process group of its own and is
told by the kernel when the caller dies, even by SIGKILL; then it takes the whole group with it.
"""

from __future__ import annotations

import ctypes
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

PR_SET_PDEATHSIG = 1  # linux/prctl.h
POLL_S = 0.2
GONE_WITHIN_S = 10.0


def run_in_group(
    command: Sequence[str], cwd: Path, env: Mapping[str, str], timeout_s: float, on_line: Callable[[str], None]
) -> int:
    """Exit code of `command`; its output goes to `on_line` line by line. 128 + n stands for signal n.

    The group is killed whenever this function is left: at the end, by an exception, a cancellation or the timeout.

    Raises:
        TimeoutError: the command ran longer than `timeout_s`.
    """
    process = subprocess.Popen(
        supervised(command), cwd=cwd, env=dict(env), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None  # noqa: S101 - stdout=PIPE, said for the type checker
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    reader = threading.Thread(target=_read_lines, args=(process.stdout, lines), daemon=True)
    reader.start()
    deadline = time.monotonic() + timeout_s
    try:
        while process.poll() is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"still running after {timeout_s:g} s")
            _deliver(lines, on_line, POLL_S)
    finally:
        kill_group(process.pid)
        process.wait()
        reader.join(GONE_WITHIN_S)
    _deliver(lines, on_line, 0)
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def supervised(command: Sequence[str], grace_s: int = 0) -> list[str]:
    """`command` below a supervisor, which must be started in a session of its own.

    SIGTERM, or the caller's death, asks the command to end and takes the whole group with it after `grace_s`.
    """
    return [sys.executable, "-I", __file__, str(os.getpid()), str(grace_s), *command]


def kill_group(group: int) -> None:
    """Kills every process of the group and waits until none is left, so that nobody writes after the return."""
    import psutil

    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return
    deadline = time.monotonic() + GONE_WITHIN_S
    while time.monotonic() < deadline and any(
        _group_of(process.pid) == group
        for process in psutil.process_iter(["status"])
        if process.info["status"] != psutil.STATUS_ZOMBIE
    ):
        time.sleep(0.02)


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def _read_lines(stream: IO[str], lines: queue.SimpleQueue[str]) -> None:
    for line in stream:
        lines.put(line.rstrip())


def _deliver(lines: queue.SimpleQueue[str], on_line: Callable[[str], None], wait_s: float) -> None:
    """Hands over what has arrived, after waiting at most `wait_s` for the first line."""
    try:
        on_line(lines.get(timeout=wait_s) if wait_s else lines.get_nowait())
        while True:
            on_line(lines.get_nowait())
    except queue.Empty:
        return


def _die_with_parent(death_signal: int, parent: int) -> None:
    """Asks the kernel for `death_signal` when the parent dies; exits at once if it already has."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, death_signal)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


def _supervise(caller: int, grace_s: int, command: Sequence[str]) -> int:
    child: subprocess.Popen[bytes] | None = None

    def kill_all(*_: object) -> None:
        os.killpg(0, signal.SIGKILL)

    def end(*_: object) -> None:
        if child is None or not grace_s:
            kill_all()
        else:
            signal.alarm(grace_s)
            child.terminate()

    signal.signal(signal.SIGALRM, kill_all)
    signal.signal(signal.SIGTERM, end)
    _die_with_parent(signal.SIGTERM, caller)
    me = os.getpid()
    # The supervisor has one thread, so a preexec_fn cannot meet a lock held by another.
    child = subprocess.Popen(command, preexec_fn=lambda: _die_with_parent(signal.SIGKILL, me))
    code = child.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(_supervise(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
