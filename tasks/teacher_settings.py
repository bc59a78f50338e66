"""Which settings a teacher's files call for: its family, its codec, half its layers; asked of `slimtts compress`."""

from __future__ import annotations

import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

from slimtts.errors import InvalidInputError

TIMEOUT_S = 300


def teacher_overrides(folder: Path) -> list[str]:
    """As `--set` takes them. In a process of its own, because looking at a teacher loads torch.

    Raises:
        InvalidInputError: no family of teachers knows these files.
    """
    command = [sys.executable, "-m", "slimtts.cli", "compress", "--teacher", str(folder), "--show"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    if done.returncode:
        problem = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InvalidInputError(f"teacher {folder}", problem, "a checkpoint of a known family", "see docs/TEACHERS.md")
    words = shlex.split(done.stdout)
    return [value for option, value in pairwise(words) if option == "--set"]
