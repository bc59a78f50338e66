"""Outputs of one run in the workspace of another, through the cache that they share, so that work is done once."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from slimtts.storage import atomic_path
from tasks.output_bytes import declared_outputs
from tasks.stage_runner import Logger, remove_damaged, run_dvc

CHECKOUT_TIMEOUT_S = 3600.0


def take_over(source: Path, target: Path, stages: Sequence[str], logger: Logger) -> bool:
    """Brings the outputs of `stages` from workspace `source` into `target`; False when they are there already.

    dvc.lock says what each output was made from, and comes with it: a stage whose code, data or parameters differ
    in `target` is stale there and runs. What `dvc.yaml` keeps out of the cache is copied.

    Raises:
        StageError: the cache lacks an output that `source` has recorded.
    """
    finished = _lock(source)["stages"]
    lock = _lock(target)
    if all(lock["stages"].get(stage) == finished[stage] for stage in stages):
        return False
    lock["stages"] |= {stage: finished[stage] for stage in stages}
    with atomic_path(target / "dvc.lock") as temporary:
        temporary.write_text(yaml.safe_dump(lock, sort_keys=False))
    declared = declared_outputs(target / "dvc.yaml")
    outputs = [output for stage in stages for output in declared[stage].items()]
    for path, cached in outputs:
        if not cached:
            with atomic_path(target / path) as temporary:
                shutil.copytree(source / path, temporary)
    cached_outputs = [path for path, cached in outputs if cached]
    run_dvc(["checkout", "--force", *cached_outputs], target, CHECKOUT_TIMEOUT_S, logger, "dvc checkout")
    for stage in stages:  # what came damaged is not taken over: the stage runs
        remove_damaged(stage, target, logger)
    logger.info("%s: taken over from %s", ", ".join(stages), source.name)
    return True


def _lock(workspace: Path) -> dict[str, Any]:
    path = workspace / "dvc.lock"
    return yaml.safe_load(path.read_text()) if path.is_file() else {"schema": "2.0", "stages": {}}
