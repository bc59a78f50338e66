import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slimtts.workspace import STAGES
from tasks import stage_runner
from tasks.stage_runner import StageError, run_stage, stale_stages
from tasks.workspace import prepare_workspace

logger = logging.getLogger("test")
FLOW = """
import logging, sys
from pathlib import Path
import flows
from prefect import flow, task
from tasks.stage_runner import run_stage

@task
def first(workspace):
    run_stage("subset_data", workspace, 100, logging.getLogger())

@flow
def toy_flow(workspace: Path):
    first(workspace)

toy_flow(Path(sys.argv[1]))
"""


def test_stage_runs_once_and_again_when_its_output_was_edited(toy_workspace, started):
    assert run_stage("subset_data", toy_workspace, 60, logger)
    assert not run_stage("subset_data", toy_workspace, 60, logger)
    assert started() == ["subset_data"]
    report = toy_workspace / "data" / "report.json"
    report.unlink()
    report.write_text("{}")
    assert "subset_data" in stale_stages(toy_workspace, "subset_data")


def test_the_log_says_first_run_then_what_changed_and_nothing_of_dvcs_own(toy_workspace, started, caplog):
    def lines(stage):
        caplog.clear()
        with caplog.at_level(logging.INFO, "test"):
            run_stage(stage, toy_workspace, 60, logger)
        return caplog.messages

    first = lines("subset_data")
    assert first[0] == "subset_data: first run" and first[-1] == "subset_data: done"
    for noise in ("modified", "is empty", "dvc push", "lock file", "Running stage", "> python"):
        assert noise not in "\n".join(first)
    assert lines("subset_data") == ["subset_data: unchanged, nothing to do"]
    params = toy_workspace / "params.yaml"
    former = params.read_text()
    params.write_text(former.replace("selection_utterances: 64", "selection_utterances: 65"))
    assert params.read_text() != former
    assert lines("subset_data")[0] == "subset_data: again: subset_data.selection_utterances 64 -> 65"


def test_a_damaged_dvc_lock_is_set_aside_and_the_stages_run_again(toy_workspace, toy_checkout, started):
    run_stage("subset_data", toy_workspace, 60, logger)
    lock = toy_workspace / "dvc.lock"
    lock.write_bytes(lock.read_bytes()[:40] + b"\x00\xff")
    prepare_workspace("toy", "demo", [], toy_workspace.parent, toy_checkout)
    assert not lock.exists() and (toy_workspace / "dvc.lock.damaged").is_file()
    assert run_stage("subset_data", toy_workspace, 60, logger)
    assert lock.is_file()


def test_compiled_files_and_foreign_params_do_not_make_a_stage_stale(toy_workspace, toy_checkout, started):
    run_stage("subset_data", toy_workspace, 60, logger)
    params = toy_workspace / "params.yaml"
    params.write_text(params.read_text().replace("keep_layers: 6", "keep_layers: 5"))
    (toy_workspace / "data" / "__pycache__").mkdir()
    (toy_workspace / "data" / "__pycache__" / "x.pyc").touch()
    assert stale_stages(toy_workspace, "subset_data") == {}
    assert "prune_layers" in stale_stages(toy_workspace)


@pytest.mark.parametrize(("exit_code", "worth_retrying"), [(2, False), (3, True)])
def test_failure_carries_the_stages_own_message_and_code(
    toy_workspace, started, monkeypatch, exit_code, worth_retrying
):
    monkeypatch.setenv("TOY_FAIL", "subset_data")
    monkeypatch.setenv("TOY_EXIT_CODE", str(exit_code))
    with pytest.raises(StageError, match=r"^subset_data: slimtts: subset_data: observed a toy") as caught:
        run_stage("subset_data", toy_workspace, 60, logger)
    assert (caught.value.exit_code, caught.value.worth_retrying) == (exit_code, worth_retrying)


def test_missing_input_names_it(toy_workspace, started):
    with pytest.raises(StageError, match="scores"):
        run_stage("prune_layers", toy_workspace, 60, logger)
    assert started() == []


def test_timeout_leaves_no_process(toy_workspace, started, monkeypatch, tmp_path):
    monkeypatch.setenv("TOY_SLEEP", "subset_data")
    began = time.monotonic()
    with pytest.raises(StageError, match="still running after 5 s"):
        run_stage("subset_data", toy_workspace, 5, logger)
    assert time.monotonic() - began < 30
    pids = _pids(tmp_path / "toy.log")
    assert len(pids) == 2
    assert not any(map(_alive, pids))


def test_interrupted_by_an_exception_leaves_no_process(toy_workspace, started, monkeypatch, tmp_path):
    monkeypatch.setenv("TOY_SLEEP", "subset_data")
    monkeypatch.setattr(stage_runner, "CHATTER", re.compile("(?!)"))  # DVC's own first line reaches the handler

    class Interrupting(logging.Handler):
        def emit(self, record):
            if "> python" in record.getMessage():
                _pids(tmp_path / "toy.log")
                raise KeyboardInterrupt

    noisy = logging.getLogger("interrupting")
    noisy.setLevel(logging.INFO)
    noisy.addHandler(Interrupting())
    with pytest.raises(KeyboardInterrupt):
        run_stage("subset_data", toy_workspace, 60, noisy)
    assert not any(map(_alive, _pids(tmp_path / "toy.log")))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_killed_flow_leaves_no_process(how, toy_workspace, started, monkeypatch, tmp_path, subprocess_environment):
    environment = {**subprocess_environment, "TOY_SLEEP": STAGES[0], "TOY_LOG": str(tmp_path / "toy.log")}
    with subprocess.Popen([sys.executable, "-c", FLOW, str(toy_workspace)], env=environment) as flow:
        pids = _pids(tmp_path / "toy.log")
        assert all(map(_alive, pids))
        flow.send_signal(how)
        flow.wait(30)
    deadline = time.monotonic() + 10
    while any(map(_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_alive, pids))


def _pids(log):
    """Process ids that a sleeping toy stage has written, waited for."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        lines = log.read_text().splitlines() if log.exists() else []
        found = [line.split()[1:] for line in lines if line.startswith("pids ")]
        if found:
            return [int(pid) for pid in found[-1]]
        time.sleep(0.05)
    raise TimeoutError("the toy stage never started to sleep")


def _alive(pid):
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
