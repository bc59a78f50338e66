"""Runs one service so that no process of it outlives the supervisor, however either of them ends (Linux).

Started as a script: `leash.py SUPERVISOR_PID USER STOP_SIGNAL GRACE_S COMMAND...` (USER "" = the present one). The
kernel tells it when the supervisor dies. Children that detach themselves come back to it as orphans, so that the whole
tree ends together, and a restarted service never meets a former one on its port.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time

import psutil

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
WATCHED = {signal.SIGTERM, signal.SIGCHLD}
GONE_WITHIN_S = 10.0


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _before_exec() -> None:
    """In the child: signals as in a shell's foreground, and no life without the leash."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _reap(head: int) -> int | None:
    """Collects all dead children; the exit code of `head` when it is among them."""
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if pid == 0:
            return code
        if pid == head:
            code = os.waitstatus_to_exitcode(status)


def _kill_tree() -> None:
    deadline = time.monotonic() + GONE_WITHIN_S
    while time.monotonic() < deadline and (left := psutil.Process().children(recursive=True)):
        for process in left:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.02)
        _reap(0)


def _run(supervisor: int, user: str, stop_signal: int, grace_s: float, command: list[str]) -> int:
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != supervisor:
        return 1
    as_user = {"user": user, "group": _main_group(user), "extra_groups": []} if user else {}
    head = subprocess.Popen(  # type: ignore[call-overload]
        command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_before_exec, **as_user
    ).pid
    deadline = None
    while True:
        told = signal.sigtimedwait(WATCHED, 1.0)
        code = _reap(head)
        if code is not None:
            _kill_tree()
            return code if code >= 0 else 128 - code
        if told is not None and told.si_signo == signal.SIGTERM and deadline is None:
            deadline = time.monotonic() + grace_s
            os.kill(head, stop_signal)
        if deadline is not None and time.monotonic() > deadline:
            _kill_tree()
            return 128 + signal.SIGKILL


def _main_group(user: str) -> int:
    """The main group of a user."""
    import pwd

    return pwd.getpwnam(user).pw_gid


if __name__ == "__main__":
    sys.exit(_run(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), sys.argv[5:]))
