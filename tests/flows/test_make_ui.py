"""`make ui`: both servers answer on loopback, and Ctrl-C leaves no process."""

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import requests

from infra.stack.layout import free_ports

pytestmark = pytest.mark.flows
ROOT = Path(__file__).resolve().parents[2]


def answers(address):
    try:
        return requests.get(address, timeout=5).ok
    except requests.RequestException:
        return False


def test_both_pages_answer_and_ctrl_c_leaves_nothing(tmp_path):
    ports = free_ports().by_service()
    mlflow, prefect = ports["mlflow"], ports["prefect"]
    command = ["make", "ui", f"RUNS={tmp_path}", f"MLFLOW_PORT={mlflow}", f"PREFECT_PORT={prefect}"]
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path / "prefect")}
    environment.pop("PREFECT_API_URL", None)
    with (tmp_path / "log").open("wb") as log:
        make = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        waiting = {f"http://127.0.0.1:{mlflow}/health", f"http://127.0.0.1:{prefect}/api/health"}
        deadline = time.monotonic() + 180
        while waiting:
            assert make.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()[-2000:]
            waiting = {address for address in waiting if not answers(address)}
            time.sleep(0.5)
        started = psutil.Process(make.pid).children(recursive=True)
        os.killpg(make.pid, signal.SIGINT)
        make.wait(60)
        _, alive = psutil.wait_procs(started, timeout=60)
        assert alive == []
    finally:
        with suppress(ProcessLookupError):
            os.killpg(make.pid, signal.SIGKILL)
        make.wait(60)
