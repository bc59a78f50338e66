"""Which settings a teacher's files call for: its family, its codec, half its layers; asked of `slimtts compress`."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from slimtts.errors import InvalidInputError

TIMEOUT_S = 300
CODEC = "teacher.codec="


def teacher_overrides(folder: Path, given: Sequence[str] = ()) -> list[str]:
    """As `--set` takes them. In a process of its own, because looking at a teacher loads torch.

    A codec that its files name outside of them is not followed: it is the family's own, or among those `given`.

    Raises:
        InvalidInputError: no family of teachers knows these files, or they name a codec elsewhere.
    """
    command = [sys.executable, "-m", "slimtts.cli", "compress", "--teacher", str(folder), "--show"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    if done.returncode:
        problem = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InvalidInputError(f"teacher {folder}", problem, "a checkpoint of a known family", "see docs/TEACHERS.md")
    words = shlex.split(done.stdout)
    overrides = [value for option, value in pairwise(words) if option == "--set"]
    codec = next((value.removeprefix(CODEC) for value in overrides if value.startswith(CODEC)), "")
    is_given = any(text.strip().startswith(CODEC) for text in given)
    if codec and not is_given and not Path(codec).resolve().is_relative_to(folder.resolve()):
        raise InvalidInputError(
            f"teacher {folder}", f"files that name the codec {codec}", "the family's own codec, or one of its folder",
            f"if it is the right one, say so: --set {CODEC}{codec}",
        )  # fmt: skip
    return overrides
