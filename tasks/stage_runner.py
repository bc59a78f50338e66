"""One stage of dvc.yaml in a workspace: DVC decides whether it is stale, then it runs in a process group of its own."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slimtts.errors import SlimttsError
from tasks.checkouts import code_revision, git_revision
from tasks.output_bytes import lacks_objects, remove_changed
from tasks.process_group import run_in_group
from tasks.repetition import telling
from tasks.stage_reasons import why_it_runs

Logger = logging.Logger | logging.LoggerAdapter[Any]

# Python does not look for DVC's modules in the workspace, whose outputs may be called as some of them.
DVC = (sys.executable, "-P", "-m", "dvc")
CACHE = ".dvc-cache"  # below the runs
BAD_INPUT_EXIT_CODE = 2  # what `slimtts` returns for errors that only a person can mend
STATUS_TIMEOUT_S = 600
DVC_FAILURE = re.compile(r"^ERROR: failed to reproduce .*exited with (-?\d+)")


# glibc would give every activation back to the kernel: training on a CPU is several times slower without these.
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "20000000000"}
# DVC's requests to S3 are tried again for about a minute, as ours are.
S3_RETRIES = {"AWS_RETRY_MODE": "standard", "AWS_MAX_ATTEMPTS": "10"}

# What DVC says for its own users: nothing that helps a person here. All of it still counts as output for `run_dvc`.
CHATTER = re.compile(
    r"Running stage '|> |Generating lock file|Updating lock file|To track the changes|\s+git add|Use `dvc push`|"
    r"WARNING: '.*' is empty|Verifying data sources|Data and pipelines are up to date|(Stage )?'.*' didn't change"
)

# Lines as they come, progress as lines that a log can keep, and nothing told to DVC's makers.
TALK = {"PYTHONUNBUFFERED": "1", "SLIMTTS_PROGRESS": "lines", "DVC_NO_ANALYTICS": "1"}
# Of the shell that a flow was started in: a stage starts the processes of a training itself.
LOCAL_RANK = "LOCAL_RANK"


class StageError(SlimttsError):
    """A stage that did not finish; `exit_code` is the stage's own when DVC reported it."""

    def __init__(self, stage: str, problem: str, exit_code: int) -> None:
        super().__init__(f"{stage}: {problem}")
        self.stage, self.exit_code = stage, exit_code

    @property
    def worth_retrying(self) -> bool:
        """False when the same inputs would fail the same way."""
        return self.exit_code != BAD_INPUT_EXIT_CODE


def run_stage(stage: str, workspace: Path, timeout_s: float, logger: Logger) -> bool:
    """Brings one stage up to date; False when there was nothing to do.

    Outputs are read: where a byte is another than DVC recorded, also one that keeps time and size of its file, or one
    that came damaged from the cache, the stage runs again.

    Raises:
        StageError: the stage failed (with its last line) or ran longer than `timeout_s`.
    """
    changes = stage_changes(stage, workspace, logger)
    if not changes:
        return False
    logger.info("%s: %s", stage, why_it_runs(workspace, stage, changes.get(stage)))
    repro = ["repro", "--single-item", stage]
    tail = run_dvc(repro, workspace, timeout_s, logger, stage)
    if remove_damaged(stage, workspace, logger):
        tail = run_dvc(repro, workspace, timeout_s, logger, stage)
    if lacks_objects(workspace, stage, workspace.parent / CACHE):
        run_dvc(["commit", "--force", stage], workspace, timeout_s, logger, "dvc commit")
    logger.info("%s: %s", stage, "restored from the cache" if "is cached" in "".join(tail) else "done")
    return True


def stage_changes(stage: str, workspace: Path, logger: Logger) -> dict[str, list[Any]]:
    """What makes a stage stale; nothing, said in the log, when it is up to date. Damaged outputs make it so."""
    remove_damaged(stage, workspace, logger)
    with telling(logger, stage, "DVC looks for what has changed"):
        changes = stale_stages(workspace, stage)
    if not changes:
        logger.info("%s: unchanged, nothing to do", stage)
    return changes


def remove_damaged(stage: str, workspace: Path, logger: Logger) -> bool:
    """Removes outputs of the stage whose bytes are not those that were recorded; True when there were some."""
    changed = remove_changed(workspace, stage, workspace.parent / CACHE)
    if changed:
        logger.warning("%s: bytes of %s are not those that were recorded; made again", stage, ", ".join(changed))
    return bool(changed)


def stale_stages(workspace: Path, *stages: str) -> dict[str, list[Any]]:
    """What `dvc status` reports: stage -> why it is not up to date. Without names: all stages.

    Raises:
        StageError: DVC could not tell.
    """
    command = [*DVC, "status", "--json", *stages]
    done = subprocess.run(
        command,
        cwd=workspace,
        env=stage_environment(workspace),
        capture_output=True,
        text=True,
        timeout=STATUS_TIMEOUT_S,
    )
    if done.returncode:
        raise StageError("dvc status", _last(done.stderr.splitlines(), "no message"), done.returncode)
    return json.loads(done.stdout)


def run_dvc(arguments: Sequence[str], workspace: Path, timeout_s: float, logger: Logger, title: str) -> list[str]:
    """Runs `dvc ARGUMENTS` with its lines in the log; returns its last lines.

    Raises:
        StageError: it failed or ran longer than `timeout_s`; nothing of it is left running.
    """
    tail: deque[str] = deque(maxlen=50)

    def follow(line: str) -> None:
        if line.strip():
            tail.append(line)
            if not CHATTER.match(line):
                told.note()
                logger.info("%s | %s", title, line)

    command = [*DVC, *arguments]
    try:
        with telling(logger, title, "DVC opens, hashes or stores what belongs to it") as told:
            exit_code = run_in_group(command, workspace, stage_environment(workspace), timeout_s, follow)
    except TimeoutError as error:
        raise StageError(title, f"{error}; allowed: {timeout_s:g} s; next: give it more time", 124) from None
    if exit_code:
        reported = [int(found[1]) for line in tail if (found := DVC_FAILURE.match(line))]
        said = [line for line in tail if not (DVC_FAILURE.match(line) or CHATTER.match(line))]
        raise StageError(title, _last(said, f"ended with exit code {exit_code}"), (reported or [exit_code])[-1])
    return list(tail)


def stage_environment(workspace: Path | None = None) -> dict[str, str]:
    """The environment of a stage: this Python's bin folder first, so that `slimtts` is ours, and git's revision.

    With a workspace, its `src` is the code that Python finds first, and the revision is of that code.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    revision = code_revision(workspace) if workspace else git_revision()
    ours = {"PATH": path, "SLIMTTS_GIT_SHA": revision, **TALK}
    if workspace:
        code = [str(workspace.resolve() / "src"), os.environ.get("PYTHONPATH", "")]
        ours["PYTHONPATH"] = os.pathsep.join(filter(None, code))
    given = {name: value for name, value in os.environ.items() if name != LOCAL_RANK}
    return {**ALLOCATOR, **S3_RETRIES, **given, **ours}


def _last(lines: Sequence[str], otherwise: str) -> str:
    return next((line.strip() for line in reversed(lines) if line.strip()), otherwise)
