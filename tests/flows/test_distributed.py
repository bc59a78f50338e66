"""The task that heals a student in two processes: one is killed, the task tries again, the loss is that of one."""

import json
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from slimtts.results import DistillReport
from tasks.stages import worth_retrying

from .small_run import copy_run, slimtts

APPEARS_WITHIN_S = 240


def losses(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(len(rows))), "every step once"
    return [row["loss"] for row in rows]


def kill_a_rank_after_a_checkpoint(run, killed):
    deadline = time.monotonic() + APPEARS_WITHIN_S
    while time.monotonic() < deadline:
        if list(run.checkpoints.glob("student/*/step-*/DONE")):
            for process in psutil.Process().children(recursive=True):
                if rank_of(process) == "1":
                    process.kill()
                    killed.append(process)
                    return
        time.sleep(0.05)


def rank_of(process):
    try:
        return process.environ().get("RANK")
    except psutil.Error:  # it has ended, or has no memory yet
        return None


@pytest.mark.pipeline
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_killed_process_ends_the_attempt_and_the_retry_has_the_loss_of_one(parallel, small, prefect_server, tmp_path):
    from prefect import flow, get_run_logger, task

    from tasks.stage_runner import run_stage

    optimizer = ["distill_student.optimizer=adamw", "distill_student.learning_rate=2.0e-4"]
    alone = copy_run(small, tmp_path / "alone", *optimizer)
    slimtts("distill_student", alone)
    several = ["distill_student.processes=2", f"distill_student.parallel={parallel}"]
    run, killed, attempts = copy_run(small, tmp_path / "runs", *optimizer, *several), [], []

    @task(retries=1, retry_condition_fn=worth_retrying)
    def distill_student():
        attempts.append(time.monotonic())
        return run_stage("distill_student", run.root, 500, get_run_logger())

    @flow
    def healing():
        return distill_student()

    assassin = threading.Thread(target=kill_a_rank_after_a_checkpoint, args=(run, killed))
    assassin.start()
    assert healing()
    assassin.join()
    assert (len(killed), len(attempts)) == (1, 2)
    expected, found = (losses(w.student / "student.jsonl") for w in (alone, run))
    np.testing.assert_allclose(found, expected, rtol=2e-3)  # bf16 on processors that have it
    report = DistillReport.read(run.student / "report.json")
    assert report.device == f"cpu, 2 processes, {parallel}"
    assert report.student.tokens == DistillReport.read(alone.student / "report.json").student.tokens
    assert not [p for p in psutil.Process().children(recursive=True) if _runs_in(p, run.root)]


def _runs_in(process, root):
    try:
        return Path(process.cwd()) == root
    except psutil.Error:
        return False
