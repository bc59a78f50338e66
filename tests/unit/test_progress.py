"""Progress: time left where somebody reads, silence in a pipe."""

import os
import pty
import subprocess
import sys
import termios

STEPS = (
    "import slimtts.progress as p; p.LINE_EVERY_S = 0.0\n"
    "import time\n"
    "with p.progress_bar(3, 'training', 'step') as bar:\n"
    "    for _ in range(3):\n        time.sleep(0.02); bar.update(1)\n"
)


def shown(**environment):
    done = subprocess.run(
        [sys.executable, "-c", STEPS],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "SLIMTTS_PROGRESS": "", **environment},
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    return done.stderr


def test_a_pipe_hears_nothing():
    assert shown() == ""


def test_a_log_gets_whole_lines_with_the_time_left():
    lines = shown(SLIMTTS_PROGRESS="lines").splitlines()
    assert lines == [
        "training: 1 of 3 steps, 00:00 left",
        "training: 2 of 3 steps, 00:00 left",
        "training: 3 of 3 steps",
    ]


def test_a_terminal_sees_a_bar():
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (24, 80))
    done = subprocess.run([sys.executable, "-c", STEPS], stderr=follower, timeout=60, check=False)
    os.close(follower)
    assert done.returncode == 0
    seen = b""
    while b"3/3 [" not in seen:
        seen += os.read(leader, 4096)  # raises when the terminal is gone and it never came
