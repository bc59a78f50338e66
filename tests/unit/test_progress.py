"""Progress: time left where somebody reads, silence in a pipe."""

import logging
import os
import pty
import subprocess
import sys
import termios
import threading
import time
from itertools import pairwise

import pytest

from tasks.repetition import telling

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


SLOW_STAGE = """
import logging, sys, time
import slimtts.progress as progress
progress.LINE_EVERY_S = 0.3
import slimtts.commands.stage as command
import slimtts.stages.prune_layers as stage
from slimtts.workspace import Workspace
from pathlib import Path

def slow(params, workspace):
    time.sleep(1.2)
    with progress.doing("the student speaks 200 sentences"):
        time.sleep(1.2)
        logging.getLogger("slimtts.x").info("half of them are spoken")
        time.sleep(0.7)
    with progress.progress_bar(3, "training student", "step") as bar:
        bar.update(1)
        time.sleep(1.2)

stage.prune_layers = slow
command.run_stage("prune_layers", Workspace(Path(sys.argv[1])), Path(sys.argv[2]), 1)
"""


@pytest.mark.parametrize("wish", ["lines", ""])
def test_no_stage_is_silent_for_longer_than_it_says(tmp_path, wish):
    """The stand-in is silent for 1.2 s at a time; a line is due every 0.3 s, and none is told where nobody listens."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_STAGE, str(tmp_path), f"{root}/params.yaml"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "SLIMTTS_PROGRESS": wish, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    lines = [(time.monotonic(), line.strip()) for line in process.stdout]
    assert process.wait(60) == 0
    said = [line for _, line in lines]
    if not wish:
        assert said == ["half of them are spoken"]
        return
    assert any(line.startswith("prune_layers: at work, 00:0") for line in said)
    assert any(line.startswith("prune_layers: the student speaks 200 sentences, 00:0") for line in said)
    assert any(line.startswith("prune_layers: training student: 1 of 3 steps, 00:0") for line in said)
    assert "half of them are spoken" in said
    gaps = [later - former for (former, _), (later, _) in pairwise(lines)]
    assert max(gaps) < 0.9, said
    assert len(said) < 8 + 1.5 * (lines[-1][0] - lines[0][0]) / 0.3, "a line now and then, not a stream"


def test_beside_other_work_a_line_comes_only_when_none_came_by_itself(caplog):
    logger = logging.getLogger("telling")
    with caplog.at_level(logging.INFO), telling(logger, "distill_student", "DVC hashes", every_s=0.2) as clock:
        for _ in range(8):  # a line every 0.05 s
            time.sleep(0.05)
            clock.note()
        assert caplog.messages == []
        time.sleep(0.7)
    assert 2 <= len(caplog.messages) <= 4
    assert caplog.messages[0].startswith("distill_student: DVC hashes, 0:0")
    assert not [thread for thread in threading.enumerate() if "repeat" in thread.name]
