"""Scoring and evaluation shared out over Dask's processes give the bytes of one process, also when one is killed."""

import logging
import shutil
import threading
import time

import psutil
import pytest

from slimtts.errors import InvalidInputError
from tasks.fan_out import WORKERS, fan_out, wanted_workers

from .small_run import copy_run, slimtts

logger = logging.getLogger("test")
HELPERS_APPEAR_WITHIN_S = 240


@pytest.fixture(scope="module")
def run(small, tmp_path_factory):
    return copy_run(small, tmp_path_factory.mktemp("runs"))


def shared(stage, run):
    """How many helpers finished."""
    from prefect import flow

    @flow
    def sharing():
        return fan_out(stage, run.root, 500, logger)

    return sharing()


def helpers():
    """Processes of this test that help out, with the Dask worker that started each (a supervisor is between them)."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "--help-out" in process.cmdline() and "slimtts.cli" in process.cmdline()[2]:
                found.append((process, process.parent().parent()))
        except (psutil.NoSuchProcess, AttributeError, IndexError):
            continue
    return found


def kill_a_worker_when_helpers_run(killed):
    deadline = time.monotonic() + HELPERS_APPEAR_WITHIN_S
    while time.monotonic() < deadline:
        running = helpers()
        if len(running) == 2:
            helper, worker = running[0]
            worker.kill()
            killed.append((helper, worker))
            return
        time.sleep(0.1)


def test_scores_of_two_processes_are_those_of_one_although_a_worker_is_killed(run, prefect_server, monkeypatch):
    slimtts("score_layers", run)
    alone = (run.scores / "scores.json").read_bytes()
    for made in (run.scores, run.scoring_progress):
        shutil.rmtree(made)
    monkeypatch.setenv(WORKERS, "2")
    killed = []
    assassin = threading.Thread(target=kill_a_worker_when_helpers_run, args=(killed,))
    assassin.start()
    assert shared("score_layers", run) == 2
    assassin.join()
    ((helper, worker),) = killed
    assert not helper.is_running() and not worker.is_running() and helpers() == []
    (progress,) = run.scoring_progress.iterdir()
    made = {path: path.stat().st_mtime_ns for path in progress.glob("cut-*")}
    assert len({path.name.split("-")[1] for path in made}) == 11, "the helpers measured every level"
    assert not run.scores.exists()
    slimtts("score_layers", run)
    assert (run.scores / "scores.json").read_bytes() == alone
    assert {path: path.stat().st_mtime_ns for path in progress.glob("cut-*")} == made, "nothing was measured again"


@pytest.mark.pipeline
def test_an_evaluation_by_two_processes_is_that_of_one(run, prefect_server, monkeypatch):
    shutil.copytree(run.pruned / "model", run.student / "student", dirs_exist_ok=True)
    slimtts("evaluate_student", run)
    first = run.evaluation.rename(run.root / "first")
    shutil.rmtree(run.evaluation_progress)
    monkeypatch.setenv(WORKERS, "2")
    assert shared("evaluate_student", run) == 2
    slimtts("evaluate_student", run)
    for path in [first / "utterances.jsonl", *first.glob("audio/*/*.wav")]:
        assert (run.evaluation / path.relative_to(first)).read_bytes() == path.read_bytes()


def test_one_process_is_the_default_and_starts_nothing(run, monkeypatch):
    monkeypatch.delenv(WORKERS, raising=False)
    assert fan_out("score_layers", run.root, 5, logger) == 0
    monkeypatch.setenv(WORKERS, "2")
    assert fan_out("prune_layers", run.root, 5, logger) == 0, "a stage without work to share"


@pytest.mark.parametrize("text", ["0", "-2", "two", ""])
def test_a_number_of_workers_that_is_none_is_refused(monkeypatch, text):
    monkeypatch.setenv(WORKERS, text)
    with pytest.raises(InvalidInputError, match="SLIMTTS_WORKERS: observed"):
        wanted_workers()
