"""Killed with -9 before any write, and two at once: the history and production stay one, and nothing is lost."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from slimtts.promotion_history import event_line
from tasks.registry import register_release
from tasks.workspace import CHECKOUT
from tests.flows.toy_release import MODEL, promotions, toy_release

HERE = Path(__file__).parent


@pytest.fixture
def registered(runs_root, monkeypatch):
    """Three accepted students in the registry, the first in production; gives their runs."""
    monkeypatch.setenv("SLIMTTS_GIT_SHA", "abc")
    runs = [toy_release(runs_root, name, seed) for seed, name in enumerate("abc", start=1)]
    for run in runs:
        register_release(run, promote=run is runs[0])
    return runs


def _start(script, *arguments, **environment):
    paths = {"PYTHONPATH": os.pathsep.join([str(CHECKOUT), str(CHECKOUT / "src")])}
    return subprocess.Popen(
        [sys.executable, str(HERE / script), *map(str, arguments)], env={**os.environ, **paths, **environment},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def _kills(runs_root, action, workspace):
    """One record for each write to MLflow that a kill -9 came before; see promotion_kills.py."""
    process = _start("promotion_kills.py", action, runs_root, workspace)
    told, problem = process.communicate(timeout=500)
    assert process.returncode == 0, problem
    return [json.loads(line) for line in told.splitlines() if line.startswith("{")]


MENDED = {"killed": True, "again": 0, "production": "2", "applied": True, "versions": 2, "shown": True}


def test_a_kill_before_any_write_of_a_registration_is_mended_by_the_same_call(runs_root, monkeypatch):
    monkeypatch.setenv("SLIMTTS_GIT_SHA", "abc")
    register_release(toy_release(runs_root, "a"), promote=True)
    toy_release(runs_root, "b", seed=2)
    attempts = _kills(runs_root, "register", "b")
    assert not attempts[-1]["killed"] and len(attempts) > 15, "the last one ran to its end"
    for attempt in attempts[:-1]:
        assert {**attempt, **MENDED} == attempt
        assert attempt["actions"] == ["promoted", "promoted"]


def test_a_kill_before_any_write_of_a_rollback_is_mended_by_the_same_call(runs_root, monkeypatch):
    monkeypatch.setenv("SLIMTTS_GIT_SHA", "abc")
    for seed, name in enumerate("ab", start=1):
        register_release(toy_release(runs_root, name, seed), promote=True)
    attempts = _kills(runs_root, "roll back", "a")
    assert not attempts[-1]["killed"] and len(attempts) > 4
    for attempt in attempts[:-1]:
        assert {**attempt, **MENDED, "production": "1"} == attempt
        assert attempt["actions"] == ["promoted", "promoted", "rolled_back"]


def _at_once(*processes):
    """Lets them go when all are ready, and waits for their end."""
    for process in processes:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        _, problem = process.communicate(timeout=300)
        assert process.returncode == 0, problem


def _assert_one_story(run, moves):
    """All decisions are there, each begins where the former one ended, and production is where the last one ended."""
    seen = promotions(run).log.read()
    told = [event_line(event) for event in seen.events]
    assert sorted(event.reason for event in seen.events[1:]) == moves, told
    versions = [None, *(event.version for event in seen.events)]
    assert [event.former_version for event in seen.events] == versions[:-1], told
    assert seen.production == versions[-1]
    assert seen.applied == seen.keys[-1]


def test_two_processes_on_one_machine_lose_no_promotion(registered, runs_root):
    first = registered[0]
    _at_once(*(_start("two_promoters.py", "plain", version, runs_root, 4, first.tracking_uri) for version in "23"))
    _assert_one_story(first, sorted(f"{version} {turn}" for version in "23" for turn in range(4)))


def test_two_machines_lose_no_promotion(registered, runs_root, tmp_path, prefect_server):
    """Each has its own folder of runs, so that no file lock helps: the Prefect server lets in one at a time."""
    first = registered[0]
    processes = []
    for version in "23":
        (tmp_path / version).mkdir()
        processes.append(
            _start(
                "two_promoters.py", "flow", version, tmp_path / version, 2, first.tracking_uri,
                PREFECT_API_URL=prefect_server, MLFLOW_TRACKING_URI=first.tracking_uri,
            )
        )  # fmt: skip
    _at_once(*processes)
    _assert_one_story(first, sorted(f"{version} {turn}" for version in "23" for turn in range(2)))
    locks = [path.name for path in tmp_path.glob("[23]/.promotion-*.lock")]
    assert locks == [f".promotion-{MODEL}.lock"] * 2
