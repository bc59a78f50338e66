"""Runs whose worker died, that keep dying, or that are cancelled: real PostgreSQL, server and worker, toy stages."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tasks.recovery import GAVE_UP, TAG, install, recovery_automations
from tasks.workspace import CHECKOUT

pytestmark = [pytest.mark.faults, pytest.mark.stack]

HERE = Path(__file__).parent
SILENCE_S = 10.0  # the least that Prefect allows
ATTEMPTS = 1
PATIENCE_S = 240.0  # a loaded machine with two cores


@pytest.fixture
def server(stack_client):
    """The environment of workers of the stack's server, which has the automations and the toy deployments."""
    install(recovery_automations(ATTEMPTS, SILENCE_S))
    deploy()
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    path = os.pathsep.join([str(CHECKOUT), str(CHECKOUT / "src")])
    return kept | stack_client | {"PREFECT_WORKER_QUERY_SECONDS": "1", "DO_NOT_TRACK": "1", "PYTHONPATH": path}


@pytest.fixture
def worker(server, tmp_path):
    """Starts workers with more environment variables; yields control over them."""

    @contextmanager
    def start(**more):
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "toys", "--name", f"w{time.time_ns()}"]
        with started(command, {**server, "TOY_LOG": str(tmp_path / "toy.log"), **more}, tmp_path / "worker.log") as it:
            yield it

    return start


def test_a_run_whose_worker_and_process_died_goes_on_in_its_workspace(worker, toy_checkout, tmp_path):
    parameters = {"name": "toy-{date}-{id}", "runs_root": str(tmp_path / "runs"), "checkout": str(toy_checkout)}
    run_id = start_run("toy", parameters)
    with worker(TOY_SLEEP="score_layers") as first:
        stage_pids = sleeping_pids(tmp_path)
        flow = psutil.Process(first.pid).children()
        for process in (first, *flow):
            os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: not any(map(psutil.pid_exists, stage_pids)), "the stage to die with its flow")
    wait_until(lambda: state(run_id).name == "AwaitingRetry", "the silence to be noticed")
    with worker():
        wait_until(lambda: state(run_id).is_completed(), "the run to be finished by another worker")
    [workspace] = [path for path in (tmp_path / "runs").iterdir() if not path.name.startswith(".")]
    assert workspace.name.endswith(str(run_id)[:8])
    stages = [line for line in (tmp_path / "toy.log").read_text().split() if "_" in line]
    assert stages == ["subset_data", "score_layers", "score_layers"], "what was finished is not done again"


def test_a_run_that_keeps_dying_is_given_up(worker, toy_checkout):
    run_id = start_run("doomed", {})
    with worker():
        wait_until(lambda: state(run_id).name == GAVE_UP, "the run to be given up")
    assert state(run_id).is_crashed()
    assert run_count(run_id) == ATTEMPTS + 1


def test_a_cancelled_run_leaves_no_process(worker, toy_checkout, tmp_path):
    from prefect.client.orchestration import get_client
    from prefect.states import Cancelling

    parameters = {"name": "toy", "runs_root": str(tmp_path / "runs"), "checkout": str(toy_checkout)}
    run_id = start_run("toy", parameters)
    with worker(TOY_SLEEP="subset_data") as process:
        pids = [
            *sleeping_pids(tmp_path),
            *(child.pid for child in psutil.Process(process.pid).children(recursive=True)),
        ]
        assert len(pids) > 2
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(run_id, Cancelling())
        wait_until(lambda: state(run_id).is_cancelled(), "the run to be cancelled")
        wait_until(lambda: not any(map(alive, pids)), "its processes to end")
        assert process.poll() is None, "the worker lives on"
    assert state(run_id).is_cancelled(), "and nothing starts it again"


def deploy():
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate

    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="toys", type="process"), overwrite=True)
    for name in ("toy", "doomed"):
        loaded = flow.from_source(str(HERE), f"toy_flows.py:{name}_flow")
        loaded.deploy("real", work_pool_name="toys", tags=[TAG], build=False, print_next_steps=False)


def start_run(name, parameters):
    from prefect.deployments import run_deployment

    return run_deployment(f"{name}/real", parameters=parameters, timeout=0).id


def state(run_id):
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return client.read_flow_run(run_id).state


def run_count(run_id):
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return client.read_flow_run(run_id).run_count


def sleeping_pids(tmp_path):
    """Process ids of a sleeping toy stage and its child."""
    log = tmp_path / "toy.log"

    def told():
        return [line.split()[1:] for line in (log.read_text() if log.exists() else "").splitlines() if "pids" in line]

    wait_until(told, "a toy stage to sleep")
    return [int(pid) for pid in told()[-1]]


def alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextmanager
def started(command, environment, log):
    """The command in a process group of its own, of which nothing is left afterwards."""
    with log.open("ab") as stream:
        process = subprocess.Popen(command, env=environment, stdout=stream, stderr=stream, start_new_session=True)
    tree = psutil.Process(process.pid)
    try:
        yield process
    finally:
        family = [tree, *tree.children(recursive=True)] if tree.is_running() else []
        for member in family:
            if member.is_running():
                member.kill()
        process.wait(30)


def wait_until(condition, what):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {PATIENCE_S:g} s for {what}")
        time.sleep(0.3)
